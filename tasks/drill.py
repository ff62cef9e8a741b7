"""Steps of a restore drill: each one call into the library, with retries, a deadline there, and progress.

What has a copy in hand is not tried again: its next try is the next drill, which begins with a new copy.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect import get_run_logger, task

from pgvigil.drill import archived, finish, marking, prepare, proving, reaping
from tasks.policy import ONCE, READ
from tasks.progress import ProgressBar, ToolLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pgvigil.drill.choose import Wanted
    from pgvigil.drill.copy import Copy
    from pgvigil.drill.place import Place
    from pgvigil.drill.proving import Recovered
    from pgvigil.drill.source import MarkedDatabase
    from pgvigil.drill.state import Drill, Halt, Marked, Plan
    from pgvigil.runs import Run


@contextmanager
def hold_drill(run: Run, wanted: Wanted, *, keep: bool, dry_run: bool) -> Iterator[Drill]:
    """Keep other drills of the stanza out while the block runs."""
    with prepare.hold(run, wanted, keep=keep, dry_run=dry_run) as drill:
        get_run_logger().info("holding the drill's lock on stanza '%s'", drill.stanza)
        yield drill


@contextmanager
def claim_scratch(drill: Drill, chosen: Plan) -> Iterator[Place]:
    """Claim a place for the copy, and remove it at the end."""
    with prepare.claim(drill, chosen) as place:
        get_run_logger().info("the copy goes to %s", place.directory)
        yield place
    get_run_logger().info("scratch is settled")


@contextmanager
def recover(drill: Drill, chosen: Plan, marked: Marked, copy: Copy, halt: Halt) -> Iterator[Recovered]:
    """Recover the copy to a stop; its server runs as long as the block."""
    get_run_logger().info("recovering to %s", halt.stop)
    bar = _bar(drill)
    with proving.recover(drill, chosen, marked, copy, halt, on_progress=bar.show) as recovered:
        get_run_logger().info("%s", recovered.recovery.message)
        yield recovered


@task(name="choose", **READ)
def plan(drill: Drill) -> Plan:
    """Look at source and repositories, and choose what is restored."""
    chosen = prepare.plan(drill)
    choice = chosen.choice
    get_run_logger().info(
        "restoring %s of repository %s to target %s, because %s",
        choice.label,
        choice.repo,
        choice.target,
        choice.reason,
    )
    return chosen


@task(name="mark the source", **ONCE)
def mark(drill: Drill, chosen: Plan) -> Marked:
    """Mark every database of the source, hash it there, and fix the target."""
    marked = marking.mark(drill, chosen, on_progress=_bar(drill).show)
    for each in marked.databases:
        found = each.content.mark
        get_run_logger().info("database %s marked by %s at LSN %s", each.name, found.method, found.lsn)
    return marked


@task(name="restore", **ONCE)
def restore(drill: Drill, chosen: Plan, place: Place) -> Copy | None:
    """Restore the set into scratch."""
    log = ToolLog()
    return proving.restore(drill, chosen, place, on_line=log.line, on_progress=_bar(drill).show)


@task(name="compare", task_run_name="compare database {database.name}", **ONCE)
def compare(drill: Drill, copy: Copy, database: MarkedDatabase) -> None:
    """Compare rows, catalogue and sequences of one database with the source's at its mark."""
    proving.compare_database(drill, copy, database, on_progress=_bar(drill).show)


@task(name="compare what databases share", **ONCE)
def compare_cluster(drill: Drill, copy: Copy, halt: Halt) -> None:
    """Compare roles, memberships, settings and tablespaces with the source's at its last mark."""
    proving.compare_cluster(drill, copy, halt)


@task(name="promote", **ONCE)
def promote(drill: Drill, copy: Copy) -> None:
    """Bring the copy up for reads and writes."""
    proving.promote(drill, copy)


@task(name="examine", **ONCE)
def examine(drill: Drill, copy: Copy) -> Mapping[str, str]:
    """Run amcheck in every database, and the assertions of the fleet file."""
    return proving.examine(drill, copy)


@task(name="bring an archived partition back", **ONCE)
def prove_archived(drill: Drill, copy: Copy) -> None:
    """Rebuild one archived partition in the copy, prove it, and undo that."""
    archived.prove(drill, copy, on_progress=_bar(drill).show)


@task(name="check pages", **ONCE)
def check_pages(drill: Drill, copy: Copy, files: Mapping[str, str]) -> None:
    """Check the checksum of every page of the copy."""
    proving.scan(drill, copy, files)


@task(name="keep the copy", **ONCE)
def keep_copy(drill: Drill, copy: Copy) -> None:
    """Leave the copy running for a person."""
    finish.keep(drill, copy)


@task(name="check the repository", **READ)
def check_repository(drill: Drill, chosen: Plan, marked: Marked) -> None:
    """Prove that the drill left nothing in the repository."""
    finish.check_untouched(drill, chosen, marked)


@task(name="measure", **ONCE)
def measure(drill: Drill, chosen: Plan) -> None:
    """Set the times of this drill beside those of earlier ones."""
    finish.measure(drill, chosen)


def _bar(drill: Drill) -> Any:
    return ProgressBar(f"{drill.run.identity.subject}-drill-progress")


@task(name="reap", **READ)
def reap(run: Run, *, dry_run: bool) -> None:
    """Remove what dead drills left in the scratch directory."""
    reaping.reap(run, dry_run=dry_run)
