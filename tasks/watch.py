"""Steps of a watch: what the library decides is read from Prefect here, and put into it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import httpx
from prefect import get_run_logger, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import State, StateType
from prefect.events.schemas.events import Event
from prefect.exceptions import PrefectException

from pgvigil import postgres
from pgvigil.errors import PgvigilError
from pgvigil.watch import operation
from pgvigil.watch.reconcile import Held
from tasks import PRIVATE_SERVER
from tasks.flowruns import every_run
from tasks.policy import CHANGE, READ

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from prefect.client.schemas.objects import FlowRun

    from pgvigil.fleet import Fleet
    from pgvigil.runs import Run
    from pgvigil.watch.alarms import Alarm, Facts, Judgement
    from pgvigil.watch.reconcile import Correction

TAG = "pgvigil"  # of every deployment in prefect.yaml
FLEET = "fleet:"  # begins the tag that says of which fleet a deployment and its runs are
LOOK_BACK = timedelta(days=1)

_AT_WORK = (StateType.PENDING, StateType.RUNNING, StateType.CANCELLING)
_ENDED = (StateType.CRASHED, StateType.COMPLETED)
_TYPES = {
    "Completed": StateType.COMPLETED,
    "Refuted": StateType.FAILED,
    "Inconclusive": StateType.FAILED,
    "Crashed": StateType.CRASHED,
    "Cancelled": StateType.CANCELLED,
}


class PrefectFailed(PgvigilError):
    """Prefect's server did not do what it was asked."""

    code = "PGV-002"
    transient = True


def fleet_tag(fleet: Fleet) -> str:
    """Tell one fleet from another: by the audit store, where the evidence of its runs is."""
    return FLEET + postgres.describe(fleet.audit.dsn)


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectException) as error:
        raise PrefectFailed(
            f"the Prefect server did not take it: {type(error).__name__}: {error}",
            hint="look at the server; the next watch tries again",
        ) from error


@task(name="look", **READ)
def look(run: Run) -> Facts:
    """Read the audit log."""
    return operation.look(run)


@task(name="weigh", **READ)
def weigh(run: Run, seen: Facts) -> Judgement:
    """Decide the alarms."""
    found = operation.weigh(run, seen)
    for alarm in found.alarms:
        get_run_logger().warning("%s", alarm.message)
    return found


@task(name="reconcile", **CHANGE)
def reconcile(run: Run, seen: Facts) -> None:
    """Compare what Prefect holds with the audit log, and correct it."""
    if _is_private():
        return
    with _server() as client:
        held = [_held(client, each, fleet_tag(run.fleet)) for each in _runs(client)]
        operation.reconcile(run, held, seen, lambda correction: _set(client, correction))


def _runs(client: SyncPrefectClient) -> Iterator[FlowRun]:
    """Give every run that is at work, and those of our deployments that ended lately."""
    yield from every_run(client, FlowRunFilter(state=_states(_AT_WORK)))
    since = FlowRunFilterEndTime(after_=datetime.now(UTC) - LOOK_BACK)
    yield from every_run(
        client, FlowRunFilter(state=_states(_ENDED), end_time=since, tags=FlowRunFilterTags(all_=[TAG]))
    )


def _states(types: tuple[StateType, ...]) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))


def _held(client: SyncPrefectClient, run: FlowRun, own: str) -> Held:
    assert run.state is not None  # noqa: S101 - runs were chosen by their state
    return Held(
        id=run.id,
        name=run.name,
        type=run.state.type.value,
        began=_began(client, run.id) if run.state.type is not StateType.COMPLETED else None,
        is_ours=own in run.tags,
    )


def _began(client: SyncPrefectClient, run_id: UUID) -> datetime | None:
    """Return when the last attempt of a run began."""
    states = client.read_flow_run_states(run_id)
    began = [s.timestamp for s in states if s.type in {StateType.PENDING, StateType.RUNNING} and s.timestamp]
    return max(began, default=None)


def _set(client: SyncPrefectClient, correction: Correction) -> None:
    state: State[None] = State(
        type=_TYPES[correction.becomes], name=correction.becomes, message=correction.because
    )
    client.set_flow_run_state(correction.flow_run, state, force=True)
    told = f"run '{correction.name}' was {correction.was} and is {correction.becomes}: {correction.because}"
    get_run_logger().warning("%s", told)


@task(name="tell", **CHANGE)
def tell(run: Run, found: Judgement, seen: Facts) -> None:
    """Emit an event for each alarm, to which automations react."""
    if _is_private():
        operation.cannot_tell(run)
        return
    operation.tell(run, found, seen, _emit)


def _emit(due: Iterable[Alarm], over: Iterable[Alarm]) -> None:
    """Hand the events over and hear that the server has them; Prefect's own way may lose them silently."""
    events = [_event(alarm, alarm.kind) for alarm in due] + [_event(alarm, "over") for alarm in over]
    with _server() as client:
        client.request("POST", "/events", json=[event.model_dump(mode="json") for event in events])


def _event(alarm: Alarm, what: str) -> Event:
    return Event(
        event=f"pgvigil.alarm.{what}",
        resource={
            "prefect.resource.id": f"pgvigil.alarm.{alarm.kind}.{alarm.subject}.{alarm.what}",
            "prefect.resource.name": f"{alarm.what} of {alarm.subject}",
            "pgvigil.subject": alarm.subject,
        },
        payload={"message": alarm.message, "hint": alarm.hint, "since": alarm.since.isoformat()},
    )


@task(name="signal", **READ)
def give_signal(run: Run) -> None:
    """Tell the world outside that pgvigil is alive; a watch that could tell nobody does not speak for it."""
    if not _is_private():
        operation.give_signal(run)


def _is_private() -> bool:
    return bool(os.environ.get(PRIVATE_SERVER))
