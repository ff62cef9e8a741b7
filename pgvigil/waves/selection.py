"""Which subjects a pipeline's wave covers, decided from the fleet file alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from pgvigil.policies.clocks import duties_of
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from pgvigil.fleet import Fleet, SubjectSettings
    from pgvigil.policies.waves import WavePolicy


class Member(Frozen):
    """A subject that a wave covers, and what its run is given beside its name."""

    subject: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """The parameters of its run; the first of every flow says on what."""
        return {"database" if "/" in self.subject else "cluster": self.subject, **self.parameters}


class LeftOut(Frozen):
    """A subject that has the pipeline, and why the wave does not cover it."""

    subject: str
    reason: str


class Selection(Frozen):
    """Everybody who has a pipeline: those whom its wave covers, in the order of the fleet file, and not.

    So many are at work at once.
    """

    members: tuple[Member, ...]
    left_out: tuple[LeftOut, ...] = ()
    at_once: int


def select(fleet: Fleet, pipeline: str) -> Selection:
    """Select the members of a pipeline's wave; raises ConfigError for a pipeline that nobody has."""
    policy = fleet.wave(pipeline)
    members: list[Member] = []
    left_out: list[LeftOut] = []
    at_once = 1
    for subject, settings in fleet.subjects():
        duty = duties_of(settings).get(pipeline)
        if duty is None:
            continue
        at_once = policy.at_once or duty.at_once
        reason = _reason(fleet, policy, pipeline, subject, settings)
        if reason:
            left_out.append(LeftOut(subject=subject, reason=reason))
        else:
            members.append(Member(subject=subject, parameters=duty.parameters))
    return Selection(members=tuple(members), left_out=tuple(left_out), at_once=at_once)


def _reason(fleet: Fleet, policy: WavePolicy, pipeline: str, subject: str, settings: SubjectSettings) -> str:
    own = settings.schedules.get(pipeline)
    if own:
        return f"has its own schedule: '{own.cron}' {own.timezone}"
    return policy.refusal(subject, fleet.tags(subject))
