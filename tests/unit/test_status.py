from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgvigil.reports import Verdict
from pgvigil.status import Claim, Expectation, ProofStatus, State, assess

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
PROOF = "backup repo1"
HOUR = timedelta(hours=1)


def claim(verdict: str, hours_ago: float, proof: str | None = PROOF, **changes: Any) -> Claim:
    facts = {
        "subject": "demo",
        "flow": "nightly-backup",
        "proof": proof,
        "verdict": Verdict(verdict),
        "at": NOW - hours_ago * HOUR,
        "seq": 1,
        "run_id": uuid4(),
        "headline": f"{verdict} {hours_ago} h ago",
    }
    return Claim(**facts | changes)


def wanted(**changes: Any) -> Expectation:
    facts = {"subject": "demo", "flow": "nightly-backup", "proof": PROOF, "max_age": 26 * HOUR}
    return Expectation(**facts | changes)


def status(*claims: Claim, now: datetime = NOW) -> ProofStatus:
    (found,) = assess(claims, [wanted()], now)
    return found


@pytest.mark.parametrize(
    ("claims", "state"),
    [
        ([], State.NEVER),
        ([claim("verified", 1)], State.VERIFIED),
        ([claim("verified", 25.9)], State.VERIFIED),
        ([claim("verified", 26)], State.STALE),
        ([claim("refuted", 1)], State.FAILING),
        ([claim("inconclusive", 1)], State.UNPROVEN),
        ([claim("refuted", 5), claim("verified", 1)], State.VERIFIED),
        ([claim("verified", 5), claim("refuted", 1)], State.FAILING),
        ([claim("verified", 5), claim("inconclusive", 1)], State.VERIFIED),
        ([claim("verified", 30), claim("inconclusive", 1)], State.STALE),
        ([claim("refuted", 300), claim("inconclusive", 1)], State.FAILING),
        ([claim("inconclusive", 1, proof=None)], State.UNPROVEN),
        ([claim("verified", 1, proof="backup repo2")], State.UNPROVEN),
        ([claim("verified", 1, subject="other")], State.NEVER),
        ([claim("verified", 1, flow="restore-drill")], State.NEVER),
    ],
)
def test_only_a_decisive_verdict_moves_the_state(claims: list[Claim], state: State) -> None:
    """Could-not-run refreshes no clock and heals no failure, in whatever order the claims come."""
    assert state == status(*claims).state
    assert state == status(*reversed(claims)).state


def test_of_two_claims_at_one_instant_the_later_link_counts() -> None:
    """The chain's order settles what the clock cannot."""
    first, second = claim("verified", 1, seq=1), claim("refuted", 1, seq=2)

    assert status(second, first).state is State.FAILING


def test_a_failing_proof_tells_when_it_was_last_good() -> None:
    """The clock goes on from the last time the proof held, and the reason is that of the refutation."""
    refuted = claim("refuted", 2, headline="page checksum differs")

    found = status(claim("verified", 30), refuted)

    assert (found.verified_at, found.age) == (NOW - 30 * HOUR, 30 * HOUR)
    assert (NOW - 2 * HOUR, Verdict.REFUTED, refuted.run_id) == (
        found.last_run_at,
        found.last_verdict,
        found.run_id,
    )
    assert "page checksum differs" in found.reason


def test_a_run_that_does_not_mention_the_proof_could_not_tell() -> None:
    """A run that died before the proof is shown as the last run, with its reason, and proves nothing."""
    run_id = UUID(int=7)
    silent = claim("verified", 1, proof=None, run_id=run_id, headline="repo1 was not reached")

    found = status(claim("verified", 30), silent)

    assert (State.STALE, Verdict.INCONCLUSIVE, run_id) == (found.state, found.last_verdict, found.run_id)
    assert "older than 1 day, 2:00:00" in found.reason
    assert "repo1 was not reached" in found.reason


def test_a_run_speaks_for_a_proof_through_that_proof_alone() -> None:
    """A run refuted for another reason does not refute this proof."""
    run_id = uuid4()
    whole = claim("refuted", 1, proof=None, run_id=run_id)

    found = status(whole, claim("verified", 1, run_id=run_id))

    assert (found.state, found.last_verdict) == (State.VERIFIED, Verdict.VERIFIED)


def test_what_was_undone_is_unproven_until_the_next_run() -> None:
    """Neither what was verified before nor what was refuted holds for rows that were given back."""
    asked = wanted(undone_by="steer")
    before, undone = claim("verified", 5), claim("inconclusive", 3, flow="steer")
    (found,) = assess([before, claim("refuted", 4), undone], [asked], NOW)
    (again,) = assess([before, undone, claim("verified", 1)], [asked], NOW)

    assert (found.state, found.verified_at) == (State.UNPROVEN, None)
    assert found.reason.startswith("undone at 2025-06-01 09:00 UTC")
    assert again.state is State.VERIFIED


def test_a_proof_from_the_future_has_no_negative_age() -> None:
    """A clock that lags behind the server's shows age zero."""
    assert timedelta() == status(claim("verified", -1)).age


def test_never_says_which_run_is_awaited() -> None:
    """An empty log is told with flow and subject."""
    assert status().reason == "no run of nightly-backup on demo has ended yet"


def test_the_worst_comes_first_and_the_oldest_within_it() -> None:
    """Whoever reads only the first line reads the most urgent one."""
    subjects = ["good", "old", "older", "bad", "unknown", "none"]
    claims = [
        claim("verified", 1, subject="good"),
        claim("verified", 40, subject="old"),
        claim("verified", 50, subject="older"),
        claim("refuted", 1, subject="bad"),
        claim("inconclusive", 1, subject="unknown"),
    ]

    found = assess(claims, [wanted(subject=subject) for subject in subjects], NOW)

    assert [line.subject for line in found] == ["bad", "none", "unknown", "older", "old", "good"]
