"""The question whether tables may be dropped: what would go, and what proves that nothing is lost with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.pages import cell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.archive.manifest import Manifest


def ask(what: str, copies: Sequence[Manifest]) -> str:
    """Render plan and proof as Markdown, narrow enough for the dialog in which Prefect shows it."""
    listed = "\n".join(map(_line, copies))
    return (
        f"### Drop from {cell(what)}?\n\n{listed}\n\n"
        "Each copy was read back from S3: its rows and digest are those that PostgreSQL computed. Nobody "
        "could write to the tables since before the copy. Before the drop each copy is read back once more. "
        "Where they are stands in the report, in the run's Artifacts tab."
    )


def _line(copy: Manifest) -> str:
    bound = copy.origin.bound.removeprefix("FOR VALUES ")
    return (
        f"- **{cell(copy.name)}**, {cell(bound)}: {copy.digest.rows:,} rows, {copy.rows.size:,} bytes in S3, "
        f"proven {copy.proven_at:%Y-%m-%d %H:%M} UTC, digest `{copy.digest.value}`"
    )
