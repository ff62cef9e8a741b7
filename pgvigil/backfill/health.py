"""What the database suffers: its signals, and the rule by which they slow and stop a backfill.

A signal stops the work above its limit and lets it go on below 70 % of it, so that nothing flutters; in
between it slows. A signal that cannot be read keeps its last word for a few tries and then stops the work.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from pgvigil.backfill.session import Bounds
from pgvigil.errors import DatabaseFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgvigil.backfill.session import Session
    from pgvigil.policies.backfills import Limits
    from pgvigil.postgres import Connection

RELEASE = 0.7
_MB = 2**20


class Level(IntEnum):
    """What a signal asks for, gentlest first."""

    GO = 0
    SLOW = 1
    STOP = 2


class Reading(Frozen):
    """One signal's value against its limit, in the same unit."""

    name: str
    value: float
    limit: float
    text: str


class Gauge:
    """The memory of one signal."""

    def __init__(self) -> None:
        self.level = Level.GO
        self.text = ""
        self._unread = 0

    def read(self, reading: Reading) -> Level:
        """Take a value: above the limit stop, until it is below 70 % of it; in between slow."""
        self._unread = 0
        self.text = reading.text
        if reading.value > reading.limit:
            self.level = Level.STOP
        elif reading.value <= reading.limit * RELEASE:
            self.level = Level.GO
        elif self.level is Level.GO:
            self.level = Level.SLOW
        return self.level

    def miss(self, tries: int, why: str) -> Level:
        """Note that it could not be read; so often in a row, that is a stop."""
        self._unread += 1
        if self._unread >= tries:
            self.level, self.text = Level.STOP, f"cannot be read: {why}"
        return self.level


class Health:
    """All signals of one run; `look` reads them, `level` and `reason` say what they ask for."""

    def __init__(self, limits: Limits, application: str, relations: list[int]) -> None:
        self.limits = limits
        self.application = application
        self.relations = relations
        self.since: datetime | None = None
        self.victims = 0
        self._gauges: dict[str, Gauge] = {}
        self._marks: deque[tuple[int, datetime]] = deque(maxlen=3600)

    @property
    def level(self) -> Level:
        """The strongest that any signal asks for."""
        return max((gauge.level for gauge in self._gauges.values()), default=Level.GO)

    @property
    def reason(self) -> str:
        """Say which signals ask for more than going on."""
        worst = self.level
        if worst is Level.GO:
            return ""
        return "; ".join(f"{n}: {g.text}" for n, g in self._gauges.items() if g.level is worst)

    def mark(self, lsn: int, at: datetime) -> None:
        """Remember when we committed at which LSN: a standby's lag is the age of the newest that it has."""
        self._marks.append((lsn, at))

    def look(self, session: Session) -> Level:
        """Read every signal, each in a transaction of its own; what cannot be read is noted, not raised."""
        before = self.level
        seen: set[str] = set()
        for source, read in self._sources():
            try:
                with session.transaction(Bounds()) as connection:
                    readings = list(read(connection))
            except DatabaseFailed as error:
                seen |= self._miss(source, error)
                continue
            for reading in readings:
                seen.add(f"{source}{reading.name}")
                self._gauges.setdefault(f"{source}{reading.name}", Gauge()).read(reading)
        for gone in self._gauges.keys() - seen:
            del self._gauges[gone]  # a standby or slot that was removed
        if self.level is not before or self.level is Level.GO:
            self.since = datetime.now(UTC) if self.level is not Level.GO else None
        return self.level

    def _miss(self, source: str, error: DatabaseFailed) -> set[str]:
        names = {name for name in self._gauges if name.startswith(source)} or {source}
        for name in names:
            self._gauges.setdefault(name, Gauge()).miss(self.limits.tries, error.message)
        return names

    def _sources(self) -> Iterator[tuple[str, Callable[[Connection], Iterator[Reading]]]]:
        yield "replication", self._standbys
        yield "slot", self._slots
        yield "WAL archive", self._archive
        yield "lock waits", self._victims
        yield "oldest transaction", self._oldest
        if self.limits.yield_to_autovacuum:
            yield "autovacuum", self._autovacuum
        yield "connections", self._connections
        for signal in self.limits.signals:
            yield f"signal {signal.name}", _ask(signal.sql, signal.most)

    def _standbys(self, connection: Connection) -> Iterator[Reading]:
        now = datetime.now(UTC)
        for row in _rows(connection, "standbys"):
            mb = float(row["bytes"]) / _MB
            yield Reading(
                name=f" to {row['name']}",
                value=mb,
                limit=self.limits.replication_mb,
                text=f"{mb:.0f} MB behind (limit {self.limits.replication_mb:g})",
            )
            age, most = self._age(int(row["lsn"]), now), self.limits.replication_lag.total_seconds()
            yield Reading(
                name=f" lag of {row['name']}",
                value=age,
                limit=most,
                text=f"{age:.0f} s behind (limit {most:g} s)",
            )

    def _age(self, lsn: int, now: datetime) -> float:
        """Say how old the oldest of our commits is that a server at this LSN has not replayed."""
        missing = next((at for mark, at in self._marks if mark > lsn), None)
        return (now - missing).total_seconds() if missing else 0.0

    def _slots(self, connection: Connection) -> Iterator[Reading]:
        for row in _rows(connection, "slots"):
            mb, xids = float(row["bytes"]) / _MB, float(row["xids"])
            yield Reading(
                name=f" {row['name']}",
                value=mb,
                limit=self.limits.slot_mb,
                text=f"holds {mb:.0f} MB of WAL back (limit {self.limits.slot_mb:g})",
            )
            yield Reading(
                name=f" {row['name']} horizon",
                value=xids,
                limit=self.limits.horizon,
                text=f"holds VACUUM {xids:.0f} transactions back (limit {self.limits.horizon})",
            )

    def _archive(self, connection: Connection) -> Iterator[Reading]:
        (row,) = _rows(connection, "archive")
        most = self.limits.archive_files
        text = f"{row['ready']} files wait (limit {most})"
        yield Reading(name="", value=row["ready"], limit=most, text=text)
        failing = f"archive_command fails at {row['last_failed_wal']}"
        yield Reading(name=" command", value=float(row["is_failing"]), limit=0.5, text=failing)

    def _victims(self, connection: Connection) -> Iterator[Reading]:
        """Count who waits for us; batches get shorter by that, see the conductor."""
        (row,) = _rows(connection, "victims", application=self.application)
        self.victims = int(row["waiting"])
        yield from ()

    def _oldest(self, connection: Connection) -> Iterator[Reading]:
        (row,) = _rows(connection, "oldest", application=self.application)
        seconds, most = float(row["seconds"]), self.limits.transaction.total_seconds()
        text = f"{seconds:.0f} s old (limit {most:g} s): VACUUM cannot pass it"
        yield Reading(name="", value=seconds, limit=most, text=text)

    def _autovacuum(self, connection: Connection) -> Iterator[Reading]:
        (row,) = _rows(connection, "autovacuum", relations=self.relations)
        yield Reading(name="", value=row["working"], limit=0.5, text="at work on the table")

    def _connections(self, connection: Connection) -> Iterator[Reading]:
        (row,) = _rows(connection, "connections")
        text = f"{100 * row['used']:.0f} % in use (limit {100 * self.limits.connections:.0f} %)"
        yield Reading(name="", value=row["used"], limit=self.limits.connections, text=text)


def _rows(connection: Connection, block: str, **parameters: Any) -> list[dict[str, Any]]:
    return connection.execute(query("backfill", block), parameters).fetchall()


def read_signal(connection: Connection, statement: str) -> float:
    """Ask a question of people's own; raises DatabaseFailed for no answer, or one that is no number."""
    connection.execute("SET TRANSACTION READ ONLY")
    row = connection.execute(statement.encode()).fetchone()
    found = next(iter(row.values()), None) if row else None
    try:
        return float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise DatabaseFailed(
            f"it gave {found!r}, expected a number", hint="one row with one number is wanted"
        ) from error


def _ask(statement: str, most: float) -> Callable[[Connection], Iterator[Reading]]:
    def read(connection: Connection) -> Iterator[Reading]:
        value = read_signal(connection, statement)
        yield Reading(name="", value=value, limit=most, text=f"{value:g} (limit {most:g})")

    return read
