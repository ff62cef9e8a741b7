"""How fresh each proof is: five states, decided from the runs on record and nothing else."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING
from uuid import UUID

from pgvigil.reports import Frozen, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class State(StrEnum):
    """What is known about a proof, worst first."""

    FAILING = "failing"
    NEVER = "never"
    UNPROVEN = "unproven"
    STALE = "stale"
    VERIFIED = "verified"


class Expectation(Frozen):
    """A proof that the fleet wants, and the age at which it is too old.

    Where proofs take turns, a run that tells of another one has left nothing out. `undone_by` is the flow
    by which people take back what was proven.
    """

    subject: str
    flow: str
    proof: str
    max_age: timedelta
    takes_turns: bool = False
    undone_by: str = ""


class Claim(Frozen):
    """What one ended run said about one proof; `proof` None is the run as a whole."""

    subject: str
    flow: str
    proof: str | None
    verdict: Verdict
    at: datetime
    seq: int
    run_id: UUID
    headline: str = ""


class ProofStatus(Frozen):
    """One line of `pgvigil status`; `age` counts from the last time the proof was verified.

    `max_age` is the age at which it is too old, None for a proof that does not age.
    """

    subject: str
    flow: str
    proof: str
    state: State
    reason: str
    verified_at: datetime | None = None
    age: timedelta | None = None
    max_age: timedelta | None = None
    last_run_at: datetime | None = None
    last_verdict: Verdict | None = None
    run_id: UUID | None = None


def assess(claims: Iterable[Claim], expectations: Iterable[Expectation], now: datetime) -> list[ProofStatus]:
    """Give each expected proof its state, worst first; only a decisive verdict moves a clock.

    `claims` hold at least the newest per subject, flow, proof and verdict (`audit.last_claims`).
    """
    known: dict[tuple[str, str], list[Claim]] = {}
    for claim in sorted(claims, key=lambda claim: (claim.at, claim.seq)):
        known.setdefault((claim.subject, claim.flow), []).append(claim)
    return sorted((_status(_standing(known, wanted), wanted, now) for wanted in expectations), key=_rank)


def _standing(known: Mapping[tuple[str, str], list[Claim]], wanted: Expectation) -> list[Claim]:
    """Return what is said of a proof since it was undone, and that it was; all of it if it was not."""
    claims = known.get((wanted.subject, wanted.flow), [])
    others = known.get((wanted.subject, wanted.undone_by), [])
    undone = next((claim for claim in reversed(others) if claim.proof == wanted.proof), None)
    if undone is None:
        return claims
    return [undone, *(claim for claim in claims if (claim.at, claim.seq) > (undone.at, undone.seq))]


def _rank(status: ProofStatus) -> tuple[int, float, str, str, str]:
    age = status.age.total_seconds() if status.age is not None else float("inf")
    return list(State).index(status.state), -age, status.subject, status.flow, status.proof


def _status(claims: list[Claim], wanted: Expectation, now: datetime) -> ProofStatus:
    """Assess one proof from the claims of its subject and flow, oldest first."""
    own = [claim for claim in claims if claim.proof == wanted.proof]
    last = _last_attempt(claims, wanted)
    decisive = _newest(own, Verdict.VERIFIED, Verdict.REFUTED)
    verified = _newest(own, Verdict.VERIFIED)
    age = max(now - verified.at, timedelta()) if verified else None
    state = _state(last, decisive, age, wanted.max_age)
    return ProofStatus(
        subject=wanted.subject,
        flow=wanted.flow,
        proof=wanted.proof,
        state=state,
        reason=_reason(state, wanted, last, decisive),
        verified_at=verified.at if verified else None,
        age=age,
        max_age=None if wanted.max_age == timedelta.max else wanted.max_age,
        last_run_at=last.at if last else None,
        last_verdict=last.verdict if last else None,
        run_id=last.run_id if last else None,
    )


def _newest(claims: list[Claim], *verdicts: Verdict) -> Claim | None:
    return next((claim for claim in reversed(claims) if claim.verdict in verdicts), None)


def _last_attempt(claims: list[Claim], wanted: Expectation) -> Claim | None:
    """Return what the newest run said; a run that does not mention the proof could not tell."""
    if wanted.takes_turns:
        claims = _meant(claims, wanted.proof)
    if not claims:
        return None
    newest = claims[-1]
    said = next((c for c in claims if c.run_id == newest.run_id and c.proof == wanted.proof), None)
    return said or newest.model_copy(update={"proof": wanted.proof, "verdict": Verdict.INCONCLUSIVE})


def _meant(claims: list[Claim], proof: str) -> list[Claim]:
    """Keep the claims of runs that tell of a proof, and of those that ended before they could tell of any."""
    telling = {claim.run_id for claim in claims if claim.proof is not None}
    meant = {claim.run_id for claim in claims if claim.proof == proof}
    return [
        claim
        for claim in claims
        if claim.run_id in meant or (claim.run_id not in telling and claim.verdict is Verdict.INCONCLUSIVE)
    ]


def _state(last: Claim | None, decisive: Claim | None, age: timedelta | None, max_age: timedelta) -> State:
    if last is None:
        return State.NEVER
    if decisive is None:
        return State.UNPROVEN
    if decisive.verdict is Verdict.REFUTED:
        return State.FAILING
    return State.VERIFIED if age is not None and age < max_age else State.STALE


def _reason(state: State, wanted: Expectation, last: Claim | None, decisive: Claim | None) -> str:
    if last is None:
        what = f"has proven '{wanted.proof}'" if wanted.takes_turns else "has ended"
        return f"no run of {wanted.flow} on {wanted.subject} {what} yet"
    if last.flow != wanted.flow:
        return f"undone at {last.at:%Y-%m-%d %H:%M} UTC, and no run of {wanted.flow} has ended since"
    untold = f"the last run could not tell: {last.headline or 'no reason given'}"
    is_untold = last.verdict is Verdict.INCONCLUSIVE
    if decisive is None:
        return f"never verified nor refuted, {untold}"
    fact = {
        State.FAILING: f"refuted at {decisive.at:%Y-%m-%d %H:%M} UTC: {decisive.headline}".removesuffix(": "),
        State.STALE: f"older than {wanted.max_age}, last verified {decisive.at:%Y-%m-%d %H:%M} UTC",
    }.get(state, f"verified at {decisive.at:%Y-%m-%d %H:%M} UTC")
    return f"{fact}; {untold}" if is_untold else fact
