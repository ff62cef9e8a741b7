"""The proof that a stored segment is what its name says: its content hashed, decompressing on the way."""

from __future__ import annotations

import bz2
import hashlib
import zlib
from typing import TYPE_CHECKING, Any, Protocol

import lz4.frame
import zstandard

from pgvigil.reports import Frozen
from pgvigil.wal.names import SEGMENT_FILE

if TYPE_CHECKING:
    import re

    from pgvigil.pgbackrest import PgBackRest


class SegmentProof(Frozen):
    """What was found for one expected segment; `fault` is empty when it is proven."""

    segment: str
    fault: str = ""


def prove_segments(
    pgbackrest: PgBackRest, repo: int, archive_id: str, segments: list[str], segment_size: int
) -> list[SegmentProof]:
    """Read each segment from the repository and compare content and size with name and expectation."""
    listings: dict[str, list[str]] = {}
    proofs = []
    for segment in segments:
        folder = f"archive/{pgbackrest.target.stanza}/{archive_id}/{segment[:16]}"
        if folder not in listings:
            listings[folder] = list(pgbackrest.ls(repo, folder))
        files = [name for name in listings[folder] if name.startswith(f"{segment}-")]
        proofs.append(_prove_segment(pgbackrest, repo, folder, segment, files, segment_size))
    return proofs


def _prove_segment(  # noqa: PLR0913 - one call site, and every argument is a fact of the one file
    pgbackrest: PgBackRest, repo: int, folder: str, segment: str, files: list[str], segment_size: int
) -> SegmentProof:
    if not files:
        return SegmentProof(segment=segment, fault="missing")
    if len(files) > 1:
        return SegmentProof(segment=segment, fault=f"stored {len(files)} times with different content")
    match = SEGMENT_FILE.match(files[0])
    if match is None:
        return SegmentProof(segment=segment, fault=f"stored under the unreadable name {files[0]}")
    return SegmentProof(
        segment=segment, fault=_content_fault(pgbackrest, repo, f"{folder}/{files[0]}", match, segment_size)
    )


def _content_fault(
    pgbackrest: PgBackRest, repo: int, path: str, match: re.Match[str], segment_size: int
) -> str:
    content = SegmentHash(match["suffix"] or "")
    pgbackrest.read(repo, path, content.feed)
    if content.fault:
        return content.fault
    if content.size != segment_size:
        return f"{content.size} bytes, expected {segment_size}"
    if content.sha1 != match["sha1"]:
        return f"content has sha1 {content.sha1}, its name says {match['sha1']}"
    return ""


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Plain:
    eof = True

    def decompress(self, data: bytes, /) -> bytes:
        return data


def _decompressor(suffix: str) -> Any:
    match suffix:
        case ".gz":
            return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        case ".zst":
            return zstandard.ZstdDecompressor().decompressobj()
        case ".lz4":
            return lz4.frame.LZ4FrameDecompressor()
        case ".bz2":
            return bz2.BZ2Decompressor()
        case _:
            return _Plain()


_BROKEN = (zlib.error, zstandard.ZstdError, OSError, EOFError, RuntimeError, ValueError)


class SegmentHash:
    """Hashes a stored segment chunk by chunk, decompressing on the way, in constant memory.

    `read` counts stored bytes, `size` those of the content.
    """

    def __init__(self, suffix: str) -> None:
        self.size = 0
        self.read = 0
        self.fault = ""
        self._hash = hashlib.sha1(usedforsecurity=False)
        self._decompressor: _Decompressor = _decompressor(suffix)

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk; content that does not decompress becomes the fault, not an exception."""
        self.read += len(chunk)
        if self.fault:
            return
        try:
            data = self._decompressor.decompress(chunk)
        except _BROKEN as error:
            self.fault = f"cannot be decompressed: {error}"
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha1(self) -> str:
        """The digest of what was decompressed so far."""
        return self._hash.hexdigest()

    @property
    def ended(self) -> bool:
        """Whether the stored file ended where its compression says that it ends."""
        return self._decompressor.eof
