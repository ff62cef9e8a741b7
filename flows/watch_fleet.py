"""The wave: one pipeline over the whole fleet, subject by subject, each in a run of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pgvigil.fleet import Fleet
from pgvigil.runs import conduct
from pgvigil.waves.report import WaveReport
from tasks.pipeline import context, pipeline
from tasks.progress import ProgressBar
from tasks.schedule import slot
from tasks.waves import alone, conclude, crew, plan, start, watch

if TYPE_CHECKING:
    from pgvigil.runs import Run


@pipeline(name="watch_fleet", flow_run_name="{pipeline} over the fleet")
def watch_fleet(pipeline: str, anew: bool = False, dry_run: bool = False) -> WaveReport:
    """Run a pipeline on every subject that the fleet file selects, some at once, and sum up, worst first.

    Args:
        pipeline: What goes over the fleet, such as nightly-backup.
        anew: Begin with everybody, also when the last wave left subjects with which it would go on.
        dry_run: Select and tell only; nobody is begun.
    """
    steps = partial(go_over, anew=anew, dry_run=dry_run)
    return conduct(
        WaveReport, "watch_fleet", pipeline, steps, known=Fleet.wave, dry_run=dry_run, context=context()
    )


def go_over(run: Run, *, anew: bool, dry_run: bool) -> None:
    """Do the steps, alone with this pipeline; one subject's failure is no other's."""
    with alone(run):
        wave = plan(run, slot(), anew=anew)
        if dry_run:
            return
        bar = ProgressBar(f"{wave.pipeline}-wave-progress")
        with crew(wave) as hands:
            while wave.is_open:
                start(wave, hands)
                watch(wave, hands, bar)
            conclude(wave)
