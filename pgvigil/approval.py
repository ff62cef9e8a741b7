"""Asking a person before something is destroyed: the question, the decision, and what it is a decision on.

A plan is known by its digest. A decision names digests, so it is for exactly what was looked at: a plan that
changed meanwhile has another digest, and nobody decided on that.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Literal

from pgvigil.reports import Check, Frozen, Verdict

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pgvigil.runs import Run


class Question(Frozen):
    """What a person is to decide on: one plan, its proof as Markdown, and how long the question stands."""

    subject: str
    digest: str
    text: str
    within: timedelta


class Decision(Frozen):
    """What a person decided; the name is the one that was given, for Prefect knows no users."""

    digests: tuple[str, ...]
    decision: Literal["approve", "reject"]
    approver: str
    note: str = ""

    def __str__(self) -> str:
        done = "approved" if self.decision == "approve" else "rejected"
        return f"{done} by {self.approver}" + (f": {self.note}" if self.note else "")


def decided_by(approver: str, digest: str) -> tuple[Decision, ...]:
    """Make the decision of someone who names the plan that he approves; none for an empty digest."""
    return (Decision(digests=(digest,), decision="approve", approver=approver),) if digest else ()


def find(decisions: Sequence[Decision], digest: str) -> Decision | None:
    """Return the newest decision on a plan."""
    return next((each for each in reversed(decisions) if digest in each.digests), None)


def approved(decisions: Sequence[Decision]) -> frozenset[str]:
    """Return the digests of the plans whose newest decision is yes."""
    digests = {digest for each in decisions for digest in each.digests}
    return frozenset(
        digest for digest in digests if (newest := find(decisions, digest)) and newest.decision == "approve"
    )


def record(run: Run, decisions: Sequence[Decision]) -> None:
    """Put the newest decision into the audit log before anything is done about it."""
    for newest in decisions[-1:]:
        with run.step(f"decision: {newest.decision}", newest.model_dump(mode="json")):
            pass


def check_found(run: Run, decisions: Sequence[Decision], planned: Collection[str]) -> None:
    """Make the run inconclusive when what was approved last is not what is planned now; nothing was done."""
    for newest in decisions[-1:]:
        changed = [digest for digest in newest.digests if digest not in planned]
        if newest.decision == "approve" and changed:
            run.checks.append(
                Check(
                    id="approval.unchanged",
                    verdict=Verdict.INCONCLUSIVE,
                    expected=f"plan {', '.join(changed)}, {newest}",
                    actual=f"the plan changed meanwhile and is now {', '.join(planned) or 'none'}: "
                    "nothing that was not approved was dropped",
                )
            )
