"""The steps of roll_partitions around those that take partitions out: plan, finish, make ahead, judge.

Every step opens a session of its own and reads the world anew, so a step that is tried again after a lost
connection, or by the next run after a kill, goes on from whatever it finds.
"""

from __future__ import annotations

from collections import Counter
from difflib import SequenceMatcher
from functools import partial
from typing import TYPE_CHECKING

from pgvigil import approval
from pgvigil.approval import Question
from pgvigil.archive.copying import abort_uploads
from pgvigil.archive.manifest import read_manifest
from pgvigil.archive.place import partition_folder
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.partitions import beside, ledger
from pgvigil.partitions import create as creating
from pgvigil.partitions import detach as detaching
from pgvigil.partitions.catalog import read_drift
from pgvigil.partitions.envelope import bounded
from pgvigil.partitions.leaving import announce, renew, tell_remains
from pgvigil.partitions.managing import alone, done, look, note, tell
from pgvigil.partitions.plan import draw, horizon, missing, strangers
from pgvigil.partitions.question import ask
from pgvigil.policies.names import write_name
from pgvigil.reports import Proof, Severity, Verdict, conclude

if TYPE_CHECKING:
    from pgvigil.approval import Decision
    from pgvigil.archive.manifest import Manifest
    from pgvigil.partitions.axis import Axis, Range
    from pgvigil.partitions.facts import Creation, Departure, Entry, Plan, Table
    from pgvigil.partitions.managing import Managed
    from pgvigil.postgres import Connection
    from pgvigil.reports import Check
    from pgvigil.runs import Run


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
    note(run, f"{table.name}.planned", Verdict.VERIFIED, "a table that can be rolled", told)
    _tell_holds(managed, table)
    return made


def _tell_holds(managed: Managed, table: Table) -> None:
    """Say of each hold that it names something, or what would match: a name mistyped keeps nothing."""
    strange = strangers(table, managed.policy)
    if managed.policy.hold:
        verdict = Verdict.INCONCLUSIVE if strange else Verdict.VERIFIED
        told = f"of no partition: {', '.join(strange)}" if strange else "it is"
        note(managed.run, f"{table.name}.hold", verdict, "every hold is a partition's name", told)
    names = sorted({write_name(each.schema_, each.name) for each in table.names()})
    for each in strange:
        near = sorted(names, key=lambda name: SequenceMatcher(None, each, name).ratio(), reverse=True)
        tell(
            managed,
            "hold-unknown",
            f"hold '{each}' of '{table.name}' names no partition, none that is detached and none in its "
            "archive, so nobody knows what it keeps: nothing leaves and nothing is dropped",
            f"correct it in the fleet file: {', '.join(near[:5]) or 'there is none'}; '*' holds every one",
            Severity.ERROR,
        )


def finish(managed: Managed, made: Plan) -> None:
    """Finish what was interrupted: until then no partition can be detached there, or rows be kept out."""
    table, _ = look(managed)
    if table.default_oid:
        with managed.session() as session:
            beside.forget(session, managed.dsn, managed.policy, table.default_oid)
    for each in made.unfinished:
        _finish(managed, table, each)
        tell(
            managed,
            "detach-finished",
            f"somebody began to detach '{each.name}', which PostgreSQL cannot take back and which keeps "
            "every other from leaving: it is finished, and the table stands outside, whole",
            f"ALTER TABLE {write_name(table.name.schema_, table.name.name)} ATTACH PARTITION "
            f"{write_name(each.name.schema_, each.name.name)} {each.bound}; brings it back",
        )
    for each in made.departures:
        if each.is_pending:
            managed.check_lock()
            if (entry := announce(managed, made, each)) and entry.fence is not None:
                renew(managed, entry)
            _finish(managed, table, each)


def _finish(managed: Managed, table: Table, departure: Departure) -> None:
    managed.check_lock()
    intent = {"partition": str(departure.name)}
    with managed.run.step("finish detach", intent), managed.session() as session:
        try:
            detaching.detach(session, managed.dsn, table, departure, managed.policy)
        except DatabaseFailed as error:
            if error.transient:
                raise
            raise PreconditionFailed(
                f"the pending detach of '{departure.name}' cannot be finished, and until it is, no other "
                f"partition can leave: {error.message}",
                hint="see what forbids ALTER TABLE … DETACH PARTITION … FINALIZE",
            ) from error
    done(managed, "finalize", departure.name.name, departure.bound)


# --- create -------------------------------------------------------------------------------------------


def release(managed: Managed, made: Plan) -> None:
    """Take the fence down from tables that somebody attached again, and forget their departure."""
    for entry in made.releases:
        managed.check_lock()
        with managed.run.step("release", {"partition": str(entry.name), "id": str(entry.id)}):
            _take_down(managed, entry)
        if entry.state != "leaving":
            tell(
                managed,
                "attached-again",
                f"'{entry.name}' was detached for archiving and is a partition again; its fence is down",
                "set hold for it in the fleet file if it is to stay",
            )
        with alone(managed, str(entry.name)):
            _give_up_copy(managed, made, entry)


def _take_down(managed: Managed, entry: Entry) -> None:
    with managed.session() as session:
        bounded(session, managed.dsn, managed.policy, partial(_release, session, entry))


def _give_up_copy(managed: Managed, made: Plan, entry: Entry) -> None:
    """Abort what was being uploaded, and name what is there."""
    if managed.policy.archive:
        where = partition_folder(managed.policy, managed.cluster, managed.database, made.table, entry.name)
        abort_uploads(managed.store, where)
        tell_remains(managed, made, entry)


def _release(session: Connection, entry: Entry) -> None:
    with session.transaction():
        if entry.fence is not None:
            ledger.drop_fence(session, entry)
        ledger.end(session, entry.id)


def create(managed: Managed, creation: Creation) -> None:
    """Make one partition; that it is there already, as planned, is no error."""
    table, axis = look(managed)
    if creation.range not in missing(table, axis, managed.policy):
        return
    managed.check_lock()
    intent = {"table": str(table.name), "partition": str(creation.name), "bound": creation.bound}
    with managed.run.step("create partition", intent) as noted, managed.session() as session:
        moved = creating.make(session, managed.dsn, managed.policy, table, creation)
        noted["moved_from_default"] = moved
    detail = f"{moved} rows came out of DEFAULT" if moved else ""
    done(managed, "create", creation.name.name, creation.bound, detail=detail)


# --- afterwards ---------------------------------------------------------------------------------------


def conclude_table(managed: Managed, made: Plan) -> None:
    """Look again: is the horizon there, is nothing pending, do the partitions agree with their table."""
    table, axis = look(managed)
    run, name = managed.run, str(table.name)
    holes = missing(table, axis, managed.policy)
    verdict = Verdict.REFUTED if holes else Verdict.VERIFIED
    actual = f"no partition for {_ranges(axis, holes)}" if holes else "every one is there"
    note(run, f"{name}.horizon", verdict, f"the current partition and {managed.policy.ahead} ahead", actual)
    if reach := horizon(table, axis, managed.policy):
        run.facts["horizons"] = (*run.facts.get("horizons", ()), reach)
    pending = [str(each.name) for each in table.partitions if each.is_pending]
    verdict = Verdict.INCONCLUSIVE if pending else Verdict.VERIFIED
    note(run, f"{name}.pending", verdict, "no detach is unfinished", ", ".join(pending) or "none")
    _tell_beyond(managed, table, axis)
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


def _tell_beyond(managed: Managed, table: Table, axis: Axis) -> None:
    """Say of a key that counts whether the table's newest can be believed: by it partitions grow old.

    Where nothing ever leaves, a range without an end may hold it.
    """
    in_range = any(each.range and each.range.covers(table.beyond or 0) for each in table.partitions)
    if axis.kind != "integer" or (in_range and managed.policy.keep is None):
        return
    verdict = Verdict.VERIFIED if table.beyond is None else Verdict.INCONCLUSIVE
    actual = "it is" if table.beyond is None else f"{table.key} = {table.beyond} is in none"
    note(
        managed.run, f"{table.name}.newest", verdict, "the newest key in a partition that has an end", actual
    )
    if table.beyond is not None:
        tell(
            managed,
            "key-beyond",
            f"the newest {table.key} of '{table.name}' is {table.beyond}, and no partition that has an end "
            f"holds it; the newest in such a one is {table.position}: nothing leaves",
            "correct or delete that row if it is mistyped; if the table has grown so far, raise ahead until "
            "partitions reach it, and give an end to one that has none",
            Severity.ERROR,
        )


def _tell_refusals(managed: Managed, made: Plan) -> None:
    for step in made.refusals:
        tell(managed, "left-alone", f"'{step.partition}' stays: {step.reason}", "", Severity.INFO)


def _tell_drift(managed: Managed, oid: int) -> None:
    with managed.session() as session:
        drift = read_drift(session, oid)
    for name, differs in drift:
        tell(
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
        tell(managed, "rejected", f"{names}: the drop was {decided}", hint, Severity.INFO)
        return
    tell(
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
        read_manifest(managed.store, each.entry.manifest, each.entry.manifest_sha256 or "")
        for each in waiting
        if each.entry and each.entry.manifest
    ]
