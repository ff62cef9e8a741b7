"""The copy's part of a drill: restore it, recover it stop by stop, compare, promote, examine."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill import amcheck, assertions, catalogue, checksums, compare, sequences
from pgvigil.drill import copy as copies
from pgvigil.drill import recover as recovering
from pgvigil.drill import restore as restoring
from pgvigil.drill.amcheck import Access
from pgvigil.drill.content import hash_copy
from pgvigil.drill.copy import Copy
from pgvigil.drill.digest import Limits, pin
from pgvigil.drill.judgement import passed, refuted, unknown
from pgvigil.drill.recovery import Outcome, Stop, Watch
from pgvigil.drill.report import Reached, Restored, Rpo, WalUsed
from pgvigil.drill.results import result_of
from pgvigil.drill.source import read_cluster
from pgvigil.drill.state import OWED, Drill, Halt, Marked, Plan
from pgvigil.drill.witness import is_committed
from pgvigil.errors import DatabaseFailed, PgBackRestFailed
from pgvigil.reports import Check, Finding, Severity
from pgvigil.runs import finding_of
from pgvigil.sql import query
from pgvigil.wal.names import parse_lsn, segment_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pgvigil.drill.around import Readings
    from pgvigil.drill.place import Place
    from pgvigil.drill.recovery import Recovery
    from pgvigil.drill.source import MarkedDatabase
    from pgvigil.postgres import Connection

    Hear = Callable[[Any], None]

# With these pgBackRest says that the set itself is bad: checksum, file-invalid, format, file-missing.
_BAD_SET = {26, 28, 29, 55}
# Ends of a recovery that say nothing about the backup.
_UNTOLD = {
    Outcome.DEADLINE,
    Outcome.FAILED,
    Outcome.PROMOTED,
    Outcome.SETTINGS_TOO_LOW,
    Outcome.BEFORE_CONSISTENCY,
}


def restore(drill: Drill, plan: Plan, place: Place, *, on_line: Hear, on_progress: Hear) -> Copy | None:
    """Restore the set and return the copy; None where the set cannot be restored, which is refuted."""
    run = drill.run
    drill.lock.check()
    try:
        with run.step("restore", {"label": plan.backup.label, "repo": plan.backup.repo}):
            done = restoring.restore(
                drill.settings.drill_pgbackrest, place, plan.backup, on_line=on_line, on_progress=on_progress
            )
    except PgBackRestFailed as error:
        if error.context.get("exit_code") not in _BAD_SET or not _is_still_listed(drill, plan):
            raise
        _refute(drill, "restored", "restore-failed", error.message, error.hint)
        return None
    drill.note("restore", done.seconds, done.bytes)
    run.checks.append(passed("restored", OWED["restored"], f"{plan.backup.label} in {done.seconds:.1f} s"))
    copy = _copy(drill, plan, place)
    run.facts["restored"] = Restored(
        stanza=drill.stanza,
        repo=plan.backup.repo,
        label=plan.backup.label,
        chain=plan.backup.reference or (),
        stopped_at=plan.backup.timestamp.stop,
        system_id=int(copies.read_control(copy).system_id),
        expected_system_id=plan.server.system_id,
        bytes=done.bytes,
        scratch=str(place.directory),
    )
    return copy


def _is_still_listed(drill: Drill, plan: Plan) -> bool:
    """Tell a bad set from one that an expire removed meanwhile."""
    return any(b.label == plan.backup.label for b in drill.pgbackrest.info().backups(plan.backup.repo))


def _refute(drill: Drill, check: str, code: str, message: str, hint: str) -> None:
    drill.run.checks.append(refuted(check, OWED[check], [message]))
    drill.run.findings.append(
        Finding(
            code=code,
            severity=Severity.ERROR,
            message=message,
            hint=hint or "take a new full backup now, and drill that",
            subject=drill.run.identity.subject,
        )
    )


def _copy(drill: Drill, plan: Plan, place: Place) -> Copy:
    major = copies.read_major(place)
    return Copy(
        place=place,
        programs=copies.find_programs(major, drill.policy.postgres_bin),
        major=major,
        superuser=plan.cluster.superuser,
        role=plan.cluster.role,
        restore_command=restoring.restore_command(drill.settings.drill_pgbackrest, place, plan.backup.repo),
        shared_buffers_mb=drill.policy.shared_buffers_mb,
        preload=drill.policy.preload,
    )


def halts(marked: Marked) -> tuple[Halt, ...]:
    """Lay out where recovery stops: at every mark in the order of WAL, then at the target.

    The last mark and the target are often the same point, and then one stop. What all databases share is
    compared at a mark as well, the last one at which it was read: behind that it may have changed.
    """
    target = Stop.at_target(marked.target)
    stops: dict[Stop, list[MarkedDatabase]] = {}
    for each in sorted(marked.databases, key=lambda each: parse_lsn(each.content.mark.lsn)):
        mark = each.content.mark
        is_target = target.kind in {"name", "lsn"} and target.value in {mark.name, mark.lsn}
        stops.setdefault(target if is_target else Stop.at_mark(mark), []).append(each)
    stops.setdefault(target, [])
    shared = {
        stop: each.readings.shared
        for stop, found in stops.items()
        for each in found
        if each.readings and each.readings.shared
    }
    last = [*shared][-1:]
    return tuple(
        Halt(stop, tuple(found), stop == target, shared[stop] if stop in last else None)
        for stop, found in stops.items()
    )


@dataclass(frozen=True)
class Recovered:
    """How far a recovery got, and whether the copy is there to be compared."""

    recovery: Recovery
    is_there: bool


@contextmanager
def recover(  # noqa: PLR0913 - the copy, where it goes, and who hears of it
    drill: Drill, plan: Plan, marked: Marked, copy: Copy, halt: Halt, *, on_progress: Hear
) -> Iterator[Recovered]:
    """Recover the copy to a stop, judge how far it got, and keep its server running for the block."""
    later = restoring.has_later(drill.pgbackrest, plan.backup.repo, plan.archive_id)
    watch = Watch(deadline=drill.policy.deadline, has_later=later, on_progress=on_progress)
    with recovering.recover(copy, halt.stop, watch) as recovery:
        drill.note("replay", recovery.replay_seconds)
        is_there = judge_recovery(drill, plan, halt, recovery)
        if is_there and halt.is_last:
            hear_witnesses(drill, plan, marked, copy, recovery)
        yield Recovered(recovery, is_there)


def judge_recovery(drill: Drill, plan: Plan, halt: Halt, recovery: Recovery) -> bool:
    """Judge how far replay got; False when the copy is not at the stop, and so cannot be compared."""
    if not recovery.reached:
        _note_reached(drill, plan, recovery, None, None)
        if recovery.outcome in _UNTOLD:
            drill.run.checks.append(unknown("recovered", OWED["recovered"], recovery.message))
            drill.run.findings.append(_untold(drill, recovery))
        else:
            _refute(drill, "recovered", f"recovery-{recovery.outcome}", recovery.message, recovery.hint)
        return False
    if halt.is_last:
        actual = f"{recovery.message or halt.stop}, LSN {recovery.lsn}"
        drill.run.checks.append(passed("recovered", OWED["recovered"], actual))
    return True


def _untold(drill: Drill, recovery: Recovery) -> Finding:
    return Finding(
        code=f"recovery-{recovery.outcome}",
        severity=Severity.ERROR,
        message=recovery.message,
        hint=recovery.hint,
        subject=drill.run.identity.subject,
    )


def hear_witnesses(drill: Drill, plan: Plan, marked: Marked, copy: Copy, recovery: Recovery) -> None:
    """Look at the target for the commits around it and whose the copy is, before it writes anything."""
    with copies.connect(copy, "postgres", drill.run.name) as session:
        target = marked.target
        is_present = is_committed(session, target.present) if target.present else None
        is_absent = not is_committed(session, target.absent) if target.absent else None
        _note_version(drill, session)
        if plan.choice.proves_equality:
            _tell_unmarked(drill, marked, session)
    _note_reached(drill, plan, recovery, is_present, is_absent)
    if target.present:
        drill.run.checks.append(_witnesses(is_present=is_present, is_absent=is_absent))
    drill.run.checks.append(_identity(drill, plan, recovery))
    _note_rpo(drill, marked, recovery)


def _tell_unmarked(drill: Drill, marked: Marked, session: Connection) -> None:
    """Tell of databases that the copy holds and no mark knows: nobody can compare them."""
    there = read_cluster(session)
    known = {each.name: each.oid for each in marked.databases}
    told = {check.id for check in drill.run.checks}
    for name in (*there.databases, *there.closed):
        check = f"rows {name} meanwhile" if name in known else f"rows {name}"
        if known.get(name) != there.oids[name] and check not in told:
            why = f"database '{name}' was created or renamed after the last mark: drill again"
            drill.run.checks.append(unknown(check, OWED["rows"], why))


def _note_version(drill: Drill, session: Connection) -> None:
    row = session.execute(query("drill_copy", "version")).fetchone() or {}
    facts = drill.run.facts
    facts["versions"] = facts["versions"].model_copy(update={"copied": row["version"]})


def _witnesses(*, is_present: bool | None, is_absent: bool | None) -> Check:
    faults = []
    if is_present is False:
        faults.append("the commit before the target is missing")
    if is_absent is False:
        faults.append("the commit after the target is there")
    if faults:
        return refuted("witnesses", OWED["witnesses"], faults)
    after = "none was due" if is_absent is None else "absent"
    return passed("witnesses", OWED["witnesses"], f"before: present; after: {after}")


def _identity(drill: Drill, plan: Plan, recovery: Recovery) -> Check:
    expected, found = str(plan.server.system_id), recovery.system_id
    if found != expected:
        return refuted("identity", OWED["identity"], [f"system {found}, the source is {expected}"])
    actual = f"system {found}, stanza {drill.stanza}, {plan.backup.label}, repo{plan.backup.repo}"
    return passed("identity", OWED["identity"], actual)


def _note_reached(
    drill: Drill, plan: Plan, recovery: Recovery, is_present: bool | None, is_absent: bool | None
) -> None:
    lsn = recovery.lsn or "0/0"
    timeline = recovery.timeline or plan.backup.timeline
    drill.run.facts["reached"] = Reached(
        lsn=lsn,
        timeline=timeline,
        last_commit_at=recovery.committed_at,
        before_is_present=is_present,
        after_is_absent=is_absent,
        promoted=recovery.promoted,
    )
    size = plan.server.segment_size
    drill.run.facts["wal"] = WalUsed(
        first=plan.backup.archive.start or "",
        last=segment_name(timeline, max(parse_lsn(lsn) - 1, 0) // size, size),
        from_lsn=plan.backup.lsn.start if plan.backup.lsn else "",
        to_lsn=lsn,
        timeline=timeline,
        segments=plan.wal_bytes(lsn) // size + 1,
        bytes=plan.wal_bytes(lsn),
    )


def _note_rpo(drill: Drill, marked: Marked, recovery: Recovery) -> None:
    """Note how much would have been lost, had the source been lost when the restore began."""
    if recovery.committed_at is not None:
        age = (marked.stored_at - recovery.committed_at).total_seconds()
        drill.run.facts["rpo"] = Rpo(
            last_commit_at=recovery.committed_at, age_seconds=age, arrival_seconds=marked.arrival_seconds
        )


def compare_database(drill: Drill, copy: Copy, database: MarkedDatabase, *, on_progress: Hear) -> None:
    """Compare rows, catalogue and sequences of one database at its mark; what cannot be read is told."""
    with _told(drill, database.name, rows=compare.check_name(database.name, database.part)):
        _compare_rows(drill, copy, database, on_progress)
    if database.readings:
        name = database.name
        with _told(drill, name, catalogue=f"catalogue {name}", sequences=f"sequences {name}"):
            _compare_rest(drill, copy, name, database.readings)


@contextmanager
def _told(drill: Drill, database: str, **checks: str) -> Iterator[None]:
    """Tell of what a database owes and did not give, and let the others be compared."""
    try:
        yield
    except DatabaseFailed as error:
        if error.context.get("unreachable"):
            raise
        drill.run.findings.append(finding_of(error, database))
        told = {check.id for check in drill.run.checks}
        drill.run.checks += [
            unknown(check, OWED[owed], error.message) for owed, check in checks.items() if check not in told
        ]


def _compare_rows(drill: Drill, copy: Copy, database: MarkedDatabase, on_progress: Hear) -> None:
    limits = Limits(workers=drill.policy.hash_workers)
    connect = partial(
        copies.connect, copy, database.name, drill.run.name, drill.policy.deadline, role=copy.role
    )
    found = hash_copy(connect, database.content, limits, on_progress=on_progress)
    drill.note("hash copy", found.seconds, found.bytes_read)
    doubts = {doubt.oid: doubt.reason for doubt in database.content.doubts}
    comparison = compare.compare(database.content, found, doubts=doubts)
    due = tuple(each for each in database.content.unproven if not each.by_design)
    drill.take(compare.judge(comparison, due, part=database.part))
    drill.run.facts["databases"] = (
        *drill.run.facts.get("databases", ()),
        result_of(database, comparison, found),
    )


def _compare_rest(drill: Drill, copy: Copy, name: str, readings: Readings) -> None:
    with (
        copies.connect(copy, name, drill.run.name) as there,
        copies.connect(copy, name, drill.run.name, role=copy.role) as reader,
        ExitStack() as stack,
    ):
        pin(reader)  # columns that own sequences are asked, and no superuser may do that
        until = catalogue.read_window(there).next
        since = catalogue.window_of(readings.catalogue)
        copied = catalogue.read(there, "database", since=since, until=until)
        drill.take(sequences.prove(name, readings.sequences, reader))
        here = _source(drill, postgres.in_database(drill.settings.dsn, name), stack) or there
        drill.take(catalogue.prove(name, (*readings.catalogue, copied), here, there))


def _source(drill: Drill, dsn: str, stack: ExitStack) -> Connection | None:
    """Enter the source, which only names what differs: a database may be dropped since its mark."""
    try:
        here = stack.enter_context(postgres.connect(dsn, drill.run.name))
        postgres.read_bytes(here)
    except DatabaseFailed:
        return None
    return here


def compare_cluster(drill: Drill, copy: Copy, halt: Halt) -> None:
    """Compare what all databases share, if it is known at this stop: roles, settings, tablespaces."""
    if halt.shared is None:
        return
    with copies.connect(copy, "postgres", drill.run.name) as there, ExitStack() as stack:
        here = _source(drill, drill.settings.dsn, stack) or there
        until = catalogue.read_window(there).next
        since = catalogue.window_of(halt.shared)
        copied = catalogue.read(there, "cluster", since=since, until=until)
        drill.take(catalogue.prove("cluster", (*halt.shared, copied), here, there))


def promote(drill: Drill, copy: Copy) -> None:
    """Bring the copy up for reads and writes, and ask it the first question."""
    drill.note("start", copies.promote(copy, drill.policy.deadline))
    drill.note("first query", copies.first_query(copy, "postgres"))
    facts = drill.run.facts
    facts["reached"] = facts["reached"].model_copy(update={"promoted": True})


def examine(drill: Drill, copy: Copy) -> Mapping[str, str]:
    """Run amcheck in every database and the assertions; returns the names of files, for the checksums."""
    began, name = time.monotonic(), drill.run.name
    access = access_to(copy)
    _amcheck(drill, access)
    databases = amcheck.open_databases(access, name)
    asked = [each.model_copy(update={"role": each.role or copy.role}) for each in drill.policy.assertions]
    drill.take(assertions.check(access, name, asked, timedelta(minutes=10)))
    files: dict[str, str] = {}
    for database in databases:
        with copies.connect(copy, database, name) as session:
            files |= checksums.read_files(session)
            drill.take(catalogue.read_collations(database, session))
    with copies.connect(copy, "postgres", name) as session:
        drill.take(checksums.read_failures(session))
    drill.note("prove", time.monotonic() - began)
    return files


def _amcheck(drill: Drill, access: Access) -> None:
    """Check all databases within one deadline, and tell beside their tables how much was looked at."""
    looked: dict[str, int] = {}
    policy = drill.policy
    drill.take(
        amcheck.check(
            access,
            drill.run.name,
            policy.deadline,
            jobs=policy.hash_workers,
            on_progress=looked.__setitem__,
        )
    )
    drill.run.facts["databases"] = tuple(
        each.model_copy(update={"amchecked": looked.get(each.database, 0)})
        for each in drill.run.facts.get("databases", ())
    )


def access_to(copy: Copy) -> Access:
    """Return how the tools reach the copy."""
    return Access(
        dsn=copies.dsn(copy),
        programs=copy.programs,
        user=copy.place.user,
        environment=copy.place.environment,
    )


def scan(drill: Drill, copy: Copy, files: Mapping[str, str]) -> None:
    """Check every page of the copy, whose server has ended."""
    began = time.monotonic()
    drill.take(checksums.check(access_to(copy), copy.place.data, drill.policy.deadline, files))
    drill.note("prove", time.monotonic() - began)
