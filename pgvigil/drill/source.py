"""The source of a drill: what it is, and each of its databases marked, hashed and described at the mark."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.drill import catalogue, sequences
from pgvigil.drill.content import SourceContent, hash_database
from pgvigil.errors import DatabaseFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.drill.catalogue import Catalogue
    from pgvigil.drill.digest import Progress
    from pgvigil.drill.sequences import States
    from pgvigil.policies.drill import DrillPolicy
    from pgvigil.postgres import Connection

_READERS = 3  # catalogues that are read at the same time, each in a session of its own


class Cluster(Frozen):
    """The source cluster; paths are those of its own host.

    `closed` databases let nobody in, so nobody knows what they hold; `half_dropped` ones wait for another
    DROP DATABASE, and hold nothing any more.
    """

    version: str
    superuser: str
    data_directory: Path | None
    tablespaces: tuple[Path, ...]
    databases: tuple[str, ...]
    closed: tuple[str, ...] = ()
    half_dropped: tuple[str, ...] = ()

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
    """Tables of a database whose content at a mark is known; the first mark has the readings."""

    content: SourceContent
    readings: Readings | None
    part: int = 1

    @property
    def name(self) -> str:
        """The database's name."""
        return self.content.mark.database


def read_cluster(session: Connection) -> Cluster:
    """Ask the source what it is; raises DatabaseFailed."""
    row = session.execute(query("drill", "source")).fetchone() or {}
    return Cluster.model_validate(row)


def mark_databases(  # noqa: PLR0913 - which databases, how, and who hears of it
    dsn: str,
    names: Sequence[str],
    policy: DrillPolicy,
    run_name: str,
    *,
    seed: int,
    on_progress: Callable[[Progress], None],
) -> tuple[MarkedDatabase, ...]:
    """Mark the last of these databases and those that can share its mark; hash them, read their catalogue.

    There is one mark more for each set of tables that cannot share one. Raises PreconditionFailed when the
    last one cannot be marked and DatabaseFailed when it is away.
    """
    where = {name: postgres.in_database(dsn, name) for name in names}
    *others, main = names
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: _try_read(where[name], run_name), others)
        before = {main: _read(where[main], run_name)}
        before |= {name: read for name, read in zip(others, found, strict=True) if read}
    contents = hash_database(
        where[main],
        policy,
        run_name,
        beside=[where[name] for name in others if name in before],
        seed=seed,
        on_progress=on_progress,
    )
    marked = sorted({each.mark.database for each in contents})
    with ThreadPoolExecutor(_READERS) as pool:
        after = pool.map(lambda name: _read(where[name], run_name, since=before[name][0]), marked)
        readings = {
            name: Readings((before[name][0], shape), (before[name][1], states))
            for name, (shape, states) in zip(marked, after, strict=True)
        }
    return tuple(_numbered(contents, readings))


def _numbered(contents: Sequence[SourceContent], readings: dict[str, Readings]) -> Iterator[MarkedDatabase]:
    parts: Counter[str] = Counter()
    for each in contents:
        name = each.mark.database
        parts[name] += 1
        yield MarkedDatabase(each, readings.pop(name, None), parts[name])


def _try_read(dsn: str, run_name: str) -> tuple[Catalogue, States] | None:
    """Leave out who cannot be read: when its own turn comes, it is told why."""
    with suppress(DatabaseFailed):
        return _read(dsn, run_name)
    return None


def _read(dsn: str, run_name: str, since: Catalogue | None = None) -> tuple[Catalogue, States]:
    with postgres.connect(dsn, run_name) as session:
        postgres.read_bytes(session)
        shape = catalogue.reread(session, since) if since else catalogue.read(session, "database")
        return shape, sequences.read(session)
