"""Databases at rest that share the fence of another one, so that recovery needs no stop of its own for each.

Each is locked before that fence is tried and let go after it, and its snapshot is taken under these locks: so
the fence's restore point belongs to it, too. Where that would make anybody wait, a database leaves and gets a
mark of its own.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill.point import Point, ask, export, exporter, set_timeout
from pgvigil.drill.tables import list_marked
from pgvigil.errors import DatabaseFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.drill.point import Source
    from pgvigil.drill.tables import Doubt
    from pgvigil.postgres import Connection, sql

SESSIONS = 2  # that a neighbour has open
_GLANCE = timedelta(milliseconds=10)  # for one lock: at rest it is free
_SHARE_OF_FENCE = 4  # all locks of a database may take this part, 1/n, of the bound: its machine may be busy


@dataclass(frozen=True)
class Fence:
    """What locks a database: a statement, the tables it locks, and what is said of those it cannot."""

    statement: sql.SQL | sql.Composed
    parameters: dict[str, Any] | None
    oids: frozenset[int]
    doubts: tuple[Doubt, ...]

    def take(self, locker: Connection) -> None:
        """Lock the tables in the session's transaction; raises DatabaseFailed where one is not held then.

        Tables are locked by their names, which can lead to others when the wait for them is over.
        """
        locker.execute(self.statement, self.parameters)
        others = locker.execute(query("drill_source", "unheld"), {"oids": [*self.oids]}).fetchall()
        if others:
            names = ", ".join(row["relation"] for row in others)
            raise DatabaseFailed(
                f"the fence holds other tables than {names}, which had another name before",
                hint="drill again when nobody renames tables",
                sqlstate=LOCK_NOT_AVAILABLE,
            )


@dataclass
class Neighbour:
    """A database that shares a fence: a session that will hold its snapshot, and one for its locks.

    Each step returns False when the database must leave: a mark of its own then tells what is wrong.
    """

    source: Source
    snapshot: Connection
    locker: Connection
    fence: Fence
    exported: dict[str, Any] = field(default_factory=dict)
    waited: float = 0.0
    _locked_at: float = 0.0

    def lock(self) -> bool:
        """Lock its tables, if they are free, and take the snapshot under the locks."""
        with self._tried():
            self.snapshot.execute("ROLLBACK")
            self.locker.execute("BEGIN")
            self._locked_at = time.monotonic()
            self.fence.take(self.locker)
            self.exported = export(self.snapshot)
            return True
        return False

    def take(self) -> bool:
        """Let the tables go: that the locks are still there proves the snapshot, and nothing else moved."""
        with self._tried():
            reach = ask(self.snapshot, query("drill_source", "reach"))["reach"]
            return self.let_go() and not moved(self.snapshot, reach)
        return False

    def let_go(self) -> bool:
        """Let its tables go."""
        with self._tried():
            self.locker.execute("ROLLBACK")
            self.waited = max(self.waited, time.monotonic() - self._locked_at)
            return True
        return False

    def point(self, shared: Point) -> Point | None:
        """Return the shared point as this database's; None where something in it cannot be fenced."""
        inventory = list_marked(self.snapshot, self.source.database)
        fenced = self.fence.oids | {doubt.oid for doubt in self.fence.doubts}
        if any(each.is_view or each.table.oid not in fenced for each in inventory.tables):
            return None
        return Point(
            method=shared.method,
            lsn=shared.lsn,
            name=shared.name,
            at=shared.at,
            snapshot=self.exported["snapshot"],
            waited_ms=self.waited * 1000,
            attempts=shared.attempts,
            doubts=self.fence.doubts,
            source=self.source,
            inventory=inventory,
        )

    @contextmanager
    def _tried(self) -> Iterator[None]:
        with suppress(DatabaseFailed), postgres.translated(self.source.dsn):
            yield


def moved(snapshot: Connection, reach: int) -> set[int]:
    """Tell what no lock holds and may have changed since the session's snapshot, by OID.

    `reach` counts the transactions from the snapshot's oldest on that had begun by the restore point.
    """
    return {row["oid"] for row in snapshot.execute(query("drill_source", "moved"), {"reach": reach})}


@contextmanager
def bounded(source: Source) -> Iterator[tuple[Connection, Connection]]:
    """Open the two sessions of a neighbour; the server itself ends what they hold when the bound is over."""
    locking = source.policy.fence / _SHARE_OF_FENCE
    with exporter(source) as snapshot, source.connect() as locker:
        set_timeout(locker, "lock_timeout", _GLANCE)
        set_timeout(locker, "statement_timeout", locking)
        set_timeout(locker, "idle_in_transaction_session_timeout", source.policy.fence - locking)
        try:
            yield snapshot, locker
        finally:
            locker.close()  # not ended by a COMMIT, which the server may have come before
