"""What a recovery is asked for, how it is watched, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from pydantic import Field

from pgvigil.drill.facts import TargetKind
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from pgvigil.drill.facts import Mark, Target


class Stop(Frozen):
    """Where recovery is to end; replay must reach `lsn` at least, on `timeline` if that is known."""

    kind: TargetKind
    value: str = ""
    inclusive: bool = True
    lsn: str
    timeline: int | None = None
    is_archived: bool = Field(
        default=False, description="whether the WAL up to `lsn` was seen in the repository"
    )

    @classmethod
    def at_mark(cls, mark: Mark) -> Self:
        """Stop where the content is known: at the restore point, else before the record at the mark's LSN."""
        known = cls(kind="lsn", lsn=mark.lsn, timeline=mark.timeline, is_archived=True)
        if mark.name:
            return known.model_copy(update={"kind": "name", "value": mark.name})
        return known.model_copy(update={"value": mark.lsn, "inclusive": False})

    @classmethod
    def at_target(cls, target: Target) -> Self:
        """Stop at the drill's final target; of one that a person asked for neither line nor WAL is known."""
        return cls(
            kind=target.kind,
            value=target.value,
            inclusive=target.inclusive,
            lsn=target.lsn,
            timeline=target.timeline,
            is_archived=target.timeline is not None,
        )

    def settings(self) -> dict[str, str]:
        """Return the recovery settings that stop there; the default goes on to the end of WAL."""
        if self.kind == "default":
            return {}
        inclusive = "on" if self.inclusive else "off"
        return {f"recovery_target_{self.kind}": self.value, "recovery_target_inclusive": inclusive}

    def __str__(self) -> str:
        return "the end of WAL" if self.kind == "default" else f"{self.kind} {self.value}"


class Outcome(StrEnum):
    """How recovery ended; only `reached` proves anything good."""

    REACHED = "reached"
    STOPPED_EARLY = "stopped-early"  # the target was met before the expected LSN
    WAL_MISSING = "wal-missing"  # WAL that must be there, or has successors, is not
    WAL_CORRUPT = "wal-corrupt"
    WAL_ENDS = "wal-ends"  # the archive goes no further: the target lies outside of its window
    BEFORE_BACKUP_END = "before-backup-end"  # the WAL of the backup itself is incomplete
    BEFORE_CONSISTENCY = "before-consistency"  # the target is older than the backup's end
    TIMELINE_MISSING = "timeline-missing"
    TIMELINE_STRAY = "timeline-stray"
    SETTINGS_TOO_LOW = "settings-too-low"
    PROMOTED = "promoted"  # at an earlier stop: it goes no further
    FAILED = "failed"  # the server ended for another reason
    DEADLINE = "deadline"


class Replay(Frozen):
    """How far replay is; percent of the way from where it began to the expected LSN, where that is known."""

    lsn: str
    target: str
    percent: float
    committed_at: datetime | None = None

    def __str__(self) -> str:
        return f"replayed to {self.lsn} of {self.target} ({self.percent:.0f} %)"


class Recovery(Frozen):
    """How far one recovery got, and why no further; `lsn` is the end of what was replayed."""

    outcome: Outcome
    stop: Stop
    message: str
    hint: str = ""
    lines: tuple[str, ...] = Field(default=(), description="what the server said of it")
    lsn: str | None = None
    committed_at: datetime | None = Field(default=None, description="of the last transaction replayed")
    timeline: int | None = Field(default=None, description="that was followed")
    system_id: str = ""
    promoted: bool = Field(default=False, description="up for reads and writes, wherever replay ended")
    wanted: str | None = Field(
        default=None, description="the segment at which replay ended, or that it lacked"
    )
    replay_seconds: float = Field(default=0.0, description="from the server's start to the stop")

    @property
    def reached(self) -> bool:
        """Whether the stop was reached."""
        return self.outcome is Outcome.REACHED


class State(Frozen):
    """What a server in recovery, or just out of it, says of itself."""

    in_recovery: bool
    pause: str
    lsn: str | None
    committed_at: datetime | None


class Watch(Frozen):
    """How a recovery is watched: for how long, and whom to ask and tell."""

    deadline: timedelta
    has_later: Callable[[str], bool] = Field(
        description="whether the repository holds WAL after a segment of its timeline"
    )
    on_progress: Callable[[Replay], None] = Field(default=lambda _: None)
