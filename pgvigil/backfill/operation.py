"""The steps of a backfill run in their order: each does its work and writes into the run's ledger.

What a kill leaves, state by state: before `hold`, nothing; while ranges are walked, the cursor of the last
committed batch in each; after the last batch, ranges that are all done and no proof, which the next run
gives; in the NOT NULL recipe, a CHECK that the next run finds and goes on from.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from pgvigil import postgres
from pgvigil.backfill import catalog, ledger, ranges, statements, survey
from pgvigil.backfill.batch import Job, load_function
from pgvigil.backfill.conductor import Conductor
from pgvigil.backfill.ledger import Ledger, State
from pgvigil.backfill.remedy import persist
from pgvigil.backfill.session import Bounds, Session
from pgvigil.errors import DatabaseFailed
from pgvigil.reports import Check, Finding, Proof, Severity, Verdict
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgvigil.backfill.facts import Key, Plan, Progress
    from pgvigil.policies.backfills import BackfillPolicy
    from pgvigil.runs import Run

Result = TypeVar("Result")


@dataclass(frozen=True)
class Work:
    """One backfill of one database: how to get there, and the run's ledger to write into."""

    run: Run
    name: str
    policy: BackfillPolicy
    dsn: str

    def session(self) -> Session:
        """Return a way into the database."""
        return Session(self.dsn, self.run.name)


@dataclass
class Move:
    """A backfill that this run holds: its token, its workers, and how far its passes are."""

    work: Work
    job: Job
    session: Session
    conductor: Conductor
    found: State
    passes: int = 0
    left: int | None = None

    @property
    def ledger(self) -> Ledger:
        """The state under our token."""
        return self.job.ledger


def open_backfill(run: Run, name: str) -> Work:
    """Find database and backfill in the fleet file; raises ConfigError with the nearest name."""
    cluster, database, settings = run.fleet.database(run.identity.subject)
    run.facts["backfill"] = name
    run.proofs[:] = [Proof(name=f"backfill {name}", verdict=Verdict.INCONCLUSIVE)]  # until `conclude`
    return Work(run, name, settings.backfill(name), postgres.in_database(cluster.dsn, database))


def look(work: Work) -> Plan:
    """Check the definition before anything is changed and forecast the cost; raises what forbids the run."""
    run = work.run
    with work.session() as session:
        with survey.told_as_fault(), session.transaction() as connection:
            target = catalog.read_target(connection, work.policy)
        job = _job(work, Ledger(work.name, 0), target)
        _passed(
            run, "preflight.table", "the table can be walked", f"{target.label}, {len(target.leaves)} part(s)"
        )
        survey.check_statement(session, job)
        _passed(run, "preflight.statement", "the server accepts the change", "accepted")
        walks = [survey.require_index(session, job, leaf) for leaf in target.leaves]
        _passed(run, "preflight.key", "each batch is found without a scan", "; ".join(walks))
        state = _look_at_state(work, session)
        forecast, faults = survey.forecast(session, job, is_first=state is None or state.pass_ == 0)
        _passed(
            run,
            "preflight.where",
            "a row that is done no longer meets 'where'",
            _sampled(forecast.changed_rows),
        )
        plan = survey.read_plan(session, job, walks, forecast)
        unread = list(survey.unread_signals(session, work.policy.limits))
    plan = plan.model_copy(update={"resumes": _resumes(state)})
    run.facts["plan"] = plan
    run.findings += [*_plan_findings(work, plan, faults), *_unread(work, unread)]
    return plan


def _job(work: Work, held: Ledger, target: Any) -> Job:
    function = load_function(work.policy.function) if work.policy.function else None
    return Job(work.name, held, target, work.policy, function)


def _passed(run: Run, name: str, expected: str, actual: str) -> None:
    run.checks.append(Check(id=name, verdict=Verdict.VERIFIED, expected=expected, actual=actual))


def _sampled(count: int) -> str:
    return (
        f"true of {count} rows that were changed and undone" if count else "no row to try it on was sampled"
    )


def _look_at_state(work: Work, session: Session) -> State | None:
    """Read what earlier runs left; raises PreconditionFailed unless infra/target.sql was run."""
    with session.transaction() as connection:
        ledger.require_installed(connection)
    _passed(work.run, "preflight.installed", "the tables for the cursor are there", "there")
    return ledger.read(session, work.name)


def _resumes(state: State | None) -> str:
    if state is None or state.pass_ == 0:
        return ""
    if state.state == "done":
        return f"was proven at {state.ended_at:%Y-%m-%d %H:%M} UTC; what is left is counted first"
    return f"pass {state.pass_}, begun {state.started_at:%Y-%m-%d %H:%M} UTC"


def _plan_findings(work: Work, plan: Plan, faults: list[str]) -> Iterator[Finding]:
    subject = work.run.identity.subject
    if faults:
        yield Finding(
            code="sample-fails",
            severity=Severity.WARNING,
            message=f"some sampled rows cannot be changed: {faults[0]}",
            hint="they will go into quarantine; correct them, or 'set', first if there are many",
            subject=subject,
        )
    if plan.indexed:
        yield Finding(
            code="target-indexed",
            severity=Severity.INFO,
            message=f"indexes hold what is written: {', '.join(plan.indexed)}; no update is heap-only",
            hint="an index that is built after the backfill costs less than one that is kept up during it",
            subject=subject,
        )
    if plan.triggers:
        yield Finding(
            code="triggers-fire",
            severity=Severity.INFO,
            message=f"triggers fire for each row: {', '.join(plan.triggers)}",
            hint="make sure that they may",
            subject=subject,
        )


def _unread(work: Work, messages: list[str]) -> Iterator[Finding]:
    for message in messages:
        yield Finding(
            code="signal-unread",
            severity=Severity.WARNING,
            message=message,
            hint="the run stops while that is so; correct 'limits.signals' if it is the question's fault",
            subject=work.run.identity.subject,
        )


@contextmanager
def hold(work: Work) -> Iterator[Move]:
    """Take the backfill's token for the block; raises Busy while another run has it."""
    with work.session() as session:
        with session.transaction() as connection:
            target = catalog.read_target(connection, work.policy)
        with work.run.step("take backfill", {"backfill": work.name, "policy": work.policy}) as noted:
            held, state = ledger.take_over(session, work.policy, target, work.name)
            noted |= {"fence": held.fence, "found": state.state, "pass": state.pass_}
        job = _job(work, held, target)
        conductor = Conductor(job, work.dsn, work.run.name, state.rows_total)
        move = Move(work, job, session, conductor, state)
        try:
            yield move
        finally:
            conductor.close()
            _note(move)


def _note(move: Move) -> None:
    """Write what was done into the report, and let the next runner in."""
    run = move.work.run
    run.facts["progress"] = move.conductor.progress
    if move.conductor.vacuum_fault:
        run.findings.append(
            Finding(
                code="vacuum-failed",
                severity=Severity.WARNING,
                message=move.conductor.vacuum_fault,
                hint="the table grew more than it had to; VACUUM it, and see the role's statement_timeout",
                subject=run.identity.subject,
            )
        )
    try:
        with move.session.transaction() as connection:
            move.ledger.let_go(connection, move.conductor.progress.model_dump_json())
    except DatabaseFailed as error:
        run.findings.append(
            Finding(
                code=error.code,
                severity=Severity.WARNING,
                message=f"the lease could not be ended: {error.message}",
                hint=f"the next run may have to wait {ledger.LEASE.total_seconds():g} s",
                subject=run.identity.subject,
            )
        )


def next_pass(move: Move) -> bool:
    """Begin a walk, or go on with the open one; False when there is nothing left that a walk would help."""
    if move.conductor.is_cancelled or move.conductor.gave_up_sweeping:
        return False
    if move.passes == 0 and move.found.pass_ > 0:
        if patiently(move, _has_open_ranges):
            move.passes = 1
            return True
        count(move)  # a run was killed before its proof, or proven long ago
    if move.left == 0 or move.passes >= move.work.policy.passes:
        return False
    move.passes += 1
    with move.work.run.step("begin pass", {"backfill": move.work.name}) as noted:
        noted.update(patiently(move, _begin))
    move.conductor.take(move.job, noted["rows"])
    return True


def _begin(move: Move) -> dict[str, int]:
    """Read the table anew: partitions, sizes and keys may be others than in the pass before."""
    with move.session.transaction() as connection:
        target = catalog.read_target(connection, move.work.policy)
    ledger.require_same(move.job.target, target.oid)
    move.job = replace(move.job, target=target)
    return ranges.begin(move.session, move.job)


def patiently(move: Move, work: Callable[[Move], Result]) -> Result:
    """Do a step that may be done twice, waiting for a server that is away as long as the policy says."""
    return persist(partial(work, move), move.work.policy.outage)


def _has_open_ranges(move: Move) -> bool:
    with move.session.transaction() as connection:
        totals = move.ledger.totals(connection)
    return bool(totals["open"] or totals["sweeps"])


def walk(move: Move, on_progress: Callable[[Progress], None]) -> bool:
    """Work for one chunk of time; False when no range is left that can be done."""
    move.session.close()  # it would idle for the length of the chunk, and nobody knows what becomes of it
    return move.conductor.walk(move.work.policy.chunk, on_progress)


def count(move: Move) -> int:
    """Count the rows that are still to change, those in quarantine apart; that others hold is left."""
    if move.conductor.is_cancelled:
        return -1
    move.left = patiently(move, _count)
    return move.left


def _count(move: Move) -> int:
    _discharge(move)
    bounds = Bounds(statement=move.work.policy.count_for, search_path=move.work.policy.search_path)
    with move.session.transaction(bounds) as connection:
        row = connection.execute(statements.left(move.job.target, move.work.policy), {}).fetchone()
        totals = move.ledger.totals(connection)
    assert row  # noqa: S101 - an aggregate always answers
    move.work.run.facts["rows_left"] = row["left"]
    return max(0, int(row["left"]) - int(totals["quarantined"]))


def _discharge(move: Move) -> None:
    """Take rows out of the quarantine that somebody has corrected, or deleted."""
    for entry in read_quarantine(move):
        leaf = move.job.leaf(entry["relation"])
        with move.session.transaction(move.job.bounds) as connection:
            if leaf:
                statement = statements.one(move.job.target, leaf, move.work.policy)
                values = statements.parameters("key", entry["key"])
                if connection.execute(statement, values).fetchone():
                    continue
            connection.execute(query("backfill", "discharge"), _entry(move, entry))


def _entry(move: Move, entry: dict[str, Any]) -> dict[str, Any]:
    return {"name": move.work.name, "relation": entry["relation"], "key": entry["key"]}


def read_quarantine(move: Move) -> list[dict[str, Any]]:
    """Read the rows in quarantine."""
    with move.session.transaction() as connection:
        values = {"name": move.work.name}
        return connection.execute(query("backfill", "quarantined"), values).fetchall()


def retry_quarantined(move: Move) -> int:
    """Try each row in quarantine alone once more, and return how many are good now."""
    good = 0
    for entry in read_quarantine(move):
        leaf = move.job.leaf(entry["relation"])
        if leaf and _retry(move, leaf, tuple(entry["key"])):
            good += 1
    return good


def _retry(move: Move, leaf: Any, key: Key) -> bool:
    try:
        with move.session.transaction(move.job.bounds) as connection:
            ranges.change_one(connection, move.job, leaf, key)
            entry = {"name": move.work.name, "relation": leaf.oid, "key": list(key)}
            connection.execute(query("backfill", "discharge"), entry)
    except DatabaseFailed as error:
        said = str(error.context.get("said") or error.message)
        with move.session.transaction() as connection:
            move.ledger.quarantine(connection, leaf.oid, key, error.sqlstate, said)
        return False
    return True
