"""The directory that a sandbox owns: its marker, its lock, who can reach it, and its removal."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgvigil.errors import Busy, ConfigError
from pgvigil.sandbox.services import succeeds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import timedelta
    from pathlib import Path

MARKER = "sandbox.json"
_LONGEST_SOCKET = 107  # bytes of sockaddr_un.sun_path without its closing zero
_POLL_SECONDS = 0.05


def check_name(directory: Path) -> None:
    """Raise ConfigError when no server could work under this path."""
    longest = len(os.fsencode(directory / "run" / ".s.PGSQL.65535"))
    if longest > _LONGEST_SOCKET:
        raise ConfigError(
            f"sandbox directory '{directory}' is too long: its sockets' names would have {longest} bytes, "
            f"the system takes {_LONGEST_SOCKET}",
            hint="choose a shorter --dir, such as one below /tmp",
        )
    if not str(directory).isprintable() or "," in str(directory):
        raise ConfigError(
            f"sandbox directory {str(directory)!r} has characters that configuration files cannot hold",
            hint="choose a --dir of printable characters without a comma, at which libpq would split it",
        )


def check_vacant(directory: Path) -> None:
    """Raise ConfigError unless the directory is absent or empty, so that nobody's files are touched."""
    found = entries(directory) or set()
    if MARKER in found:
        raise ConfigError(
            f"a sandbox is already in '{directory}'",
            hint=f"end it with 'pgvigil sandbox down --dir {directory}', or choose another --dir",
        )
    if found:
        raise ConfigError(
            f"directory '{directory}' is not empty and not a sandbox", hint="choose a new or empty --dir"
        )


def entries(directory: Path) -> set[str] | None:
    """Return the names in a directory, None without one; raises ConfigError where we may not look."""
    try:
        return {entry.name for entry in directory.iterdir()}
    except FileNotFoundError:
        return None
    except OSError as error:  # a file, or closed to this user
        raise ConfigError(
            f"cannot look into sandbox directory '{directory}': {error.strerror}", hint="choose another --dir"
        ) from error


def claim(directory: Path) -> None:
    """Write the marker, before anything else, so that whatever follows can be found and removed."""
    check_vacant(directory)
    os.close(_create_private(directory / MARKER))
    directory.chmod(0o755)


def _create_private(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def write_private(file: Path, text: str) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    draft = file.with_name(f"{file.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(_create_private(draft), "w", encoding="utf-8") as stream:
        stream.write(text)
    draft.replace(file)


def make(directory: Path, owner: str | None = None) -> Path:
    """Create a directory that its owner alone enters, and return it; no owner means the invoking user."""
    directory.mkdir(mode=0o700)
    if owner:
        shutil.chown(directory, owner)
    return directory


def check_reachable(path: Path, user: str | None) -> None:
    """Raise ConfigError naming the first step to a path that the servers' user cannot enter or run."""
    for step in [*reversed(path.parents), path]:
        if user and not succeeds(["test", "-x", str(step)], user):
            raise ConfigError(
                f"user '{user}', as whom the servers run, cannot enter '{step}' on the way to '{path}'",
                hint="choose a place whose parents are open to others: for --dir, one below /tmp",
            )


@contextmanager
def locked(directory: Path, patience: timedelta) -> Iterator[None]:
    """Hold the directory against every other `up` and `down`, or raise Busy after `patience`.

    The kernel frees the lock when its holder dies, and not before every child that the holder was just
    starting carries its sandbox's name: whoever gets the lock can find all processes there are.
    """
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(handle, directory, time.monotonic() + patience.total_seconds())
        yield
    finally:
        os.close(handle)


def _lock(handle: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Busy(
                    f"another 'sandbox up' or 'sandbox down' works on '{directory}'",
                    hint="wait for it to end, or end it",
                ) from None
            time.sleep(_POLL_SECONDS)
        else:
            return


def remove(directory: Path) -> None:
    """Remove everything, the marker last, so that a removal cut short can be taken up again."""
    for entry in directory.iterdir():
        if entry.name != MARKER:
            _remove_entry(entry)
    (directory / MARKER).unlink(missing_ok=True)
    directory.rmdir()


def _remove_entry(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
