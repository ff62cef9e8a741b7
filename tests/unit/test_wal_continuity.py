"""Generated archives against a model that walks segment by segment: no gap missed, none invented."""

import json
import os
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from pgvigil.wal.continuity import Base, Verdicts, assign, cost_of, judge, loss_of, make_line
from pgvigil.wal.inventory import ListingReader
from pgvigil.wal.names import lsn_text, segment_name
from pgvigil.wal.ranges import Range, clip, count, holes, ranges_of, run_from, union, without
from pgvigil.wal.timelines import Fate, Tree, fates

SIZE = 64 * 2**20
ROUNDS = 100 * int(os.environ.get("PGVIGIL_ROUNDS", "1"))
NUMBERS = st.lists(st.integers(0, 40), max_size=30)


@given(NUMBERS, NUMBERS, st.integers(0, 40), st.integers(0, 40))
def test_ranges_are_sets(left: list[int], right: list[int], first: int, last: int) -> None:
    """Every operation on ranges is that on the sets of their numbers."""
    a, b = ranges_of(sorted(left)), ranges_of(sorted(right))

    def numbers(ranges: list[Range]) -> set[int]:
        return {n for low, high in ranges for n in range(low, high + 1)}

    inside = set(range(first, last + 1))
    assert set(left) == numbers(a)
    assert len(set(left)) == count(a)
    assert set(left) & inside == numbers(clip(a, first, last))
    assert inside - set(left) == numbers(holes(a, first, last))
    assert set(left) - set(right) == numbers(without(a, b))
    assert set(left) | set(right) == numbers(union(a, b))
    run = run_from(a, first)
    assert (run is not None) == (first in left)
    assert run is None or (run in left and run + 1 not in left)


@dataclass
class World:
    """A generated archive: history files, what is stored, damaged, pending, and the backups."""

    histories: dict[int, str]
    stored: set[tuple[int, int]]
    bad: set[tuple[int, int]]
    pending: set[int]
    bases: list[Base]
    live: int
    until: int


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Draw up to four timelines, each branched off an earlier one, with holes, damage and backups."""
    timelines = draw(st.integers(1, 4))
    begins, parents, ends = {1: 0}, dict[int, int](), {1: draw(st.integers(3, 14))}
    histories: dict[int, str] = {}
    lines: dict[int, list[tuple[int, int]]] = {1: []}
    for timeline in range(2, timelines + 1):
        parent = draw(st.integers(1, timeline - 1))
        number = draw(st.integers(begins[parent], ends[parent]))
        offset = draw(st.sampled_from([0, 0x28, SIZE - 8]))
        parents[timeline], begins[timeline] = parent, number
        ends[timeline] = number + draw(st.integers(0, 8))
        lsn = max([number * SIZE + offset, *(began for _, began in lines[parent])])
        lines[timeline] = [*lines[parent], (parent, lsn)]
        histories[timeline] = "".join(f"{t}\t{lsn_text(lsn)}\tpromoted\n\n" for t, lsn in lines[timeline])
    everything = {(t, n) for t in begins for n in range(begins[t], ends[t] + 1)}
    dropped = draw(st.sets(st.sampled_from(sorted(everything)), max_size=6))
    stored = everything - dropped
    bad = draw(st.sets(st.sampled_from(sorted(everything)), max_size=3)) & stored
    bases = []
    for index in range(draw(st.integers(0, 4))):
        timeline = draw(st.integers(1, timelines))
        start = draw(st.integers(begins[timeline], ends[timeline]))
        stop = draw(st.integers(start, min(start + 2, ends[timeline])))
        # a stop at 0x20 is before a branch at 0x28 and a stop at 100 is after it, in the same segment
        lsn = stop * SIZE + draw(st.sampled_from([0x20, 100]))
        bases.append(Base(f"b{index}", timeline, start, stop, lsn, draw(st.booleans())))
    live = timelines
    until = ends[live] + draw(st.integers(-1, 3))
    pending = draw(st.sets(st.integers(0, until + 1), max_size=3))
    return World(histories, stored, bad, pending, bases, live, until)


def by_timeline(pairs: set[tuple[int, int]]) -> dict[int, list[Range]]:
    return {t: ranges_of(sorted(n for own, n in pairs if own == t)) for t in {t for t, _ in pairs}}


def naive_way(world: World, tip: int) -> dict[int, int]:
    """Which timeline recovery takes each number from, one by one."""
    branches = [line.split() for line in world.histories.get(tip, "").splitlines() if line]
    way = {}
    for number in range(60):
        owner = tip
        for timeline, lsn, _ in reversed(branches):
            high, low = lsn.split("/")
            if number < ((int(high, 16) << 32) + int(low, 16)) // SIZE:
                owner = int(timeline)
        way[number] = owner
    return way


@settings(max_examples=ROUNDS)
@given(worlds())
def test_no_gap_is_missed_and_none_invented(world: World) -> None:
    """Lost, late and reachable are what walking segment by segment finds, on every line."""
    tree = Tree.read(world.histories)
    tips = [world.live, *(t for t in range(1, world.live))]
    stored, bad = by_timeline(world.stored), by_timeline(world.bad)
    lines = [make_line(tree, tip, SIZE, stored, bad) for tip in tips]

    for line, bases, tip in zip(lines, assign(world.bases, lines), tips, strict=True):
        until = world.until if tip == world.live else -1
        pending = ranges_of(sorted(world.pending)) if tip == world.live else []
        check(world, judge(line, bases, pending, until, SIZE), bases, tip, until)


def naive_branches(world: World, tip: int) -> list[tuple[int, int]]:
    found = []
    for line in world.histories.get(tip, "").splitlines():
        if line:
            timeline, lsn, _ = line.split()
            high, low = lsn.split("/")
            found.append((int(timeline), (int(high, 16) << 32) + int(low, 16)))
    return found


def naive_holds(world: World, tip: int, base: Base) -> bool:
    """A backup is on the way to a timeline if recovery passes its end."""
    return base.timeline == tip or any(
        base.timeline == timeline and base.stop_lsn <= lsn for timeline, lsn in naive_branches(world, tip)
    )


def check(world: World, found: Verdicts, bases: list[Base], tip: int, until: int) -> None:
    way = naive_way(world, tip)
    present = {n for n, t in way.items() if (t, n) in world.stored}
    good = {n for n in present if (way[n], n) not in world.bad}
    end = max([*present, until])
    # the last segment of a backup may be one that the line takes from the child: then its own copy counts
    stops = {base: base.stop if way[base.stop] == base.timeline else base.stop - 1 for base in bases}
    ends = {(base.timeline, base.stop) for base in bases if stops[base] < base.stop}
    assert all(naive_holds(world, tip, base) for base in bases)
    needed = {n for base in bases for n in range(base.start, max(stops[base], end) + 1)}
    pending = world.pending if tip == world.live else set()
    assert ranges_of(sorted(needed - present - pending)) == found.lost
    assert sorted((needed - present) & pending) == [n for a, b in found.late for n in range(a, b + 1)]
    assert sorted(ends - world.stored) == sorted({(s.timeline, s.number) for s in found.lost_ends})
    expected = {}
    for base in bases:
        number = base.start
        while number in good:
            number += 1
        own = (base.timeline, base.stop)
        has_end = own not in ends or own in world.stored - world.bad
        if base.is_usable and has_end and number > stops[base]:
            switch = dict(naive_branches(world, tip)).get(base.timeline, 0)
            is_before = own in ends and number == base.stop
            expected[base.label] = switch if is_before else number * SIZE
    assert expected == {reach.label: reach.to_lsn for reach in found.reaches}
    for hole in found.lost:
        loss = loss_of(found, hole, SIZE)
        dead = {base.label for base in bases if base.start <= hole[1] and stops[base] >= hole[0]}
        assert dead == set(loss.backups)
        assert not any(r.from_lsn <= loss.from_lsn + 1 < r.to_lsn for r in found.reaches)


@settings(max_examples=ROUNDS)
@given(worlds())
def test_every_backup_is_judged_and_first_on_the_live_line(world: World) -> None:
    """A backup that the live line passes is judged there, even if it ended in the segment of the switch."""
    tree = Tree.read(world.histories)
    tips = [world.live, *(t for t in range(1, world.live))]
    lines = [make_line(tree, tip, SIZE, by_timeline(world.stored), {}) for tip in tips]

    live, *others = assign(world.bases, lines)

    assert [base for base in world.bases if naive_holds(world, world.live, base)] == live
    assert sorted(world.bases) == sorted(base for own in (live, *others) for base in own)


@settings(max_examples=ROUNDS)
@given(worlds())
def test_damage_that_ends_a_window_has_a_cost(world: World) -> None:
    """Every damaged segment without which a backup could be restored further, or at all, costs something."""
    tree = Tree.read(world.histories)
    tips = [world.live, *(t for t in range(1, world.live))]
    stored = by_timeline(world.stored)

    def verdicts(bad: set[tuple[int, int]]) -> list[Verdicts]:
        lines = [make_line(tree, tip, SIZE, stored, by_timeline(bad)) for tip in tips]
        return [
            judge(line, own, [], -1, SIZE)
            for line, own in zip(lines, assign(world.bases, lines), strict=True)
        ]

    found = verdicts(world.bad)
    for timeline, number in world.bad:
        healed = verdicts(world.bad - {(timeline, number)})
        cost = cost_of(found, timeline, (number, number), SIZE)
        does_harm = [f.reaches for f in found] != [f.reaches for f in healed]
        assert not does_harm or (cost is not None and not cost.loss.is_empty)


@settings(max_examples=50)
@given(worlds(), st.integers(1, 400))
def test_a_listing_is_read_the_same_however_it_is_cut(world: World, cut: int) -> None:
    """Chunks of any size give the inventory of the whole, with every class counted."""
    extra = {
        ".": {"type": "path"},
        "archive.info": {"type": "file", "size": 1, "time": 1},
        "15-1/0000000100000000": {"type": "path"},
        "15-1/0000000100000000/000000010000000000000002.00000028.backup": {
            "type": "file",
            "size": 1,
            "time": 1,
        },
        f"15-1/0000000100000000/000000010000000000000009.partial-{'a' * 40}.zst": {
            "type": "file",
            "size": 1,
            "time": 1,
        },
        '15-1/not "ours"\\': {"type": "file", "size": 1, "time": 1},
        "15-1/00000002.history": {"type": "file", "size": 1, "time": 1},
    }
    names = [segment_name(t, n, SIZE) for t, n in sorted(world.stored)]
    entries = {
        f"15-1/{name[:16]}/{name}-{i:040x}.lz4": {"type": "file", "size": i, "time": 5}
        for i, name in enumerate(names)
    }
    text = (json.dumps(extra | entries, separators=(",", ":")) + "\n").encode()
    reader = ListingReader(SIZE)
    for start in range(0, len(text), cut):
        reader.feed(text[start : start + cut])

    archive = reader.close()["15-1"]

    assert by_timeline(world.stored) == {
        t: track.ranges() for t, track in archive.tracks.items() if len(track)
    }
    assert set(entries) == {f"15-1/{file.path(SIZE)}" for file in archive.files()}
    assert (1, 1, 1, 1) == tuple(archive.classes[c] for c in ("backup", "partial", "foreign", "history"))
    assert {2} == archive.histories


@settings(max_examples=ROUNDS)
@given(worlds(), worlds(), st.integers(1, 400))
def test_every_archive_id_is_read_as_if_it_were_alone(old: World, new: World, cut: int) -> None:
    """Numbers and sizes of one archive say nothing of another's, whatever the order and the chunks."""
    sizes = {"14-1": SIZE, "15-2": SIZE // 4}
    entries = {
        f"{key}/{name[:16]}/{name}-{number:040x}": {"type": "file", "size": 1, "time": 1}
        for (key, size), world in zip(sizes.items(), (old, new), strict=True)
        for timeline, number in sorted(world.stored)
        for name in [segment_name(timeline, number, size)]
    }
    text = (json.dumps({".": {"type": "path"}} | entries, separators=(",", ":")) + "\n").encode()
    reader = ListingReader(SIZE // 4, {"14-1": SIZE})
    for start in range(0, len(text), cut):
        reader.feed(text[start : start + cut])

    found = {
        key: {t: track.ranges() for t, track in archive.tracks.items()}
        for key, archive in reader.close().items()
    }

    worlds_by_key = {"14-1": by_timeline(old.stored), "15-2": by_timeline(new.stored)}
    assert {key: ranges for key, ranges in worlds_by_key.items() if ranges} == found


def test_a_promotion_leaves_an_ancestor_a_restore_an_abandoned_a_copy_a_stray() -> None:
    """Live is 3, branched off 1: 1 is its past, 2 was given up, 4 is somebody else's."""
    tree = Tree.read(
        {2: "1\t0/5000000\tx\n", 3: "1\t0/4000000\tx\n", 4: "1\t0/4000000\tx\n3\t0/6000000\tx\n"}
    )

    assert {1: Fate.ANCESTOR, 2: Fate.ABANDONED, 3: Fate.LIVE, 4: Fate.STRAY} == fates(tree, [1, 2, 3, 4], 3)


def test_a_timeline_that_gets_wal_after_it_was_given_up_is_a_stray() -> None:
    """Number 2 is lower than the server's 3, and somebody archives there still."""
    tree = Tree.read({2: "1\t0/5000000\tx\n", 3: "1\t0/4000000\tx\n"})

    assert {1: Fate.ANCESTOR, 2: Fate.STRAY, 3: Fate.LIVE} == fates(tree, [1, 2, 3], 3, {1, 2, 3})


def test_a_standby_calls_nothing_a_stray_that_may_be_its_primarys() -> None:
    """Its primary may have been promoted while it did not look."""
    tree = Tree.read({2: "1\t0/5000000\tx\n"})

    assert {1: Fate.LIVE, 2: Fate.UNKNOWN} == fates(tree, [1, 2], 1, is_standby=True)


def test_a_history_file_that_is_none_is_told() -> None:
    """Empty, garbled or its own ancestor: unreadable, with the reason."""
    tree = Tree.read({2: "", 3: "garbage", 4: "4\t0/5000000\tx\n"})

    assert {2, 3, 4} == set(tree.unreadable)
