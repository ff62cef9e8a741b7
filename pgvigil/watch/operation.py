"""The steps of keep_watch: each does its work and writes into the run's ledger.

What Prefect holds, and what it is told, comes and goes through the callers: this module knows records only.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pydantic import ValidationError

from pgvigil import audit, postgres
from pgvigil.backfill import steering
from pgvigil.errors import PgvigilError
from pgvigil.partitions.facts import Horizon
from pgvigil.reports import Check, Finding, Severity, Verdict
from pgvigil.runs import finding_of
from pgvigil.sql import query
from pgvigil.status import State, assess
from pgvigil.watch import signal
from pgvigil.watch.alarms import Facts, Memory, Reach, Wait, judge, told
from pgvigil.watch.proofs import expectations
from pgvigil.watch.reconcile import correct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from uuid import UUID

    from pgvigil.audit import RunSummary
    from pgvigil.fleet import Fleet
    from pgvigil.postgres import Connection
    from pgvigil.runs import Run
    from pgvigil.watch.alarms import Alarm, Judgement
    from pgvigil.watch.reconcile import Correction, Held

MOST_STARTS = 20_000  # of runs in the audit log, among which those that Prefect holds are looked for


def look(run: Run) -> Facts:
    """Read the audit log, and the databases whose backfill is at work; raises DatabaseFailed."""
    fleet = run.fleet
    with postgres.connect(fleet.audit.dsn, run.name) as session:
        claims = audit.last_claims(session)
        ((now,),) = (row.values() for row in session.execute(query("watch", "now")).fetchall())
        statuses = assess(claims, expectations(fleet, claims), now)
        reaches = tuple(_reaches(session, fleet))
        migrated = [name for name, settings in fleet.databases() if settings.backfills]
        values = {"flow": "run_backfill", "subjects": migrated}
        at_work = session.execute(query("watch", "at_work"), values).fetchall()
        memory = _memory(session, run.identity.subject)
    waits = tuple(wait for row in at_work for wait in _waits(run, row["subject"]))
    run.facts["counts"] = dict(Counter(status.state for status in statuses))
    run.facts["statuses"] = tuple(s for s in statuses if s.state not in {State.VERIFIED, State.NEVER})
    _note(run, "proofs", Verdict.VERIFIED, "every proof was looked at", f"{len(statuses)} proofs")
    return Facts(now=now, statuses=tuple(statuses), reaches=reaches, waits=waits, memory=memory)


def _reaches(session: Connection, fleet: Fleet) -> Iterator[Reach]:
    """Read how far partitions reach, of the tables that the fleet file has."""
    wanted = {
        (name, policy.table): policy.ahead
        for name, settings in fleet.databases()
        for policy in settings.partitions
    }
    subjects = list({name for name, _ in wanted})
    for row in session.execute(query("watch", "horizons"), {"subjects": subjects}).fetchall():
        horizon = Horizon.model_validate(row["horizon"])
        if ahead := wanted.get((row["subject"], horizon.table)):
            yield Reach.of(row["subject"], horizon, ahead)


def _memory(session: Connection, subject: str) -> Memory:
    row = session.execute(query("watch", "memory"), {"subject": subject}).fetchone()
    try:
        return Memory.model_validate({**row["remembered"], "at": row["at"]}) if row else Memory()
    except ValidationError:
        return Memory()  # alarms are then told once more, which is better than not


def _waits(run: Run, subject: str) -> Iterator[Wait]:
    """Look what backfills of a database wait for; what a person paused is no alarm."""
    try:
        _, _, settings = run.fleet.database(subject)
        shown = [steering.show(run.fleet, subject, name) for name in settings.backfills]
    except PgvigilError as error:
        run.findings.append(finding_of(error, subject, Severity.WARNING))
        return
    for each in shown:
        progress = each.progress
        if each.state == "running" and progress and progress.waiting_for and progress.waiting_since:
            yield Wait(
                subject=subject,
                backfill=each.backfill,
                waiting_for=progress.waiting_for,
                since=progress.waiting_since,
            )


def weigh(run: Run, seen: Facts) -> Judgement:
    """Decide the alarms and write them down as findings."""
    found = judge(seen, run.fleet.alarms)
    run.facts |= {"alarms": found.alarms, "over": found.over}
    run.facts["memory"] = seen.memory.renewed(found.alarms, found.sightings, seen.now)
    run.findings += [alarm.finding() for alarm in found.alarms]
    return found


def reconcile(run: Run, held: Sequence[Held], seen: Facts, apply: Callable[[Correction], None]) -> None:
    """Set right what Prefect has wrong, each correction between intent and outcome; idempotent."""
    records = _on_record(run, [each.id for each in held])
    corrections = correct(held, records, seen.now)
    for correction in corrections:
        with run.step(f"correct run {correction.flow_run}", correction.model_dump(mode="json")):
            apply(correction)
        run.findings.append(_corrected(correction))
    run.facts["corrections"] = corrections
    actual = f"{len(held)} runs looked at, {len(corrections)} corrected"
    _note(run, "reconciled", Verdict.VERIFIED, "Prefect has of each run what the audit log proves", actual)


def _on_record(run: Run, flow_runs: list[UUID]) -> dict[UUID, RunSummary]:
    with postgres.connect(run.fleet.audit.dsn, run.name) as session:
        values = {"flow_runs": flow_runs, "most": MOST_STARTS}
        rows = session.execute(query("watch", "on_record"), values).fetchall()
        of = {row["run_id"]: row["flow_run"] for row in rows}
        found = audit.find_runs(session, list(of))
    return {of[each.run_id]: each for each in found}


def _corrected(correction: Correction) -> Finding:
    return Finding(
        code="run-corrected",
        severity=Severity.WARNING,
        message=f"run '{correction.name}' was {correction.was} in Prefect and is {correction.becomes}: "
        f"{correction.because}",
        hint="nothing, if its next run is verified; docs/alarms.md, 'crashed'",
        subject=str(correction.flow_run),
    )


def tell(
    run: Run, found: Judgement, seen: Facts, emit: Callable[[Iterable[Alarm], Iterable[Alarm]], None]
) -> None:
    """Tell what is due and what is over, and remember that it was told; raises what `emit` raises."""
    if found.due or found.over:
        emit(found.due, found.over)
    alarms = told(found.alarms, found.due, seen.now)
    run.facts |= {"alarms": alarms, "memory": seen.memory.renewed(alarms, found.sightings, seen.now)}
    actual = f"{len(found.alarms)} alarms, {len(found.due)} told now, {len(found.over)} over"
    _note(run, "told", Verdict.VERIFIED, "Prefect took the event of each alarm that is due", actual)


def cannot_tell(run: Run) -> None:
    """Note that nobody hears: this run's Prefect server ends with it."""
    _note(
        run,
        "told",
        Verdict.INCONCLUSIVE,
        "Prefect took the event of each alarm that is due",
        "this run has a server of its own, to which nobody listens",
        required=False,
    )


def give_signal(run: Run) -> None:
    """Tell the world outside that this watch was kept; raises ConfigError, SignalFailed."""
    variable = run.fleet.alarms.signal_from
    if variable is None:
        return
    url = signal.read_url(variable)
    with run.step("dead-man's signal", {"to": signal.place(url)}) as noted:
        noted["status"] = signal.send(url)
    _note(run, "signal", Verdict.VERIFIED, "HTTP 200", f"HTTP {noted['status']} from {signal.place(url)}")


def _note(  # noqa: PLR0913 - the fields of a check
    run: Run, name: str, verdict: Verdict, expected: str, actual: str, *, required: bool = True
) -> None:
    run.checks.append(Check(id=name, verdict=verdict, expected=expected, actual=actual, required=required))
