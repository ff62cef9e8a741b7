"""What lies in an archive: every entry of its listing classified, a million of them in a few arrays."""

from __future__ import annotations

import re
from array import array
from binascii import unhexlify
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from pgvigil.pgbackrest.listing import TEXT, EntryStream, load
from pgvigil.wal.names import (
    ARCHIVE_LISTS,
    BACKUP_FILE,
    HISTORY_FILE,
    PARTIAL_FILE,
    SEGMENT_FILE,
    SUFFIXES,
    StoredSegment,
    final_path,
    is_arriving,
)
from pgvigil.wal.ranges import ranges_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pgvigil.wal.ranges import Range

_SUFFIX_CODE = {suffix.encode(): code for code, suffix in enumerate(SUFFIXES)}
UNKNOWN = -1  # the time of a file that the listing does not tell: what lies behind a link
_NAMED = 100  # so many foreign files are named, the rest are counted


class Track:
    """The segment files of one timeline, by number; 45 bytes each."""

    def __init__(self, timeline: int) -> None:
        self.timeline = timeline
        self.numbers = array("Q")
        self.sizes = array("Q")
        self.times = array("q")
        self.suffixes = array("B")
        self.hashes = bytearray()
        self.ordered = True

    def __len__(self) -> int:
        return len(self.numbers)

    def __bool__(self) -> bool:
        return True

    def add(self, number: int, sha1: bytes, suffix: int, size: int, time: int) -> None:
        """Take one file; `suffix` is an index into SUFFIXES."""
        if self.numbers and number < self.numbers[-1]:
            self.ordered = False
        self.numbers.append(number)
        self.hashes += sha1
        self.suffixes.append(suffix)
        self.sizes.append(size)
        self.times.append(time)

    def sort(self) -> None:
        """Bring the files into the order of their numbers; a listing usually is in it already."""
        if self.ordered:
            return
        order = sorted(range(len(self)), key=self.numbers.__getitem__)
        self.hashes = bytearray(b"".join(bytes(self.hashes[20 * i : 20 * i + 20]) for i in order))
        self.numbers = array("Q", [self.numbers[i] for i in order])
        self.sizes = array("Q", [self.sizes[i] for i in order])
        self.times = array("q", [self.times[i] for i in order])
        self.suffixes = array("B", [self.suffixes[i] for i in order])
        self.ordered = True

    def file(self, index: int) -> StoredSegment:
        """Return one file."""
        return StoredSegment(
            self.timeline,
            self.numbers[index],
            self.hashes[20 * index : 20 * index + 20].hex(),
            SUFFIXES[self.suffixes[index]],
            self.sizes[index],
            self.times[index],
        )

    def ranges(self) -> list[Range]:
        """Return which numbers are stored."""
        numbers = self.numbers
        if numbers and numbers[-1] - numbers[0] + 1 == len(numbers) and not self.duplicates:
            return [(numbers[0], numbers[-1])]
        return ranges_of(numbers)

    def stored_at(self, number: int) -> int | None:
        """Return the time at which a segment was stored, in epoch seconds."""
        index = bisect_left(self.numbers, number)
        found = index < len(self) and self.numbers[index] == number and self.times[index] != UNKNOWN
        return self.times[index] if found else None

    @cached_property
    def duplicates(self) -> list[int]:
        """The numbers that are stored more than once."""
        return sorted({a for a, b in pairwise(self.numbers) if a == b})


@dataclass
class Inventory:
    """All of one archive id, such as 15-1; `foreign` counts what has no business there."""

    archive_id: str
    segment_size: int
    tracks: dict[int, Track] = field(default_factory=dict)
    histories: set[int] = field(default_factory=set)
    partials: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    classes: Counter[str] = field(default_factory=Counter)

    @property
    def segments(self) -> int:
        """How many segment files there are."""
        return sum(map(len, self.tracks.values()))

    def files(self) -> Iterator[StoredSegment]:
        """Yield every segment file, by timeline and number."""
        for timeline in sorted(self.tracks):
            track = self.tracks[timeline]
            for index in range(len(track)):
                yield track.file(index)

    def note_foreign(self, path: str) -> None:
        """Count a file that is not pgBackRest's, and name the first of them."""
        self.classes["foreign"] += 1
        if len(self.foreign) < _NAMED:
            self.foreign.append(printable(path))

    def stored_bytes(self) -> int:
        """Sum up the sizes of the segment files."""
        return sum(sum(track.sizes) for track in self.tracks.values())


# One entry: a key, then a flat object. The first form is a segment's.
_ENTRY = re.compile(
    rb'[{,]?"(?:(\d[\d.]*-\d+)/([0-9A-F]{16})/(?:(?=\2)([0-9A-F]{24}))-([0-9a-f]{40})(\.(?:gz|zst|lz4|bz2))?"'
    rb':\{"type":"file","size":(\d+),"time":(\d+)(?:' + TEXT + rb'|[^{}"])*+\}'
    rb'|(?<=")((?:[^"\\]|\\.)*+)"\s*:\s*(\{(?:' + TEXT + rb'|[^{}"])*+\}))\s*',
    re.DOTALL,
)
_ARCHIVE_ID = re.compile(r"^\d[\d.]*-\d+$")


class ListingReader:
    """Reads the listing of `archive/<stanza>` chunk by chunk, in constant memory beside the arrays.

    `segment_size` is that of every archive which `sizes` does not name, in bytes; `strays` lie in none.
    """

    def __init__(self, segment_size: int, sizes: Mapping[str, int] | None = None) -> None:
        self.segment_size = segment_size
        self.sizes = sizes or {}
        self.archives: dict[str, Inventory] = {}
        self.strays: list[str] = []
        self._tracks: dict[tuple[bytes, bytes], tuple[Track, int]] = {}
        self._stream = EntryStream(_ENTRY, self._take_entry)

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk; raises ToolFailed for what is no listing."""
        self._stream.feed(chunk)

    def close(self) -> dict[str, Inventory]:
        """Return an inventory per archive id; raises ToolFailed when the listing did not come whole."""
        self._stream.close()
        for archive in self.archives.values():
            for track in archive.tracks.values():
                track.sort()
            copies = sum(len(track.duplicates) for track in archive.tracks.values())
            archive.classes |= Counter(segment=archive.segments, duplicate=copies)
        return self.archives

    def _take_entry(self, match: re.Match[bytes]) -> None:
        folder, _, name, sha1, suffix, size, time, key, value = match.groups()
        if name is None:
            self._take_other(load(b'"' + key + b'"'), load(value))
        else:
            self._take(folder, name, sha1, suffix, size, time)

    def _take(  # noqa: PLR0913 - the parts of one entry, taken a million times
        self, folder: bytes, name: bytes, sha1: bytes, suffix: bytes | None, size: bytes, time: bytes
    ) -> None:
        track, per_log = self._tracks.get((folder, name[:8])) or self._track(folder, name[:8])
        low = int(name[16:], 16)
        if low >= per_log:
            self._archive(folder.decode()).note_foreign(name.decode())
            return
        number = int(name[8:16], 16) * per_log + low
        track.add(number, unhexlify(sha1), _SUFFIX_CODE[suffix or b""], int(size), int(time))

    def _track(self, folder: bytes, timeline: bytes) -> tuple[Track, int]:
        archive = self._archive(folder.decode())
        track = archive.tracks[int(timeline, 16)] = Track(int(timeline, 16))
        self._tracks[folder, timeline] = track, 0x100000000 // archive.segment_size
        return self._tracks[folder, timeline]

    def _take_other(self, path: str, item: dict[str, object]) -> None:
        if path == "." or item.get("type") == "path":
            return
        archive_id, slash, inside = path.partition("/")
        if slash and _ARCHIVE_ID.match(archive_id):
            self._take_inside(archive_id, inside, item)
        elif final_path(path) not in ARCHIVE_LISTS:
            self.strays.append(printable(path))

    def _take_inside(self, archive_id: str, inside: str, item: dict[str, object]) -> None:
        folder, _, name = inside.rpartition("/")
        match = SEGMENT_FILE.match(name)
        if match and folder == name[:16] and item.get("type") in {"file", "link"}:
            facts = str(item.get("size", 0)), str(item.get("time", UNKNOWN))
            parts = (archive_id, match["segment"], match["sha1"], match["suffix"] or "", *facts)
            self._take(*(part.encode() for part in parts))
        else:
            self._classify(self._archive(archive_id), inside)

    def _classify(self, archive: Inventory, path: str) -> None:
        folder, _, name = path.rpartition("/")
        history = HISTORY_FILE.match(path)
        if history:
            archive.histories.add(int(history["timeline"], 16))
            archive.classes["history"] += 1
        elif BACKUP_FILE.match(name) and folder == name[:16]:
            archive.classes["backup"] += 1
        elif PARTIAL_FILE.match(name) and folder == name[:16]:
            archive.partials.append(name)
            archive.classes["partial"] += 1
        elif is_arriving(name):
            archive.classes["arriving"] += 1
        else:
            archive.note_foreign(path)

    def _archive(self, archive_id: str) -> Inventory:
        if archive_id not in self.archives:
            size = self.sizes.get(archive_id, self.segment_size)
            self.archives[archive_id] = Inventory(archive_id, size)
        return self.archives[archive_id]


def printable(name: str) -> str:
    """Write a file's name so that every report can hold it."""
    return "".join(sign if sign.isprintable() else _spelled(sign) for sign in name)


def _spelled(sign: str) -> str:
    if "\udc80" <= sign <= "\udcff":  # a byte that is no UTF-8, as Python keeps it
        return f"\\x{ord(sign) - 0xDC00:02x}"
    return repr(sign)[1:-1]
