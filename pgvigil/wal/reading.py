"""Reading many segments: a bounded number at a time, each judged by itself, a bad one ends nothing."""

from __future__ import annotations

import os
import pwd
import stat
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from io import FileIO
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.errors import PgBackRestFailed
from pgvigil.wal.content import SegmentHash, judge

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from pgvigil.pgbackrest import PgBackRest
    from pgvigil.wal.content import Origin
    from pgvigil.wal.names import StoredSegment

Reader = Callable[[str, Callable[[bytes], None]], None]

UNREADABLE = "wal-unreadable"
_CHUNK = 1 << 20
_MANY = 16  # unreadable files after which the repository itself is asked


class Judged(NamedTuple):
    """One file that was read: `code` is empty when its content is what its name says."""

    mark: int
    file: StoredSegment
    code: str
    fault: str


class Rights:
    """Which files a user may read; asked where this process may read more than pgBackRest's user."""

    def __init__(self, user: str) -> None:
        entry = pwd.getpwnam(user)
        self._uid = entry.pw_uid
        self._groups = set(os.getgrouplist(user, entry.pw_gid))

    def allow(self, file: os.stat_result) -> bool:
        """Tell what owner, group and mode say."""
        if self._uid == 0:
            return True
        if file.st_uid == self._uid:
            return bool(file.st_mode & stat.S_IRUSR)
        wanted = stat.S_IRGRP if file.st_gid in self._groups else stat.S_IROTH
        return bool(file.st_mode & wanted)


def from_directory(root: Path, otherwise: Reader, rights: Rights | None = None) -> Reader:
    """Read files of an unencrypted posix repository on this host; a process per file would cost more.

    What this user or, by `rights`, pgBackRest's may not open is read `otherwise`.
    """

    def read(path: str, sink: Callable[[bytes], None]) -> None:
        try:
            file = FileIO(root / path, opener=_without_waiting)
        except PermissionError:
            otherwise(path, sink)
            return
        with file:
            if rights and not rights.allow(os.fstat(file.fileno())):
                otherwise(path, sink)
                return
            while chunk := file.read(_CHUNK):
                sink(chunk)

    return read


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a link may lead to a pipe that nobody writes


def from_repository(pgbackrest: PgBackRest, repo: int, folder: str) -> Reader:
    """Read files of any repository through pgBackRest."""
    return lambda path, sink: pgbackrest.read(repo, f"{folder}/{path}", sink)


def require_answer(pgbackrest: PgBackRest, repo: int) -> None:
    """Read a file that every repository has; raises what is wrong with the repository as a whole."""
    pgbackrest.read(repo, f"archive/{pgbackrest.target.stanza}/archive.info", lambda _: None)


def read_patiently(  # noqa: PLR0913 - what reading needs
    files: Iterable[tuple[int, StoredSegment]],
    read: Reader,
    require: Callable[[], None],
    origin: Origin,
    readers: int,
    seconds: float,
) -> Iterator[Judged]:
    """Yield each file as it is judged, until all are or the time is over.

    What cannot be read is read once more at the end, after `require` has found the repository answering;
    where it does not, that is raised: then nothing is known of the files.
    """
    deadline = time.monotonic() + seconds
    unread: list[Judged] = []
    for judged in read_all(files, read, origin, readers, seconds):
        if judged.code != UNREADABLE:
            yield judged
            continue
        unread.append(judged)
        if len(unread) % _MANY == 0:
            require()
    if unread:
        require()
        again = ((judged.mark, judged.file) for judged in unread)
        yield from read_all(again, read, origin, readers, deadline - time.monotonic())


def read_all(
    files: Iterable[tuple[int, StoredSegment]], read: Reader, origin: Origin, readers: int, seconds: float
) -> Iterator[Judged]:
    """Yield each file as it is judged, until all are or the time is over."""
    deadline = time.monotonic() + seconds
    source = iter(files)
    with ThreadPoolExecutor(max_workers=readers) as pool:
        running: set[Future[Judged]] = set()
        try:
            while True:
                while len(running) < 2 * readers and time.monotonic() < deadline:
                    mark, file = next(source, (0, None))
                    if file is None:
                        break
                    running.add(pool.submit(judge_file, mark, file, read, origin))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def judge_file(mark: int, file: StoredSegment, read: Reader, origin: Origin) -> Judged:
    """Read one file and say what is wrong with it; raises what is not of the file, such as a lost host."""
    content = SegmentHash(file.suffix)
    try:
        read(file.path(origin.segment_size), content.feed)
    except PgBackRestFailed as error:
        return Judged(mark, file, UNREADABLE, error.message)
    except OSError as error:
        return Judged(mark, file, UNREADABLE, error.strerror or str(error))
    return Judged(mark, file, *judge(content, file, origin))
