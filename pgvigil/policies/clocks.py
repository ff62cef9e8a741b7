"""What a policy wants proven, how fresh, and by which runs: each pipeline's policy tells it.

`pgvigil status` asks all of them for their clocks, a wave over the fleet for their duties.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Clock(Frozen):
    """One proof that a pipeline gives, and the age at which it is too old.

    A proof per repository is called `<proof> repo<n> <detail>`, else `<proof> <detail>`. Where proofs take
    turns, a run speaks for those that it names, and each repository waits until the others had their turn.
    With `begun`, it is wanted once a run has told of it, for nothing runs the pipeline but people; a run of
    the flow `undone_by` that tells of it takes it back.
    """

    flow: str
    proof: str
    detail: str = ""
    max_age: timedelta
    per_repository: bool = True
    takes_turns: bool = False
    begun: bool = False
    undone_by: str = ""

    def name(self, repo: int | None = None) -> str:
        """Name the proof, of one repository if it is given per repository."""
        where = f"repo{repo}" if self.per_repository else ""
        return " ".join(part for part in (self.proof, where, self.detail) if part)

    def age(self, repositories: int) -> timedelta:
        """Return the age that is too old where there are so many repositories."""
        return self.max_age * repositories if self.takes_turns and self.per_repository else self.max_age


class Duty(Frozen):
    """A flow that is run unattended, what it is given beside its subject, and how many at once."""

    flow: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    at_once: int = 4

    @property
    def pipeline(self) -> str:
        """The flow's name as people write it."""
        return self.flow.replace("_", "-")


class Watched(Frozen):
    """A policy whose pipeline gives proofs."""

    def clocks(self) -> Iterator[Clock]:
        """Yield every proof that is wanted under this policy."""
        raise NotImplementedError

    def duties(self) -> Iterator[Duty]:
        """Yield what is run unattended under this policy: whatever gives its proofs, but no person's work."""
        for flow in dict.fromkeys(clock.flow for clock in self.clocks() if not clock.begun):
            yield Duty(flow=flow)


def clocks_of(settings: Frozen) -> Iterator[Clock]:
    """Yield the clocks of every policy that stands in a cluster's or a database's settings.

    A policy stands there alone, in a list, or by its name, which is the detail of proofs without one.
    """
    for field in type(settings).model_fields:
        for name, policy in _policies(getattr(settings, field)):
            for clock in policy.clocks():
                yield clock if clock.detail else clock.model_copy(update={"detail": name})


def duties_of(settings: Frozen) -> dict[str, Duty]:
    """Return by pipeline what is run unattended for a cluster or a database, once each."""
    policies = (each for field in type(settings).model_fields for each in _policies(getattr(settings, field)))
    return {duty.pipeline: duty for _, policy in policies for duty in policy.duties()}


def _policies(value: object) -> Iterable[tuple[str, Watched]]:
    named = value.items() if isinstance(value, dict) else [("", each) for each in _listed(value)]
    return [(str(name), each) for name, each in named if isinstance(each, Watched)]


def _listed(value: object) -> tuple[object, ...]:
    return value if isinstance(value, tuple) else (value,)
