"""The steps of a WAL proof in their order: each does its work and writes into the run's ledger at its end.

No lock is taken: the proof changes nothing, and must not wait for a backup that takes hours. Instead the
server and the backup list are read on both sides of the listing, so that what happens meanwhile is no fault.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pgvigil.errors import DatabaseFailed, PgvigilError, PreconditionFailed
from pgvigil.pgbackrest import PgBackRest, StanzaInfo
from pgvigil.pgbackrest.info import STANZA_MISSING_PATH, STANZA_NO_BACKUP, STANZA_OK
from pgvigil.reports import Check, Finding, Frozen, Proof, Severity, Verdict, conclude
from pgvigil.wal import heartbeat
from pgvigil.wal.archive import Archive, archive_id_of
from pgvigil.wal.examine import Evidence, Examined, Fault, examine
from pgvigil.wal.facts import RepositoryFacts
from pgvigil.wal.heartbeat import Look, Search
from pgvigil.wal.inventory import Inventory, ListingReader
from pgvigil.wal.names import SEGMENT_FILE, SEGMENT_NAME, segment_name
from pgvigil.wal.origins import origin_of, read_histories, segment_sizes
from pgvigil.wal.picture import draw
from pgvigil.wal.proving import Progress, Reading, read_content, read_manifests
from pgvigil.wal.ranges import clip, count, without
from pgvigil.wal.server import Server
from pgvigil.wal.timelines import Fate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.pgbackrest import Backup
    from pgvigil.runs import Run
    from pgvigil.wal.heartbeat import Beat
    from pgvigil.wal.ranges import Range

_LISTINGS = 3  # so many times a repository is listed while the world around it changes


class World(Frozen):
    """What was seen before the proof: the server, and which repositories can be examined."""

    server: Server
    repos: tuple[int, ...]


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
    folders = {repo: archive_id_of(info, repo) for repo in world.repos}
    look_into = {repo: _look_for(archive, repo, folder, mark) for repo, folder in folders.items()}
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


def _look_for(archive: Archive, repo: int, archive_id: str, mark: Beat) -> Look:
    folder = f"archive/{archive.stanza}/{archive_id}/{mark.segment[:16]}"

    def files(segment: str) -> list[str]:
        stored = archive.pgbackrest.ls(repo, folder)
        return [name for name in stored if SEGMENT_FILE.match(name) and name.startswith(f"{segment}-")]

    def carries(name: str) -> bool:
        search = Search(PurePosixPath(name).suffix, mark.mark)
        archive.pgbackrest.read(repo, f"{folder}/{name}", search.feed)
        return search.found

    return Look(files, carries)


def prove(
    archive: Archive,
    repo: int,
    mark: Beat | None,
    *,
    on_progress: Callable[[Progress], None],
) -> None:
    """Examine one repository wholly, then note checks, findings, proof and facts at once."""
    seen = _look_around(archive, repo)
    before, inventories, info, after = seen.before, seen.inventories, seen.info, seen.after
    current, backups = seen.current, seen.backups
    lacking = read_manifests(archive, repo, info, backups, before.now)
    if lacking:  # an expire beside us may have taken them after they were listed
        still = {backup.label for backup in archive.pgbackrest.info().backups(repo)}
        backups = [backup for backup in backups if backup.label in still]
        lacking = {label: files for label, files in lacking.items() if label in still}
    histories = {name: read_histories(archive.pgbackrest, repo, inv) for name, inv in inventories.items()}
    origins = {name: origin_of(info, repo, inv, histories[name]) for name, inv in inventories.items()}
    reading = read_content(archive, repo, info, inventories, origins, before.now, on_progress)
    examined = {}
    for archive_id, inventory in sorted(inventories.items()):
        is_current = archive_id == current
        own = [backup for backup in backups if info.archive_id(backup) == archive_id]
        evidence = Evidence(
            repo=repo,
            inventory=inventory,
            histories=histories[archive_id].texts,
            unread=histories[archive_id].unread,
            backups=own,
            lacking={label: files for label, files in lacking.items() if label in {b.label for b in own}},
            bad=reading.bad.get(archive_id, ()),
            server=before if is_current else None,
            after=after if is_current else None,
            stuck=_stuck(archive, seen) if is_current else "",
            has_older=bool(backups) and not own,
        )
        examined[archive_id] = examine(evidence, archive.policy, before.now)
    _note(archive, _Proven(repo, current, backups, inventories, examined, reading, mark, after))


@dataclass(frozen=True)
class _Seen:
    """A listing of one repository, with server and backup list as they were on both sides of it."""

    before: Server
    listed: StanzaInfo
    inventories: dict[str, Inventory]
    info: StanzaInfo
    after: Server
    repo: int

    @property
    def current(self) -> str:
        """The archive id into which the server archives now."""
        return archive_id_of(self.info, self.repo)

    @property
    def backups(self) -> list[Backup]:
        """The backups that were there all the time."""
        still = {backup.label for backup in self.listed.backups(self.repo)}
        return [backup for backup in self.info.backups(self.repo) if backup.label in still]

    @property
    def is_steady(self) -> bool:
        """Whether server and backups stayed the same enough for the listing to be judged by them."""
        is_same = (self.before.timeline, self.before.in_recovery) == (
            self.after.timeline,
            self.after.in_recovery,
        )
        return is_same and not self.is_open and bool(self.backups or not self.info.backups(self.repo))

    @property
    def is_open(self) -> bool:
        """Whether the server has not archived yet how it came onto its timeline."""
        timeline = self.before.timeline
        is_stored = timeline in self.inventories[self.current].histories
        return not is_stored and self.before.waits(f"{timeline:08X}.history") is not None


def _look_around(archive: Archive, repo: int) -> _Seen:
    """List a repository; again when a promotion, or the exchange of all backups, fell into the listing."""
    for attempt in range(_LISTINGS):
        seen = _list(archive, repo)
        if seen.is_steady or attempt == _LISTINGS - 1:
            break
    return seen


def _list(archive: Archive, repo: int) -> _Seen:
    before = archive.server()
    listed = archive.pgbackrest.info()
    sizes = segment_sizes(archive.pgbackrest, listed, repo, archive_id_of(listed, repo))
    reader = ListingReader(before.segment_size, sizes)
    archive.pgbackrest.list_into(repo, f"archive/{archive.stanza}", reader.feed)
    inventories = reader.close()
    info = archive.pgbackrest.info()
    current = archive_id_of(info, repo)
    inventories.setdefault(current, Inventory(current, before.segment_size))
    for stray in reader.strays:
        inventories[current].note_foreign(stray)
    return _Seen(before, listed, inventories, info, archive.server(), repo)


def _stuck(archive: Archive, seen: _Seen) -> str:
    """Name the segment at which the archiver fails though every repository holds one of that name.

    If one lacks it, the archiver fails because of that one, and the others are whole.
    """
    name = seen.after.last_failed_wal or ""
    is_waiting = seen.before.waits(name) and seen.after.waits(name)
    if not seen.after.archiver_fails or not is_waiting or not SEGMENT_NAME.match(name):
        return ""
    keys = [repository.key for repository in seen.info.repo]
    return name if all(_has_segment(archive, seen.info, repo, name) for repo in keys) else ""


def _has_segment(archive: Archive, info: StanzaInfo, repo: int, segment: str) -> bool:
    """Tell whether a repository has a file of a segment; one that cannot be read is taken not to."""
    try:
        folder = f"archive/{archive.stanza}/{archive_id_of(info, repo)}/{segment[:16]}"
        return any(name.startswith(f"{segment}-") for name in archive.pgbackrest.ls(repo, folder))
    except PgvigilError:
        return False


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
    server: Server

    @property
    def is_primary(self) -> bool:
        """Whether the server itself archives."""
        return not self.server.in_recovery

    @property
    def now(self) -> Examined:
        """What became of the archive into which the server archives now."""
        return self.examined[self.current]

    @property
    def knows_delay(self) -> bool:
        """Whether the server knows what should have been archived: a standby only while it receives."""
        return self.is_primary or self.server.lsn is not None

    @property
    def is_silent(self) -> bool:
        """Whether the heartbeat did not arrive, and the archiver does nothing about it."""
        if self.mark is None or self.repo in self.mark.latency:
            return False
        last = self.server.last_archived_time
        return self.server.archiver_fails or last is None or last < self.mark.committed_at

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
    run.findings += _silent_archiver(proven)
    run.proofs.append(Proof(name=f"wal repo{proven.repo}", verdict=conclude(checks)))
    run.facts["repositories"] = (*run.facts.get("repositories", ()), _facts(proven))
    stored = run.facts.setdefault("_stored", {})
    size = proven.inventories[proven.current].segment_size
    stored[proven.repo] = proven.examined[proven.current].stored, size


def _checks(archive: Archive, proven: _Proven) -> Iterator[Check]:
    segments = proven.inventories[proven.current].segments
    policy, reading, facts = archive.policy, proven.reading, proven.now.facts
    yield _check(
        proven, "listed", "WAL in the server's archive", f"{segments} segments", is_known=segments > 0
    )
    yield _check(
        proven,
        "timelines",
        "every timeline is the server's, with its history",
        ", ".join(
            f"{t.id} {t.fate}" for examined in proven.examined.values() for t in examined.facts.timelines
        ),
        is_known=segments > 0 and all(t.fate != Fate.UNKNOWN for t in facts.timelines),
    )
    yield _check(
        proven,
        "backups",
        "both manifests of every backup, whole",
        f"{len(proven.backups)} backups",
        is_known=bool(facts.backups),
    )
    yield _check(
        proven,
        "continuity",
        "no WAL missing from any backup to the newest segment of its line, and one leads to the present",
        f"{sum(len(examined.facts.spans) for examined in proven.examined.values())} unbroken spans of "
        "restore points"
        + ("; the timeline's history file waits at the server" if proven.now.is_open else ""),
        is_known=bool(facts.spans) and not proven.now.is_open,
    )
    yield _check(
        proven,
        "delay",
        f"at most {policy.max_delayed_segments} segments or {policy.max_delay.total_seconds():g} s behind",
        f"{proven.now.waiting} waiting"
        if proven.knows_delay
        else "the server is a standby that receives nothing: it cannot know",
        is_known=proven.knows_delay,
        required=proven.knows_delay,
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


def _check(  # noqa: PLR0913 - the fields of a check
    proven: _Proven, name: str, expected: str, good: str, *, is_known: bool = True, required: bool = True
) -> Check:
    """Make a check that is refuted by any refuting fault; what looked at nothing proves nothing."""
    faults = [f.finding.message for f in proven.faults if f.check == name and f.is_refuting]
    shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
    verdict = Verdict.VERIFIED if is_known else Verdict.INCONCLUSIVE
    return Check(
        id=f"repo{proven.repo}.{name}",
        verdict=Verdict.REFUTED if faults else verdict,
        expected=expected,
        actual=shown or good,
        required=required or bool(faults),
    )


def _rpo(proven: _Proven, mark: Beat) -> Check:
    latency = mark.latency.get(proven.repo)
    is_strange = proven.repo in mark.strange
    missing = f"not within {mark.waited:.1f} s" + ("; another segment has its name" if is_strange else "")
    return Check(
        id=f"repo{proven.repo}.rpo",
        verdict=Verdict.VERIFIED if latency is not None else Verdict.INCONCLUSIVE,
        expected=f"the commit in {mark.segment} arrives",
        actual=f"after {latency:.2f} s" if latency is not None else missing,
        required=proven.is_silent,
    )


def _silent_archiver(proven: _Proven) -> list[Finding]:
    """Tell that a commit did not arrive because the archiver does nothing; a slow one is only measured."""
    mark, server = proven.mark, proven.server
    if not mark or not proven.is_silent:
        return []
    why = f"fails at {server.last_failed_wal}" if server.archiver_fails else "has archived nothing since"
    return [
        Finding(
            code="archiver-fails",
            severity=Severity.ERROR,
            message=f"repository {proven.repo}: a commit in {mark.segment} did not arrive within "
            f"{mark.waited:.1f} s, and the archiver {why}; nothing is lost while the server's disk lives",
            hint="see the server log for pgbackrest's message; 'pgbackrest check' reproduces it",
            subject=mark.segment,
        )
    ]


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
        last_commit_age_seconds=(proven.server.now - arrived).total_seconds() if arrived else None,
    )


def show(archive: Archive) -> None:
    """Compare the repositories, and draw what can be restored into report and evidence."""
    run = archive.run
    stored = run.facts.pop("_stored", {})
    run.facts["differences"] = tuple(_differences(stored, archive.settings.pgbackrest.stanza))
    picture = draw(run.facts.get("repositories", ()))
    if picture:
        run.facts["picture"] = picture


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
