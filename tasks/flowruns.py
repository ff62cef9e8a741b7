"""Reading runs from a Prefect server: its API gives 200 at most, and does not say that there are more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect.client.schemas.sorting import FlowRunSort

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import FlowRun

PAGE = 200


def every_run(
    client: SyncPrefectClient, wanted: FlowRunFilter, sort: FlowRunSort = FlowRunSort.ID_DESC
) -> Iterator[FlowRun]:
    """Yield the runs that a filter finds, page by page, as far as the caller reads."""
    offset = 0
    while page := client.read_flow_runs(flow_run_filter=wanted, sort=sort, limit=PAGE, offset=offset):
        yield from page
        offset += len(page)
