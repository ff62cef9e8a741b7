"""Whether the copy's rows are the source's: the digests of both sides by table, and the share proven."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pgvigil.drill.facts import Table
from pgvigil.drill.judgement import Judgement, bounded, listed, passed, refuted, unknown
from pgvigil.reports import Check, Finding, Frozen, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgvigil.drill.facts import Content, Digest, Unproven

BLOCK_SIZE = 8192  # bytes, PostgreSQL's default

Outcome = Literal["equal", "differs", "missing", "unproven"]

_EXPECTED = "every table with the rows that the source had at the mark"


class TableResult(Frozen):
    """How one table came out; `proven` and `size` are bytes, rows None where they were not counted."""

    table: Table
    outcome: Outcome
    source_rows: int | None = None
    copied_rows: int | None = None
    size: int = 0
    proven: int = 0
    reason: str = ""


class Comparison(Frozen):
    """How one database came out: every table, and how many bytes of them were proven equal."""

    database: str
    tables: tuple[TableResult, ...]
    size: int
    proven: int

    @property
    def share(self) -> float:
        """The part of the bytes that was proven, 0 to 1; of no bytes all are, if no table is left open."""
        if self.size:
            return self.proven / self.size
        return float(all(each.outcome == "equal" for each in self.tables))


def compare(
    content: Content, copied: Content, *, doubts: Mapping[int, str], block_size: int = BLOCK_SIZE
) -> Comparison:
    """Compare the source's digests with those that were made of the same blocks in the copy.

    `doubts` says by OID why inequality of a table proves nothing: it had a writer while the mark was made,
    or other columns when it was hashed. What the copy tells as unproven stays so with its reason.
    """
    there = {table.oid: digest for table, digest in copied.tables}
    unread = {each.relation: each.reason for each in copied.unproven}
    results = []
    for table, ours in content.tables:
        theirs = there.get(table.oid)
        outcome, reason = _outcome(ours, theirs, doubts.get(table.oid, ""), unread.get(str(table), ""))
        results.append(
            TableResult(
                table=table,
                outcome=outcome,
                reason=reason,
                source_rows=ours.rows,
                copied_rows=theirs.rows if theirs else None,
                size=ours.blocks * block_size,
                proven=ours.blocks_read * block_size if outcome == "equal" else 0,
            )
        )
    return Comparison(
        database=content.mark.database,
        tables=tuple(results),
        size=sum(each.size for each in results),
        proven=sum(each.proven for each in results),
    )


def _outcome(ours: Digest, theirs: Digest | None, doubt: str, unread: str) -> tuple[Outcome, str]:
    if theirs is None:
        reason = doubt or unread
        return ("unproven", reason) if reason else ("missing", "not in the copy")
    if ours.ranges != theirs.ranges:
        return "unproven", "other block ranges were read in the copy than at the source"
    if ours.is_copied != theirs.is_copied:
        return "unproven", "it was read in another way in the copy than at the source"
    if (ours.rows, ours.hash) == (theirs.rows, theirs.hash):
        return "equal", ""
    return ("unproven", doubt) if doubt else ("differs", "")


def check_name(database: str, part: int = 1) -> str:
    """Name the check of a database's rows at one of its marks."""
    return f"rows {database}" + (f", mark {part}" if part > 1 else "")


def judge(comparison: Comparison, unproven: Sequence[Unproven] = (), *, part: int = 1) -> Judgement:
    """Judge one database's rows; `unproven` are relations that were not hashed at the source.

    `part` counts the marks of a database whose tables could not share one: each has its own check.
    What cannot be proven by design, such as unlogged tables, is told and decides nothing; anything else
    that was not compared makes the check inconclusive, as does a database of which nothing was.
    """
    name = check_name(comparison.database, part)
    bad = [each for each in comparison.tables if each.outcome in {"differs", "missing"}]
    checks = [_decisive(name, comparison, bad, [each for each in unproven if not each.by_design])]
    by_design = [f"{each.relation} ({each.reason})" for each in unproven if each.by_design]
    if by_design:
        detail = f"no restore brings back {listed(by_design)}"
        checks.append(unknown(f"{name} by design", _EXPECTED, detail, required=False))
    findings = [_finding(comparison.database, each) for each in bad]
    return Judgement(checks=tuple(checks), findings=bounded(findings, name))


def _decisive(
    name: str, comparison: Comparison, bad: Sequence[TableResult], unproven: Sequence[Unproven]
) -> Check:
    open_ones = [f"{each.table} ({each.reason})" for each in comparison.tables if each.outcome == "unproven"]
    open_ones += [f"{each.relation} ({each.reason})" for each in unproven]
    if bad:
        return refuted(name, _EXPECTED, [_said(each) for each in bad])
    if open_ones:
        return unknown(name, _EXPECTED, f"not proven: {listed(open_ones)}")
    if not comparison.tables:
        return passed(name, _EXPECTED, "it has no table")
    rows = sum(each.source_rows or 0 for each in comparison.tables)
    actual = f"{len(comparison.tables)} tables, {rows} rows, {comparison.share:.0%} of the bytes compared"
    return passed(name, _EXPECTED, actual)


def _said(each: TableResult) -> str:
    if each.outcome == "missing":
        return f"{each.table} is not in the copy, {each.source_rows} rows at the source"
    if each.source_rows != each.copied_rows:
        return f"{each.table} has {each.copied_rows} rows in the copy, {each.source_rows} at the source"
    return f"{each.table} has {each.source_rows} rows on both sides, but other content"


def _finding(database: str, each: TableResult) -> Finding:
    return Finding(
        code=f"rows-{each.outcome}",
        severity=Severity.ERROR,
        message=f"database {database}: table {_said(each)}",
        hint="the copy does not hold what was committed: do not trust this backup; take a new full, drill it",
        subject=f"{database}: {each.table}",
    )
