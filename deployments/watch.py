"""What the fleet file wants proven, and how fresh each of those proofs is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil import audit, postgres
from pgvigil.reports import Verdict
from pgvigil.status import Expectation, ProofStatus, State, assess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import timedelta

    from pgvigil.fleet import ClusterSettings, Fleet
    from pgvigil.status import Claim

# Which flow proves what of every repository, and the policy of a cluster that says how fresh that must be.
_PROOFS: dict[str, tuple[str, Callable[[ClusterSettings], timedelta]]] = {
    "nightly_backup": ("backup repo1", lambda cluster: cluster.backup.fresh),
    "verify_wal_archive": ("wal repo1", lambda cluster: cluster.wal.fresh),
}


def read_status(fleet: Fleet) -> list[ProofStatus]:
    """Read the audit log and give each wanted proof its state, worst first, by the store's own clock."""
    with postgres.connect(fleet.audit.dsn, "pgvigil status") as session:
        claims = audit.last_claims(session)
        ((now,),) = (row.values() for row in session.execute("SELECT pg_catalog.now() AS now").fetchall())
    return assess(claims, expectations(fleet, claims), now)


def expectations(fleet: Fleet, claims: Iterable[Claim]) -> Iterator[Expectation]:
    """Want each proof fresh in every repository that a cluster's runs tell of; before any, in the first."""
    own: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        own.setdefault((claim.subject, claim.flow), []).append(claim)
    for name, cluster in fleet.clusters.items():
        for flow, (first, fresh) in _PROOFS.items():
            for proof in sorted(_told(own.get((name, flow), ())) or {first}):
                yield Expectation(subject=name, flow=flow, proof=proof, max_age=fresh(cluster))
        yield from _partitions(name, cluster)


def _partitions(name: str, cluster: ClusterSettings) -> Iterator[Expectation]:
    """Want every table of the fleet file rolled."""
    for database, settings in cluster.databases.items():
        for policy in settings.partitions:
            yield Expectation(
                subject=f"{name}/{database}",
                flow="roll_partitions",
                proof=f"partitions {policy.table}",
                max_age=policy.fresh,
            )


def _told(claims: Sequence[Claim]) -> set[str]:
    """Name the proofs since the last run that verified all it had to; one cut short may leave some out."""
    whole = [claim.at for claim in claims if claim.proof is None and claim.verdict is Verdict.VERIFIED]
    since = max(whole, default=None)
    recent = {claim.proof for claim in claims if claim.proof and (since is None or claim.at >= since)}
    return recent or {claim.proof for claim in claims if claim.proof}


def exit_code(statuses: Sequence[ProofStatus]) -> int:
    """Return 0 when every proof is verified, 1 when any is failing, else 2."""
    states = {status.state for status in statuses}
    if State.FAILING in states:
        return 1
    return 0 if states <= {State.VERIFIED} else 2
