"""The watch: look how fresh every proof is, set Prefect right, tell what is wrong, signal being alive."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.fleet import Fleet
from pgvigil.runs import conduct
from pgvigil.watch.report import WatchReport
from tasks.pipeline import context, pipeline
from tasks.watch import give_signal, look, reconcile, tell, weigh

if TYPE_CHECKING:
    from pgvigil.runs import Run


@pipeline(name="keep_watch", flow_run_name="watch over the {fleet}")
def keep_watch(fleet: str = "fleet", dry_run: bool = False) -> WatchReport:
    """Look how fresh every proof of the fleet is, and tell what is stale, short or waiting.

    Args:
        fleet: The whole fleet file: "fleet".
        dry_run: Look only; Prefect is not corrected, nobody is told, and no signal is given.
    """
    steps = partial(watch, dry_run=dry_run)
    return conduct(
        WatchReport, "keep_watch", fleet, steps, known=Fleet.whole, dry_run=dry_run, context=context()
    )


def watch(run: Run, *, dry_run: bool) -> None:
    """Do the steps; the signal comes last, so that it speaks for all of them."""
    seen = look(run)
    found = weigh(run, seen)
    if dry_run:
        return
    reconcile(run, seen)
    tell(run, found, seen)
    give_signal(run)
