"""Hashing the content of tables, the same on the source under a snapshot and on the copy.

A table's hash is the sum, modulo 2^128, of a 128-bit hash per row: neither order nor place of the rows
matters, and a row that is there twice counts twice. A row is hashed in its binary form with all that TOAST
keeps of it, as text where a type has no binary form. Tables are read in pieces of some megabytes, each in a
transaction of its own, so that our lock on a table lasts as long as a piece; and in a seeded order in which
all tables progress alike, so that what was read when time is over is a sample of every table.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pgvigil import postgres
from pgvigil.drill.facts import Digest, Table, Unproven
from pgvigil.drill.tables import Listed, find_strangers
from pgvigil.drill.unplanned import hash_rows
from pgvigil.errors import DatabaseFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.postgres import sql
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.postgres import Connection

Connect = Callable[[], AbstractContextManager["Connection"]]

PIECE = 32 * 2**20  # bytes: a fraction of a second, for which our ACCESS SHARE lock can delay a user's DDL
_ATTEMPTS = 3
_HALF = 2**64
_LEAST_PIECE = 2**20
# Both functions look past our snapshot; a view that took a table's name, or its place, has no file.
_IS_SAME = sql.SQL("coalesce(to_regclass({name}) = {oid}::oid AND pg_relation_filenode({oid}) > 0, false)")
# To parse a statement locks what it names, and runs nothing; LOCK TABLE takes no materialized view.
_LOCK = sql.SQL(
    "PREPARE pgvigil_lock AS SELECT FROM ONLY {table}; DEALLOCATE pgvigil_lock;"
    " SELECT {is_same} AS is_same, pg_relation_filenode({oid}) AS filenode"
)
_STATEMENT = sql.SQL(
    "SELECT count(*) AS rows, coalesce(sum(hash_array_extended(r, 1)), 0) AS low,"
    " coalesce(sum(hash_array_extended(r, 2)), 0) AS high,"
    " pg_relation_filenode({oid}) AS filenode, {is_same} AS is_same"
    " FROM (SELECT {row} AS r FROM ONLY {table} AS t {where} OFFSET 0) AS hashed"
)  # OFFSET 0 keeps the planner from computing r twice
_BINARY = sql.SQL("ARRAY[record_send(t.*)]")
_TEXT = sql.SQL('ARRAY[textin(record_out(t.*)) COLLATE "C"]')  # a cast to text may be a function of the owner

_CANCELLED, _DROPPED, _REFUSED, _NO_MEMORY = "57014", "42P01", "42501", "54000"
_OTHER = "not what it was at the mark: another relation has its name now, or it is no table any more"
STRANGER = "its indexes or statistics came to lean on {stranger}, which belongs to no superuser: drill again"
_CAUSES = {
    LOCK_NOT_AVAILABLE: "locked by a session that changes it: drill again when that has ended",
    _DROPPED: "dropped since the mark",
    _REFUSED: "not readable: grant what infra/roles.sql grants to this role",
    _NO_MEMORY: "one of its rows is larger than a value may be",
    "55000": _OTHER,
    "22023": "the snapshot is gone: its session was ended, or hash_for was over",
    "40001": "cancelled by the replay of a standby: set hot_standby_feedback = on there",
}


class Progress(Frozen):
    """How far hashing got, in bytes of tables with their TOAST."""

    bytes_done: int
    bytes_total: int

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100.0 * self.bytes_done / self.bytes_total if self.bytes_total else 100.0

    def __str__(self) -> str:
        return f"hashed {self.bytes_done} of {self.bytes_total} bytes"


class Limits(Frozen):
    """What hashing may take: so many sessions, bytes per second, and time until a time.monotonic()."""

    workers: int = Field(default=2, ge=1)
    rate: int | None = None
    until: float | None = None
    seed: int = 0


class Piece(Frozen):
    """Some blocks of one table, first to before last; without last to its end."""

    listed: Listed
    first: int = 0
    last: int | None = None
    size: int = 0
    attempt: int = 1

    @property
    def oid(self) -> int:
        """The table's."""
        return self.listed.table.oid


@dataclass(frozen=True)
class Hashed:
    """What became of one piece: its sums, or why there are none."""

    piece: Piece
    rows: int = 0
    low: int = 0
    high: int = 0
    filenode: int | None = None
    reason: str = ""


class TableResult(Frozen):
    """A table's digest and the files that were read for it, or the reason why there is no digest."""

    listed: Listed
    digest: Digest | None = None
    filenodes: frozenset[int | None] = frozenset()
    reason: str = ""

    @property
    def table(self) -> Table:
        """The table."""
        return self.listed.table

    def unproven(self, database: str) -> Unproven:
        """Tell it as a relation that is not compared."""
        return Unproven(database=database, relation=str(self.table), reason=self.reason)


def pin(connection: Connection) -> None:
    """Set everything in the session that could make the same row look different elsewhere."""
    connection.execute(query("drill_source", "pin"))


def hash_tables(
    connect: Connect,
    pieces: Sequence[Piece],
    limits: Limits,
    *,
    snapshot: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[TableResult, ...]:
    """Hash pieces of tables in several sessions; with `snapshot`, each reads under that exported one.

    What time does not allow is left out, piece by piece; a table that cannot be read has its reason. Raises
    DatabaseFailed when the server is away.
    """
    work = _Work(pieces, limits, snapshot)
    total, done = sum(piece.size for piece in pieces), 0
    results: list[Hashed] = []
    with ThreadPoolExecutor(max_workers=limits.workers) as pool:
        sessions = [pool.submit(work.labour, connect) for _ in range(limits.workers)]
        try:
            for hashed in work.results():
                results.append(hashed)
                done += hashed.piece.size
                on_progress(Progress(bytes_done=done, bytes_total=total))
        finally:
            work.stop.set()
    for session in sessions:
        session.result()
    return collect(pieces, results)


class _StoppedError(Exception):
    """Ends a reading that nobody waits for any more."""


class _Work:
    """The pieces that are left, shared by the sessions that do them."""

    def __init__(self, pieces: Sequence[Piece], limits: Limits, snapshot: str | None) -> None:
        self._left: queue.SimpleQueue[Piece] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Hashed | None] = queue.SimpleQueue()
        self._limits = limits
        self._snapshot = snapshot
        self._pace = _Pace(limits.rate)
        self._gone: set[int] = set()
        self.stop = threading.Event()
        for piece in pieces:
            self._left.put(piece)

    def results(self) -> Iterator[Hashed]:
        """Yield each result as it comes, until every session has ended."""
        working = self._limits.workers
        while working:
            hashed = self._done.get()
            if hashed is None:
                working -= 1
            else:
                yield hashed

    def labour(self, connect: Connect) -> None:
        """Take pieces until none is left or time is over, in sessions of our own."""
        try:
            while not (self._is_ended() or self._left.empty()):
                with connect() as connection:
                    self._labour(connection)
        except BaseException:
            self.stop.set()
            raise
        finally:
            self._done.put(None)

    def _labour(self, connection: Connection) -> None:
        pin(connection)
        while not connection.closed and not self._is_ended():
            try:
                piece = self._left.get_nowait()
            except queue.Empty:
                return
            if not piece.listed.is_guarded:
                self._pace.wait(piece.size, self.stop)
            if piece.oid not in self._gone and not self._is_ended():
                self._hash(connection, piece)

    def _hash(self, connection: Connection, piece: Piece) -> None:
        """Hash a piece; one whose table is locked goes to the end of the queue."""
        seconds = None if self._limits.until is None else max(self._limits.until - time.monotonic(), 0.001)
        try:
            hashed = hash_piece(
                connection, piece, snapshot=self._snapshot, seconds=seconds, on_bytes=self._hear
            )
        except _StoppedError:
            return
        except DatabaseFailed as error:
            if error.context.get("unreachable"):
                raise
            if error.sqlstate == _CANCELLED and self._is_late():
                return
            if error.sqlstate == LOCK_NOT_AVAILABLE and piece.attempt < _ATTEMPTS:
                self._left.put(piece.model_copy(update={"attempt": piece.attempt + 1}))
                return
            hashed = Hashed(piece, reason=_reason(error))
        if hashed.reason:
            self._gone.add(piece.oid)
        self._done.put(hashed)

    def _hear(self, size: int) -> None:
        """Keep the pace within a table that is read as a whole."""
        self._pace.wait(size, self.stop)
        if self._is_ended():
            raise _StoppedError

    def _is_ended(self) -> bool:
        return self.stop.is_set() or self._is_late()

    def _is_late(self) -> bool:
        return self._limits.until is not None and time.monotonic() >= self._limits.until


def _reason(error: DatabaseFailed) -> str:
    cause = _CAUSES.get(error.sqlstate)
    return f"{cause} ({error.message})" if cause else error.message


class _Pace:
    """A common speed for several readers."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def wait(self, size: int, stop: threading.Event) -> None:
        """Wait until so many bytes may be read."""
        if self._rate is None:
            return
        with self._lock:
            begin = max(self._next, time.monotonic())
            self._next = begin + size / self._rate
        stop.wait(begin - time.monotonic())


def hash_piece(
    connection: Connection,
    piece: Piece,
    *,
    snapshot: str | None = None,
    seconds: float | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> Hashed:
    """Hash some blocks of a table in a transaction of its own; raises DatabaseFailed.

    Whoever owns the table can give its name to a view, or functions to its indexes, which would run as our
    role. So nothing is read before the name is locked, and found to be the table's; and nothing is planned
    for a table that is guarded. `on_bytes` hears how much of such a one was read, and may raise.
    """
    listed = piece.listed
    if not listed.is_guarded:  # asked outside of the snapshot, which does not show what is new
        found = find_strangers(connection, [piece.oid])
        if found:
            return Hashed(piece, reason=STRANGER.format(stranger=found[piece.oid]))
    with _reading(connection, snapshot, seconds):
        if not _lock(connection, listed.table)["is_same"]:
            return Hashed(piece, reason=_OTHER)
        read = _copy if listed.is_guarded else _select
        hashed, is_same = read(connection, piece, on_bytes)
    # its schema may have been renamed, which no lock on a table hinders
    return hashed if is_same else Hashed(piece, reason=_OTHER)


def _select(connection: Connection, piece: Piece, _: Callable[[int], None]) -> tuple[Hashed, bool]:
    """Let the server hash; tell whether it read the table."""
    row = connection.execute(_compose(piece)).fetchone() or {}
    low, high = int(row["low"]), int(row["high"])
    return Hashed(piece, row["rows"], low, high, row["filenode"]), row["is_same"]


def _copy(connection: Connection, piece: Piece, on_bytes: Callable[[int], None]) -> tuple[Hashed, bool]:
    """Hash here what COPY gives; tell whether that was the table."""
    table = piece.listed.table
    sums = hash_rows(connection, _name(table), is_textual=piece.listed.is_textual, on_bytes=on_bytes)
    row = _lock(connection, table)
    return Hashed(piece, sums.rows, sums.low, sums.high, row["filenode"]), row["is_same"]


@contextmanager
def _reading(connection: Connection, snapshot: str | None, seconds: float | None) -> Iterator[None]:
    """Read in a transaction, under the snapshot if there is one, and leave none behind."""
    with postgres.translated(connection.info.dsn):
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            if snapshot:
                connection.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(snapshot)))
            if seconds is not None:
                connection.execute(
                    sql.SQL("SET LOCAL statement_timeout = {}").format(sql.Literal(int(seconds * 1000) + 1))
                )
            yield
        finally:
            if not connection.closed:
                connection.execute("ROLLBACK")


def _lock(connection: Connection, table: Table) -> dict[str, Any]:
    """Lock what has the table's name against all but readers and writers; tell whether it is the table."""
    statement = _LOCK.format(table=_name(table), is_same=_is_same(table), oid=sql.Literal(table.oid))
    cursor = connection.execute(statement, prepare=False)  # three statements in one round trip
    while cursor.nextset():
        pass
    return cursor.fetchone() or {}


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier(table.schema_name, table.name)


def _is_same(table: Table) -> sql.Composed:
    return _IS_SAME.format(name=sql.Literal(_name(table).as_string()), oid=sql.Literal(table.oid))


def _compose(piece: Piece) -> sql.Composed:
    table = piece.listed.table
    return _STATEMENT.format(
        oid=sql.Literal(table.oid),
        is_same=_is_same(table),
        row=_TEXT if piece.listed.is_textual else _BINARY,
        table=_name(table),
        where=_where(piece),
    )


def _where(piece: Piece) -> sql.Composable:
    bounds = []
    if piece.first:
        bounds.append(sql.SQL("t.ctid >= {}::tid").format(sql.Literal(f"({piece.first},0)")))
    if piece.last is not None:
        bounds.append(sql.SQL("t.ctid < {}::tid").format(sql.Literal(f"({piece.last},0)")))
    return sql.SQL("WHERE ") + sql.SQL(" AND ").join(bounds) if bounds else sql.SQL("")


def cut(tables: Iterable[Listed], limits: Limits) -> list[Piece]:
    """Cut whole tables into pieces, in an order in which every table has its first piece read first.

    What can only be read as a whole comes last: it may take all the time that there is.
    """
    seeded = random.Random(limits.seed)  # noqa: S311 - a sample that can be drawn again, no secret
    placed = []
    for listed in sorted(tables, key=lambda each: -each.size):
        pieces = _cut_range(listed, 0, None, _piece_size(limits))
        seeded.shuffle(pieces)
        placed += [(index / len(pieces) + listed.is_guarded, piece) for index, piece in enumerate(pieces)]
    return [piece for _, piece in sorted(placed, key=lambda each: each[0])]


def cut_again(listed: Listed, digest: Digest, limits: Limits) -> list[Piece]:
    """Cut the same blocks that a digest was made of, of the same table elsewhere."""
    ranges = digest.ranges or ((0, None),)
    return [piece for first, last in ranges for piece in _cut_range(listed, first, last, _piece_size(limits))]


def _piece_size(limits: Limits) -> int:
    """Keep pieces so small that a slow pace stays even."""
    return PIECE if limits.rate is None else min(PIECE, max(_LEAST_PIECE, limits.rate // limits.workers))


def _cut_range(listed: Listed, first: int, last: int | None, size: int) -> list[Piece]:
    """Cut blocks into pieces of about `size` bytes; without `last`, the last piece has no end."""
    blocks = max(listed.table.blocks, 1)
    per_block = max(listed.size / blocks, 1)
    step = blocks if listed.is_guarded else max(int(size / per_block), 1)
    end = blocks if last is None else last
    starts = list(range(first, end, step)) or [first]
    pieces = [(start, min(start + step, end)) for start in starts]
    return [
        Piece(
            listed=listed,
            first=start,
            last=None if last is None and stop >= end else stop,
            size=int((stop - start) * per_block) if listed.table.blocks else 0,
        )
        for start, stop in pieces
    ]


def collect(pieces: Iterable[Piece], results: Iterable[Hashed]) -> tuple[TableResult, ...]:
    """Sum what was read of each table; a table of which nothing was read has the reason for that."""
    wanted: dict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        wanted[piece.oid].append(piece)
    found: dict[int, list[Hashed]] = defaultdict(list)
    for hashed in results:
        found[hashed.piece.oid].append(hashed)
    return tuple(_collect(wanted[oid], found[oid]) for oid in wanted)


def _collect(wanted: Sequence[Piece], found: Sequence[Hashed]) -> TableResult:
    listed = wanted[0].listed
    failed = next((hashed.reason for hashed in found if hashed.reason), "")
    if failed or not found:
        return TableResult(listed=listed, reason=failed or "no time was left to read it")
    return TableResult(
        listed=listed,
        digest=_digest(wanted, found),
        filenodes=frozenset(hashed.filenode for hashed in found),
    )


def _digest(wanted: Sequence[Piece], found: Sequence[Hashed]) -> Digest:
    blocks = wanted[0].listed.table.blocks
    low, high = (sum(getattr(each, half) for each in found) % _HALF for half in ("low", "high"))
    spans = [(each.piece.first, blocks if each.piece.last is None else each.piece.last) for each in found]
    is_whole = len(found) == len(wanted)
    return Digest(
        rows=sum(each.rows for each in found),
        hash=f"{high:016x}{low:016x}",
        blocks_read=min(sum(last - first for first, last in spans), blocks),
        blocks=blocks,
        ranges=() if is_whole else _joined(spans),
        is_copied=wanted[0].listed.is_guarded,
    )


def _joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Join ranges that touch."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and joined[-1][1] == first:
            joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def column_changes(connection: Connection, tables: Sequence[Listed]) -> frozenset[int]:
    """Return the tables that have other columns now, or are gone; outside of any snapshot."""
    oids = [listed.table.oid for listed in tables]
    with postgres.translated(connection.info.dsn):
        now = {row["oid"]: row["columns"] for row in _columns(connection, oids)}
    return frozenset(each.table.oid for each in tables if now.get(each.table.oid) != each.columns)


def _columns(connection: Connection, oids: Sequence[int]) -> list[dict[str, Any]]:
    parameters: Mapping[str, Any] = {"oids": list(oids)}
    return connection.execute(query("drill_source", "columns"), parameters).fetchall()
