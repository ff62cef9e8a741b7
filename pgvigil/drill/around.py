"""What a database is beside its rows, read as near to its mark as can be.

Sequences obey no snapshot, so they are read right before the point is fixed and right after it. A catalogue
is read under the snapshot of the mark; where that is not exactly the point, because definitions are not
fenced, it is read on the other side of the point as well. None of that waits until the rows are hashed.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.drill import catalogue, sequences
from pgvigil.drill.digest import pin
from pgvigil.errors import DatabaseFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.drill.catalogue import Catalogue, Scope
    from pgvigil.drill.point import Point, Source
    from pgvigil.drill.sequences import States
    from pgvigil.postgres import Connection

    Shapes = tuple[Catalogue, Catalogue]

_READERS = 3  # databases that are read at the same time
_FRESH = 5.0  # seconds: a fence that is tried again and again reads no oftener
_EXACT = frozenset({"standby", "slot"})  # their snapshot shows what is in WAL before the point, and no more


@dataclass(frozen=True)
class Readings:
    """What a database is beside its rows, before the mark and after it: one catalogue where it is exact.

    One database of those that share a mark has what all databases of the cluster share.
    """

    catalogue: Shapes
    sequences: tuple[States, States]
    shared: Shapes | None = None


class _Before(NamedTuple):
    at: float
    sequences: States
    catalogue: Catalogue | None = None


class Around:
    """The readings of one mark and of those that share it, by database."""

    def __init__(self) -> None:
        self.readings: dict[str, Readings] = {}
        self._before: dict[str, _Before] = {}

    def before(self, sources: Sequence[Source], late: Sequence[Source] = ()) -> None:
        """Read what must be read before a point is tried; the snapshots of `late` ones are taken after it.

        Raises DatabaseFailed.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            for some, read in ((sources, _read_states), (late, self._read_both)):
                due = [source for source in some if self._is_due(source)]
                for source, found in zip(due, pool.map(partial(self._renew, read), due), strict=True):
                    self._before[source.dsn] = found

    def after(self, points: Sequence[Point]) -> None:
        """Read the rest, now that the point is fixed; raises DatabaseFailed.

        With the first goes what all databases share.
        """
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(lambda point: self._read_after(point, points[0]), points)
            names = [point.source.database for point in points]
            self.readings = dict(zip(names, found, strict=True))

    def _is_due(self, source: Source) -> bool:
        before = self._before.get(source.dsn)
        return before is None or time.monotonic() - before.at > _FRESH

    def _renew(self, read: Callable[[Source], _Before], source: Source) -> _Before:
        """Read anew if that can be done: what was read earlier is still right, only longer ago."""
        try:
            return read(source)
        except DatabaseFailed:
            if source.dsn not in self._before:
                raise
            return self._before[source.dsn]

    def _read_both(self, source: Source) -> _Before:
        before = self._before.get(source.dsn)
        with _open(source) as session:
            if before and before.catalogue:
                read = catalogue.reread(session, before.catalogue)
            else:
                read = catalogue.read(session, "database")
            return _Before(time.monotonic(), sequences.read(session), read)

    def _read_after(self, point: Point, first: Point) -> Readings:
        before = self._before[point.source.dsn]
        with _open(point.source) as now, _open(point.source) as then, catalogue.frozen(now):
            catalogue.read_window(now)  # so that its snapshot is taken here
            states = sequences.read(then)
            with catalogue.frozen(then, point.snapshot):
                if before.catalogue:
                    shapes = (before.catalogue, catalogue.reread(then, before.catalogue))
                else:
                    shapes = _shapes(point, "database", then, now)
                shared = _shapes(point, "cluster", then, now) if point is first else None
            return Readings(shapes, (before.sequences, states), shared)


@contextmanager
def _open(source: Source) -> Iterator[Connection]:
    with source.connect() as session:
        pin(session)
        yield session


def _read_states(source: Source) -> _Before:
    with _open(source) as session:
        return _Before(time.monotonic(), sequences.read(session))


def _shapes(point: Point, scope: Scope, then: Connection, now: Connection) -> Shapes:
    """Read the catalogue at the mark's snapshot, and after the point where that is another moment."""
    marked = catalogue.read(then, scope)
    return marked, (marked if point.method in _EXACT else catalogue.reread(now, marked))
