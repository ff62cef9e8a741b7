"""One table of the fleet file: how to reach it, its lock, and what a run says of it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.archive.place import partition_of, table_folder
from pgvigil.errors import (
    Busy,
    ConfigError,
    EvidenceError,
    PgvigilError,
    PreconditionFailed,
    StorageFailed,
)
from pgvigil.fleet import load_fleet
from pgvigil.lock import hold
from pgvigil.objectstore import connect as connect_store
from pgvigil.partitions.catalog import find_table, read_table
from pgvigil.partitions.facts import Name, Outcome
from pgvigil.partitions.plan import strangers
from pgvigil.reports import Check, Finding, Proof, Severity, Verdict
from pgvigil.runs import finding_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.approval import Decision
    from pgvigil.lock import HeldLock
    from pgvigil.objectstore import ObjectStore
    from pgvigil.partitions.axis import Axis
    from pgvigil.partitions.facts import Action, Table
    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection
    from pgvigil.runs import Run

CLOCK_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class Managed:
    """One table of the fleet file, and how to reach it."""

    run: Run
    cluster: str
    database: str
    dsn: str
    policy: PartitionPolicy
    lock: HeldLock | None = None
    decisions: tuple[Decision, ...] = ()

    @contextmanager
    def session(self, *, patient: bool = False) -> Iterator[Connection]:
        """Open a session; a patient one may work as long as one copy may take."""
        limit = self.policy.deadline if patient else postgres.STATEMENT_TIMEOUT
        with postgres.connect(
            self.dsn, self.run.name, statement_timeout=limit, lock_timeout=self.policy.block
        ) as session:
            yield session

    @cached_property
    def store(self) -> ObjectStore:
        """The object store of the fleet file, opened once."""
        return connect_store(self.run.fleet.s3)

    def check_lock(self) -> None:
        """Raise Busy when another run may have begun."""
        if self.lock:
            self.lock.check()


def tables(run: Run, table: str | None, decisions: tuple[Decision, ...] = ()) -> tuple[Managed, ...]:
    """Find the tables of the run's database in the fleet file, all or the one that is named.

    `decisions` are those of people on plans that waited for them.
    """
    settings, database, found = run.fleet.database(run.identity.subject)
    cluster = run.identity.subject.partition("/")[0]
    known = [policy.table for policy in found.partitions]
    if not known or (table is not None and table not in known):
        raise ConfigError(
            f"the fleet file has no partitions of '{table or run.identity.subject}'",
            hint=f"it has {', '.join(known) or 'none'}: add it to databases.{database}.partitions",
        )
    dsn = postgres.in_database(settings.dsn, database)
    return tuple(
        Managed(run, cluster, database, dsn, policy, decisions=decisions)
        for policy in found.partitions
        if table in {None, policy.table}
    )


@contextmanager
def hold_table(managed: Managed) -> Iterator[Managed]:
    """Hold the lock of one table, however it is spelled, for the block; raises Busy, naming the owner."""
    what = f"the partitions of '{managed.policy.table}'"
    with managed.session() as session:
        identity = lock_identity(find_table(session, managed.policy))
    with hold(managed.dsn, what, managed.run.name, managed.policy.wait, identity=identity) as lock:
        yield replace(managed, lock=lock)


def lock_identity(oid: int) -> str:
    """Return what the lock of a table is known by in its database."""
    return f"the partitions of OID {oid}"


@contextmanager
def alone(managed: Managed, name: str, proof: str = "") -> Iterator[None]:
    """Keep the failure of one table or partition from the others: it becomes an inconclusive check.

    What concerns the whole run passes: lost lock, evidence that cannot be kept.
    """
    try:
        yield
    except PgvigilError as error:
        if isinstance(error, EvidenceError) or _is_lock_lost(managed, error):
            raise
        note(managed.run, f"{name}.completed", Verdict.INCONCLUSIVE, "every step done", error.message)
        managed.run.findings.append(finding_of(error, name))
        if proof:
            managed.run.proofs.append(Proof(name=proof, verdict=Verdict.INCONCLUSIVE))


def _is_lock_lost(managed: Managed, error: PgvigilError) -> bool:
    return isinstance(error, Busy) and managed.lock is not None and managed.lock.what in error.message


def look(managed: Managed) -> tuple[Table, Axis]:
    """Read the table; raises PreconditionFailed when the server's clock and ours differ."""
    with managed.session() as session:
        table, axis = read_table(session, managed.policy)
    skew = abs(datetime.now(tz=UTC) - table.now)
    if skew > CLOCK_SKEW:
        raise PreconditionFailed(
            f"the server's clock and this host's differ by {skew}, expected at most {CLOCK_SKEW}",
            hint="start NTP on both; nothing is made or dropped by a clock that is wrong",
        )
    if strangers(table, managed.policy):
        table = table.model_copy(update={"archived": _archived(managed, table)})
    return table, axis


def _archived(managed: Managed, table: Table) -> frozenset[Name]:
    """Name the partitions that are in the archive; none while the store is away."""
    if managed.policy.archive is None:
        return frozenset()
    folder = table_folder(managed.policy, managed.cluster, managed.database, table.name)
    try:
        found = [partition_of(folder, item.uri) for item in managed.store.list(folder)]
    except StorageFailed:
        return frozenset()
    return frozenset(Name(schema_=each[0], name=each[1]) for each in found if each)


def check_holds(managed: Managed) -> None:
    """Raise PreconditionFailed when the fleet file holds others now than when the run read it."""
    _, _, found = load_fleet().database(managed.run.identity.subject)
    now = tuple(hold for each in found.partitions if each.name == managed.policy.name for hold in each.hold)
    if now != managed.policy.hold:
        raise PreconditionFailed(
            f"hold of '{managed.policy.table}' was changed in the fleet file since the run began: "
            f"{', '.join(now) or 'none'}, was {', '.join(managed.policy.hold) or 'none'}",
            hint="nothing was dropped since; the next run goes by the new holds",
        )


def check_store_clock(managed: Managed) -> None:
    """Raise PreconditionFailed when the clocks of this host and of the store differ.

    The store is a witness from outside: server and host may be one machine, whose clock has jumped.
    """
    told = managed.store.now(managed.policy.archive) if managed.policy.archive else None
    skew = abs(datetime.now(tz=UTC) - told) if told else timedelta()
    if skew > CLOCK_SKEW:
        raise PreconditionFailed(
            f"the store's clock and this host's differ by {skew}, expected at most {CLOCK_SKEW}",
            hint="start NTP; nothing leaves or is dropped by a clock that is wrong",
        )


def note(run: Run, name: str, verdict: Verdict, expected: str, actual: str) -> None:
    """Add a check to what the run says."""
    run.checks.append(Check(id=name, verdict=verdict, expected=expected, actual=actual))


def tell(managed: Managed, code: str, message: str, hint: str, severity: Severity = Severity.WARNING) -> None:
    """Add a finding about the table."""
    managed.run.findings.append(
        Finding(code=code, severity=severity, message=message, hint=hint, subject=managed.policy.table)
    )


def done(  # noqa: PLR0913 - the fields of an outcome
    managed: Managed, action: Action, partition: str, bound: str, *, detail: str = "", manifest: str = ""
) -> None:
    """Add what became of one partition."""
    add(
        managed,
        Outcome(
            table=managed.policy.table,
            partition=partition,
            action=action,
            bound=bound,
            detail=detail,
            manifest=manifest,
        ),
    )


def add(managed: Managed, outcome: Outcome) -> None:
    """Add an outcome that is whole already."""
    run = managed.run
    run.facts["outcomes"] = (*run.facts.get("outcomes", ()), outcome)
