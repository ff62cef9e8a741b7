"""A report as a page that people read: Markdown for the Prefect UI and the report store."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgvigil.reports import Severity, Verdict, headline
from pgvigil.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgvigil.reports import Check, Finding, Report

_BACKTICKS = re.compile("`+")
MARK = {Verdict.VERIFIED: "✅", Verdict.REFUTED: "❌", Verdict.INCONCLUSIVE: "❓"}
_LOUD = {Severity.INFO: "ℹ️", Severity.WARNING: "⚠️", Severity.ERROR: "🛑"}  # noqa: RUF001 - the sign itself


@dataclass(frozen=True)
class Link:
    """A few words that lead to an address."""

    words: str
    address: str


def markdown(report: Report) -> str:
    """Render a report: verdict and reason first, then findings with cures, the flow's own part, checks."""
    parts = [
        f"# {MARK[report.verdict]} {report.verdict.upper()}: {report.flow} on {cell(report.subject)}",
        cell(headline(report)) + (" — **dry run: nothing was changed**" if report.dry_run else ""),
        _findings(report.findings),
        report.section(),
        _checks(report.checks),
        _evidence(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Render a Markdown table; whatever stands in a cell cannot break it."""
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cell(value) for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def cell(value: object) -> str:
    """Make any text safe in a line or table cell of Markdown; a link stays one."""
    if isinstance(value, Link):
        return f"[{cell(value.words)}]({value.address})"
    text = visible(" ".join(str(value).split()))
    for sign in ("\\", "|", "`", "*", "_", "<", "[", "]"):
        text = text.replace(sign, f"\\{sign}")
    return text


def code(value: object) -> str:
    """Show any text as it is, in a line of Markdown: the fence is longer than what it holds of its kind."""
    text = visible(" ".join(str(value).split()))
    fence = "`" * (max(map(len, _BACKTICKS.findall(text)), default=0) + 1)
    room = " " if "`" in text else ""
    return f"{fence}{room}{text}{room}{fence}"


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "No findings."
    # No table: Prefect's page cuts a long cell off, and these sentences are what people came for.
    return "## Findings\n\n" + "\n".join(_finding(finding) for finding in findings)


def _finding(finding: Finding) -> str:
    said = f"- {_LOUD[finding.severity]} **{finding.severity}** {code(finding.code)}: {cell(finding.message)}"
    return f"{said}\n  - what to do: {cell(finding.hint)}" if finding.hint else said


def _checks(checks: Sequence[Check]) -> str:
    if not checks:
        return "## Checks\n\nNone was run."
    # What was found stands before what was expected: on a narrow page the last column is out of sight.
    rows = ((f"{MARK[c.verdict]} {c.verdict}", c.id, c.actual or c.detail, c.expected) for c in checks)
    return "## Checks\n\n" + table(("verdict", "check", "found", "expected"), rows)


def _evidence(report: Report) -> str:
    took = (report.ended_at - report.started_at).total_seconds()
    lines = [
        f"- run {code(report.run_id)}, {report.started_at:%Y-%m-%d %H:%M:%S} UTC, {took:.1f} s",
        *(f"- {code(uri)}" for uri in report.evidence),
    ]
    return "## Evidence\n\n" + "\n".join(lines)
