"""Emptying a work pool before its worker is stopped: a worker that is told to end kills its runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import VariableCreate, WorkPoolUpdate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from pgvigil.errors import ConfigError, DeadlineExceeded

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from prefect.client.schemas.objects import FlowRun, WorkPool

_AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_POLL_SECONDS = 2.0


def drain(pool: str, within: timedelta, say: Callable[[str], None]) -> None:
    """Pause a work pool and wait until no run of it is at work; new runs wait meanwhile.

    Idempotent. Raises ConfigError for an unknown pool, DeadlineExceeded when runs outlast `within`; the
    pool stays paused then.
    """
    deadline = time.monotonic() + within.total_seconds()
    with get_client(sync_client=True) as client:
        _pause(client, _read(client, pool))
        told: list[str] = []
        while names := sorted(run.name for run in _at_work(client, pool)):
            if names != told:
                say(f"'{pool}' is paused; waiting for: {', '.join(names)}")
                told = names
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"still at work in '{pool}' after {within}: {', '.join(names)}",
                    hint="wait longer with --within; a worker that is stopped now kills them, and the next "
                    "runs clear up",
                )
            time.sleep(_POLL_SECONDS)


def resume(pool: str) -> bool:
    """Let a pool that was drained take runs again; one that a person paused stays so, and gives False."""
    with get_client(sync_client=True) as client:
        found = _read(client, pool)
        if client.read_variable_by_name(_mark(found)) is None:
            return not found.is_paused
        client.update_work_pool(pool, WorkPoolUpdate(is_paused=False))
        client.delete_variable_by_name(_mark(found))
        return True


def _read(client: SyncPrefectClient, pool: str) -> WorkPool:
    try:
        return client.read_work_pool(pool)
    except ObjectNotFound as error:
        raise ConfigError(
            f"the Prefect server has no work pool '{pool}'",
            hint="prefect.yaml names it: 'dba' unless changed",
        ) from error


def _pause(client: SyncPrefectClient, pool: WorkPool) -> None:
    """Pause it, and remember that it was not a person who did."""
    if not pool.is_paused:
        if client.read_variable_by_name(_mark(pool)) is None:
            client.create_variable(VariableCreate(name=_mark(pool), value="drained", tags=["pgvigil"]))
        client.update_work_pool(pool.name, WorkPoolUpdate(is_paused=True))


def _mark(pool: WorkPool) -> str:
    return f"pgvigil_drained_{pool.id.hex}"


def _at_work(client: SyncPrefectClient, pool: str) -> list[FlowRun]:
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=_AT_WORK))
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(state=state),
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
    )
