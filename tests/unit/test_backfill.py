from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pgvigil.backfill.facts import Progress
from pgvigil.backfill.health import Gauge, Level, Reading
from pgvigil.backfill.pace import Pace, PaceLimits, Speedometer
from pgvigil.backfill.remedy import Remedy, remedy
from pgvigil.backfill.steering import Overrides
from pgvigil.backfill.turns import TURNS, Course, End, Habit
from pgvigil.errors import DatabaseFailed
from pgvigil.policies.backfills import BackfillPolicy

LIMITS = PaceLimits(most_rows=10_000, target=0.1, wal_bytes=1_000_000)


def reading(value: float) -> Reading:
    return Reading(name="x", value=value, limit=100, text=f"{value}")


def test_batches_grow_to_the_target_duration() -> None:
    """With 20 µs a row, a batch of a tenth of a second has 5 000 rows."""
    pace = Pace(100, LIMITS)
    for _ in range(30):
        pace.succeed(pace.rows, pace.rows * 20e-6, 0)

    assert pace.rows == pytest.approx(5000, rel=0.01)


def test_batches_stay_below_the_limit_of_wal() -> None:
    """With 1 kB of WAL a row, a limit of 1 MB is 1 000 rows, however fast they are."""
    pace = Pace(100, LIMITS)
    for _ in range(30):
        pace.succeed(pace.rows, 0.001, pace.rows * 1000)

    assert pace.rows == 1000


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100), st.integers(0, 10**9)), max_size=50))
def test_a_batch_is_never_empty_nor_too_large(batches: list[tuple[bool, float, int]]) -> None:
    """Whatever happened before, the next batch has at least one row and at most the limit."""
    pace = Pace(100, LIMITS)
    for is_good, seconds, wal in batches:
        if is_good:
            pace.succeed(pace.rows, seconds, wal)
        else:
            pace.fail()
        assert 1 <= pace.rows <= LIMITS.most_rows


def test_a_failing_batch_is_halved_down_to_the_row_and_recovers() -> None:
    """Ten halvings lead from a thousand rows to one; success leads back."""
    pace = Pace(1000, LIMITS)
    halvings = 0
    while pace.fail():
        halvings += 1
    assert (halvings, pace.rows) == (9, 1)

    for _ in range(12):
        pace.succeed(pace.rows, pace.rows * 100e-6, 0)
    assert pace.rows == 1000


def test_a_signal_does_not_flutter() -> None:
    """It stops above the limit, stays so until 70 % of it, and slows in between on the way up."""
    gauge = Gauge()
    levels = [gauge.read(reading(value)) for value in (50, 80, 101, 90, 71, 70, 99)]

    assert levels == [
        Level.GO,
        Level.SLOW,
        Level.STOP,
        Level.STOP,
        Level.STOP,
        Level.GO,
        Level.SLOW,
    ]


def test_a_signal_unread_too_often_stops() -> None:
    """Before that its last word holds, and a reading in between begins the count anew."""
    gauge = Gauge()
    gauge.read(reading(1))

    assert [gauge.miss(3, "away") for _ in range(2)] == [Level.GO, Level.GO]
    gauge.read(reading(1))
    assert [gauge.miss(3, "away") for _ in range(3)] == [Level.GO, Level.GO, Level.STOP]


def test_the_time_to_go_has_bounds() -> None:
    """At a steady rate they are narrow, at a changing one wide; without any rate nothing is said."""
    steady, shaky, still = Speedometer(), Speedometer(), Speedometer()
    for second in range(20):
        steady.note(second, 1000 * second)
        shaky.note(second, 1000 * second + 900 * (second % 2))
        still.note(second, 5)

    narrow, wide = steady.look(50_000), shaky.look(50_000)
    assert (narrow.least, narrow.seconds, narrow.most) == (50, 50, 50)
    assert wide.least
    assert wide.seconds
    assert wide.least < wide.seconds < (wide.most or 10**9)
    assert still.look(50_000).seconds is None


@pytest.mark.parametrize(
    ("state", "wanted"),
    [
        ("40001", Remedy.AGAIN),
        ("40P01", Remedy.AGAIN),
        ("08006", Remedy.AGAIN),
        ("57P01", Remedy.AGAIN),
        ("57P05", Remedy.AGAIN),
        ("25006", Remedy.AGAIN),
        ("53100", Remedy.AGAIN),
        ("55P03", Remedy.SKIP_LOCKED),
        ("57014", Remedy.HALVE),
        ("22003", Remedy.HALVE),
        ("23514", Remedy.HALVE),
        ("P0001", Remedy.HALVE),
        ("XX001", Remedy.HALVE),
        ("42501", Remedy.STOP),
        ("42703", Remedy.STOP),
    ],
)
def test_each_class_of_error_has_its_remedy(state: str, wanted: Remedy) -> None:
    """Passing ones are tried again, a row's own are halved, hopeless ones stop."""
    assert remedy(DatabaseFailed("x", sqlstate=state)) is wanted


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ({}, "it changes nothing"),
        ({"set": {"a": "1"}, "function": "m:f", "columns": ["a"]}, "goes with 'columns'"),
        ({"function": "m:f"}, "goes with 'columns'"),
        ({"set": {"a": "1"}, "columns": ["a"]}, "are those that 'function' gives"),
        ({"set": {"a": "1"}, "into": "s.t", "not_null": ["a"]}, "changes no row"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(policy: dict[str, Any], told: str) -> None:
    """Each kind of change has its own keys."""
    with pytest.raises(ValidationError, match=told):
        BackfillPolicy.model_validate({"table": "s.t", "where": "a IS NULL", **policy})


def test_a_size_below_one_is_refused_when_steering() -> None:
    """The UI's form has the same limits as the command line."""
    with pytest.raises(ValidationError):
        Overrides(rows=0)


def test_progress_is_a_sentence() -> None:
    """Rows, rate, time with its bounds, WAL, and what it waits for since when."""
    progress = Progress(
        rows_seen=500,
        rows_done=400,
        rows_total=1000,
        rate=100,
        seconds_left=300,
        seconds_left_least=240,
        seconds_left_most=360,
        wal_bytes=2**20,
        wal_bytes_left=2**20,
        waiting_for="WAL archive: 99 files wait (limit 64)",
        waiting_since=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=3),
    )

    assert str(progress) == (
        "400 rows changed, 500 of about 1000 seen (50 %), 100 rows/s, 5.0 min to go (4.0 min to 6.0 min), "
        "WAL 1.0 MB, about 1.0 MB to go, waiting for WAL archive: 99 files wait (limit 64) since 03:00:00 UTC"
    )


def steps(course: Course | None) -> list[Course]:
    found = []
    while course:
        found.append(course)
        course = course.next()
    return found


def test_stretches_take_turns() -> None:
    """Each is gone over in every turn, the cursor follows the last turns alone, and what is ahead is told."""
    course = steps(Course(None, (End(("10",)), End(("20",))), turns=4))

    assert [(step.turn, step.end.key[0]) for step in course] == [
        (turn, end) for turn in (0, 1, 2, None) for end in ("10", "20")
    ]
    assert [step.cursor for step in course] == [None] * 7 + [("10",)]
    assert [step.after for step in course] == [None, ("10",)] * 4
    assert {step.ahead for step in course} == {("20",)}


def test_a_course_of_one_turn_is_one_batch() -> None:
    """It takes every row, and is nowhere ahead of its cursor."""
    (step,) = steps(Course(("3",), (End(("9",)),)))

    assert (step.turn, step.after, step.end.key, step.ahead) == (None, ("3",), ("9",), None)


@pytest.mark.parametrize(
    ("first", "later", "turns"),
    [(0, 90, TURNS), (0, 10, 1), (90, 90, 1)],
    ids=["room comes free", "none does", "there is room anyway"],
)
def test_turns_are_taken_where_they_pay(first: int, later: int, turns: int) -> None:
    """Of 100 rows so many stay in their page, in the first turn and in each later one."""
    habit = Habit()
    for step in steps(Course(None, (End(("9",)),), TURNS)):
        habit.note(step, 100, first if step.step == 0 else later)

    assert habit.turns == turns


def test_turns_are_tried_again_after_a_while() -> None:
    """What held them up, an old transaction say, may be gone."""
    habit, alone = Habit(), Course(None, (End(("9",)),))
    habit.note(replace(alone, is_scattered=True), 100, 0)
    assert habit.turns == 1
    for _ in range(100):
        habit.note(alone, 100, 0)

    assert habit.turns == TURNS
