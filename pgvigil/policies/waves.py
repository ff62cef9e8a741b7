"""The policy of a wave: which subjects a pipeline's scheduled run covers, how many at once, when it stops."""

from __future__ import annotations

from datetime import timedelta
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pydantic import Field

from pgvigil.policies.schedule import Schedule
from pgvigil.policies.units import Duration, ServerWait
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable


class WavePolicy(Frozen):
    """One pipeline over the fleet; without any key, it covers every subject that has the pipeline."""

    schedule: Schedule | None = Field(default=None, description="when, if not as prefect.yaml says")
    tags: tuple[str, ...] = Field(default=(), description="only subjects with one of these; empty: all")
    names: tuple[str, ...] = Field(
        default=(), description="only these subjects or clusters, * is any text; empty: all"
    )
    leave_out: tuple[str, ...] = Field(default=(), description="not these subjects or clusters, as in names")
    at_once: int | None = Field(
        default=None,
        ge=1,
        le=100,
        description="subjects at work at the same time; if not given 4, and 1 for restore-drill",
    )
    budget: int | None = Field(
        default=None,
        ge=1,
        description="so many subjects that were not verified end the wave; the rest is told as left. "
        "Without it every subject has its turn",
    )
    stall: Duration = Field(
        default=timedelta(minutes=30),
        description="the wave ends when no worker takes any of its runs for so long",
    )
    deadline: Duration = Field(
        default=timedelta(hours=20), description="the wave ends after so long; what is at work goes on"
    )
    resume: Duration = Field(
        default=timedelta(hours=24),
        description="a run that no schedule started goes on with an unfinished wave that is younger",
    )
    wait: ServerWait = Field(
        default=timedelta(minutes=1), description="how long to wait for another wave of the pipeline"
    )

    def refusal(self, subject: str, tags: Iterable[str]) -> str:
        """Say why this policy leaves a subject out; empty if it does not."""
        if any(covers(pattern, subject) for pattern in self.leave_out):
            return "leave_out"
        if self.names and not any(covers(pattern, subject) for pattern in self.names):
            return "not in names"
        if self.tags and not set(self.tags) & set(tags):
            return f"has none of the tags {', '.join(self.tags)}"
        return ""


def covers(pattern: str, subject: str) -> bool:
    """Tell whether a pattern means a subject: by its whole name, or by its cluster's."""
    return fnmatchcase(subject, pattern) or fnmatchcase(subject.partition("/")[0], pattern)
