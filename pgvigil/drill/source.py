"""The source of a drill: what it is, and each of its databases marked, hashed and described at the mark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.drill import catalogue, sequences
from pgvigil.drill.content import SourceContent, hash_database
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.drill.catalogue import Catalogue
    from pgvigil.drill.digest import Progress
    from pgvigil.drill.sequences import States
    from pgvigil.policies.drill import DrillPolicy
    from pgvigil.postgres import Connection


class Cluster(Frozen):
    """The source cluster; paths are those of its own host."""

    version: str
    superuser: str
    data_directory: Path | None
    tablespaces: tuple[Path, ...]
    databases: tuple[str, ...]

    @property
    def places(self) -> tuple[Path, ...]:
        """Where its files are, as far as its role may know."""
        return (*([self.data_directory] if self.data_directory else []), *self.tablespaces)


@dataclass(frozen=True)
class Readings:
    """What a database is beside its rows, as it was before the mark and after it."""

    catalogue: tuple[Catalogue, Catalogue]
    sequences: tuple[States, States]


@dataclass(frozen=True)
class MarkedDatabase:
    """Tables of a database whose content at a mark is known; one mark has the readings."""

    content: SourceContent
    readings: Readings | None

    @property
    def name(self) -> str:
        """The database's name."""
        return self.content.mark.database


def read_cluster(session: Connection) -> Cluster:
    """Ask the source what it is; raises DatabaseFailed."""
    row = session.execute(query("drill", "source")).fetchone() or {}
    return Cluster.model_validate(row)


def mark_database(
    dsn: str, policy: DrillPolicy, run_name: str, *, seed: int, on_progress: Callable[[Progress], None]
) -> tuple[MarkedDatabase, ...]:
    """Mark the database of the dsn, hash it under the mark's snapshot, and read what surrounds the rows.

    There is one mark more for each set of tables that cannot share one. Raises PreconditionFailed when it
    cannot be marked and DatabaseFailed when it is away.
    """
    before = _read(dsn, run_name)
    contents = hash_database(dsn, policy, run_name, seed=seed, on_progress=on_progress)
    after = _read(dsn, run_name, since=before[0])
    readings = Readings((before[0], after[0]), (before[1], after[1]))
    return tuple(MarkedDatabase(each, None if n else readings) for n, each in enumerate(contents))


def _read(dsn: str, run_name: str, since: Catalogue | None = None) -> tuple[Catalogue, States]:
    with postgres.connect(dsn, run_name) as session:
        window = since.window if since else None
        return catalogue.read(session, "database", since=window), sequences.read(session)
