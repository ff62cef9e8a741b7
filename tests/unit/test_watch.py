from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from deployments.watch import expectations
from pgvigil.fleet import Fleet
from pgvigil.reports import Verdict
from pgvigil.status import Claim

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
FLEET = Fleet.model_validate(
    {
        "audit": {"dsn": "service=ops", "reports": "file:///srv/reports"},
        "clusters": {"demo": {"dsn": "service=demo", "pgbackrest": {"stanza": "demo"}}},
    }
)


def run(hours_ago: int, verdict: str, *repositories: int) -> list[Claim]:
    """What a run left on record: its own verdict, and each repository as verified."""
    at, run_id = NOW - timedelta(hours=hours_ago), uuid4()
    said = {None: verdict, **{f"backup repo{number}": "verified" for number in repositories}}
    return [
        Claim(
            subject="demo",
            flow="nightly_backup",
            proof=proof,
            verdict=Verdict(word),
            at=at,
            seq=1,
            run_id=run_id,
        )
        for proof, word in said.items()
    ]


@pytest.mark.parametrize(
    ("claims", "wanted"),
    [
        ([], ["repo1"]),
        (run(1, "inconclusive"), ["repo1"]),
        (run(1, "verified", 2), ["repo2"]),
        (run(1, "inconclusive", 2), ["repo2"]),
        (run(9, "verified", 1, 2) + run(1, "verified", 2), ["repo2"]),
        (run(9, "verified", 1, 2) + run(1, "inconclusive", 1), ["repo1", "repo2"]),
        (run(9, "verified", 1) + run(1, "refuted", 1, 2), ["repo1", "repo2"]),
    ],
)
def test_the_repositories_of_the_last_whole_run_are_wanted(claims: list[Claim], wanted: list[str]) -> None:
    """A retired repository is forgotten, one that a broken run did not reach is not."""
    found = [each.proof for each in expectations(FLEET, claims) if each.flow == "nightly_backup"]
    assert [f"backup {name}" for name in wanted] == found
