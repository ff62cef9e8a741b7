"""Continuity: from every backup along its line, what is there, what is missing, what can be restored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.wal.ranges import clip, run_from, union, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pgvigil.wal.ranges import Range
    from pgvigil.wal.timelines import Stretch, Tree


class Base(NamedTuple):
    """A backup as continuity needs it: its timeline, the numbers of its segments, its end in bytes."""

    label: str
    timeline: int
    start: int
    stop: int
    stop_lsn: int
    is_usable: bool = True
    is_pitr: bool = True


class Reach(NamedTuple):
    """Restore points from one backup: from its end to the end of the unbroken WAL after it, in bytes."""

    label: str
    timeline: int
    from_lsn: int
    to_lsn: int
    last: int


class Switch(NamedTuple):
    """Where a line leaves a timeline, and what is stored of the segment that the timeline ends in.

    The line takes that number from the child; a backup that ended in it still needs the parent's copy.
    """

    timeline: int
    lsn: int
    number: int
    is_stored: bool
    is_good: bool


@dataclass(frozen=True)
class Line:
    """One way through the timelines to its tip; on it a number names exactly one segment."""

    stretches: tuple[Stretch, ...]
    present: list[Range]
    good: list[Range]
    switches: tuple[Switch, ...] = ()

    @property
    def tip(self) -> int:
        """The timeline in which the line ends."""
        return self.stretches[-1].timeline

    @property
    def newest(self) -> int:
        """The highest number that is stored, or -1."""
        return self.present[-1][1] if self.present else -1

    def timeline_of(self, number: int) -> int:
        """Return from which timeline the line takes a segment."""
        return next(s.timeline for s in self.stretches if s.first <= number <= s.last)

    def holds(self, base: Base) -> bool:
        """Tell whether the backup ended on this line: on its tip, or before the line left its timeline."""
        left = (s.lsn for s in self.switches if s.timeline == base.timeline)
        return base.timeline == self.tip or any(base.stop_lsn <= lsn for lsn in left)

    def end_of(self, base: Base) -> Switch | None:
        """Return the switch in whose segment the backup ended, if it ended in one."""
        ends = (s for s in self.switches if (s.timeline, s.number) == (base.timeline, base.stop))
        return next(ends, None)

    def stop_of(self, base: Base) -> int:
        """Return the last number on the line that the backup itself needs."""
        return base.stop - 1 if self.end_of(base) else base.stop


@dataclass(frozen=True)
class Verdicts:
    """What continuity found on one line; ranges are numbers on that line."""

    line: Line
    bases: tuple[Base, ...]
    lost: list[Range] = field(default_factory=list)
    late: list[Range] = field(default_factory=list)
    reaches: tuple[Reach, ...] = ()
    unreachable: tuple[Base, ...] = ()

    @property
    def lost_ends(self) -> list[Switch]:
        """The parents' copies at switches that a backup needs and the archive lacks."""
        needed = {self.line.end_of(base) for base in self.bases}
        return [switch for switch in self.line.switches if switch in needed and not switch.is_stored]

    @property
    def newest_lsn(self) -> int:
        """The highest position that any backup of the line can be restored to, or -1."""
        return max((reach.to_lsn for reach in self.reaches), default=-1)


def make_line(
    tree: Tree,
    tip: int,
    segment_size: int,
    stored: Mapping[int, Sequence[Range]],
    broken: Mapping[int, Sequence[Range]],
) -> Line:
    """Lay the stored and the broken segments of all timelines onto the way to one of them."""
    stretches = tree.line(tip, segment_size)
    present = lay(stretches, stored)
    good = without(present, lay(stretches, broken))
    return Line(stretches, present, good, tuple(_switches(tree, tip, segment_size, stored, broken)))


def _switches(
    tree: Tree,
    tip: int,
    segment_size: int,
    stored: Mapping[int, Sequence[Range]],
    broken: Mapping[int, Sequence[Range]],
) -> Iterator[Switch]:
    for timeline, lsn in tree.branches(tip):
        number = lsn // segment_size
        is_stored = run_from(stored.get(timeline, ()), number) is not None
        is_broken = run_from(broken.get(timeline, ()), number) is not None
        yield Switch(timeline, lsn, number, is_stored, is_stored and not is_broken)


def lay(stretches: Iterable[Stretch], by_timeline: Mapping[int, Sequence[Range]]) -> list[Range]:
    """Lay ranges of all timelines onto a line: each number from the timeline that the line takes it from."""
    return union(*(clip(by_timeline.get(s.timeline, ()), s.first, s.last) for s in stretches))


def assign(bases: Sequence[Base], lines: Sequence[Line]) -> list[list[Base]]:
    """Give each backup to the first line that holds it; put the live line first."""
    found: list[list[Base]] = [[] for _ in lines]
    for base in bases:
        for index, line in enumerate(lines):
            if line.holds(base):
                found[index].append(base)
                break
    return found


def judge(
    line: Line, bases: Sequence[Base], pending: Sequence[Range], until: int, segment_size: int
) -> Verdicts:
    """Judge one line: what must be there from its backups on, and what can be restored.

    `until` is the last number that the server has finished (-1 if unknown); `pending` what it still holds.
    """
    end = max(line.newest, until)
    missing = without(_needed(line, bases, end), line.present)
    lost = without(missing, pending)
    reaches = [_reach(line, base, segment_size) for base in bases]
    return Verdicts(
        line=line,
        bases=tuple(bases),
        lost=lost,
        late=without(missing, lost),
        reaches=tuple(reach for reach in reaches if reach),
        unreachable=tuple(base for base, reach in zip(bases, reaches, strict=True) if not reach),
    )


def _needed(line: Line, bases: Sequence[Base], end: int) -> list[Range]:
    """Say which numbers must be there: all from the oldest backup on, its own range at least."""
    last = [(base.start, max(line.stop_of(base), end if base.is_pitr else 0)) for base in bases]
    return union((first, last) for first, last in last if first <= last)


def _reach(line: Line, base: Base, segment_size: int) -> Reach | None:
    switch = line.end_of(base)
    if not base.is_usable or (switch and not switch.is_good):
        return None
    stop = line.stop_of(base)
    unbroken = run_from(line.good, base.start)
    last = base.start - 1 if unbroken is None else unbroken
    if last < stop:
        return None
    to_lsn = switch.lsn if switch and last == stop else (last + 1) * segment_size
    return Reach(base.label, line.tip, base.stop_lsn, to_lsn, last)


class Loss(NamedTuple):
    """What one broken range costs: points in bytes, the backups that cannot be restored at all."""

    from_lsn: int
    to_lsn: int
    backups: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no restore point is lost."""
        return self.from_lsn >= self.to_lsn and not self.backups


def loss_of(found: Verdicts, broken: Range, segment_size: int) -> Loss:
    """Say which restore points a broken range kills: up to the next backup's end, else to the newest WAL."""
    first, last = broken
    before = [base for base in found.bases if base.start <= last]
    dead = tuple(base.label for base in before if found.line.stop_of(base) >= first)
    if not before:
        return Loss(0, 0, ())
    up_to = [reach.to_lsn for reach in found.reaches if reach.last == first - 1]
    after = [reach.from_lsn for reach in found.reaches if _start(found, reach) > last]
    newest = (max(found.line.newest, last) + 1) * segment_size
    return Loss(max([first * segment_size, *up_to]), min(after, default=newest), dead)


def loss_of_end(found: Verdicts, switch: Switch, segment_size: int) -> Loss:
    """Say what is lost with the parent's copy at a switch: the backups that ended in it, and their points."""
    dead = [base for base in found.bases if found.line.end_of(base) == switch]
    if not dead:
        return Loss(0, 0, ())
    first = min(base.stop_lsn for base in dead)
    is_covered = any(reach.from_lsn <= first < reach.to_lsn for reach in found.reaches)
    after = [reach.from_lsn for reach in found.reaches if reach.from_lsn > first]
    newest = (max(found.line.newest, switch.number) + 1) * segment_size
    to_lsn = first if is_covered else min(after, default=newest)
    return Loss(first, to_lsn, tuple(base.label for base in dead))


class Cost(NamedTuple):
    """A range of one timeline's segments, the line on which it does harm, and what it costs there."""

    found: Verdicts
    loss: Loss


def cost_of(verdicts: Sequence[Verdicts], timeline: int, broken: Range, segment_size: int) -> Cost | None:
    """Find the line on which damaged segments of a timeline do harm; None when no line takes them."""
    costs = [
        Cost(found, loss) for found in verdicts for loss in _losses(found, timeline, broken, segment_size)
    ]
    harmful = (cost for cost in costs if not cost.loss.is_empty)
    return next(harmful, costs[0] if costs else None)


def _losses(found: Verdicts, timeline: int, broken: Range, segment_size: int) -> Iterator[Loss]:
    for stretch in found.line.stretches:
        if stretch.timeline == timeline:
            for part in clip([broken], stretch.first, stretch.last):
                yield loss_of(found, part, segment_size)
    for switch in found.line.switches:
        if switch.timeline == timeline and broken[0] <= switch.number <= broken[1]:
            yield loss_of_end(found, switch, segment_size)


def _start(found: Verdicts, reach: Reach) -> int:
    return next(base.start for base in found.bases if base.label == reach.label)
