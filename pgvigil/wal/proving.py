"""Proving content: read what is new, changed or due, and remember what was found good."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from pgvigil.backup.survey import posix_repositories, read_options
from pgvigil.errors import ConfigError, PgvigilError
from pgvigil.reports import Finding, Frozen, Severity
from pgvigil.reportstore import open_report_store
from pgvigil.wal.archive import archive_id_of
from pgvigil.wal.ledger import Ledger, LedgerBook
from pgvigil.wal.manifests import faults_of
from pgvigil.wal.opinion import Opinion, read_opinion
from pgvigil.wal.reading import (
    UNREADABLE,
    Rights,
    from_directory,
    from_repository,
    read_patiently,
    require_answer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from pathlib import Path

    from pgvigil.pgbackrest import Backup, StanzaInfo
    from pgvigil.runs import Run
    from pgvigil.wal.archive import Archive
    from pgvigil.wal.content import Origin
    from pgvigil.wal.inventory import Inventory
    from pgvigil.wal.manifests import ManifestFault
    from pgvigil.wal.reading import Judged

_MANIFESTS = "manifests"  # their notes lie beside those of the archive ids
_NOTE_EVERY = 4096  # files after which what was proven is noted, so that a killed run need not begin anew


class Progress(Frozen):
    """How far the reading of content is."""

    done: int
    total: int

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100 * self.done / max(self.total, 1)

    def __str__(self) -> str:
        return f"{self.done} of {self.total} segments read"


@dataclass
class Reading:
    """What became of a repository's content: files read now, proven before, left for the next run."""

    now: int = 0
    before: int = 0
    left: int = 0
    oldest: datetime | None = None
    opinion: Opinion | None = None
    opinion_error: str = ""
    bad: dict[str, list[Judged]] = field(default_factory=dict)


def read_content(  # noqa: PLR0913 - what reading needs
    archive: Archive,
    repo: int,
    info: StanzaInfo,
    inventories: dict[str, Inventory],
    origins: dict[str, Origin],
    now: datetime,
    on_progress: Callable[[Progress], None],
) -> Reading:
    """Read what is new, changed or due, archive by archive; note what is proven as it goes."""
    reading = Reading()
    store = open_report_store(archive.run.fleet.audit.reports, archive.run.fleet.s3)
    deadline = time.monotonic() + archive.policy.prove_for.total_seconds()
    options = _options(archive)
    root = _directory(archive, repo, info, options)
    place = _place(archive, repo, root, options)
    for archive_id, inventory in sorted(inventories.items()):
        book = LedgerBook(store, archive.run.identity.subject, repo, archive_id, place)
        pages = _Pages(archive.run, book, now)
        ledger = _recall(archive, book, now)
        origin = origins[archive_id]
        _read_archive(archive, repo, inventory, origin, ledger, pages, reading, root, deadline, on_progress)
        if archive_id == archive_id_of(info, repo):
            _ask(archive, repo, ledger, pages, reading, now)
        pages.turn()
    return reading


def read_manifests(
    archive: Archive, repo: int, info: StanzaInfo, backups: Sequence[Backup], now: datetime
) -> dict[str, tuple[ManifestFault, ...]]:
    """Return the faults of every backup's manifests by label; what is whole is remembered like segments."""
    store = open_report_store(archive.run.fleet.audit.reports, archive.run.fleet.s3)
    options = _options(archive)
    place = _place(archive, repo, _directory(archive, repo, info, options), options)
    book = LedgerBook(store, archive.run.identity.subject, repo, _MANIFESTS, place)
    ledger, pages = _recall(archive, book, now), _Pages(archive.run, book, now)
    moment, half = int(now.timestamp()), archive.policy.prove_every.total_seconds() / 2

    def is_due(mark: int) -> bool:
        return ledger.is_due(mark, moment, half)

    found = {b.label: faults_of(archive.pgbackrest, repo, b, is_due, pages.add) for b in backups}
    pages.turn()
    return {label: faults for label, faults in found.items() if faults}


def _recall(archive: Archive, book: LedgerBook, now: datetime) -> Ledger:
    """Read what was proven; evidence that cannot be read costs time, not the proof."""
    try:
        return book.read(now, archive.policy.prove_every)
    except PgvigilError as error:
        _warn(
            archive.run,
            f"what was proven before cannot be read, so all is read again: {error.message}",
            error,
        )
        return Ledger()


def _warn(run: Run, message: str, error: PgvigilError) -> None:
    finding = Finding(code=error.code, severity=Severity.WARNING, message=message, hint=error.hint)
    if finding not in run.findings:
        run.findings.append(finding)


class _Pages:
    """What this run proved, noted page by page."""

    def __init__(self, run: Run, book: LedgerBook, now: datetime) -> None:
        self.run = run
        self.book = book
        self.now = now
        self.marks: list[int] = []
        self.opinion = False

    def add(self, mark: int) -> None:
        self.marks.append(mark)
        if len(self.marks) >= _NOTE_EVERY:
            self.turn()

    def turn(self) -> None:
        if not self.marks and not self.opinion:
            return
        try:
            self.book.write(f"{self.run.id}-{time.time_ns()}", self.marks, self.now, opinion=self.opinion)
        except PgvigilError as error:
            _warn(self.run, f"what was proven cannot be noted: {error.message}", error)
        self.marks, self.opinion = [], False


def _options(archive: Archive) -> dict[str, str]:
    """Return what pgbackrest.conf says, nothing where it is out of sight."""
    try:
        return read_options(archive.settings.pgbackrest)
    except ConfigError:
        return {}


def _directory(archive: Archive, repo: int, info: StanzaInfo, options: dict[str, str]) -> Path | None:
    """Return where the archive lies on this host, if it does and is not encrypted."""
    cipher = next((r.cipher for r in info.repo if r.key == repo), "none")
    if cipher != "none" or not options:
        return None
    root = posix_repositories(options).get(repo)
    return root / "archive" / archive.stanza if root else None


_PLACE = re.compile(r"(type|path|host|host-port|host-config|.*-(bucket|endpoint|container|account))")


def _place(archive: Archive, repo: int, root: Path | None, options: dict[str, str]) -> str:
    """Say where a repository is, as exactly as can be seen from here; no secret is in it."""
    settings, lead = archive.settings.pgbackrest, f"repo{repo}-"
    said = {
        key: value
        for key, value in sorted(options.items())
        if key.startswith(lead) and _PLACE.fullmatch(key.removeprefix(lead))
    }
    here = str(root.resolve()) if root else ""
    return repr((settings.command, str(settings.config or ""), settings.stanza, here, said))


def _rights(archive: Archive) -> Rights | None:
    """Return what pgBackRest's user may read, where this process is root and would not notice."""
    user = archive.settings.pgbackrest.user
    return Rights(user) if user and os.geteuid() == 0 else None


def _read_archive(  # noqa: PLR0913 - what reading needs
    archive: Archive,
    repo: int,
    inventory: Inventory,
    origin: Origin,
    ledger: Ledger,
    pages: _Pages,
    reading: Reading,
    root: Path | None,
    deadline: float,
    on_progress: Callable[[Progress], None],
) -> None:
    due = ledger.due(inventory, pages.now, archive.policy.prove_every)
    total = len(due)
    read = from_repository(archive.pgbackrest, repo, f"archive/{archive.stanza}/{inventory.archive_id}")
    if root:
        read = from_directory(root / inventory.archive_id, read, _rights(archive))
    require = partial(require_answer, archive.pgbackrest, repo)
    bad = reading.bad.setdefault(inventory.archive_id, [])
    done = 0
    left = deadline - time.monotonic()
    for judged in read_patiently(due, read, require, origin, archive.policy.readers, left):
        done += 1
        if judged.code:
            bad.append(judged)
        else:
            pages.add(judged.mark)
        on_progress(Progress(done=done, total=total))
    reading.now += done
    reading.before += inventory.segments - total
    reading.left += total - done
    oldest = ledger.oldest()
    if oldest and (reading.oldest is None or oldest < reading.oldest):
        reading.oldest = oldest
    _drop_expired(archive, repo, inventory, bad)


def _drop_expired(archive: Archive, repo: int, inventory: Inventory, bad: list[Judged]) -> None:
    """Forget files that an expire beside us removed after they were listed."""
    for judged in [item for item in bad if item.code == UNREADABLE]:
        path = judged.file.path(inventory.segment_size)
        folder, _, name = path.partition("/")
        there = archive.pgbackrest.ls(repo, f"archive/{archive.stanza}/{inventory.archive_id}/{folder}")
        if name not in there:
            bad.remove(judged)


def _ask(  # noqa: PLR0913 - what asking needs
    archive: Archive, repo: int, ledger: Ledger, pages: _Pages, reading: Reading, now: datetime
) -> None:
    """Ask pgBackRest's own verify once per period; that it could not say is no fault of the archive."""
    policy = archive.policy
    age = now.timestamp() - ledger.opinion_at
    if not policy.second_opinion or age < policy.prove_every.total_seconds():
        return
    try:
        reading.opinion = opinion = _opinion(archive, repo)
        pages.opinion = opinion.is_told and not opinion.bad_wal and not opinion.bad_backups
    except PgvigilError as error:
        reading.opinion_error = error.message


def _opinion(archive: Archive, repo: int) -> Opinion:
    """Ask, and ask again before believing anything bad: what lasts is no work of a backup beside us."""
    opinion = read_opinion(archive.pgbackrest.verify(repo))
    if opinion.is_good or not opinion.is_told:
        return opinion
    return opinion.confirmed_by(read_opinion(archive.pgbackrest.verify(repo)))
