"""The policy of verify_wal_archive."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import override

from pgvigil.policies.clocks import Clock, Watched
from pgvigil.policies.units import Duration
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_TYPES = ("full", "diff", "incr")


class KnownLoss(Frozen):
    """WAL that is known to be lost: told in the report until a day, but no alarm."""

    timeline: int = Field(ge=1, description="the timeline of the lost segments")
    first: str = Field(pattern=r"^[0-9A-F]{24}$", description="name of the first lost segment, in quotes")
    last: str = Field(pattern=r"^[0-9A-F]{24}$", description="name of the last lost segment, in quotes")
    reason: str = Field(min_length=1, description="why it is lost, for the report")
    until: date = Field(description="from the day after on it is an alarm again")
    repo: int | None = Field(default=None, description="the repository that lacks it; all, if not given")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if {int(self.first[:8], 16), int(self.last[:8], 16)} != {self.timeline} or self.first > self.last:
            raise ValueError(f"first and last must be ascending segment names of timeline {self.timeline}")
        return self


class Continuous(Frozen):
    """How many of the newest backups can be restored to any later point; diff counts fulls and diffs."""

    backups: int = Field(ge=1, description="repo-retention-archive")
    type: Literal["full", "diff", "incr"] = Field(description="repo-retention-archive-type")


class WalPolicy(Watched):
    """What the WAL archive must hold, and how often its content is proven again."""

    max_delay: Duration = Field(
        default=timedelta(minutes=15), description="longest time that finished WAL may wait for the archiver"
    )
    max_delayed_segments: int = Field(default=64, ge=0, description="segments that may wait at once")
    prove_every: Duration = Field(
        default=timedelta(days=30),
        description="every segment's content is read again within this time; new and changed ones at once",
    )
    prove_for: Duration = Field(
        default=timedelta(hours=6), description="longest time that one run reads content; the next goes on"
    )
    readers: int = Field(default=2, ge=1, le=32, description="segments that are read at the same time")
    continuous_fulls: int | None = Field(
        default=None,
        ge=1,
        description="so many newest fulls can be restored to any later point (repo-retention-archive); "
        "older backups need their own WAL only. Without it, all of them",
    )
    continuous: Continuous | None = Field(
        default=None, description="the same, counted by backups of another type than full"
    )
    heartbeat: bool = Field(
        default=True, description="commit a mark, switch WAL and measure until it is stored"
    )
    heartbeat_wait: Duration = Field(default=timedelta(minutes=1), description="how long to wait for it")
    second_opinion: bool = Field(
        default=True, description="run 'pgbackrest verify' once per prove_every and compare"
    )
    known_losses: tuple[KnownLoss, ...] = Field(
        default=(), description="lost WAL that is told in the report, but no alarm"
    )
    fresh: Duration = Field(default=timedelta(hours=26), description="older proof is stale in pgvigil status")

    @model_validator(mode="after")
    def _check_one_count(self) -> Self:
        if self.continuous and self.continuous_fulls:
            raise ValueError("continuous_fulls and continuous say the same: give one of them")
        return self

    def first_continuous(self, types: Sequence[str]) -> int:
        """Return from which backup on, of those of one archive by age, WAL is kept whole; an index."""
        asked = self.continuous
        if asked is None and self.continuous_fulls:
            asked = Continuous(backups=self.continuous_fulls, type="full")
        if asked is None:
            return 0
        counted = _TYPES[: _TYPES.index(asked.type) + 1]
        found = [index for index, kind in enumerate(types) if kind in counted]
        return found[-asked.backups] if len(found) >= asked.backups else 0

    @override
    def clocks(self) -> Iterator[Clock]:
        yield Clock(flow="verify_wal_archive", proof="wal", max_age=self.fresh)
