"""What the copy's server says of a recovery in its log, in English and one file for each start."""

from __future__ import annotations

import re

from pgvigil.wal.names import lsn_text, parse_lsn

RESTORED = re.compile(r'restored log file "(?P<name>[0-9A-F]{24})" from archive')
HISTORY = re.compile(r'restored log file "(?P<timeline>[0-9A-F]{8})\.history" from archive')
STOPPING = re.compile(r"recovery stopping (?:before|after|at) .*")
STOP_LSN = re.compile(r'WAL location \(LSN\) "(?P<lsn>[0-9A-F]+/[0-9A-F]+)"')
LSN = re.compile(r"\b[0-9A-F]+/[0-9A-F]+\b")
REDO_DONE = re.compile(r"redo done at (?P<lsn>[0-9A-F]+/[0-9A-F]+)")
LAST_COMMIT = re.compile(r"last completed transaction was at log time (?P<at>.+)$")
SERIOUS = re.compile(r" (?:FATAL|PANIC|ERROR|WARNING|HINT|DETAIL):  |ERROR: \[\d{3}\]")
# xlogreader.c and xlogrecovery.c: what it says of bytes that are not the record it needs.
COMPLAINT = re.compile(
    r"invalid (?:magic number|info bits|record|resource manager|contrecord|block)"
    r"|incorrect (?:resource manager|prev-link)|record with|unexpected pageaddr|out-of-sequence"
    r"|contrecord|WAL file is from different"
    r"|could not decompress|image .* bimg|archive file \".*\" has wrong size"
)
ASTRAY = re.compile(
    r"requested timeline (?P<timeline>\d+)"
    r" (?:is not a child of this server's history|does not contain minimum recovery point)"
    r"|unexpected timeline ID \d+"
)
PROMOTED = "LOG:  archive recovery complete"
NO_HISTORY = re.compile(
    r"recovery target timeline \d+ does not exist|(?:syntax error|invalid data) in history file"
)

_POSITION = re.compile(r"(?:redo starts at|current LSN:) (?P<lsn>[0-9A-F]+/[0-9A-F]+)")


def restored(lines: list[str]) -> list[str]:
    """Return the names of the segments that came from the archive, in their order."""
    return [match["name"] for match in map(RESTORED.search, lines) if match]


def until_redo_is_done(lines: list[str]) -> list[str]:
    """Return what was said while WAL was read: a promotion fetches the last segment once more."""
    done = next((n for n, line in enumerate(lines) if REDO_DONE.search(line)), len(lines))
    return lines[:done]


def start_of(segment: str, size: int) -> int:
    """Return the LSN at which a segment begins, in bytes."""
    return (int(segment[8:16], 16) << 32) + int(segment[16:24], 16) * size


def last(pattern: re.Pattern[str], lines: list[str], group: str | int = 0) -> str | None:
    """Return the last thing that a pattern finds, if any."""
    found = [match[group] for match in map(pattern.search, lines) if match]
    return found[-1] if found else None


def position(lines: list[str], segment_size: int) -> str | None:
    """Tell the position from the log, which is all there is before the copy takes sessions."""
    found = [match["lsn"] for match in map(_POSITION.search, lines) if match]
    segments = restored(lines)
    if segments:
        found.append(lsn_text(start_of(segments[-1], segment_size)))
    return max(found, key=parse_lsn) if found else None
