"""Trying for a lock without making anybody wait longer than the bound, and saying who holds it up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from pgvigil.errors import Busy, DatabaseFailed
from pgvigil.postgres import milliseconds, translated
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection

Result = TypeVar("Result")

LOCK_TIMEOUT = "55P03"
CANCELED = "57014"
DEADLOCK = "40P01"
_PASSING = frozenset({LOCK_TIMEOUT, CANCELED, DEADLOCK})
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def bounded(session: Connection, dsn: str, policy: PartitionPolicy, action: Callable[[], Result]) -> Result:
    """Do a short action that takes strong locks, again and again until `policy.wait` is over.

    Each try waits for locks at most `policy.block`, and works at most ten times as long; between tries
    whoever was kept waiting goes first. Raises Busy, naming who holds it up, or the action's own error.
    """
    deadline = time.monotonic() + policy.wait.total_seconds()
    _limit(session, policy.block, policy.block * 10)
    pauses = iter(_PAUSES)
    while True:
        try:
            with translated(dsn):
                return action()
        except DatabaseFailed as error:
            if error.sqlstate not in _PASSING or time.monotonic() >= deadline:
                raise
        time.sleep(next(pauses, _PAUSES[-1]))


def _limit(session: Connection, lock: timedelta, statement: timedelta) -> None:
    for name, span in (("lock_timeout", lock), ("statement_timeout", statement)):
        session.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, milliseconds(span)))


def unlimited(session: Connection, policy: PartitionPolicy) -> None:
    """Let the session's next statements work as long as the policy lets one copy take."""
    _limit(session, policy.block, policy.deadline)


def explain_wait(session: Connection, error: DatabaseFailed, oids: Sequence[int], what: str) -> Busy:
    """Name who holds the relations, or a snapshot that is too old."""
    holders = session.execute(query("partitions", "lockers"), {"oids": list(oids), "older": "0"}).fetchall()
    holders = holders or session.execute(query("partitions", "elders"), {"older": "0"}).fetchall()
    told = [_tell(row) for row in holders[:3]]
    return Busy(
        f"{what} did not get its lock: {'; '.join(told) or error.message}",
        hint="wait for these sessions or end them; the next run goes on from here",
        sqlstate=error.sqlstate,
    )


def _tell(row: dict[str, object]) -> str:
    seconds = row["seconds"]
    age = f"{float(str(seconds)):.0f} s" if seconds is not None else "unknown age"
    name = f" '{row['application_name']}'" if row["application_name"] else ""
    who = "prepared transaction" if row["pid"] is None else f"pid {row['pid']}"
    return f"{who}{name} ({row['usename']}, {row['state']}) for {age}: {row['query']}"
