"""In which turns the rows of a stretch are changed, so that each turn finds the room that another has left.

PostgreSQL writes a new row version into the page of the old one, and then into no index (HOT), where there is
room. A full page has room again once what nobody sees any more is pruned from it: after the commit of who
changed it, and after those who began before that. So where neighbours in the key are neighbours in the table,
a stretch of it is gone over several times, each time for a part of every page's rows. Only the first of them
move elsewhere; table and indexes grow by these alone. Two stretches take turns, so that batches of other
workers that saw the old versions have ended meanwhile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgvigil.backfill.facts import Key

TURNS = 8  # a power of two, see `statements`
STRETCHES = 2
_PLENTY, _LITTLE = 0.75, 0.25
_REST = 20


Blocks = tuple[str, str]
"""The first and the last place (ctid) of a stretch whose rows are neighbours in the table."""


@dataclass(frozen=True)
class End:
    """Up to which key a stretch goes, how many rows that are (0: not counted), and where they are."""

    key: Key
    rows: int = 0
    blocks: Blocks | None = None


@dataclass(frozen=True)
class Course:
    """The next rows of a range, one stretch or two, and which step is next: every stretch in each turn.

    It `is_scattered` where turns were wanted for rows that are no neighbours in the table.
    """

    start: Key | None
    ends: tuple[End, ...]
    turns: int = 1
    step: int = 0
    is_scattered: bool = False

    @property
    def turn(self) -> int | None:
        """Which part of a page's rows the step is for; None in the last turn, which leaves none."""
        turn = self.step // len(self.ends)
        return turn if turn < self.turns - 1 else None

    @property
    def after(self) -> Key | None:
        """The key after which the step's stretch begins."""
        place = self.step % len(self.ends)
        return self.ends[place - 1].key if place else self.start

    @property
    def end(self) -> End:
        """The end of the step's stretch."""
        return self.ends[self.step % len(self.ends)]

    @property
    def cursor(self) -> Key | None:
        """Where the range's cursor stands before the step."""
        return self.start if self.turn is not None else self.after

    @property
    def ahead(self) -> Key | None:
        """Up to which key rows may be done that are beyond the cursor, until it gets there."""
        return self.ends[-1].key if self.turns > 1 else None

    def next(self) -> Course | None:
        """Return the next step, None after the last."""
        after = replace(self, step=self.step + 1)
        return after if after.step < self.turns * len(self.ends) else None


class Habit:
    """Whether turns pay, learnt from batches.

    They don't where neighbours are none, where pages have room anyway, nor where none comes free.
    """

    def __init__(self) -> None:
        self._rest = 0
        self._first = self._later = (0, 0)

    @property
    def turns(self) -> int:
        """How many turns the next course should have."""
        return 1 if self._rest else TURNS

    def note(self, course: Course, done: int, hot: int) -> None:
        """Learn from a batch: rows that it changed, and those of them that stayed in their page."""
        if course.turns == 1:
            self._rest = _REST if course.is_scattered else max(0, self._rest - 1)
        elif course.step < len(course.ends):
            self._first = _sum(self._first, done, hot)
        else:
            self._later = _sum(self._later, done, hot)
        if course.turns > 1 and course.next() is None:
            is_needless = _share(self._first) > _PLENTY
            is_useless = _share(self._later) < _LITTLE
            self._rest = _REST if is_needless or is_useless else 0
            self._first = self._later = (0, 0)


def _sum(known: tuple[int, int], done: int, hot: int) -> tuple[int, int]:
    return known[0] + done, known[1] + hot


def _share(known: tuple[int, int]) -> float:
    return known[1] / known[0] if known[0] else 0.5
