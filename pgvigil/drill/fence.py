"""A mark where nothing gentler can be had: all tables are locked against writers for some milliseconds.

While no writer is at work on a table, every snapshot shows all its commits, and every place in the WAL has
them all before it: the snapshot and the restore point that are made then belong together. The server bounds
each part of a fence itself, so writers wait no longer than drill.fence even if this process stands still.

Two things no such lock holds: materialized views, and large objects that are unlinked. Of those it is looked
up afterwards whether one was changed between snapshot and restore point; then that attempt is void. Where it
happens each time, they are doubted.

Whoever writes to two tables can hold one and wait for the other, which the fence has already. So after a
failed attempt the table that the fence had to wait for is locked first: its writers then come through.
Where writers take two tables in both orders that does not help: one of them is left to a mark of its own.
"""

from __future__ import annotations

import random
import secrets
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill.beside import SESSIONS, Fence, Neighbour, bounded, moved
from pgvigil.drill.point import Point, Source, ask, exporter, set_timeout
from pgvigil.drill.tables import Doubt, Inventory, list_marked
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.postgres import sql
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from datetime import timedelta

    from pgvigil.drill.around import Around
    from pgvigil.postgres import Connection

_LAST_TRIES = 5
_VOIDS = 6  # attempts that may be void before what was changed in each of them is doubted
_SHARE_OF_TIME = 5  # attempts take at most this part, 1/n, of the time in which they are made
_PAUSE = 0.05
_PATIENCE = 12  # times that writers and fence wait for each other, before the tables are parted
_LOOK = 0.015  # seconds between two looks at what a fence waits for; users' transactions are shorter mostly
_SHARE_OF_LOCKS = (
    2  # a fence takes at most this part, 1/n, of the server's free locks: users need some as well
)

# Timeouts of lock, statement and idle transaction; a deadlock; a table dropped since it was listed.
_MISSES = frozenset({"55P03", "57014", "25P03", "40P01", "42P01"})

_UNLOCKABLE = "not lockable by this role: run infra/roles.sql in this database"
_NO_ROOM = "more tables than the server can lock at once: raise max_locks_per_transaction"
_NEW = "created while the mark was made"
_REFRESHED = "REFRESH MATERIALIZED VIEW was at work when the mark was made"
_UNLINKED = "large objects were being unlinked when the mark was made"


class Holder(Frozen):
    """A session, or a prepared transaction, whose lock on a table a fence must wait for."""

    oid: int
    relation: str
    pid: int | None
    mode: str
    application: str
    backend: str
    age: float
    state: str | None
    query: str

    def __str__(self) -> str:
        """Name it for people."""
        who = f"process {self.pid}" if self.pid else f"prepared transaction '{self.state}'"
        called = f" '{self.application}'" if self.application else ""
        doing = f": {self.query}" if self.query else ""
        return f"{self.relation} is held by {who}{called} ({self.backend}, {self.age:.1f} s old){doing}"


@dataclass
class _Siege:
    """The tables still to be fenced, in the order in which they are locked, and what was learned so far."""

    source: Source
    names: dict[int, tuple[str, str]]
    order: list[int]
    is_helped: bool
    doubts: list[Doubt] = field(default_factory=list)
    holders: dict[int, Holder] = field(default_factory=dict)
    mutual: Counter[int] = field(default_factory=Counter)
    contended: set[int] = field(default_factory=set)
    attempts: int = 0
    voids: int = 0
    waited: float = 0.0
    room: int = 0
    beside: list[Neighbour] = field(default_factory=list)
    around: Around | None = None

    @property
    def half(self) -> timedelta:
        """How long the lock may take: half the bound, and less than what calls a user's wait a deadlock."""
        return min(self.source.policy.fence / 2, self.source.deadlock_timeout * 0.8)

    def part(self) -> None:
        """Leave to another mark the table that most often could not be had together with the others."""
        if len(self.order) > 1 and self.mutual.total() >= _PATIENCE:
            oid = self.mutual.most_common(1)[0][0]
            self.order.remove(oid)
            self.contended.add(oid)
            self.mutual.clear()

    @property
    def aside(self) -> set[int]:
        """Which tables are not in the fence, for a reason that is known already."""
        return {doubt.oid for doubt in self.doubts} | self.contended

    def told_by(self, moved: set[int]) -> set[int]:
        """Return what this mark is for, of all that has moved."""
        asked = moved if self.source.only is None else moved & self.source.only
        return asked - self.aside

    def set_aside(self, oid: int, reason: str) -> None:
        """Leave a table out of the fence, and say why."""
        self.order.remove(oid)
        self.doubts.append(Doubt(oid=oid, relation=".".join(self.names[oid]), reason=reason))


@contextmanager
def from_fence(
    source: Source, beside: Sequence[Source] = (), around: Around | None = None
) -> Iterator[Point]:
    """Fix a restore point at which no writer was at work, and hold the snapshot taken beside it.

    Databases `beside` it share the point if they are at rest. Tries until drill.fence_for is over; then
    tables whose holders do not go away are left out, with a doubt that names them. Raises
    PreconditionFailed, naming the holders, if nothing can be fenced.
    """
    with exporter(source) as snapshot, source.connect() as watch, ExitStack() as stack:
        siege = _prepare(source, watch)
        siege.beside = list(_invite(siege, beside, stack))
        siege.around = around
        row = _besiege(siege, snapshot, watch)
        inventory = list_marked(snapshot, source.database)
        point = Point(
            method="fence",
            lsn=row["lsn"],
            name=row["name"],
            snapshot=row["snapshot"],
            at=row["at"],
            waited_ms=siege.waited * 1000,
            attempts=siege.attempts,
            contended=frozenset(siege.contended),
            doubts=(*siege.doubts, *_late_doubts(siege, inventory, row["moved"])),
            source=source,
            inventory=inventory,
        )
        others = (each.point(point) for each in siege.beside)
        yield replace(point, beside=tuple(each for each in others if each))


def _invite(siege: _Siege, beside: Sequence[Source], stack: ExitStack) -> Iterator[Neighbour]:
    """Open the databases that may share the fence, as far as there is room for their locks and sessions."""
    room = siege.room - len(siege.order)
    for source in beside[: siege.source.allowance // SESSIONS]:
        snapshot, locker = stack.enter_context(bounded(source))
        own = _prepare(source, snapshot)
        if 0 < len(own.order) <= room:
            room -= len(own.order)
            yield Neighbour(source, snapshot, locker, _fence_of(own))


def _prepare(source: Source, watch: Connection) -> _Siege:
    rows = watch.execute(query("drill_source", "fence_plan")).fetchall()
    rows = [row for row in rows if source.only is None or row["oid"] in source.only]
    siege = _Siege(
        source=source,
        names={row["oid"]: (row["schema_name"], row["name"]) for row in rows},
        order=[row["oid"] for row in rows],
        is_helped=ask(watch, query("drill_source", "fence_helper"))["is_here"],
    )
    if not siege.is_helped:
        for row in rows:
            if not row["may_lock"]:
                siege.set_aside(row["oid"], _UNLOCKABLE)
    locks = ask(watch, query("drill_source", "lock_room"))
    siege.room = max((locks["room"] - locks["used"]) // _SHARE_OF_LOCKS, 0)
    for oid in siege.order[siege.room :]:
        siege.set_aside(oid, _NO_ROOM)
    siege.order.sort()
    return siege


def _besiege(siege: _Siege, snapshot: Connection, watch: Connection) -> dict[str, Any]:
    """Try for a fence until it stands, or the time for it is over."""
    deadline = time.monotonic() + siege.source.policy.fence_for.total_seconds()
    last_tries = _LAST_TRIES
    while last_tries:
        _look_again(siege, watch)
        stubborn = _stubborn(siege, watch)
        is_over = time.monotonic() > deadline
        if is_over:
            last_tries -= 1
            for oid, holder in stubborn.items():
                siege.set_aside(oid, f"not fenced: {holder}")
        if not siege.order:
            break
        is_worth_it = is_over or not stubborn
        if is_worth_it and siege.around:
            siege.around.before([siege.source], late=[each.source for each in siege.beside])
        began, least = time.monotonic(), _PAUSE
        if is_worth_it:
            row = _attempt(siege, snapshot, watch)
            if row and (not row["moved"] or is_over or siege.voids == _VOIDS):
                return row
            if row:
                siege.voids += 1
                least *= 2**siege.voids  # what moved may take its time to end
            siege.part()
        pause = max(least, (time.monotonic() - began) * (_SHARE_OF_TIME - 1))
        time.sleep(pause * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
    raise _refusal(siege)


def _look_again(siege: _Siege, watch: Connection) -> None:
    """Know the tables by the names that they have now, and drop those that are gone."""
    rows = watch.execute(query("drill_source", "fence_names"), {"oids": siege.order}).fetchall()
    siege.names |= {row["oid"]: (row["schema_name"], row["name"]) for row in rows}
    there = {row["oid"] for row in rows}
    siege.order = [oid for oid in siege.order if oid in there]


def _stubborn(siege: _Siege, watch: Connection) -> dict[int, Holder]:
    """Find the tables whose holders will not be gone in the time of a fence: not worth a try."""
    found = {
        holder.oid: holder
        for holder in reversed(_holders(siege, watch, siege.order))
        if holder.age > siege.half.total_seconds()
    }
    siege.holders |= found
    return found


def _holders(siege: _Siege, watch: Connection, oids: list[int]) -> list[Holder]:
    parameters = {"database": siege.source.database_oid, "oids": oids}
    rows = watch.execute(query("drill_source", "holders"), parameters)
    return [Holder.model_validate(row) for row in rows]


def _refusal(siege: _Siege) -> PreconditionFailed:
    told = "; ".join(str(holder) for holder in list(siege.holders.values())[:5])
    reasons = sorted({doubt.reason for doubt in siege.doubts} - {told})
    return PreconditionFailed(
        f"no fence in database '{siege.source.database}' in {siege.attempts} attempts, in which writers "
        f"waited at most {siege.waited * 1000:.0f} ms: {told or '; '.join(reasons[:3]) or 'busy writers'}",
        hint="drill when those have ended, or raise drill.fence or drill.fence_for, or name a drill.standby",
    )


def _attempt(siege: _Siege, snapshot: Connection, watch: Connection) -> dict[str, Any] | None:
    """Lock, take snapshot and restore point, let go; None when a lock could not be had in time.

    `moved` of the row are the relations that may have changed between the two, by OID.
    """
    siege.attempts += 1
    name = _restore_point(siege)
    snapshot.execute("ROLLBACK")
    set_timeout(snapshot, "statement_timeout", siege.half)
    try:
        with siege.source.connect() as locker:
            _bound(locker, siege)
            siege.beside = [each for each in siege.beside if each.lock()]
            locker.execute("BEGIN")
            snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            row = _fence(siege, locker, snapshot, watch, name)
    except DatabaseFailed as error:
        siege.beside = [each for each in siege.beside if each.let_go()]
        if error.sqlstate not in _MISSES:
            raise
        return None
    siege.beside = [each for each in siege.beside if each.take()]
    set_timeout(snapshot, "statement_timeout", postgres.STATEMENT_TIMEOUT)
    return {**row, "name": name, "moved": siege.told_by(moved(snapshot, row["reach"]))}


def _restore_point(siege: _Siege) -> str:
    """Name the restore point once and never again: recovery stops at the first of a name."""
    run = siege.source.application_name.split()[-1][:8]
    return f"pgvigil {run} {siege.source.database_oid}.{secrets.token_hex(8)}"


def _bound(locker: Connection, siege: _Siege) -> None:
    for timeout in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"):
        set_timeout(locker, timeout, siege.half)


def _fence(
    siege: _Siege, locker: Connection, snapshot: Connection, watch: Connection, name: str
) -> dict[str, Any]:
    """Hold the fence as short as can be; its end proves that it was held until then."""
    lock = partial(_fence_of(siege).take, locker)
    point = {"name": name}
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        try:
            _await_locks(siege, pool.submit(lock), watch, locker)
            row = ask(snapshot, query("drill_source", "fenced"), point)
            locker.execute("ROLLBACK")
        finally:
            siege.waited = max(siege.waited, time.monotonic() - began)
    return row


def _fence_of(siege: _Siege) -> Fence:
    return Fence(*_lock_statement(siege), frozenset(siege.order), tuple(siege.doubts))


def _lock_statement(siege: _Siege) -> tuple[sql.SQL | sql.Composed, dict[str, Any] | None]:
    if siege.is_helped:
        return sql.SQL(query("drill_source", "fence")), {"oids": siege.order}
    tables = [sql.SQL("ONLY ") + sql.Identifier(*siege.names[oid]) for oid in siege.order]
    return sql.SQL("LOCK TABLE {} IN SHARE MODE").format(sql.SQL(", ").join(tables)), None


def _await_locks(siege: _Siege, locking: Future[Any], watch: Connection, locker: Connection) -> None:
    """Wait for the locks, and look meanwhile which table is waited for: the next attempt begins with it.

    Where holder and fence wait for each other, no time is lost on it: the fence gives way at once.
    """
    pid = {"pid": locker.info.backend_pid}
    while not wait([locking], timeout=_LOOK).done:
        row = ask(watch, query("drill_source", "awaited"), pid)
        if not row or row["oid"] not in siege.order:  # another one has the name by now
            continue
        siege.order.remove(row["oid"])
        siege.order.insert(0, row["oid"])
        siege.holders |= {each.oid: each for each in reversed(_holders(siege, watch, [row["oid"]]))}
        if row["is_mutual"]:
            siege.mutual[row["oid"]] += 1
            locker.cancel_safe()
            break
    locking.result()


def _late_doubts(siege: _Siege, inventory: Inventory, changed: set[int]) -> Iterator[Doubt]:
    """Doubt what appeared while the fence was made, and what changed in it though it could not be held."""
    known = siege.aside | set(siege.order)
    for listed in inventory.tables:
        oid = listed.table.oid
        if oid in changed:
            reason = _REFRESHED if listed.is_view else _UNLINKED
            yield Doubt(oid=oid, relation=str(listed.table), reason=reason)
        elif not listed.is_view and oid not in known:
            yield Doubt(oid=oid, relation=str(listed.table), reason=_NEW)
