"""Restore one backup set into a place of our own, and prove that nothing of it points elsewhere."""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING

from pgvigil.drill.place import OWNER, read_owner
from pgvigil.errors import PreconditionFailed
from pgvigil.pgbackrest import PgBackRest, argv
from pgvigil.processes import Command, run
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from pgvigil.drill.place import Place
    from pgvigil.fleet import PgBackRestSettings
    from pgvigil.pgbackrest import Backup

TRANSCRIPT = "restore.log"


class RestoreProgress(Frozen):
    """How far a restore is, in percent of the set's bytes."""

    percent: float

    def __str__(self) -> str:
        return f"{self.percent:.1f} %"


class Restored(Frozen):
    """What was restored; bytes are those of the database as it was when it was backed up."""

    label: str
    repo: int
    seconds: float
    bytes: int


_FILE_LINE = re.compile(r"restore (?:zeroed )?file .* \((?:bundle [^,]+, )?[^,()]+, (?P<percent>[\d.]+)%\)")


def read_progress(line: str) -> RestoreProgress | None:
    """Return the progress that a line of pgBackRest's log tells, if any."""
    match = _FILE_LINE.search(line)
    return RestoreProgress(percent=float(match["percent"])) if match else None


def own_client(settings: PgBackRestSettings, place: Place) -> PgBackRest:
    """Return a pgBackRest that runs as the copy's server does, marked as the copy's."""
    return PgBackRest(settings.model_copy(update={"user": place.user}), env=environment(place))


def environment(place: Place) -> dict[str, str]:
    """Return what every process of a copy gets, its server included, which fetches WAL."""
    return {**place.environment, **destination(place).environment}


def destination(place: Place) -> argv.Destination:
    """Return where pgBackRest is to put a copy and its own files."""
    return argv.Destination(data=place.data, tablespaces=place.tablespaces, tools=place.tools)


def restore(
    settings: PgBackRestSettings,
    place: Place,
    backup: Backup,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[RestoreProgress], None],
) -> Restored:
    """Restore a set into a claimed place whose data directory is empty.

    Raises PreconditionFailed for a place that is not ours, not empty or not where pgBackRest runs, and
    the tool's typed failure; what that leaves goes with the place.
    """
    _check_empty(place)
    _check_same_host(settings, place)

    def read(line: str) -> None:
        progress = read_progress(line)
        if progress:
            on_progress(progress)
        elif " DETAIL: " not in line:
            on_line(line)

    client = own_client(settings, place)
    done = client.restore(backup.repo, backup.label, destination(place), read, place.log / TRANSCRIPT)
    _check_links(place)
    return Restored(label=backup.label, repo=backup.repo, seconds=done.seconds, bytes=backup.info.size)


def restore_command(settings: PgBackRestSettings, place: Place, repo: int) -> str:
    """Return the restore_command by which the copy fetches WAL, from the one repository that is drilled."""
    target = argv.Target(stanza=settings.stanza, config=settings.config)
    words = [settings.command[-1], *argv.archive_get(target, repo, destination(place))]
    return shlex.join(words).replace("%", "%%") + ' %f "%p"'


def has_later(client: PgBackRest, repo: int, archive_id: str) -> Callable[[str], bool]:
    """Return a function that tells whether a repository holds a segment after one, on its timeline."""

    def tell(segment: str) -> bool:
        path = f"archive/{client.target.stanza}/{archive_id}"
        found = client.ls(repo, path, recurse=True, match=f"{segment[:8]}[0-9A-F]{{16}}-")
        return any(name.rpartition("/")[2][:24] > segment for name in found)

    return tell


def _check_empty(place: Place) -> None:
    if read_owner(place.directory) is None:
        raise PreconditionFailed(
            f"'{place.directory}' has no {OWNER}: it is not claimed", hint="claim a place first"
        )
    for path in (place.data, place.tablespaces):
        if any(path.iterdir()):
            raise PreconditionFailed(
                f"'{path}' is not empty: expected a place that nothing was restored to yet",
                hint="remove the place and claim another; nothing is ever restored over files",
            )


def _check_same_host(settings: PgBackRestSettings, place: Place) -> None:
    """Ask through the command prefix for our owner file: a remote pgBackRest would restore over there."""
    *prefix, _ = settings.command
    if not prefix:
        return
    file = place.directory / OWNER
    look = Command(argv=("cat", str(file)), prefix=tuple(prefix), user=place.user, deadline=settings.deadline)
    seen = run(look)
    if seen.stdout != file.read_bytes():
        raise PreconditionFailed(
            f"pgbackrest runs behind '{shlex.join(prefix)}', where '{file}' cannot be read; "
            "expected it on the host of the drill",
            hint="a drill needs pgbackrest with access to the repository on the host where pgvigil runs",
        )


def _check_links(place: Place) -> None:
    """Prove that no link of the copy leads out of its place."""
    for link in _links(place):
        if not link.resolve().is_relative_to(place.directory):
            raise PreconditionFailed(
                f"the copy's '{link}' leads out of scratch to '{link.resolve()}'; nothing was started",
                hint="see the restore's log for tablespaces and links that were not remapped",
            )


def _links(place: Place) -> Iterator[Path]:
    """Yield the symbolic links in the copy, following none."""
    for top, directories, files in os.walk(place.data):
        path = place.data.joinpath(top)
        yield from (path / name for name in (*directories, *files) if (path / name).is_symlink())
