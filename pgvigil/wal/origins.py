"""Where each archive's WAL comes from: its cluster, its segment size, and what its history files say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgvigil.errors import PgBackRestFailed
from pgvigil.wal.content import Origin, SegmentHash
from pgvigil.wal.names import stored_segment
from pgvigil.wal.reading import require_answer
from pgvigil.wal.timelines import Tree

if TYPE_CHECKING:
    from pgvigil.pgbackrest import PgBackRest, StanzaInfo
    from pgvigil.wal.inventory import Inventory


@dataclass
class Histories:
    """The contents of an archive's history files, and of those that cannot be read the reason."""

    texts: dict[int, str] = field(default_factory=dict)
    unread: dict[int, str] = field(default_factory=dict)


def read_histories(pgbackrest: PgBackRest, repo: int, inventory: Inventory) -> Histories:
    """Read the history files; raises only what is wrong with the repository as a whole."""
    found = Histories()
    for timeline in sorted(inventory.histories):
        path = f"archive/{pgbackrest.target.stanza}/{inventory.archive_id}/{timeline:08X}.history"
        try:
            found.texts[timeline] = _read_text(pgbackrest, repo, path)
        except PgBackRestFailed as error:
            require_answer(pgbackrest, repo)
            found.unread[timeline] = error.message
    return found


def _read_text(pgbackrest: PgBackRest, repo: int, path: str) -> str:
    chunks: list[bytes] = []
    pgbackrest.read(repo, path, chunks.append)
    return b"".join(chunks).decode(errors="replace")


def origin_of(info: StanzaInfo, repo: int, inventory: Inventory, histories: Histories) -> Origin:
    """Say what the WAL of an archive must be."""
    ids = {f"{h.version}-{h.id}": h.system_id for h in info.db if h.repo_key == repo}
    return Origin(inventory.segment_size, ids.get(inventory.archive_id), Tree.read(histories.texts))


def segment_sizes(pgbackrest: PgBackRest, info: StanzaInfo, repo: int, current: str) -> dict[str, int]:
    """Learn the segment sizes of earlier archives, in bytes, from their WAL: an upgrade may change it."""
    found = {}
    for archive in info.archive:
        if archive.database.repo_key == repo and archive.id != current:
            sizes = (_told_size(pgbackrest, repo, archive.id, name) for name in (archive.min, archive.max))
            size = next((size for size in sizes if size), None)
            if size:
                found[archive.id] = size
    return found


def _told_size(pgbackrest: PgBackRest, repo: int, archive_id: str, name: str | None) -> int | None:
    """Return what a segment says of its size, or nothing if it cannot be read."""
    folder = f"archive/{pgbackrest.target.stanza}/{archive_id}/{(name or '')[:16]}"
    for file in pgbackrest.ls(repo, folder) if name else ():
        stored = stored_segment(file, 1 << 24)
        if stored and file.startswith(f"{name}-"):
            content = SegmentHash(stored.suffix)
            try:
                pgbackrest.read(repo, f"{folder}/{file}", content.feed)
            except PgBackRestFailed:
                continue
            if content.header:
                return content.header.segment_size
    return None
