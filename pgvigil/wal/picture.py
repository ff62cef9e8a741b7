"""Recovery windows as a drawing: time runs to the right, green can be restored, red is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pgvigil import svg
from pgvigil.wal.timelines import Fate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from pgvigil.wal.facts import ArchiveFacts, BackupMark, Gap, RepositoryFacts, Window

_WIDTH, _LEFT, _ROW, _TOP = 960, 150, 64, 34
_GREEN, _RED, _GREY, _INK = "#2e9d5b", "#d33b3b", "#9aa3ad", "#2b3036"
_LETTER = {"full": "F", "diff": "D", "incr": "I"}
_MOST_MARKS = 200


class _Lane(NamedTuple):
    """What one row shows: an archive's way to one timeline, for what can be restored differs by the way."""

    repo: int
    archive: ArchiveFacts
    line: int

    @property
    def spans(self) -> list[Window]:
        return [span for span in self.archive.spans if span.timeline == self.line]

    @property
    def gaps(self) -> list[Gap]:
        return [gap for gap in self.archive.gaps if gap.line == self.line]

    @property
    def marks(self) -> list[BackupMark]:
        return [mark for mark in self.archive.backups if mark.line == self.line]

    @property
    def names(self) -> tuple[str, str]:
        """The archive, and the timeline where there are several."""
        fate = next((t.fate for t in self.archive.timelines if t.id == self.line), "")
        way = f"timeline {self.line} {fate}" if len(self.archive.timelines) > 1 else ""
        return f"repo{self.repo} {self.archive.archive_id}", way

    def switches(self) -> Iterator[tuple[int, datetime]]:
        """Yield the timelines into which the way turns, and when their WAL begins."""
        known = {timeline.id: timeline for timeline in self.archive.timelines}
        found = known.get(self.line)
        while found and found.parent:
            if found.stored_from:
                yield found.id, found.stored_from
            found = known.get(found.parent)


def draw(repositories: Sequence[RepositoryFacts]) -> str:
    """Draw one row per archive and line as an SVG document; empty when there is nothing to draw."""
    rows = [lane for r in repositories for archive in r.archives for lane in _lanes(r.repo, archive)]
    times = [moment for lane in rows for moment in _times(lane)]
    if not times:
        return ""
    scale = _Scale(min(times), max(times))
    height = _TOP + _ROW * len(rows) + 30
    body = [line for index, lane in enumerate(rows) for line in _row(scale, _TOP + _ROW * index, lane)]
    words = (
        "green: restorable · red: lost · grey: a loss that is known · F, D, I: backups · T: a new timeline"
    )
    shapes = [
        svg.text((10, 18), words, _GREY),
        *body,
        svg.text((_LEFT, height - 8), f"{scale.first:%Y-%m-%d %H:%M:%S}", _INK),
        svg.text((_WIDTH - 10, height - 8), f"{scale.last:%Y-%m-%d %H:%M:%S} UTC", _INK, "end"),
    ]
    return svg.document(_WIDTH, height, "recovery windows", shapes)


def _lanes(repo: int, archive: ArchiveFacts) -> list[_Lane]:
    """Return a row for every line on which something lies, the live one first."""
    spans, gaps, marks = archive.spans, archive.gaps, archive.backups
    lines = {*(s.timeline for s in spans), *(g.line for g in gaps), *(m.line for m in marks)}
    live = {t.id for t in archive.timelines if t.fate == Fate.LIVE}
    lanes = [_Lane(repo, archive, line) for line in sorted(lines, key=lambda line: (line not in live, -line))]
    return [lane for lane in lanes if _times(lane)]


class _Scale:
    """Turns times into places."""

    def __init__(self, first: datetime, last: datetime) -> None:
        self.first = first
        self.last = last
        self.seconds = max((last - first).total_seconds(), 1.0)

    def x(self, moment: datetime) -> float:
        share = (moment - self.first).total_seconds() / self.seconds
        return round(_LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT - 20), 1)


def _times(lane: _Lane) -> list[datetime]:
    spans = [moment for span in lane.spans for moment in (span.from_time, span.archived_at)]
    gaps = [moment for gap in lane.gaps for moment in (gap.from_time, gap.to_time) if moment]
    return [*spans, *gaps, *(mark.at for mark in lane.marks)]


def _row(scale: _Scale, top: int, lane: _Lane) -> Iterator[str]:
    archive, way = lane.names
    yield svg.text((10, top + 26), archive, _INK)
    yield svg.text((10, top + 42), way, _GREY)
    yield svg.box((_LEFT, top + 20), (_WIDTH - _LEFT - 20, 4), _GREY)
    yield from (_span(scale, top, span) for span in lane.spans)
    yield from (_gap(scale, top, gap) for gap in lane.gaps if gap.from_time and gap.to_time)
    yield from (_switch(scale, top, *switch) for switch in lane.switches())
    yield from (_mark(scale, top, mark) for mark in lane.marks[-_MOST_MARKS:])


def _switch(scale: _Scale, top: int, timeline: int, at: datetime) -> str:
    x = scale.x(at)
    return (
        f"<g>{svg.titled(f'timeline {timeline} begins')}"
        f"{svg.line((x, top + 10), (x, top + 30), _INK)}"
        f"{svg.text((x, top + 8), f'T{timeline}', _INK, 'middle')}</g>"
    )


def _span(scale: _Scale, top: int, span: Window) -> str:
    began, archived = f"{span.from_time:%Y-%m-%d %H:%M:%S}", f"{span.archived_at:%Y-%m-%d %H:%M:%S}"
    title = f"restorable: from {began}, WAL archived until {archived}"
    title += f", LSN {span.from_lsn} to {span.to_lsn}, timeline {span.timeline}"
    return _bar(scale.x(span.from_time), scale.x(span.archived_at), top, _GREEN, title)


def _gap(scale: _Scale, top: int, gap: Gap) -> str:
    assert gap.from_time is not None  # noqa: S101 - the caller looked
    assert gap.to_time is not None  # noqa: S101 - the caller looked
    colour = _GREY if gap.acknowledged else _RED
    title = f"{gap.code}: {gap.first} to {gap.last}"
    return _bar(scale.x(gap.from_time), scale.x(gap.to_time), top, colour, title)


def _bar(left: float, right: float, top: int, colour: str, title: str) -> str:
    return svg.box((left, top + 14), (max(round(right - left, 1), 3), 16), colour, title)


def _mark(scale: _Scale, top: int, mark: BackupMark) -> str:
    x, colour = scale.x(mark.at), _INK if mark.is_usable else _RED
    return (
        f"<g>{svg.titled(f'{mark.type} {mark.label}')}"
        f"{svg.line((x, top + 8), (x, top + 38), colour, 2)}"
        f"{svg.text((x, top + 50), _LETTER.get(mark.type, '?'), colour, 'middle')}</g>"
    )
