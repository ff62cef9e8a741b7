"""Parts of a drill's page: what was asked, restored and compared, and how long that took."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.backup.facts import bytes_text
from pgvigil.drill.drawing import draw
from pgvigil.drill.markup import Markup, badge, folded, join, listed, name, pairs, table, tag
from pgvigil.drill.trend import RTO_PHASES, seconds_text
from pgvigil.drill.words import count_text, heartbeats, rpo_text, share_text, time_text
from pgvigil.reports import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.drill.facts import Mark
    from pgvigil.drill.report import DatabaseResult, DrillReport, TableResult
    from pgvigil.drill.trend import Trend


def asked(report: DrillReport) -> Markup:
    """Tell who asked for what, and what was chosen for the rest."""
    wanted = report.wanted
    rows: list[tuple[object, object]] = [
        ("cluster", name(report.subject)),
        ("recovery target", "by turns" if wanted.recovery_target == "auto" else wanted.recovery_target),
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
        ("seed of the draw", f"{choice.seed}, with which anybody can draw the same again"),
    ]
    passed = [each for each in choice.candidates if each.refused]
    told = [(f"repository {each.repo}", each.label, each.refused) for each in passed]
    considered = f"considered: {count_text(len(choice.candidates), 'backup set')}, {len(passed)} passed over"
    more = folded(considered, table(("where", "set", "passed over because"), told)) if told else None
    return join([pairs(rows), more or tag("p", considered + ".")])


def restored(report: DrillReport) -> Markup:
    """Tell which backup came up, how far it was brought, and how that is known."""
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
        yield "opened for writing", "yes, after everything had been compared" if reached.promoted else "no"
    if report.rpo:
        yield "data at risk", rpo_text(report.rpo)
    if restored and restored.kept_until:
        yield "the copy", f"was kept in {restored.scratch} until {time_text(restored.kept_until)}"


# --- compared -----------------------------------------------------------------------------------------


def database(database: DatabaseResult) -> Markup:
    """Tell of one database what was compared with the source, what differs first."""
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
        ("rows compared with", _compared_with(database.mark) if database.mark else "nothing"),
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
        listed(f"{count_text(len(rest), 'table')} with their rows", _tables(rest), len(rest)),
    )


def _effort(size: int, seconds: float) -> str:
    if not seconds:
        return "nothing"
    return f"{bytes_text(size)} in {seconds_text(seconds)}, {bytes_text(size / seconds)}/s"


def _amchecked(relations: int | None) -> str:
    if relations is None:
        return "not looked at by pg_amcheck"
    return f"{count_text(relations, 'relation')} looked at by pg_amcheck"


def _mark(mark: Mark) -> str:
    return (
        f"LSN {mark.lsn} on timeline {mark.timeline}, {time_text(mark.at)}; {_METHODS[mark.method]}; "
        f"writers waited at most {mark.writers_waited_ms:.0f} ms"
    )


def _compared_with(mark: Mark) -> str:
    server = mark.server or "the server of the mark"
    if mark.method == "standby":
        return f"{server}, a standby: whether it equals its primary was not looked at"
    return server


_METHODS = {
    "standby": "a standby's replay was paused there, and its content read",
    "slot": "a temporary logical slot gave a snapshot that is exactly this point",
    "fence": "all tables were locked against writing for an instant, in which the snapshot was taken",
}


def _tables(tables: Sequence[TableResult]) -> Markup:
    head = ("", "table", "rows in the source", "rows in the copy", "read", "")
    rows = (
        (
            badge(found.verdict, found.verdict),
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


def times(report: DrillReport) -> Markup:
    """Draw and tell how long the restore took, beside earlier drills."""
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
