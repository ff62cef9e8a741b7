"""What the fleet file wants proven, and how fresh each of those proofs is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil import audit, postgres
from pgvigil.reports import Verdict
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
    """Want a fresh backup in every repository that a cluster's runs tell of; before any, in the first."""
    own: dict[str, list[Claim]] = {}
    for claim in claims:
        if claim.flow == _BACKUP:
            own.setdefault(claim.subject, []).append(claim)
    for name, cluster in fleet.clusters.items():
        for proof in sorted(_told(own.get(name, ())) or {_FIRST}):
            yield Expectation(subject=name, flow=_BACKUP, proof=proof, max_age=cluster.backup.fresh)


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
