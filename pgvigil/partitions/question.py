"""The question whether tables may be dropped: what would go, and what proves that nothing is lost with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.pages import cell, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.archive.manifest import Manifest

_HEAD = ("drop table", "its range", "rows", "bytes in S3", "proven (UTC)")


def ask(what: str, copies: Sequence[Manifest]) -> str:
    """Render plan and proof as Markdown."""
    return (
        f"### Drop from {cell(what)}\n\n{table(_HEAD, map(_row, copies))}\n\n"
        "Each copy was read back from S3: rows and digest are those that PostgreSQL computed. Since before "
        "the copy nobody could write to the table. Before the drop the copy is read back once more.\n\n"
        + "\n".join(f"- `{copy.rows.uri}`, digest `{copy.digest.value}`" for copy in copies)
    )


def _row(copy: Manifest) -> tuple[str, ...]:
    size, rows = f"{copy.rows.size:,}", f"{copy.digest.rows:,}"
    return copy.name, copy.origin.bound, rows, size, f"{copy.proven_at:%Y-%m-%d %H:%M}"
