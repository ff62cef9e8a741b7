"""The manifests of backups: without one that is whole, pgBackRest restores nothing of the backup."""

from __future__ import annotations

import hashlib
import json
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.errors import PgBackRestFailed
from pgvigil.wal.reading import require_answer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.pgbackrest import Backup, PgBackRest
    from pgvigil.pgbackrest.info import RepositoryFile

NAMES = ("backup.manifest", "backup.manifest.copy")
MISSING, CORRUPT, UNREADABLE = "manifest-missing", "manifest-corrupt", "manifest-unreadable"
_CHECKSUM = b"backrest-checksum="


class ManifestFault(NamedTuple):
    """What is wrong with one of a backup's two manifests; `why` is empty where it simply is not there."""

    name: str
    code: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


class ManifestSum:
    """Computes a manifest's checksum as pgBackRest does, line by line as it arrives.

    It is the sha1 of all sections and keys written as one JSON object, without the checksum's own.
    """

    def __init__(self) -> None:
        self.told = ""
        self._hash = hashlib.sha1(b"{", usedforsecurity=False)
        self._rest = b""
        self._section = b""
        self._written: bytes | None = None

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._take(line)

    @property
    def fault(self) -> str:
        """Say what is wrong with what was fed; nothing when it is whole."""
        if self._rest or not self.told:
            return "it is cut off"
        found = self.sha1
        return f"its content has sha1 {found}, it says {self.told}" if found != self.told else ""

    @property
    def sha1(self) -> str:
        """The checksum that a file of this content must tell."""
        whole = self._hash.copy()
        whole.update(b"}}")
        return whole.hexdigest()

    def _take(self, line: bytes) -> None:
        if line.startswith(b"["):
            self._section = line[1:-1]
        elif self._section == b"backrest" and line.startswith(_CHECKSUM):
            self.told = line.removeprefix(_CHECKSUM).strip(b'"').decode(errors="replace")
        elif line:
            self._write(*_key_and_value(line))

    def _write(self, key: bytes, value: bytes) -> None:
        if self._section == self._written:
            self._hash.update(b",")
        else:
            self._hash.update(
                b'"%b":{' % self._section if self._written is None else b'},"%b":{' % self._section
            )
            self._written = self._section
        self._hash.update(_quoted(key) + b":" + value)


def _key_and_value(line: bytes) -> tuple[bytes, bytes]:
    """Part a line at the first sign of equality behind which JSON stands: names may hold any sign."""
    at = line.find(b"=")
    while at >= 0 and line.find(b"=", at + 1) >= 0:
        try:
            json.loads(line[at + 1 :].decode(errors="surrogateescape"))
        except (ValueError, RecursionError):
            at = line.find(b"=", at + 1)
        else:
            break
    return line[:at], line[at + 1 :]


_ESCAPES = {b"\\": b"\\\\", b'"': b'\\"', b"\b": b"\\b", b"\f": b"\\f", b"\r": b"\\r", b"\t": b"\\t"}


def _quoted(key: bytes) -> bytes:
    for sign, escape in _ESCAPES.items():
        if sign in key:
            key = key.replace(sign, escape)
    return b'"' + key + b'"'


def manifest_mark(label: str, name: str, file: RepositoryFile) -> int:
    """Return 64 bits of a manifest's place, size and time, by which its proof is remembered."""
    facts = f"{label}/{name} {file.size} {file.time.isoformat()}"
    return int.from_bytes(blake2b(facts.encode(), digest_size=8).digest(), "big")


def faults_of(
    pgbackrest: PgBackRest,
    repo: int,
    backup: Backup,
    is_due: Callable[[int], bool],
    note: Callable[[int], None],
) -> tuple[ManifestFault, ...]:
    """Look at both manifests of a backup; reads those that are due, and notes which are whole.

    Raises only what is wrong with the repository as a whole.
    """
    folder = f"backup/{pgbackrest.target.stanza}/{backup.label}"
    try:
        there = pgbackrest.ls(repo, folder)
    except PgBackRestFailed as error:
        require_answer(pgbackrest, repo)
        return tuple(ManifestFault(name, UNREADABLE, error.message) for name in NAMES)
    faults = []
    for name in NAMES:
        fault = _listed_fault(name, there.get(name))
        mark = manifest_mark(backup.label, name, there[name]) if fault is None else 0
        if fault is None and is_due(mark):
            fault = _content_fault(pgbackrest, repo, folder, name)
            if fault is None:
                note(mark)
        if fault:
            faults.append(fault)
    return tuple(faults)


def _listed_fault(name: str, file: RepositoryFile | None) -> ManifestFault | None:
    if file is None:
        return ManifestFault(name, MISSING)
    return ManifestFault(name, MISSING, "it is empty") if file.type == "file" and file.size == 0 else None


def _content_fault(pgbackrest: PgBackRest, repo: int, folder: str, name: str) -> ManifestFault | None:
    try:
        try:
            content = _read(pgbackrest, repo, f"{folder}/{name}")
        except PgBackRestFailed:
            require_answer(pgbackrest, repo)
            content = _read(pgbackrest, repo, f"{folder}/{name}")  # once more, as a segment is
    except PgBackRestFailed as error:
        require_answer(pgbackrest, repo)
        return ManifestFault(name, UNREADABLE, error.message)
    return ManifestFault(name, CORRUPT, content.fault) if content.fault else None


def _read(pgbackrest: PgBackRest, repo: int, path: str) -> ManifestSum:
    content = ManifestSum()
    pgbackrest.read(repo, path, content.feed)
    return content
