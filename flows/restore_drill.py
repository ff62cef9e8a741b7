"""The restore drill: restore a backup to scratch, prove it equal to the source, measure, leave nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.drill.choose import Wanted
from pgvigil.drill.proving import halts
from pgvigil.drill.report import DrillReport
from pgvigil.runs import conduct
from tasks.drill import (
    check_pages,
    check_repository,
    claim_scratch,
    compare,
    compare_cluster,
    examine,
    hold_drill,
    keep_copy,
    mark,
    measure,
    plan,
    promote,
    prove_archived,
    recover,
    restore,
)
from tasks.pipeline import context, pipeline

if TYPE_CHECKING:
    from pgvigil.drill.copy import Copy
    from pgvigil.drill.state import Drill, Marked, Plan
    from pgvigil.runs import Run


@pipeline(name="restore_drill", flow_run_name="restore drill of {cluster}")
def restore_drill(  # noqa: PLR0913 - the operator's form
    cluster: str,
    recovery_target: str = "auto",
    keep: bool = False,
    repo: int | None = None,
    backup_set: str | None = None,
    dry_run: bool = False,
) -> DrillReport:
    """Restore a backup beside the source, prove that it equals the source, and remove it again.

    Args:
        cluster: The cluster's name in the fleet file.
        recovery_target: "auto" takes turns; default, time, lsn, xid or name asks for that kind, and
            "time:2026-11-22T03:00:00+00:00" (lsn:…, xid:…, name:…) for a point of the past.
        keep: Leave the copy running for a person, until the deadline of the policy.
        repo: The repository to restore from; without it they take turns.
        backup_set: latest, oldest, random or a label; without it they take turns.
        dry_run: Look and choose only.
    """
    wanted = Wanted(recovery_target=recovery_target, repo=repo, backup_set=backup_set)
    steps = partial(drill_restore, wanted=wanted, keep=keep, dry_run=dry_run)
    return conduct(DrillReport, "restore_drill", cluster, steps, dry_run=dry_run, context=context())


def drill_restore(run: Run, wanted: Wanted, *, keep: bool, dry_run: bool) -> None:
    """Do the steps; whatever becomes of them, nothing of the copy is left."""
    with hold_drill(run, wanted, keep=keep, dry_run=dry_run) as drill:
        chosen = plan(drill)
        if dry_run:
            return
        with claim_scratch(drill, chosen) as place:
            marked = mark(drill, chosen)
            copy = restore(drill, chosen, place)
            if copy:
                prove(drill, chosen, marked, copy)
            check_repository(drill, chosen, marked)
            measure(drill, chosen)


def prove(drill: Drill, chosen: Plan, marked: Marked, copy: Copy) -> None:
    """Recover the copy stop by stop, compare at each what is known there, and examine it at the last."""
    for halt in halts(marked):
        with recover(drill, chosen, marked, copy, halt) as recovered:
            if not recovered.is_there:
                return
            for database in halt.databases:
                compare(drill, copy, database)
            if halt.shared:
                compare_cluster(drill, copy, halt)
            if halt.is_last:
                promote(drill, copy)
                files = examine(drill, copy)
                prove_archived(drill, copy)
    check_pages(drill, copy, files)
    if drill.keep:
        keep_copy(drill, copy)
