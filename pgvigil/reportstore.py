"""Where evidence is kept: reports that are written once and never overwritten, in S3 or in files."""

from __future__ import annotations

import errno
import hashlib
import mimetypes
import os
import re
import time
import uuid
from contextlib import contextmanager
from datetime import UTC, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

from pgvigil import reports
from pgvigil.errors import ConfigError, EvidenceError, ObjectExists, StorageFailed
from pgvigil.objectstore import connect, join, parse_uri

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgvigil.fleet import S3Settings
    from pgvigil.objectstore import ObjectStore
    from pgvigil.reports import Report

HEADS = "audit-heads"
NOTES = "notes"
ABANDONED = timedelta(days=1)

_SUFFIX = re.compile(r"\.?([a-z0-9]+(?:\.[a-z0-9]+)*)")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_ANCHOR = re.compile(r"(\d{12,})-([0-9a-f]{64})")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\\]|^\.+$")


def digest(data: bytes) -> str:
    """Name bytes by their content: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def open_report_store(uri: str, s3: S3Settings) -> ReportStore:
    """Open the report store at `s3://bucket/prefix` or `file:///directory`; nothing is written yet.

    Raises ConfigError when the address is neither.
    """
    if uri.startswith("s3://"):
        return ReportStore(ObjectShelf(connect(s3), uri))
    if uri.startswith("file:///"):
        return ReportStore(DirectoryShelf(Path(unquote(uri.removeprefix("file://")))))
    raise ConfigError(
        f"'{uri}' is no address of a report store",
        hint="write s3://bucket/prefix or file:///directory into audit.reports",
    )


class Shelf(Protocol):
    """What reports stand on: a place that takes each name once."""

    def keep(self, name: str, data: bytes) -> str:
        """Store bytes under a name and return their uri.

        The same bytes again are no error; other bytes raise ObjectExists and change nothing.
        """
        ...

    def names(self, folder: str) -> Iterator[str]:
        """Return the names directly in a folder, in order; a folder that is not there has none."""
        ...

    def read(self, name: str) -> bytes:
        """Return what is stored under a name."""
        ...

    def probe(self) -> None:
        """Prove that the place can be written and read, and leave nothing behind."""
        ...


class ReportStore:
    """Reports by flow, subject and month, and anchors of the audit chain's head.

    Every verb raises StorageFailed (or ConfigError for missing credentials) when the place refuses.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def save(self, report: Report, renderings: Mapping[str, bytes]) -> tuple[str, ...]:
        """Keep a report as JSON and its renderings by suffix (`md`, `html`); return the uris, JSON first.

        Saving the same again is no error and finishes what was broken off; another content for the same
        run raises ObjectExists, and what was stored stays.
        """
        name = report_name(report)
        suffixes = {_suffix(key): data for key, data in renderings.items()}
        first = self._shelf.keep(f"{name}.json", reports.to_json(report).encode())
        return first, *(self._shelf.keep(f"{name}.{suffix}", data) for suffix, data in suffixes.items())

    def anchor(self, seq: int, digest: str) -> str:
        """Keep the audit chain's head outside the audit store; return the uri.

        The same anchor again is no error. Another digest for the same number is kept beside the first:
        two histories are what an anchor is there to show. Raises EvidenceError for a broken digest.
        """
        match = _DIGEST.fullmatch(digest)
        if match is None or seq < 0:
            raise EvidenceError(
                f"no anchor can be made of number {seq} and digest '{digest}'",
                hint="a digest is 64 hexadecimal digits of SHA-256",
            )
        return self._shelf.keep(f"{HEADS}/{seq:012}-{match[1]}", b"")

    def anchors(self) -> Iterator[tuple[int, str]]:
        """Return number and hexadecimal digest of every anchor, by number."""
        for name in self._shelf.names(HEADS):
            match = _ANCHOR.fullmatch(name)
            if match:
                yield int(match[1]), match[2]

    def note(self, folder: Sequence[str], name: str, data: bytes) -> str:
        """Keep what later runs must know, once, under a folder of any names; return the uri."""
        return self._shelf.keep("/".join(map(_segment, (NOTES, *folder, name))), data)

    def notes(self, folder: Sequence[str]) -> list[str]:
        """Return the names of the notes in a folder, in order."""
        return list(self._shelf.names("/".join(map(_segment, (NOTES, *folder)))))

    def read_note(self, folder: Sequence[str], name: str) -> bytes:
        """Return a note."""
        return self._shelf.read("/".join(map(_segment, (NOTES, *folder, name))))

    def probe(self) -> None:
        """Prove that reports can be kept here, and leave nothing behind."""
        self._shelf.probe()


def report_name(report: Report) -> str:
    """Return where a report stands, without suffix: `flow/subject/YYYY/MM/start-run`, times in UTC."""
    started = report.started_at.astimezone(UTC)
    return (
        f"{_segment(report.flow)}/{_segment(report.subject)}/{started:%Y/%m}/"
        f"{started:%Y%m%dT%H%M%SZ}-{report.run_id}"
    )


def _segment(text: str) -> str:
    """Make any name one segment of a path; what a file system would read as more is percent-encoded."""
    return _UNPRINTABLE.sub(_percent, text.replace("/", "__"))


def _percent(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


def _suffix(key: str) -> str:
    match = _SUFFIX.fullmatch(key)
    if match is None or match[1] == "json":
        raise ConfigError(
            f"'{key}' is no suffix of a rendering", hint="use md, html, svg ...; json is the report"
        )
    return match[1]


class ObjectShelf:
    """A prefix in an object store."""

    def __init__(self, store: ObjectStore, prefix_uri: str) -> None:
        parse_uri(prefix_uri)
        self._store = store
        self._prefix = prefix_uri

    def keep(self, name: str, data: bytes) -> str:
        """See Shelf."""
        uri = join(self._prefix, name)
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        try:
            self._store.put(uri, data, content_type=content_type, only_if_absent=True)
        except ObjectExists:
            _require_same(uri, self._store.get(uri), data)
        return uri

    def names(self, folder: str) -> Iterator[str]:
        """See Shelf."""
        start = join(self._prefix, folder, "")
        return (stored.uri.removeprefix(start) for stored in self._store.list(start))

    def read(self, name: str) -> bytes:
        """See Shelf."""
        return self._store.get(join(self._prefix, name))

    def probe(self) -> None:
        """See Shelf."""
        self._store.probe(self._prefix)


class DirectoryShelf:
    """A directory; its parent exists, so that a mistyped path or a missing mount is seen.

    Files are written in `.incoming`, synced, and linked to their name, which never replaces a file.
    What a killed run left in `.incoming` is removed by the next write a day later.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def keep(self, name: str, data: bytes) -> str:
        """See Shelf."""
        path = self._root / name
        with _told(path):
            if not self._write_new(path, data):
                _require_same(path.as_uri(), path.read_bytes(), data)
                _sync(path.parent)  # it may be another run's link that is not on disk yet
        return path.as_uri()

    def names(self, folder: str) -> Iterator[str]:
        """See Shelf."""
        directory = self._root / folder
        with _told(directory):
            return iter(sorted(entry.name for entry in directory.iterdir()) if directory.is_dir() else ())

    def read(self, name: str) -> bytes:
        """See Shelf."""
        path = self._root / name
        with _told(path):
            return path.read_bytes()

    def probe(self) -> None:
        """See Shelf."""
        path = self._root / f"pgvigil-probe-{uuid.uuid4()}"
        with _told(path):
            self._write_new(path, b"probe")
            try:
                _require_same(path.as_uri(), path.read_bytes(), b"probe")
            finally:
                path.unlink()

    def _write_new(self, path: Path, data: bytes) -> bool:
        """Write a file unless its name is taken; tell whether it was written."""
        incoming = self._incoming()
        _make_directories(path.parent, self._root)
        if path.exists():
            return False
        draft = incoming / str(uuid.uuid4())
        try:
            _write_synced(draft, data)
            return _link(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def _incoming(self) -> Path:
        incoming = self._root / ".incoming"
        _make_directories(incoming, self._root)
        for draft in incoming.iterdir():
            _remove_abandoned(draft)
        return incoming


def _require_same(uri: str, stored: bytes, data: bytes) -> None:
    if stored != data:
        raise ObjectExists(
            f"{uri} is stored with other content: expected {digest(data)}, found {digest(stored)}",
            hint="evidence is never replaced; look who wrote it, or run again under a new run id",
        )


def _make_directories(path: Path, root: Path) -> None:
    """Make a directory below the root, the root too, but nothing above it; every new name is synced."""
    if path.is_dir():
        return
    if path != root:
        _make_directories(path.parent, root)
    path.mkdir(mode=0o750, exist_ok=True)
    _sync(path.parent)


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        os.fchmod(file.fileno(), 0o640)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(draft: Path, path: Path) -> bool:
    """Give a finished file its name; unlike a rename, this never replaces another file."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        return False
    _sync(path.parent)
    return True


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_abandoned(draft: Path) -> None:
    try:
        if time.time() - draft.stat().st_mtime > ABANDONED.total_seconds():
            draft.unlink()
    except FileNotFoundError:
        return  # its writer has just finished


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn the operating system's errors into StorageFailed with the cure."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(
            f"cannot keep evidence at '{error.filename or path}': {(error.strerror or str(error)).lower()}",
            hint=_HINTS.get(error.errno or 0, "check the file system under audit.reports"),
            errno=errno.errorcode.get(error.errno or 0, ""),
        ) from error


_SPACE_HINT = "free space or raise the quota or file size limit there; no partial file was left"
_RIGHTS_HINT = "give the user that runs pgvigil write access to this directory"
_FILE_HINT = "a file stands where a directory is needed: correct audit.reports"

_HINTS = {
    errno.ENOSPC: _SPACE_HINT,
    errno.EDQUOT: _SPACE_HINT,
    errno.EFBIG: _SPACE_HINT,
    errno.EACCES: _RIGHTS_HINT,
    errno.EPERM: _RIGHTS_HINT,
    errno.EROFS: "the file system is mounted read-only: remount it, or correct audit.reports",
    errno.ENOENT: "create its parent directory or mount what belongs there, or correct audit.reports",
    errno.ENOTDIR: _FILE_HINT,
    errno.EEXIST: _FILE_HINT,
    errno.ENAMETOOLONG: "use a shorter path for audit.reports",
    errno.EOPNOTSUPP: "the report store needs a file system with hard links",
}
