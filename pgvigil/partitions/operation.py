"""The steps of roll_partitions in their order: each does its work and writes into the run's ledger.

Every step opens a session of its own and reads the world anew, so a step that is tried again after a lost
connection, or by the next run after a kill, goes on from whatever it finds.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING
from uuid import uuid4

from pgvigil import approval, postgres
from pgvigil.approval import Question
from pgvigil.archive import copying
from pgvigil.archive.manifest import read_manifest
from pgvigil.errors import (
    Busy,
    ConfigError,
    DatabaseFailed,
    EvidenceError,
    PgvigilError,
    PreconditionFailed,
)
from pgvigil.lock import hold
from pgvigil.objectstore import connect as connect_store
from pgvigil.partitions import create as creating
from pgvigil.partitions import detach as detaching
from pgvigil.partitions import drop as dropping
from pgvigil.partitions import ledger
from pgvigil.partitions.catalog import identifier, read_drift, read_entries, read_table
from pgvigil.partitions.envelope import bounded, explain_wait
from pgvigil.partitions.facts import Departure, Entry, Outcome, Plan
from pgvigil.partitions.plan import draw, horizon, missing
from pgvigil.partitions.question import ask
from pgvigil.reports import Check, Finding, Proof, Severity, Verdict, conclude
from pgvigil.runs import finding_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from pgvigil.approval import Decision
    from pgvigil.archive.manifest import Manifest, Stored
    from pgvigil.archive.stream import Progress
    from pgvigil.lock import HeldLock
    from pgvigil.objectstore import ObjectStore
    from pgvigil.partitions.axis import Axis, Range
    from pgvigil.partitions.facts import Action, Creation, Table
    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection
    from pgvigil.runs import Run

CLOCK_SKEW = timedelta(minutes=5)
LEAVING = ("leaving", "fenced", "archived")


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
    """Hold the lock of one table for the block; raises Busy, naming the owner."""
    what = f"the partitions of '{managed.policy.table}'"
    with hold(managed.dsn, what, managed.run.name, managed.policy.wait) as lock:
        yield replace(managed, lock=lock)


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
        _note(managed.run, f"{name}.completed", Verdict.INCONCLUSIVE, "every step done", error.message)
        managed.run.findings.append(finding_of(error, name))
        if proof:
            managed.run.proofs.append(Proof(name=proof, verdict=Verdict.INCONCLUSIVE))


def _is_lock_lost(managed: Managed, error: PgvigilError) -> bool:
    return isinstance(error, Busy) and managed.lock is not None and managed.lock.what in error.message


def _note(run: Run, name: str, verdict: Verdict, expected: str, actual: str) -> None:
    run.checks.append(Check(id=name, verdict=verdict, expected=expected, actual=actual))


# --- plan ---------------------------------------------------------------------------------------------


def plan(managed: Managed) -> Plan:
    """Read the table and plan it; changes nothing and takes no lock above ACCESS SHARE."""
    table, axis = look(managed)
    made = draw(table, axis, managed.policy, approval.approved(managed.decisions))
    run = managed.run
    run.facts["plans"] = (*run.facts.get("plans", ()), made)
    run.facts["steps"] = (*run.facts.get("steps", ()), *made.steps())
    counted = Counter(step.action for step in made.steps())
    told = ", ".join(f"{action} {count}" for action, count in counted.items()) or "nothing to do"
    _note(run, f"{table.name}.planned", Verdict.VERIFIED, "a table that can be rolled", told)
    return made


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
    return table, axis


def finish(managed: Managed, made: Plan) -> None:
    """Finish detaches that were interrupted: until then no other partition can be detached or made there."""
    table, _ = look(managed)
    due = [departure for departure in made.departures if departure.is_pending]
    for each in (*made.unfinished, *due):
        managed.check_lock()
        if each in due:
            _announced(managed, made, each)
        with managed.run.step("finish detach", {"partition": str(each.name)}), managed.session() as session:
            detaching.detach(session, managed.dsn, table, each, managed.policy)
        _done(managed, "finalize", each.name.name, each.bound)


# --- create -------------------------------------------------------------------------------------------


def release(managed: Managed, made: Plan) -> None:
    """Take the fence down from tables that somebody attached again, and forget their departure."""
    for entry in made.releases:
        managed.check_lock()
        with managed.run.step("release", {"partition": str(entry.name), "id": str(entry.id)}):
            _take_down(managed, entry)
        if entry.state != "leaving":
            _find(
                managed,
                "attached-again",
                f"'{entry.name}' was detached for archiving and is a partition again; its fence is down",
                "set hold for it in the fleet file if it is to stay",
            )


def _take_down(managed: Managed, entry: Entry) -> None:
    with managed.session() as session:
        bounded(session, managed.dsn, managed.policy, partial(_release, session, entry))


def _release(session: Connection, entry: Entry) -> None:
    with session.transaction():
        if entry.fence is not None:
            ledger.drop_fence(session, entry.relation)
        ledger.end(session, entry.id)


def create(managed: Managed, creation: Creation) -> None:
    """Make one partition; that it is there already, as planned, is no error."""
    table, axis = look(managed)
    if creation.range not in missing(table, axis, managed.policy):
        return
    managed.check_lock()
    intent = {"table": str(table.name), "partition": str(creation.name), "bound": creation.bound}
    with managed.run.step("create partition", intent) as noted, managed.session() as session:
        try:
            moved = bounded(
                session, managed.dsn, managed.policy, lambda: creating.create(session, table, creation)
            )
        except DatabaseFailed as error:
            raise creating.explain(error, table, creation) from error
        noted["moved_from_default"] = moved
    detail = f"{moved} rows came out of DEFAULT" if moved else ""
    _done(managed, "create", creation.name.name, creation.bound, detail=detail)


# --- leave --------------------------------------------------------------------------------------------


def detach(managed: Managed, made: Plan, departure: Departure) -> Departure | None:
    """Detach one partition and fence it; returns it with its entry, or None when it is gone."""
    table, _ = look(managed)
    if departure.entry is None:
        _preflight(managed, departure)
    entry = _announced(managed, made, departure)
    if entry is None:
        return None
    with managed.session() as session:
        now = detaching.standing(session, departure, made.oid)
        if now == "gone":
            _vanished(managed, departure, entry)
            return None
        is_fenced = entry.fence is not None and ledger.read_fence(session, departure.relation) == entry.fence
    if now == "detached" and is_fenced:
        return departure.model_copy(update={"entry": entry, "is_attached": False})
    if now == "detached" and entry.fence is not None:
        entry = _renew(managed, entry)
    managed.check_lock()
    intent = {"partition": str(departure.name), "method": departure.method}
    with managed.run.step("detach", intent), managed.session() as session:
        detaching.detach(session, managed.dsn, table, departure, managed.policy)
        _fence(session, managed, departure, entry)
    _done(managed, "detach", departure.name.name, departure.bound, detail=departure.method)
    return departure.model_copy(update={"entry": _entry(managed, departure), "is_attached": False})


def _announced(managed: Managed, made: Plan, departure: Departure) -> Entry | None:
    """Note the departure before it begins; None for a partition that is gone. Idempotent.

    Raises PreconditionFailed for a partition that is not as planned.
    """
    if known := _find_entry(managed, departure):
        return known
    with managed.session() as session:
        ledger.require(session)
        now = detaching.standing(session, departure, made.oid)
    if now == "gone":
        return None
    if now == "detached":
        raise PreconditionFailed(f"'{departure.name}' was detached meanwhile", hint="plan again")
    managed.check_lock()
    id_ = uuid4()
    intent = {"partition": str(departure.name), "oid": departure.relation, "id": str(id_)}
    with managed.run.step("announce", intent), managed.session() as session:
        ledger.begin(session, id_, departure, made.oid)
    return _entry(managed, departure)


def _preflight(managed: Managed, departure: Departure) -> None:
    """Refuse what could not be stored as the policy says, before anything is taken out of the table."""
    if managed.policy.parquet is None:
        return
    with managed.session(patient=True) as session:
        copying.preflight(session, departure.relation, managed.policy.parquet)


def _find_entry(managed: Managed, departure: Departure) -> Entry | None:
    with managed.session() as session:
        entries = read_entries(session, departure.parent)
    return next((e for e in entries if e.relation == departure.relation and e.state in LEAVING), None)


def _entry(managed: Managed, departure: Departure) -> Entry:
    found = _find_entry(managed, departure)
    if found is None:
        raise PreconditionFailed(f"the work state of '{departure.name}' is gone", hint="plan again")
    return found


def _vanished(managed: Managed, departure: Departure, entry: Entry) -> None:
    """Forget a table that somebody dropped, and tell whether a proven copy of it exists."""
    with managed.run.step("forget", {"partition": str(departure.name)}), managed.session() as session:
        ledger.end(session, entry.id)
    _find(
        managed,
        "vanished",
        f"'{departure.name}' was dropped by somebody else; "
        + (f"its proven copy is {entry.manifest}" if entry.manifest else "no copy of it was proven"),
        "see the server's log for who dropped it",
        Severity.WARNING if entry.manifest else Severity.ERROR,
    )


def _renew(managed: Managed, entry: Entry) -> Entry:
    new = uuid4()
    intent = {"partition": str(entry.name), "id": str(new)}
    with managed.run.step("fence again", intent), managed.session() as session:
        ledger.refence(session, entry.id, new)
    _find(
        managed,
        "fence-opened",
        f"the fence around '{entry.name}' was opened since it was raised: it is fenced and copied anew",
        "see who altered the table or its triggers",
    )
    return entry.model_copy(update={"id": new, "fence": None, "manifest": None, "state": "leaving"})


def _fence(session: Connection, managed: Managed, departure: Departure, entry: Entry) -> None:
    table = identifier(departure.name)
    try:
        bounded(
            session,
            managed.dsn,
            managed.policy,
            lambda: ledger.raise_fence(session, entry.id, departure.relation, table),
        )
    except DatabaseFailed as error:
        if not error.transient and error.sqlstate != "57014":
            raise
        raise explain_wait(
            session, error, [departure.relation], f"the fence around '{departure.name}'"
        ) from error


def archive(
    managed: Managed, made: Plan, departure: Departure, *, on_progress: Callable[[Progress], None]
) -> copying.Copy:
    """Copy one fenced table to the store; a copy that is committed already is taken as it is."""
    _require_entry(departure)
    entry = _entry(managed, departure)  # with the leaves that an earlier try has finished since
    place = copying.Place.of(managed.policy, managed.cluster, managed.database, made.table, entry)
    found = copying.find(managed.store, place)
    if found:
        return found
    managed.check_lock()
    began = time.monotonic()
    intent = {"partition": str(departure.name), "to": place.folder, "bytes": departure.size}
    with managed.run.step("archive", intent) as noted, managed.session(patient=True) as session:
        with managed.session(patient=True) as second:
            sessions = copying.Sessions(export=session, digest=second, dsn=managed.dsn)
            finished = partial(_note_leaf, managed, entry)
            copy = copying.make(sessions, managed.store, place, managed.run.id, on_progress, finished)
        noted |= {"rows": copy.manifest.digest.rows, "digest": copy.manifest.digest.value}
        noted["objects"] = [leaf.stored.rows.model_dump(mode="json") for leaf in copy.manifest.leaves]
    return replace(copy, seconds=time.monotonic() - began)


def prove(
    managed: Managed, departure: Departure, copy: copying.Copy, *, on_progress: Callable[[Progress], None]
) -> Manifest | None:
    """Read the copy back and compare; then, and only then, commit its manifest. None when refuted.

    A committed copy is read back again before its table is dropped; until then its size is looked at.
    """
    entry = _require_entry(departure)
    if copy.is_committed and departure.drop != "now":
        copying.require(managed.store, copy.place.manifest)
        if entry.state != "archived":
            with managed.run.step("remember copy", {"manifest": copy.place.manifest}):
                _remember(managed, entry, copy)
        return copy.manifest
    run = managed.run
    proven = _read_back(managed, copy, on_progress)
    run.checks += [check for each in proven for check in _told(departure, copy, each)]
    if conclude([check for each in proven for check in each.checks]) is not Verdict.VERIFIED:
        damaged = [uri for each in proven for uri in each.damaged]
        if copy.is_committed and damaged:
            _copy_anew(managed, entry, copy, damaged)
        else:
            _forget(managed, entry, proven)
        return None
    managed.check_lock()
    manifest = copy.manifest
    with run.step(
        "commit copy", {"partition": str(departure.name), "manifest": copy.place.manifest}
    ) as noted:
        if not copy.is_committed:
            manifest = copying.commit(managed.store, copy, managed.policy.lock)
        _remember(managed, entry, copy)
        noted.update(manifest.outline())
    run.facts["manifests"] = (*run.facts.get("manifests", ()), manifest)
    if not copy.is_committed:
        _done_copy(managed, departure, copy, manifest)
    return manifest


def _read_back(
    managed: Managed, copy: copying.Copy, on_progress: Callable[[Progress], None]
) -> list[copying.Proven]:
    """Prove the copy by its bytes, and where the policy says so also by loading them."""
    proven = copying.prove(managed.store, copy, managed.run.fleet.s3, on_progress)
    if managed.policy.verify != "reload":
        return proven
    with managed.session(patient=True) as session:
        return [_reloaded(session, managed, copy, each) for each in proven]


def _reloaded(
    session: Connection, managed: Managed, copy: copying.Copy, proven: copying.Proven
) -> copying.Proven:
    if proven.leaf is None or conclude(proven.checks) is not Verdict.VERIFIED:
        return proven
    check = copying.compare_reloaded(session, managed.store, copy, proven.leaf)
    return replace(proven, checks=(*proven.checks, check))


def _told(departure: Departure, copy: copying.Copy, proven: copying.Proven) -> list[Check]:
    """Give the checks their names: the partition's, and in a tree the leaf's."""
    leaf = f"{proven.leaf.name}." if copy.manifest.tree and proven.leaf else ""
    return [check.model_copy(update={"id": f"{departure.name}.{leaf}{check.id}"}) for check in proven.checks]


def _forget(managed: Managed, entry: Entry, proven: list[copying.Proven]) -> None:
    """Let the next run make again what is not as it was sent."""
    bad = [
        each.leaf.relation for each in proven if each.leaf and conclude(each.checks) is not Verdict.VERIFIED
    ]
    with managed.session() as session:
        ledger.forget_leaves(session, entry.id, bad)


def _copy_anew(managed: Managed, entry: Entry, copy: copying.Copy, damaged: list[str]) -> None:
    """Let the next run make another copy: the table still stands, and this copy of it is no good any more."""
    new = uuid4()
    intent = {"partition": str(entry.name), "id": str(new), "damaged": copy.place.manifest}
    with managed.run.step("copy anew", intent), managed.session() as session:
        ledger.refence(session, entry.id, new)
    _find(
        managed,
        "copy-damaged",
        f"proven and damaged since: {', '.join(damaged)}; '{entry.name}' stands and is copied anew",
        f"see in the bucket's log who wrote over it, then delete that copy, {copy.place.manifest} included",
        Severity.ERROR,
    )


def _note_leaf(managed: Managed, entry: Entry, relation: int, stored: Stored) -> None:
    with managed.session() as session:
        ledger.note_leaf(session, entry.id, relation, stored)


def _remember(managed: Managed, entry: Entry, copy: copying.Copy) -> None:
    with managed.session() as session:
        ledger.archived(session, entry.id, copy.place.manifest)


def _done_copy(managed: Managed, departure: Departure, copy: copying.Copy, manifest: Manifest) -> None:
    outcome = Outcome(
        table=managed.policy.table,
        partition=departure.name.name,
        action="archive",
        bound=departure.bound,
        rows=manifest.digest.rows,
        bytes=manifest.size,
        manifest=copy.place.manifest,
        seconds=round(copy.seconds, 3),
        detail=f"digest {manifest.digest.value[-30:]}",
    )
    _add(managed, outcome)


def drop(managed: Managed, departure: Departure, made: Plan) -> None:
    """Drop one table whose copy this run proved, if the policy says now; else say what it waits for."""
    entry = _entry(managed, departure)
    if departure.drop != "now":
        _not_dropped(managed, departure, departure.drop_reason)
        return
    if managed.policy.drop == "approve" and entry.id not in _approved(made):
        _not_dropped(managed, departure, "its copy was made anew after the approval: waits for another")
        return
    copying.require(managed.store, entry.manifest)
    managed.check_lock()
    intent = {"partition": str(departure.name), "oid": departure.relation, "manifest": entry.manifest}
    with managed.run.step("drop", intent), managed.session() as session:
        try:
            bounded(
                session,
                managed.dsn,
                managed.policy,
                lambda: dropping.drop(session, departure, entry, made.oid),
            )
        except DatabaseFailed as error:
            raise _undroppable(session, error, departure) from error
    _note(
        managed.run,
        f"{departure.name}.dropped",
        Verdict.VERIFIED,
        "unchanged since its copy was made, under the drop's own lock",
        "fence held, dropped",
    )
    _done(managed, "drop", departure.name.name, departure.bound, manifest=entry.manifest or "")


def _undroppable(session: Connection, error: DatabaseFailed, departure: Departure) -> PgvigilError:
    if error.sqlstate == "2BP01":
        return PreconditionFailed(
            f"'{departure.name}' cannot be dropped: {error.message}",
            hint="views, functions or foreign keys depend on it: drop them, or set drop to keep",
        )
    if error.sqlstate in {"55P03", "57014", "40P01"}:
        return explain_wait(session, error, [departure.relation], f"the drop of '{departure.name}'")
    return error


def _approved(made: Plan) -> set[UUID]:
    """Return the copies that a plan was approved for: a fence that opened since has led to another one."""
    return {each.entry.id for each in made.departures if each.entry and each.drop == "now"}


def _not_dropped(managed: Managed, departure: Departure, why: str) -> None:
    _done(managed, "keep", departure.name.name, departure.bound, detail=why)


def _require_entry(departure: Departure) -> Entry:
    if departure.entry is None or departure.entry.fence is None:
        raise PreconditionFailed(f"'{departure.name}' is not fenced", hint="plan again")
    return departure.entry


# --- afterwards ---------------------------------------------------------------------------------------


def conclude_table(managed: Managed, made: Plan) -> None:
    """Look again: is the horizon there, is nothing pending, do the partitions agree with their table."""
    table, axis = look(managed)
    run, name = managed.run, str(table.name)
    holes = missing(table, axis, managed.policy)
    verdict = Verdict.REFUTED if holes else Verdict.VERIFIED
    actual = f"no partition for {_ranges(axis, holes)}" if holes else "every one is there"
    _note(run, f"{name}.horizon", verdict, f"the current partition and {managed.policy.ahead} ahead", actual)
    if reach := horizon(table, axis, managed.policy):
        run.facts["horizons"] = (*run.facts.get("horizons", ()), reach)
    pending = [str(each.name) for each in table.partitions if each.is_pending]
    verdict = Verdict.INCONCLUSIVE if pending else Verdict.VERIFIED
    _note(run, f"{name}.pending", verdict, "no detach is unfinished", ", ".join(pending) or "none")
    _tell_refusals(managed, made)
    _tell_drift(managed, table.oid)
    _tell_approval(managed, table, axis)
    checks = [check for check in run.checks if check.id.startswith(f"{name}.") or _is_of(check, made)]
    run.proofs.append(Proof(name=f"partitions {managed.policy.table}", verdict=conclude(checks)))


def _is_of(check: Check, made: Plan) -> bool:
    return any(check.id.startswith(f"{departure.name}.") for departure in made.departures)


def _ranges(axis: Axis, holes: list[Range]) -> str:
    told = [f"{axis.literal(h.lower or 0)} to {axis.literal(h.upper or 0)}" for h in holes[:3]]
    return ", ".join(told) + (f" and {len(holes) - 3} more" if len(holes) > 3 else "")


def _tell_refusals(managed: Managed, made: Plan) -> None:
    for step in made.refusals:
        _find(managed, "left-alone", f"'{step.partition}' stays: {step.reason}", "", Severity.INFO)


def _tell_drift(managed: Managed, oid: int) -> None:
    with managed.session() as session:
        drift = read_drift(session, oid)
    for name, differs in drift:
        _find(
            managed,
            "drift",
            f"partition '{name}' differs from its table in {', '.join(differs)}",
            "make it alike by hand: PostgreSQL keeps these for each partition by itself",
        )


def check_decided(run: Run, decisions: tuple[Decision, ...]) -> None:
    """See whether the plans that people decided on are those that were found."""
    approval.check_found(run, decisions, [made.digest for made in run.facts.get("plans", ())])


def _tell_approval(managed: Managed, table: Table, axis: Axis) -> None:
    """Ask a person about what is proven and waits, unless this plan was decided on already."""
    again = draw(table, axis, managed.policy)
    waiting = [each for each in again.departures if each.is_waiting]
    if not waiting:
        return
    names = ", ".join(str(each.name) for each in waiting)
    decided = approval.find(managed.decisions, again.digest)
    if decided and decided.decision == "reject":
        hint = "the next run asks again; for good: drop: keep, or hold, in the fleet file"
        _find(managed, "rejected", f"{names}: the drop was {decided}", hint, Severity.INFO)
        return
    _find(
        managed,
        "waits-for-approval",
        f"{names}: copy proven, the drop waits for a person",
        f"look at plan and proof in this report, then run with approve={again.digest}",
        Severity.INFO,
    )
    question = Question(
        subject=managed.policy.table,
        digest=again.digest,
        text=ask(
            f"{managed.policy.table} in {managed.run.identity.subject}",
            again.digest,
            _proofs(managed, waiting),
        ),
        within=managed.policy.approve_within,
    )
    managed.run.facts["questions"] = (*managed.run.facts.get("questions", ()), question)


def _proofs(managed: Managed, waiting: list[Departure]) -> list[Manifest]:
    return [
        read_manifest(managed.store, each.entry.manifest)
        for each in waiting
        if each.entry and each.entry.manifest
    ]


def _find(
    managed: Managed, code: str, message: str, hint: str, severity: Severity = Severity.WARNING
) -> None:
    managed.run.findings.append(
        Finding(code=code, severity=severity, message=message, hint=hint, subject=managed.policy.table)
    )


def _done(  # noqa: PLR0913 - the fields of an outcome
    managed: Managed, action: Action, partition: str, bound: str, *, detail: str = "", manifest: str = ""
) -> None:
    _add(
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


def _add(managed: Managed, outcome: Outcome) -> None:
    run = managed.run
    run.facts["outcomes"] = (*run.facts.get("outcomes", ()), outcome)
