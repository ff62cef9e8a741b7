"""A mark without cost for writers: the replay of a standby is held while a snapshot is taken there.

Between two records of WAL a standby shows exactly the commits before that place. The hold runs inside the
standby, for two seconds at most, so that it ends also when this process is killed.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill.point import Point, Source, ask, export, exporter, held, read_source
from pgvigil.errors import PreconditionFailed
from pgvigil.postgres import sql
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.drill.around import Around
    from pgvigil.postgres import Connection

_HOLD = 2.0  # seconds; the SQL block `pause` says the same


@contextmanager
def from_standby(
    primary: Source, beside: Sequence[Source] = (), around: Around | None = None
) -> Iterator[Point]:
    """Fix the point that the standby of the policy has replayed to, and hold its snapshot in each database.

    Raises PreconditionFailed for what is no standby of this primary, or whose replay is held by somebody
    else or does not stop in time.
    """
    source = _find(primary)
    with ExitStack() as stack, source.connect() as pauser, source.connect() as watch:
        everywhere = [source, *map(_find, beside[: source.allowance])]
        sessions = [(each, stack.enter_context(exporter(each))) for each in everywhere]
        _require_replaying(watch, source)
        if around:
            around.before(everywhere)
        with _paused(pauser, watch, source):
            _await_pause(watch, source)
            exported = [export(each) for _, each in sessions]
            replay = ask(watch, query("drill_source", "replay"))
            _require_paused(replay, source)
        points = [
            held("standby", replay["lsn"], *session, taken)
            for session, taken in zip(sessions, exported, strict=True)
        ]
        yield replace(points[0], beside=tuple(points[1:]))


def _find(primary: Source) -> Source:
    if primary.policy.standby is None:
        raise PreconditionFailed(
            "the fleet file names no standby", hint="set drill.standby to a standby's dsn"
        )
    dsn = postgres.in_database(primary.policy.standby, primary.database)
    source = read_source(dsn, primary.application_name, primary.policy)
    if source.system_id != primary.system_id or not source.in_recovery:
        raise PreconditionFailed(
            f"{postgres.describe(dsn)} is no standby of system {primary.system_id}: it is "
            f"{'a standby' if source.in_recovery else 'a primary'} of system {source.system_id}",
            hint="correct drill.standby in the fleet file",
        )
    return source


def _require_replaying(watch: Connection, source: Source) -> None:
    state = ask(watch, query("drill_source", "replay"))["state"]
    if state != "not paused":
        raise PreconditionFailed(
            f"the replay of {postgres.describe(source.dsn)} is held already: {state}",
            hint="if nobody needs that, run SELECT pg_wal_replay_resume() there; a drill takes 2 s",
        )


@contextmanager
def _paused(pauser: Connection, watch: Connection, source: Source) -> Iterator[None]:
    """Hold the replay during the block; the server itself ends a hold that nobody ends."""
    key = watch.info.backend_pid
    hold = sql.SQL(query("drill_source", "pause")).format(
        database=sql.Literal(source.database_oid), key=sql.Literal(key)
    )
    with ThreadPoolExecutor(max_workers=1) as pool:
        holding = pool.submit(pauser.execute, hold)
        try:
            yield
        finally:
            watch.execute(query("drill_source", "release_pause"), {"key": key})
            holding.result()


def _await_pause(watch: Connection, source: Source) -> None:
    deadline = time.monotonic() + _HOLD
    while (replay := ask(watch, query("drill_source", "replay")))["state"] != "paused":
        if time.monotonic() > deadline:
            _require_paused(replay, source)
        time.sleep(0.002)


def _require_paused(replay: dict[str, Any], source: Source) -> None:
    if replay["state"] != "paused":
        raise PreconditionFailed(
            f"the replay of {postgres.describe(source.dsn)} did not stay held: {replay['state']}",
            hint="a query there that conflicts with the replay delays it; drill again when that has ended",
        )
