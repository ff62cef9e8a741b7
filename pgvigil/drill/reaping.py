"""One step of its own: clear the scratch directory of what dead drills left."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from typing_extensions import override

from pgvigil.drill import scratch
from pgvigil.drill.judgement import passed
from pgvigil.drill.scratch import Left, Reaped
from pgvigil.pages import table
from pgvigil.reports import Finding, Report, Severity

if TYPE_CHECKING:
    from pgvigil.runs import Run


class ReapReport(Report):
    """What a reaper removed, and what it left alone."""

    reaped: tuple[Reaped, ...] = ()
    left: tuple[Left, ...] = ()

    @override
    def section(self) -> str:
        removed = [(each.directory, "removed", str(each.reason)) for each in self.reaped]
        rows = [*removed, *((each.directory, "left", each.reason) for each in self.left)]
        return "## Scratch\n\n" + table(("directory", "what became of it", "because"), rows) if rows else ""


def reap(run: Run, *, dry_run: bool) -> None:
    """Remove the copies of dead runs and those past their deadline; idempotent."""
    directory = run.fleet.cluster(run.identity.subject).drill.scratch
    if dry_run:
        run.checks.append(passed("scratch", "known", str(directory)))
        return
    with run.step("reap drills", {"scratch": str(directory)}) as noted:
        found = scratch.reap(directory, datetime.now(UTC))
        noted |= {"reaped": [str(each.directory) for each in found.reaped]}
    run.facts |= {"reaped": found.reaped, "left": found.left}
    actual = f"{len(found.reaped)} removed, {len(found.left)} left"
    run.checks.append(passed("scratch", "nothing of a dead drill is left", actual))
    run.findings += [told(each) for each in found.reaped]


def told(gone: Reaped) -> Finding:
    """Tell of a removed place."""
    return Finding(
        code="drill-leftover",
        severity=Severity.INFO,
        message=f"'{gone.directory}' was removed with {gone.processes} processes: {gone.reason}",
        hint="nothing is owed to it",
        subject=gone.stanza,
    )
