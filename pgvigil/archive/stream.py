"""Rows on their way: out of PostgreSQL, through zstd, into the store, and back; nothing is kept whole."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import zstandard
from psycopg import sql

from pgvigil.archive.blocks import BlockDigest
from pgvigil.archive.digest import Digest
from pgvigil.archive.tree import held
from pgvigil.errors import StorageFailed
from pgvigil.postgres import copy_out
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

    from pgvigil.archive.shape import Shape
    from pgvigil.archive.tree import Branch
    from pgvigil.objectstore import ObjectLock, ObjectStore
    from pgvigil.postgres import Connection

LEVEL = 3
_MIB = 1024 * 1024
BYTES_AHEAD = 4 * _MIB


class Progress(Frozen):
    """How far a copy is; percent is a guess from the table's size until the end is known."""

    percent: float
    text: str

    def __str__(self) -> str:
        return self.text


def show_share(on_progress: Callable[[Progress], None], number: int, count: int, now: Progress) -> None:
    """Tell how far one of several tables is, as a part of all."""
    whole = now.text if count == 1 else f"table {number + 1} of {count}: {now.text}"
    on_progress(Progress(percent=(100 * number + now.percent) / count, text=whole))


class Meter:
    """Counts what passes on both sides of the compression."""

    def __init__(self, expected: int, on_progress: Callable[[Progress], None]) -> None:
        self.sha256 = hashlib.sha256()
        self.text_size = 0
        self.size = 0
        self._expected = max(1, expected)
        self._on_progress = on_progress

    def text(self, chunk: bytes) -> None:
        """Count bytes of text."""
        self.text_size += len(chunk)
        percent = min(99.0, 100 * self.text_size / self._expected)
        self._on_progress(Progress(percent=percent, text=f"{self.text_size / _MIB:.0f} MiB of text"))

    def stored(self, chunk: bytes) -> None:
        """Count bytes as they are stored."""
        self.size += len(chunk)
        self.sha256.update(chunk)


class Sent(Frozen):
    """What was sent to the store, as counted before it left; version and ETag as the upload was answered."""

    uri: str
    version_id: str | None
    etag: str
    sha256: str
    size: int
    text_size: int


def column_list(shape: Shape) -> sql.Composed:
    """Compose the names of the columns that COPY takes."""
    return sql.SQL(", ").join(sql.Identifier(column.name) for column in shape.stored_columns)


def export(  # noqa: PLR0913 - both ends, and what passes between
    session: Connection,
    leaf: Branch,
    store: ObjectStore,
    uri: str,
    *,
    meter: Meter,
    lock: ObjectLock | None = None,
) -> Sent:
    """Stream a table's rows into one new object; raises DatabaseFailed, StorageFailed, ObjectExists.

    What fails leaves no object and no unfinished upload. The session's settings are those of `digest.pin`.
    """
    # A thread each for reading, compressing and sending: the last two leave the interpreter to the first.
    with (
        closing(_rows(session, leaf)) as rows,
        ahead(rows) as text,
        ahead(_compressed(text, meter)) as chunks,
    ):
        stored = store.upload(uri, chunks, content_type="application/zstd", only_if_absent=True, lock=lock)
    return Sent(
        uri=uri,
        version_id=stored.version_id,
        etag=stored.etag,
        sha256=meter.sha256.hexdigest(),
        size=meter.size,
        text_size=meter.text_size,
    )


def _rows(session: Connection, leaf: Branch) -> Generator[bytes]:
    with held(session, leaf) as table:
        columns = column_list(leaf.shape)
        yield from copy_out(session, sql.SQL("COPY {} ({}) TO STDOUT").format(table, columns))


def _compressed(rows: Iterable[bytes], meter: Meter) -> Iterator[bytes]:
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compressobj()
    for chunk in rows:
        meter.text(chunk)
        if squeezed := compressor.compress(chunk):
            meter.stored(squeezed)
            yield squeezed
    last = compressor.flush()
    meter.stored(last)
    yield last


@contextmanager
def ahead(chunks: Iterator[bytes]) -> Iterator[Iterator[bytes]]:
    """Let a thread make the next chunks while the block uses the last; errors come with their chunk.

    What waits is bounded by its bytes, and at least one chunk.
    """
    ready = _Ready()

    def produce() -> None:
        try:
            for chunk in chunks:
                if not ready.put(chunk, len(chunk)):
                    return
            ready.put(None)
        except BaseException as error:  # it belongs to the block, which reads from the queue
            ready.put(error)

    worker = threading.Thread(target=produce, name="pgvigil-copy", daemon=True)
    worker.start()
    try:
        yield ready.taken()
    finally:
        ready.close()
        worker.join()


class _Ready:
    """Chunks that wait between two threads, few bytes of them, and the error or the end behind them."""

    def __init__(self) -> None:
        self._items: deque[tuple[bytes | BaseException | None, int]] = deque()
        self._size = 0
        self._is_over = False
        self._changed = threading.Condition()

    def put(self, item: bytes | BaseException | None, size: int = 0) -> bool:
        """Add one when there is room; tells whether anybody still takes it."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_over or not self._items or self._size + size <= BYTES_AHEAD
            )
            self._items.append((item, size))
            self._size += size
            self._changed.notify_all()
            return not self._is_over

    def taken(self) -> Iterator[bytes]:
        """Give the chunks as they come."""
        while (item := self._take()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _take(self) -> bytes | BaseException | None:
        with self._changed:
            self._changed.wait_for(lambda: self._items)
            item, size = self._items.popleft()
            self._size -= size
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()


class Received(Frozen):
    """What was read back from the store."""

    sha256: str
    size: int
    text_size: int
    digest: Digest


class _Source:
    """The stored bytes as a file that only reads, with their checksum."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._waiting = b""
        self.sha256 = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        if not self._waiting:
            self._waiting = next(self._chunks, b"")
            self.sha256.update(self._waiting)
            self.size += len(self._waiting)
        taken, self._waiting = (
            (self._waiting, b"") if size < 0 else (self._waiting[:size], self._waiting[size:])
        )
        return taken


class Rows:
    """The text of a stored copy, piece by piece; what passed is known at the end."""

    def __init__(
        self, store: ObjectStore, uri: str, blocks: Sequence[int] = (), version_id: str | None = None
    ) -> None:
        self._source = _Source(store.read(uri, version_id))
        self._uri = uri
        self._lines = BlockDigest(blocks)
        self._text_size = 0

    def __iter__(self) -> Iterator[bytes]:
        try:
            # Other than one piece of stored bytes at a time, this bounds what a piece expands to.
            with zstandard.ZstdDecompressor().stream_reader(self._source) as text:  # type: ignore[arg-type]
                while chunk := text.read(_MIB):
                    self._lines.feed(chunk)
                    self._text_size += len(chunk)
                    yield chunk
        except zstandard.ZstdError as error:
            raise StorageFailed(
                f"{self._uri} cannot be decompressed: {error}",
                hint="the object was altered or cut short: look for an older version of it",
                s3_code="ContentAltered",
            ) from error
        while self._source.read():
            pass

    def received(self) -> Received:
        """Tell what passed."""
        return Received(
            sha256=self._source.sha256.hexdigest(),
            size=self._source.size,
            text_size=self._text_size,
            digest=self._lines.result(),
        )


def read_back(rows: Rows, on_progress: Callable[[int], None]) -> Received:
    """Download a copy and compute everything anew from its bytes; raises StorageFailed."""
    done = 0
    for chunk in rows:
        done += len(chunk)
        on_progress(done)
    return rows.received()
