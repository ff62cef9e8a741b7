"""What the fleet file wants proven, and how fresh each of those proofs is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil import audit, postgres
from pgvigil.status import Expectation, ProofStatus, State, assess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pgvigil.fleet import Fleet
    from pgvigil.status import Claim

_BACKUP = "nightly_backup"
_FIRST = "backup repo1"


def read_status(fleet: Fleet) -> list[ProofStatus]:
    """Read the audit log and give each wanted proof its state, worst first, by the store's own clock."""
    with postgres.connect(fleet.audit.dsn, "pgvigil status") as session:
        claims = audit.last_claims(session)
        ((now,),) = (row.values() for row in session.execute("SELECT pg_catalog.now() AS now").fetchall())
    return assess(claims, expectations(fleet, claims), now)


def expectations(fleet: Fleet, claims: Iterable[Claim]) -> Iterator[Expectation]:
    """Want a fresh backup in every repository of every cluster that any run has told of, and in the first."""
    told = {(claim.subject, claim.proof) for claim in claims if claim.flow == _BACKUP and claim.proof}
    for name, cluster in fleet.clusters.items():
        for proof in sorted({_FIRST} | {proof for subject, proof in told if subject == name}):
            yield Expectation(subject=name, flow=_BACKUP, proof=proof, max_age=cluster.backup.fresh)


def exit_code(statuses: Sequence[ProofStatus]) -> int:
    """Return 0 when every proof is verified, 1 when any is failing, else 2."""
    states = {status.state for status in statuses}
    if State.FAILING in states:
        return 1
    return 0 if states <= {State.VERIFIED} else 2
