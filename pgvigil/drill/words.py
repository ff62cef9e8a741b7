"""The facts of a drill in words, for every page that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.backup.facts import bytes_text
from pgvigil.drill.trend import seconds_text
from pgvigil.reports import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from pgvigil.drill.report import DatabaseResult, DrillReport, Reached, Rpo


def restored_rows(report: DrillReport) -> Iterator[tuple[str, str]]:
    """Tell in pairs of words what was asked for, restored and reached."""
    if report.choice is None:
        yield "chosen", "nothing: the drill ended before"
        return
    choice = report.choice
    yield "backup set", f"{choice.label} ({choice.set_kind}) in repository {choice.repo}"
    yield "target", choice.target
    yield "because", choice.reason
    if not choice.proves_equality:
        yield "content", "not compared: nobody knows what this point of the past must hold"
    if report.target and report.reached:
        yield "replay", f"reached LSN {report.reached.lsn}, expected at least {report.target.lsn}"
        yield "heartbeats", heartbeats(report.reached)
    if report.wal and report.wal.first:
        yield "WAL", f"{report.wal.first} to {report.wal.last} ({bytes_text(report.wal.bytes)})"
    if report.rpo:
        yield "RPO", rpo_text(report.rpo)
    if report.restored and report.restored.kept_until:
        yield (
            "the copy runs on",
            f"in {report.restored.scratch} until {time_text(report.restored.kept_until)}",
        )


def heartbeats(reached: Reached) -> str:
    """Say what was found of the two commits around the target."""
    before = {True: "is there", False: "IS MISSING", None: "was not looked at"}[reached.before_is_present]
    after = {True: "is not there", False: "IS THERE", None: "was not looked at"}[reached.after_is_absent]
    return f"what was committed before the target {before}; what was committed after it {after}"


def rpo_text(rpo: Rpo) -> str:
    """Say how old the last recoverable commit was."""
    age = (
        f"{seconds_text(rpo.age_seconds)}: the last commit in the copy is of {time_text(rpo.last_commit_at)}"
    )
    arrival = rpo.arrival_seconds
    stored = f"; a commit is in the repository after {seconds_text(arrival)}" if arrival is not None else ""
    return f"{age}{stored}"


def share_text(share: float | None) -> str:
    """Write a share in percent; 100 only if it is all."""
    if share is None:
        return "nothing"
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.1f} %"


def unproven_of(database: DatabaseResult) -> Iterator[tuple[str, str]]:
    """Name what was not compared, or could not be judged, and why."""
    for each in database.unproven:
        yield each.relation, each.reason + (" (by design)" if each.by_design else "")
    for found in database.tables:
        if found.verdict is Verdict.INCONCLUSIVE:
            yield found.relation, found.detail or "could not be judged"


def time_text(moment: datetime) -> str:
    """Write a time as people read it; all times of a report are UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def count_text(count: int, what: str) -> str:
    """Write a number with its noun."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
