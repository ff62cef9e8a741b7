"""Answering from a shell what a suspended run asks: the same form as in the Prefect UI."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound
from prefect.input import keyset_from_paused_state
from pydantic import ValidationError

from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.reports import Frozen
from tasks.approval import PREFIX, Answer
from tasks.flowruns import every_run

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, FlowRunInput


class Waiting(Frozen):
    """A run that waits for a person."""

    run_id: UUID
    name: str
    until: datetime | None
    question: str


def waiting() -> tuple[Waiting, ...]:
    """List the runs that wait for a person."""
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED]))
    with get_client(sync_client=True) as client:
        runs = every_run(client, FlowRunFilter(state=state))
        return tuple(_waiting(client, run) for run in runs if _asks(run))


def filled_in(*, approve: bool, approver: str, note: str) -> Answer:
    """Fill in the form; raises ConfigError for what it does not take."""
    try:
        return Answer(decision="approve" if approve else "reject", approver=approver, note=note)
    except ValidationError as error:
        told = "; ".join(f"{item['loc'][0]}: {item['msg']}" for item in error.errors())
        raise ConfigError(
            f"the form does not take this: {told}", hint="give --name and --note anew"
        ) from error


def answer(run_id: UUID, given: Answer) -> None:
    """Answer a run, which then goes on; raises ConfigError, PreconditionFailed when it does not ask."""
    with get_client(sync_client=True) as client:
        _require_asking(client, run_id)
        result = client.resume_flow_run(run_id, run_input=given.model_dump(mode="json"))
    if result.status is not SetStateStatus.ACCEPT:
        raise PreconditionFailed(
            f"run {run_id} took no answer: {getattr(result.details, 'reason', result.status)}",
            hint="look at it in the UI; what is proven stays, and the next run asks again",
        )


def _require_asking(client: SyncPrefectClient, run_id: UUID) -> None:
    try:
        found = client.read_flow_run(run_id)
    except ObjectNotFound as error:
        raise ConfigError(
            f"the server has no run {run_id}", hint="'pgvigil approve' lists those that wait"
        ) from error
    if not _asks(found):
        raise PreconditionFailed(
            f"run {run_id} asks nothing, it is {found.state_name}",
            hint="'pgvigil approve' lists those that wait",
        )


def _asks(run: FlowRun) -> bool:
    key = run.state.state_details.pause_key if run.state and run.state.is_paused() else None
    return bool(key and key.startswith(PREFIX))


def _waiting(client: SyncPrefectClient, run: FlowRun) -> Waiting:
    assert run.state is not None  # noqa: S101 - `_asks` looked
    key = keyset_from_paused_state(run.state)["description"]
    found: list[FlowRunInput] = client.filter_flow_run_input(run.id, key, limit=1, exclude_keys=set())
    question = str(found[0].decoded_value) if found else ""
    return Waiting(
        run_id=run.id, name=run.name, until=run.state.state_details.pause_timeout, question=question
    )
