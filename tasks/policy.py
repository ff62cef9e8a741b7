"""The one retry policy: transient errors are tried again, bounded, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.cache_policies import NO_CACHE

from pgvigil.errors import is_transient

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State, TaskRun


def retry_if_transient(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Ask the library whether the error of a failed task may pass by itself."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


# A cached result of an earlier run proves nothing about the world now, so nothing is ever cached.
READ: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [2, 5, 15],
    "retry_jitter_factor": 0.3,
    "retry_condition_fn": retry_if_transient,
    "cache_policy": NO_CACHE,
    "persist_result": False,
}
CHANGE = READ | {"retries": 2, "retry_delay_seconds": [10, 60]}
# A step that is not its own undoing is not repeated within the run: the next run begins anew.
ONCE: dict[str, Any] = {"retries": 0, "cache_policy": NO_CACHE, "persist_result": False}
