"""Where a table's copy lies in the store: names as they are, each in a folder of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from pgvigil.objectstore import join

if TYPE_CHECKING:
    from uuid import UUID

MANIFEST = "manifest.json"


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


def data_uri(place: str, copy: UUID, attempt: UUID) -> str:
    """Return the address of the rows as one attempt writes them; the manifest names the one that counts."""
    return f"{place}{copy}/{attempt}.copy.zst"
