"""What was compared, as the report has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.drill.report import DatabaseResult, TableResult
from pgvigil.reports import Verdict

if TYPE_CHECKING:
    from pgvigil.drill import compare
    from pgvigil.drill.facts import Content, Digest
    from pgvigil.drill.source import MarkedDatabase

_VERDICTS = {
    "equal": Verdict.VERIFIED,
    "differs": Verdict.REFUTED,
    "missing": Verdict.REFUTED,
    "unproven": Verdict.INCONCLUSIVE,
}


def result_of(database: MarkedDatabase, comparison: compare.Comparison, copied: Content) -> DatabaseResult:
    """Tell one database's comparison table by table."""
    digests = {table.oid: digest for table, digest in database.content.tables}
    return DatabaseResult(
        database=database.name,
        mark=database.content.mark,
        tables=tuple(_table(each, digests[each.table.oid]) for each in comparison.tables),
        unproven=database.content.unproven,
        bytes_read=database.content.bytes_read,
        seconds_source=database.content.seconds,
        seconds_copy=copied.seconds,
    )


def _table(found: compare.TableResult, digest: Digest) -> TableResult:
    return TableResult(
        relation=str(found.table),
        verdict=_VERDICTS[found.outcome],
        rows=found.source_rows,
        rows_copy=found.copied_rows,
        blocks=digest.blocks,
        blocks_read=digest.blocks_read,
        detail=found.reason,
    )
