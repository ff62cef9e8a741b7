"""How large the next batch is, and how far a walk will still go: pure arithmetic."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from pgvigil.reports import Frozen

_GROW, _SHRINK = 1.5, 0.5
_MEMORY = 0.4  # weight of the newest batch
_MB = 2**20
_SPANS = 60


class PaceLimits(Frozen):
    """Between which bounds a pace moves: rows, seconds, bytes of WAL."""

    most_rows: int
    target: float
    wal_bytes: float


class Pace:
    """The size of one worker's batches: near a target duration, within limits, small while rows fail."""

    def __init__(self, rows: int, limits: PaceLimits) -> None:
        self.limits = limits
        self._wanted = float(min(rows, limits.most_rows))
        self._cap = math.inf  # below this while rows fail
        self._seconds_per_row: float | None = None

    @property
    def rows(self) -> int:
        """Rows of the next batch."""
        return max(1, int(min(self._wanted, self._cap, self.limits.most_rows)))

    @property
    def is_capped(self) -> bool:
        """Whether batches are small because one has failed."""
        return self._cap < math.inf

    def succeed(self, seen: int, seconds: float, wal: int) -> None:
        """Learn from a batch that was committed."""
        if self.is_capped:  # so small a batch says nothing
            self._cap = math.inf if self._cap * 2 >= self._wanted else self._cap * 2
            return
        if seen < self.rows / 2:
            return  # the end of a range says nothing
        cost = max(seconds, 1e-6) / max(1, seen)
        known = self._seconds_per_row
        self._seconds_per_row = cost if known is None else _MEMORY * cost + (1 - _MEMORY) * known
        best = self.limits.target / self._seconds_per_row
        if wal > 0:
            best = min(best, self.limits.wal_bytes * seen / wal)
        self._wanted = min(max(best, self._wanted * _SHRINK), self._wanted * _GROW, self.limits.most_rows)
        self._wanted = max(1.0, self._wanted)

    def fail(self) -> bool:
        """Halve after a batch that failed; False when it was one row already."""
        if self.rows == 1:
            return False
        self._cap = self.rows // 2
        return True

    def resize(self, rows: int) -> None:
        """Go on with another size."""
        self._wanted = float(rows)

    def shrink(self) -> None:
        """Make room at once: somebody waits for us."""
        self._wanted = max(1.0, self._wanted * _SHRINK)


@dataclass(frozen=True)
class Outlook:
    """Rows per second, and seconds to go with the bounds of nineteen cases in twenty."""

    rate: float
    seconds: float | None = None
    least: float | None = None
    most: float | None = None


class Speedometer:
    """Rows over time, in spans of at least a second, the newest minute of them."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque(maxlen=_SPANS + 1)

    def note(self, at: float, rows: int) -> None:
        """Note that so many rows had been seen at a time in seconds."""
        if not self._points or at - self._points[-1][0] >= 1:
            self._points.append((at, rows))

    def look(self, left: int) -> Outlook:
        """Say how long so many rows will take."""
        points = list(self._points)
        if len(points) < 2:
            return Outlook(0)
        spans = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points)]
        rate = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
        if rate <= 0:
            return Outlook(0)
        spread = statistics.stdev(spans) / math.sqrt(len(spans)) if len(spans) > 1 else rate
        fast, slow = rate + 1.96 * spread, rate - 1.96 * spread
        return Outlook(rate, left / rate, left / fast, left / slow if slow > 0 else None)


def limits_of(most_rows: int, target: float, wal_mb: float) -> PaceLimits:
    """Make limits from a policy's units."""
    return PaceLimits(most_rows=most_rows, target=target, wal_bytes=wal_mb * _MB)
