"""Steps of a WAL proof: each one call into the library, with retries, a deadline there, and progress."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect import get_run_logger, task

from pgvigil.errors import PgvigilError
from pgvigil.wal import operation
from tasks.policy import READ
from tasks.progress import ProgressBar

if TYPE_CHECKING:
    from pgvigil.wal.archive import Archive
    from pgvigil.wal.heartbeat import Beat
    from pgvigil.wal.operation import World

open_archive = operation.open_archive


@task(name="look", **READ)
def look(archive: Archive) -> World:
    """Read server and repositories."""
    return operation.look(archive)


@task(name="heartbeat", **READ)
def beat(archive: Archive, world: World) -> Beat | None:
    """Commit a mark and measure until every repository holds it."""
    mark = operation.beat(archive, world)
    for repo, seconds in mark.latency.items() if mark else ():
        get_run_logger().info("repository %s: a commit arrived after %.2f s", repo, seconds)
    return mark


def prove(archive: Archive, repo: int, mark: Beat | None) -> None:
    """Examine one repository; one that cannot be read is noted, and the others go on."""
    try:
        _prove(archive, repo, mark)
    except PgvigilError as error:
        operation.give_up(archive, repo, error)


@task(name="prove", task_run_name="prove repository {repo}", **READ)
def _prove(archive: Archive, repo: int, mark: Beat | None) -> None:
    bar = ProgressBar(f"{archive.run.identity.subject}-repo{repo}-wal-progress")
    operation.prove(archive, repo, mark, on_progress=bar.show)


@task(name="show", **READ)
def show(archive: Archive) -> None:
    """Compare the repositories and draw the picture."""
    operation.show(archive)
