"""The report of a watch: every proof's state, the alarms, and what was set right in Prefect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from pgvigil.pages import table
from pgvigil.reports import Report, Verdict, facts
from pgvigil.status import ProofStatus, State
from pgvigil.watch.alarms import Alarm, Memory
from pgvigil.watch.reconcile import Correction

if TYPE_CHECKING:
    from collections.abc import Iterator


class WatchReport(Report):
    """What `keep_watch` returns: `counts` of all proofs, `statuses` of those that are not as they should be.

    `memory` is what later watches must know, and None when they know it already.
    """

    counts: dict[State, int] = Field(default_factory=dict)
    statuses: tuple[ProofStatus, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    over: tuple[Alarm, ...] = ()
    corrections: tuple[Correction, ...] = ()
    memory: Memory | None = Field(default=None, exclude=True)

    @override
    def remembered(self) -> dict[str, Any]:
        if self.memory is None or self.dry_run:
            return {}
        remembered: dict[str, Any] = facts(self.memory)
        return remembered

    @override
    def summary(self) -> str:
        if self.verdict is not Verdict.VERIFIED or not self.counts:
            return ""
        if not self.alarms:
            return f"no alarm, {sum(self.counts.values())} proofs: {self._counted()}"
        first, *others = self.alarms
        return f"alarm: {first.message}" + (f"; and {len(others)} more" if others else "")

    def _counted(self) -> str:
        return ", ".join(f"{self.counts[state]} {state}" for state in State if state in self.counts)

    @override
    def section(self) -> str:
        return "\n\n".join(self._parts())

    def _parts(self) -> Iterator[str]:
        if self.counts:
            rows = [(s.state, s.subject, s.proof, s.reason) for s in self.statuses]
            listed = table(("state", "subject", "proof", "why"), rows)
            yield f"## Proofs\n\n{self._counted()}" + (f"\n\n{listed}" if rows else "")
        if self.over:
            yield "## Over\n\n" + table(("alarm", "since"), ((a.message, a.since) for a in self.over))
        if self.corrections:
            rows_ = ((c.name, c.was, c.becomes, c.because) for c in self.corrections)
            yield "## Set right in Prefect\n\n" + table(("run", "was", "is now", "because"), rows_)
