"""How long a restore should take by earlier drills, and when it took too long."""

from datetime import timedelta
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.drill.drawing import draw
from pgvigil.drill.trend import RTO_PHASES, Timing, Trend, foretell, judge, seconds_text, timing, trend
from pgvigil.reports import Verdict
from tests.fixtures.drill_report import months, phases

GB = 2**30
MINUTE = timedelta(minutes=1)


def measured(size: float, seconds: float, wal: float = 1.0, replay: float = 10.0) -> Timing:
    """A drill of so many gigabytes."""
    return Timing(
        label="2026-01-01",
        seconds={"restore": seconds, "replay": replay, "start": 1.0, "first query": 0.01},
        backup_bytes=int(size * GB),
        wal_bytes=int(wal * GB),
    )


def found(*earlier: Timing, this: Timing, target: float | None = None) -> Trend:
    return Trend(this=this, earlier=earlier, foretold=foretell(this, earlier), target=target)


def test_time_follows_size_and_not_the_calendar() -> None:
    """A database that doubled is expected to take twice as long; replay follows the WAL instead."""
    earlier = [
        measured(size, 10 + 5 * size, wal, 3 * wal) for size, wal in ((10, 4), (12, 1), (14, 3), (16, 2))
    ]

    told = {each.phase: each.seconds for each in foretell(measured(32, 0, 8, 0), earlier)}

    assert pytest.approx(170) == told["restore"]
    assert pytest.approx(24) == told["replay"]
    assert pytest.approx(1) == told["start"]


def test_one_odd_drill_bends_nothing() -> None:
    """A night on which the network was slow does not become the norm."""
    earlier = [measured(size, 5 * size) for size in (10, 11, 12, 13, 14, 15)]
    earlier[3] = measured(13, 900)

    (restore, *_) = foretell(measured(16, 0), earlier)

    assert pytest.approx(80, rel=0.05) == restore.seconds
    assert restore.low < 80 < restore.high < 150


@given(
    st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 1e6)), min_size=3, max_size=12),
    st.floats(0, 1e4),
)
def test_what_is_foretold_is_never_negative_and_lies_within_its_bounds(
    points: list[tuple[float, float]], size: float
) -> None:
    """Whatever was measured."""
    for each in foretell(measured(size, 1), [measured(x, y) for x, y in points]):
        assert 0 <= each.low <= each.seconds <= each.high


def test_fewer_than_three_drills_foretell_nothing_and_say_so() -> None:
    """No number is invented; drills that were cut short do not count."""
    cut = months(1)[0].model_copy(
        update={"memory": months(1)[0].memory.model_copy(update={"phases": phases()[:1]})}
    )

    told = trend(timing("x", phases()), (*months(2), cut), None)

    assert ((), None, 2) == (told.foretold, told.seconds, len(told.earlier))
    assert "2 earlier drills from repository 1 were measured whole; 3 are needed to foretell" == told.reason


def test_each_repository_has_its_own_trend() -> None:
    """A far one does not make the near one slow, nor the near one the far one suspicious; all are drawn."""
    here, there = months(4), months(3)
    far = tuple(
        each.model_copy(update={"memory": each.memory.model_copy(update={"repo": 2, "phases": phases(4000)})})
        for each in there
    )

    near = trend(timing("x", phases(), repo=1, backup_bytes=72 * GB), (*here, *far), None)

    assert all(each.seconds < 500 for each in near.foretold)
    assert 7 == len(near.earlier)
    assert "this drill repo1" in draw(near)


@pytest.mark.parametrize(
    ("target", "verdict", "required", "codes"),
    [
        (600.0, Verdict.VERIFIED, True, []),
        (30.0, Verdict.REFUTED, True, ["rto-missed"]),
        (None, Verdict.INCONCLUSIVE, False, []),
    ],
)
def test_the_target_is_judged_and_without_one_nothing_is_claimed(
    target: float | None, verdict: Verdict, required: bool, codes: list[str]
) -> None:
    """Missed is refuted, with the longest phase named; no target decides nothing and says what to set."""
    check, findings = judge(found(this=measured(10, 50), target=target), "demo")

    assert (verdict, required) == (check.verdict, check.required)
    assert codes == [finding.code for finding in findings]
    assert all("restore alone took 50.0 s" in finding.message for finding in findings)
    assert target is not None or "drill.rto" in check.expected


def test_an_rto_that_was_not_measured_whole_meets_no_target() -> None:
    """A drill that ended before the first query knows no RTO."""
    check, findings = judge(found(this=timing("x", phases()[:2]), target=9e9), "demo")

    assert (Verdict.INCONCLUSIVE, True, ()) == (check.verdict, check.required, findings)
    assert "not measured: start, first query" == check.actual


def test_a_phase_far_above_its_trend_is_a_warning_that_names_it() -> None:
    """Only the phase that is far off, with what was to be expected."""
    earlier = [measured(10 + n, 50 + n) for n in range(5)]

    _, findings = judge(found(*earlier, this=measured(12, 52, replay=30)), "demo")

    assert ["rto-trend"] == [finding.code for finding in findings]
    assert "replay took 30.0 s; by the earlier drills, 10.0 s was to be expected" in findings[0].message


@given(st.lists(st.floats(0.95, 1.05), min_size=4, max_size=10), st.floats(1, 500))
def test_ordinary_noise_is_no_finding(noise: list[float], seconds: float) -> None:
    """A healthy cluster gives none, month after month."""
    *earlier, this = (measured(10, seconds * factor, replay=3 * factor) for factor in noise)

    assert () == judge(found(*earlier, this=this, target=None), "demo")[1]


def test_phases_in_parts_are_added_and_others_do_not_count() -> None:
    """Recovery with two stops replays twice; hashing is the drill's own time."""
    twice = timing("x", (*phases(), phases()[1]))

    assert 2 * 52.5 == twice.seconds["replay"]
    assert set(RTO_PHASES) == set(twice.seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.02, "20 ms"), (0.97, "1.0 s"), (99.94, "99.9 s"), (125, "2 min 05 s"), (7260, "2 h 01 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    """In the unit that a person would take."""
    assert text == seconds_text(seconds)


@pytest.mark.parametrize("target", [None, 10.0, 600.0, 1e6])
@pytest.mark.parametrize("count", [0, 2, 7, 240])
def test_the_drawing_is_one_bar_per_drill_within_the_paper(target: float | None, count: int) -> None:
    """Well-formed, all within its box, never more bars than two years; a far target squeezes nothing."""
    this = timing("2026-11-22", phases(), backup_bytes=80 * GB, wal_bytes=3 * GB)

    picture = ET.fromstring(draw(trend(this, months(count), MINUTE * target / 60 if target else None)))  # noqa: S314 - our own

    width, height = map(float, picture.attrib["viewBox"].split()[2:])
    bars = [each for each in picture.iter() if each.tag.endswith("rect") and len(each)]
    assert len(RTO_PHASES) * (min(count, 23) + 1) == len(bars)
    for each in picture.iter():
        if each.tag.endswith("rect"):
            x, w = float(each.attrib.get("x", 0)), float(each.attrib["width"])
            assert 0 <= x <= x + w <= width
        if each.tag.endswith(("text", "rect")):
            assert 0 <= float(each.attrib.get("y", 0)) <= height
    assert max(float(each.attrib["width"]) for each in bars) > 100


def test_nothing_measured_is_not_drawn() -> None:
    """No empty picture."""
    assert "" == draw(found(this=timing("x", ())))
