"""Damages of an archived partition in the object store; each returns the name of what it broke."""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from pgvigil.alarmtest import repository as files

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.alarmtest.scene import Archived, Scene


def _alter(archived: Archived, change: Callable[[bytes], bytes]) -> str:
    archived.store.put(archived.rows, change(archived.store.get(archived.rows)))
    return archived.manifest.shape.name


def flip(scene: Scene) -> str:
    """Turn one bit of the rows."""
    return _alter(scene.partition, files.flipped)


def truncate(scene: Scene) -> str:
    """Cut the rows short."""
    return _alter(scene.partition, files.shortened)


def drop_a_row(scene: Scene) -> str:
    """Store the same rows without the last one, well compressed."""
    return _alter(scene.partition, without_last_row)


def without_last_row(content: bytes) -> bytes:
    """Return stored rows without the last one."""
    text = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    rows = text.splitlines(keepends=True)
    return zstandard.compress(b"".join(rows[:-1]))


def lose(scene: Scene) -> str:
    """Delete the rows."""
    scene.partition.store.delete(scene.partition.rows)
    return scene.partition.manifest.shape.name


def edit_manifest(scene: Scene) -> str:
    """Let the manifest tell one row more, as somebody would who hides a loss."""
    archived = scene.partition
    rows = archived.manifest.digest.rows
    told = archived.store.get(archived.uri)
    archived.store.put(archived.uri, told.replace(b'"rows": %d' % rows, b'"rows": %d' % (rows + 1)))
    return archived.manifest.shape.name
