"""A mark without cost for writers: the snapshot that a new logical slot exports at its consistent point.

The slot is temporary and dropped at once: the snapshot is taken over by a session of our own.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill.point import Point, Source, ask, exporter, held
from pgvigil.errors import PreconditionFailed
from pgvigil.postgres import sql
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.drill.around import Around
    from pgvigil.postgres import Connection

_PATIENCE = timedelta(seconds=60)  # creating a slot waits for every transaction that writes at that time
_SETTLING = 5.0  # seconds in which a commit that is in the WAL must have become visible


@contextmanager
def from_slot(source: Source, _: Sequence[Source] = (), around: Around | None = None) -> Iterator[Point]:
    """Fix the consistent point of a temporary logical slot, and hold its snapshot.

    Its snapshot is one database's alone, so no other one shares the point.
    Raises PreconditionFailed where the server keeps no logical WAL or the role may not replicate, and
    DatabaseFailed when transactions that last too long keep the slot from being made.
    """
    _require_logical(source)
    with exporter(source) as snapshot:
        if around:
            around.before([source])
        deadline = min(_PATIENCE, source.policy.fence_for)
        with postgres.replicate(source.dsn, source.application_name, deadline=deadline) as replication:
            slot = _create(replication)
            snapshot.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            imported = sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(slot["snapshot_name"]))
            snapshot.execute(imported)
            exported = ask(snapshot, query("drill_source", "export"))
        _settle(source, exported["visible"])
        yield held("slot", slot["consistent_point"], source, snapshot, exported)


def _require_logical(source: Source) -> None:
    if source.wal_level != "logical":
        raise PreconditionFailed(
            f"wal_level is {source.wal_level}, a slot needs logical", hint="use drill.mark: fence"
        )
    if not source.may_replicate:
        raise PreconditionFailed(
            f"role '{source.role}' may not make a slot", hint=f'ALTER ROLE "{source.role}" REPLICATION'
        )


def _create(replication: Connection) -> dict[str, Any]:
    name = sql.Identifier(f"pgvigil_{replication.info.backend_pid}")
    command = sql.SQL("CREATE_REPLICATION_SLOT {} TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT")
    return replication.execute(command.format(name)).fetchone() or {}


def _settle(source: Source, visible: str) -> None:
    """Wait until the server itself calls finished what the snapshot calls finished.

    A commit counts for the slot as soon as it is in the WAL, which is a moment before it is in pg_xact;
    who reads a row in that moment takes it for aborted.
    """
    deadline = time.monotonic() + _SETTLING
    with source.connect() as connection:
        while early := _unsettled(ask(connection, query("drill_source", "visible"))["visible"], visible):
            if time.monotonic() > deadline:
                raise PreconditionFailed(
                    f"transactions {sorted(early)} are committed in the WAL and still not visible",
                    hint="look for a synchronous standby that does not answer; drill again after that",
                )
            time.sleep(0.005)


def _unsettled(now: str, marked: str) -> set[int]:
    """Return the transactions that run now and are finished in the marked snapshot."""
    _, end, running = marked.split(":")
    finished_before = int(end)
    return {xid for xid in _xids(now.split(":")[2]) - _xids(running) if xid < finished_before}


def _xids(text: str) -> set[int]:
    return {int(xid) for xid in text.split(",") if xid}
