"""Recovery windows as a drawing: time runs to the right, green can be restored, red is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from pgvigil import svg

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from pgvigil.wal.facts import ArchiveFacts, BackupMark, Gap, RepositoryFacts, Window

_WIDTH, _LEFT, _ROW, _TOP = 960, 130, 64, 34
_GREEN, _RED, _GREY, _INK = "#2e9d5b", "#d33b3b", "#9aa3ad", "#2b3036"
_LETTER = {"full": "F", "diff": "D", "incr": "I"}
_MOST_MARKS = 200


def draw(repositories: Sequence[RepositoryFacts]) -> str:
    """Draw one row per archive as an SVG document; empty when there is nothing to draw."""
    rows = [(r.repo, archive) for r in repositories for archive in r.archives if _times(archive)]
    times = [moment for _, archive in rows for moment in _times(archive)]
    if not times:
        return ""
    scale = _Scale(min(times), max(times))
    height = _TOP + _ROW * len(rows) + 30
    body = [line for index, row in enumerate(rows) for line in _row(scale, _TOP + _ROW * index, *row)]
    shapes = [
        svg.text((10, 18), "green: restorable · red: lost · F, D, I: backups", _GREY),
        *body,
        svg.text((_LEFT, height - 8), f"{scale.first:%Y-%m-%d %H:%M:%S}", _INK),
        svg.text((_WIDTH - 10, height - 8), f"{scale.last:%Y-%m-%d %H:%M:%S} UTC", _INK, "end"),
    ]
    return svg.document(_WIDTH, height, "recovery windows", shapes)


class _Scale:
    """Turns times into places."""

    def __init__(self, first: datetime, last: datetime) -> None:
        self.first = first
        self.last = last
        self.seconds = max((last - first).total_seconds(), 1.0)

    def x(self, moment: datetime) -> float:
        share = (moment - self.first).total_seconds() / self.seconds
        return round(_LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT - 20), 1)


def _times(archive: ArchiveFacts) -> list[datetime]:
    spans = [moment for span in archive.spans for moment in (span.from_time, span.archived_at)]
    gaps = [moment for gap in archive.gaps for moment in (gap.from_time, gap.to_time) if moment]
    return [*spans, *gaps, *(mark.at for mark in archive.backups)]


def _row(scale: _Scale, top: int, repo: int, archive: ArchiveFacts) -> Iterator[str]:
    yield svg.text((10, top + 26), f"repo{repo} {archive.archive_id}", _INK)
    yield svg.box((_LEFT, top + 20), (_WIDTH - _LEFT - 20, 4), _GREY)
    yield from (_span(scale, top, span) for span in archive.spans)
    yield from (_gap(scale, top, gap) for gap in archive.gaps if gap.from_time and gap.to_time)
    yield from (_mark(scale, top, mark) for mark in archive.backups[-_MOST_MARKS:])


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
        f"<g><title>{escape(f'{mark.type} {mark.label}')}</title>"
        f"{svg.line((x, top + 8), (x, top + 38), colour, 2)}"
        f"{svg.text((x, top + 50), _LETTER.get(mark.type, '?'), colour, 'middle')}</g>"
    )
