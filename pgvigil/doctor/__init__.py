"""The doctor: everything that a flow needs, looked at before it is needed; each line with its cure."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pgvigil.doctor.backfills import BACKFILL, backfills_of
from pgvigil.doctor.cluster import CLUSTER, Cluster
from pgvigil.doctor.drills import DRILL
from pgvigil.doctor.evidence import AUDIT, REPORTS
from pgvigil.doctor.lines import AT_ONCE, Diagnosis, look_at, told, verdict
from pgvigil.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.doctor.backfills import Backfill
    from pgvigil.fleet import ClusterSettings, Fleet

__all__ = ["Diagnosis", "examine", "verdict"]


def examine(fleet: Fleet, subject: str | None = None) -> tuple[Diagnosis, ...]:
    """Look at what flows need: evidence first, then one cluster, that of `cluster/database`, or all.

    Changes nothing but for one object of a unique name that the report store takes and drops. So many
    clusters are looked at side by side as `AT_ONCE` says, then as many backfills, each through one session.
    Never raises: an unknown subject is one inconclusive line.
    """
    try:
        names = _clusters(fleet, subject)
    except ConfigError as error:
        return (told("fleet.subject", str(subject), error),)
    lines = [*look_at("audit", fleet, AUDIT), *look_at("reports", fleet, REPORTS)]
    database = (subject or "").partition("/")[2] or None
    with ThreadPoolExecutor(AT_ONCE) as pool:
        clusters = [pool.submit(_cluster, name, fleet.clusters[name]) for name in names]
        for name, examined in zip(names, clusters, strict=True):
            own = examined.result()
            backfills = backfills_of(name, fleet.clusters[name], database)
            begun = [pool.submit(_backfill, each, own) for each in backfills]
            lines += [*own, *(line for each in begun for line in each.result())]
    return tuple(lines)


def _cluster(name: str, settings: ClusterSettings) -> tuple[Diagnosis, ...]:
    return tuple(look_at(name, Cluster(settings), (*CLUSTER, *DRILL)))


def _backfill(backfill: Backfill, of_cluster: Sequence[Diagnosis]) -> tuple[Diagnosis, ...]:
    with backfill.session:
        return tuple(look_at(backfill.subject, backfill, BACKFILL, of_cluster))


def _clusters(fleet: Fleet, subject: str | None) -> list[str]:
    if subject is None:
        return sorted(fleet.clusters)
    if "/" in subject:
        fleet.database(subject)
    else:
        fleet.cluster(subject)
    return [subject.partition("/")[0]]
