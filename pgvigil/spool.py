"""A durable queue of small texts on the local disk, for what cannot be sent right now."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK_WAIT = timedelta(seconds=30)
BATCH = 100


class Spool:
    """One file per text, numbered in the order of writing; many processes may share the directory.

    A text is complete or absent: it is written beside, fsynced and renamed under the lock, so what a
    killed writer leaves is one unnamed fragment that the next writer overwrites. Every fault is an
    OSError, a lock that is not given up within 30 seconds a TimeoutError.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def pending(self) -> list[Path]:
        """List what waits, oldest first; a directory that this user cannot enter holds nothing of theirs."""
        try:
            return sorted(self.directory.glob("*.json")) if self.directory.is_dir() else []
        except PermissionError:
            return []

    def write(self, name: str, text: str) -> None:
        """Keep a text so that it survives loss of process and power from the return on."""
        _create(self.directory)
        with self._locked():
            waiting = self.pending()
            number = max(map(_number, waiting), default=0) + 1
            fragment = self.directory / "incoming"
            _write_durably(fragment, text.encode())
            fragment.rename(self.directory / f"{number:012}-{name}.json")
            _sync_directory(self.directory)

    def drain(self, send: Callable[[Path], object]) -> int:
        """Send all texts in order and count them; a file leaves the disk only after `send` returned.

        `send` must be idempotent: a process killed between sending and removing sends again.
        """
        count = 0
        while self.pending():
            with self._locked():
                for file in self.pending()[:BATCH]:
                    send(file)
                    file.unlink()
                    count += 1
        return count

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _wait_for_lock(lock, f"'{self.directory}' is locked by another process")
            yield
        finally:
            os.close(lock)


def _wait_for_lock(lock: int, refusal: str) -> None:
    deadline = time.monotonic() + LOCK_WAIT.total_seconds()
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(refusal) from None
            time.sleep(0.01)
        else:
            return


def _number(file: Path) -> int:
    """Return the number of a text; what another hand put there has none."""
    number = file.name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def _create(directory: Path) -> None:
    if directory.is_dir():
        return
    if not directory.parent.is_dir():
        _create_parent(directory.parent)
    directory.mkdir(mode=0o700, exist_ok=True)
    _sync_directory(directory.parent)


def _create_parent(directory: Path) -> None:
    if not directory.parent.is_dir():
        _create_parent(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _write_durably(file: Path, data: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
