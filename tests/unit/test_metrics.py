from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgvigil.errors import ConfigError
from pgvigil.metrics import exposition, replace
from pgvigil.reports import Verdict
from pgvigil.status import ProofStatus, State

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
HOSTILE = 'partitions public."Ä\\"b.c\n\'; --'


def status(**changes: Any) -> ProofStatus:
    facts = {
        "subject": "demo",
        "flow": "nightly_backup",
        "proof": "backup repo1",
        "state": State.VERIFIED,
        "reason": "verified",
        "verified_at": NOW - timedelta(hours=2),
        "age": timedelta(hours=2),
        "max_age": timedelta(hours=26),
        "last_run_at": NOW - timedelta(hours=1),
        "last_verdict": Verdict.INCONCLUSIVE,
    }
    return ProofStatus(**facts | changes)


def samples(*statuses: ProofStatus) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Read an exposition back, as Prometheus does."""
    families = text_string_to_metric_families(exposition(statuses))
    return {family.name: [(s.labels, s.value) for s in family.samples] for family in families}


def test_a_proof_is_in_one_state_and_its_last_run_said_one_thing() -> None:
    """Every word has a sample, so that a query sees the end of a state as well as its begin."""
    found = samples(status())

    states = {labels["state"]: value for labels, value in found["pgvigil_proof_state"]}
    verdicts = {labels["verdict"]: value for labels, value in found["pgvigil_last_run_verdict"]}
    assert dict.fromkeys(State, 0) | {"verified": 1} == states
    assert dict.fromkeys(Verdict, 0) | {"inconclusive": 1} == verdicts


def test_ages_are_seconds_and_times_are_those_of_the_epoch() -> None:
    """A rule reckons with both, so a file that nobody renews does not stay young."""
    found = samples(status())
    labels = {"subject": "demo", "flow": "nightly_backup", "proof": "backup repo1"}

    assert [(labels, 7200)] == found["pgvigil_proof_age_seconds"]
    assert [(labels, 93600)] == found["pgvigil_proof_max_age_seconds"]
    assert [(labels, NOW.timestamp() - 7200)] == found["pgvigil_proof_verified_timestamp_seconds"]
    assert [(labels, NOW.timestamp() - 3600)] == found["pgvigil_last_run_timestamp_seconds"]


def test_what_is_not_known_has_no_sample() -> None:
    """Never verified is not an age of zero, and what does not age has no limit."""
    nothing = {"verified_at": None, "age": None, "max_age": None, "last_run_at": None, "last_verdict": None}
    found = samples(status(state=State.NEVER, **nothing))

    assert [] == [
        name for name in found if name.endswith("_seconds") and "status" not in name and found[name]
    ]
    assert {0.0} == {value for _, value in found["pgvigil_last_run_verdict"]}


def test_a_hostile_name_comes_through_as_it_is() -> None:
    """Quotes, backslashes and line ends of a table's name are escaped."""
    found = samples(status(proof=HOSTILE))

    assert {HOSTILE} == {labels["proof"] for labels, _ in found["pgvigil_proof_state"]}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Nothing but the file is left, and a collector of another user may read it."""
    file = tmp_path / "pgvigil.prom"
    file.write_text("old")

    replace(file, "new\n")

    assert [file] == list(tmp_path.iterdir())
    assert ("new\n", 0o644) == (file.read_text(), file.stat().st_mode & 0o777)


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The message names it; no draft is left."""
    with pytest.raises(ConfigError, match=r"cannot write '.*gone/pgvigil\.prom'"):
        replace(tmp_path / "gone" / "pgvigil.prom", "new\n")
