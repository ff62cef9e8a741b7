"""The report of a restore drill as one HTML page, for an auditor who never saw pgvigil."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.backup.facts import bytes_text
from pgvigil.drill.drawing import draw
from pgvigil.drill.markup import Markup, document, folded, join, name, pairs, table, tag
from pgvigil.drill.style import STYLE
from pgvigil.drill.trend import RTO_PHASES, seconds_text
from pgvigil.drill.words import count_text, heartbeats, rpo_text, share_text, time_text, unproven_of
from pgvigil.reports import Severity, Verdict, headline, to_json
from pgvigil.reportstore import digest, report_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.drill.facts import Mark
    from pgvigil.drill.report import DatabaseResult, DrillReport, TableResult
    from pgvigil.drill.trend import Trend
    from pgvigil.reports import Check, Finding

_FOLD = 12  # rows, from which on a list is folded


def page(report: DrillReport) -> str:
    """Render the whole report; it names the digest of the JSON that is stored beside it."""
    kept = report.model_copy(update={"evidence": ()})  # what the stored JSON says, and its digest is of
    title = f"Restore drill of {kept.subject}, {kept.started_at:%Y-%m-%d}: {kept.verdict}"
    return document(title, STYLE, [part for part in _parts(kept) if part])


def _parts(report: DrillReport) -> Iterator[Markup]:
    yield _banner(report)
    yield _figures(report)
    yield _section("What was found", _findings(report.findings))
    yield _section("What was asked", _asked(report))
    yield _section("What was restored", _restored(report))
    yield _section("What was compared", *map(_database, report.databases)) if report.databases else Markup()
    yield _section("How long a restore takes", _times(report))
    yield _section("What was checked", _checks(report.checks))
    yield _section("What was not proven", _not_proven(report))
    yield _section("With which programs", _versions(report))
    yield _section("How to verify this page", _how_to_verify(report))
    yield _section("What the words mean", _glossary())


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
        tag("p", f"{time_text(report.started_at)} to {time_text(report.ended_at)} · run {report.run_id}"),
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
    return seconds_text(report.rpo.age_seconds), "age of the last replayed commit"


def _share(report: DrillReport) -> tuple[str, str]:
    tables = [found for each in report.databases for found in each.tables]
    equal = sum(found.verdict is Verdict.VERIFIED for found in tables)
    if not tables:
        return "nothing", "no content was compared"
    blocks = sum(found.blocks for found in tables)
    proven = sum(found.blocks_read for found in tables if found.verdict is Verdict.VERIFIED)
    share = proven / blocks if blocks else equal / len(tables)
    return share_text(share), f"of the data; {equal} of {count_text(len(tables), 'table')} compared"


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
    said = tag("p", _badge(finding.severity, loud), " ", finding.message, " ", tag("code", finding.code))
    return tag("li", said, about, cure)


def _badge(words: str, colour: str) -> Markup:
    return tag("span", words, class_=f"badge {colour}")


def _verdict(verdict: Verdict) -> Markup:
    return _badge(str(verdict), str(verdict))


# --- asked, restored ----------------------------------------------------------------------------------


def _asked(report: DrillReport) -> Markup:
    wanted = report.wanted
    rows: list[tuple[object, object]] = [
        ("cluster", name(report.subject)),
        ("recovery target", wanted.recovery_target),
        ("repository", wanted.repo if wanted.repo is not None else "by turns"),
        ("backup set", wanted.backup_set or "by turns"),
        ("keep the copy", "yes" if report.keep else "no"),
        ("by", report.actor or "see the audit log"),
    ]
    if report.choice is None:
        return join([pairs(rows), tag("p", "The drill ended before it had chosen what to restore.")])
    choice = report.choice
    rows += [
        ("chosen", f"{choice.label}, the {choice.set_kind} set, in repository {choice.repo}"),
        ("chosen target", choice.target),
        ("because", choice.reason),
        ("seed of the draw", choice.seed),
    ]
    passed = [each for each in choice.candidates if each.refused]
    told = [(f"repository {each.repo}", each.label, each.refused) for each in passed]
    considered = f"considered: {count_text(len(choice.candidates), 'backup set')}, {len(passed)} passed over"
    more = folded(considered, table(("where", "set", "passed over because"), told)) if told else None
    return join([pairs(rows), more or tag("p", considered + ".")])


def _restored(report: DrillReport) -> Markup:
    rows = list(_restored_rows(report))
    return pairs(rows) if rows else tag("p", "Nothing: the drill ended before a copy came up.")


def _restored_rows(report: DrillReport) -> Iterator[tuple[object, object]]:
    restored, wal, target, reached = report.restored, report.wal, report.target, report.reached
    if restored:
        yield "stanza", name(restored.stanza)
        yield "repository", restored.repo
        yield "backup set", " on ".join(reversed(restored.chain or (restored.label,)))
        if restored.stopped_at:
            yield "taken until", time_text(restored.stopped_at)
        yield "size", bytes_text(restored.bytes)
        same = "the same" if restored.system_id == restored.expected_system_id else "NOT THE SAME"
        found = f"{restored.system_id}, expected {restored.expected_system_id}: {same}"
        yield "system identifier", found
    if wal and wal.first:
        yield "WAL used", f"{wal.first} to {wal.last}, {wal.segments} segments, {bytes_text(wal.bytes)}"
        yield "WAL positions", f"LSN {wal.from_lsn} to {wal.to_lsn} on timeline {wal.timeline}"
    if target:
        yield "target", f"{target.kind} {target.value}".strip() + f", at or after LSN {target.lsn}"
    if reached:
        yield "replay reached", f"LSN {reached.lsn} on timeline {reached.timeline}"
        yield "commits around it", heartbeats(reached)
        yield "opened for writing", "yes, after the target" if reached.promoted else "no"
    if report.rpo:
        yield "data at risk", rpo_text(report.rpo)
    if restored and restored.kept_until:
        yield "the copy", f"was kept in {restored.scratch} until {time_text(restored.kept_until)}"


# --- compared -----------------------------------------------------------------------------------------


def _database(database: DatabaseResult) -> Markup:
    tables = database.tables
    counts = [
        (database.count(Verdict.VERIFIED), "equal"),
        (database.count(Verdict.REFUTED), "different"),
        (database.count(Verdict.INCONCLUSIVE), "could not be judged"),
        (len(database.unproven), "not compared"),
    ]
    told = ", ".join(f"{count} {word}" for count, word in counts if count) or "nothing was compared"
    rows = [
        ("compared at", _mark(database.mark) if database.mark else "no point at which it is known"),
        ("tables", told),
        ("share of the data", share_text(database.share)),
        ("read in the source", _effort(database.bytes_read, database.seconds_source)),
        ("read in the copy", _effort(database.bytes_read, database.seconds_copy)),
        ("structure", _amchecked(database.amchecked)),
    ]
    wrong = [found for found in tables if found.verdict is Verdict.REFUTED]
    rest = [found for found in tables if found.verdict is not Verdict.REFUTED]
    return tag(
        "div",
        tag("h3", "Database ", name(database.database)),
        pairs(rows),
        join([tag("h4", f"Different ({len(wrong)})"), _tables(wrong)]) if wrong else None,
        _folded(f"{count_text(len(rest), 'table')} with their rows", _tables(rest), len(rest)),
    )


def _effort(size: int, seconds: float) -> str:
    if not seconds:
        return "nothing"
    return f"{bytes_text(size)} in {seconds_text(seconds)}, {bytes_text(size / seconds)}/s"


def _amchecked(relations: int | None) -> str:
    if relations is None:
        return "not looked at by pg_amcheck"
    return f"{count_text(relations, 'relation')} looked at by pg_amcheck"


def _folded(title: str, content: Markup, rows: int) -> Markup:
    if not rows:
        return Markup()
    return folded(title, content) if rows > _FOLD else join([tag("h4", title), content])


def _mark(mark: Mark) -> str:
    return (
        f"LSN {mark.lsn} on timeline {mark.timeline}, {time_text(mark.at)}; {_METHODS[mark.method]}; "
        f"writers waited at most {mark.writers_waited_ms:.0f} ms"
    )


_METHODS = {
    "standby": "a standby's replay was paused there, and its content read",
    "slot": "a temporary logical slot gave a snapshot that is exactly this point",
    "fence": "all tables were locked against writing for an instant, in which the snapshot was taken",
}


def _tables(tables: Sequence[TableResult]) -> Markup:
    head = ("", "table", "rows in the source", "rows in the copy", "read", "")
    rows = (
        (
            _verdict(found.verdict),
            name(found.relation),
            _figure(found.rows),
            _figure(found.rows_copy),
            _read(found),
            found.detail,
        )
        for found in tables
    )
    return table(head, rows, figures=(2, 3, 4))


def _figure(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _read(found: TableResult) -> str:
    if found.blocks_read >= found.blocks:
        return "all"
    return f"{found.blocks_read:,} of {found.blocks:,} blocks"


# --- time ---------------------------------------------------------------------------------------------


def _times(report: DrillReport) -> Markup:
    if report.trend is None:
        return tag("p", "Nothing was measured: the drill ended before a copy came up.")
    trend = report.trend
    return join(
        [
            tag("figure", Markup(draw(trend))),
            tag("p", trend.reason.capitalize() + ".") if trend.reason else None,
            _phases(trend),
            _other_phases(report),
        ]
    )


def _phases(trend: Trend) -> Markup:
    expected = {each.phase: each for each in trend.foretold}
    rows: list[tuple[str, str, str, str]] = [
        (
            phase,
            seconds_text(trend.this.seconds[phase]) if phase in trend.this.seconds else "not measured",
            f"{seconds_text(told.seconds)} ({seconds_text(told.low)} to {seconds_text(told.high)})"
            if (told := expected.get(phase))
            else "",
            _PHASES[phase],
        )
        for phase in RTO_PHASES
    ]
    total = seconds_text(trend.this.rto), seconds_text(trend.seconds) if trend.seconds else ""
    rows.append(("all", *total, "the RTO of this drill"))
    return table(("phase", "this drill", "to be expected (usual)", "what it is"), rows, figures=(1, 2))


_PHASES = {
    "restore": "the backup's files are copied from the repository",
    "replay": "the server starts and applies WAL up to the target",
    "start": "it ends recovery and takes sessions that write",
    "first query": "the first statement is answered",
}


def _other_phases(report: DrillReport) -> Markup | None:
    others = [phase for phase in report.phases if phase.name not in RTO_PHASES]
    if not others:
        return None
    told = ", ".join(f"{phase.name} {seconds_text(phase.seconds)}" for phase in others)
    return tag("p", f"The proof itself took as well, which is no part of a restore: {told}.")


# --- checks, and what is missing ----------------------------------------------------------------------


def _checks(checks: Sequence[Check]) -> Markup:
    if not checks:
        return tag("p", "Nothing was checked.")
    rows = (
        (
            _verdict(check.verdict),
            tag("code", check.id, class_="id"),
            check.expected,
            join([check.actual, _detail(check)]),
        )
        for check in checks
    )
    return table(("", "check", "expected", "found"), rows)


def _detail(check: Check) -> Markup | None:
    return tag("p", check.detail, class_="detail") if check.detail else None


def _not_proven(report: DrillReport) -> Markup:
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
    left = _folded(
        f"{count_text(len(relations), 'relation')} not proven",
        table(("database", "relation", "because"), relations),
        len(relations),
    )
    return join([tag("p", "None of this counts as passed."), lacking, left])


def _versions(report: DrillReport) -> Markup:
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


def _how_to_verify(report: DrillReport) -> Markup:
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


def _glossary() -> Markup:
    return tag("dl", *(join([tag("dt", word), tag("dd", words)]) for word, words in _WORDS))


_WORDS = (
    ("verified", "It was looked at, and it holds."),
    ("refuted", "It was looked at, and it does not hold: the thing is broken."),
    ("inconclusive", "It could not be looked at. It counts as not proven, never as passed."),
    ("backup set", "A full backup, with the smaller ones built on it, from which files are restored."),
    ("WAL", "The log in which PostgreSQL writes every change; replaying it brings a copy forward in time."),
    ("LSN", "A position in the WAL."),
    ("target", "The point at which replay has to end; it is fixed by its LSN, time, transaction or name."),
    ("mark", "A point in the WAL at which a database's content is known exactly, while users go on writing."),
    ("RTO", "Recovery time: from the decision to restore until the first query is answered."),
    ("RPO", "Recovery point: how much of the newest work would be lost."),
    (
        "sample",
        "Where time did not do for all of a table, the same blocks were drawn and read on both sides.",
    ),
)
