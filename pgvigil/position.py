"""Where a server is in its WAL and how its archiver fares: what every pipeline asks first."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from typing import Any

    from pgvigil.postgres import Connection


class Position(Frozen):
    """A server at one moment; `segment_size` in bytes, `lsn` where it writes or, in recovery, receives."""

    now: datetime
    in_recovery: bool
    system_id: int
    timeline: int
    lsn: str | None
    segment_size: int
    archive_mode: str
    last_archived_wal: str | None
    last_archived_time: datetime | None
    last_failed_wal: str | None
    last_failed_time: datetime | None

    @property
    def archiver_fails(self) -> bool:
        """Whether the last attempt to archive failed."""
        failed, archived = self.last_failed_time, self.last_archived_time
        return failed is not None and (archived is None or failed > archived)


def read_position(session: Connection) -> dict[str, Any]:
    """Return the fields of a Position, for it or what extends it."""
    return session.execute(query("cluster", "position")).fetchone() or {}
