"""What a run proved: the report that every flow returns, and the one rule that gives its verdict."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA_VERSION = 1


class Verdict(StrEnum):
    """Verified: proven. Refuted: ran, and the thing is broken. Inconclusive: we do not know."""

    VERIFIED = "verified"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"

    @property
    def exit_code(self) -> int:
        """The process exit code of a run that ended so: 0, 1 or 2."""
        return {"verified": 0, "refuted": 1, "inconclusive": 2}[self.value]


class Severity(StrEnum):
    """How loud a finding is; only a check decides the verdict."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Frozen(BaseModel):
    """A record that nobody changes after it was made, and that takes no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(Frozen):
    """One thing that was looked at. `required=False`: its inability is told, but decides nothing."""

    id: str
    verdict: Verdict
    expected: str = ""
    actual: str = ""
    detail: str = ""
    required: bool = True


class Finding(Frozen):
    """Something a person should know: a stable code, a sentence with the names, and the cure."""

    code: str
    severity: Severity
    message: str
    hint: str = ""
    subject: str = ""


class Proof(Frozen):
    """One freshness clock of `pgvigil status`: only a verified proof sets it back to now."""

    name: str
    verdict: Verdict


class Report(Frozen):
    """What every flow returns and keeps as evidence; each flow's own report adds its facts."""

    schema_version: int = SCHEMA_VERSION
    run_id: UUID
    flow: str
    subject: str
    started_at: datetime
    ended_at: datetime
    verdict: Verdict
    checks: tuple[Check, ...] = ()
    findings: tuple[Finding, ...] = ()
    evidence: tuple[str, ...] = ()
    proofs: tuple[Proof, ...] = ()
    dry_run: bool = False

    def summary(self) -> str:
        """Say the reason for the verdict in one line, where that is more than one of the checks."""
        return ""

    def section(self) -> str:
        """Render what is this flow's own, as Markdown for the report's page."""
        return ""

    def documents(self) -> dict[str, str]:
        """Render what is kept beside JSON and Markdown, by suffix: `html`, `rto.svg`."""
        return {}

    def remembered(self) -> dict[str, Any]:
        """Tell what later runs read of this one in the audit log; small, and nothing that they only show."""
        return {}


def conclude(checks: Sequence[Check]) -> Verdict:
    """Give the verdict of a set of checks: one refuted refutes; nothing looked at proves nothing.

    An inconclusive check makes the whole inconclusive unless it is marked `required=False`.
    """
    if any(check.verdict is Verdict.REFUTED for check in checks):
        return Verdict.REFUTED
    decisive = [check for check in checks if check.required]
    if not decisive or any(check.verdict is not Verdict.VERIFIED for check in decisive):
        return Verdict.INCONCLUSIVE
    return Verdict.VERIFIED


def to_json(report: Report) -> str:
    """Render a report as the JSON document that is printed, stored and digested."""
    return report.model_dump_json(indent=2)


def headline(report: Report) -> str:
    """Say the verdict's reason in one line: what refuted, else what could not be done, else the count."""
    if report.summary():
        return report.summary()
    for check in report.checks:
        if check.verdict is Verdict.REFUTED:
            return f"{check.id}: expected {check.expected}, found {check.actual}"
    if report.verdict is not Verdict.VERIFIED:
        for finding in report.findings:
            if finding.severity is Severity.ERROR:
                return finding.message
        for check in report.checks:
            if check.verdict is Verdict.INCONCLUSIVE and check.required:
                return f"{check.id}: could not be checked: {check.detail or check.actual}"
        return "nothing was checked"
    count = sum(check.verdict is Verdict.VERIFIED for check in report.checks)
    return (
        f"dry run: {count} pre-flights passed, nothing was proven"
        if report.dry_run
        else f"{count} checks verified"
    )


def facts(value: Any) -> Any:
    """Turn models inside a value into plain JSON data, for the audit log's detail field."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): facts(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [facts(item) for item in value]
    return value
