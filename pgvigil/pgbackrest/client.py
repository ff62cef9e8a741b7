"""One stanza's pgBackRest: each method one command, its output a model, its failure a typed error."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from pgvigil.errors import PgvigilError, PreconditionFailed, VersionUnsupported
from pgvigil.pgbackrest import argv
from pgvigil.pgbackrest.failures import LOCK_HELD, STOP_FILE, failure
from pgvigil.pgbackrest.info import (
    RepositoryFile,
    StanzaInfo,
    read_info,
    read_listing,
    read_page_errors,
    read_tablespaces,
)
from pgvigil.processes import Command, Completed, run

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pgvigil.fleet import PgBackRestSettings

_VERSION = re.compile(rb"pgBackRest (\d{1,4})\.(\d{1,4})")


class PgBackRest:
    """The stanza that the settings name; nothing is cached but the program's version.

    `env` is added to the environment of every command.
    """

    def __init__(self, settings: PgBackRestSettings, env: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.env = dict(env or {})
        self.target = argv.Target(stanza=settings.stanza, config=settings.config)

    @cached_property
    def version(self) -> argv.Version:
        """The program's version; raises VersionUnsupported below 2.45."""
        completed = self._run("tell its version", argv.version())
        match = _VERSION.search(completed.stdout)
        if match is None:
            raise VersionUnsupported(
                f"pgbackrest told no version but {completed.stdout[:60]!r}",
                hint="check pgbackrest.command; a login script on its host may write to standard output",
            )
        found = int(match[1]), int(match[2])
        if found < argv.OLDEST:
            raise VersionUnsupported(
                f"pgbackrest {found[0]}.{found[1]} is too old, expected 2.45 or newer",
                hint="upgrade pgbackrest",
            )
        return found

    def info(self) -> StanzaInfo:
        """Read what the repositories list; an unknown stanza is a status in it, not an error."""
        completed = self._run("read the backup list", argv.info(self.target))
        return read_info(completed.stdout, self.target.stanza)

    def page_errors(self, label: str, repo: int) -> tuple[str, ...]:
        """Name the source files in which a backup met page checksum errors."""
        completed = self._run(f"read backup {label}", argv.info(self.target, label, repo))
        return read_page_errors(completed.stdout, self.target.stanza, label)

    def tablespaces(self, label: str, repo: int) -> tuple[int, ...]:
        """Return the OIDs of the tablespaces that a backup has."""
        completed = self._run(f"read backup {label}", argv.info(self.target, label, repo))
        return read_tablespaces(completed.stdout, self.target.stanza, label)

    def ls(
        self, repo: int, path: str, *, recurse: bool = False, match: str = ""
    ) -> dict[str, RepositoryFile]:
        """List a repository path; what does not exist is empty, so the caller must know what to expect."""
        command = argv.repo_ls(self.target, repo, path, recurse=recurse, match=match)
        return read_listing(self._run(f"list {path}", command).stdout)

    def list_into(self, repo: int, path: str, sink: Callable[[bytes], None]) -> None:
        """Stream the JSON listing of everything below a path, for listings too long to hold."""
        self._run(f"list {path}", argv.repo_ls(self.target, repo, path, recurse=True), sink=sink)

    def verify(self, repo: int) -> str:
        """Return what pgBackRest's own check of a repository says; raises only when it could not run."""
        return self._run("verify", argv.verify(self.target, repo)).stdout.decode(errors="replace")

    def read(self, repo: int, path: str, sink: Callable[[bytes], None]) -> None:
        """Stream a repository file, decrypted but as compressed as it is."""
        self._run(f"read {path}", argv.repo_get(self.target, repo, path), sink=sink)

    def backup(
        self,
        repo: int,
        kind: str,
        annotations: Mapping[str, str],
        on_line: Callable[[str], None],
        transcript: Path,
    ) -> Completed:
        """Take one backup; raises the typed failure, and says nothing about what the repository holds."""
        command = argv.backup(self.target, repo, kind, annotations)
        return self._run(f"take a {kind} backup", command, on_line=on_line, transcript=transcript)

    def annotate(self, repo: int, label: str, annotations: Mapping[str, str]) -> None:
        """Write annotations; the same ones again change nothing."""
        self._run(f"annotate {label}", argv.annotate(self.target, repo, label, annotations))

    def expire(self, repo: int, label: str, keep_fulls: int) -> tuple[str, ...]:
        """Expire one backup with its dependants; returns pgBackRest's own lines."""
        command = argv.expire(self.target, repo, label, keep_fulls)
        return self._run(f"expire {label}", command, on_line=lambda _: None).tail

    def restore(
        self,
        repo: int,
        label: str,
        destination: argv.Destination,
        on_line: Callable[[str], None],
        transcript: Path,
    ) -> Completed:
        """Restore one set into empty directories; raises the typed failure, which leaves a partial copy."""
        tablespaces = self.tablespaces(label, repo)
        command = argv.restore(self.target, repo, label, destination, tablespaces)
        return self._run(f"restore {label}", command, on_line=on_line, transcript=transcript)

    def is_stopped(self, repo: int) -> bool:
        """Tell whether a stop file forbids work on this stanza."""
        try:
            self._run("look for a stop file", argv.stop_file_probe(self.target, repo))
        except PreconditionFailed as error:
            if error.context.get("exit_code") == STOP_FILE:
                return True
            raise
        except PgvigilError as error:
            if error.context.get("exit_code") == LOCK_HELD:
                return False
            raise
        return False

    def _run(
        self,
        action: str,
        words: list[str],
        *,
        on_line: Callable[[str], None] | None = None,
        sink: Callable[[bytes], None] | None = None,
        transcript: Path | None = None,
    ) -> Completed:
        *prefix, program = self.settings.command
        command = Command(
            argv=(program, *words),
            prefix=tuple(prefix),
            env=self.env,
            user=self.settings.user,
            deadline=self.settings.deadline,
            stall=self.settings.stall,
        )
        completed = run(command, on_line=on_line, sink=sink, transcript=transcript)
        if completed.exit_code != 0:
            raise failure(action, completed)
        return completed
