"""Runs that a schedule started: which slot they are for, and whether somebody else serves it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterExpectedStartTime,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext

from pgvigil import audit
from pgvigil.fleet import load_fleet
from tasks.flowruns import every_run

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

# A newer run in one of these will not do the work.
_GAVE_UP = {StateType.CANCELLED, StateType.CANCELLING, StateType.CRASHED}


def slot() -> datetime | None:
    """Return the schedule's time that this run is for; None for a run that no schedule started."""
    run = _scheduled()
    return run.expected_start_time if run else None


def for_the_record() -> dict[str, Any]:
    """Tell the slot of this run and what its schedule gave it; nothing for a run that no schedule started."""
    run = _scheduled()
    if run is None or run.expected_start_time is None:
        return {}
    return {"slot": run.expected_start_time.isoformat(), "parameters": run.parameters}


def served_by(flow: str, subject: str) -> str:
    """Say who does the work of this run's slot instead; empty if it is this run's own.

    After an outage Prefect starts every run that was missed at once: the newest does the work, and what the
    audit log has for this slot or a later one is not done again. A run that was begun before (retried, or
    answered by a person) goes on. Where nobody can be asked, the work is done.
    """
    run = _scheduled()
    if run is None or run.expected_start_time is None or _was_begun(run):
        return ""
    due = run.expected_start_time
    try:
        return _newer_run(run, due) or _on_record(run, flow, subject, due)
    except Exception as error:  # Prefect's, or the audit store's: the run will tell by itself
        get_run_logger().warning("whether this slot is served already is unknown: %s", error)
        return ""


def _scheduled() -> FlowRun | None:
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    return run if run and run.auto_scheduled and run.deployment_id else None


def _was_begun(run: FlowRun) -> bool:
    return run.run_count > 1 or bool(run.empirical_policy.pause_keys)


def _newer_run(run: FlowRun, due: datetime) -> str:
    assert run.deployment_id is not None  # noqa: S101 - `_scheduled` looked
    wanted = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
        expected_start_time=FlowRunFilterExpectedStartTime(after_=due, before_=datetime.now(UTC)),
    )
    with get_client(sync_client=True) as client:
        for each in every_run(client, wanted, FlowRunSort.EXPECTED_START_TIME_DESC):
            at = each.expected_start_time
            is_same = each.auto_scheduled and each.parameters == run.parameters
            if is_same and at and at > due and each.state_type not in _GAVE_UP:
                return f"missed at {due:%Y-%m-%d %H:%M} UTC; the run of {at:%Y-%m-%d %H:%M} UTC does the work"
    return ""


def _on_record(run: FlowRun, flow: str, subject: str, due: datetime) -> str:
    with audit.reader(load_fleet().audit.dsn, "pgvigil schedule") as session:
        served = audit.served(session, flow, subject, due, run.parameters, run.id)
    if served is None:
        return ""
    return (
        f"the audit log has run {served.run_id}, begun {served.started_at:%Y-%m-%d %H:%M} UTC, "
        f"for the slot of {served.slot:%Y-%m-%d %H:%M} UTC"
    )
