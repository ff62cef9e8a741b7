"""The reaper of drills: what a killed drill left is removed, and a kept copy when its deadline has passed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.drill.reaping import ReapReport
from pgvigil.runs import conduct
from tasks.drill import reap
from tasks.pipeline import context, pipeline

if TYPE_CHECKING:
    from pgvigil.runs import Run


@pipeline(name="reap_drills", flow_run_name="reap drills of {cluster}")
def reap_drills(cluster: str, dry_run: bool = False) -> ReapReport:
    """Remove what dead drills left in a cluster's scratch directory.

    Args:
        cluster: The cluster's name in the fleet file.
        dry_run: Look only.
    """
    steps = partial(clear_scratch, dry_run=dry_run)
    return conduct(ReapReport, "reap_drills", cluster, steps, dry_run=dry_run, context=context())


def clear_scratch(run: Run, *, dry_run: bool) -> None:
    """Do the one step."""
    reap(run, dry_run=dry_run)
