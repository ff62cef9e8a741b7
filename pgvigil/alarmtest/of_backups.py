"""Damages of backups and of what pgBackRest notes of them; each returns the name of what it broke."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from pgvigil.alarmtest import repository as files
from pgvigil.alarmtest.repository import with_copy
from pgvigil.errors import PreconditionFailed
from pgvigil.sandbox import operate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgvigil.alarmtest.repository import Repository
    from pgvigil.alarmtest.scene import Scene

_SYSTEM_ID = re.compile(rb"^db-system-id=(\d+)$", re.MULTILINE)


def _full(repository: Repository) -> str:
    fulls = [label for label in repository.labels() if label.endswith("F")]
    if not fulls:
        raise PreconditionFailed("the repository has no full backup", hint="take one first")
    return fulls[-1]


def _parent(repository: Repository) -> str:
    """Return the label of the backup on which the newest one stands."""
    parent = repository.header(repository.newest()).get("backup-prior")
    if not parent:
        raise PreconditionFailed("the newest backup is a full, which stands on no other")
    return str(parent)


def _largest(repository: Repository, label: str) -> Path:
    stored = repository.stored(label)
    if not stored:
        raise PreconditionFailed(f"backup {label} holds no file of its own")
    return stored[0]


def to_both_manifests(damage: Callable[[Path], None]) -> Callable[[Scene], str]:
    """Make a damage that strikes both manifests of the newest full."""

    def strike(scene: Scene) -> str:
        label = _full(scene.repository)
        for path in with_copy(scene.repository.manifest(label)):
            damage(path)
        return label

    return strike


def to_backup_info(damage: Callable[[Path], None], told: str) -> Callable[[Scene], str]:
    """Make a damage that strikes backup.info and its copy; `told` are the tool's words for that."""

    def strike(scene: Scene) -> str:
        for path in with_copy(scene.repository.backup / "backup.info"):
            damage(path)
        return told

    return strike


def to_the_newest_file(damage: Callable[[Path], None]) -> Callable[[Scene], str]:
    """Make a damage that strikes the largest file of the newest backup."""

    def strike(scene: Scene) -> str:
        path = _largest(scene.repository, scene.repository.newest())
        damage(path)
        return str(path.relative_to(scene.repository.backup))

    return strike


def to_a_fulls_file(damage: Callable[[Path], None]) -> Callable[[Scene], str]:
    """Make a damage that strikes the largest file of the newest full, whose dependants need it too."""

    def strike(scene: Scene) -> str:
        label = _full(scene.repository)
        damage(_largest(scene.repository, label))
        return scene.repository.newest()

    return strike


def flip_one_manifest(scene: Scene) -> str:
    """Turn one bit of the newest backup's manifest, and leave the copy."""
    files.flip(scene.repository.manifest(scene.repository.newest()))
    return "manifest"


def lose_archive_info(scene: Scene) -> str:
    """Delete archive.info and its copy."""
    for path in with_copy(scene.repository.archive / "archive.info"):
        path.unlink()
    return "archive.info"


def make_archive_foreign(scene: Scene) -> str:
    """Let archive.info be of another system, as if somebody had copied it from there."""
    return _make_foreign(scene.repository.archive / "archive.info")


def make_stanza_foreign(scene: Scene) -> str:
    """Let archive and backups be of another system."""
    _make_foreign(scene.repository.backup / "backup.info")
    return make_archive_foreign(scene)


def _make_foreign(info: Path) -> str:
    """Give an information file and its copy another system's id, with true checksums; returns the old one."""
    content = info.read_bytes()
    found = _SYSTEM_ID.search(content)
    if found is None:
        raise PreconditionFailed(f"{info.name} names no system")
    foreign = str(int(found[1]) + 1)
    for path in with_copy(info):
        files.replace(path, files.signed(content.replace(found[1], foreign.encode())))
    return found[1].decode()


def lose_parent_manifest(scene: Scene) -> str:
    """Delete one manifest of the newest backup's parent."""
    label = _parent(scene.repository)
    scene.repository.manifest(label).unlink()
    return label


def lose_parent(scene: Scene) -> str:
    """Delete the newest backup's parent with all its files."""
    label = _parent(scene.repository)
    shutil.rmtree(scene.repository.backup / label)
    return label


def flip_page(scene: Scene) -> str:
    """Overwrite part of a page on the server's disk, back it up, and drop the table again."""
    box = scene.sandbox
    operate.sql(box, "CREATE TABLE public.sick AS SELECT generate_series(1, 10000) AS n; CHECKPOINT")
    try:
        path = str(operate.sql(box, "SELECT pg_relation_filepath('public.sick') AS path")[0]["path"])
        with (box.data("primary") / path).open("r+b") as file:
            file.seek(8192 + 2000)
            file.write(b"\xff" * 64)
        operate.pgbackrest(box, "--type=incr", "--log-level-console=off", "backup", config=scene.config)
    finally:
        operate.sql(box, "DROP TABLE public.sick")
    return path
