"""The end of a drill: what it left in the repository, how long it took, what it did not get to."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgvigil.drill import copy as copies
from pgvigil.drill import scratch, trend, untouched
from pgvigil.drill.judgement import unknown
from pgvigil.drill.state import OWED, Drill, Marked, Plan
from pgvigil.drill.untouched import Production
from pgvigil.reports import Finding, Proof, Severity, Verdict, conclude
from pgvigil.wal.names import SEGMENT_NAME, parse_lsn, segment_name
from pgvigil.wal.server import read_server

if TYPE_CHECKING:
    from pgvigil.drill.copy import Copy


def check_untouched(drill: Drill, plan: Plan, marked: Marked) -> None:
    """Prove that the repository has nothing of the drill: list it once more and compare."""
    repo = plan.choice.repo
    listing = untouched.read(drill.pgbackrest, repo)
    now = read_server(drill.settings.dsn, drill.run.name)
    production = Production(
        timelines=frozenset(range(plan.server.timeline, now.timeline + 1)),
        first=_segment(plan.server.timeline, plan.server.lsn, plan.server.segment_size),
        last=_segment(now.timeline, now.lsn, now.segment_size),
        segment_size=now.segment_size,
        waiting=frozenset(item.name for item in plan.server.ready if SEGMENT_NAME.match(item.name)),
    )
    drill.take(untouched.judge(repo, marked.listing, listing, production))


def _segment(timeline: int, lsn: str | None, size: int) -> str:
    return segment_name(timeline, parse_lsn(lsn or "0/0") // size, size)


def measure(drill: Drill, plan: Plan) -> None:
    """Set the times of this drill beside those of earlier ones, and beside the target."""
    run = drill.run
    run.facts["phases"] = tuple(drill.phases)
    wal = run.facts["wal"].bytes if "wal" in run.facts else 0
    this = trend.timing(
        "this drill",
        drill.phases,
        repo=plan.choice.repo,
        backup_bytes=plan.backup.info.size,
        wal_bytes=wal,
    )
    if not this.is_whole:
        return
    found = trend.trend(this, plan.history.drills, drill.policy.rto)
    check, findings = trend.judge(found, run.identity.subject)
    run.facts["trend"] = found
    run.checks.append(check)
    run.findings += findings


def keep(drill: Drill, copy: Copy) -> None:
    """Leave the copy running for a person, with a deadline after which it is removed."""
    until = datetime.now(UTC) + drill.policy.keep_for
    with drill.run.step("keep copy", {"until": until.isoformat()}):
        owner = scratch.keep(copy.place, until)
        copies.start_kept(copy)
    drill.run.facts["restored"] = drill.run.facts["restored"].model_copy(update={"kept_until": until})
    drill.run.findings.append(
        Finding(
            code="copy-kept",
            severity=Severity.INFO,
            message=f"the copy runs on: {copies.connection_hint(copy, owner)}",
            hint="the next drill or reaper after that removes it",
            subject=drill.run.identity.subject,
        )
    )


def settle(drill: Drill) -> None:
    """Tell what the drill owed and did not get to, and what it proved."""
    run = drill.run
    run.facts.setdefault("phases", tuple(drill.phases))
    done = {check.id for check in run.checks}
    if "choice" not in run.facts:
        return
    for name, expected in OWED.items():
        if not any(_speaks_of(check, name) for check in done):
            run.checks.append(unknown(name, expected, "the drill ended before"))
    choice = run.facts["choice"]
    verdict = conclude([check for check in run.checks if check.id != "rto"])
    if choice.proves_equality or verdict is Verdict.REFUTED:
        names = (f"restore repo{choice.repo}", f"restore repo{choice.repo} {choice.target_kind}")
        run.proofs += [Proof(name=name, verdict=verdict) for name in names]


def _speaks_of(check: str, name: str) -> bool:
    """Tell whether a check is of this name, or of a part of it: a database, a repository."""
    return check == name or check.startswith(f"{name} ") or check.endswith(f".{name}")
