"""The steps of a WAL proof in their order: each does its work and writes into the run's ledger at its end.

No lock is taken: the proof changes nothing, and must not wait for a backup that takes hours. Instead the
server and the backup list are read on both sides of the listing, so that what happens meanwhile is no fault.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from pgvigil.backup.survey import posix_repositories, read_options
from pgvigil.errors import ConfigError, DatabaseFailed, EvidenceError, PgvigilError, PreconditionFailed
from pgvigil.pgbackrest import PgBackRest, StanzaInfo
from pgvigil.pgbackrest.info import STANZA_MISSING_PATH, STANZA_NO_BACKUP, STANZA_OK
from pgvigil.reports import Check, Finding, Frozen, Proof, Severity, Verdict, conclude
from pgvigil.reportstore import open_report_store
from pgvigil.wal import heartbeat
from pgvigil.wal.examine import Evidence, Examined, Fault, examine
from pgvigil.wal.facts import RepositoryFacts
from pgvigil.wal.inventory import Inventory, ListingReader
from pgvigil.wal.ledger import Ledger, LedgerBook
from pgvigil.wal.names import segment_name
from pgvigil.wal.opinion import Opinion, read_opinion
from pgvigil.wal.picture import draw
from pgvigil.wal.ranges import clip, count, without
from pgvigil.wal.reading import from_directory, from_repository, read_all
from pgvigil.wal.server import Server, read_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime
    from pathlib import Path

    from pgvigil.fleet import ClusterSettings, WalPolicy
    from pgvigil.pgbackrest import Backup
    from pgvigil.runs import Run
    from pgvigil.wal.heartbeat import Beat
    from pgvigil.wal.ranges import Range
    from pgvigil.wal.reading import Judged

_NOTE_EVERY = 4096  # files after which what was proven is noted, so that a killed run need not begin anew
_MANIFESTS = ("backup.manifest", "backup.manifest.copy")


@dataclass(frozen=True)
class Archive:
    """A cluster's WAL archive: how to reach it, and the ledger to write into."""

    run: Run
    settings: ClusterSettings
    pgbackrest: PgBackRest

    @property
    def stanza(self) -> str:
        """The stanza's name."""
        return self.settings.pgbackrest.stanza

    @property
    def policy(self) -> WalPolicy:
        """What the fleet file asks of this archive."""
        return self.settings.wal

    def server(self) -> Server:
        """Ask the server now."""
        return read_server(self.settings.dsn, self.run.name)


class World(Frozen):
    """What was seen before the proof: the server, and which repositories can be examined."""

    server: Server
    repos: tuple[int, ...]


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


def open_archive(run: Run) -> Archive:
    """Find the run's cluster in the fleet file; raises ConfigError for an unknown one."""
    settings = run.fleet.cluster(run.identity.subject)
    return Archive(run, settings, PgBackRest(settings.pgbackrest))


def look(archive: Archive) -> World:
    """Read server and repositories; a repository that cannot be used is noted, and the others go on."""
    server = archive.server()
    stanza = archive.pgbackrest.info()
    if stanza.status.code == STANZA_MISSING_PATH:
        raise PreconditionFailed(
            f"stanza '{archive.stanza}' does not exist in its repository: {stanza.status.message}",
            hint="correct pgbackrest.stanza in the fleet file, or run 'pgbackrest stanza-create'",
        )
    usable, refused = [], []
    for repository in stanza.repo:
        error = _refusal(archive, stanza, server, repository.key)
        if error:
            refused.append((repository.key, error))
        else:
            usable.append(repository.key)
    for repo, error in refused:
        give_up(archive, repo, error)
    if not stanza.repo:
        raise PreconditionFailed(
            f"pgbackrest names no repository of stanza '{archive.stanza}'", hint="correct pgbackrest.conf"
        )
    return World(server=server, repos=tuple(usable))


def _refusal(archive: Archive, stanza: StanzaInfo, server: Server, repo: int) -> PgvigilError | None:
    status = next(r.status for r in stanza.repo if r.key == repo)
    if status.code not in {STANZA_OK, STANZA_NO_BACKUP}:
        return PreconditionFailed(
            f"stanza '{archive.stanza}', repository {repo}: {' '.join(status.message.split())}",
            hint="check bucket or path, credentials, and that stanza-create was run for this repository",
        )
    system_id = stanza.history(repo).system_id
    if system_id != server.system_id:
        return PreconditionFailed(
            f"repository {repo} belongs to system {system_id}, the server is {server.system_id}",
            hint="check stanza and dsn: they name different clusters",
        )
    return None


def give_up(archive: Archive, repo: int, error: PgvigilError) -> None:
    """Note that a repository could not be examined, and why."""
    run = archive.run
    run.findings.append(
        Finding(
            code=error.code,
            severity=Severity.ERROR,
            message=error.message,
            hint=error.hint,
            subject=f"repository {repo}",
        )
    )
    check = Check(
        id=f"repo{repo}.listed",
        verdict=Verdict.INCONCLUSIVE,
        expected="the archive can be read",
        actual=error.message,
    )
    run.checks.append(check)
    run.proofs.append(Proof(name=f"wal repo{repo}", verdict=Verdict.INCONCLUSIVE))


def beat(archive: Archive, world: World) -> Beat | None:
    """Commit a mark and wait until every usable repository holds it; without the right to, note so."""
    run, policy = archive.run, archive.policy
    if not policy.heartbeat or not world.repos:
        return None
    if world.server.in_recovery:
        _no_beat(run, "the server is a standby: it cannot commit")
        return None
    try:
        with run.step("heartbeat") as noted:
            mark = heartbeat.commit(archive.settings.dsn, run.name, str(run.id))
            noted["segment"] = mark.segment
    except DatabaseFailed as error:
        if not error.sqlstate:
            raise
        _no_beat(run, f"{error.message}; {error.hint}")
        return None
    info = archive.pgbackrest.info()
    folders = {repo: _archive_id(info, repo) for repo in world.repos}
    look_into = {repo: partial(_holds, archive, repo, folder) for repo, folder in folders.items()}
    hopeless = partial(heartbeat.is_hopeless, archive.settings.dsn, run.name, mark.segment)
    return heartbeat.await_arrival(mark, look_into, hopeless, policy.heartbeat_wait)


def _no_beat(run: Run, reason: str) -> None:
    run.checks.append(
        Check(
            id="heartbeat",
            verdict=Verdict.INCONCLUSIVE,
            expected="a commit of our own, to measure how long it takes to arrive",
            actual=reason,
            required=False,
        )
    )


def _holds(archive: Archive, repo: int, archive_id: str, segment: str) -> bool:
    folder = f"archive/{archive.stanza}/{archive_id}/{segment[:16]}"
    return any(name.startswith(f"{segment}-") for name in archive.pgbackrest.ls(repo, folder))


def _archive_id(info: StanzaInfo, repo: int) -> str:
    history = info.history(repo)
    return f"{history.version}-{history.id}"


def prove(
    archive: Archive,
    repo: int,
    mark: Beat | None,
    *,
    on_progress: Callable[[Progress], None],
) -> None:
    """Examine one repository wholly, then note checks, findings, proof and facts at once."""
    before = archive.server()
    listed = archive.pgbackrest.info()
    reader = ListingReader(before.segment_size)
    archive.pgbackrest.list_into(repo, f"archive/{archive.stanza}", reader.feed)
    inventories = reader.close()
    info = archive.pgbackrest.info()
    after = archive.server()
    current = _archive_id(info, repo)
    inventories.setdefault(current, Inventory(current, before.segment_size))
    still = {backup.label for backup in listed.backups(repo)}
    backups = [backup for backup in info.backups(repo) if backup.label in still]
    lacking = _lacking(archive, repo, backups)
    reading = _read_content(archive, repo, info, inventories, before.now, on_progress)
    examined = {}
    for archive_id, inventory in sorted(inventories.items()):
        is_current = archive_id == current
        own = [backup for backup in backups if info.archive_id(backup) == archive_id]
        evidence = Evidence(
            repo=repo,
            inventory=inventory,
            histories=_histories(archive, repo, inventory),
            backups=own,
            lacking={label: files for label, files in lacking.items() if label in {b.label for b in own}},
            bad=reading.bad.get(archive_id, ()),
            server=before if is_current else None,
            timeline=after.timeline if is_current else None,
        )
        examined[archive_id] = examine(evidence, archive.policy, before.now)
    _note(archive, _Proven(repo, current, backups, inventories, examined, reading, mark, after.now))


def _lacking(archive: Archive, repo: int, backups: Sequence[Backup]) -> dict[str, tuple[str, ...]]:
    """Look for the manifests of every backup: `info` lists a backup that has none."""
    found = {}
    for backup in backups:
        there = archive.pgbackrest.ls(repo, f"backup/{archive.stanza}/{backup.label}")
        missing = tuple(name for name in _MANIFESTS if name not in there)
        if missing:
            found[backup.label] = missing
    return found


def _histories(archive: Archive, repo: int, inventory: Inventory) -> dict[int, str]:
    found = {}
    for timeline in sorted(inventory.histories):
        chunks: list[bytes] = []
        path = f"archive/{archive.stanza}/{inventory.archive_id}/{timeline:08X}.history"
        archive.pgbackrest.read(repo, path, chunks.append)
        found[timeline] = b"".join(chunks).decode(errors="replace")
    return found


def _read_content(  # noqa: PLR0913 - what reading needs
    archive: Archive,
    repo: int,
    info: StanzaInfo,
    inventories: dict[str, Inventory],
    now: datetime,
    on_progress: Callable[[Progress], None],
) -> Reading:
    """Read what is new, changed or due, archive by archive; note what is proven as it goes."""
    reading = Reading()
    store = open_report_store(archive.run.fleet.audit.reports, archive.run.fleet.s3)
    deadline = time.monotonic() + archive.policy.prove_for.total_seconds()
    root = _directory(archive, repo, info)
    for archive_id, inventory in sorted(inventories.items()):
        book = LedgerBook(store, archive.run.identity.subject, repo, archive_id)
        pages = _Pages(archive.run, book, now)
        ledger = _recall(archive, book, now)
        _read_archive(archive, repo, inventory, ledger, pages, reading, root, deadline, on_progress)
        if archive_id == _archive_id(info, repo):
            _ask(archive, repo, ledger, pages, reading, now)
        pages.turn()
    return reading


def _recall(archive: Archive, book: LedgerBook, now: datetime) -> Ledger:
    """Read what was proven; evidence that cannot be read costs time, not the proof."""
    try:
        return book.read(now, archive.policy.prove_every)
    except (PgvigilError, EvidenceError) as error:
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


def _directory(archive: Archive, repo: int, info: StanzaInfo) -> Path | None:
    """Return where the archive lies on this host, if it does and is not encrypted."""
    cipher = next((r.cipher for r in info.repo if r.key == repo), "none")
    if cipher != "none":
        return None
    try:
        options = read_options(archive.settings.pgbackrest)
    except ConfigError:
        return None
    root = posix_repositories(options).get(repo)
    return root / "archive" / archive.stanza if root else None


def _read_archive(  # noqa: PLR0913 - what reading needs
    archive: Archive,
    repo: int,
    inventory: Inventory,
    ledger: Ledger,
    pages: _Pages,
    reading: Reading,
    root: Path | None,
    deadline: float,
    on_progress: Callable[[Progress], None],
) -> None:
    due = ledger.due(inventory, pages.now, archive.policy.prove_every)
    total = len(due)
    read = (
        from_directory(root / inventory.archive_id)
        if root
        else from_repository(archive.pgbackrest, repo, f"archive/{archive.stanza}/{inventory.archive_id}")
    )
    bad = reading.bad.setdefault(inventory.archive_id, [])
    done = 0
    left = deadline - time.monotonic()
    for judged in read_all(due, read, inventory.segment_size, archive.policy.readers, left):
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
    for judged in [item for item in bad if item.code == "wal-unreadable"]:
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
        reading.opinion = read_opinion(archive.pgbackrest.verify(repo))
        pages.opinion = reading.opinion.is_told and not reading.opinion.bad_wal
    except PgvigilError as error:
        reading.opinion_error = error.message


@dataclass(frozen=True)
class _Proven:
    """All that is known of one repository at the end."""

    repo: int
    current: str
    backups: Sequence[Backup]
    inventories: dict[str, Inventory]
    examined: dict[str, Examined]
    reading: Reading
    mark: Beat | None
    now: datetime

    @property
    def faults(self) -> list[Fault]:
        return [fault for examined in self.examined.values() for fault in examined.faults]


def _note(archive: Archive, proven: _Proven) -> None:
    """Write the whole outcome of one repository into the ledger."""
    run = archive.run
    checks = list(_checks(archive, proven))
    opinion = _opinion_finding(proven)
    run.checks += checks
    run.findings += [fault.finding for fault in proven.faults] + opinion
    run.findings += _nothing_found(proven)
    run.proofs.append(Proof(name=f"wal repo{proven.repo}", verdict=conclude(checks)))
    run.facts["repositories"] = (*run.facts.get("repositories", ()), _facts(proven))
    stored = run.facts.setdefault("_stored", {})
    size = proven.inventories[proven.current].segment_size
    stored[proven.repo] = proven.examined[proven.current].stored, size


def _nothing_found(proven: _Proven) -> list[Finding]:
    if proven.backups:
        return []
    segments = sum(inventory.segments for inventory in proven.inventories.values())
    return [
        Finding(
            code="no-backup" if segments else "archive-empty",
            severity=Severity.ERROR,
            message=f"repository {proven.repo} has {segments} segments, no backup: nothing is restorable",
            hint="take a full backup: nightly-backup; an empty archive may also be a wrong repo-path",
            subject=f"repository {proven.repo}",
        )
    ]


def _checks(archive: Archive, proven: _Proven) -> Iterator[Check]:
    segments = sum(inventory.segments for inventory in proven.inventories.values())
    windows = sum(len(examined.facts.spans) for examined in proven.examined.values())
    policy, reading = archive.policy, proven.reading
    yield _check(proven, "listed", "WAL in the archive", f"{segments} segments", is_known=segments > 0)
    yield _check(
        proven,
        "timelines",
        "every timeline is the server's, with its history",
        ", ".join(
            f"{t.id} {t.fate}" for examined in proven.examined.values() for t in examined.facts.timelines
        ),
        is_known=segments > 0,
    )
    has_backups = bool(proven.backups)
    yield _check(
        proven,
        "backups",
        "both manifests of every backup",
        f"{len(proven.backups)} backups",
        is_known=has_backups,
    )
    yield _check(
        proven,
        "continuity",
        "no WAL missing from any backup to the newest segment of its line",
        f"{windows} unbroken spans of restore points",
        is_known=has_backups,
    )
    yield _check(
        proven,
        "delay",
        f"at most {policy.max_delayed_segments} segments or {policy.max_delay.total_seconds():g} s behind",
        f"{sum(examined.waiting for examined in proven.examined.values())} waiting",
    )
    yield _check(
        proven,
        "content",
        "every segment's content is what its name says",
        f"{reading.now} read now, {reading.before} proven within {policy.prove_every.days} days, "
        f"{reading.left} not yet read",
        is_known=segments > 0 and reading.left == 0,
    )
    if proven.mark:
        yield _rpo(proven, proven.mark)
    if policy.second_opinion and (reading.opinion or reading.opinion_error):
        yield _opinion(proven)


def _check(proven: _Proven, name: str, expected: str, good: str, *, is_known: bool = True) -> Check:
    """Make a check that is refuted by any refuting fault; what looked at nothing proves nothing."""
    faults = [f.finding.message for f in proven.faults if f.check == name and f.is_refuting]
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    verdict = Verdict.VERIFIED if is_known else Verdict.INCONCLUSIVE
    return Check(
        id=f"repo{proven.repo}.{name}",
        verdict=Verdict.REFUTED if faults else verdict,
        expected=expected,
        actual=shown or good,
    )


def _rpo(proven: _Proven, mark: Beat) -> Check:
    latency = mark.latency.get(proven.repo)
    return Check(
        id=f"repo{proven.repo}.rpo",
        verdict=Verdict.VERIFIED if latency is not None else Verdict.INCONCLUSIVE,
        expected=f"the commit in {mark.segment} arrives",
        actual=f"after {latency:.2f} s" if latency is not None else f"not within {mark.waited:.1f} s",
        required=False,
    )


def _opinion(proven: _Proven) -> Check:
    reading = proven.reading
    opinion = reading.opinion
    is_same = opinion is not None and opinion.is_told and not _opinion_finding(proven)
    bad = sum(opinion.bad_wal.values()) if opinion else 0
    return Check(
        id=f"repo{proven.repo}.second-opinion",
        verdict=Verdict.VERIFIED if is_same else Verdict.INCONCLUSIVE,
        expected="pgbackrest verify finds nothing that we did not",
        actual=reading.opinion_error
        or (f"{opinion.checked} files checked, {bad} bad WAL files" if opinion else "nothing"),
        required=False,
    )


def _opinion_finding(proven: _Proven) -> list[Finding]:
    """Tell what pgBackRest found and we did not."""
    opinion = proven.reading.opinion
    if opinion is None:
        return []
    ours = {fault.check for fault in proven.faults}
    told = []
    if opinion.bad_wal and not ours & {"content"}:
        told.append(f"{sum(opinion.bad_wal.values())} bad WAL files in {', '.join(opinion.bad_wal)}")
    listed = {backup.label for backup in proven.backups}
    bad = {label: status for label, status in opinion.bad_backups.items() if label in listed}
    if bad and "backups" not in ours:
        told.append(", ".join(f"backup {label} {status}" for label, status in bad.items()))
    if not told:
        return []
    return [
        Finding(
            code="second-opinion",
            severity=Severity.WARNING,
            message=f"repository {proven.repo}: pgbackrest verify tells of {'; '.join(told)}",
            hint="run 'pgbackrest verify --output=text --verbose' again: an expire beside it makes it err",
            subject=f"repository {proven.repo}",
        )
    ]


def _facts(proven: _Proven) -> RepositoryFacts:
    mark, reading = proven.mark, proven.reading
    latency = mark.latency.get(proven.repo) if mark else None
    arrived = mark.committed_at if mark and latency is not None else None
    return RepositoryFacts(
        repo=proven.repo,
        archives=tuple(examined.facts for examined in proven.examined.values()),
        read_now=reading.now,
        proven_before=reading.before,
        oldest_proof=reading.oldest,
        waiting=sum(examined.waiting for examined in proven.examined.values()),
        latency_seconds=latency,
        last_commit_at=arrived,
        last_commit_age_seconds=(proven.now - arrived).total_seconds() if arrived else None,
    )


def show(archive: Archive) -> None:
    """Compare the repositories, and draw what can be restored into report and evidence."""
    run = archive.run
    stored = run.facts.pop("_stored", {})
    run.facts["differences"] = tuple(_differences(stored, archive.settings.pgbackrest.stanza))
    picture = draw(run.facts.get("repositories", ()))
    if picture:
        run.facts["picture"] = picture
        (run.directory / "windows.svg").write_text(picture, encoding="utf-8")


def _differences(stored: dict[int, tuple[dict[int, list[Range]], int]], stanza: str) -> Iterator[str]:
    """Say what one repository has and another lacks, where both reach."""
    for repo, (ours, size) in stored.items():
        for other, (theirs, _) in stored.items():
            for timeline in sorted(ours) if repo != other else ():
                shared = theirs.get(timeline, [])
                if not shared:
                    continue
                only = without(clip(ours[timeline], shared[0][0], shared[-1][1]), shared)
                if only:
                    first, last = only[0][0], only[-1][1]
                    yield (
                        f"repository {repo} has {count(only)} segments of stanza {stanza} that repository "
                        f"{other} lacks, from {segment_name(timeline, first, size)} "
                        f"to {segment_name(timeline, last, size)}"
                    )
