"""One run from start to evidence: what every flow does around its own steps.

A run is announced in the audit log, keeps a ledger of checks and findings while its steps go on, and
ends as a report that is stored, digested into the audit log and anchored outside it. Inability is data
here: a step that could not be done makes the report inconclusive instead of an exception.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shutil
import socket
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID, uuid4

from pgvigil import liveness
from pgvigil.audit import AuditLog, Kind, Link, LostRun, RunIdentity, lost_runs, step, sweep
from pgvigil.errors import AuditUnreachable, ConfigError, EvidenceError, PgvigilError, interruption
from pgvigil.fleet import Fleet, load_fleet
from pgvigil.pages import markdown
from pgvigil.redaction import masked, redactor
from pgvigil.reports import (
    Check,
    Finding,
    Proof,
    Report,
    Severity,
    Verdict,
    conclude,
    facts,
    headline,
    to_json,
)
from pgvigil.reportstore import digest, open_report_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from pgvigil.reportstore import ReportStore

ReportType = TypeVar("ReportType", bound=Report)

_SMALL = 2**20


class Run:
    """The ledger of one run: its identity, the fleet, and what was found so far."""

    def __init__(self, identity: RunIdentity, fleet: Fleet, log: AuditLog, directory: Path) -> None:
        self.identity = identity
        self.fleet = fleet
        self.log = log
        self.directory = directory
        self.checks: list[Check] = []
        self.findings: list[Finding] = []
        self.proofs: list[Proof] = []
        self.facts: dict[str, Any] = {}

    @property
    def id(self) -> UUID:
        """The run's own id."""
        return self.identity.run_id

    @cached_property
    def store(self) -> ReportStore:
        """Where its evidence is kept; raises ConfigError."""
        return open_report_store(self.fleet.audit.reports, self.fleet.s3)

    @property
    def name(self) -> str:
        """How the run's database sessions are called: flow and run id."""
        return f"pgvigil {self.identity.flow} {self.id}"

    @contextmanager
    def step(self, name: str, detail: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Commit the intent before the block and the outcome after it; yields a dict for the facts."""
        with step(self.log, self.identity, name, facts(dict(detail or {}))) as noted:
            yield noted


def _cluster_of(fleet: Fleet, subject: str) -> object:
    return fleet.cluster(subject.partition("/")[0])


def conduct(  # noqa: PLR0913 - what a run is, and nothing else
    kind: type[ReportType],
    flow: str,
    subject: str,
    steps: Callable[[Run], None],
    *,
    known: Callable[[Fleet, str], object] = _cluster_of,
    dry_run: bool = False,
    context: Mapping[str, Any] | None = None,
) -> ReportType:
    """Run the steps and return the report, whatever became of them.

    Any PgvigilError, also one of fleet file or audit store, becomes an inconclusive report that names it.
    A subject that is not `known` to the fleet file, by default as a cluster or within one, leaves no trace in
    audit log and report store: nothing was touched. Only cancellation and defects leave as exceptions, after
    the audit log has them.
    """
    identity = RunIdentity(run_id=uuid4(), flow=flow, subject=subject, actor=actor())
    started = datetime.now(tz=UTC)
    redact = redactor()
    try:
        fleet = load_fleet()
        known(fleet, subject)
        with _run_directory(fleet, identity) as directory, _audit_log(fleet, identity, redact) as log:
            run = Run(identity, fleet, log, directory)
            return _conduct(kind, run, steps, started, dry_run=dry_run, context=context or {})
    except PgvigilError as error:
        return _report(kind, identity, started, dry_run=dry_run, findings=(finding_of(error, subject),))


def _conduct(  # noqa: PLR0913 - the parts of `conduct`
    kind: type[ReportType],
    run: Run,
    steps: Callable[[Run], None],
    started: datetime,
    *,
    dry_run: bool,
    context: Mapping[str, Any],
) -> ReportType:
    _note_lost_runs(run)  # before it begins: those that are given up later are for the next run to tell
    run.log.append(run.identity.event(Kind.RUN_STARTED, "", {"dry_run": dry_run, **context}))
    try:
        steps(run)
    except PgvigilError as error:
        finding = finding_of(error, run.identity.subject)
        run.findings.append(finding)
        run.checks.append(
            Check(
                id="completed",
                verdict=Verdict.INCONCLUSIVE,
                expected="every step done",
                actual=finding.message,
            )
        )
    except BaseException as error:
        ended_by = interruption(error) or error  # between two tasks, Prefect makes a ValueError of it
        _end_early(run, ended_by, dry_run=dry_run)
        if ended_by is error:
            raise
        raise ended_by from error
    report = _report(
        kind,
        run.identity,
        started,
        dry_run=dry_run,
        checks=tuple(run.checks),
        findings=tuple(run.findings),
        proofs=tuple(run.proofs),
        **run.facts,
    )
    return _keep(run, report)


def _report(kind: type[ReportType], identity: RunIdentity, started: datetime, **parts: Any) -> ReportType:
    """Make the report, without secrets: what servers and tools said stands in it."""
    report = kind(
        run_id=identity.run_id,
        flow=identity.flow,
        subject=identity.subject,
        started_at=started,
        ended_at=datetime.now(tz=UTC),
        verdict=conclude(parts.get("checks", ())),
        **parts,
    )
    whole: ReportType = masked(report, redactor())
    return whole


def _keep(run: Run, report: ReportType) -> ReportType:
    """Store the report with its page and logs, then end the run in the audit log and anchor the chain."""
    fingerprint = digest(to_json(report).encode())
    remembered = report.remembered()
    documents = _documents(run, report)
    digests = {suffix: digest(data) for suffix, data in documents.items()}
    report = _store(run, report, documents)
    detail = {
        "verdict": report.verdict,
        "headline": headline(report),
        "proofs": facts(list(report.proofs)),
        "digest": fingerprint,
        "evidence": list(report.evidence),
        "dry_run": report.dry_run,
        **({"digests": digests} if report.evidence else {}),
        **({"remembered": facts(remembered)} if remembered else {}),
        # Without a stored report the log is the only place that has the checks.
        **({} if report.evidence else {"report": report.model_dump(mode="json")}),
    }
    link = run.log.append(run.identity.event(Kind.RUN_ENDED, "", detail))
    if link is None:
        away = Finding(
            code=AuditUnreachable.code,
            severity=Severity.WARNING,
            message="the audit store is away: this run's events wait in the spool",
            hint=f"bring it back; the next run sends them from {run.fleet.audit.spool}",
        )
        return _with_findings(report, away)
    return _anchor(run, report, link)


def _documents(run: Run, report: Report) -> dict[str, bytes]:
    """Collect what is kept beside the report by suffix: its page, its own documents, the run's files."""
    own = {"md": markdown(report), **report.documents()}
    files = [file for file in sorted(run.directory.iterdir()) if _is_kept(file)]
    texts = {suffix: text.encode("utf-8", "backslashreplace") for suffix, text in own.items()}
    return texts | {file.name: file.read_bytes() for file in files}


def _is_kept(file: Path) -> bool:
    """Tell evidence from what the steps needed in between; JSON may be a listing of a whole repository."""
    is_small = file.suffix == ".json" and file.stat().st_size <= _SMALL
    return is_small or file.suffix in {".log", ".svg", ".html"}


def _store(run: Run, report: ReportType, documents: Mapping[str, bytes]) -> ReportType:
    try:
        uris = run.store.save(report, documents)
    except PgvigilError as error:
        return _with_findings(report, finding_of(error, run.identity.subject, Severity.WARNING))
    return report.model_copy(update={"evidence": uris})


def _with_findings(report: ReportType, *findings: Finding) -> ReportType:
    return report.model_copy(update={"findings": (*report.findings, *findings)})


def _anchor(run: Run, report: ReportType, link: Link) -> ReportType:
    """Keep the chain's new head outside the audit store; a store that is away was told of already."""
    if not report.evidence:
        return report
    try:
        run.store.anchor(link.seq, link.hash)
    except PgvigilError as error:
        return _with_findings(report, finding_of(error, run.identity.subject, Severity.WARNING))
    return report


def _end_early(run: Run, error: BaseException, *, dry_run: bool) -> None:
    """Record a cancelled or defective run; what cannot be recorded must not hide why it ended."""
    detail = {
        "verdict": Verdict.INCONCLUSIVE,
        "headline": f"ended by {type(error).__name__}: {error}",
        "proofs": [],
        "evidence": [],
        "dry_run": dry_run,
    }
    try:
        run.log.append(run.identity.event(Kind.RUN_ENDED, "", detail))
    except EvidenceError as unrecorded:
        raise unrecorded from error


def _note_lost_runs(run: Run) -> None:
    """Close runs whose process died, and tell what those of this flow left here, whoever closed them.

    The store being away postpones it.
    """
    try:
        swept = sweep(run.log)
        lost = lost_runs(run.log, run.identity.flow, run.identity.subject)
    except AuditUnreachable:
        return
    for gone in (*swept, *lost):
        for left in run.directory.parent.glob(f"{gone.run_id}.*"):
            shutil.rmtree(left, ignore_errors=True)
    run.findings += [_lost(gone) for gone in lost]


def _lost(gone: LostRun) -> Finding:
    where = f"process {gone.pid} on {gone.host}"
    return Finding(
        code="run-lost",
        severity=Severity.WARNING,
        message=f"an earlier {gone.flow} ({gone.run_id}, {where}) died, "
        + (f"its step '{gone.open_step}' without outcome" if gone.open_step else "between two steps"),
        hint="nothing is owed to it: this run looks at the world anew",
        subject=gone.subject,
    )


def finding_of(error: PgvigilError, subject: str, severity: Severity = Severity.ERROR) -> Finding:
    """Tell an error as a finding."""
    return Finding(
        code=error.code,
        severity=severity,
        message=error.message,
        hint=error.hint,
        subject=subject,
    )


def _audit_log(fleet: Fleet, identity: RunIdentity, redact: Callable[[str], str]) -> AuditLog:
    return AuditLog(fleet.audit, f"pgvigil audit {identity.run_id}", redact)


@contextmanager
def _run_directory(fleet: Fleet, identity: RunIdentity) -> Iterator[Path]:
    """Give the run a directory for its logs, beside the spool, and remove it at the end.

    Its name says whose it is, so that a directory is found whose run died before it was on record, or after
    its end was.
    """
    runs = fleet.audit.spool.parent / "runs"
    directory = runs / f"{identity.run_id}.{os.getpid()}.{liveness.own_start() or 0}.{_space()}"
    _clear_dead(runs)
    try:
        directory.mkdir(parents=True, mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"cannot create '{directory}': {error.strerror}",
            hint="make the directory above audit.spool writable for this user, or name another spool",
        ) from error
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _space() -> str:
    return hashlib.sha256(liveness.pid_space().encode()).hexdigest()[:12]


def _clear_dead(runs: Path) -> None:
    """Remove the directories of processes that are gone, as far as their pids mean something here."""
    for entry in runs.glob(f"*.*.*.{_space()}") if liveness.pid_space() else ():
        _, pid, started, _ = entry.name.split(".")
        if liveness.process_is_gone(int(pid), int(started) or None):
            shutil.rmtree(entry, ignore_errors=True)


def actor() -> str:
    """Return who runs this, as the operating system has it."""
    user = os.environ.get("SUDO_USER") or getpass.getuser()
    return f"{user}@{socket.gethostname()}"
