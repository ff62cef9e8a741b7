"""The backfill: check, walk in chunks, count what is left, walk again for what others moved, prove."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.backfill.facts import BackfillReport
from pgvigil.runs import conduct
from tasks.backfill import conclude, count, hold, look, next_pass, open_backfill, retry_quarantined, walk
from tasks.pipeline import context, pipeline

if TYPE_CHECKING:
    from pgvigil.runs import Run


@pipeline(name="run_backfill", flow_run_name="backfill {backfill} of {database}")
def run_backfill(
    database: str, backfill: str, dry_run: bool = False, retry_failed: bool = False
) -> BackfillReport:
    """Change the rows of a table in small batches until none is left, and prove it.

    It can be killed anywhere and goes on where it was; `pgvigil backfill` steers it while it runs.

    Args:
        database: The database as cluster/database.
        backfill: The backfill's name in the fleet file.
        dry_run: Check the definition and forecast time, WAL and growth; nothing is changed.
        retry_failed: Try the rows in quarantine once more.
    """
    steps = partial(migrate, backfill=backfill, dry_run=dry_run, retry_failed=retry_failed)
    return conduct(BackfillReport, "run_backfill", database, steps, dry_run=dry_run, context=context())


def migrate(run: Run, backfill: str, *, dry_run: bool, retry_failed: bool) -> None:
    """Do the steps under the backfill's token."""
    work = open_backfill(run, backfill)
    look(work)
    if dry_run:
        return
    with hold(work) as move:
        if retry_failed:
            retry_quarantined(move)
        while next_pass(move):
            while walk(move):
                pass
            count(move)
        conclude(move)
