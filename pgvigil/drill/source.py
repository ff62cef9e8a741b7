"""The source of a drill: what it is, and each of its databases marked, hashed and described at the mark."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.drill.around import Around
from pgvigil.drill.content import SourceContent, hash_database
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.drill.around import Readings
    from pgvigil.drill.digest import Progress
    from pgvigil.policies.drill import DrillPolicy
    from pgvigil.postgres import Connection


class Cluster(Frozen):
    """The source cluster; paths are those of its own host.

    `closed` databases let nobody in, so nobody knows what they hold; `half_dropped` ones wait for another
    DROP DATABASE, and hold nothing any more. `oids` tell a database from another that has its name later.
    """

    version: str
    superuser: str
    role: str
    data_directory: Path | None
    tablespaces: tuple[Path, ...]
    databases: tuple[str, ...]
    closed: tuple[str, ...] = ()
    half_dropped: tuple[str, ...] = ()
    oids: dict[str, int]

    @property
    def places(self) -> tuple[Path, ...]:
        """Where its files are, as far as its role may know."""
        return (*([self.data_directory] if self.data_directory else []), *self.tablespaces)


@dataclass(frozen=True)
class MarkedDatabase:
    """Tables of a database whose content at a mark is known; the first mark has the readings.

    `oid` is the one that the database had before it was marked.
    """

    content: SourceContent
    readings: Readings | None
    part: int = 1
    oid: int = 0

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
    where = [postgres.in_database(dsn, name) for name in names]
    around = Around()
    contents = hash_database(
        where[-1],
        policy,
        run_name,
        beside=where[:-1],
        around=around,
        seed=seed,
        on_progress=on_progress,
    )
    return tuple(_numbered(contents, dict(around.readings)))


def _numbered(contents: Sequence[SourceContent], readings: dict[str, Readings]) -> Iterator[MarkedDatabase]:
    parts: Counter[str] = Counter()
    for each in contents:
        name = each.mark.database
        parts[name] += 1
        yield MarkedDatabase(each, readings.pop(name, None), parts[name])
