"""What the fleet file wants proven, and how fresh each of those proofs is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil import audit, postgres
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
    """Want each proof fresh in every cluster's first repository, and in all that any run has told of."""
    told = {(claim.flow, claim.subject, claim.proof) for claim in claims if claim.proof}
    for name, cluster in fleet.clusters.items():
        for flow, (first, fresh) in _PROOFS.items():
            own = {proof for at, subject, proof in told if (at, subject) == (flow, name) and proof}
            for proof in sorted({first} | own):
                yield Expectation(subject=name, flow=flow, proof=proof, max_age=fresh(cluster))


def exit_code(statuses: Sequence[ProofStatus]) -> int:
    """Return 0 when every proof is verified, 1 when any is failing, else 2."""
    states = {status.state for status in statuses}
    if State.FAILING in states:
        return 1
    return 0 if states <= {State.VERIFIED} else 2
