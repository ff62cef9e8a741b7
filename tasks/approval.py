"""Asking a person in the Prefect UI: the run is suspended, and begins anew when it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from prefect import get_run_logger, suspend_flow_run
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.input import RunInput
from pydantic import Field

from pgvigil.approval import Decision, decided_by
from pgvigil.reports import Report
from pgvigil.runs import actor
from tasks.flowruns import every_run
from tasks.pipeline import publish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prefect.client.schemas.objects import FlowRun, FlowRunInput

    from pgvigil.approval import Question

R = TypeVar("R", bound=Report)

PREFIX = "approve-"  # of the key under which Prefect knows a question; the digests follow
_SAVED = f"suspended-{PREFIX}"  # how Prefect begins the names of what belongs to it
_RESPONSE = "-response"
_MOST_QUESTIONS = 60


class Answer(RunInput):
    """The form."""

    decision: Literal["reject", "approve"] = Field(
        title="Decision",
        description="To approve drops exactly what is listed; to reject keeps it",
        json_schema_extra={"position": 0},
    )
    approver: str = Field(
        title="Your name",
        min_length=2,
        pattern=r"\S.*\S",  # a name of blanks is nobody's
        max_length=80,
        description="Goes to the audit log with the decision",
        json_schema_extra={"position": 1},
    )
    note: str = Field(
        default="",
        title="Note",
        max_length=500,
        description="Why, or a ticket's number; goes to the audit log as well",
        json_schema_extra={"position": 2},
    )


def decisions(approve: str = "") -> tuple[Decision, ...]:
    """Return what was decided in this run so far, oldest first; `approve` is a digest given at its start."""
    given = decided_by(actor(), approve)
    run = _asking_run()
    if run is None:
        return given
    with get_client(sync_client=True) as client:
        saved = client.filter_flow_run_input(run.id, _SAVED, limit=3 * _MOST_QUESTIONS, exclude_keys=set())
    answers = [each for each in saved if each.key.endswith(_RESPONSE)]
    return (*given, *map(_decision, sorted(answers, key=lambda each: str(each.created))))


def _decision(saved: FlowRunInput) -> Decision:
    answer = Answer(**saved.decoded_value)
    digests = saved.key.removeprefix(_SAVED).removesuffix(_RESPONSE).split("-")
    return Decision(
        digests=tuple(digests), decision=answer.decision, approver=answer.approver, note=answer.note
    )


def ask(report: R, questions: Sequence[Question]) -> R:
    """Suspend the run until its questions are answered; return the report if nobody can or need be asked.

    Nothing of the run is there while it waits: no process, no session, no lock. Outside a deployment Prefect
    cannot begin a run anew, so there the report with its digests is the answer, as it is when another run
    asks the same already.
    """
    run = _asking_run()
    if run is None or not questions or report.dry_run:
        return report
    key = PREFIX + "-".join(sorted(question.digest for question in questions))
    if elsewhere := _asked_by(run, key):
        get_run_logger().info("run '%s' asks for the same approval already", elsewhere.name)
        return report
    publish(report)
    form = Answer.with_initial_data(description="\n\n".join(question.text for question in questions))
    within = min(question.within for question in questions)
    suspend_flow_run(wait_for_input=form, timeout=int(within.total_seconds()), key=key)
    return report


def _asking_run() -> FlowRun | None:
    """Return the Prefect run if it can be suspended: one of a deployment, which no other run waits for."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run if run and run.deployment_id and not run.parent_task_run_id else None


def _asked_by(run: FlowRun, key: str) -> FlowRun | None:
    assert run.deployment_id is not None  # noqa: S101 - `_asking_run` looked
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])),
    )
    with get_client(sync_client=True) as client:
        waiting = every_run(client, wanted)
        return next(
            (each for each in waiting if each.state and each.state.state_details.pause_key == key), None
        )
