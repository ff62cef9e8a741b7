"""What was proven when: notes in the report store, each with the fingerprints of files that were read.

A fingerprint is made of a file's name, size and time, so a file that changed is a new one. Notes older
than the policy's period prove nothing any more and are not read; nor does a note from the future, which a
clock that was set back leaves behind. Notes tell of one place: a copy elsewhere is read anew.
"""

from __future__ import annotations

import base64
import json
import zlib
from array import array
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from struct import Struct
from typing import TYPE_CHECKING

from pgvigil.errors import EvidenceError
from pgvigil.wal.inventory import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.reportstore import ReportStore
    from pgvigil.wal.inventory import Inventory, Track
    from pgvigil.wal.names import StoredSegment

_FACTS = Struct("<QQQqB20s")
_MARK = Struct("<Q")
_STAMP = "%Y%m%dT%H%M%SZ"


def fingerprints(track: Track) -> Iterator[int]:
    """Yield 64 bits of each file's name, size and time, in the track's order."""
    pack, hashes, timeline = _FACTS.pack, bytes(track.hashes), track.timeline
    unpack = _MARK.unpack
    files = zip(track.numbers, track.sizes, track.times, track.suffixes, strict=True)
    for index, (number, size, time, suffix) in enumerate(files):
        facts = pack(timeline, number, size, time, suffix, hashes[20 * index : 20 * index + 20])
        yield unpack(blake2b(facts, digest_size=8).digest())[0]


class Due:
    """Files to read, with their fingerprints; 16 bytes each until they are asked for."""

    def __init__(self) -> None:
        self._tracks: list[tuple[Track, array[int], array[int]]] = []

    def __len__(self) -> int:
        return sum(len(marks) for _, _, marks in self._tracks)

    def __iter__(self) -> Iterator[tuple[int, StoredSegment]]:
        for track, indexes, marks in self._tracks:
            for index, mark in zip(indexes, marks, strict=True):
                yield mark, track.file(index)

    def add(self, track: Track, index: int, mark: int) -> None:
        """Take one file; those of a track come one after the other."""
        if not self._tracks or self._tracks[-1][0] is not track:
            self._tracks.append((track, array("Q"), array("Q")))
        self._tracks[-1][1].append(index)
        self._tracks[-1][2].append(mark)


@dataclass
class Ledger:
    """The proofs that still count: fingerprint to epoch seconds; and when pgBackRest was last asked."""

    proven: dict[int, int] = field(default_factory=dict)
    opinion_at: int = 0

    def due(self, archive: Inventory, now: datetime, period: timedelta) -> Due:
        """Return what to read now: new and changed files, and a share of the rest.

        A proof falls due in the second half of the period, at a point that depends on the file, so that
        no run has to read everything.
        """
        moment, half, due = int(now.timestamp()), period.total_seconds() / 2, Due()
        for timeline in sorted(archive.tracks):
            track = archive.tracks[timeline]
            for index, mark in enumerate(fingerprints(track)):
                if track.times[index] == UNKNOWN or self.is_due(mark, moment, half):
                    due.add(track, index, mark)
        return due

    def is_due(self, mark: int, moment: int, half: float) -> bool:
        """Tell whether what has this fingerprint is to be read; `half` the period is in seconds."""
        at = self.proven.get(mark)
        return at is None or moment - at > half * (1 + (mark & 0xFFFF) / 0x10000)

    def oldest(self) -> datetime | None:
        """Return when the oldest proof that counts was made."""
        return datetime.fromtimestamp(min(self.proven.values()), tz=UTC) if self.proven else None


class LedgerBook:
    """The notes of one cluster's repository and archive id; `place` says where that repository is."""

    def __init__(self, store: ReportStore, cluster: str, repo: int, archive_id: str, place: str) -> None:
        mark = blake2b(place.encode(errors="surrogateescape"), digest_size=4).hexdigest()
        self._store = store
        self._folder = ("wal-proofs", cluster, f"repo{repo}-{mark}", archive_id)

    def read(self, now: datetime, period: timedelta) -> Ledger:
        """Read the notes that still count; raises EvidenceError for one that is unreadable."""
        ledger = Ledger()
        oldest = (now - period).strftime(_STAMP)
        for name in self._store.notes(self._folder):
            if name >= oldest:
                self._take(ledger, name, int(now.timestamp()))
        return ledger

    def _take(self, ledger: Ledger, name: str, now: int) -> None:
        try:
            note = json.loads(self._store.read_note(self._folder, name))
            marks = array("Q", zlib.decompress(base64.b64decode(note["proven"])))
            at = int(note["at"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError, zlib.error) as error:
            raise EvidenceError(
                f"the note {'/'.join(self._folder)}/{name} cannot be read: {error}",
                hint="remove it: the segments it tells of are then read again",
            ) from error
        if not 0 <= at <= now:
            return
        ledger.proven.update(dict.fromkeys(marks, at))
        if note.get("opinion"):
            ledger.opinion_at = max(ledger.opinion_at, at)

    def write(self, page: str, marks: Sequence[int], now: datetime, *, opinion: bool = False) -> None:
        """Note what was proven; a note's name begins with its time, so that old ones need not be read."""
        note = {
            "schema_version": 1,
            "page": page,
            "at": int(now.timestamp()),
            "opinion": opinion,
            "proven": base64.b64encode(zlib.compress(array("Q", marks).tobytes())).decode(),
        }
        name = f"{now.astimezone(UTC).strftime(_STAMP)}-{page}.json"
        self._store.note(self._folder, name, json.dumps(note).encode())
