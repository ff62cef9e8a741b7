"""Rolling partitions: make them ahead, detach the old, archive, prove by reading back, drop."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.partitions.facts import RollReport
from pgvigil.runs import conduct
from tasks.approval import ask, decisions
from tasks.partitions import (
    alone,
    archive,
    check_decided,
    conclude,
    create,
    detach,
    drop,
    finish,
    hold_table,
    plan,
    prove,
    record,
    release,
    tables,
)
from tasks.pipeline import context, pipeline

if TYPE_CHECKING:
    from pgvigil.approval import Decision
    from pgvigil.partitions.facts import Plan
    from pgvigil.partitions.managing import Managed
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
            Without it the run asks, and waits.
        dry_run: Look and decide only; nothing is changed.
    """
    decided = decisions(approve)
    steps = partial(roll, table=table, decided=decided, dry_run=dry_run)
    report = conduct(RollReport, "roll_partitions", database, steps, dry_run=dry_run, context=context())
    return ask(
        report, report.questions
    )  # while a person thinks, the run is not there; answered, it begins anew


def roll(run: Run, table: str | None, decided: tuple[Decision, ...], *, dry_run: bool) -> None:
    """Do the steps, table by table, under each table's lock."""
    if not dry_run:
        record(run, decided)
    for managed in tables(run, table, decided):
        with alone(managed, managed.policy.table, f"partitions {managed.policy.table}"):
            if dry_run:
                plan(managed)
                continue
            with hold_table(managed) as held:
                made = plan(held)
                with alone(held, f"{managed.policy.table} interrupted"):
                    finish(held, made)
                    release(held, made)
                for creation in made.creations:
                    with alone(held, str(creation.name)):
                        create(held, creation)
                leave(held, made)
                conclude(held, made)
    check_decided(run, decided)


def leave(held: Managed, made: Plan) -> None:
    """Let old partitions go, one by one; nothing is dropped before its copy was read back."""
    for departure in made.departures:
        with alone(held, str(departure.name)):
            detached = detach(held, made, departure)
            if detached and prove(held, detached, archive(held, made, detached)):
                drop(held, made, detached)
