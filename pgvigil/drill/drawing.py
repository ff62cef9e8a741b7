"""The time of a restore as a drawing: one bar per drill, stacked by phase, against target and prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil import svg
from pgvigil.drill.trend import RTO_PHASES, seconds_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.drill.trend import Timing, Trend

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BAR = 960, 130, 110, 58, 26, 16
_INK, _GREY, _PALE, _RED = "#2b3036", "#6b7480", "#d7dce1", "#c62828"
_COLOUR = {"restore": "#2f6f9f", "replay": "#6fa8c9", "start": "#e0a030", "first query": "#8a6fb0"}
_FAR = 4
_MOST = 23  # earlier drills that fit on a page: with this one, two years of months


def draw(trend: Trend) -> str:
    """Draw the drills from oldest to this one as an SVG document; empty when nothing was measured."""
    if not trend.this.seconds:
        return ""
    drills = [*trend.earlier[-_MOST:], trend.this]
    scale = _scale(drills, trend)
    height = _TOP + _ROW * len(drills) + 44
    shapes = [
        *_legend(trend),
        *_axis(scale, height),
        *(shape for row, drill in enumerate(drills) for shape in _bar(scale, row, drill, trend)),
        *_foretold(scale, len(drills) - 1, trend),
        *_target(scale, height, trend),
    ]
    return svg.document(_WIDTH, height, "RTO by phase", shapes)


def _scale(drills: Sequence[Timing], trend: Trend) -> float:
    """Return the pixels per second; what lies far beyond all drills must not squeeze them."""
    longest = max(drill.rto for drill in drills)
    marks = [trend.target or 0.0, sum(each.high for each in trend.foretold)]
    near = [mark for mark in marks if mark <= _FAR * longest]
    return (_WIDTH - _LEFT - _RIGHT) / max(longest, *near, 0.001)


def _legend(trend: Trend) -> Iterator[str]:
    x = float(_LEFT)
    for name in RTO_PHASES:
        yield svg.box((x, 10), (12, 12), _COLOUR[name])
        yield svg.text((x + 17, 20), name, _INK)
        x += 34 + 7 * len(name)
    if trend.target is not None:
        yield svg.line((x + 6, 9), (x + 6, 23), _RED, 2)
        yield svg.text((x + 14, 20), "target", _INK)
        x += 70
    if trend.foretold:
        yield _diamond(x + 6, 16)
        yield svg.text((x + 17, 20), "expected today, with what is usual", _INK)


def _axis(scale: float, height: int) -> Iterator[str]:
    """Draw light lines at round times."""
    step = _step((_WIDTH - _LEFT - _RIGHT) / scale)
    for number in range(1000):
        x = round(_LEFT + number * step * scale, 1)
        if x > _WIDTH - _RIGHT + 1:
            return
        yield svg.line((x, _TOP - 8), (x, height - 34), _PALE)
        yield svg.text((x, height - 18), _short(number * step), _GREY, "middle")


def _step(longest: float) -> float:
    """Return a round number of seconds, of which four to ten make the axis."""
    steps = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600]
    steps += [3600 * hours for hours in (2, 4, 8, 24, 48, 168)]
    return next((step for step in steps if longest / step <= 8), longest)


def _short(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:g} h"
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"


def _bar(scale: float, row: int, drill: Timing, trend: Trend) -> Iterator[str]:
    top, x = _TOP + _ROW * row, float(_LEFT)
    is_this = drill is trend.this
    several = any(each.repo != trend.this.repo for each in trend.earlier)
    words = ("this drill" if is_this else drill.label) + (f" repo{drill.repo}" if several else "")
    yield svg.text((_LEFT - 10, top + 12), words, _INK, "end", bold=is_this)
    for name in RTO_PHASES:
        width = drill.seconds.get(name, 0.0) * scale
        title = f"{drill.label}: {name} {seconds_text(drill.seconds.get(name, 0.0))}"
        yield svg.box((round(x, 1), top), (round(width, 1), _BAR), _COLOUR[name], title)
        x += width
    yield svg.text((x + 6, top + 12), seconds_text(drill.rto), _INK, bold=is_this)


def _foretold(scale: float, row: int, trend: Trend) -> Iterator[str]:
    """Mark below this drill's bar what was to be expected, and how far from it is usual."""
    if not trend.foretold:
        return
    y = _TOP + _ROW * row + _BAR + 6
    low, middle, high = (
        round(_LEFT + sum(getattr(each, name) for each in trend.foretold) * scale, 1)
        for name in ("low", "seconds", "high")
    )
    high = min(high, _WIDTH - 4)
    yield svg.line((low, y), (high, y), _INK, 2)
    yield _diamond(middle, y)


def _target(scale: float, height: int, trend: Trend) -> Iterator[str]:
    if trend.target is None:
        return
    x = round(_LEFT + trend.target * scale, 1)
    words = f"target {seconds_text(trend.target)}"
    if x > _WIDTH - _RIGHT + 1:
        yield svg.text((_WIDTH - 10, _TOP - 13), f"{words}, further right", _RED, "end")
        return
    yield svg.line((x, _TOP - 8), (x, height - 34), _RED, 2)
    yield svg.text((x, _TOP - 13), words, _RED, "middle")


def _diamond(x: float, y: float) -> str:
    return f'<path d="M{x - 5:.1f} {y} L{x:.1f} {y - 5} L{x + 5:.1f} {y} L{x:.1f} {y + 5} Z" fill="{_INK}"/>'
