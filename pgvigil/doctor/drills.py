"""Whether a restore of one cluster can be drilled on this host: a place, room, programs, and a mark."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.doctor.cluster import SESSION
from pgvigil.doctor.lines import AT_ONCE, Look
from pgvigil.drill import copy, refusals
from pgvigil.drill.source import read_cluster
from pgvigil.errors import PreconditionFailed, VersionUnsupported
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.doctor.cluster import Cluster
    from pgvigil.drill import source

_PROGRAMS = ("postgres", "pg_controldata", "pg_amcheck", "pg_checksums")


def drill_scratch(cluster: Cluster) -> str:
    """Look for every reason to refuse the scratch directory, and make nothing."""
    drill = cluster.settings.drill
    user = cluster.settings.drill_pgbackrest.user
    refusals.look_over(drill.scratch, user, _read_source(cluster).places)
    return f"copies can be made in '{drill.scratch}'"


def drill_room(cluster: Cluster) -> str:
    """Compare the free space of scratch with the largest newest backup of a repository."""
    where = cluster.settings.drill.scratch
    newest = [found[-1] for key in cluster.info.repo if (found := cluster.info.backups(key.key))]
    need = max((refusals.room_needed(backup, 0) for backup in newest), default=0)
    free = refusals.free_bytes(where)
    if free < need:
        raise PreconditionFailed(
            f"scratch '{where}' has {free} bytes free, a copy needs {need}",
            hint="free space there, or name a larger file system in drill.scratch",
        )
    return f"'{where}' has {free} bytes free, a copy needs {need} and its WAL"


def drill_programs(cluster: Cluster) -> str:
    """Look for PostgreSQL's programs of the server's major on this host."""
    home = copy.find_programs(cluster.server.major, cluster.settings.drill.postgres_bin)
    missing = [name for name in _PROGRAMS if not (home / name).exists()]
    if missing:
        raise VersionUnsupported(
            f"'{home}' lacks {', '.join(missing)}",
            hint=f"install server and contrib of PostgreSQL {cluster.server.major} on this host",
        )
    return f"programs of PostgreSQL {cluster.server.major} are in '{home}'"


def drill_marks(cluster: Cluster) -> str:
    """Look in each database for what a fence needs, which any other mark may fall back to."""
    databases = _read_source(cluster).databases
    with ThreadPoolExecutor(AT_ONCE) as pool:
        fenced = tuple(pool.map(partial(_has_fence, cluster), databases))
    lacking = [name for name, has_fence in zip(databases, fenced, strict=True) if not has_fence]
    if lacking and cluster.settings.drill.mark in {"auto", "fence"}:
        raise PreconditionFailed(
            f"no fence can be had in database {', '.join(lacking)}",
            hint=f"as superuser: {'; '.join(f'psql -d {name!r} -f infra/roles.sql' for name in lacking)}",
        )
    return f"{len(databases)} databases can be marked"


def _has_fence(cluster: Cluster, database: str) -> bool:
    dsn = postgres.in_database(cluster.settings.dsn, database)
    with postgres.connect(dsn, SESSION, connect_timeout=postgres.IMPATIENT) as session:
        (row,) = session.execute(query("drill_source", "fence_helper")).fetchall()
    return bool(row["is_here"])


def _read_source(cluster: Cluster) -> source.Cluster:
    with postgres.connect(cluster.settings.dsn, SESSION, connect_timeout=postgres.IMPATIENT) as session:
        return read_cluster(session)


DRILL = (
    Look("drill.scratch", drill_scratch, needs=("server.reachable",)),
    Look("drill.room", drill_room, needs=("drill.scratch", "stanza.created")),
    Look("drill.programs", drill_programs, needs=("server.facts",), refutes=VersionUnsupported),
    Look("drill.marks", drill_marks, needs=("server.reachable",)),
)
