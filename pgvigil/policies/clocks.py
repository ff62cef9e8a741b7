"""What a policy wants proven, and how fresh: each pipeline's policy tells it, `pgvigil status` asks all."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Clock(Frozen):
    """One proof that a pipeline gives, and the age at which it is too old.

    A proof per repository is called `<proof> repo<n> <detail>`, else `<proof> <detail>`. Where proofs take
    turns, a run speaks for those that it names, and each repository waits until the others had their turn.
    """

    flow: str
    proof: str
    detail: str = ""
    max_age: timedelta
    per_repository: bool = True
    takes_turns: bool = False

    def name(self, repo: int | None = None) -> str:
        """Name the proof, of one repository if it is given per repository."""
        where = f"repo{repo}" if self.per_repository else ""
        return " ".join(part for part in (self.proof, where, self.detail) if part)

    def age(self, repositories: int) -> timedelta:
        """Return the age that is too old where there are so many repositories."""
        return self.max_age * repositories if self.takes_turns and self.per_repository else self.max_age


class Watched(Frozen):
    """A policy whose pipeline gives proofs."""

    def clocks(self) -> Iterator[Clock]:
        """Yield every proof that is wanted under this policy."""
        raise NotImplementedError


def clocks_of(settings: Frozen) -> Iterator[Clock]:
    """Yield the clocks of every policy that stands in a cluster's or a database's settings.

    A policy stands there alone, in a list, or by its name.
    """
    for field in type(settings).model_fields:
        for policy in _policies(getattr(settings, field)):
            yield from policy.clocks()


def _policies(value: object) -> Iterable[Watched]:
    if isinstance(value, dict):
        value = tuple(value.values())
    return [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, Watched)]
