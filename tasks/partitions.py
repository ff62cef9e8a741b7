"""Steps of rolling and restoring partitions: each one call into the library, with retries and progress."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect import get_run_logger, task

from pgvigil import approval
from pgvigil.partitions import leaving, managing, operation, returning
from tasks.policy import CHANGE, READ
from tasks.progress import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.archive.copying import Copy
    from pgvigil.archive.manifest import Manifest
    from pgvigil.partitions.facts import Creation, Departure, Plan
    from pgvigil.partitions.managing import Managed
    from pgvigil.partitions.returning import Archived
    from pgvigil.runs import Run

tables = managing.tables
alone = managing.alone
record = approval.record
check_decided = operation.check_decided


@contextmanager
def hold_table(managed: Managed) -> Iterator[Managed]:
    """Hold the lock of one table while the block runs."""
    with managing.hold_table(managed) as held:
        get_run_logger().info("holding the lock on the partitions of '%s'", managed.policy.table)
        yield held


@task(name="plan", task_run_name="plan {managed.policy.table}", **READ)
def plan(managed: Managed) -> Plan:
    """Read the catalog and decide what is made and what leaves."""
    made = operation.plan(managed)
    for line in made.text().splitlines():
        get_run_logger().info("%s", line)
    return made


@task(name="finish detaches", **CHANGE)
def finish(managed: Managed, made: Plan) -> None:
    """Finish detaches that were interrupted."""
    operation.finish(managed, made)


@task(name="release", **CHANGE)
def release(managed: Managed, made: Plan) -> None:
    """Let writers into tables that somebody attached again."""
    operation.release(managed, made)


@task(name="create", task_run_name="create {creation.name}", **CHANGE)
def create(managed: Managed, creation: Creation) -> None:
    """Make one partition ahead."""
    operation.create(managed, creation)


@task(name="detach", task_run_name="detach {departure.name}", **CHANGE)
def detach(managed: Managed, made: Plan, departure: Departure) -> Departure | None:
    """Detach one partition, or finish what was begun, and keep writers off it."""
    return leaving.detach(managed, made, departure)


@task(name="archive", task_run_name="archive {departure.name}", **CHANGE)
def archive(managed: Managed, made: Plan, departure: Departure) -> Copy:
    """Stream one table into the store."""
    bar = ProgressBar(f"{managed.run.identity.subject}-{departure.name}-archive")
    return leaving.archive(managed, made, departure, on_progress=bar.show)


@task(name="prove", task_run_name="prove the copy of {departure.name}", **CHANGE)
def prove(managed: Managed, departure: Departure, copy: Copy) -> Manifest | None:
    """Read the copy back, compare, and commit it."""
    bar = ProgressBar(f"{managed.run.identity.subject}-{departure.name}-proof")
    return leaving.prove(managed, departure, copy, on_progress=bar.show)


@task(name="drop", task_run_name="drop {departure.name}", **CHANGE)
def drop(managed: Managed, made: Plan, departure: Departure) -> None:
    """Drop one table whose copy is proven, if the policy says now."""
    leaving.drop(managed, departure, made)


@task(name="conclude", **READ)
def conclude(managed: Managed, made: Plan) -> None:
    """Look again and judge the table."""
    operation.conclude_table(managed, made)


# --- and back -----------------------------------------------------------------------------------------


@task(name="find", **READ)
def find(run: Run, partition: str) -> Archived:
    """Find the copy in the archive and read its manifest."""
    found = returning.find(run, partition)
    get_run_logger().info("%s of %s, %s", found.name, found.manifest.exported_at, found.manifest.digest)
    return found


@contextmanager
def hold_archived(found: Archived) -> Iterator[Archived]:
    """Hold the lock of the copy's table while the block runs."""
    with managing.hold_table(found.managed) as held:
        yield replace(found, managed=held)


@task(name="plan", **READ)
def plan_return(found: Archived, *, attach: bool, keep: bool) -> None:
    """Say what will be done, and refuse what would double a range."""
    returning.plan(found, attach=attach, keep=keep)


@task(name="rebuild", task_run_name="rebuild {found.name}", **CHANGE)
def rebuild(found: Archived, *, keep: bool) -> bool:
    """Build and prove the table in one transaction."""
    bar = ProgressBar(f"{found.managed.run.identity.subject}-{found.name}-restore")
    return returning.rebuild(found, keep=keep, on_progress=bar.show)


@task(name="foreign keys", **CHANGE)
def refer(found: Archived) -> tuple[str, ...]:
    """Add and check what the table refers to."""
    return returning.refer(found)


@task(name="settle", **CHANGE)
def settle(found: Archived, broken: tuple[str, ...], *, attach: bool) -> None:
    """Attach the table, or leave it standing."""
    returning.settle(found, broken, attach=attach)
