"""Damages of the WAL archive; each is done to a copy and returns the name of what it broke."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import zstandard

from pgvigil.alarmtest import repository as files
from pgvigil.errors import PreconditionFailed
from pgvigil.wal.headers import read_page_header
from pgvigil.wal.names import lsn_text, segment_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from pgvigil.alarmtest.repository import Repository
    from pgvigil.alarmtest.scene import Scene

_PAGE = 8192
_NO_SHA1 = "0" * 40


def between_backups(repository: Repository) -> list[Path]:
    """Return the segments of no backup after the newest full, else after the first, oldest first.

    The last one is not among them: of it nobody knows yet whether it should be there. Raises
    PreconditionFailed where there are none.
    """
    ranges = [range_of(repository, label) for label in repository.labels()]
    stored = [path for path in repository.segments()[:-1] if not _is_within(path.name[:24], ranges)]
    for _, full in reversed(_fulls(repository)):
        found = [path for path in stored if path.name[:24] > full[1]]
        if found:
            return found
    raise PreconditionFailed(
        "no WAL segment lies between the backups", hint="let the cluster write some WAL, or switch WAL"
    )


def _is_within(segment: str, ranges: Iterable[tuple[str, str]]) -> bool:
    return any(first <= segment <= last for first, last in ranges)


def range_of(repository: Repository, label: str) -> tuple[str, str]:
    """Return the first and the last segment that a backup needs, as its manifest tells."""
    header = repository.header(label)
    return str(header.get("backup-archive-start", "")), str(header.get("backup-archive-stop", ""))


def _fulls(repository: Repository) -> list[tuple[str, tuple[str, str]]]:
    fulls = [label for label in repository.labels() if label.endswith("F")]
    return [(label, range_of(repository, label)) for label in fulls]


def to_a_segment(damage: Callable[[Path], None]) -> Callable[[Scene], str]:
    """Make a damage that strikes a segment between the backups, in the middle of them."""

    def strike(scene: Scene) -> str:
        found = between_backups(scene.repository)
        path = found[len(found) // 2]
        damage(path)
        return path.name[:24]

    return strike


def to_a_full_segment(damage: Callable[[Path], None]) -> Callable[[Scene], str]:
    """Make a damage that strikes the segment that compresses least, which has many pages of WAL."""

    def strike(scene: Scene) -> str:
        path = max(between_backups(scene.repository), key=lambda each: each.stat().st_size)
        damage(path)
        return path.name[:24]

    return strike


def to_the_newest_backups(damage: Callable[[Path], None]) -> Callable[[Scene], str]:
    """Make a damage that strikes the segment in which the newest backup begins."""

    def strike(scene: Scene) -> str:
        first, _ = range_of(scene.repository, scene.repository.newest())
        damage(scene.repository.segment(first))
        return first

    return strike


def _before(path: Path) -> Path:
    older = [other for other in path.parent.iterdir() if other.name < path.name]
    if not older:
        raise PreconditionFailed(f"no segment is stored before {path.name[:24]}")
    return max(older)


def misplace(path: Path) -> None:
    """Put the segment before under this one's name, with its own sha1."""
    before = _before(path)
    files.replace(path, before.read_bytes())
    path.rename(path.with_name(path.name[:24] + before.name[24:]))


def swap(path: Path) -> None:
    """Let a segment and the one before have each other's numbers; each keeps its sha1."""
    before = _before(path)
    aside = path.rename(path.with_name("aside"))
    before.rename(path.with_name(path.name[:24] + before.name[24:]))
    aside.rename(before.with_name(before.name[:24] + path.name[24:]))


def exchange(path: Path) -> None:
    """Put another segment's content under this one's whole name."""
    files.replace(path, _before(path).read_bytes())


def double(path: Path) -> None:
    """Store a segment once more under another sha1, as a second server would."""
    files.add(path.with_name(path.name[:24] + "-" + _NO_SHA1 + path.name[65:]), path.read_bytes(), path)


def lose_page(path: Path) -> None:
    """Store a segment as a server would whose disk had lost one page of it: its sha1 is right."""
    content = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    if not any(content[2 * _PAGE : 3 * _PAGE]):
        raise PreconditionFailed(f"segment {path.name[:24]} has fewer than three pages of WAL")
    content = content[:_PAGE] + bytes(_PAGE) + content[2 * _PAGE :]
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    files.replace(path, zstandard.compress(content))
    path.rename(path.with_name(f"{path.name[:24]}-{sha1}.zst"))


def lose_stop(scene: Scene) -> str:
    """Delete the segment in which the newest full ends."""
    _, (_, stop) = _fulls(scene.repository)[-1]
    scene.repository.segment(stop).unlink()
    return stop


def lose_after_backup(scene: Scene) -> str:
    """Delete the last segment but one after the newest backup."""
    _, stop = range_of(scene.repository, scene.repository.newest())
    after = [path for path in between_backups(scene.repository) if path.name[:24] > stop]
    if not after:
        raise PreconditionFailed("no WAL segment follows the newest backup", hint="switch WAL, and try again")
    after[-1].unlink()
    return after[-1].name[:24]


def lose_all(scene: Scene) -> str:
    """Delete every segment of the newest archive."""
    for path in scene.repository.current.glob("*/*"):
        path.unlink()
    return "these survive: none"


def _history(repository: Repository) -> Path:
    timeline = repository.segments()[-1].name[:8]
    path = repository.current / f"{timeline}.history"
    if not path.exists():
        raise PreconditionFailed("the cluster is on its first timeline, which has no history file")
    return path


def lose_history(scene: Scene) -> str:
    """Delete the history file of the newest timeline."""
    path = _history(scene.repository)
    path.unlink()
    return f"timeline {int(path.stem, 16)}"


def garble_history(scene: Scene) -> str:
    """Overwrite the history file of the newest timeline."""
    path = _history(scene.repository)
    files.replace(path, b"\x00garbage\n" * 3)
    return f"timeline {int(path.stem, 16)}"


def stray(scene: Scene) -> str:
    """Store WAL and history of a timeline on which the server has never been."""
    own = scene.repository.segments()[-1]
    timeline = int(own.name[:8], 16)
    history = scene.repository.current / f"{timeline:08X}.history"
    past = history.read_bytes() if history.exists() else b""
    size = _segment_size(scene)
    switch = segment_number(own.name[:24], size) * size + 0x28
    line = f"{timeline}\t{lsn_text(switch)}\tno recovery target specified\n"
    name = f"{timeline + 1:08X}"
    folder = own.parent.with_name(name + own.parent.name[8:])
    files.add(folder / (name + own.name[8:]), own.read_bytes(), own)
    files.add(scene.repository.current / f"{name}.history", past + line.encode(), own)
    return f"timeline {timeline + 1}"


def _segment_size(scene: Scene) -> int:
    """Read the size from the WAL itself, 16 MB where it is not compressed as the sandbox does."""
    own = scene.repository.segments()[-1]
    if own.suffix != ".zst":
        return 16 << 20
    header = read_page_header(
        zstandard.ZstdDecompressor().decompressobj().decompress(own.read_bytes())[:_PAGE]
    )
    return header.segment_size if header else 16 << 20
