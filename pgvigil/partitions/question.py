"""The question whether tables may be dropped: what would go, and what proves that nothing is lost with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.pages import cell, code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.archive.manifest import Manifest


def ask(what: str, digest: str, copies: Sequence[Manifest]) -> str:
    """Render plan and proof as Markdown, narrow enough for the dialog in which Prefect shows it."""
    listed = "\n".join(map(_line, copies))
    return (
        f"**Drop from {cell(what)}?** Plan {code(digest)}\n\n{listed}\n\n"
        "Rows and digest of each copy were read back from S3 and equal the table's, to which nobody could "
        "write since. Before the drop they are read back once more. The report has the rest."
    )


def _line(copy: Manifest) -> str:
    bound = copy.origin.bound.removeprefix("FOR VALUES ")
    return (
        f"- **{cell(copy.name)}**, {cell(bound)}: {copy.digest.rows:,} rows, {copy.size:,} bytes in S3, "
        f"proven {copy.proven_at:%Y-%m-%d %H:%M} UTC"
    )
