"""The nightly backup: decide the type, look before, take, prove by reading back, expire."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.backup.facts import BackupChoice, BackupReport
from pgvigil.backup.operation import alone
from pgvigil.runs import conduct
from tasks.backup import expire, hold_stanza, look, plan, plan_expire, prove, take
from tasks.pipeline import context, pipeline

if TYPE_CHECKING:
    from pgvigil.runs import Run


@pipeline(name="nightly_backup", flow_run_name="nightly backup of {cluster}")
def nightly_backup(cluster: str, backup_type: BackupChoice = "auto", dry_run: bool = False) -> BackupReport:
    """Take a pgBackRest backup by policy and prove it restorable by reading the repository back.

    Args:
        cluster: The cluster's name in the fleet file.
        backup_type: "auto" decides by the policy and the repository's state; the reason is in the report.
        dry_run: Look and decide only, also what would expire now; nothing is changed.
    """
    steps = partial(back_up, backup_type=backup_type, dry_run=dry_run)
    return conduct(BackupReport, "nightly_backup", cluster, steps, dry_run=dry_run, context=context())


def back_up(run: Run, backup_type: BackupChoice, *, dry_run: bool) -> None:
    """Do the steps, repository by repository, under the stanza's lock."""
    with hold_stanza(run) as stanza:
        world = look(stanza)
        for repository in world.stanza.repo:
            with alone(stanza, repository.key):
                line = plan(stanza, world, repository, backup_type)
                if dry_run:
                    plan_expire(stanza, line.repo)
                    continue
                taken = take(stanza, line)
                prove(stanza, world, taken)
                expire(stanza, line.repo)
