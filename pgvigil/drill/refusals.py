"""Where no copy may be made: beside live data, in the source's files, where there is no room or no way in."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pgvigil.drill.place import read_owner
from pgvigil.errors import PreconditionFailed
from pgvigil.processes import Command, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.drill.place import Request
    from pgvigil.pgbackrest import Backup

_LIVE = ("PG_VERSION", "postmaster.pid")
_DEEPEST = 3  # levels: /var/lib has lib/postgresql/15/main
_WIDEST = 10_000  # directories of a level that are looked at

Refusal = Literal["path", "link", "live data", "source", "not empty", "access", "room"]


def room_needed(backup: Backup, wal_bytes: int) -> int:
    """Return the bytes that a copy needs: the set as it was, the WAL to replay, and a tenth more."""
    return (backup.info.size + wal_bytes) * 11 // 10


def refuse(request: Request) -> None:
    """Raise PreconditionFailed when the scratch directory is one in which no copy may be made."""
    _check_path(request.scratch)
    _check_live(request.scratch)
    for path in request.protected:
        _check_apart(request.scratch, path)
    check_vacant(request)


def look_over(directory: Path, user: str | None, protected: Sequence[Path]) -> None:
    """Raise PreconditionFailed for a scratch directory that a claim would refuse now; makes nothing."""
    _check_path(directory)
    _check_live(directory)
    for path in protected:
        _check_apart(directory, path)
    _check_writable(directory if directory.exists() else directory.parent)
    _check_open(directory if directory.exists() else directory.parent, user)


def free_bytes(directory: Path) -> int:
    """Return the bytes free where a scratch directory is, or will be made."""
    return shutil.disk_usage(directory if directory.exists() else directory.parent).free


def refused(kind: Refusal, message: str, hint: str) -> PreconditionFailed:
    """Make the error of a place that is not to be used; its context names the kind."""
    return PreconditionFailed(message, hint=hint, refusal=kind)


def _check_path(scratch: Path) -> None:
    if not scratch.is_absolute() or not str(scratch).isprintable():
        raise refused(
            "path",
            f"scratch {str(scratch)!r} is not an absolute path of printable characters",
            "correct drill.scratch in the fleet file",
        )
    real = scratch.resolve()
    if real != scratch:
        raise refused(
            "link",
            f"scratch '{scratch}' leads through a symbolic link to '{real}'",
            f"write '{real}' into drill.scratch, if it is meant",
        )
    if not scratch.parent.is_dir() or (scratch.exists() and not scratch.is_dir()):
        raise refused(
            "path", f"scratch '{scratch}' is not a directory and cannot become one", "create its parent"
        )


def _check_live(scratch: Path) -> None:
    """Refuse a data directory upward, and one inside that is not a drill's."""
    for step in [scratch, *scratch.parents]:
        _refuse_live(scratch, "is or lies in", step)
    for step in _inside(scratch):
        _refuse_live(scratch, "contains", step)


def _refuse_live(scratch: Path, how: str, step: Path) -> None:
    found = next((name for name in _LIVE if os.path.lexists(step / name)), None)
    if found:
        raise refused(
            "live data",
            f"scratch '{scratch}' {how} the data directory '{step}': it has {found}",
            "name a directory of its own in drill.scratch",
        )


def _inside(scratch: Path) -> Iterator[Path]:
    """Yield the directories in scratch that are not a drill's, some levels deep, the nearest first."""
    level = entries(scratch)
    for _ in range(_DEEPEST):
        level = [entry for entry in level if read_owner(entry) is None]
        yield from level
        level = list(islice((entry for step in level for entry in _listed(step)), _WIDEST))


def _listed(directory: Path) -> Iterator[Path]:
    """Yield the directories in a directory; one that is closed to us has none that we could tell."""
    with suppress(OSError), os.scandir(directory) as found:
        yield from (Path(entry.path) for entry in found if entry.is_dir(follow_symlinks=False))


def _check_apart(scratch: Path, protected: Path) -> None:
    """Refuse to share a directory with the source, by inode: no other spelling or bind mount helps."""
    if not protected.exists():
        return  # the source is on another host
    if any(step.exists() and step.samefile(protected) for step in [scratch, *scratch.parents]):
        raise refused(
            "source",
            f"scratch '{scratch}' is or lies in '{protected}', which is the source's",
            "name a directory of its own in drill.scratch",
        )
    if scratch.exists() and any(step.samefile(scratch) for step in protected.parents):
        raise refused(
            "source",
            f"scratch '{scratch}' contains '{protected}', which is the source's",
            "name a directory of its own in drill.scratch",
        )


def check_vacant(request: Request) -> None:
    """Refuse a directory that is there already: each run makes its own."""
    if os.path.lexists(request.directory):
        raise refused(
            "not empty",
            f"'{request.directory}' exists already",
            "look at it and remove it; each run makes a directory of its own",
        )


def check_access(request: Request) -> None:
    """Refuse a scratch directory that we cannot write, or the copy's user cannot enter."""
    _check_writable(request.scratch)
    _check_open(request.scratch, request.user)


def _check_writable(directory: Path) -> None:
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise refused(
            "access", f"'{directory}' is not writable for pgvigil's user", "correct its owner and mode"
        )


def _check_open(directory: Path, user: str | None) -> None:
    closed = _closed_to(user, directory) if user else None
    if closed:
        raise refused(
            "access",
            f"user '{user}', as whom the copy runs, cannot enter '{closed}'",
            f"open it: chmod o+x '{closed}', or name another directory in drill.scratch",
        )


_FIRST_CLOSED = 'for step; do test -x "$step" || { printf %s "$step"; break; }; done'


def _closed_to(user: str, directory: Path) -> str | None:
    """Return the first directory on the way that a user cannot enter, if any."""
    steps = [*map(str, reversed(directory.parents)), str(directory)]
    done = run(Command(argv=("sh", "-c", _FIRST_CLOSED, "sh", *steps), user=user))
    return done.stdout.decode(errors="surrogateescape") or None


def check_room(request: Request) -> None:
    """Refuse a file system without room for the copy."""
    free = shutil.disk_usage(request.scratch).free
    if free < request.room:
        raise refused(
            "room",
            f"scratch '{request.scratch}' has {free} bytes free, the copy needs {request.room}",
            "free space there, or name a larger file system in drill.scratch",
        )


def entries(scratch: Path) -> list[Path]:
    """Return the directories in a scratch directory; one that is not there has none."""
    try:
        return sorted(entry for entry in scratch.iterdir() if entry.is_dir() and not entry.is_symlink())
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise refused(
            "access", f"cannot list scratch '{scratch}'", "run as the user who owns it, or correct its mode"
        ) from error
