"""Marking a database: a place in the WAL at which its content is known exactly, while users go on writing."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.drill.facts import Mark, MarkMethod, Unproven
from pgvigil.drill.fence import from_fence
from pgvigil.drill.point import Point, Source, ask, read_source
from pgvigil.drill.slot import from_slot
from pgvigil.drill.standby import from_standby
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.drill.around import Around
    from pgvigil.drill.facts import Table
    from pgvigil.drill.tables import Doubt, Inventory
    from pgvigil.policies.drill import DrillPolicy
    from pgvigil.postgres import Connection

# The gentlest first.
_METHODS: dict[
    MarkMethod, Callable[[Source, Sequence[Source], Around | None], AbstractContextManager[Point]]
] = {
    "standby": from_standby,
    "slot": from_slot,
    "fence": from_fence,
}

_GONE = "it could not share a mark with the other tables, and was dropped before its own"
_PART_FOR_HASHING = 0.95  # of the time for which the server keeps the snapshot; then we stop by ourselves


@dataclass(frozen=True)
class Marked:
    """A marked database whose snapshot is held, so that its content can be read as it was at the mark.

    `beside` are other databases that have the same mark.
    """

    mark: Mark
    snapshot: str
    inventory: Inventory
    doubts: tuple[Doubt, ...]
    contended: tuple[Table, ...]
    until: float
    declined: tuple[str, ...]
    source: Source
    beside: tuple[Marked, ...] = ()

    def connect(self) -> AbstractContextManager[Connection]:
        """Open a session on the server that has the snapshot: the source, or its standby."""
        return self.source.connect()


@contextmanager
def mark(  # noqa: PLR0913 - which databases, how, and what else is read
    dsn: str,
    policy: DrillPolicy,
    run_name: str,
    *,
    only: Sequence[Table] = (),
    beside: Sequence[str] = (),
    around: Around | None = None,
) -> Iterator[Marked]:
    """Mark the database of the dsn, and hold the mark's snapshot during the block.

    With `only`, these tables: each is in the inventory, or told there. `contended` are tables that need a
    mark of their own: what users lock in different orders cannot be fenced together; they are not in it.
    Databases `beside` it, by dsn, get the same mark where that costs their users nothing.
    What is beside rows is read `around` it, before this yields.
    `until` (of time.monotonic) is when hashing must end, before drill.hash_for is over and the
    server drops the snapshot;
    `declined` says why gentler methods were not taken. Raises PreconditionFailed if none can be had.
    """
    oids = frozenset(table.oid for table in only) or None
    source = read_source(dsn, run_name, policy).model_copy(update={"only": oids})
    others = [found for each in beside if (found := _try_source(each, run_name, policy))]
    with ExitStack() as stack:
        point, declined = _fix(source, others, around, stack)
        until = time.monotonic() + policy.hash_for.total_seconds() * _PART_FOR_HASHING
        if around:
            around.after((point, *point.beside))
        marked = partial(_marked, until=until, declined=declined)
        own = marked(source, point, only=only)
        yield replace(own, beside=tuple(marked(each.source, each) for each in point.beside))


def _try_source(dsn: str, run_name: str, policy: DrillPolicy) -> Source | None:
    """Leave out who cannot be asked: when its own turn comes, it is told why."""
    with suppress(DatabaseFailed):
        return read_source(dsn, run_name, policy)
    return None


def _marked(
    source: Source, point: Point, *, only: Sequence[Table] = (), until: float, declined: tuple[str, ...]
) -> Marked:
    oids = source.only
    return Marked(
        mark=_describe(source, point),
        snapshot=point.snapshot,
        inventory=_inventory(source, point, only),
        doubts=tuple(doubt for doubt in point.doubts if oids is None or doubt.oid in oids),
        contended=tuple(each.table for each in point.inventory.tables if each.table.oid in point.contended),
        until=until,
        declined=declined,
        source=point.source,
    )


def _fix(
    source: Source, beside: Sequence[Source], around: Around | None, stack: ExitStack
) -> tuple[Point, tuple[str, ...]]:
    """Take the first method that works."""
    wanted = source.policy.mark
    declined: list[str] = []
    for name, method in _METHODS.items():
        if wanted not in {"auto", name}:
            continue
        try:
            return stack.enter_context(method(source, beside, around)), tuple(declined)
        except (PreconditionFailed, DatabaseFailed) as error:
            if wanted == name:
                raise
            declined.append(f"{name}: {error.message}")
    raise PreconditionFailed(
        f"database '{source.database}' cannot be marked: {'; '.join(declined)}",
        hint="name a drill.standby, set wal_level = logical, or drill when fewer users write for long",
    )


def _inventory(source: Source, point: Point, only: Sequence[Table]) -> Inventory:
    """Leave out what this mark is not for, and tell of what it was for and is not there any more."""
    inventory, oids = point.inventory, source.only
    kept = [
        listed
        for listed in inventory.tables
        if listed.table.oid not in point.contended and (oids is None or listed.table.oid in oids)
    ]
    told = [each for each in inventory.unproven if oids is None or each.oid in oids]
    there = {listed.table.oid for listed in inventory.tables} | {each.oid for each in told}
    told += [_gone(source, table) for table in only if table.oid not in there]
    return inventory.model_copy(update={"tables": tuple(kept), "unproven": tuple(told)})


def _gone(source: Source, table: Table) -> Unproven:
    return Unproven(database=source.database, relation=str(table), reason=_GONE, oid=table.oid)


def _describe(source: Source, point: Point) -> Mark:
    with point.source.connect() as connection:
        timeline = ask(connection, query("drill_source", "timeline"))["timeline"]
    return Mark(
        database=source.database,
        method=point.method,
        lsn=point.lsn,
        name=point.name,
        timeline=timeline,
        at=point.at,
        writers_waited_ms=point.waited_ms,
        attempts=point.attempts,
        server=postgres.describe(point.source.dsn),
    )
