"""Steps of a backup run: each one call into the library, with retries, a deadline there, and progress."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect import get_run_logger, task

from pgvigil.backup import operation
from tasks.policy import CHANGE, READ
from tasks.progress import ProgressBar, ToolLog

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.backup.facts import BackupChoice, ExpirePlan, Line, Proven, Survey
    from pgvigil.backup.operation import Stanza
    from pgvigil.pgbackrest import RepositoryStatus
    from pgvigil.runs import Run


@contextmanager
def hold_stanza(run: Run) -> Iterator[Stanza]:
    """Hold the stanza's lock while the block runs."""
    with operation.hold(run) as stanza:
        get_run_logger().info("holding the lock on stanza '%s'", stanza.name)
        yield stanza


@task(name="look", **READ)
def look(stanza: Stanza) -> Survey:
    """Read server, repositories and program, and judge whether a backup can be taken."""
    return operation.look(stanza)


@task(name="plan", task_run_name="plan repository {repository.key}", **READ)
def plan(stanza: Stanza, world: Survey, repository: RepositoryStatus, backup_type: BackupChoice) -> Line:
    """Decide what is taken in one repository."""
    line = operation.plan(stanza, world, repository, backup_type)
    get_run_logger().info("repository %s: %s, because %s", line.repo, line.type, line.reason)
    return line


@task(name="take", task_run_name="take {line.type} in repository {line.repo}", **CHANGE)
def take(stanza: Stanza, line: Line) -> operation.Taken:
    """Take one backup and show how far it is."""
    bar = ProgressBar(f"{stanza.run.identity.subject}-backup-progress")
    return operation.take(stanza, line, on_line=ToolLog().line, on_progress=bar.show)


@task(name="prove", task_run_name="prove {taken.backup.label}", **READ)
def prove(stanza: Stanza, world: Survey, taken: operation.Taken) -> Proven:
    """Read the repository back and judge the backup."""
    return operation.prove(stanza, world, taken)


@task(name="plan expire", task_run_name="plan expire in repository {repo}", **READ)
def plan_expire(stanza: Stanza, repo: int) -> ExpirePlan | None:
    """Say what the policy no longer keeps."""
    return operation.plan_expire(stanza, repo)


@task(name="expire", task_run_name="expire in repository {repo}", **CHANGE)
def expire(stanza: Stanza, repo: int) -> None:
    """Expire what the policy no longer keeps; its failure is a finding, not a failed backup."""
    operation.expire(stanza, repo)
