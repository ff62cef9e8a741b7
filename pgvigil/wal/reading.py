"""Reading many segments: a bounded number at a time, each judged by itself, a bad one ends nothing."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.errors import ToolFailed, is_transient
from pgvigil.wal.content import SegmentHash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from pgvigil.pgbackrest import PgBackRest
    from pgvigil.wal.inventory import StoredSegment

_CHUNK = 1 << 20


class Judged(NamedTuple):
    """One file that was read: `code` is empty when its content is what its name says."""

    mark: int
    file: StoredSegment
    code: str
    fault: str


def from_directory(
    root: Path, otherwise: Callable[[str, Callable[[bytes], None]], None]
) -> Callable[[str, Callable[[bytes], None]], None]:
    """Read files of an unencrypted posix repository on this host; a process per file would cost more.

    What this user may not open is read `otherwise`.
    """

    def read(path: str, sink: Callable[[bytes], None]) -> None:
        try:
            file = (root / path).open("rb", buffering=0)
        except PermissionError:
            otherwise(path, sink)
            return
        with file:
            while chunk := file.read(_CHUNK):
                sink(chunk)

    return read


def from_repository(
    pgbackrest: PgBackRest, repo: int, folder: str
) -> Callable[[str, Callable[[bytes], None]], None]:
    """Read files of any repository through pgBackRest."""
    return lambda path, sink: pgbackrest.read(repo, f"{folder}/{path}", sink)


def read_all(
    files: Iterable[tuple[int, StoredSegment]],
    read: Callable[[str, Callable[[bytes], None]], None],
    segment_size: int,
    readers: int,
    seconds: float,
) -> Iterator[Judged]:
    """Yield each file as it is judged, until all are or the time is over.

    Raises what is wrong with the repository as a whole: errors that may pass, not those of one file.
    """
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
                    running.add(pool.submit(judge_file, mark, file, read, segment_size))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def judge_file(
    mark: int,
    file: StoredSegment,
    read: Callable[[str, Callable[[bytes], None]], None],
    segment_size: int,
) -> Judged:
    """Read one file and say what is wrong with it."""
    content = SegmentHash(file.suffix)
    try:
        read(file.path(segment_size), content.feed)
    except ToolFailed as error:
        if is_transient(error):
            raise
        return Judged(mark, file, "wal-unreadable", error.message)
    except OSError as error:
        return Judged(mark, file, "wal-unreadable", error.strerror or str(error))
    code, fault = _fault(content, file, segment_size)
    return Judged(mark, file, code, fault)


def _fault(content: SegmentHash, file: StoredSegment, segment_size: int) -> tuple[str, str]:
    if content.read == 0:
        return "wal-empty", "it has no content at all"
    if content.fault:
        return "wal-corrupt", f"it {content.fault}"
    if content.size < segment_size and (not content.ended or not file.suffix):
        return "wal-truncated", f"it ends after {content.size} of {segment_size} bytes"
    if content.size != segment_size:
        return "wal-corrupt", f"it holds {content.size} bytes, expected {segment_size}"
    if content.sha1 != file.sha1:
        return "wal-corrupt", f"its content has sha1 {content.sha1}, its name says {file.sha1}"
    return "", ""
