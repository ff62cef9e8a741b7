"""What a damage has in hand: a copy of a repository, and in a sandbox the cluster and its archived rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgvigil.errors import PreconditionFailed

if TYPE_CHECKING:
    from pathlib import Path

    from pgvigil.alarmtest.repository import Repository
    from pgvigil.archive.manifest import Manifest
    from pgvigil.objectstore import ObjectStore
    from pgvigil.sandbox import Sandbox
    from pgvigil.wal.server import Server


@dataclass(frozen=True)
class Archived:
    """One partition as it is in the object store."""

    store: ObjectStore
    uri: str
    manifest: Manifest

    @property
    def rows(self) -> str:
        """The address of the object with the rows."""
        return self.manifest.leaves[0].stored.rows.uri


@dataclass(frozen=True)
class Scene:
    """One case: `config` leads pgBackRest to the copy, `fleet_file` leads the flows there.

    `moments` are the server before and after the copying, where it goes on archiving elsewhere.
    """

    cluster: str
    repository: Repository
    config: Path
    fleet_file: Path
    box: Sandbox | None = None
    archived: Archived | None = None
    moments: tuple[Server, ...] = ()

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox whose cluster may be broken; raises PreconditionFailed where it is the user's."""
        if self.box is None:
            raise PreconditionFailed("this damage is made to a server, and never to yours")
        return self.box

    @property
    def partition(self) -> Archived:
        """The archived partition; raises PreconditionFailed where there is none to damage."""
        if self.archived is None:
            raise PreconditionFailed("this damage is made to archived rows, and never to yours")
        return self.archived
