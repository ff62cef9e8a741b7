"""The steps of a backup run in their order: each does its work and writes into the run's ledger."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgvigil.backup import decide, survey
from pgvigil.backup import expire as expiry
from pgvigil.backup import prove as proof
from pgvigil.backup import take as taking
from pgvigil.errors import Busy, EvidenceError, PgvigilError, PreconditionFailed, ToolFailed
from pgvigil.lock import HeldLock, hold_stanza
from pgvigil.pgbackrest import Backup, PgBackRest
from pgvigil.reports import Check, Finding, Proof, Severity, Verdict, conclude
from pgvigil.runs import finding_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pgvigil.backup.facts import BackupChoice, ExpirePlan, Line, Proven, Survey
    from pgvigil.fleet import ClusterSettings
    from pgvigil.pgbackrest import RepositoryStatus
    from pgvigil.runs import Run


@dataclass(frozen=True)
class Stanza:
    """A stanza that this run holds: how to reach it, and the ledger to write into."""

    run: Run
    settings: ClusterSettings
    pgbackrest: PgBackRest
    lock: HeldLock

    @property
    def name(self) -> str:
        """The stanza's name."""
        return self.settings.pgbackrest.stanza


@dataclass(frozen=True)
class Taken:
    """A backup that was taken, how long that took, and for which line of the plan."""

    line: Line
    backup: Backup
    seconds: float
    log: str


@contextmanager
def hold(run: Run) -> Iterator[Stanza]:
    """Hold the lock of the run's stanza; raises ConfigError for an unknown cluster, Busy for a held one."""
    settings = run.fleet.cluster(run.identity.subject)
    stanza = settings.pgbackrest.stanza
    with hold_stanza(settings.dsn, stanza, run.name, settings.backup.wait) as lock:
        yield Stanza(run, settings, PgBackRest(settings.pgbackrest), lock)


def look(stanza: Stanza) -> Survey:
    """Survey the world and note each pre-flight as a check; raises what forbids a backup."""
    run, policy = stanza.run, stanza.settings.backup
    survey.require_owner(stanza.settings.pgbackrest)
    world = survey.survey(stanza.settings, stanza.pgbackrest, run.name)
    survey.require_stanza(world)
    run.findings += survey.check_server(world, policy, stanza.name)
    _passed(run, "preflight.archiver", "archiver works", f"last archived {world.server.last_archived_wal}")
    run.findings += survey.end_leftovers(stanza.settings.pgbackrest)
    survey.check_locks(stanza.pgbackrest, world.stanza, policy.wait)
    _passed(run, "preflight.locks", "nobody else works on the stanza", "free")
    run.findings += survey.check_space(stanza.settings.pgbackrest, world)
    return world


def _passed(run: Run, name: str, expected: str, actual: str) -> None:
    run.checks.append(Check(id=name, verdict=Verdict.VERIFIED, expected=expected, actual=actual))


@contextmanager
def alone(stanza: Stanza, repo: int) -> Iterator[None]:
    """Keep the failure of one repository from the others: it becomes that repository's inconclusive proof.

    What concerns the whole run passes: lost lock, evidence that cannot be kept.
    """
    try:
        yield
    except PgvigilError as error:
        if isinstance(error, EvidenceError) or _is_lock_lost(error):
            raise
        run, finding = stanza.run, finding_of(error, stanza.run.identity.subject)
        run.checks.append(
            Check(
                id=f"repo{repo}.completed",
                verdict=Verdict.INCONCLUSIVE,
                expected="backed up and proven",
                actual=finding.message,
            )
        )
        run.findings.append(finding)
        run.proofs.append(Proof(name=f"backup repo{repo}", verdict=Verdict.INCONCLUSIVE))


def _is_lock_lost(error: PgvigilError) -> bool:
    """Tell our own lock from pgBackRest's, whose errors carry its exit code."""
    return isinstance(error, Busy) and "exit_code" not in error.context


def plan(stanza: Stanza, world: Survey, repository: RepositoryStatus, choice: BackupChoice) -> Line:
    """Decide the backup of one repository and note why; raises PreconditionFailed where none can be."""
    survey.require_usable(world, repository)
    run, repo = stanza.run, repository.key
    broken = decide.find_broken(stanza.pgbackrest, world.stanza, repo)
    line = decide.decide(world, repo, stanza.settings.backup, choice, broken)
    run.findings += _broken_findings(line, broken)
    _passed(run, f"repo{repo}.usable", "repository and stanza usable", f"plan: {line.type}")
    run.facts["plan"] = (*run.facts.get("plan", ()), line)
    return line


def _broken_findings(line: Line, broken: Mapping[str, str]) -> list[Finding]:
    cure = "a new full is taken now" if line.type == "full" else "take a full: -p backup_type=full"
    return [
        Finding(
            code="parent-broken",
            severity=Severity.ERROR,
            message=f"{label} is nothing to build upon: {fault}",
            hint=f"{cure}; see that nobody deletes in the repository by hand",
            subject=label,
        )
        for label, fault in broken.items()
    ]


def take(
    stanza: Stanza,
    line: Line,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[taking.Progress], None],
) -> Taken:
    """Take the backup of one line between intent and outcome; its whole output goes to the evidence."""
    stanza.lock.check()
    transcript = stanza.run.directory / f"repo{line.repo}.log"
    began = time.monotonic()
    with stanza.run.step(
        "take backup", {"repo": line.repo, "type": line.type, "reason": line.reason}
    ) as noted:
        backup = taking.take(
            stanza.pgbackrest,
            line,
            str(stanza.run.id),
            on_line=on_line,
            on_progress=on_progress,
            transcript=transcript,
        )
        noted |= {"label": backup.label, "type": backup.type, "size": backup.info.size}
    return Taken(line, backup, time.monotonic() - began, transcript.name)


def prove(stanza: Stanza, world: Survey, taken: Taken) -> Proven:
    """Judge one backup, write checks and proof into the report, and mark it proven in the repository."""
    run, line = stanza.run, taken.line
    proven = proof.prove(stanza.pgbackrest, world, line, taken.backup, taken.seconds, taken.log)
    verdict = conclude(proven.checks)
    run.checks += proven.checks
    run.findings += proven.findings
    run.proofs.append(Proof(name=f"backup repo{line.repo}", verdict=verdict))
    run.facts["backups"] = (*run.facts.get("backups", ()), proven.facts)
    if verdict is Verdict.VERIFIED:
        _mark(stanza, proven)
    return proven


def _mark(stanza: Stanza, proven: Proven) -> None:
    """Mark a backup as proven in its repository; that this fails makes no good backup bad."""
    run, label = stanza.run, proven.facts.label
    try:
        with run.step("mark proven", {"repo": proven.facts.repo, "label": label}):
            proof.mark_proven(stanza.pgbackrest, proven.facts, str(run.id))
    except ToolFailed as error:
        run.findings.append(_not_marked(label, error))
    except PreconditionFailed as error:
        if _is_lock_lost(error):
            raise
        run.findings.append(_not_marked(label, error))


def _not_marked(label: str, error: PgvigilError) -> Finding:
    return Finding(
        code="not-marked",
        severity=Severity.WARNING,
        message=f"{label} is proven, but could not be marked so: {error.message}",
        hint="it does not count for retention; " + (error.hint or "the next backup will be marked"),
        subject=label,
    )


def plan_expire(stanza: Stanza, repo: int) -> ExpirePlan | None:
    """Say by policy what goes now, and note it in the report; without a policy a finding says so."""
    run, retention = stanza.run, stanza.settings.backup.retention
    if retention is None:
        run.findings.append(
            Finding(
                code="nothing-expires",
                severity=Severity.INFO,
                message=f"repository {repo} grows: the fleet file has no backup.retention",
                hint="set backup.retention, or expire by other means",
                subject=stanza.name,
            )
        )
        return None
    info = stanza.pgbackrest.info()
    now = survey.read_server(stanza.settings.dsn, run.name).now
    chosen = expiry.plan_expire(info.backups(repo), repo, retention, now)
    run.facts["expire"] = (*run.facts.get("expire", ()), chosen)
    return chosen


def expire(stanza: Stanza, repo: int) -> None:
    """Expire by policy after the proof; when that fails the backup stands, and a finding says so."""
    try:
        chosen = plan_expire(stanza, repo)
        if chosen and chosen.expire:
            _expire(stanza, chosen)
    except PgvigilError as error:
        if isinstance(error, EvidenceError) or _is_lock_lost(error):
            raise
        stanza.run.findings.append(
            Finding(
                code="expire-failed",
                severity=Severity.WARNING,
                message=f"the backup stands, but expiring in repository {repo} failed: {error.message}",
                hint=error.hint or "the next run tries again",
                subject=stanza.name,
            )
        )


def _expire(stanza: Stanza, chosen: ExpirePlan) -> None:
    run = stanza.run
    stanza.lock.check()
    with run.step("expire", chosen.model_dump(mode="json")) as noted:
        gone = expiry.apply_expire(stanza.pgbackrest, chosen)
        noted["expired"] = list(gone)
    run.facts["expired"] = (*run.facts.get("expired", ()), *gone)
