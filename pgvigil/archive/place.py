"""Where a table's copy lies in the store: names as they are, each in a folder of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from pgvigil.objectstore import join

if TYPE_CHECKING:
    from uuid import UUID

MANIFEST = "manifest.json"
HIVE_KEY = "pgvigil_partition"  # a column of this name appears in queries of the files


def folder(prefix: str, *names: str) -> str:
    """Return the folder of names below a prefix, such as cluster, database, schema, table, partition.

    Every name is escaped for itself, so `a/b` and `a`, `b` never meet, and ends with a slash.
    """
    return join(prefix, *map(_escape, names)) + "/"


def _escape(name: str) -> str:
    escaped = quote(name, safe="")
    # Some proxies resolve these as directories.
    return escaped.replace(".", "%2E") if escaped in {".", ".."} else escaped


def manifest_uri(place: str, copy: UUID) -> str:
    """Return the address of a copy's manifest in its partition's folder."""
    return f"{place}{copy}/{MANIFEST}"


def data_uri(place: str, copy: UUID, attempt: UUID, relation: int | None = None) -> str:
    """Return the address of the rows as one attempt writes them; the manifest names the one that counts.

    In a tree each leaf has its own, told apart by its OID, since two of its names might make a key too long.
    """
    leaf = "" if relation is None else f"-{relation}"
    return f"{place}{copy}/{attempt}{leaf}.copy.zst"


def parquet_uri(place: str, copy: UUID, attempt: UUID, leaf: tuple[str, str], number: int) -> str:
    """Return the address of a Parquet file, in the hive layout: the folder tells the partition."""
    partition = quote(".".join(leaf), safe="")
    return f"{place}{copy}/parquet/{HIVE_KEY}={partition}/{attempt}-{number:05}.parquet"


def view_uri(place: str, copy: UUID, attempt: UUID) -> str:
    """Return the address of the statement that makes a view of a copy's Parquet files."""
    return f"{place}{copy}/parquet/{attempt}-view.sql"
