"""The measured RPO: a commit of our own, a WAL switch, and the time until each repository holds it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import Field

from pgvigil import postgres
from pgvigil.reports import Frozen
from pgvigil.sql import query
from pgvigil.wal.server import read_server

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import timedelta

_POLL = 0.2
_GIVE_UP_AFTER = 2.0  # seconds that a segment may be invisible after the server counted it archived


class Beat(Frozen):
    """A commit that was made to be measured, and after how many seconds each repository held it."""

    segment: str
    committed_at: datetime
    latency: dict[int, float] = Field(default_factory=dict)
    waited: float = 0.0


def commit(dsn: str, application_name: str, mark: str) -> Beat:
    """Commit a mark and end its segment; raises DatabaseFailed where that is not granted."""
    with postgres.connect(dsn, application_name) as connection:
        connection.execute(query("wal", "heartbeat"), {"mark": mark})
        row = connection.execute(query("wal", "end_segment")).fetchone() or {}
    return Beat(segment=row["segment"], committed_at=row["committed_at"])


def await_arrival(
    beat: Beat,
    look: Mapping[int, Callable[[str], bool]],
    is_hopeless: Callable[[], bool],
    patience: timedelta,
) -> Beat:
    """Look until every repository holds the segment, the wait is over, or it cannot come any more."""
    began = time.monotonic()
    latency: dict[int, float] = {}
    while True:
        for repo, holds in look.items():
            if repo not in latency and holds(beat.segment):
                latency[repo] = time.monotonic() - began
        waited = time.monotonic() - began
        is_over = waited > patience.total_seconds() or (waited > _GIVE_UP_AFTER and is_hopeless())
        if len(latency) == len(look) or is_over:
            return beat.model_copy(update={"latency": latency, "waited": waited})
        time.sleep(_POLL)


def is_hopeless(dsn: str, application_name: str, segment: str) -> bool:
    """Tell whether the server will not send the segment soon: archived as it believes, or failing."""
    server = read_server(dsn, application_name)
    return server.archiver_fails or (server.last_archived_wal or "") >= segment
