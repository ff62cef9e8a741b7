"""What recovery of a restored copy proves, and how it fails, on live servers."""

import hashlib
from pathlib import Path

import pytest
import zstandard

from pgvigil.drill import copy as copies
from pgvigil.drill import scratch
from pgvigil.drill.copy import Copy
from pgvigil.drill.recover import recover
from pgvigil.drill.recovery import Outcome, Recovery, Stop
from pgvigil.drill.restore import restore
from pgvigil.errors import PreconditionFailed
from pgvigil.pgbackrest import PgBackRest
from pgvigil.postgres import connect
from tests.fixtures.drill_copy import DEADLINE, Drill, Marked, nothing
from tests.fixtures.wal import Vault

ALL = ["one", "two", "three", "four", "five"]


def recovered(drill: Drill, stop: Stop, copy: Copy | None = None) -> Recovery:
    with recover(copy or drill.copied(), stop, drill.watch) as recovery:
        return recovery


def end_of_wal(drill: Drill, **facts: object) -> Stop:
    stop = drill.stop("five")
    return stop.model_copy(update={"kind": "default", "value": "", **facts})


def test_recovery_stops_at_one_mark_after_the_other(drill: Drill) -> None:
    """Before the record at an LSN, then at a name, then on: each has its beats and not the next."""
    copy = drill.copied()
    seen = []
    for stop in (drill.lsn_stop("two"), drill.stop("three"), drill.lsn_stop("four")):
        with recover(copy, stop, drill.watch) as recovery:
            seen.append((recovery.outcome, recovery.promoted, drill.beats(copy)))

    assert seen == [
        (Outcome.REACHED, False, ["one", "two"]),
        (Outcome.REACHED, False, ["one", "two", "three"]),
        (Outcome.REACHED, False, ["one", "two", "three", "four"]),
    ]


def test_the_default_target_promotes_at_the_end_of_wal(drill: Drill) -> None:
    """It says how far it got; and it followed a setting that the source raised on the way."""
    copy = drill.copied()
    with recover(copy, end_of_wal(drill), drill.watch) as recovery:
        assert recovery.reached, recovery.message
        assert recovery.promoted
        assert recovery.committed_at
        assert recovery.timeline == 1
        assert drill.beats(copy) == ALL
        assert copies.first_query(copy, "shop") >= 0
    assert drill.progress
    assert copies.read_control(copy).required["max_connections"] == 150


def test_recovery_stops_at_a_transaction_and_at_a_time(drill: Drill) -> None:
    """After the commit of a transaction; before the first commit after a time."""
    copy = drill.copied()
    lsn, beats = drill.marked.marks["one"].lsn, drill.marked.beats
    for stop, found in (
        (Stop(kind="xid", value=beats["two"]["xid"], lsn=lsn, timeline=1), ALL[:2]),
        (Stop(kind="time", value=beats["four"]["at"], lsn=lsn, timeline=1), ALL[:3]),
    ):
        with recover(copy, stop, drill.watch) as recovery:
            assert recovery.reached, recovery.message
            assert found == drill.beats(copy)


def test_a_promoted_copy_archives_nothing_and_listens_nowhere(drill: Drill) -> None:
    """Whatever the source's files say: the repository stays as it was, and the copy takes writes."""
    before = sorted(drill.vault.repository.rglob("*"))
    copy = drill.copied()
    with recover(copy, drill.stop("one"), drill.watch):
        assert copies.promote(copy, DEADLINE) > 0
        with copies.connect(copy, "shop", "test") as session:
            session.execute("CREATE TABLE public.written (x int)")
            session.execute("SELECT pg_switch_wal()")
            session.execute("CHECKPOINT")
            names = ("archive_mode", "listen_addresses", "primary_conninfo", "external_pid_file")
            told = [session.execute(f"SHOW {name}").fetchone()[name] for name in names]  # type: ignore[index]
    assert told == ["off", "", "", ""]
    assert before == sorted(drill.vault.repository.rglob("*"))


def test_a_gap_before_the_target_is_missing_wal(drill: Drill) -> None:
    """It names the segment."""
    gap = drill.marked.segment("three", drill.vault)
    gap.unlink()

    recovery = recovered(drill, drill.stop("five"))

    assert (Outcome.WAL_MISSING, gap.name[:24]) == (recovery.outcome, recovery.wanted), recovery
    assert not recovery.promoted


def test_a_copy_that_looks_healthy_short_of_the_end_is_missing_wal(drill: Drill) -> None:
    """Default recovery comes up, takes sessions, and is told apart from one that reached the end."""
    gap = drill.marked.segment("three", drill.vault)
    gap.unlink()
    copy = drill.copied()

    with recover(copy, end_of_wal(drill), drill.watch) as recovery:
        assert (Outcome.WAL_MISSING, gap.name[:24]) == (recovery.outcome, recovery.wanted), recovery
        assert recovery.promoted
        assert drill.beats(copy) == ["one", "two"]


@pytest.mark.parametrize(("way", "kind"), [("file", "name"), ("content", "default")])
def test_a_damaged_segment_is_corrupt_wal(drill: Drill, way: str, kind: str) -> None:
    """Whether pgBackRest cannot unpack it, or PostgreSQL cannot read what was in it."""
    damaged = drill.marked.segment("three", drill.vault)
    stored = damaged.read_bytes()
    if way == "file":
        damaged.write_bytes(stored[:30] + b"broken" + stored[36:])
    else:
        content = bytearray(zstandard.ZstdDecompressor().decompressobj().decompress(stored))
        content[40:200] = bytes(x ^ 0x55 for x in content[40:200])
        damaged.write_bytes(zstandard.ZstdCompressor().compress(bytes(content)))

    recovery = recovered(drill, drill.stop("five") if kind == "name" else end_of_wal(drill))

    assert (Outcome.WAL_CORRUPT, damaged.name[:24]) == (recovery.outcome, recovery.wanted), recovery
    assert recovery.promoted is (kind == "default")
    assert recovery.lines


def test_a_timeline_of_somebody_else_is_a_stray(drill: Drill) -> None:
    """A copy that was promoted before and archived: recovery follows it away from the source."""
    first = drill.copied()
    with recover(first, drill.stop("two"), drill.watch):
        copies.promote(first, DEADLINE)
        with copies.connect(first, "postgres", "test") as session:
            session.execute("INSERT INTO public.beats VALUES ('stray')")
            session.execute("SELECT pg_switch_wal()")
        push(first.place.data / "pg_wal", drill)
    scratch.remove(first.place)
    copy = drill.copied()

    to_mark = recovered(drill, drill.stop("four"), copy)
    to_end = recovered(drill, end_of_wal(drill), copy)

    assert [Outcome.TIMELINE_STRAY] * 2 == [to_mark.outcome, to_end.outcome], (to_mark, to_end)
    assert "timeline 2, expected 1" in to_mark.message
    assert to_end.promoted


def fork(drill: Drill, at: str, *segments: str, timeline: int = 2) -> None:
    """Archive a history that leaves timeline 1 at a mark, and copies of the segments of other marks."""
    history = drill.vault.archive / f"{timeline:08X}.history"
    history.write_text(f"1\t{drill.marked.marks[at].lsn}\tno recovery target specified\n")
    drill.vault.sandbox.give(history)
    for name in segments:
        stored = drill.marked.segment(name, drill.vault)
        target = drill.vault.archive / f"{timeline:08X}{stored.name[8:16]}"
        target.mkdir(exist_ok=True)
        (target / f"{timeline:08X}{stored.name[8:]}").write_bytes(stored.read_bytes())
        for path in (target, *target.iterdir()):
            drill.vault.sandbox.give(path)


@pytest.mark.long
def test_a_strays_history_alone_leads_recovery_astray(drill: Drill) -> None:
    """The server follows it over the source's own files, and starts no more once it is beyond the fork."""
    copy = drill.copied()
    reached = recovered(drill, drill.stop("two"), copy)
    fork(drill, "one")

    went_on = recovered(drill, drill.stop("four"), copy)
    scratch.remove(copy.place)
    from_backup = recovered(drill, drill.stop("four"))

    assert reached.reached, reached
    assert [Outcome.TIMELINE_STRAY] * 2 == [went_on.outcome, from_backup.outcome], (went_on, from_backup)
    assert "does not contain minimum recovery point" in "\n".join(went_on.lines)


def test_a_failover_of_the_source_after_the_stop_is_no_stray(drill: Drill) -> None:
    """The way to the new timeline leads over the stop, whose segment is taken from the new one's copy."""
    fork(drill, "three", "three")

    recovery = recovered(drill, drill.stop("three"))

    assert (Outcome.REACHED, 1) == (recovery.outcome, recovery.timeline), recovery


def test_a_history_that_cannot_be_read_is_no_history(drill: Drill) -> None:
    """The source's own history is damaged in the archive: nothing can be restored beyond it."""
    fork(drill, "one")
    (drill.vault.archive / "00000002.history").write_text("one, and then two\n")

    recovery = recovered(drill, end_of_wal(drill, timeline=2))

    assert recovery.outcome is Outcome.TIMELINE_MISSING, recovery


def push(wal: Path, drill: Drill) -> None:
    """Store the history and the segments of timeline 2, as archiving would."""
    history = drill.vault.archive / "00000002.history"
    history.write_bytes((wal / "00000002.history").read_bytes())
    for segment in sorted(wal.glob("00000002????????????????")):
        content = segment.read_bytes()
        target = drill.vault.archive / segment.name[:16]
        target.mkdir(exist_ok=True)
        (target / f"{segment.name}-{hashlib.sha1(content).hexdigest()}").write_bytes(content)  # noqa: S324
    for path in drill.vault.archive.rglob("*"):
        drill.vault.sandbox.give(path)


def test_a_timeline_that_the_archive_lacks_is_missing(drill: Drill) -> None:
    """The source is on timeline 2, the archive knows nothing of it."""
    recovery = recovered(drill, end_of_wal(drill, timeline=2))

    assert recovery.outcome is Outcome.TIMELINE_MISSING, recovery


@pytest.mark.long
def test_a_target_outside_the_window_is_no_loss(drill: Drill) -> None:
    """The archive ends before it, and nothing is called missing; or it is older than the backup's end.

    A name that was used before its time stops early.
    """
    copy = drill.copied()
    reused = drill.stop("two").model_copy(update={"lsn": drill.marked.marks["three"].lsn})
    last = drill.marked.marks["five"].lsn
    too_old = recovered(drill, Stop(kind="lsn", value="0/1000000", lsn="0/1000000"), copy)
    early = recovered(drill, reused, copy)
    later = [
        recovered(drill, Stop(kind="name", value="never", lsn=last, timeline=1), copy),
        recovered(drill, Stop(kind="lsn", value="7/0", lsn="7/0", timeline=1), copy),
    ]

    assert too_old.outcome is Outcome.BEFORE_CONSISTENCY, too_old
    assert early.outcome is Outcome.STOPPED_EARLY, early
    assert [Outcome.WAL_ENDS] * 2 == [recovery.outcome for recovery in later], later


def test_a_backup_without_its_own_wal_is_told(drill: Drill) -> None:
    """Without the segments of the backup itself there is no consistent copy at all."""
    first = drill.backup.archive.start
    next(path for path in drill.vault.segments() if path.name.startswith(str(first))).unlink()

    recovery = recovered(drill, drill.stop("five"))

    assert recovery.outcome is Outcome.BEFORE_BACKUP_END, recovery


def test_what_the_configuration_says_of_production_is_undone(drill: Drill) -> None:
    """Another host, a delta, links and tablespaces to old places, databases left out: none of it counts."""
    conf = drill.settings.config
    assert conf
    elsewhere = drill.vault.sandbox.directory / "production"
    lines = [
        "pg1-host=nowhere.invalid",
        "[global:restore]",
        "delta=y",
        "link-all=y",
        f"tablespace-map=../../elsewhere={elsewhere}",
        "db-include=shop",
        "recovery-option=recovery_target_xid=123",
    ]
    conf.write_text(conf.read_text() + "\n".join(lines) + "\n")
    copy = drill.restored()

    with recover(copy, drill.stop("one"), drill.watch) as recovery:
        assert recovery.reached, recovery.message
        assert drill.beats(copy) == ["one"]
    assert [] == [*drill.vault.sandbox.directory.glob("production*")]
    (place,) = drill.marked.vault.sql("SELECT oid::text FROM pg_tablespace WHERE spcname LIKE '../%'")
    assert [copy.place.tablespaces / place["oid"]] == list(copy.place.tablespaces.iterdir())


def test_a_pgbackrest_on_another_host_is_refused_before_it_restores_there(drill: Drill) -> None:
    """It is asked for our owner file through the same prefix; what cannot read it is elsewhere."""
    away = drill.settings.model_copy(update={"command": ("sh", "-c", "exit 1", "pgbackrest")})
    place = drill.place()

    with pytest.raises(PreconditionFailed, match="behind 'sh -c") as refused:
        restore(away, place, drill.backup, on_line=nothing, on_progress=nothing)

    assert refused.value.hint
    assert [] == list(place.data.iterdir())


def test_a_restore_tells_its_progress(drill: Drill) -> None:
    """Percent that end at a hundred, and the seconds."""
    seen: list[float] = []
    place = drill.place()

    done = restore(
        drill.settings, place, drill.backup, on_line=nothing, on_progress=lambda p: seen.append(p.percent)
    )

    assert 100.0 == max(seen)
    assert done.seconds > 0
    assert done.bytes == PgBackRest(drill.settings).info().backups(1)[-1].info.size


@pytest.mark.long
def test_a_stop_that_comes_before_the_copy_takes_sessions_is_exact_and_the_last(
    own_vault: Vault, scratch_directory: Path
) -> None:
    """A transaction with many open subtransactions keeps a hot standby shut, and PostgreSQL cannot pause.

    The copy is promoted then; that it goes no further is told, and its timeline called nobody's stray.
    """
    marked = Marked(own_vault)
    own_vault.sql("CREATE TABLE public.beats (mark text PRIMARY KEY)")
    savepoints = "".join(f"SAVEPOINT s{n}; INSERT INTO public.beats VALUES ('open {n}');" for n in range(70))
    admin = own_vault.sandbox.admin_dsn(own_vault.sandbox.primary_port)
    with connect(admin, "test") as session:
        session.execute(f"BEGIN; {savepoints}".encode())
        own_vault.backup("full")
        marked.mark("one")
        marked.mark("two")
        own_vault.wait_archived()
        session.execute("ROLLBACK")
    drill = Drill(marked, own_vault, scratch_directory)
    copy = drill.restored()

    with recover(copy, drill.stop("one"), drill.watch) as recovery:
        assert recovery.reached, recovery.message
        assert recovery.promoted
        assert ["one"] == drill.beats(copy)
    for stop in (drill.stop("two"), drill.lsn_stop("two")):
        later = recovered(drill, stop, copy)
        assert (Outcome.PROMOTED, False) == (later.outcome, later.promoted), later
        assert "64 open subtransactions" in later.message
