"""The doctor: everything that a flow needs, looked at before it is needed; each line with its cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.doctor.backfills import BACKFILL, backfills_of
from pgvigil.doctor.cluster import CLUSTER, Cluster
from pgvigil.doctor.drills import DRILL
from pgvigil.doctor.evidence import AUDIT, REPORTS
from pgvigil.doctor.lines import Diagnosis, look_at, told, verdict
from pgvigil.errors import ConfigError

if TYPE_CHECKING:
    from pgvigil.fleet import ClusterSettings, Fleet

__all__ = ["Diagnosis", "examine", "verdict"]


def examine(fleet: Fleet, subject: str | None = None) -> tuple[Diagnosis, ...]:
    """Look at what flows need: evidence first, then one cluster, that of `cluster/database`, or all.

    Changes nothing but for one object of a unique name that the report store takes and drops. Never
    raises: an unknown subject is one inconclusive line.
    """
    try:
        names = _clusters(fleet, subject)
    except ConfigError as error:
        return (told("fleet.subject", str(subject), error),)
    lines = [*look_at("audit", fleet, AUDIT), *look_at("reports", fleet, REPORTS)]
    for name in names:
        lines += _cluster(name, fleet.clusters[name], (subject or "").partition("/")[2] or None)
    return tuple(lines)


def _cluster(name: str, settings: ClusterSettings, database: str | None) -> list[Diagnosis]:
    """Look at a cluster, then at the backfills of its databases, or of one."""
    lines = list(look_at(name, Cluster(settings), (*CLUSTER, *DRILL)))
    own = [
        line
        for backfill in backfills_of(name, settings, database)
        for line in look_at(backfill.subject, backfill, BACKFILL, lines)
    ]
    return lines + own


def _clusters(fleet: Fleet, subject: str | None) -> list[str]:
    if subject is None:
        return sorted(fleet.clusters)
    if "/" in subject:
        fleet.database(subject)
    else:
        fleet.cluster(subject)
    return [subject.partition("/")[0]]
