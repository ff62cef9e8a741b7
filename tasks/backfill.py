"""Steps of a backfill: each one call into the library; a task is a chunk of time, never a batch."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from prefect import get_run_logger, task

from pgvigil.backfill import operation, proof, steering
from tasks.policy import READ
from tasks.progress import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.backfill.facts import Plan
    from pgvigil.backfill.ledger import Overrides
    from pgvigil.backfill.operation import Move, Work
    from pgvigil.backfill.steering import Action
    from pgvigil.runs import Run

open_backfill = operation.open_backfill
next_pass = operation.next_pass


@task(name="look", **READ)
def look(work: Work) -> Plan:
    """Check the definition and forecast what it costs."""
    plan = operation.look(work)
    get_run_logger().info("%s: %s", plan.table, "; ".join(plan.walks))
    return plan


@contextmanager
def hold(work: Work) -> Iterator[Move]:
    """Hold the backfill's token while the block runs."""
    with operation.hold(work) as move:
        get_run_logger().info("holding backfill '%s' with token %s", work.name, move.ledger.fence)
        yield move


# The library waits for what passes by itself; a second try of a chunk would only hide what does not.
@task(name="walk", **(READ | {"retries": 0}))
def walk(move: Move) -> bool:
    """Work for one chunk of time; False when no range is left that can be done."""
    bar = ProgressBar(f"{move.work.run.identity.subject}-{move.work.name}-backfill-progress")
    return operation.walk(move, on_progress=bar.show)


@task(name="count", **READ)
def count(move: Move) -> int:
    """Count the rows that are still to change."""
    left = operation.count(move)
    get_run_logger().info("%s rows are still to change", left)
    return left


@task(name="retry quarantined", **READ)
def retry_quarantined(move: Move) -> int:
    """Try the rows in quarantine alone."""
    good = operation.retry_quarantined(move)
    get_run_logger().info("%s rows left the quarantine", good)
    return good


@task(name="conclude", **(READ | {"retries": 0}))
def conclude(move: Move) -> None:
    """Judge the end, and make columns NOT NULL if that is wanted."""
    proof.conclude(move)


@task(name="steer", **READ)
def steer(run: Run, name: str, action: Action, overrides: Overrides) -> None:
    """Do what people want of a backfill."""
    steering.steer(run, name, action, overrides)
