"""One run at a time per stanza or table, across flows and hosts: a session lock in the cluster itself.

The lock dies with its session, so a dead owner's lock does not outlive it: at once when the process
dies, after a minute of TCP keepalives when its host vanishes.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.errors import Busy, DatabaseFailed
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta

LOCK_NOT_AVAILABLE = "55P03"


class HeldLock:
    """A held lock; `check` before every step that changes something."""

    def __init__(self, connection: postgres.Connection, dsn: str, what: str, key: int) -> None:
        self.connection = connection
        self.dsn = dsn
        self.what = what
        self.key = key

    def check(self) -> None:
        """Raise Busy when the session that holds the lock is gone, for then another run may have begun."""
        try:
            with postgres.translated(self.dsn):
                row = self.connection.execute(query("cluster", "holds_lock"), {"key": self.key}).fetchone()
        except DatabaseFailed as error:
            raise Busy(
                f"the lock on {self.what} is lost: {error.message}",
                hint="the server restarted or failed over; the next run starts anew",
            ) from error
        if not row or not row["held"]:
            raise Busy(f"the lock on {self.what} is lost", hint="the next run starts anew")


def lock_key(what: str) -> int:
    """Return the advisory lock key of a thing: positive, so that pg_locks shows it in two plain halves."""
    return int.from_bytes(hashlib.sha256(f"pgvigil {what}".encode()).digest()[:8]) >> 1


@contextmanager
def hold_stanza(dsn: str, stanza: str, application_name: str, wait: timedelta) -> Iterator[HeldLock]:
    """Hold the stanza's lock for the block; raises Busy, naming the owner, when `wait` is over."""
    with hold(dsn, f"stanza '{stanza}'", application_name, wait) as held:
        yield held


@contextmanager
def hold(
    dsn: str, what: str, application_name: str, wait: timedelta, *, identity: str = ""
) -> Iterator[HeldLock]:
    """Hold the lock of a thing, named as messages call it; raises Busy, naming the owner.

    The lock is kept in the database of `dsn` and known there alone. What has more than one name is told apart
    by its `identity`.
    """
    with postgres.connect(dsn, application_name, statement_timeout=wait * 2, lock_timeout=wait) as connection:
        key = {"key": lock_key(identity or what)}
        try:
            with postgres.translated(dsn):
                connection.execute(query("cluster", "take_lock"), key)
        except DatabaseFailed as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                raise
            raise Busy(
                f"{what} is held by {_owner(connection, key)}; waited {wait.total_seconds():g} s",
                hint="wait for it to end, or end it; its lock goes with its session",
            ) from error
        yield HeldLock(connection, dsn, what, key["key"])


def _owner(connection: postgres.Connection, key: dict[str, int]) -> str:
    row = connection.execute(query("cluster", "lock_owner"), key).fetchone()
    if row is None:
        return "a session that has just ended"
    since = row["backend_start"].strftime("%Y-%m-%d %H:%M:%S UTC") if row["backend_start"] else "unknown"
    return (
        f"'{row['application_name']}' (role {row['usename']}, from {row['client'] or 'a local socket'}, "
        f"server pid {row['pid']}, since {since})"
    )
