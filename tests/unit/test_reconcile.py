from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgvigil.audit import RunSummary
from pgvigil.watch.reconcile import Held, correct

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
RUN = UUID(int=1)


def held(type_: str, **changes: Any) -> Held:
    return Held(**{"id": RUN, "name": "backup of demo", "type": type_, "began": NOW - HOUR, **changes})


def record(state: str, verdict: str | None = None, **changes: Any) -> RunSummary:
    facts = {"run_id": uuid4(), "flow": "nightly_backup", "subject": "demo", "actor": "me", "host": "here"}
    facts |= {"pid": 7, "started_at": NOW - HOUR, "dry_run": False}
    ended = None if state == "open" else NOW - HOUR / 2
    return RunSummary(
        **facts | {"state": state, "verdict": verdict, "ended_at": ended, "headline": "why"} | changes
    )


def becomes(run: Held, known: RunSummary | None) -> str | None:
    found = correct([run], {RUN: known} if known else {}, NOW)
    return found[0].becomes if found else None


@pytest.mark.parametrize(
    ("type_", "known", "expected"),
    [
        ("RUNNING", record("open"), None),
        ("RUNNING", record("ended", "verified"), "Completed"),
        ("RUNNING", record("ended", "refuted"), "Refuted"),
        ("RUNNING", record("ended", "inconclusive"), "Inconclusive"),
        ("RUNNING", record("lost"), "Crashed"),
        ("RUNNING", None, None),
        ("PENDING", record("lost"), "Crashed"),
        ("CANCELLING", record("ended", "inconclusive"), "Cancelled"),
        ("CANCELLING", record("ended", "verified"), "Completed"),
        ("CANCELLING", record("lost"), "Cancelled"),
        ("CRASHED", record("ended", "verified"), "Completed"),
        ("CRASHED", record("ended", "refuted"), "Refuted"),
        ("CRASHED", record("ended", "inconclusive"), None),
        ("CRASHED", record("lost"), None),
        ("CRASHED", record("open"), None),
        ("COMPLETED", record("ended", "verified"), None),
        ("COMPLETED", record("ended", "refuted"), "Refuted"),
        ("COMPLETED", record("ended", "inconclusive"), "Inconclusive"),
        ("COMPLETED", record("lost"), "Crashed"),
        ("COMPLETED", None, None),
    ],
)
def test_prefect_gets_what_the_audit_log_proves(
    type_: str, known: RunSummary | None, expected: str | None
) -> None:
    """Where both agree, or nothing is proven, nothing is touched."""
    assert expected == becomes(held(type_), known)


def test_a_run_that_has_just_ended_tells_prefect_itself() -> None:
    """It tries for more than a minute when the server is away; who corrects meanwhile would race with it."""
    assert becomes(held("RUNNING"), record("ended", "verified", ended_at=NOW - timedelta(minutes=2))) is None


@pytest.mark.parametrize("known", [record("ended", "verified"), record("lost")])
def test_an_earlier_attempt_decides_nothing(known: RunSummary) -> None:
    """A person's answer begins the run anew: it works, and only what it leaves now counts."""
    assert becomes(held("RUNNING", began=NOW - HOUR / 4), known) is None


@pytest.mark.parametrize(
    ("type_", "minutes", "is_ours", "expected"),
    [
        ("RUNNING", 9, True, None),
        ("RUNNING", 10, True, "Crashed"),
        ("RUNNING", 99, False, None),
        ("CANCELLING", 10, True, "Cancelled"),
        ("PENDING", 59, True, None),
        ("PENDING", 60, True, "Crashed"),
    ],
)
def test_a_run_that_never_left_a_record_is_told(
    type_: str, minutes: int, is_ours: bool, expected: str | None
) -> None:
    """It died before it began; what a container takes to start is waited for, and others' runs are theirs."""
    assert expected == becomes(held(type_, is_ours=is_ours, began=NOW - timedelta(minutes=minutes)), None)


def test_a_lost_run_is_told_with_what_comes_next() -> None:
    """What it left, and what the next run does with it."""
    (found,) = correct(
        [held("RUNNING")], {RUN: record("lost", headline="its step 'take' has no outcome")}, NOW
    )

    assert found.because == (
        "its step 'take' has no outcome; the next nightly_backup of demo finds what it left, and finishes or "
        "removes it"
    )
