"""What every judge of the copy returns: checks that decide, findings that name the object."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.reports import Check, Finding, Frozen, Severity, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

AGAIN = "drill again: the mark will fall into another moment"
MOST_FINDINGS = 50  # of one judge in one database; the rest are counted
_SHOWN = 5


class Judgement(Frozen):
    """What one judge found."""

    checks: tuple[Check, ...] = ()
    findings: tuple[Finding, ...] = ()


def join(judgements: Iterable[Judgement]) -> Judgement:
    """Put several judgements into one."""
    parts = list(judgements)
    return Judgement(
        checks=tuple(check for part in parts for check in part.checks),
        findings=tuple(finding for part in parts for finding in part.findings),
    )


def passed(name: str, expected: str, actual: str) -> Check:
    """Make the check of what was looked at and is good."""
    return Check(id=name, verdict=Verdict.VERIFIED, expected=expected, actual=actual)


def unknown(name: str, expected: str, detail: str, *, required: bool = True) -> Check:
    """Make the check of what could not be looked at."""
    return Check(
        id=name,
        verdict=Verdict.INCONCLUSIVE,
        expected=expected,
        actual="not known",
        detail=detail,
        required=required,
    )


def refuted(name: str, expected: str, faults: Sequence[str]) -> Check:
    """Make the check of what is broken, the first faults named."""
    return Check(id=name, verdict=Verdict.REFUTED, expected=expected, actual=listed(faults))


def listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    """Write out the first names and count the rest."""
    more = f"; and {len(names) - shown} more" if len(names) > shown else ""
    return "; ".join(names[:shown]) + more


def bounded(findings: Sequence[Finding], what: str) -> tuple[Finding, ...]:
    """Keep the first findings, and say how many more there are."""
    if len(findings) <= MOST_FINDINGS:
        return tuple(findings)
    rest = Finding(
        code=findings[-1].code,
        severity=Severity.ERROR,
        message=f"{what}: {len(findings) - MOST_FINDINGS} more such findings are not listed",
        hint="the first ones are listed; mend those and drill again",
    )
    return (*findings[:MOST_FINDINGS], rest)
