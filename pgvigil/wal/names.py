"""The names and numbers of WAL: segments, positions, and the classes of files in an archive."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIXES = ("", ".gz", ".zst", ".lz4", ".bz2")
_SUFFIX = r"(?P<suffix>\.(?:gz|zst|lz4|bz2))?"

# pgbackrest user guide, repository layout: segment, sha1 of the uncompressed content, compression suffix.
SEGMENT_FILE = re.compile(rf"^(?P<segment>[0-9A-F]{{24}})-(?P<sha1>[0-9a-f]{{40}}){_SUFFIX}$")
PARTIAL_FILE = re.compile(rf"^(?P<segment>[0-9A-F]{{24}})\.partial-(?P<sha1>[0-9a-f]{{40}}){_SUFFIX}$")
BACKUP_FILE = re.compile(r"^[0-9A-F]{24}\.[0-9A-F]{8}\.backup$")
HISTORY_FILE = re.compile(r"^(?P<timeline>[0-9A-F]{8})\.history$")
SEGMENT_NAME = re.compile(r"^[0-9A-F]{24}$")

ARCHIVE_LISTS = ("archive.info", "archive.info.copy")
_ARRIVING = ".pgbackrest.tmp"


def is_arriving(path: str) -> bool:
    """Tell a file that pgBackRest is still writing: a posix one gets its name when it is whole."""
    return path.endswith(_ARRIVING)


def final_path(path: str) -> str:
    """Return where a stored file is, or will be once it is whole."""
    return path.removesuffix(_ARRIVING)


def parse_lsn(lsn: str) -> int:
    """Turn `16/B374D848` into a byte position."""
    high, low = lsn.split("/")
    return (int(high, 16) << 32) | int(low, 16)


def lsn_text(position: int) -> str:
    """Turn a byte position into `16/B374D848`."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def segment_number(segment: str, segment_size: int) -> int:
    """Return a segment's number on its timeline; sizes are bytes, a power of two from 1 MB to 1 GB."""
    per_log = 0x100000000 // segment_size
    return int(segment[8:16], 16) * per_log + int(segment[16:24], 16)


def segment_timeline(segment: str) -> int:
    """Return the timeline of a segment's name."""
    return int(segment[:8], 16)


def segment_name(timeline: int, number: int, segment_size: int) -> str:
    """Return the file name of a segment."""
    per_log = 0x100000000 // segment_size
    return f"{timeline:08X}{number // per_log:08X}{number % per_log:08X}"


def segment_range(start: str, stop: str, segment_size: int) -> Iterator[str]:
    """Yield every segment name from start to stop, both included, on start's timeline."""
    timeline = int(start[:8], 16)
    for number in range(segment_number(start, segment_size), segment_number(stop, segment_size) + 1):
        yield segment_name(timeline, number, segment_size)


class StoredSegment(NamedTuple):
    """One segment file: size in bytes as stored, time in epoch seconds as the store has it."""

    timeline: int
    number: int
    sha1: str
    suffix: str
    size: int
    time: int

    def path(self, segment_size: int) -> str:
        """Return its path below the archive id."""
        name = segment_name(self.timeline, self.number, segment_size)
        return f"{name[:16]}/{name}-{self.sha1}{self.suffix}"


def stored_segment(file: str, segment_size: int) -> StoredSegment | None:
    """Read a segment file's name as pgBackRest writes it; None for any other name."""
    match = SEGMENT_FILE.match(file)
    if match is None:
        return None
    name = match["segment"]
    number = segment_number(name, segment_size)
    return StoredSegment(segment_timeline(name), number, match["sha1"], match["suffix"] or "", 0, 0)
