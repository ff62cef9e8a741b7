"""Look before a backup: server, repositories, program, clocks, locks and leftovers."""

from __future__ import annotations

import configparser
import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.backup.facts import ServerFacts, Survey, bytes_text
from pgvigil.errors import Busy, PreconditionFailed, VersionUnsupported
from pgvigil.pgbackrest.info import STANZA_MISSING_PATH, STANZA_NO_BACKUP, STANZA_OK
from pgvigil.processes import TOKEN
from pgvigil.reports import Finding, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.fleet import BackupPolicy, ClusterSettings, PgBackRestSettings
    from pgvigil.pgbackrest import PgBackRest, StanzaInfo

CLOCK_REFUSED = timedelta(hours=1)

# The first pgbackrest that supports a PostgreSQL major, from its release notes.
_FIRST_SUPPORT = {16: (2, 48), 17: (2, 54), 18: (2, 55)}


def read_server(dsn: str, application_name: str) -> ServerFacts:
    """Ask the server for its facts in one statement; the skew is its clock minus ours."""
    with postgres.connect(dsn, application_name) as connection:
        before = datetime.now(tz=UTC)
        row = connection.execute(query("cluster", "survey")).fetchone() or {}
        after = datetime.now(tz=UTC)
    return ServerFacts.model_validate({**row, "clock_skew": row["now"] - (before + (after - before) / 2)})


def survey(settings: ClusterSettings, pgbackrest: PgBackRest, application_name: str) -> Survey:
    """Read everything that the decision and the pre-flight need; changes nothing."""
    version = pgbackrest.version
    return Survey(
        server=read_server(settings.dsn, application_name), stanza=pgbackrest.info(), version=version
    )


def require_stanza(world: Survey) -> None:
    """Raise PreconditionFailed or VersionUnsupported where no backup can be taken at all."""
    stanza, server, version = world.stanza, world.server, world.version
    if stanza.status.code == STANZA_MISSING_PATH:
        raise PreconditionFailed(
            f"stanza '{stanza.name}' does not exist in its repository: {stanza.status.message}",
            hint=f"run 'pgbackrest --stanza={stanza.name} stanza-create', or correct pgbackrest.stanza",
        )
    for repository in stanza.repo:
        if repository.status.code not in {STANZA_OK, STANZA_NO_BACKUP}:
            raise PreconditionFailed(
                f"stanza '{stanza.name}', repository {repository.key}: "
                f"{_one_line(repository.status.message)}",
                hint="check bucket or path, credentials, and that stanza-create was run for this repository",
            )
    needed = _FIRST_SUPPORT.get(server.major)
    if needed and version < needed:
        raise VersionUnsupported(
            f"pgbackrest {version[0]}.{version[1]} does not know PostgreSQL {server.major}, "
            f"expected {needed[0]}.{needed[1]} or newer",
            hint="upgrade pgbackrest before you trust it with this server",
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def check_server(world: Survey, policy: BackupPolicy, stanza: str) -> list[Finding]:
    """Judge archiver and clock; raises PreconditionFailed where a backup could not be recoverable."""
    server = world.server
    _require_archiving(server, stanza)
    findings = []
    if server.ready > policy.max_ready:
        findings.append(
            Finding(
                code="archiver-lagging",
                severity=Severity.WARNING,
                message=f"{server.ready} WAL files wait for archiving, expected at most {policy.max_ready}",
                hint="look at archive_command's speed: process-max, archive-async, network",
                subject=stanza,
            )
        )
    skew = abs(server.clock_skew)
    if skew > policy.clock_skew:
        findings.append(
            Finding(
                code="clock-skew",
                severity=Severity.ERROR if skew > CLOCK_REFUSED else Severity.WARNING,
                message=f"the server's clock is {server.clock_skew.total_seconds():+.1f} s off this host's, "
                f"expected within {policy.clock_skew.total_seconds():g} s",
                hint="synchronise both clocks: labels and recovery targets are times",
                subject=stanza,
            )
        )
    return findings


def _require_archiving(server: ServerFacts, stanza: str) -> None:
    if server.archive_mode == "off":
        raise PreconditionFailed(
            "archive_mode is off: a backup without WAL cannot be restored",
            hint="set archive_mode = on and restart the server",
        )
    if "pgbackrest" not in server.archive_command or f"--stanza={stanza}" not in server.archive_command:
        raise PreconditionFailed(
            f"archive_command is not pgbackrest's for stanza '{stanza}': '{server.archive_command}'",
            hint=f"set it to 'pgbackrest --stanza={stanza} archive-push %p' and reload",
        )
    failed, archived = server.last_failed_time, server.last_archived_time
    if failed and (archived is None or failed > archived):
        raise ArchiverFailing(
            f"the archiver fails since {failed:%Y-%m-%d %H:%M:%S} UTC at {server.last_failed_wal} "
            f"({server.failed_count} failures), last success {server.last_archived_wal or 'never'}",
            hint="see the server log for pgbackrest's message; 'pgbackrest check' reproduces it",
        )


class ArchiverFailing(PreconditionFailed):
    """WAL does not reach the repository at the moment; often it does a little later."""

    code = "PGV-203"
    transient = True


def end_leftovers(stanza: str) -> list[Finding]:
    """End what a killed run of ours left at work on this host; raises Busy for anybody else's orphan.

    Called under the stanza's lock, so no live run of ours can have a backup process here.
    """
    findings = []
    for pid in _backup_processes(stanza):
        if not _is_ours(pid):
            if _parent(pid) == 1:
                raise Busy(
                    f"process {pid} works on a backup of stanza '{stanza}', but what started it is gone",
                    hint=f"look at it (ps -fp {pid}) and end it: a backup beside it could be corrupted",
                )
            continue
        os.kill(pid, signal.SIGKILL)
        findings.append(
            Finding(
                code="leftover-ended",
                severity=Severity.WARNING,
                message=f"process {pid}, left at work by a killed run, was ended",
                hint="its backup is not resumed: a new one is taken from the start",
                subject=stanza,
            )
        )
    return findings


def _backup_processes(stanza: str) -> Iterator[int]:
    """Yield pgBackRest processes of this host that write a backup of the stanza."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it ended while we looked
        is_backup = any(word == "backup" or word.startswith("backup:") for word in words)
        if is_backup and f"--stanza={stanza}" in words and Path(words[0]).name == "pgbackrest":
            yield int(entry.name)


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
    findings = []
    for repo, path in _posix_repositories(settings):
        backups = world.stanza.backups(repo)
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
        if free < full:
            findings.append(
                Finding(
                    code="space-low",
                    severity=Severity.WARNING,
                    message=f"repository {repo} at {path} has {bytes_text(free)} free, "
                    f"a full needs {bytes_text(full)}",
                    hint="extend the file system before the next full is due",
                    subject=settings.stanza,
                )
            )
    return findings


def _posix_repositories(settings: PgBackRestSettings) -> Iterator[tuple[int, Path]]:
    if len(settings.command) > 1:
        return
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    candidates = [settings.config] if settings.config else _DEFAULT_CONFIGS
    try:
        parser.read([path for path in candidates if path.exists()], encoding="utf-8")
    except (OSError, configparser.Error):
        return
    options = {
        key: value
        for section in ("global", settings.stanza)
        if parser.has_section(section)
        for key, value in parser.items(section)
    }
    for repo in range(1, 257):
        path = options.get(f"repo{repo}-path")
        if path and options.get(f"repo{repo}-type", "posix") == "posix" and Path(path).is_dir():
            yield repo, Path(path)


_DEFAULT_CONFIGS = [Path("/etc/pgbackrest/pgbackrest.conf"), Path("/etc/pgbackrest.conf")]


def check_locks(pgbackrest: PgBackRest, stanza: StanzaInfo, wait: timedelta) -> None:
    """Wait a bounded time for another pgBackRest on the stanza; raises Busy or PreconditionFailed."""
    for repository in stanza.repo:
        if pgbackrest.is_stopped(repository.key):
            raise PreconditionFailed(
                f"a stop file forbids work on stanza '{stanza.name}'",
                hint="run 'pgbackrest start' once you know why it was stopped",
            )
    deadline = time.monotonic() + wait.total_seconds()
    while stanza.status.lock.backup.held:
        if time.monotonic() > deadline:
            raise Busy(
                f"another pgbackrest works on stanza '{stanza.name}' since over {wait.total_seconds():g} s",
                hint="find it on the repository's or the server's host: ps -ef | grep pgbackrest",
            )
        time.sleep(1)
        stanza = pgbackrest.info()
