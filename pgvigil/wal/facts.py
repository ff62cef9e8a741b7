"""What is known of an archive, as data: the report of verify_wal_archive."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import Field

from pgvigil.pages import cell, table
from pgvigil.reports import Frozen, Report

if TYPE_CHECKING:
    from collections.abc import Iterator


class TimelineFacts(Frozen):
    """One timeline of an archive: what it is, where it branched off, what of it is stored.

    `unjudged` counts segments that no backup's line passes, such as the rest of a timeline that was
    given up: nothing can be restored from them, so a gap there is none.
    """

    id: int
    fate: str
    parent: int | None = None
    switch_lsn: str = ""
    stored_from: datetime | None = None
    first: str = ""
    last: str = ""
    segments: int = 0
    unjudged: int = 0


class Window(Frozen):
    """Points that can be restored, as LSN.

    `from_time` is the end of the backup. `archived_at` is when the repository got the last segment, which
    is no target for a restore: the last commit in it is older, and recovery needs one after its target.
    """

    label: str
    timeline: int
    from_lsn: str
    to_lsn: str
    from_time: datetime
    archived_at: datetime


class Gap(Frozen):
    """A range of WAL that recovery cannot cross, and what that costs on the way to the timeline `line`."""

    code: str
    first: str
    last: str
    segments: int
    from_lsn: str
    to_lsn: str
    from_time: datetime | None = None
    to_time: datetime | None = None
    dead_backups: tuple[str, ...] = ()
    acknowledged: str = ""
    line: int = 1


class BackupMark(Frozen):
    """A backup as the picture shows it, and the timeline to which it can be restored."""

    label: str
    type: str
    at: datetime
    is_usable: bool
    line: int = 1


class ArchiveFacts(Frozen):
    """One archive id of one repository."""

    archive_id: str
    is_current: bool
    classes: dict[str, int] = Field(default_factory=dict)
    stored_bytes: int = 0
    timelines: tuple[TimelineFacts, ...] = ()
    backups: tuple[BackupMark, ...] = ()
    windows: tuple[Window, ...] = ()
    spans: tuple[Window, ...] = ()
    gaps: tuple[Gap, ...] = ()


class RepositoryFacts(Frozen):
    """One repository: its archives, what of their content was read, and the measured latency."""

    repo: int
    archives: tuple[ArchiveFacts, ...] = ()
    read_now: int = 0
    proven_before: int = 0
    oldest_proof: datetime | None = None
    waiting: int = 0
    latency_seconds: float | None = None
    last_commit_at: datetime | None = None
    last_commit_age_seconds: float | None = None


class WalReport(Report):
    """What `verify_wal_archive` returns."""

    repositories: tuple[RepositoryFacts, ...] = ()
    differences: tuple[str, ...] = ()
    picture: str = ""

    def section(self) -> str:
        """Render the picture, then each repository's windows, gaps, timelines and figures."""
        return "\n\n".join(part for part in self._parts() if part)

    def documents(self) -> dict[str, str]:
        """Keep the picture for itself as well."""
        return {"windows.svg": self.picture} if self.picture else {}

    def _parts(self) -> Iterator[str]:
        if self.picture:
            data = base64.b64encode(self.picture.encode()).decode()
            yield f"## What can be restored\n\n![recovery windows](data:image/svg+xml;base64,{data})"
        for repository in self.repositories:
            yield from _repository(repository)
        if self.differences:
            lines = "\n".join(f"- {cell(line)}" for line in self.differences)
            yield f"## Where the repositories differ\n\n{lines}"


def _repository(repository: RepositoryFacts) -> Iterator[str]:
    yield f"## Repository {repository.repo}\n\n" + table(("what", "value"), _figures(repository))
    for archive in repository.archives:
        yield f"### Archive {cell(archive.archive_id)}\n\n" + _spans(archive)
        if archive.gaps:
            yield _gaps(archive)
        yield table(
            ("timeline", "is", "branched off", "first segment", "last segment", "segments", "not judged"),
            (
                (
                    t.id,
                    t.fate,
                    f"{t.parent} at {t.switch_lsn}" if t.parent else "",
                    t.first,
                    t.last,
                    t.segments,
                    t.unjudged,
                )
                for t in archive.timelines
            ),
        )


def _figures(repository: RepositoryFacts) -> Iterator[tuple[str, object]]:
    yield "segments read now", repository.read_now
    yield "proven before", repository.proven_before
    if repository.oldest_proof:
        yield "oldest proof", _time(repository.oldest_proof)
    yield "waiting at the server", repository.waiting
    if repository.latency_seconds is not None:
        yield "a commit arrives after", f"{repository.latency_seconds:.2f} s"
    if repository.last_commit_at is not None and repository.last_commit_age_seconds is not None:
        age = repository.last_commit_age_seconds
        yield "last recoverable commit", f"{_time(repository.last_commit_at)}, {age:.1f} s old"
    for archive in repository.archives:
        classes = ", ".join(f"{count} {name}" for name, count in sorted(archive.classes.items()) if count)
        yield f"files in {archive.archive_id}", classes or "none"


def _spans(archive: ArchiveFacts) -> str:
    if not archive.spans:
        return "**Nothing can be restored.**"
    return table(
        ("restorable from LSN", "to LSN", "timeline", "first backup ended", "last WAL archived"),
        ((s.from_lsn, s.to_lsn, s.timeline, _time(s.from_time), _time(s.archived_at)) for s in archive.spans),
    )


def _gaps(archive: ArchiveFacts) -> str:
    return table(
        ("broken", "from segment", "to segment", "segments", "lost points", "lost backups", "acknowledged"),
        (
            (
                gap.code,
                gap.first,
                gap.last,
                gap.segments,
                f"LSN {gap.from_lsn} to {gap.to_lsn}" if gap.from_lsn else "none",
                ", ".join(gap.dead_backups) or "none",
                gap.acknowledged or "no",
            )
            for gap in archive.gaps
        ),
    )


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
