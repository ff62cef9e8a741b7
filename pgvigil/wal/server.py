"""What the server says of its WAL: where it writes, what it still holds, what it believes archived."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.position import Position, read_position
from pgvigil.reports import Frozen
from pgvigil.sql import query
from pgvigil.wal.names import HISTORY_FILE, SEGMENT_NAME, parse_lsn, segment_number, segment_timeline
from pgvigil.wal.ranges import ranges_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pgvigil.wal.ranges import Range


class Ready(Frozen):
    """A file that waits for the archiver, or that a standby has received."""

    name: str
    since: datetime


class Server(Position):
    """The server at one moment; `ready` was read after the position.

    A standby archives nothing: its `ready` is what it has received, which the primary may still hold.
    `began` is when the server came onto its timeline, None if it does not know.
    """

    ready: tuple[Ready, ...] = ()
    began: datetime | None = None

    @property
    def finished(self) -> int:
        """The number of the last segment that it has finished; -1 when that is not its own to say."""
        return -1 if self.in_recovery else self.complete

    @property
    def complete(self) -> int:
        """The number of the last segment that it has whole, written or received; -1 for none."""
        return -1 if self.lsn is None else parse_lsn(self.lsn) // self.segment_size - 1

    def waits(self, name: str) -> Ready | None:
        """Return a file that waits for the archiver, by its name."""
        return next((item for item in self.ready if item.name == name), None)

    def counts_archived(self, timeline: int, number: int) -> bool:
        """Tell whether it has counted this segment, or a later one of the timeline, as archived."""
        name = (self.last_archived_wal or "")[:24]
        return (
            SEGMENT_NAME.match(name) is not None
            and segment_timeline(name) == timeline
            and segment_number(name, self.segment_size) >= number
        )

    def waiting(self) -> dict[int, list[Range]]:
        """Return the segments that wait for the archiver, by timeline."""
        found: dict[int, list[int]] = {}
        for item in self.ready:
            if SEGMENT_NAME.match(item.name):
                number = segment_number(item.name, self.segment_size)
                found.setdefault(segment_timeline(item.name), []).append(number)
        return {timeline: ranges_of(sorted(numbers)) for timeline, numbers in found.items()}

    def late(self, is_stored: Callable[[int, int], bool], histories: Collection[int]) -> list[Ready]:
        """Return segments and history files that wait and are not in the repository, oldest first."""
        late = (item for item in self.ready if self._is_late(item.name, is_stored, histories))
        return sorted(late, key=lambda item: item.since)

    def _is_late(self, name: str, is_stored: Callable[[int, int], bool], histories: Collection[int]) -> bool:
        if SEGMENT_NAME.match(name):
            return not is_stored(segment_timeline(name), segment_number(name, self.segment_size))
        history = HISTORY_FILE.match(name)
        return bool(history and int(history["timeline"], 16) not in histories)


def read_server(dsn: str, application_name: str) -> Server:
    """Ask for the position first, then for what waits: the other way round, WAL could fall between."""
    with postgres.connect(dsn, application_name) as connection:
        position = read_position(connection)
        ready = connection.execute(
            query("wal", "received" if position["in_recovery"] else "ready")
        ).fetchall()
        history = {"history": f"{position['timeline']:08X}.history"}
        began = connection.execute(query("wal", "began"), history).fetchone() or {}
    server = Server.model_validate({**position, **began, "ready": ready})
    return _as_standby(server) if server.in_recovery else server


def _as_standby(server: Server) -> Server:
    """Leave out the segment that is being received, and files that are kept to be written next."""
    whole = (i for i in server.ready if segment_number(i.name, server.segment_size) <= server.complete)
    return server.model_copy(update={"ready": tuple(whole)})
