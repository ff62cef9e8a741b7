"""Decompression in pieces: a chunk of compressed zeros may hold a gigabyte, which is never held at once."""

from __future__ import annotations

import bz2
import zlib
from typing import TYPE_CHECKING, Any, Protocol

import lz4.frame
import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 1 << 20  # bytes of content
_BLOCKS = PIECE >> 17  # of zst: one holds up to 128 KiB, perhaps in 4 bytes, and the library knows no bound

BROKEN = (zlib.error, zstandard.ZstdError, OSError, EOFError, RuntimeError, ValueError)


class Decompressor(Protocol):
    """Yields the content of what it is fed; knows the end, and what was fed behind it."""

    @property
    def eof(self) -> bool:
        """Whether the end that the compression writes was seen."""

    @property
    def unused(self) -> int:
        """How many bytes of the chunk with the end came after it."""

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a chunk holds; raises one of BROKEN."""


class _Plain:
    eof = False
    unused = 0

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        yield chunk


class _Gzip:
    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused(self) -> int:
        return len(self._stream.unused_data)

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            yield self._stream.decompress(chunk, PIECE)
            chunk = self._stream.unconsumed_tail


class _Buffering:
    """Of bz2 and lz4, which keep what they have not decompressed yet."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    @property
    def unused(self) -> int:
        return len(self._stream.unused_data or b"")

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        yield self._stream.decompress(chunk, PIECE)
        while not self._stream.eof and not self._stream.needs_input:
            yield self._stream.decompress(b"", PIECE)


class _Zstandard:
    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor().decompressobj()
        self._frame = _Frame()
        self.unused = 0

    @property
    def eof(self) -> bool:
        return bool(self._stream.eof)

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        for part in self._frame.cut(chunk):
            if self._stream.eof:
                self.unused += len(part)
                continue
            yield self._stream.decompress(part)
            self.unused = len(self._stream.unused_data or b"")


class _Frame:
    """Cuts a zst frame between its blocks (RFC 8878, 3.1.1)."""

    def __init__(self) -> None:
        self._rest = b""  # a header that a chunk's end parted
        self._left = 0  # bytes until the next header
        self._has_begun = False
        self._has_ended = False

    def cut(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the chunk in parts of a few blocks."""
        data = self._rest + chunk
        start, place, blocks = 0, self._left, 0
        while not self._has_ended and (length := self._length_at(data, place)):
            if blocks == _BLOCKS:
                yield data[start:place]
                start, blocks = place, 0
            place += length
            blocks += 1
        end = len(data) if self._has_ended else min(place, len(data))
        self._rest, self._left = data[end:], max(place - end, 0)
        if end > start:
            yield data[start:end]

    def _length_at(self, data: bytes, place: int) -> int:
        """Return the length of the frame's header or of a block; 0 if it cannot be told yet."""
        if self._has_begun:
            return self._block_at(data, place)
        if len(data) < place + 5:
            return 0
        self._has_begun = True
        told = data[4]
        is_single = told >> 5 & 1
        return 5 + (not is_single) + (0, 1, 2, 4)[told & 3] + (is_single, 2, 4, 8)[told >> 6]

    def _block_at(self, data: bytes, place: int) -> int:
        if len(data) < place + 3:
            return 0
        told = int.from_bytes(data[place : place + 3], "little")
        self._has_ended = bool(told & 1)  # what follows the last block is a checksum, if anything
        is_repeated = told >> 1 & 3 == 1
        return 3 + (1 if is_repeated else told >> 3)


def decompressor(suffix: str) -> Decompressor:
    """Return what decompresses a file with this suffix."""
    match suffix:
        case ".gz":
            return _Gzip()
        case ".zst":
            return _Zstandard()
        case ".lz4":
            return _Buffering(lz4.frame.LZ4FrameDecompressor())
        case ".bz2":
            return _Buffering(bz2.BZ2Decompressor())
        case _:
            return _Plain()
