"""What the fleet file wants proven, and how fresh each of those proofs is.

Which proofs there are, and how old they may be, each pipeline's policy tells (`pgvigil.policies.clocks`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pgvigil import audit
from pgvigil.policies.clocks import clocks_of
from pgvigil.reports import Verdict
from pgvigil.status import Expectation, ProofStatus, State, assess

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pgvigil.fleet import Fleet
    from pgvigil.policies.clocks import Clock
    from pgvigil.status import Claim

_REPOSITORY = re.compile(r" repo(\d+)(?: |$)")


def read_status(fleet: Fleet) -> list[ProofStatus]:
    """Read the audit log and give each wanted proof its state, worst first, by the store's own clock."""
    with audit.reader(fleet.audit.dsn, "pgvigil status") as session:
        claims = audit.last_claims(session)
        ((now,),) = (row.values() for row in session.execute("SELECT pg_catalog.now() AS now").fetchall())
    return assess(claims, expectations(fleet, claims), now)


def expectations(fleet: Fleet, claims: Iterable[Claim]) -> Iterator[Expectation]:
    """Want every proof that a policy of the fleet file wants, of clusters and of their databases."""
    own: dict[str, list[Claim]] = {}
    for claim in claims:
        own.setdefault(claim.subject, []).append(claim)
    for subject, settings in fleet.subjects():
        for clock in clocks_of(settings):
            yield from _expected(subject, clock, own.get(subject, ()))


def _expected(subject: str, clock: Clock, claims: Sequence[Claim]) -> Iterator[Expectation]:
    """Want a proof of every repository that the runs tell of; before any, of the first."""
    if clock.begun and clock.name() not in {claim.proof for claim in claims if claim.flow == clock.flow}:
        return
    repositories = (_repositories(clock, claims) or {1}) if clock.per_repository else {None}
    for repo in sorted(repositories, key=lambda key: key or 0):
        yield Expectation(
            subject=subject,
            flow=clock.flow,
            proof=clock.name(repo),
            max_age=clock.age(len(repositories)),
            takes_turns=clock.takes_turns,
            undone_by=clock.undone_by,
        )


def _repositories(clock: Clock, claims: Sequence[Claim]) -> set[int]:
    """Find a proof's repositories: those that its own runs tell of, together or one by one.

    Where proofs take turns, one run tells of one repository, so the other pipelines are heard as well:
    a repository that gets backups and was never drilled is one that lacks a drill.
    """
    if not clock.takes_turns:
        return _told([claim for claim in claims if claim.flow == clock.flow])
    others = {claim.flow for claim in claims} - {clock.flow}
    told = [_told([claim for claim in claims if claim.flow == flow]) for flow in sorted(others)]
    return set().union(*told) or _named(claim.proof for claim in claims if claim.flow == clock.flow)


def _told(claims: Sequence[Claim]) -> set[int]:
    """Name the repositories since the last run that verified all; one cut short may leave some out."""
    whole = [claim.at for claim in claims if claim.proof is None and claim.verdict is Verdict.VERIFIED]
    since = max(whole, default=None)
    recent = _named(claim.proof for claim in claims if since is None or claim.at >= since)
    return recent or _named(claim.proof for claim in claims)


def _named(proofs: Iterable[str | None]) -> set[int]:
    found = (_REPOSITORY.search(proof) for proof in proofs if proof)
    return {int(match[1]) for match in found if match}


def exit_code(statuses: Sequence[ProofStatus]) -> int:
    """Return 0 when every proof is verified, 1 when any is failing, else 2."""
    states = {status.state for status in statuses}
    if State.FAILING in states:
        return 1
    return 0 if states <= {State.VERIFIED} else 2
