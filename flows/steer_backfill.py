"""Steering a backfill from the UI: pause, resume, cancel, other sizes; the run heeds it within one batch."""

from __future__ import annotations

from functools import partial

from pgvigil.backfill.ledger import Overrides
from pgvigil.backfill.steering import Action, SteeringReport
from pgvigil.runs import conduct
from tasks.backfill import steer
from tasks.pipeline import context, pipeline


@pipeline(name="steer_backfill", flow_run_name="{action} backfill {backfill} of {database}")
def steer_backfill(
    database: str, backfill: str, action: Action, limits: Overrides | None = None
) -> SteeringReport:
    """Pause, resume, cancel or change a backfill while it runs.

    Args:
        database: The database as cluster/database.
        backfill: The backfill's name in the fleet file.
        action: "set" changes limits; "restart" gives the cursor up; "undo" restores before-images.
        limits: With "set": what to change; what is empty stays as it is.
    """
    steps = partial(steer, name=backfill, action=action, overrides=limits or Overrides())
    return conduct(SteeringReport, "steer_backfill", database, steps, context=context())
