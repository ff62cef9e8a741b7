"""A copy of a pgBackRest repository, whose files can be named, read and replaced by hand.

Copies share their files by hard links, so nothing here ever writes into a file: it is replaced.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgvigil.errors import PreconditionFailed
from pgvigil.pgbackrest.manifest import read_header
from pgvigil.wal.manifests import ManifestSum
from pgvigil.wal.names import SEGMENT_FILE

if TYPE_CHECKING:
    from pathlib import Path

_LABEL = re.compile(r"^\d{8}-\d{6}F(_\d{8}-\d{6}[DI])?$")
_CHECKSUM = re.compile(rb'^backrest-checksum="[0-9a-f]*"$', re.MULTILINE)


@dataclass(frozen=True)
class Repository:
    """One stanza of a posix repository, and what lies where in it."""

    root: Path
    stanza: str

    @property
    def archive(self) -> Path:
        """Where the stanza's WAL is."""
        return self.root / "archive" / self.stanza

    @property
    def backup(self) -> Path:
        """Where the stanza's backups are."""
        return self.root / "backup" / self.stanza

    @property
    def current(self) -> Path:
        """The folder of the newest archive id, such as 15-1."""
        folders = [path for path in self.archive.iterdir() if re.fullmatch(r"[\d.]+-\d+", path.name)]
        return max(folders, key=lambda path: int(path.name.rpartition("-")[2]))

    def segments(self, timeline: int | None = None) -> list[Path]:
        """Return the stored segments of a timeline, without one of the newest, oldest first."""
        found = sorted(path for path in self.current.glob("*/*") if SEGMENT_FILE.match(path.name))
        newest = found[-1].name[:8] if found else ""
        wanted = newest if timeline is None else f"{timeline:08X}"
        return [path for path in found if path.name[:8] == wanted]

    def segment(self, name: str) -> Path:
        """Return the stored file of a segment; raises PreconditionFailed where there is not one."""
        found = [path for path in self.segments(int(name[:8], 16)) if path.name[:24] == name]
        if len(found) != 1:
            raise PreconditionFailed(f"segment {name} is stored {len(found)} times, expected once")
        return found[0]

    def labels(self) -> list[str]:
        """Return the labels of the backups, oldest first."""
        found = [path.name for path in self.backup.iterdir() if _LABEL.match(path.name)]
        return sorted(found, key=lambda label: label[-16:])

    def newest(self) -> str:
        """Return the label of the newest backup; raises PreconditionFailed where there is none."""
        labels = self.labels()
        if not labels:
            raise PreconditionFailed("the repository has no backup", hint="take a full backup first")
        return labels[-1]

    def header(self, label: str) -> dict[str, Any]:
        """Return what a backup's manifest says of it."""
        return read_header(self.manifest(label).read_text(errors="surrogateescape"))

    def manifest(self, label: str) -> Path:
        """Return where the manifest of a backup is; its copy is beside it."""
        return self.backup / label / "backup.manifest"

    def stored(self, label: str) -> list[Path]:
        """Return the files that hold the data of a backup, the largest first."""
        files = [path for path in (self.backup / label).rglob("*") if path.is_file()]
        data = [path for path in files if not path.name.startswith("backup.manifest")]
        return sorted(data, key=lambda path: path.stat().st_size, reverse=True)


def with_copy(info: Path) -> list[Path]:
    """Return a file of pgBackRest and the copy that it keeps beside it."""
    return [info, info.with_name(f"{info.name}.copy")]


def replace(path: Path, content: bytes) -> None:
    """Put other content in a file's place, with its owner, mode and times, as a disk does."""
    there = path.stat()
    draft = path.with_name(f"{path.name}.draft")
    draft.write_bytes(content)
    shutil.copystat(path, draft)
    if os.geteuid() == 0:
        os.chown(draft, there.st_uid, there.st_gid)
    draft.replace(path)


def flip(path: Path) -> None:
    """Turn over one bit in the middle of a file."""
    replace(path, flipped(path.read_bytes()))


def cut(path: Path) -> None:
    """Let a file lose its last bytes."""
    replace(path, shortened(path.read_bytes()))


def halve(path: Path) -> None:
    """Let a file lose its second half."""
    content = path.read_bytes()
    replace(path, content[: len(content) // 2])


def empty(path: Path) -> None:
    """Leave nothing of a file but its name."""
    replace(path, b"")


def lengthen(path: Path) -> None:
    """Let a byte follow a file's end."""
    replace(path, path.read_bytes() + b"x")


def add(path: Path, content: bytes, like: Path) -> None:
    """Make a new file that belongs to whom another one does, with the folder that it is in."""
    owner = like.stat()
    fresh = [path] if path.parent.exists() else [path.parent, path]
    path.parent.mkdir(mode=0o750, exist_ok=True)
    path.write_bytes(content)
    path.chmod(owner.st_mode & 0o777)
    for each in fresh if os.geteuid() == 0 else ():
        os.chown(each, owner.st_uid, owner.st_gid)


def flipped(content: bytes) -> bytes:
    """Turn over one bit in the middle."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def shortened(content: bytes) -> bytes:
    """Lose the last twenty bytes."""
    return content[:-20]


def signed(content: bytes) -> bytes:
    """Give a file of pgBackRest the checksum of its present content."""
    found = ManifestSum()
    found.feed(content)
    return _CHECKSUM.sub(b'backrest-checksum="%b"' % found.sha1.encode(), content)
