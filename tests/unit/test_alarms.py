from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgvigil.policies.alarms import AlarmPolicy
from pgvigil.status import ProofStatus, State
from pgvigil.watch.alarms import Facts, Judgement, Memory, Reach, Wait, judge, told

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def proof(state: State, **changes: Any) -> ProofStatus:
    facts = {"subject": "demo", "flow": "nightly_backup", "proof": "backup repo1", "reason": "because"}
    return ProofStatus(**facts | {"state": state, "max_age": 26 * HOUR} | changes)


def reach(days: float, ahead: int = 4) -> Reach:
    seconds = DAY.total_seconds()
    return Reach(
        subject="demo/shop", table="t", ends_at=NOW + days * DAY, partition_seconds=seconds, ahead=ahead
    )


def wait(hours: float) -> Wait:
    return Wait(subject="demo/shop", backfill="cents", waiting_for="replication", since=NOW - hours * HOUR)


def watch(
    before: Judgement | None = None, *, at: datetime = NOW, is_told: bool = True, **facts: Any
) -> Judgement:
    """Look once more, after a watch whose events were taken, or not."""
    memory = Memory()
    if before:
        alarms = told(before.alarms, before.due if is_told else (), at - HOUR)
        memory = Memory(alarms=alarms, sightings=before.sightings)
    return judge(Facts(now=at, memory=memory, **facts), AlarmPolicy())


def kinds(found: Judgement) -> list[str]:
    return [alarm.kind for alarm in found.due]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"statuses": (proof(State.VERIFIED),)}, []),
        ({"statuses": (proof(State.STALE),)}, ["stale"]),
        ({"statuses": (proof(State.NEVER),)}, []),
        ({"statuses": (proof(State.FAILING),)}, []),
        ({"reaches": (reach(5),)}, []),
        ({"reaches": (reach(1.4),)}, []),
        ({"reaches": (reach(1.3),)}, ["horizon"]),
        ({"reaches": (reach(-1),)}, ["horizon"]),
        ({"reaches": (reach(5, ahead=30),)}, ["horizon"]),
        ({"waits": (wait(0.9),)}, []),
        ({"waits": (wait(1),)}, ["waiting"]),
    ],
)
def test_what_calls_for_an_alarm(facts: dict[str, Any], expected: list[str]) -> None:
    """Health for none; a run that refuted told so itself; of what is wanted ahead, a third must be there."""
    assert expected == kinds(watch(**facts))


def test_an_alarm_is_told_once_and_again_after_a_day() -> None:
    """Every five minutes the same message would teach people to look away."""
    stale = (proof(State.STALE),)
    first = watch(statuses=stale)
    second = watch(first, at=NOW + HOUR, statuses=stale)
    third = watch(second, at=NOW + 25 * HOUR, is_told=False, statuses=stale)

    assert [["stale"], [], ["stale"]] == [kinds(each) for each in (first, second, third)]
    assert NOW == third.alarms[0].since


def test_what_prefect_did_not_take_is_due_again() -> None:
    """An event that was lost has told nobody."""
    first = watch(statuses=(proof(State.STALE),))

    assert ["stale"] == kinds(watch(first, at=NOW + HOUR, is_told=False, statuses=(proof(State.STALE),)))


def test_the_end_of_an_alarm_is_told_if_its_begin_was() -> None:
    """Once; and of one that nobody heard of, nobody needs the end."""
    first = watch(statuses=(proof(State.STALE),))
    healed = watch(first, at=NOW + HOUR, statuses=(proof(State.VERIFIED),))
    unheard = watch(first, at=NOW + HOUR, is_told=False, statuses=(proof(State.VERIFIED),))

    assert ["stale"] == [alarm.kind for alarm in healed.over]
    assert () == unheard.over == watch(healed, at=NOW + 2 * HOUR, statuses=(proof(State.VERIFIED),)).over


@pytest.mark.parametrize(
    ("state", "hours", "expected"),
    [
        (State.NEVER, 25, []),
        (State.NEVER, 26, ["stale"]),
        (State.UNPROVEN, 26, ["stale"]),
        (State.FAILING, 23, []),
        (State.FAILING, 24, ["failing"]),
    ],
)
def test_what_lasts_becomes_an_alarm(state: State, hours: int, expected: list[str]) -> None:
    """A proof never given is stale after as long as one may be old; of a refuted one people are reminded."""
    first = watch(statuses=(proof(State.NEVER if state is State.UNPROVEN else state),))

    assert expected == kinds(watch(first, at=NOW + hours * HOUR, statuses=(proof(state),)))


@pytest.mark.parametrize(("hours", "is_left"), [(1, False), (23, False), (24, True)])
def test_what_is_known_is_remembered_once_a_day(hours: int, is_left: bool) -> None:
    """288 watches a day would fill the log with the same; and none need look back for more than a day."""
    found = watch(statuses=(proof(State.NEVER), proof(State.STALE)))
    known = Memory(alarms=found.alarms, sightings=found.sightings, at=NOW)

    again = known.renewed(found.alarms, found.sightings, NOW + hours * HOUR)

    assert is_left == (again is not None)
    assert known.renewed((), found.sightings, NOW) == Memory(sightings=found.sightings)


def test_a_proof_that_does_not_age_is_never_stale() -> None:
    """A backfill that was begun and not yet proven is told by its own run."""
    first = watch(statuses=(proof(State.UNPROVEN, max_age=None),))

    assert [] == kinds(watch(first, at=NOW + 999 * DAY, statuses=(proof(State.UNPROVEN, max_age=None),)))


def test_a_proof_that_was_verified_in_between_is_waited_for_anew() -> None:
    """What is remembered is the present spell, not the first one ever."""
    first = watch(statuses=(proof(State.NEVER),))
    second = watch(first, at=NOW + HOUR, statuses=(proof(State.VERIFIED),))

    assert [] == kinds(watch(second, at=NOW + 30 * HOUR, statuses=(proof(State.NEVER),)))
