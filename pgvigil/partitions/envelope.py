"""Trying for a lock without making anybody wait longer than the bound, and saying who holds it up."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from pgvigil.errors import Busy, DatabaseFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.postgres import milliseconds, translated
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgvigil.policies.partitions import PartitionPolicy
    from pgvigil.postgres import Connection

Result = TypeVar("Result")

CANCELED = "57014"
_DEADLOCK = "40P01"
_PASSING = frozenset({LOCK_NOT_AVAILABLE, _DEADLOCK})
WAITED = _PASSING | {CANCELED}  # how what waits for a lock may end
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BUDGET = 10
_LEAST = timedelta(milliseconds=1)  # to the server, none is for ever


def bounded(session: Connection, dsn: str, policy: PartitionPolicy, action: Callable[[], Result]) -> Result:
    """Do a short action that takes strong locks; raises DatabaseFailed when it could not be done.

    A statement waits for its locks at most half of `policy.block` and is ended at `policy.block`, whatever
    it does. Waiting is tried again until `policy.wait` is over, while all tries together took less than ten
    times `policy.block`; in between, whoever was kept waiting goes first. What got its locks and ran out of
    time is undone and not tried again.
    """
    spread = policy.wait / (policy.block * BUDGET)
    began, spent = time.monotonic(), 0.0
    _limit(session, policy.block / 2, policy.block)
    pauses = iter(_PAUSES)
    while True:
        tried = time.monotonic()
        try:
            with translated(dsn):
                return action()
        except DatabaseFailed as error:
            took = time.monotonic() - tried
            spent += took
            left = policy.wait.total_seconds() - (time.monotonic() - began)
            if error.sqlstate not in _PASSING or left <= 0 or spent >= _seconds(policy.block * BUDGET):
                raise
        time.sleep(min(left, max(next(pauses, _PAUSES[-1]), took * spread)))


def hasten(session: Connection, policy: PartitionPolicy, began: float) -> None:
    """Leave the next statement what is left of `policy.block` since the locks were asked for.

    `began` is a reading of the monotonic clock. Raises DatabaseFailed when nothing is left.
    """
    left = policy.block - timedelta(seconds=time.monotonic() - began)
    if left < _LEAST:
        raise DatabaseFailed(f"it took longer than {policy.block}", sqlstate=CANCELED)
    session.execute("SELECT pg_catalog.set_config('statement_timeout', %s, true)", (milliseconds(left),))


def is_quick(policy: PartitionPolicy, look: Callable[[], object]) -> bool:
    """Tell whether what is to be done again under strong locks takes a quarter of `policy.block` at most.

    The second look counts, for which the first has warmed the caches.
    """
    limit = _seconds(policy.block / 4)
    return _timed(look) <= limit or _timed(look) <= limit


def _timed(look: Callable[[], object]) -> float:
    began = time.monotonic()
    look()
    return time.monotonic() - began


def _seconds(span: timedelta) -> float:
    return span.total_seconds()


def _limit(session: Connection, lock: timedelta, statement: timedelta) -> None:
    for name, span in (("lock_timeout", lock), ("statement_timeout", statement)):
        told = milliseconds(max(span, _LEAST))
        session.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, told))


def unlimited(session: Connection, policy: PartitionPolicy) -> None:
    """Let the session's next statements work as long as the policy lets one copy take."""
    _limit(session, policy.block, policy.deadline)


def explain_wait(session: Connection, error: DatabaseFailed, oids: Sequence[int], what: str) -> Busy:
    """Name who holds the relations, or a snapshot that is too old; or say that time ran out."""
    if error.sqlstate == CANCELED:
        return Busy(
            f"{what} was not done within 'block', so it was undone and nobody waited longer: {error.message}",
            hint="run once with a longer 'block' while few people work",
            sqlstate=error.sqlstate,
        )
    holders = session.execute(query("partitions", "lockers"), {"oids": list(oids), "older": "0"}).fetchall()
    holders = holders or session.execute(query("partitions", "elders"), {"older": "0"}).fetchall()
    told = [tell(row) for row in holders[:3]]
    return Busy(
        f"{what} did not get its lock: {'; '.join(told) or error.message}",
        hint="wait for these sessions or end them; the next run goes on from here",
        sqlstate=error.sqlstate,
    )


def tell(row: dict[str, object]) -> str:
    """Say who somebody is, for how long, and what they do."""
    seconds = row["seconds"]
    age = f"{float(str(seconds)):.0f} s" if seconds is not None else "unknown age"
    name = f" '{row['application_name']}'" if row["application_name"] else ""
    who = "prepared transaction" if row["pid"] is None else f"pid {row['pid']}"
    return f"{who}{name} ({row['usename']}, {row['state']}) for {age}: {row['query']}"
