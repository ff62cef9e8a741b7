"""Parts of a drill's page: what was checked and what was not, and how a reader can verify all that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.drill.markup import badge, join, listed, name, pairs, table, tag
from pgvigil.drill.words import count_text, unproven_of
from pgvigil.reports import Verdict, to_json
from pgvigil.reportstore import digest, report_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.drill.markup import Markup
    from pgvigil.drill.report import DrillReport
    from pgvigil.reports import Check


def checks(checks: Sequence[Check]) -> Markup:
    """List every check with what was expected and what was found."""
    if not checks:
        return tag("p", "Nothing was checked.")
    rows = (
        (
            badge(check.verdict, check.verdict),
            tag("code", check.id, class_="id"),
            check.expected,
            join([check.actual, _detail(check)]),
        )
        for check in checks
    )
    return table(("", "check", "expected", "found"), rows)


def _detail(check: Check) -> Markup | None:
    return tag("p", check.detail, class_="detail") if check.detail else None


def not_proven(report: DrillReport) -> Markup:
    """List the checks that did not run and the relations that were left out, with the reasons."""
    checks = [check for check in report.checks if check.verdict is Verdict.INCONCLUSIVE]
    relations = [
        (name(each.database), name(relation), reason)
        for each in report.databases
        for relation, reason in unproven_of(each)
    ]
    if not checks and not relations:
        return tag("p", "Every check that was planned ran, and no relation was left out.")
    rows = [
        (
            tag("code", check.id, class_="id"),
            check.detail or check.actual,
            "the verdict needs it" if check.required else "it decides nothing",
        )
        for check in checks
    ]
    lacking = table(("check that did not run", "because", ""), rows) if rows else None
    left = listed(
        f"{count_text(len(relations), 'relation')} not proven",
        table(("database", "relation", "because"), relations),
        len(relations),
    )
    return join([tag("p", "None of this counts as passed."), lacking, left])


def versions(report: DrillReport) -> Markup:
    """Tell by which programs all this was found."""
    versions = report.versions
    rows = [
        ("PostgreSQL of the source", versions.source),
        ("PostgreSQL of the copy", versions.copied),
        ("pgBackRest", versions.pgbackrest),
        ("pgvigil", versions.pgvigil),
        ("host of the drill", versions.system),
        ("schema of the report", report.schema_version),
    ]
    return pairs((key, value or "not known") for key, value in rows)


def how_to_verify(report: DrillReport) -> Markup:
    """Tell how a reader proves that nobody edited this page or the log behind it."""
    file = f"{report_name(report)}.json"
    fingerprint = digest(to_json(report).encode()).removeprefix("sha256:")
    steps = [
        join(["Take the JSON report from the report store: ", tag("code", file), ". This page shows it."]),
        join(
            [
                "Compute its digest with ",
                tag("code", "sha256sum"),
                "; it must be ",
                tag("code", fingerprint),
                ".",
            ]
        ),
        join(
            [
                "Ask the audit log: ",
                tag("code", f"pgvigil audit show {report.run_id} --json"),
                ". Its event ",
                tag("code", "run_ended"),
                " holds the same digest, and under ",
                tag("code", "digests"),
                " that of this page.",
            ]
        ),
        join(
            [
                "Verify that nobody edited the log: ",
                tag("code", "pgvigil audit verify"),
                " recomputes its chain and compares it with anchors that are kept elsewhere.",
            ]
        ),
    ]
    return tag("ol", *(tag("li", step) for step in steps))


def glossary() -> Markup:
    """Explain the words that only this trade uses."""
    return tag("dl", *(join([tag("dt", word), tag("dd", words)]) for word, words in _WORDS))


_WORDS = (
    ("verified", "It was looked at, and it holds."),
    ("refuted", "It was looked at, and it does not hold: the thing is broken."),
    ("inconclusive", "It could not be looked at. It counts as not proven, never as passed."),
    ("backup set", "A full backup, with the smaller ones built on it, from which files are restored."),
    ("stanza", "pgBackRest's name for the backups and the WAL of one cluster."),
    ("WAL", "The log in which PostgreSQL writes every change; replaying it brings a copy forward in time."),
    ("LSN", "A position in the WAL."),
    ("timeline", "One course of the WAL; a server that is restored and opened begins a new one."),
    ("target", "The point at which replay has to end; it is fixed by its LSN, time, transaction or name."),
    ("mark", "A point in the WAL at which a database's content is known exactly, while users go on writing."),
    ("amcheck", "PostgreSQL's own test whether the structure of tables and B-tree indexes is sound."),
    ("checksum", "A number that is stored with every page of data, and tells when the page was damaged."),
    ("RTO", "Recovery time: from the decision to restore until the first query is answered."),
    ("RPO", "Recovery point: how much of the newest work would be lost."),
    (
        "sample",
        "Where time did not do for all of a table, the same blocks were drawn and read on both sides.",
    ),
)
