"""The report of a restore drill as one HTML page, for an auditor who never saw pgvigil."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.drill import account, assurance
from pgvigil.drill.markup import Markup, badge, document, name, tag
from pgvigil.drill.style import STYLE
from pgvigil.drill.trend import seconds_text
from pgvigil.drill.words import count_text, share_text, time_text
from pgvigil.reports import Severity, Verdict, headline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.drill.report import DrillReport
    from pgvigil.reports import Check, Finding


def page(report: DrillReport) -> str:
    """Render the whole report; it names the digest of the JSON that is stored beside it."""
    kept = report.model_copy(update={"evidence": ()})  # what the stored JSON says, and its digest is of
    title = f"Restore drill of {kept.subject}, {kept.started_at:%Y-%m-%d}: {kept.verdict}"
    return document(title, STYLE, [part for part in _parts(kept) if part])


def _parts(report: DrillReport) -> Iterator[Markup]:
    yield _banner(report)
    yield _figures(report)
    yield _section("What was found", _findings(report.findings))
    yield _section("What was asked", account.asked(report))
    yield _section("What was restored", account.restored(report))
    yield (
        _section("What was compared", *map(account.database, report.databases))
        if report.databases
        else Markup()
    )
    yield _section("How long a restore takes", account.times(report))
    yield _section("What was checked", assurance.checks(report.checks))
    yield _section("What was not proven", assurance.not_proven(report))
    yield _section("With which programs", assurance.versions(report))
    yield _section("How to verify this page", assurance.how_to_verify(report))
    yield _section("What the words mean", assurance.glossary())


def _section(title: str, *children: object) -> Markup:
    return tag("section", tag("h2", title), *children)


# --- the verdict --------------------------------------------------------------------------------------


def _banner(report: DrillReport) -> Markup:
    return tag(
        "header",
        tag("p", "Restore drill", class_="kind"),
        tag("h1", "Cluster ", name(report.subject)),
        tag(
            "div",
            tag("strong", report.verdict.upper()),
            tag("span", _meaning(report)),
            class_=f"banner {report.verdict}",
        ),
        tag("p", _PURPOSE),
        tag("p", f"{time_text(report.started_at)} to {time_text(report.ended_at)} · run {report.run_id}"),
    )


_PURPOSE = (
    "A restore drill takes a backup from its repository, restores it beside the running server, which is not "
    "touched, brings it to a point at which the server's content is known, and compares the two."
)


def _meaning(report: DrillReport) -> str:
    if report.verdict is Verdict.REFUTED:
        return f"Something that must hold does not: {_worst(report)}."
    if report.verdict is Verdict.INCONCLUSIVE:
        return (
            f"The drill could neither prove nor refute that this cluster can be restored: {headline(report)}."
        )
    if report.choice is not None and not report.choice.proves_equality:
        return (
            "The backup was restored and brought to the point of the past that was asked for. "
            "What it must hold there nobody knows, so content was not compared."
        )
    return (
        "The backup was restored to a separate place and brought to a point that had been fixed on the "
        "running server. What it holds there is what the server held, as far as listed below."
    )


def _worst(report: DrillReport) -> str:
    errors = (finding.message for finding in report.findings if finding.severity is Severity.ERROR)
    return next(errors, headline(report))


def _figures(report: DrillReport) -> Markup:
    cards = [
        ("time to restore (RTO)", *_rto(report)),
        ("data at risk (RPO)", *_rpo(report)),
        ("proven equal", *_share(report)),
        ("checks", *_count(report.checks)),
    ]
    return tag(
        "div",
        *(
            tag("div", tag("p", what), tag("strong", value), tag("p", detail), class_="card")
            for what, value, detail in cards
        ),
        class_="cards",
    )


def _rto(report: DrillReport) -> tuple[str, str]:
    trend = report.trend
    if trend is None or not trend.this.is_whole:
        return "not measured", "not every phase was reached"
    against = f"target {seconds_text(trend.target)}" if trend.target else "no target is set"
    return seconds_text(trend.this.rto), against


def _rpo(report: DrillReport) -> tuple[str, str]:
    if report.rpo is None:
        return "not measured", "replay was not reached"
    return seconds_text(report.rpo.age_seconds), "what a loss of the server would have cost"


def _share(report: DrillReport) -> tuple[str, str]:
    tables = [found for each in report.databases for found in each.tables]
    equal = sum(found.verdict is Verdict.VERIFIED for found in tables)
    if not tables:
        return "nothing", "no content was compared"
    blocks = sum(found.blocks for found in tables)
    proven = sum(found.blocks_read for found in tables if found.verdict is Verdict.VERIFIED)
    share = proven / blocks if blocks else equal / len(tables)
    return share_text(share), f"of the data; {equal} of {count_text(len(tables), 'table')} equal"


def _count(checks: Sequence[Check]) -> tuple[str, str]:
    verified = sum(check.verdict is Verdict.VERIFIED for check in checks)
    others = {
        "refuted": sum(check.verdict is Verdict.REFUTED for check in checks),
        "not run": sum(check.verdict is Verdict.INCONCLUSIVE for check in checks),
    }
    told = ", ".join(f"{count} {word}" for word, count in others.items() if count)
    return f"{verified} of {len(checks)}", told or "all verified"


def _findings(findings: Sequence[Finding]) -> Markup:
    if not findings:
        return tag("p", "Nothing that anybody must know or do.")
    return tag("ul", *map(_finding, findings), class_="findings")


def _finding(finding: Finding) -> Markup:
    loud = {Severity.ERROR: "refuted", Severity.WARNING: "inconclusive"}.get(finding.severity, "plain")
    cure = tag("p", tag("b", "What to do: "), finding.hint) if finding.hint else None
    about = tag("p", "About ", name(finding.subject)) if finding.subject else None
    said = tag("p", badge(finding.severity, loud), " ", finding.message, " ", tag("code", finding.code))
    return tag("li", said, about, cure)
