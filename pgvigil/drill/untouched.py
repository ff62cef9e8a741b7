"""Whether the drill left the repository as it was, but for what production itself has done meanwhile."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from pgvigil.drill.judgement import Judgement, bounded, listed, passed, refuted, unknown
from pgvigil.pgbackrest.listing import ENTRY, EntryStream, load
from pgvigil.reports import Finding, Frozen, Severity
from pgvigil.wal.inventory import printable
from pgvigil.wal.names import (
    ARCHIVE_LISTS,
    HISTORY_FILE,
    PARTIAL_FILE,
    SEGMENT_FILE,
    final_path,
    is_arriving,
    segment_number,
    segment_timeline,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgvigil.pgbackrest import PgBackRest

_EXPECTED = "nothing but production's own new WAL and backups, and what expired"
_LABEL = re.compile(r"^\d{8}-\d{6}F(_\d{8}-\d{6}[DI])?$")
_BACKUP_START = re.compile(r"^(?P<segment>[0-9A-F]{24})\.[0-9A-F]{8}\.backup$")
# What pgbackrest writes anew with every backup, expire and annotate, and what expire does besides.
_LISTS = ("backup.info", "backup.info.copy")
_KEEPING = "backup.history"

Change = Literal["new", "changed", "gone"]


class Stored(NamedTuple):
    """A stored file: bytes, and the store's time of it in epoch seconds."""

    size: int
    time: int


class Listing(NamedTuple):
    """The files of one stanza in one repository, by path below `archive/<stanza>` and `backup/<stanza>`."""

    archive: dict[str, Stored]
    backup: dict[str, Stored]


class Production(Frozen):
    """What production itself may have archived: its timelines, where it writes, and what waited at first.

    `timelines` are those that the server was on from before the first listing to after the last one.
    Before the first listing, at one moment, it was writing segment `first`, and the segments `waiting` were
    ready for its archiver, which may take them late and out of order. After the last it was writing `last`.
    """

    timelines: frozenset[int]
    first: str
    last: str
    segment_size: int
    waiting: frozenset[str] = frozenset()


class Trace(NamedTuple):
    """One difference that production does not explain."""

    path: str
    change: Change
    why: str


class ListingReader:
    """Reads the JSON of `repo-ls` chunk by chunk and keeps the files alone."""

    def __init__(self) -> None:
        self.files: dict[str, Stored] = {}
        self._stream = EntryStream(ENTRY, self._take)

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk; raises ToolFailed for what is no listing."""
        self._stream.feed(chunk)

    def close(self) -> dict[str, Stored]:
        """Return the files; raises ToolFailed when the listing did not come whole."""
        self._stream.close()
        return self.files

    def _take(self, match: re.Match[bytes]) -> None:
        path, entry = load(match[1]), load(match[2])
        if entry.get("type") == "file":
            self.files[path] = Stored(int(entry.get("size", 0)), int(entry.get("time", 0)))


def read(pgbackrest: PgBackRest, repo: int) -> Listing:
    """List one repository's files of the stanza; about 300 bytes of memory for each."""
    with ThreadPoolExecutor(2) as pool:
        paths = (f"{kind}/{pgbackrest.target.stanza}" for kind in Listing._fields)
        return Listing(*pool.map(partial(_read, pgbackrest, repo), paths))


def _read(pgbackrest: PgBackRest, repo: int, path: str) -> dict[str, Stored]:
    reader = ListingReader()
    pgbackrest.list_into(repo, path, reader.feed)
    return reader.close()


def compare(before: Listing, after: Listing, production: Production) -> tuple[Trace, ...]:
    """Find what production's own archiving, backups and expiry do not explain."""
    traces = (*_archive_traces(before, after, production), *_backup_traces(before, after))
    return tuple(trace._replace(path=printable(trace.path)) for trace in traces)


def _changes(before: Mapping[str, Stored], after: Mapping[str, Stored]) -> Iterator[tuple[str, Change]]:
    for path in sorted(before.keys() | after.keys()):
        if path not in before:
            yield path, "new"
        elif path not in after:
            yield path, "gone"
        elif before[path] != after[path]:
            yield path, "changed"


class _Known(NamedTuple):
    """What explains a change of the archive; by archive id, `needed` is the last segment that stays."""

    production: Production
    needed: dict[str, int]
    ids: frozenset[str]
    has_worked: bool


def _archive_traces(before: Listing, after: Listing, production: Production) -> Iterator[Trace]:
    known = _Known(
        production=production,
        needed=_needed(after.archive, production.segment_size),
        ids=frozenset(path.partition("/")[0] for path in after.archive),
        has_worked=any(before.backup.get(path) != after.backup.get(path) for path in _LISTS),
    )
    for path, change in _changes(before.archive, after.archive):
        why = _why_arriving(path, change, known) if is_arriving(path) else _why_stored(path, change, known)
        if why:
            yield Trace(f"archive/{path}", change, why)


def _why_arriving(path: str, change: Change, known: _Known) -> str:
    """Say why no archive-push at work explains a file that is not whole yet; empty when one does."""
    final = final_path(path)
    why = "" if final in ARCHIVE_LISTS else _why_not_archived(final.rpartition("/")[2], known.production)
    return _why_not_expired(final, known) if why and change == "gone" else why


def _why_stored(path: str, change: Change, known: _Known) -> str:
    """Say why production cannot have changed a whole file; empty when it can."""
    if change == "new":
        return _why_not_archived(path.rpartition("/")[2], known.production)
    if change == "gone":
        return _why_not_expired(path, known)
    if path in ARCHIVE_LISTS:
        return "" if known.has_worked else "no backup and no expire of production ran"
    return "an archived file never changes"


def _needed(archive: Mapping[str, Stored], segment_size: int) -> dict[str, int]:
    """Return by archive id the segment in which the newest backup began: no expire goes beyond it."""
    needed: dict[str, int] = {}
    for path in archive:
        if match := _BACKUP_START.match(path.rpartition("/")[2]):
            archive_id = path.partition("/")[0]
            number = segment_number(match["segment"], segment_size)
            needed[archive_id] = max(needed.get(archive_id, -1), number)
    return needed


def _why_not_archived(name: str, production: Production) -> str:
    """Say why production cannot have archived a new file; empty when it can."""
    match = SEGMENT_FILE.match(name) or PARTIAL_FILE.match(name)
    told = match or _BACKUP_START.match(name)
    history = HISTORY_FILE.match(name)
    if not (told or history):
        return "production archives no such file"
    timeline = int(history["timeline"], 16) if history else segment_timeline(told["segment"]) if told else 0
    if timeline not in production.timelines:
        return f"timeline {timeline} is not the server's"
    return _why_not_written(match["segment"], production) if match else ""


def _why_not_written(segment: str, production: Production) -> str:
    number, first, last = (
        segment_number(each, production.segment_size) for each in (segment, production.first, production.last)
    )
    if number < first and segment not in production.waiting:
        return "the server had finished that segment before and was not waiting to archive it"
    if number > last and segment_timeline(segment) == segment_timeline(production.last):
        return "the server has not written that far"
    return ""


def _why_not_expired(path: str, known: _Known) -> str:
    """Say why no expire can have removed a file; empty when one can."""
    archive_id, slash, inside = path.partition("/")
    if slash and archive_id not in known.ids:
        return ""
    name = inside.rpartition("/")[2]
    match = SEGMENT_FILE.match(name) or PARTIAL_FILE.match(name) or _BACKUP_START.match(name)
    if match is None:
        return "no expire removes that file"
    number = segment_number(match["segment"], known.production.segment_size)
    is_old = number < known.needed.get(archive_id, -1)
    return "" if is_old else "the newest backup needs it, so no expire removes it"


def _backup_traces(before: Listing, after: Listing) -> Iterator[Trace]:
    for path, change in _changes(before.backup, after.backup):
        why = _why_not_backed_up(path, change, before, after)
        if why:
            yield Trace(f"backup/{path}", change, why)


def _why_not_backed_up(path: str, change: Change, before: Listing, after: Listing) -> str:
    """Say why no backup, expire or annotate of production explains a change; empty when one does."""
    label, _, rest = path.partition("/")
    if final_path(path) in _LISTS:
        return "" if change == "changed" or is_arriving(path) else "the list of backups stays where it is"
    if label == _KEEPING:
        return "" if change != "changed" or is_arriving(path) else "a kept manifest never changes"
    if not (rest and _LABEL.match(label)):
        return "production writes no such file"
    manifest = f"{label}/backup.manifest"
    if manifest not in before.backup:
        return ""  # a backup that is new, or was at work
    if change == "gone":
        return "its backup is still there" if manifest in after.backup else ""
    return "a finished backup never changes"


def judge(repo: int, before: Listing, after: Listing, production: Production) -> Judgement:
    """Judge whether a repository holds what it would hold without the drill."""
    name = f"repo{repo}.untouched"
    if not (before.archive and before.backup):
        why = "the listing before the drill is empty: a wrong path or stanza answers so, too"
        return Judgement(checks=(unknown(name, _EXPECTED, why),))
    traces = compare(before, after, production)
    if traces:
        groups = _grouped(traces)
        findings = [_finding(repo, change, why, paths) for (change, why), paths in groups.items()]
        faults = [f"{trace.path} is {trace.change}: {trace.why}" for trace in traces]
        return Judgement(checks=(refuted(name, _EXPECTED, faults),), findings=bounded(findings, name))
    files = len(after.archive) + len(after.backup)
    changes = sum(1 for each in zip(before, after, strict=True) for _ in _changes(*each))
    return Judgement(checks=(passed(name, _EXPECTED, f"{files} files, {changes} changed by production"),))


def _grouped(traces: Sequence[Trace]) -> dict[tuple[Change, str], list[str]]:
    groups: dict[tuple[Change, str], list[str]] = {}
    for trace in traces:
        groups.setdefault((trace.change, trace.why), []).append(trace.path)
    return groups


def _finding(repo: int, change: Change, why: str, paths: Sequence[str]) -> Finding:
    return Finding(
        code=f"repository-{change}",
        severity=Severity.ERROR,
        message=f"repository {repo}: {listed(paths)} is {change} since the drill began, and {why}",
        hint="find who wrote or removed it before the next restore: a stray timeline misleads recovery; "
        "credentials of drills should be read-only",
        subject=f"repository {repo}: {paths[0]}",
    )
