"""What WAL says of itself: the header with which a segment begins, and those of all its pages."""

from __future__ import annotations

from itertools import repeat
from struct import Struct, unpack_from
from typing import NamedTuple

from pgvigil.wal.names import lsn_text


class PageHeader(NamedTuple):
    """What WAL says of itself at the head of a segment: LSN in bytes, segment and page size in bytes."""

    timeline: int
    lsn: int
    system_id: int
    segment_size: int
    page_size: int
    magic: int
    order: str


# PostgreSQL src/include/access/xlog_internal.h, XLogLongPageHeaderData: magic, info, timeline, address,
# length of the rest of a record, system identifier, segment size, block size; in the server's byte order.
_HEADER = "HHIQI4xQII"
HEADER_SIZE = 40
_MAGIC = {0xD0, 0xD1}  # the magic's high byte: 0xD110 is PostgreSQL 15
_SHORT = "H6xQ"  # of every page: magic and address
_LONG = 0x0002
_SMALLEST_PAGE = 1024


def read_page_header(content: bytes) -> PageHeader | None:
    """Read the header with which every segment begins; None for what is no WAL."""
    if len(content) < HEADER_SIZE:
        return None
    order = "<" if content[1] in _MAGIC else ">"
    magic, info, timeline, lsn, _, system_id, size, page_size = unpack_from(order + _HEADER, content)
    if magic >> 8 not in _MAGIC or not info & _LONG or page_size < _SMALLEST_PAGE:
        return None
    return PageHeader(timeline, lsn, system_id, size, page_size, magic, order)


class PageWalk:
    """Looks at the head of every page, chunk by chunk: each tells its own place.

    What the server finished early is zeros from a page on to the end, and nothing else may be: a page that
    was never written, or is of the file's earlier use, ends recovery there though the sha1 is right.
    """

    def __init__(self) -> None:
        self.header: PageHeader | None = None
        self.fault = ""
        self._head = b""
        self._pending = b""  # a page's head that a chunk's end parted
        self._next = 0  # where the next page begins
        self._at = 0
        self._ended_at: int | None = None

    def take(self, data: bytes) -> None:
        """Take the next chunk of content."""
        if self.header is None:
            self._begin(data)
        elif not self.fault:
            self._walk(data)

    def _begin(self, data: bytes) -> None:
        self._head += data
        if len(self._head) < HEADER_SIZE:
            return
        self.header = read_page_header(self._head)
        if self.header is None:
            self.fault = "is no WAL"
            return
        order, size = self.header.order, self.header.page_size
        self._short = Struct(order + _SHORT)
        self._page = Struct(f"{order}{_SHORT}{size - self._short.size}x")
        data, self._head = self._head, b""
        self._walk(data)

    def _walk(self, data: bytes) -> None:
        assert self.header is not None  # noqa: S101 - it was read first
        begins = self._at - len(self._pending)
        data = self._pending + data
        self._at = begins + len(data)
        place, size = self._next - begins, self.header.page_size
        whole = max(len(data) - place, 0) // size * size
        if whole:
            view = memoryview(data)[place : place + whole]
            self._compare(begins + place, list(self._page.iter_unpack(view)))
        place += whole
        if len(data) - place >= self._short.size:
            self._compare(begins + place, [self._short.unpack_from(data, place)])
            place += size
        self._next = begins + place
        self._pending = data[place:]

    def _compare(self, place: int, told: list[tuple[int, ...]]) -> None:
        """Compare magic and position of pages in a row; mostly all are as they should be."""
        assert self.header is not None  # noqa: S101 - it was read first
        first, size = self.header.lsn + place, self.header.page_size
        lsns = range(first, first + size * len(told), size)
        if self._ended_at is None and told == list(zip(repeat(self.header.magic), lsns, strict=False)):
            return
        for index, (magic, lsn) in enumerate(told):
            self._judge(place + index * size, magic, lsn)

    def _judge(self, place: int, magic: int, lsn: int) -> None:
        assert self.header is not None  # noqa: S101 - it was read first
        expected = self.header.lsn + place
        if not magic and not lsn:
            self._ended_at = place if self._ended_at is None else self._ended_at
        elif self.fault or (self._ended_at is None and (magic, lsn) == (self.header.magic, expected)):
            return
        elif self._ended_at is None:
            self.fault = f"has at LSN {lsn_text(expected)} a page of LSN {lsn_text(lsn)}"
        else:
            hole = lsn_text(self.header.lsn + self._ended_at)
            self.fault = f"has no page at LSN {hole}, but one at {lsn_text(expected)}"
