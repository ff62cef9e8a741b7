"""How long a restore takes: by phase, against earlier drills, against the target; pure."""

from __future__ import annotations

from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING, get_args

from pydantic import Field

from pgvigil.drill.facts import RtoPhase
from pgvigil.reports import Check, Finding, Frozen, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from pgvigil.drill.facts import Phase
    from pgvigil.drill.history import Drill

RTO_PHASES: tuple[RtoPhase, ...] = get_args(RtoPhase)
FEWEST = 3  # earlier drills, below which nothing is foretold
SPREAD = 3 * 1.4826  # a median absolute deviation of normal noise, times three standard deviations
LEAST_SHARE, LEAST_SECONDS = 0.25, 5.0  # what is always usual, however even the earlier drills were
_SEPARATE = 0.05  # sizes closer than this say nothing about a slope


class Timing(Frozen):
    """What one drill measured: seconds by phase, and what they were spent on, in bytes."""

    label: str = Field(description="how the drawing calls it, such as its date")
    seconds: dict[RtoPhase, float]
    repo: int = 1
    backup_bytes: int = 0
    wal_bytes: int = 0

    @property
    def rto(self) -> float:
        """The seconds from the decision to restore until the first query was answered."""
        return sum(self.seconds.values())

    @property
    def is_whole(self) -> bool:
        """Whether every phase was measured."""
        return set(self.seconds) == set(RTO_PHASES)


class Foretold(Frozen):
    """What one phase should take today, in seconds: expected, and the bounds of what is usual."""

    phase: RtoPhase
    seconds: float
    low: float
    high: float


class Trend(Frozen):
    """This drill beside the earlier ones; `foretold` is empty with a reason where too few are known."""

    this: Timing
    earlier: tuple[Timing, ...] = ()
    foretold: tuple[Foretold, ...] = ()
    reason: str = ""
    target: float | None = Field(default=None, description="policy drill.rto in seconds")

    @property
    def seconds(self) -> float | None:
        """The RTO that was to be expected today."""
        return sum(each.seconds for each in self.foretold) if self.foretold else None


def timing(label: str, phases: Sequence[Phase], **spent_on: int) -> Timing:
    """Add up the phases that make the RTO; a phase may have had several parts.

    `repo`, `backup_bytes` and `wal_bytes` say what the time was spent on.
    """
    seconds = {
        name: sum(phase.seconds for phase in phases if phase.name == name)
        for name in RTO_PHASES
        if any(phase.name == name for phase in phases)
    }
    return Timing(label=label, seconds=seconds, **spent_on)


def trend(this: Timing, history: Sequence[Drill], target: timedelta | None) -> Trend:
    """Set this drill beside the earlier ones that were measured whole, whatever their verdict.

    Foretold is from drills of the same repository: another one may be far away.
    """
    earlier = tuple(each for each in map(_timing_of, history) if each.is_whole)
    alike = [each for each in earlier if each.repo == this.repo]
    foretold = foretell(this, alike)
    few = f"{len(alike)} earlier drills from repository {this.repo} were measured whole; "
    return Trend(
        this=this,
        earlier=earlier,
        foretold=foretold,
        reason="" if foretold else f"{few}{FEWEST} are needed to foretell",
        target=target.total_seconds() if target else None,
    )


def _timing_of(drill: Drill) -> Timing:
    memory = drill.memory
    return timing(
        f"{drill.at:%Y-%m-%d}",
        memory.phases,
        repo=memory.repo,
        backup_bytes=memory.backup_bytes,
        wal_bytes=memory.wal_bytes,
    )


def foretell(this: Timing, earlier: Sequence[Timing]) -> tuple[Foretold, ...]:
    """Foretell each phase for today's sizes; nothing from fewer than three earlier drills.

    Restore follows the backup's bytes and replay those of the WAL, by the median slope between earlier
    drills (Theil-Sen), which a few odd ones do not bend; the other phases follow their median.
    """
    if len(earlier) < FEWEST:
        return ()
    return tuple(_foretell(name, this, earlier) for name in RTO_PHASES)


def _foretell(name: RtoPhase, this: Timing, earlier: Sequence[Timing]) -> Foretold:
    points = [(_size(name, each), each.seconds[name]) for each in earlier]
    slope = _slope(points)
    base = median(y - slope * x for x, y in points)
    expected = max(base + slope * _size(name, this), 0.0)
    noise = SPREAD * median(abs(y - base - slope * x) for x, y in points)
    spread = max(noise, LEAST_SHARE * expected, LEAST_SECONDS)
    return Foretold(phase=name, seconds=expected, low=max(expected - spread, 0.0), high=expected + spread)


def _size(name: RtoPhase, timing: Timing) -> float:
    """Return the bytes that a phase has to work through; 0 where size is no cause."""
    return {"restore": timing.backup_bytes, "replay": timing.wal_bytes}.get(name, 0)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the median slope between points of different size, never a negative one."""
    slopes = [
        (y2 - y1) / (x2 - x1)
        for (x1, y1), (x2, y2) in combinations(points, 2)
        if abs(x2 - x1) > _SEPARATE * max(x1, x2)
    ]
    return max(median(slopes), 0.0) if slopes else 0.0


# --- what is wrong with it ----------------------------------------------------------------------------


def judge(found: Trend, subject: str) -> tuple[Check, tuple[Finding, ...]]:
    """Check the RTO against its target, and find what is far above the trend.

    Without a target the check decides nothing, and says so; without a whole measurement it is inconclusive.
    """
    check = _check(found)
    missed = [_missed(found, subject)] if check.verdict is Verdict.REFUTED else []
    return check, (*missed, *_slow(found, subject))


def _check(found: Trend) -> Check:
    lacking = [name for name in RTO_PHASES if name not in found.this.seconds]
    if lacking:
        verdict, actual = Verdict.INCONCLUSIVE, f"not measured: {', '.join(lacking)}"
    elif found.target is None:
        verdict, actual = (
            Verdict.INCONCLUSIVE,
            f"{seconds_text(found.this.rto)}, and no target to compare with",
        )
    else:
        verdict = Verdict.VERIFIED if found.this.rto <= found.target else Verdict.REFUTED
        actual = seconds_text(found.this.rto)
    return Check(
        id="rto",
        verdict=verdict,
        expected=f"at most {seconds_text(found.target)}" if found.target else "a target: set drill.rto",
        actual=actual,
        required=found.target is not None,
    )


def _missed(found: Trend, subject: str) -> Finding:
    seconds, target = found.this.seconds, found.target or 0
    longest = max(RTO_PHASES, key=lambda name: seconds[name])
    return Finding(
        code="rto-missed",
        severity=Severity.ERROR,
        message=f"a restore takes {seconds_text(found.this.rto)}, the target is {seconds_text(target)}; "
        f"{longest} alone took {seconds_text(seconds[longest])}",
        hint="restore: raise process-max, or restore from a nearer repository; replay: take backups more "
        "often; or set drill.rto to what the business accepts",
        subject=subject,
    )


def _slow(found: Trend, subject: str) -> list[Finding]:
    return [
        Finding(
            code="rto-trend",
            severity=Severity.WARNING,
            message=f"{each.phase} took {seconds_text(took)}; by the earlier drills, "
            f"{seconds_text(each.seconds)} was to be expected, and up to {seconds_text(each.high)} is usual",
            hint="compare load, network and disks of this host with those of the earlier drills",
            subject=subject,
        )
        for each in found.foretold
        if (took := found.this.seconds.get(each.phase, 0.0)) > each.high
    ]


def seconds_text(seconds: float) -> str:
    """Write a duration as people read it."""
    if round(seconds, 1) < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
