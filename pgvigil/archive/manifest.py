"""The manifest: everything that is needed to trust a copy, and to rebuild the table from it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ValidationError

from pgvigil.archive.digest import Digest
from pgvigil.archive.shape import Shape
from pgvigil.errors import StorageFailed
from pgvigil.objectstore import ObjectLock
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from pgvigil.objectstore import ObjectStore

MANIFEST_VERSION = 1


class Origin(Frozen):
    """Where the rows come from."""

    cluster: str
    database: str
    system_id: str
    server_version: str
    encoding: str
    parent_schema: str
    parent: str
    relation: int
    bound: str
    condition: str
    lsn: str


class StoredRows(Frozen):
    """The object with the rows: COPY text format, compressed with zstd."""

    uri: str
    version_id: str | None
    sha256: str
    size: int
    text_size: int
    sse: str = ""
    storage_class: str = "STANDARD"
    etag: str = ""
    lock: ObjectLock | None = None


class Manifest(Frozen):
    """One proven copy of one partition."""

    manifest_version: int = MANIFEST_VERSION
    id: UUID
    run_id: UUID
    origin: Origin
    shape: Shape
    ddl: tuple[str, ...]
    rows: StoredRows
    digest: Digest
    digest_algorithm: str
    settings: dict[str, str]
    exported_at: datetime
    proven_at: datetime
    tools: dict[str, str]

    @property
    def name(self) -> str:
        """Schema and name of the partition."""
        return f"{self.shape.schema_}.{self.shape.name}"

    def outline(self) -> dict[str, Any]:
        """Give what the audit log remembers: everything but shape, DDL and the lengths of blocks."""
        outline = self.model_dump(mode="json", exclude={"shape", "ddl", "settings"})
        del outline["digest"]["blocks"]
        return outline


def to_bytes(manifest: Manifest) -> bytes:
    """Render a manifest with its own checksum."""
    body = manifest.model_dump(mode="json")
    return json.dumps({"sha256": _checksum(body), "manifest": body}, indent=1, ensure_ascii=False).encode()


def _checksum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_manifest(store: ObjectStore, uri: str) -> Manifest:
    """Read a manifest back; raises StorageFailed when it is not what was written."""
    data = store.get(uri)
    try:
        document = json.loads(data)
        body, wanted = document["manifest"], document["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _altered(uri, f"it is no manifest: {error}") from error
    if _checksum(body) != wanted:
        raise _altered(uri, f"its content has checksum {_checksum(body)}, expected {wanted}")
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        raise _altered(uri, f"this pgvigil cannot read it: {error.error_count()} fields") from error


def _altered(uri: str, what: str) -> StorageFailed:
    return StorageFailed(
        f"manifest {uri} cannot be trusted: {what}",
        hint="look for an older version of the object; a newer pgvigil may have written it",
        s3_code="ManifestAltered",
    )
