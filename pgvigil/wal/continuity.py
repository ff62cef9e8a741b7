"""Continuity: from every backup along its line, what is there, what is missing, what can be restored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.wal.ranges import clip, run_from, union, without

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pgvigil.wal.ranges import Range
    from pgvigil.wal.timelines import Stretch, Tree


class Base(NamedTuple):
    """A backup as continuity needs it: its timeline, the numbers of its segments, its end in bytes."""

    label: str
    timeline: int
    start: int
    stop: int
    stop_lsn: int
    is_usable: bool = True
    is_pitr: bool = True


class Reach(NamedTuple):
    """Restore points from one backup: from its end to the end of the unbroken WAL after it, in bytes."""

    label: str
    timeline: int
    from_lsn: int
    to_lsn: int
    last: int


@dataclass(frozen=True)
class Line:
    """One way through the timelines to its tip; on it a number names exactly one segment."""

    stretches: tuple[Stretch, ...]
    present: list[Range]
    good: list[Range]

    @property
    def tip(self) -> int:
        """The timeline in which the line ends."""
        return self.stretches[-1].timeline

    @property
    def newest(self) -> int:
        """The highest number that is stored, or -1."""
        return self.present[-1][1] if self.present else -1

    def timeline_of(self, number: int) -> int:
        """Return from which timeline the line takes a segment."""
        return next(s.timeline for s in self.stretches if s.first <= number <= s.last)

    def holds(self, base: Base) -> bool:
        """Tell whether the backup ended on this line."""
        return any(s.timeline == base.timeline and s.first <= base.stop <= s.last for s in self.stretches)


@dataclass(frozen=True)
class Verdicts:
    """What continuity found on one line; ranges are numbers on that line."""

    line: Line
    bases: tuple[Base, ...]
    lost: list[Range] = field(default_factory=list)
    late: list[Range] = field(default_factory=list)
    reaches: tuple[Reach, ...] = ()
    unreachable: tuple[Base, ...] = ()


def make_line(
    tree: Tree,
    tip: int,
    segment_size: int,
    stored: Mapping[int, Sequence[Range]],
    broken: Mapping[int, Sequence[Range]],
) -> Line:
    """Lay the stored and the broken segments of all timelines onto the way to one of them."""
    stretches = tree.line(tip, segment_size)
    present = lay(stretches, stored)
    return Line(stretches, present, without(present, lay(stretches, broken)))


def lay(stretches: Iterable[Stretch], by_timeline: Mapping[int, Sequence[Range]]) -> list[Range]:
    """Lay ranges of all timelines onto a line: each number from the timeline that the line takes it from."""
    return union(*(clip(by_timeline.get(s.timeline, ()), s.first, s.last) for s in stretches))


def assign(bases: Sequence[Base], lines: Sequence[Line]) -> list[list[Base]]:
    """Give each backup to the first line that holds it; put the live line first."""
    found: list[list[Base]] = [[] for _ in lines]
    for base in bases:
        for index, line in enumerate(lines):
            if line.holds(base):
                found[index].append(base)
                break
    return found


def judge(
    line: Line, bases: Sequence[Base], pending: Sequence[Range], until: int, segment_size: int
) -> Verdicts:
    """Judge one line: what must be there from its backups on, and what can be restored.

    `until` is the last number that the server has finished (-1 if unknown); `pending` what it still holds.
    """
    end = max(line.newest, until)
    missing = without(_needed(bases, end), line.present)
    lost = without(missing, pending)
    reaches = [_reach(line, base, segment_size) for base in bases]
    return Verdicts(
        line=line,
        bases=tuple(bases),
        lost=lost,
        late=without(missing, lost),
        reaches=tuple(reach for reach in reaches if reach),
        unreachable=tuple(base for base, reach in zip(bases, reaches, strict=True) if not reach),
    )


def _needed(bases: Sequence[Base], end: int) -> list[Range]:
    """Say which numbers must be there: all from the oldest backup on, its own range at least."""
    return union((base.start, max(base.stop, end if base.is_pitr else 0)) for base in bases)


def _reach(line: Line, base: Base, segment_size: int) -> Reach | None:
    last = run_from(line.good, base.start) if base.is_usable else None
    if last is None or last < base.stop:
        return None
    return Reach(base.label, line.tip, base.stop_lsn, (last + 1) * segment_size, last)


class Loss(NamedTuple):
    """What one broken range costs: points in bytes, the backups that cannot be restored at all."""

    from_lsn: int
    to_lsn: int
    backups: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether no restore point is lost."""
        return self.from_lsn >= self.to_lsn and not self.backups


def loss_of(found: Verdicts, broken: Range, segment_size: int) -> Loss:
    """Say which restore points a broken range kills: up to the next backup's end, else to the newest WAL."""
    first, last = broken
    before = [base for base in found.bases if base.start <= last]
    dead = tuple(base.label for base in before if base.stop >= first)
    if not before:
        return Loss(0, 0, ())
    after = [reach.from_lsn for reach in found.reaches if _start(found, reach) > last]
    newest = (max(found.line.newest, last) + 1) * segment_size
    return Loss(first * segment_size, min(after, default=newest), dead)


def _start(found: Verdicts, reach: Reach) -> int:
    return next(base.start for base in found.bases if base.label == reach.label)
