"""Bringing a partition back: find its copy, rebuild and prove the table, attach it or let it stand."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.partitions.facts import RestoreReport
from pgvigil.runs import conduct
from tasks.partitions import find, hold_archived, plan_return, rebuild, refer, settle
from tasks.pipeline import context, pipeline

if TYPE_CHECKING:
    from pgvigil.runs import Run


@pipeline(name="restore_partition", flow_run_name="restore {partition} in {database}")
def restore_partition(
    database: str, partition: str = "", attach: bool = False, keep: bool = True, dry_run: bool = False
) -> RestoreReport:
    """Rebuild an archived partition from its copy in S3 and prove that it is what was archived.

    Args:
        database: The database as cluster/database, as the fleet file has it.
        partition: Its name, schema.name, or the address of a manifest; empty takes one, each month another.
        attach: Make it a partition of its table again; otherwise it stands for itself.
        keep: Off, it is a drill: the table is built, proven and undone in one transaction.
        dry_run: Look and decide only; nothing is changed.
    """
    steps = partial(bring_back, partition=partition, attach=attach, keep=keep, dry_run=dry_run)
    return conduct(RestoreReport, "restore_partition", database, steps, dry_run=dry_run, context=context())


def bring_back(run: Run, partition: str, *, attach: bool, keep: bool, dry_run: bool) -> None:
    """Do the steps under the lock of the partition's table."""
    with hold_archived(find(run, partition)) as found:
        plan_return(found, attach=attach, keep=keep)
        if dry_run:
            return
        if rebuild(found, keep=keep) and keep:
            settle(found, refer(found), attach=attach)
