"""What a run does with a table: decided from facts and policy alone."""

from __future__ import annotations

import hashlib
from datetime import UTC
from typing import TYPE_CHECKING, Literal

from pgvigil.partitions.axis import Range
from pgvigil.partitions.facts import Creation, Departure, Horizon, Name, Plan, Step, Twig
from pgvigil.policies.partitions import EVERY_ONE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import timedelta

    from pgvigil.partitions.axis import Axis
    from pgvigil.partitions.facts import Entry, Member, Partition, Table
    from pgvigil.policies.partitions import DropAfter, PartitionPolicy

LONGEST_NAME = 63

Drop = tuple[Literal["now", "approve", "later", "never"], str]


def draw(table: Table, axis: Axis, policy: PartitionPolicy, approved: Collection[str] = ()) -> Plan:
    """Plan one table; the same facts give the same plan, and a converged table an empty one.

    `approved` are the digests of plans whose drops a person approved.
    """
    refusals = [*_hold_refusals(table, policy), *_clock_refusals(table, axis, policy)]
    expired = [] if refusals else list(_expired(table, axis, policy))
    refusals += [step for each in expired if (step := _refuse(each, table, policy))]
    refused = {step.oid for step in refusals}
    under_way = [_resume(entry, table, policy) for entry in _under_way(table)]
    known = {departure.relation for departure in under_way} | refused
    fresh = [_leave(each, table, policy) for each in expired if each.oid not in known]
    begun = [departure for departure in fresh if departure.is_pending]
    whole = [departure for departure in fresh if not departure.is_pending]
    # A run that goes on after an approval took out what it asked about: it must not begin as many again.
    room = max(0, policy.max_drops - (len(under_way) if approved else 0))
    refusals += [_over_the_cap(departure, policy) for departure in whole[room:]]
    departures = (*under_way, *begun, *whole[:room])
    plan = Plan(
        table=table.name,
        oid=table.oid,
        made_at=table.now,
        unfinished=tuple(_unfinished(table, departures, policy)),
        releases=tuple(_releases(table)),
        creations=tuple(_creations(table, axis, policy)),
        departures=departures,
        refusals=tuple(refusals),
    )
    return _with_approval(_with_cap(_with_drops(plan, table, policy), policy), approved)


def missing(table: Table, axis: Axis, policy: PartitionPolicy) -> list[Range]:
    """Give the ranges from the current slot to the horizon that no partition covers."""
    here = table.position
    if here is None:
        lows = [each.range.lower for each in table.partitions if each.range and each.range.lower is not None]
        here = min(lows, default=0)
    covered = [each.range for each in table.partitions if each.range and not each.is_pending]
    return [piece for slot in axis.slots(here, policy.ahead) for piece in _uncovered(slot, covered)]


def horizon(table: Table, axis: Axis, policy: PartitionPolicy) -> Horizon | None:
    """Tell how far the partitions reach from now on; None where the key tells no time, or they never end."""
    here = table.position
    if here is None or axis.kind == "integer":
        return None
    lengths = [slot.upper or 0 for slot in axis.slots(here, policy.ahead)]
    covered = [each.range for each in table.partitions if each.range and not each.is_pending]
    while found := next((each for each in covered if each.covers(here)), None):
        if found.upper is None:
            return None
        here = found.upper
    ends_at = axis.moment(here)
    if ends_at is None:
        return None
    seconds = (lengths[-1] - lengths[0]) / policy.ahead / 1_000_000
    return Horizon(table=policy.table, ends_at=ends_at.astimezone(UTC), partition_seconds=seconds)


def _uncovered(slot: Range, covered: list[Range]) -> Iterator[Range]:
    """Cut from a slot what partitions cover already, under whatever name."""
    lower, upper = slot.lower, slot.upper
    assert lower is not None and upper is not None  # noqa: S101, PT018 - slots have both
    inside = [
        each for each in covered if (each.lower is None or each.lower < upper) and _ends_after(each, lower)
    ]
    for each in sorted(inside, key=_start):
        if each.lower is not None and each.lower > lower:
            yield Range(lower=lower, upper=each.lower)
        if each.upper is None or each.upper >= upper:
            return
        lower = max(lower, each.upper)
    yield Range(lower=lower, upper=upper)


def _start(each: Range) -> tuple[bool, int]:
    return each.lower is not None, each.lower or 0


def _ends_after(each: Range, position: int) -> bool:
    return each.upper is None or each.upper > position


def _creations(table: Table, axis: Axis, policy: PartitionPolicy) -> Iterator[Creation]:
    taken = set(table.taken_names)
    current = table.position
    model, why = _model(table)
    bounds = [each.bound for each in table.partitions]
    for piece in missing(table, axis, policy):
        assert piece.lower is not None and piece.upper is not None  # noqa: S101, PT018 - cut from a slot
        name = _free_name(table.name.name, axis.suffix(piece.lower), taken)
        taken.add(name)
        is_current = current is not None and piece.covers(current)
        made = Name(schema_=table.name.schema_, name=name)
        lower, upper = axis.ends(piece, bounds)
        yield Creation(
            name=made,
            range=piece,
            lower=lower,
            upper=upper,
            reason=("rows are written here now" if is_current else f"within {policy.ahead} ahead") + why,
            partition_by=model.partition_by if model else "",
            twigs=tuple(_twigs(made, model, table.below.get(model.oid, ()), taken)) if model else (),
        )


def _model(table: Table) -> tuple[Partition | None, str]:
    """Find the newest partition if it is partitioned itself, so that new ones are so likewise, and say so."""
    ranged = [each for each in table.partitions if each.range and not each.is_pending]
    newest = max(ranged, key=_begin, default=None)
    if newest is None or newest.kind != "p":
        return None, ""
    below = table.below.get(newest.oid, ())
    if not (newest.is_timeless and all(each.is_timeless for each in below)):
        return None, f"; plain, because what is below '{newest.name}' is its own part of '{table.key}'"
    is_whole = all(each.kind in "rp" and not each.is_pending for each in below)
    if not is_whole or all(each.kind == "p" for each in below):
        return None, f"; plain, because what is below '{newest.name}' is not whole"
    return newest, f", partitioned like '{newest.name}'"


def _begin(each: Partition) -> tuple[bool, int, int]:
    lower = each.range.lower if each.range else None
    return lower is not None, lower or 0, each.oid


def _twigs(made: Name, model: Partition, below: tuple[Member, ...], taken: set[str]) -> Iterator[Twig]:
    """Name what is made below a partition after what is below its model."""
    names = {model.oid: made}
    for number, each in enumerate(below, start=1):
        tail = each.name.name.removeprefix(model.name.name).strip("_")
        name = _free_name(made.name, str(number) if tail in {"", each.name.name} else tail, taken)
        taken.add(name)
        names[each.oid] = Name(schema_=made.schema_, name=name)
        yield Twig(
            name=names[each.oid],
            below=names[each.parent],
            bound=each.bound,
            partition_by=each.partition_by,
            like=each.oid,
        )


def _free_name(table: str, suffix: str, taken: set[str]) -> str:
    """Name a partition after its table and its slot, within 63 bytes and unlike any other."""
    number = 1
    while True:
        tail = f"_{suffix}" if number == 1 else f"_{suffix}_{number}"
        name = _shorten(table, LONGEST_NAME - len(tail)) + tail
        if name not in taken:
            return name
        number += 1


def _shorten(text: str, size: int) -> str:
    raw = text.encode()
    if len(raw) <= size:
        return text
    mark = hashlib.sha256(raw).hexdigest()[:6]  # two long names that begin alike must not meet
    return raw[: size - 7].decode(errors="ignore") + "_" + mark


def _expired(table: Table, axis: Axis, policy: PartitionPolicy) -> Iterator[Partition]:
    """Give what is older than `keep`, oldest first."""
    if policy.keep is None or table.position is None:
        return
    cutoff = axis.before(table.position, policy.keep)
    ranged = [each for each in table.partitions if each.range and each.range.upper is not None]
    yield from sorted(
        (
            each
            for each in ranged
            if each.range and each.range.upper is not None and each.range.upper <= cutoff
        ),
        key=_age,
    )


def _age(each: Partition) -> tuple[bool, int, int]:
    """Order by age; but while one detach is pending, PostgreSQL takes no other."""
    upper = each.range.upper if each.range and each.range.upper is not None else 0
    return not each.is_pending, upper, each.oid


def _clock_refusals(table: Table, axis: Axis, policy: PartitionPolicy) -> Iterator[Step]:
    """Refuse to let anything leave while the table does not know the present: clock or key may be wrong."""
    if policy.keep is not None and table.beyond is not None:
        yield Step(
            action="refuse",
            partition=table.name,
            reason=f"its newest key, {table.beyond}, lies beyond every partition that has an end",
        )
    if policy.keep is None or axis.kind == "integer" or table.position is None:
        return
    if any(each.range and each.range.covers(table.position) for each in table.partitions):
        return
    yield Step(
        action="refuse",
        partition=table.name,
        reason=f"no partition holds the present time {axis.literal(table.position)}: "
        "if the clock is right, the next run goes on",
    )


def strangers(table: Table, policy: PartitionPolicy) -> tuple[str, ...]:
    """Return the holds that mean no partition, none on its way and none in the archive."""
    known = {EVERY_ONE}.union(*(policy.holds_on(each.schema_, each.name) for each in table.names()))
    return tuple(each for each in policy.hold if each not in known)


def _hold_refusals(table: Table, policy: PartitionPolicy) -> Iterator[Step]:
    """Refuse to let anything leave while a hold names nothing: it was meant to keep something."""
    if told := _strange(table, policy):
        yield Step(action="refuse", partition=table.name, reason=f"{told}: nothing leaves")


def _strange(table: Table, policy: PartitionPolicy) -> str:
    names = ", ".join(f"'{each}'" for each in strangers(table, policy))
    return f"no partition of it is called as hold says: {names}" if names else ""


def _refuse(each: Partition, table: Table, policy: PartitionPolicy) -> Step | None:
    reason = _refusal(each, table, policy)
    if reason is None:
        return None
    return Step(
        action="refuse", partition=each.name, reason=reason, oid=each.oid, bound=each.bound, size=each.size
    )


def _refusal(each: Partition, table: Table, policy: PartitionPolicy) -> str | None:
    returned = next((e for e in table.entries if e.relation == each.oid and e.state == "returned"), None)
    if held := _held(each.oid, each.name, table, policy):
        return held
    if returned and table.now - returned.since < policy.restored_for:
        return (
            f"it was brought back on {returned.since:%Y-%m-%d} and is left alone until "
            f"{returned.since + policy.restored_for:%Y-%m-%d}"
        )
    if odd := _odd(each, table):
        return odd
    return _not_concurrently(each, table) if policy.detach == "concurrently" and not each.is_pending else None


def _not_concurrently(each: Partition, table: Table) -> str | None:
    """Say what rules out the concurrent detach."""
    if unlike := _unlike(each.oid, table):
        return (
            f"'{unlike}' below it has another order of columns, with which it cannot be detached concurrently"
        )
    if table.referenced_by:
        return f"foreign keys of {', '.join(table.referenced_by)} refer to the table"
    if table.default_oid:
        return "the table has a DEFAULT partition, with which PostgreSQL cannot detach concurrently"
    return None


def _held(oid: int, name: Name, table: Table, policy: PartitionPolicy) -> str | None:
    """Say that it, or a table below it, is under legal hold."""
    for each in (name, *(member.name for member in table.below.get(oid, ()))):
        if policy.holds_on(each.schema_, each.name):
            return "it is under legal hold" if each == name else f"'{each}' in it is under legal hold"
    return None


def _odd(each: Partition, table: Table) -> str | None:
    """Say what keeps a partition from being copied as a whole."""
    if each.kind not in "rp":
        return "it is a foreign table; only plain tables are archived"
    for member in table.below.get(each.oid, ()):
        if member.kind not in "rp":
            return f"'{member.name}' in it is a foreign table; only plain tables are archived"
        if member.is_pending:
            return f"the detach of '{member.name}' from it is not finished: ALTER TABLE … DETACH … FINALIZE"
    return None


def _unlike(oid: int, table: Table) -> Name | None:
    """Name a table below a partition whose columns are numbered otherwise.

    The concurrent detach gives every table below a CHECK of the bound, and names its columns by the numbers
    that they have above: such a table would get one that is about other columns.
    """
    return next((member.name for member in table.below.get(oid, ()) if not member.is_alike), None)


def _method(
    oid: int, table: Table, policy: PartitionPolicy
) -> tuple[Literal["concurrently", "blocking"], str]:
    if policy.detach != "auto":
        return policy.detach, "the policy says so"
    if table.default_oid:
        return "blocking", "a DEFAULT partition rules out the concurrent way"
    if unlike := _unlike(oid, table):
        return "blocking", f"the concurrent way would give '{unlike}' below it a CHECK of the wrong columns"
    if table.referenced_by:
        return "blocking", f"foreign keys of {', '.join(table.referenced_by)} are checked under the lock"
    return "concurrently", "no DEFAULT partition, no foreign key to the table"


def _leave(each: Partition, table: Table, policy: PartitionPolicy) -> Departure:
    method, why = _method(each.oid, table, policy)
    return Departure(
        relation=each.oid,
        name=each.name,
        parent=table.oid,
        bound=each.bound,
        condition=each.condition or "",
        size=each.size,
        entry=None,
        is_attached=True,
        is_pending=each.is_pending,
        method=method,
        method_reason=why,
        reason=f"all of it is older than {policy.keep}",
        drop="never",
        drop_reason="",
    )


def _under_way(table: Table) -> list[Entry]:
    attached = {each.oid for each in table.partitions if not each.is_pending}
    return [
        entry
        for entry in table.entries
        if entry.state in {"leaving", "fenced", "archived"} and entry.relation not in attached
    ]


def _releases(table: Table) -> Iterator[Entry]:
    """Give the entries whose table is attached: a detach that never began, or that a person undid."""
    attached = {each.oid for each in table.partitions if not each.is_pending}
    for entry in table.entries:
        if entry.relation in attached and entry.state in {"leaving", "fenced", "archived"}:
            yield entry


def _resume(entry: Entry, table: Table, policy: PartitionPolicy) -> Departure:
    method, why = _method(entry.relation, table, policy)
    found = table.partition(entry.relation)
    return Departure(
        relation=entry.relation,
        name=entry.name,
        parent=table.oid,
        bound=entry.bound,
        condition=entry.condition,
        size=found.size if found else 0,
        entry=entry,
        is_attached=found is not None,
        is_pending=bool(found and found.is_pending),
        method=method,
        method_reason=why,
        reason="an earlier run began it",
        drop="never",
        drop_reason="",
    )


def _unfinished(
    table: Table, departures: Collection[Departure], policy: PartitionPolicy
) -> Iterator[Departure]:
    """Give the partitions that do not leave, but whose detach somebody began: it can only be finished."""
    leaving = {departure.relation for departure in departures}
    for each in table.partitions:
        if each.is_pending and each.oid not in leaving:
            yield _leave(each, table, policy)


def _over_the_cap(departure: Departure, policy: PartitionPolicy) -> Step:
    return Step(
        action="refuse",
        partition=departure.name,
        reason=f"max_drops is {policy.max_drops}: a later run takes it",
        oid=departure.relation,
        bound=departure.bound,
        size=departure.size,
    )


def _with_drops(plan: Plan, table: Table, policy: PartitionPolicy) -> Plan:
    """Say for each departure whether its table is dropped now."""
    decided = []
    for each in plan.departures:
        when, why = _drop(each, table, policy)
        told = {"drop": when, "drop_reason": why, "followed": table.followed}
        decided.append(each.model_copy(update=told))
    return plan.model_copy(update={"departures": tuple(decided)})


def _with_cap(plan: Plan, policy: PartitionPolicy) -> Plan:
    """Let no more be dropped, nor a person be asked about more, than one run may drop."""
    due = [each.relation for each in plan.departures if each.drop == "now" or each.is_waiting]
    late = due[policy.max_drops :]
    then = {"drop": "later", "drop_reason": f"max_drops is {policy.max_drops}: a later run drops it"}
    decided = (each.model_copy(update=then) if each.relation in late else each for each in plan.departures)
    return plan.model_copy(update={"departures": tuple(decided)})


def _with_approval(plan: Plan, approved: Collection[str]) -> Plan:
    """Let those go that wait for approval, if it was given for exactly them."""
    digest = _digest(plan)
    then = {"drop_reason": f"waits for approval of plan {digest}"}
    if digest in approved:
        then = {"drop": "now", "drop_reason": f"plan {digest} was approved"}
    decided = (each.model_copy(update=then) if each.is_waiting else each for each in plan.departures)
    return plan.model_copy(update={"departures": tuple(decided), "digest": digest})


def _digest(plan: Plan) -> str:
    """Identify the proven copies whose tables wait for a person, for the one who approves that."""
    entries = [each.entry for each in plan.departures if each.entry and each.is_waiting]
    waiting = sorted(f"{entry.id} {entry.manifest_sha256}" for entry in entries)
    return hashlib.sha256(" ".join([str(plan.oid), *waiting]).encode()).hexdigest()[:12] if waiting else ""


def _drop(each: Departure, table: Table, policy: PartitionPolicy) -> Drop:
    if held := _held(each.relation, each.name, table, policy):
        return "never", held
    if strange := _strange(table, policy):
        return "never", strange
    if policy.drop == "keep":
        return "never", "the policy keeps detached tables"
    if policy.drop == "proven":
        return "now", "its copy is proven"
    if policy.drop == "approve":
        return "approve", "waits for its copy, and then for approval"
    return _after(each, table, policy.drop)


def _after(each: Departure, table: Table, rule: DropAfter) -> Drop:
    since = each.entry.detached_at if each.entry else None
    if since is None:
        return "later", f"it is kept for {_days(rule.after)} after the detach"
    due = since + rule.after
    if table.now >= due:
        return "now", f"detached {since:%Y-%m-%d}, more than {_days(rule.after)} ago"
    return "later", f"it is kept until {due:%Y-%m-%d %H:%M} UTC"


def _days(span: timedelta) -> str:
    return f"{span.total_seconds() / 86400:g} d"
