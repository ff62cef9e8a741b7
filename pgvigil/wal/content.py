"""The proof that a stored segment is what its name says: its content hashed, decompressing on the way."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgvigil.reports import Frozen
from pgvigil.wal.decompressing import BROKEN, Decompressor, decompressor
from pgvigil.wal.headers import PageHeader, PageWalk
from pgvigil.wal.names import StoredSegment, lsn_text, stored_segment
from pgvigil.wal.timelines import Tree

if TYPE_CHECKING:
    from pgvigil.pgbackrest import PgBackRest


class SegmentProof(Frozen):
    """What was found for one expected segment; `fault` is empty when it is proven."""

    segment: str
    fault: str = ""


@dataclass(frozen=True)
class Origin:
    """Where an archive's segments come from; without `system_id` any cluster will do. Sizes are bytes."""

    segment_size: int
    system_id: int | None = None
    tree: Tree = field(default_factory=Tree)

    def disowns(self, header: PageHeader | None, timeline: int, number: int) -> str:
        """Say why content that begins so is not the named segment's; nothing when it is."""
        if header is None:
            return "its content is no WAL"
        if self.system_id is not None and header.system_id != self.system_id:
            return f"its content is of system {header.system_id}, expected {self.system_id}"
        if header.segment_size != self.segment_size:
            return f"its content is of segments of {header.segment_size} bytes, expected {self.segment_size}"
        if header.lsn != number * self.segment_size:
            at = lsn_text(header.lsn)
            return f"its content is WAL from LSN {at}, expected {lsn_text(number * self.segment_size)}"
        if not self._may_begin(timeline, number, header.timeline):
            return f"its content is of timeline {header.timeline}"
        return ""

    def _may_begin(self, timeline: int, number: int, header: int) -> bool:
        """Tell whether a segment may begin with a page of that timeline.

        The segment in which a timeline begins is a copy of its parent's up to the switch, and that may be
        such a copy itself.
        """
        branches = self.tree.branches(timeline)
        if header == timeline or not branches:
            return 0 < header <= timeline
        for branch in reversed(branches):
            if branch.lsn // self.segment_size != number:
                return False
            if branch.timeline == header:
                return True
        return False


def judge(content: SegmentHash, file: StoredSegment, origin: Origin) -> tuple[str, str]:
    """Compare content that was read whole with its name; return a finding's code and why, or nothing."""
    code, fault = _judge_length(content, file, origin.segment_size)
    if code:
        return code, fault
    if content.sha1 != file.sha1:
        return "wal-corrupt", f"its content has sha1 {content.sha1}, its name says {file.sha1}"
    fault = origin.disowns(content.header, file.timeline, file.number)
    if fault:
        return "wal-misplaced", fault
    if content.pages.fault:
        return "wal-corrupt", f"its content {content.pages.fault}: it was archived so, for its sha1 is right"
    return "", ""


def _judge_length(content: SegmentHash, file: StoredSegment, size: int) -> tuple[str, str]:
    if content.read == 0:
        return "wal-empty", "it has no content at all"
    if content.fault:
        return "wal-corrupt", f"it {content.fault}"
    if not content.ended or (content.size < size and not file.suffix):
        return "wal-truncated", f"its stored file is cut off, after {content.size} of {size} bytes of content"
    if content.has_more:
        return "wal-corrupt", "something follows after the end of its stored file"
    if content.size != size:
        return "wal-corrupt", f"it holds {content.size} bytes, expected {size}"
    return "", ""


def prove_segments(
    pgbackrest: PgBackRest, repo: int, archive_id: str, segments: list[str], segment_size: int
) -> list[SegmentProof]:
    """Read each segment from the repository and compare its content with its name."""
    listings: dict[str, list[str]] = {}
    proofs = []
    for segment in segments:
        folder = f"archive/{pgbackrest.target.stanza}/{archive_id}/{segment[:16]}"
        if folder not in listings:
            listings[folder] = list(pgbackrest.ls(repo, folder))
        files = [name for name in listings[folder] if name.startswith(f"{segment}-")]
        fault = _prove_segment(pgbackrest, repo, folder, files, segment_size)
        proofs.append(SegmentProof(segment=segment, fault=fault))
    return proofs


def _prove_segment(
    pgbackrest: PgBackRest, repo: int, folder: str, files: list[str], segment_size: int
) -> str:
    if not files:
        return "missing"
    if len(files) > 1:
        return f"stored {len(files)} times with different content"
    file = stored_segment(files[0], segment_size)
    if file is None:
        return f"stored under the unreadable name {files[0]}"
    content = SegmentHash(file.suffix)
    pgbackrest.read(repo, f"{folder}/{files[0]}", content.feed)
    return judge(content, file, Origin(segment_size))[1]


# pgBackRest 2.45 passes over what follows the end of a gz file, and of a bz2 file within the buffer of 1 MiB
# in which it ends; beyond that, and behind an end of zst and lz4, it fails or finds another segment.
_BUFFER = 1 << 20


class SegmentHash:
    """Hashes a stored segment chunk by chunk, decompressing on the way, in constant memory.

    `read` counts stored bytes, `size` those of the content.
    """

    def __init__(self, suffix: str) -> None:
        self.size = 0
        self.read = 0
        self.fault = ""
        self._suffix = suffix
        self.pages = PageWalk()
        self._after = 0
        self._hash = hashlib.sha1(usedforsecurity=False)
        self._decompressor: Decompressor = decompressor(suffix)

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk; content that does not decompress becomes the fault, not an exception."""
        self.read += len(chunk)
        if self.fault:
            return
        if self._decompressor.eof:
            self._after += len(chunk)
            return
        try:
            for data in self._decompressor.pieces(chunk):
                self._take(data)
        except BROKEN as error:
            self.fault = f"cannot be decompressed: {error}"
            return
        if self._decompressor.eof:
            self._after = self._decompressor.unused

    def _take(self, data: bytes) -> None:
        self.pages.take(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha1(self) -> str:
        """The digest of what was decompressed so far."""
        return self._hash.hexdigest()

    @property
    def header(self) -> PageHeader | None:
        """What the content says of itself."""
        return self.pages.header

    @property
    def ended(self) -> bool:
        """Whether the stored file has the end that its compression puts there; plain content has none."""
        return not self._suffix or self._decompressor.eof

    @property
    def has_more(self) -> bool:
        """Whether something follows the end that pgBackRest does not pass over."""
        if self._suffix == ".gz":
            return False
        passed_over = (self._after - self.read) % _BUFFER if self._suffix == ".bz2" else 0
        return self._after > passed_over
