"""The view over a copy's Parquet files, in the language of DuckDB."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.archive.manifest import Leaf


def view(name: str, leaves: Sequence[Leaf]) -> str:
    """Write the statement that lets DuckDB query the files in the store as one view."""
    uris = [file.uri for leaf in leaves if leaf.stored.parquet for file in leaf.stored.parquet.files]
    listed = ",\n    ".join("'" + uri.replace("'", "''") + "'" for uri in uris)
    quoted = '"' + name.replace('"', '""') + '"'
    return (
        "-- DuckDB: INSTALL httpfs; LOAD httpfs; and a SECRET for the store, then this.\n"
        f"CREATE OR REPLACE VIEW {quoted} AS\nSELECT * FROM read_parquet([\n    {listed}\n"
        "], hive_partitioning = true, union_by_name = true);\n"
    )
