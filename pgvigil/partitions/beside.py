"""The DEFAULT partition beside a new one: what it has of that range, and the proof that it has nothing.

ATTACH looks through all of DEFAULT while everybody waits for it, unless a validated CHECK says that there is
no row of the range. Such a CHECK keeps new ones out as well, so it is made only where the look would take
too long, and where there is none to begin with.
"""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from psycopg import sql

from pgvigil.errors import Busy, DatabaseFailed, PgvigilError
from pgvigil.partitions.envelope import WAITED, bounded, explain_wait, is_quick, tell, unlimited
from pgvigil.postgres import translated
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection

EMPTY = "pgvigil_empty"
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Default:
    """The DEFAULT partition of a table, and how many rows of one range it had when it was looked through."""

    oid: int
    table: sql.Identifier
    condition: sql.Composable
    rows: int
    is_quick: bool


def look(session: Connection, policy: PartitionPolicy, oid: int, condition: sql.Composable) -> Default:
    """Look through DEFAULT as ATTACH does, while nobody waits."""
    table = _table(session, oid)
    counted: list[int] = []
    unlimited(session, policy)
    quick = is_quick(policy, lambda: counted.append(_count(session, table, condition)))
    return Default(oid, table, condition, counted[-1], quick)


def _table(session: Connection, oid: int) -> sql.Identifier:
    row = session.execute(query("partitions", "standing"), {"oid": oid}).fetchall()[0]
    return sql.Identifier(row["schema"], row["name"])


def _count(session: Connection, table: sql.Identifier, condition: sql.Composable) -> int:
    with session.transaction():
        session.execute(
            "SELECT set_config(name, value, true) FROM (VALUES ('row_security', 'off'), ('enable_indexscan',"
            " 'off'), ('enable_indexonlyscan', 'off'), ('enable_bitmapscan', 'off'),"
            " ('max_parallel_workers_per_gather', '0')) AS setting (name, value)"
        )
        statement = sql.SQL("SELECT count(*) AS rows FROM {} WHERE {}").format(table, condition)
        return int(session.execute(statement).fetchall()[0]["rows"])


@contextmanager
def proven(session: Connection, dsn: str, policy: PartitionPolicy, default: Default) -> Iterator[None]:
    """Let the block attach without a long look through DEFAULT; raises DatabaseFailed where rows came in.

    Meanwhile nobody can write rows of the range. What a kill leaves of the CHECK, `forget` takes away. Raises
    Busy when it stays though the block failed, for it goes on keeping rows out.
    """
    if default.is_quick:
        yield
        return
    forget(session, dsn, policy, default.oid)
    add = sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK (NOT ({})) NOT VALID").format(
        default.table, sql.Identifier(EMPTY), default.condition
    )
    bounded(session, dsn, policy, partial(session.execute, add))
    try:
        unlimited(session, policy)
        with translated(dsn):
            session.execute(
                sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(default.table, sql.Identifier(EMPTY))
            )
        yield
    except BaseException:
        with translated(dsn):
            forget(session, dsn, policy, default.oid)
        raise
    with suppress(PgvigilError), translated(dsn):  # what it keeps out of DEFAULT has its partition now
        forget(session, dsn, policy, default.oid)


def forget(session: Connection, dsn: str, policy: PartitionPolicy, oid: int) -> None:
    """Take the CHECK off DEFAULT, which keeps rows out; raises Busy, naming who is in the way. Idempotent."""
    asked = {"oid": oid, "name": EMPTY}
    if not session.execute(query("partitions", "own_check"), asked).fetchone():
        return
    drop = sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(_table(session, oid), sql.Identifier(EMPTY))
    try:
        bounded(session, dsn, policy, partial(session.execute, drop))
    except DatabaseFailed as error:
        if error.sqlstate not in WAITED:
            raise
        what = (
            f"to take the CHECK '{EMPTY}' off DEFAULT, which until then refuses rows that have no partition,"
        )
        raise explain_wait(session, error, [oid], what) from error


# --- who would not see the rows that moved ------------------------------------------------------------


def await_readers(session: Connection, policy: PartitionPolicy, what: str) -> None:
    """Wait for all snapshots that are older than this moment; raises Busy, naming who holds them.

    After a move the table looks for the range in its new partition alone, where an older snapshot sees no
    row, and in DEFAULT it is not looked for any more.
    """
    held = readers(session, time.monotonic() + policy.wait.total_seconds())
    if held:
        told = "; ".join(tell(row) for row in held[:3])
        raise Busy(
            f"{what} would not be seen by transactions that began before: {told}",
            hint="wait for these sessions or end them; the next run moves the rows",
        )


def readers(session: Connection, deadline: float) -> list[dict[str, Any]]:
    """Wait for all snapshots that are older than this moment, and return those that are left at the deadline.

    The deadline is a reading of the monotonic clock. Who waits for this session is not counted: it looks
    anew when it goes on.
    """
    now = session.execute("SELECT clock_timestamp() AS now").fetchall()[0]["now"]
    held = _snapshots(session, now)
    while held and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        again = {row["pid"] for row in _snapshots(session, now)}
        held = [row for row in held if row["pid"] in again]
    return held


def _snapshots(session: Connection, before: object) -> list[dict[str, Any]]:
    session.execute("SELECT pg_stat_clear_snapshot()")  # in a transaction, it would be the same picture again
    return session.execute(query("partitions", "snapshots"), {"before": before}).fetchall()
