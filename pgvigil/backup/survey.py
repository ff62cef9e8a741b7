"""Look before a backup: server, repositories, program, clocks, locks and leftovers."""

from __future__ import annotations

import configparser
import os
import pwd
import re
import shlex
import signal
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.backup.facts import ServerFacts, Survey, bytes_text
from pgvigil.errors import Busy, ConfigError, PgvigilError, PreconditionFailed, VersionUnsupported
from pgvigil.pgbackrest.info import STANZA_MISSING_DATA, STANZA_MISSING_PATH, STANZA_NO_BACKUP, STANZA_OK
from pgvigil.position import read_position
from pgvigil.processes import TOKEN
from pgvigil.reports import Finding, Frozen, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.fleet import ClusterSettings, PgBackRestSettings
    from pgvigil.pgbackrest import PgBackRest, RepositoryStatus, StanzaInfo
    from pgvigil.pgbackrest.argv import Version
    from pgvigil.policies.backup import BackupPolicy

CLOCK_REFUSED = timedelta(hours=1)

# The first pgbackrest that supports a PostgreSQL major, from its release notes.
_FIRST_SUPPORT = {16: (2, 48), 17: (2, 53), 18: (2, 55)}


def read_server(dsn: str, application_name: str) -> ServerFacts:
    """Ask the server for its facts; the skew is its clock minus ours."""
    with postgres.connect(dsn, application_name) as connection:
        before = datetime.now(tz=UTC)
        position = read_position(connection)
        after = datetime.now(tz=UTC)
        row = connection.execute(query("cluster", "survey")).fetchone() or {}
    skew = position["now"] - (before + (after - before) / 2)
    return ServerFacts.model_validate({**position, **row, "clock_skew": skew})


def survey(settings: ClusterSettings, pgbackrest: PgBackRest, application_name: str) -> Survey:
    """Read everything that the decision and the pre-flight need; changes nothing."""
    version = pgbackrest.version
    return Survey(
        server=read_server(settings.dsn, application_name), stanza=pgbackrest.info(), version=version
    )


def require_stanza(world: Survey) -> None:
    """Raise PreconditionFailed or VersionUnsupported where no backup can be taken at all."""
    require_known_major(world.server.major, world.version)
    if not usable_repositories(world):
        require_created(world.stanza)
        for repository in world.stanza.repo:
            require_usable(world, repository)


def usable_repositories(world: Survey) -> tuple[RepositoryStatus, ...]:
    """Return the repositories into which a backup can be taken."""
    return tuple(repository for repository in world.stanza.repo if _is_usable(world, repository))


def _is_usable(world: Survey, repository: RepositoryStatus) -> bool:
    try:
        require_usable(world, repository)
    except PgvigilError:
        return False
    return True


def require_usable(world: Survey, repository: RepositoryStatus) -> None:
    """Raise PreconditionFailed where no backup can be taken into this repository."""
    require_readable(world.stanza, repository)
    require_stanza_in(world.stanza, repository)
    require_same_system_in(world.stanza, repository.key, world.server)


def require_repositories(stanza: StanzaInfo) -> None:
    """Raise PreconditionFailed for the first repository that pgBackRest could not read."""
    for repository in stanza.repo:
        require_readable(stanza, repository)


def require_readable(stanza: StanzaInfo, repository: RepositoryStatus) -> None:
    """Raise PreconditionFailed where pgBackRest could not read one repository."""
    if repository.status.code not in {STANZA_OK, STANZA_NO_BACKUP, STANZA_MISSING_PATH, STANZA_MISSING_DATA}:
        told = repository.status.message
        raise PreconditionFailed(
            f"stanza '{stanza.name}', repository {repository.key} cannot be read: {_in_short(told)}",
            hint=_repository_cure(repository, told),
        )


def require_created(stanza: StanzaInfo) -> None:
    """Raise PreconditionFailed where there is no repository, or one that does not have the stanza."""
    if not stanza.repo:
        raise _not_created(stanza, "any repository", stanza.status.message)
    for repository in stanza.repo:
        require_stanza_in(stanza, repository)


def require_stanza_in(stanza: StanzaInfo, repository: RepositoryStatus) -> None:
    """Raise PreconditionFailed where one repository does not have the stanza."""
    if repository.status.code in {STANZA_MISSING_PATH, STANZA_MISSING_DATA}:
        raise _not_created(stanza, f"repository {repository.key}", repository.status.message)


def _not_created(stanza: StanzaInfo, where: str, told: str) -> PreconditionFailed:
    return PreconditionFailed(
        f"stanza '{stanza.name}' does not exist in {where}: {told}",
        hint=f"run 'pgbackrest --stanza={stanza.name} stanza-create', or correct pgbackrest.stanza",
    )


def _in_short(told: str) -> str:
    """Keep the error and the store's own code of a message that may quote a whole HTTP exchange."""
    lines = told.split("\n*** ", 1)[0]
    code = re.search(r"<Code>(\w+)</Code>", told)
    return " ".join(lines.split()).rstrip(":") + (f", {code[1]}" if code else "")


def _repository_cure(repository: RepositoryStatus, told: str) -> str:
    option = f"repo{repository.key}"
    if "NoSuchBucket" in told:
        return f"create the bucket, or correct {option}-s3-bucket in pgbackrest.conf"
    if re.search(r"<Code>(AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch)|\b40[13] ", told):
        return (
            f"correct {option}-s3-key and its secret in pgbackrest.conf, or what the bucket's policy grants"
        )
    if "HostConnect" in told:
        return f"check that the store is up, and {option}-s3-endpoint, {option}-storage-port, {option}-host"
    return (
        f"check {option}'s bucket or path, its credentials, and that its store answers from pgbackrest's host"
    )


def require_same_system(stanza: StanzaInfo, server: ServerFacts) -> None:
    """Raise PreconditionFailed where a repository's stanza belongs to another cluster than the server."""
    for repository in stanza.repo:
        require_same_system_in(stanza, repository.key, server)


def require_same_system_in(stanza: StanzaInfo, repo: int, server: ServerFacts) -> None:
    """Raise PreconditionFailed where one repository's stanza belongs to another cluster."""
    recorded = stanza.history(repo).system_id
    if recorded != server.system_id:
        raise PreconditionFailed(
            f"stanza '{stanza.name}', repository {repo} belongs to system {recorded}, "
            f"the server is system {server.system_id}",
            hint="make dsn and pgbackrest.stanza name one cluster; after a major upgrade or a new initdb "
            "run 'pgbackrest stanza-upgrade'",
        )


def require_known_major(major: int, version: Version) -> None:
    """Raise VersionUnsupported for a server that is newer than this pgBackRest knows."""
    needed = _FIRST_SUPPORT.get(major)
    if needed and version < needed:
        raise VersionUnsupported(
            f"pgbackrest {version[0]}.{version[1]} does not know PostgreSQL {major}, "
            f"expected {needed[0]}.{needed[1]} or newer",
            hint="upgrade pgbackrest before you trust it with this server",
        )


def check_server(world: Survey, policy: BackupPolicy, stanza: str) -> list[Finding]:
    """Judge archiver and clock; raises PreconditionFailed where a backup could not be recoverable."""
    require_archiving(world.server, stanza)
    require_archiver(world.server)
    return [*check_backlog(world.server, policy, stanza), *check_clock(world.server, policy, stanza)]


def check_backlog(server: ServerFacts, policy: BackupPolicy, stanza: str) -> list[Finding]:
    """Tell when more WAL files wait for the archiver than the policy allows."""
    if server.ready <= policy.max_ready:
        return []
    return [
        Finding(
            code="archiver-lagging",
            severity=Severity.WARNING,
            message=f"{server.ready} WAL files wait for archiving, expected at most {policy.max_ready}",
            hint="look at archive_command's speed: process-max, archive-async, network",
            subject=stanza,
        )
    ]


def check_clock(server: ServerFacts, policy: BackupPolicy, stanza: str) -> list[Finding]:
    """Tell when the server's clock and this host's are further apart than the policy allows."""
    skew = abs(server.clock_skew)
    if skew <= policy.clock_skew:
        return []
    return [
        Finding(
            code="clock-skew",
            severity=Severity.ERROR if skew > CLOCK_REFUSED else Severity.WARNING,
            message=f"the server's clock is {server.clock_skew.total_seconds():+.1f} s off this host's, "
            f"expected within {policy.clock_skew.total_seconds():g} s",
            hint="synchronise both clocks: labels and recovery targets are times",
            subject=stanza,
        )
    ]


def require_archiving(server: ServerFacts, stanza: str) -> None:
    """Raise PreconditionFailed unless the server is told to archive through pgBackRest into this stanza."""
    if server.archive_mode == "off":
        raise PreconditionFailed(
            "archive_mode is off: a backup without WAL cannot be restored",
            hint="set archive_mode = on and restart the server",
        )
    if not _archives_into(server.archive_command, stanza):
        raise PreconditionFailed(
            f"archive_command is not pgbackrest's for stanza '{stanza}': '{server.archive_command}'",
            hint=f"set it to 'pgbackrest --stanza={stanza} archive-push %p' and reload",
        )


def _archives_into(archive_command: str, stanza: str) -> bool:
    try:
        words = shlex.split(archive_command)
    except ValueError:  # a quote without its end, which no shell would run either
        return False
    is_pgbackrest = any("pgbackrest" in Path(word).name for word in words)
    return is_pgbackrest and (f"--stanza={stanza}" in words or f"--stanza {stanza} " in " ".join(words))


def require_archiver(server: ServerFacts) -> None:
    """Raise ArchiverFailing when the archiver's last word was a failure."""
    if server.archiver_fails:
        raise ArchiverFailing(
            f"the archiver fails since {server.last_failed_time:%Y-%m-%d %H:%M:%S} UTC "
            f"at {server.last_failed_wal} ({server.failed_count} failures), "
            f"last success {server.last_archived_wal or 'never'}",
            hint="see the server log for pgbackrest's message; 'pgbackrest check' reproduces it",
        )


class ArchiverFailing(PreconditionFailed):
    """WAL does not reach the repository at the moment; often it does a little later."""

    code = "PGV-203"
    transient = True


class BackupProcess(Frozen):
    """A pgBackRest process of this host that writes a backup; an orphan is one whose starter is gone."""

    pid: int
    is_worker: bool
    is_ours: bool
    is_orphan: bool


def end_leftovers(settings: PgBackRestSettings) -> list[Finding]:
    """End what a killed run of ours left at work on this host; raises Busy for anybody else's orphan.

    Called under the stanza's lock, so no live run of ours can have a backup process here.
    """
    stanza = settings.stanza
    findings = []
    for process in backup_processes(settings):
        if not process.is_ours:
            if process.is_orphan:
                raise Busy(orphan_message(process, stanza), hint=orphan_cure(process))
            continue
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        findings.append(
            Finding(
                code="leftover-ended",
                severity=Severity.WARNING,
                message=f"process {process.pid}, left at work by a killed run, was ended",
                hint="its backup is not resumed: a new one is taken from the start",
                subject=stanza,
            )
        )
    return findings


def require_no_orphans(settings: PgBackRestSettings) -> None:
    """Raise PreconditionFailed for a backup process on this host whose starter is gone; ends nothing.

    A main process that is not ours and has no parent may be a service's own, so only workers count there.
    """
    for process in backup_processes(settings):
        if process.is_orphan and (process.is_worker or process.is_ours):
            raise PreconditionFailed(orphan_message(process, settings.stanza), hint=orphan_cure(process))


def orphan_message(process: BackupProcess, stanza: str) -> str:
    """Say what is wrong with an orphan."""
    return f"process {process.pid} works on a backup of stanza '{stanza}', but what started it is gone"


def orphan_cure(process: BackupProcess) -> str:
    """Say what to do about an orphan."""
    if process.is_ours:
        return f"the next nightly-backup ends it, or end it yourself: kill -KILL {process.pid}"
    return f"look at it (ps -fp {process.pid}) and end it: a backup beside it could be corrupted"


def backup_processes(settings: PgBackRestSettings) -> Iterator[BackupProcess]:
    """Yield pgBackRest processes of this host that write a backup of the stanza by the same configuration.

    Another configuration's stanza of the same name is another cluster. Main process and workers carry both
    options on their command line; only the default configuration is named on none.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended while we looked
        is_worker = any(word.startswith("backup:") for word in words)
        is_backup = is_worker or "backup" in words
        if is_backup and _is_of(settings, words) and Path(words[0]).name == "pgbackrest":
            pid = int(entry.name)
            yield BackupProcess(
                pid=pid, is_worker=is_worker, is_ours=_is_ours(pid), is_orphan=_parent(pid) == 1
            )


def _is_of(settings: PgBackRestSettings, words: list[str]) -> bool:
    configs = {word.partition("=")[2] for word in words if word.startswith("--config=")}
    expected = {str(settings.config)} if settings.config else set()
    return configs == expected and f"--stanza={settings.stanza}" in words


def _is_ours(pid: int) -> bool:
    try:
        return f"{TOKEN}=".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def check_space(settings: PgBackRestSettings, world: Survey) -> list[Finding]:
    """Compare a local posix repository's free space with the last backup's; raises PreconditionFailed.

    What is not on this host, or not posix, is not looked at: pgBackRest itself says when it is full.
    """
    try:
        repositories = posix_repositories(read_options(settings))
    except ConfigError:
        return []
    findings = []
    for repo, path in repositories.items():
        findings += _check_free(settings.stanza, repo, path, world.stanza)
    return findings


def require_owner(settings: PgBackRestSettings) -> None:
    """Raise PreconditionFailed where pgBackRest would write into a repository of another user of this host.

    Its files would be closed to that user, whose archive-push then fails: WAL piles up at the server. What
    is not in sight is not looked at.
    """
    try:
        repositories = posix_repositories(read_options(settings))
    except ConfigError:
        return
    runner = pwd.getpwnam(settings.user).pw_uid if settings.user else os.geteuid()
    for repo, path in repositories.items():
        owner = path.stat().st_uid
        if owner != runner:
            raise PreconditionFailed(
                f"pgbackrest would run as '{_user(runner)}', but repository {repo} at {path} belongs to "
                f"'{_user(owner)}', who could not write beside its files",
                hint=f"set pgbackrest.user: {_user(owner)} in the fleet file, or run pgvigil as that user",
            )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _check_free(stanza: str, repo: int, path: Path, info: StanzaInfo) -> list[Finding]:
    backups = info.backups(repo)
    full = max((b.info.repository.size for b in backups), default=0)
    delta = max((b.info.repository.delta for b in backups[-7:]), default=0)
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    if free <= delta or free == 0:
        raise PreconditionFailed(
            f"repository {repo} at {path} has {bytes_text(free)} free, "
            f"the largest recent backup took {bytes_text(delta)}",
            hint="free space there, or expire by hand: pgbackrest expire",
        )
    if free >= full:
        return []
    return [
        Finding(
            code="space-low",
            severity=Severity.WARNING,
            message=f"repository {repo} at {path} has {bytes_text(free)} free, "
            f"a full needs {bytes_text(full)}",
            hint="extend the file system before the next full is due",
            subject=stanza,
        )
    ]


def read_options(settings: PgBackRestSettings, etc: Path = Path("/etc")) -> dict[str, str]:
    """Read what pgbackrest.conf says for the stanza; raises ConfigError where this process cannot see it.

    Without a configuration of its own a stanza has that of the host, as pgBackRest finds it below `etc`.
    """
    if len(settings.command) > 1:
        raise ConfigError(
            f"pgbackrest runs behind '{settings.command[0]}', its configuration is not on this host",
            hint="on that host compare pg1-user's rights with infra/roles.sql, and watch disks",
        )
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        for file in [settings.config] if settings.config else _host_configurations(etc):
            parser.read_string(file.read_text(encoding="utf-8"))
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read pgbackrest's configuration: {error}",
            hint="correct pgbackrest.config in the fleet file, or let this user read the file",
        ) from error
    sections = [section for section in ("global", settings.stanza) if parser.has_section(section)]
    return {key: value for section in sections for key, value in parser.items(section)}


def posix_repositories(options: dict[str, str]) -> dict[int, Path]:
    """Return the repositories that are directories of this host, as far as this process can enter them."""
    found = {}
    for repo in range(1, 257):
        path = options.get(f"repo{repo}-path", "/var/lib/pgbackrest" if repo == 1 else "")
        is_here = options.get(f"repo{repo}-type", "posix") == "posix" and f"repo{repo}-host" not in options
        if path and is_here and os.access(path, os.X_OK) and Path(path).is_dir():
            found[repo] = Path(path)
    return found


def _host_configurations(etc: Path) -> list[Path]:
    main = [etc / "pgbackrest" / "pgbackrest.conf", etc / "pgbackrest.conf"]
    included = sorted((etc / "pgbackrest" / "conf.d").glob("*.conf"))
    return [*[path for path in main if path.exists()][:1], *included] or main[:1]


def require_started(pgbackrest: PgBackRest, stanza: StanzaInfo) -> None:
    """Raise PreconditionFailed where a stop file forbids work on the stanza."""
    for repository in stanza.repo:
        if repository.status.code in {STANZA_OK, STANZA_NO_BACKUP} and pgbackrest.is_stopped(repository.key):
            raise PreconditionFailed(
                f"a stop file forbids work on stanza '{stanza.name}'",
                hint="run 'pgbackrest start' once you know why it was stopped",
            )


def check_locks(pgbackrest: PgBackRest, stanza: StanzaInfo, wait: timedelta) -> None:
    """Wait a bounded time for another pgBackRest to end; raises Busy, PreconditionFailed if stopped."""
    require_started(pgbackrest, stanza)
    deadline = time.monotonic() + wait.total_seconds()
    while stanza.status.lock.backup.held:
        if time.monotonic() > deadline:
            raise Busy(
                f"another pgbackrest works on stanza '{stanza.name}' "
                f"for more than {wait.total_seconds():g} s",
                hint="find it on the repository's or the server's host: ps -ef | grep pgbackrest",
            )
        time.sleep(1)
        stanza = pgbackrest.info()
