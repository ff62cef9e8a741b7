"""What a wave proved: every subject's outcome, worst first."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from typing_extensions import override

from pgvigil.pages import MARK, Link, cell, code, table
from pgvigil.reports import Check, Frozen, Report, Verdict
from pgvigil.waves.selection import LeftOut

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_MOST_NAMES = 20
_WORST_FIRST = (Verdict.REFUTED, Verdict.INCONCLUSIVE, Verdict.VERIFIED)


class Outcome(Frozen):
    """How a subject came out of a wave.

    `ended` has the verdict of its run; `at work` was not waited for; `left` did not begin. `earlier` ended in
    a run of the same wave before this one. `run_id` leads into the audit log, `where` to the run in Prefect.
    """

    subject: str
    state: Literal["ended", "at work", "left"] = "ended"
    verdict: Verdict = Verdict.INCONCLUSIVE
    said: str = ""
    run_id: UUID | None = None
    where: str = ""
    earlier: bool = False

    def check(self) -> Check:
        """Be one check of the wave."""
        return Check(
            id=self.subject,
            verdict=self.verdict,
            expected="verified",
            actual=self.said,
            detail=f"run {self.run_id}" if self.run_id else "",
        )


class WaveReport(Report):
    """The report of watch_fleet; `wave` is the same for every run that goes on with it.

    `to_begin` are those who have still to begin: in a dry run all whom a run would, in order.
    """

    wave: str = ""
    due: datetime | None = None
    at_once: int = 0
    to_begin: tuple[str, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    stopped: str = ""

    @override
    def summary(self) -> str:
        if not self.outcomes:
            return ""
        said = f"{counted(self.outcomes)} of {len(self.outcomes)} subjects"
        worst = self.outcomes[0]
        if worst.verdict is Verdict.VERIFIED:
            return said
        return f"{said}; {worst.subject}: {worst.said}" + (f"; {self.stopped}" if self.stopped else "")

    @override
    def section(self) -> str:
        whole = [each for each in self.outcomes if each.verdict is Verdict.VERIFIED]
        broken = [each for each in self.outcomes if each.verdict is not Verdict.VERIFIED]
        parts = [f"## Wave {code(self.wave)}"] if self.wave else []
        if self.stopped:
            parts.append(
                f"**It was ended early: {cell(self.stopped)}.** The next run goes on with what is left."
            )
        if self.to_begin:
            parts.append(f"To begin, {self.at_once} at once: {cell(named(self.to_begin))}")
        # No table for these: Prefect's page cuts a long cell off, and the reasons are what people came for.
        parts += ["\n".join(map(_line, broken))] if broken else []
        if whole:
            parts.append(table(("verdict", "subject", "what", "run"), map(_row, whole)))
        if self.left_out:
            parts.append("### Not in this wave")
            parts.append(table(("subject", "why"), ((each.subject, each.reason) for each in self.left_out)))
        return "\n\n".join(parts)


def worst_first(outcomes: Iterable[Outcome]) -> tuple[Outcome, ...]:
    """Order outcomes: refuted, then unknown, then verified; each by name."""
    return tuple(sorted(outcomes, key=lambda each: (_WORST_FIRST.index(each.verdict), each.subject)))


def counted(outcomes: Iterable[Outcome]) -> str:
    """Count outcomes by verdict, worst first; what did not begin is no verdict of a run."""
    found = Counter(each.state if each.state != "ended" else str(each.verdict) for each in outcomes)
    kinds = [str(verdict) for verdict in _WORST_FIRST]
    kinds[2:2] = ["at work", "left"]
    return ", ".join(f"{found[kind]} {kind}" for kind in kinds if found[kind]) or "none ended"


def named(subjects: Sequence[str]) -> str:
    """Name the first of many, and count the others; the report has all of them."""
    others = len(subjects) - _MOST_NAMES
    return ", ".join(subjects[:_MOST_NAMES]) + (f" and {others} more" if others > 0 else "")


def _line(outcome: Outcome) -> str:
    what = f"{MARK[outcome.verdict]} **{_result(outcome)}** {cell(outcome.subject)}: {cell(_said(outcome))}"
    return f"- {what}" + (f" ({cell(run)})" if (run := _run(outcome)) else "")


def _row(outcome: Outcome) -> tuple[str | Link, ...]:
    return (
        f"{MARK[outcome.verdict]} {_result(outcome)}",
        outcome.subject,
        _said(outcome),
        _run(outcome),
    )


def _result(outcome: Outcome) -> str:
    return outcome.state if outcome.state != "ended" else str(outcome.verdict)


def _said(outcome: Outcome) -> str:
    return f"{outcome.said} (in an earlier run of this wave)" if outcome.earlier else outcome.said


def _run(outcome: Outcome) -> str | Link:
    if outcome.where.startswith("http"):
        return Link("its run", outcome.where)
    return f"run {outcome.run_id}" if outcome.run_id else outcome.where
