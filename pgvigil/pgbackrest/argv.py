"""Pure builders of pgBackRest's command lines; no option goes to a version that lacks it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Version = tuple[int, int]

OLDEST: Version = (2, 45)
NEWEST: Version = (2, 59)


class Target(Frozen):
    """Which stanza, by which configuration."""

    stanza: str
    config: Path | None = None


def _command(target: Target, name: str, *options: str, console: str = "off") -> list[str]:
    config = [f"--config={target.config}"] if target.config else []
    return [
        *config,
        f"--stanza={target.stanza}",
        f"--log-level-console={console}",
        "--log-level-stderr=warn" if console == "off" else "--log-level-stderr=off",
        *options,
        name,
    ]


def version() -> list[str]:
    """Ask for the version; `--output=num` exists only since 2.55, so the text form it is."""
    return ["version"]


def info(target: Target, label: str | None = None, repo: int | None = None) -> list[str]:
    """List the stanza's backups as JSON; with a label also that backup's page errors."""
    chosen = [f"--set={label}"] if label else []
    where = [f"--repo={repo}"] if repo else []
    return _command(target, "info", "--output=json", *chosen, *where)


def repo_ls(target: Target, repo: int, path: str, *, recurse: bool = False, match: str = "") -> list[str]:
    """List a path of the repository as JSON."""
    options = [f"--repo={repo}", "--output=json"]
    options += ["--recurse"] if recurse else []
    options += [f"--filter={match}"] if match else []
    return [*_command(target, "repo-ls", *options), path]


def repo_get(target: Target, repo: int, path: str) -> list[str]:
    """Copy a repository file to standard output, decrypted but not decompressed."""
    return [*_command(target, "repo-get", f"--repo={repo}"), path]


def verify(target: Target, repo: int) -> list[str]:
    """Let pgBackRest check a whole repository; the answer is text, the exit code says nothing."""
    return [*_command(target, "verify", f"--repo={repo}", "--output=text", "--verbose")]


def backup(target: Target, repo: int, kind: str, annotations: Mapping[str, str]) -> list[str]:
    """Take a backup from its start, expire nothing, and mark it with whose it is.

    What a killed one left is never resumed: on 2.45 a worker that outlived it went on writing there.
    """
    return _command(
        target,
        "backup",
        f"--repo={repo}",
        f"--type={kind}",
        "--no-expire-auto",
        *_keep_all(repo),
        "--no-resume",
        *(f"--annotation={key}={value}" for key, value in annotations.items()),
        console="detail",
    )


def annotate(target: Target, repo: int, label: str, annotations: Mapping[str, str]) -> list[str]:
    """Write key/value pairs beside a finished backup."""
    pairs = [f"--annotation={key}={value}" for key, value in annotations.items()]
    return _command(target, "annotate", f"--repo={repo}", f"--set={label}", *pairs)


def expire(target: Target, repo: int, label: str, keep_fulls: int) -> list[str]:
    """Expire one backup with all that depends on it, and the WAL that no kept full needs."""
    return _command(
        target,
        "expire",
        f"--repo={repo}",
        f"--set={label}",
        f"--repo{repo}-retention-full={keep_fulls}",
        f"--repo{repo}-retention-full-type=count",
        console="info",
    )


class Destination(Frozen):
    """Where a restore puts things; `tools` holds lock, log and spool of pgBackRest itself."""

    data: Path
    tablespaces: Path
    tools: Path

    @property
    def environment(self) -> dict[str, str]:
        """What both commands need; as an option it is refused unless the configuration has archive-async."""
        return {"PGBACKREST_SPOOL_PATH": str(self.tools / "spool")}


def restore(
    target: Target, repo: int, label: str, destination: Destination, tablespaces: Sequence[int] = ()
) -> list[str]:
    """Restore one set into directories of our own, recovering to the end of WAL, and never archiving.

    What the configuration may say for the production server is undone: another host, a delta into what
    is there, links and tablespaces to their old places, databases left out, recovery settings. The set's
    `tablespaces` are placed by OID: pgBackRest takes the name of one, such as `../..`, for a path.
    """
    places = [f"--tablespace-map={oid}={destination.tablespaces / str(oid)}" for oid in tablespaces]
    return _command(
        target,
        "restore",
        f"--repo={repo}",
        f"--set={label}",
        "--type=default",
        "--archive-mode=off",
        "--no-delta",
        "--no-link-all",
        f"--tablespace-map-all={destination.tablespaces}",
        *(places or ["--reset-tablespace-map"]),
        *(f"--reset-{name}" for name in _PRODUCTION_ONLY),
        *_elsewhere(destination),
        console="detail",
    )


_PRODUCTION_ONLY = ("link-map", "db-include", "db-exclude", "recovery-option")


def archive_get(target: Target, repo: int, destination: Destination) -> list[str]:
    """Fetch a WAL file from one repository, without its two arguments: name and where to put it."""
    config = [f"--config={target.config}"] if target.config else []
    return [
        *config,
        f"--stanza={target.stanza}",
        f"--repo={repo}",
        *_elsewhere(destination),
        "--log-level-console=off",
        "--log-level-stderr=warn",
        "archive-get",
    ]


def _elsewhere(destination: Destination) -> list[str]:
    """Work on the copy and with locks and logs of its own, so that production's are untouched."""
    return [
        "--reset-pg1-host",
        f"--pg1-path={destination.data}",
        f"--lock-path={destination.tools / 'lock'}",
        f"--log-path={destination.tools / 'log'}",
    ]


def stop_file_probe(target: Target, repo: int) -> list[str]:
    """Ask, without changing anything, whether a stop file forbids work: exit code 62 says yes."""
    return _command(
        target,
        "expire",
        f"--repo={repo}",
        "--dry-run",
        *_keep_all(repo),
    )


def _keep_all(repo: int) -> list[str]:
    """Expire nothing, and say so: without it pgBackRest warns in every run that no retention is set."""
    return [f"--repo{repo}-retention-full=9999999", f"--repo{repo}-retention-full-type=count"]
