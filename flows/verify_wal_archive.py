"""The WAL proof: measure, list, judge every repository, draw what can be restored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.runs import conduct
from pgvigil.wal.facts import WalReport
from tasks.pipeline import context, pipeline
from tasks.wal import beat, look, open_archive, prove, show

if TYPE_CHECKING:
    from pgvigil.runs import Run


@pipeline(name="verify_wal_archive", flow_run_name="WAL proof of {cluster}")
def verify_wal_archive(cluster: str) -> WalReport:
    """Prove the WAL archive continuous and intact, and say which points can be restored.

    Args:
        cluster: The cluster's name in the fleet file.
    """
    return conduct(WalReport, "verify_wal_archive", cluster, verify, context=context())


def verify(run: Run) -> None:
    """Do the steps, repository by repository; nothing is locked and nothing but a heartbeat is written."""
    archive = open_archive(run)
    world = look(archive)
    mark = beat(archive, world)
    for repo in world.repos:
        prove(archive, repo, mark)
    show(archive)
