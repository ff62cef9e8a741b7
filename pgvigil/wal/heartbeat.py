"""The measured RPO: a commit of our own, a WAL switch, and the time until each repository holds it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from pgvigil import postgres
from pgvigil.reports import Frozen
from pgvigil.sql import query
from pgvigil.wal.content import SegmentHash
from pgvigil.wal.server import read_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import timedelta

_POLL = 0.2
_GIVE_UP_AFTER = 2.0  # seconds that a segment may be invisible after the server counted it archived


class Beat(Frozen):
    """A commit that was made to be measured, and after how many seconds each repository held it.

    `strange` names the repositories in which another segment has the name of the commit's.
    """

    segment: str
    mark: str = ""
    committed_at: datetime
    latency: dict[int, float] = Field(default_factory=dict)
    strange: tuple[int, ...] = ()
    waited: float = 0.0


class Look(NamedTuple):
    """How to look into one repository: the files of a segment, and whether one of them has the mark."""

    files: Callable[[str], Iterable[str]]
    carries: Callable[[str], bool]


class Search(SegmentHash):
    """Looks for a mark in a stored segment, decompressing on the way."""

    def __init__(self, suffix: str, mark: str) -> None:
        super().__init__(suffix)
        self.found = False
        self._mark = mark.encode()
        self._tail = b""

    def _take(self, data: bytes) -> None:
        super()._take(data)
        self.found = self.found or self._mark in self._tail + data
        self._tail = (self._tail + data)[-len(self._mark) :]


def commit(dsn: str, application_name: str, mark: str) -> Beat:
    """Commit a mark and end its segment; raises DatabaseFailed where that is not granted."""
    with postgres.connect(dsn, application_name) as connection:
        connection.execute(query("wal", "heartbeat"), {"mark": mark})
        row = connection.execute(query("wal", "end_segment"), {"mark": mark}).fetchone() or {}
    return Beat(segment=row["segment"], mark=mark, committed_at=row["committed_at"])


def await_arrival(
    beat: Beat, look: Mapping[int, Look], is_hopeless: Callable[[], bool], patience: timedelta
) -> Beat:
    """Look until every repository holds the mark, the wait is over, or it cannot come any more.

    A file that has the segment's name proves nothing: it may be of another server.
    """
    began = time.monotonic()
    latency: dict[int, float] = {}
    strange: dict[int, set[str]] = {repo: set() for repo in look}
    while True:
        for repo in look.keys() - latency.keys():
            for file in set(look[repo].files(beat.segment)) - strange[repo]:
                seen = time.monotonic() - began
                if look[repo].carries(file):
                    latency[repo] = seen
                else:
                    strange[repo].add(file)
        waited = time.monotonic() - began
        is_over = waited > patience.total_seconds() or (waited > _GIVE_UP_AFTER and is_hopeless())
        if len(latency) == len(look) or is_over:
            names = tuple(sorted(repo for repo, files in strange.items() if files))
            return beat.model_copy(update={"latency": latency, "strange": names, "waited": waited})
        time.sleep(_POLL)


def is_hopeless(dsn: str, application_name: str, segment: str) -> bool:
    """Tell whether the server will not send the segment any more: it believes that it is archived."""
    return (read_server(dsn, application_name).last_archived_wal or "")[:24] >= segment
