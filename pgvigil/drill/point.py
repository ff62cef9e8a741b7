"""What the three ways to mark a database have in common: the server they work on and the point they fix."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, LiteralString

from pgvigil import postgres
from pgvigil.drill.digest import pin
from pgvigil.drill.tables import list_marked
from pgvigil.policies.drill import DrillPolicy
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from pgvigil.drill.facts import MarkMethod
    from pgvigil.drill.tables import Doubt, Inventory
    from pgvigil.postgres import Connection

_SHARE_OF_SESSIONS = 4  # a mark takes at most this part, 1/n, of the server's spare connections


class Source(Frozen):
    """The database to be marked, or `only` these of its tables, and what its server says of itself."""

    dsn: str
    application_name: str
    policy: DrillPolicy
    database: str
    database_oid: int
    role: str
    system_id: str
    in_recovery: bool
    wal_level: str
    may_replicate: bool
    deadlock_timeout: timedelta
    spare: int
    only: frozenset[int] | None = None

    @property
    def allowance(self) -> int:
        """How many sessions a mark may open for neighbours: users need the others."""
        return max(self.spare, 0) // _SHARE_OF_SESSIONS

    def connect(self) -> AbstractContextManager[Connection]:
        """Open a session in the database."""
        return postgres.connect(self.dsn, self.application_name)


@dataclass(frozen=True)
class Point:
    """A fixed point: the LSN, and an open transaction with the snapshot that is exactly the content there.

    `beside` is the same point for other databases.
    """

    method: MarkMethod
    lsn: str
    snapshot: str
    at: datetime
    source: Source
    inventory: Inventory
    name: str | None = None
    waited_ms: float = 0.0
    attempts: int = 1
    doubts: tuple[Doubt, ...] = ()
    contended: frozenset[int] = frozenset()
    beside: tuple[Point, ...] = ()


def read_source(dsn: str, application_name: str, policy: DrillPolicy) -> Source:
    """Ask a server who and what it is; raises DatabaseFailed."""
    with postgres.connect(dsn, application_name) as connection:
        row = ask(connection, query("drill_source", "server"))
    deadlock = timedelta(milliseconds=row.pop("deadlock_ms"))
    return Source(dsn=dsn, application_name=application_name, policy=policy, deadlock_timeout=deadlock, **row)


def export(snapshot: Connection) -> dict[str, Any]:
    """Take a snapshot in the session that holds it, and return its name, the time, and what it shows."""
    snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    return ask(snapshot, query("drill_source", "export"))


def held(
    method: MarkMethod, lsn: str, source: Source, snapshot: Connection, exported: dict[str, Any]
) -> Point:
    """Return the point of a snapshot that needed no fence, with what the database holds there."""
    return Point(
        method=method,
        lsn=lsn,
        snapshot=exported["snapshot"],
        at=exported["at"],
        source=source,
        inventory=list_marked(snapshot, source.database),
    )


@contextmanager
def exporter(source: Source) -> Iterator[Connection]:
    """Open the session that is to hold the snapshot; the server ends it when hash_for is over."""
    with source.connect() as connection:
        pin(connection)
        set_timeout(connection, "idle_in_transaction_session_timeout", source.policy.hash_for)
        try:
            yield connection
        finally:
            connection.close()  # not ended by a COMMIT, which the server may have come before


def set_timeout(connection: Connection, name: str, span: timedelta) -> None:
    """Set one of the session's timeouts, to a millisecond at least: 0 would mean none."""
    value = max(int(span.total_seconds() * 1000), 1)
    connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))


def ask(
    connection: Connection, statement: LiteralString, parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run a statement that gives one row, and return it; without a row, nothing."""
    return connection.execute(statement, parameters).fetchone() or {}
