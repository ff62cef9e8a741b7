"""Rolling partitions: make them ahead, detach the old, archive, prove by reading back, drop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.partitions.facts import RollReport
from pgvigil.runs import conduct
from tasks.partitions import (
    alone,
    archive,
    conclude,
    create,
    detach,
    drop,
    finish,
    hold_table,
    plan,
    prove,
    release,
    tables,
)
from tasks.pipeline import context, pipeline

if TYPE_CHECKING:
    from pgvigil.partitions.facts import Plan
    from pgvigil.partitions.operation import Managed
    from pgvigil.runs import Run


@pipeline(name="roll_partitions", flow_run_name="partitions of {database}")
def roll_partitions(
    database: str, table: str | None = None, approve: str = "", dry_run: bool = False
) -> RollReport:
    """Make partitions ahead; detach old ones, archive them to S3, prove the copy, and only then drop them.

    Args:
        database: The database as cluster/database, as the fleet file has it.
        table: One table as the fleet file writes it; without it, all of them.
        approve: The digest of a plan whose drops you approve; an earlier report names it.
        dry_run: Look and decide only; nothing is changed.
    """
    steps = partial(roll, table=table, approve=approve, dry_run=dry_run)
    return conduct(RollReport, "roll_partitions", database, steps, dry_run=dry_run, context=context())


def roll(run: Run, table: str | None, approve: str, *, dry_run: bool) -> None:
    """Do the steps, table by table, under each table's lock."""
    for managed in tables(run, table):
        with alone(managed, managed.policy.table, f"partitions {managed.policy.table}"):
            if dry_run:
                plan(managed, approve)
                continue
            with hold_table(managed) as held:
                made = plan(held, approve)
                finish(held, made)
                release(held, made)
                for creation in made.creations:
                    with alone(held, str(creation.name)):
                        create(held, creation)
                leave(held, made)
                conclude(held, made)


def leave(held: Managed, made: Plan) -> None:
    """Let old partitions go, one by one; nothing is dropped before its copy was read back."""
    for departure in made.departures:
        with alone(held, str(departure.name)):
            detached = detach(held, made, departure)
            if detached and prove(held, detached, archive(held, made, detached)):
                drop(held, made, detached)
