"""The manifest: everything that is needed to trust a copy, and to rebuild the table from it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import Field, ValidationError

from pgvigil.archive.digest import Digest
from pgvigil.archive.shape import Shape
from pgvigil.archive.tree import Branch
from pgvigil.errors import StorageFailed
from pgvigil.objectstore import ObjectLock
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgvigil.objectstore import ObjectStore

MANIFEST_VERSION = 3  # 1 had neither trees nor Parquet, 2 no fence; both are read as they are


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
    parent_relation: int | None = None
    parent_columns: dict[str, int] = Field(default_factory=dict)


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


class ParquetFile(Frozen):
    """One object with some of a table's rows, for queries in place."""

    uri: str
    version_id: str | None
    sha256: str
    size: int
    rows: int


class ParquetCopy(Frozen):
    """The same rows as Parquet; `as_text` names the columns that hold PostgreSQL's text of the value."""

    files: tuple[ParquetFile, ...]
    digest: Digest
    digest_algorithm: str
    as_text: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes in the store."""
        return sum(file.size for file in self.files)


class Stored(Frozen):
    """What is in the store of one table's rows; `generated` is the digest of columns that COPY leaves out."""

    rows: StoredRows
    digest: Digest
    parquet: ParquetCopy | None = None
    generated: Digest | None = None

    @property
    def uris(self) -> tuple[str, ...]:
        """The addresses of its objects."""
        return (self.rows.uri, *self.parquet_uris)

    @property
    def parquet_uris(self) -> tuple[str, ...]:
        """The addresses of its Parquet files."""
        return tuple(file.uri for file in self.parquet.files) if self.parquet else ()


class Node(Branch):
    """One table of an archived tree; without `stored` it is partitioned itself."""

    stored: Stored | None = None


class Leaf(Frozen):
    """A table with rows, and where they are."""

    relation: int
    shape: Shape
    stored: Stored

    @property
    def name(self) -> str:
        """Schema and name."""
        return f"{self.shape.schema_}.{self.shape.name}"


class Manifest(Frozen):
    """One proven copy of one partition, or of a tree of partitions.

    `fence` is the hash of what kept writers off while it was made. A tree has its tables in `tree`, parents
    first; `digest` is then the hash of those of its leaves.
    """

    manifest_version: int = MANIFEST_VERSION
    id: UUID
    run_id: UUID
    fence: str = ""
    origin: Origin
    shape: Shape
    ddl: tuple[str, ...]
    rows: StoredRows | None = None
    digest: Digest
    parquet: ParquetCopy | None = None
    generated: Digest | None = None
    tree: tuple[Node, ...] = ()
    view: str = ""
    digest_algorithm: str
    settings: dict[str, str]
    exported_at: datetime
    proven_at: datetime
    tools: dict[str, str]

    @property
    def name(self) -> str:
        """Schema and name of the partition."""
        return f"{self.shape.schema_}.{self.shape.name}"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The tables, parents first; a plain table is a tree of one."""
        if self.tree or self.rows is None:
            return self.tree
        stored = Stored(rows=self.rows, digest=self.digest, parquet=self.parquet, generated=self.generated)
        return (Node(relation=self.origin.relation, shape=self.shape, stored=stored),)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The tables that hold rows."""
        return tuple(
            Leaf(relation=node.relation, shape=node.shape, stored=node.stored)
            for node in self.nodes
            if node.stored is not None
        )

    @property
    def size(self) -> int:
        """Bytes of the exact copy in the store."""
        return sum(leaf.stored.rows.size for leaf in self.leaves)

    @property
    def text_size(self) -> int:
        """Bytes of the rows as text."""
        return sum(leaf.stored.rows.text_size for leaf in self.leaves)

    def with_stored(self, stored: Mapping[int, Stored]) -> Manifest:
        """Give the manifest with other facts of what is stored, by relation."""
        if self.tree:
            tree = (node.model_copy(update={"stored": stored.get(node.relation)}) for node in self.tree)
            return self.model_copy(update={"tree": tuple(tree)})
        one = stored[self.origin.relation]
        return self.model_copy(update=dict(one))

    def outline(self) -> dict[str, Any]:
        """Give what the audit log remembers: everything but shapes, DDL and the lengths of blocks."""
        bare: dict[str, Any] = {"digest": {"blocks"}, "parquet": {"digest": {"blocks"}}}
        heavy = {"shape", "ddl", "settings", "tree"}
        outline = self.model_dump(mode="json", exclude=dict.fromkeys(heavy, True) | bare)
        if self.tree:
            outline["leaves"] = {
                leaf.name: leaf.stored.model_dump(mode="json", exclude=bare) for leaf in self.leaves
            }
        return outline


def to_bytes(manifest: Manifest) -> bytes:
    """Render a manifest with its own checksum."""
    body = manifest.model_dump(mode="json")
    return json.dumps({"sha256": _checksum(body), "manifest": body}, indent=1, ensure_ascii=False).encode()


def _checksum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def read_manifest(store: ObjectStore, uri: str, committed: str | None = None) -> Manifest:
    """Read a manifest back; raises StorageFailed when it is not what was written.

    `committed` is the SHA-256 that the database has on record, empty for none: who can write to the bucket
    could replace a manifest together with its own checksum.
    """
    data = store.get(uri)
    try:
        document = json.loads(data)
        body, wanted = document["manifest"], document["sha256"]
        found = _checksum(body)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _altered(uri, f"it is no manifest: {error}") from error
    if found != wanted:
        raise _altered(uri, f"its content has checksum {found}, expected {wanted}")
    if committed is not None and committed != (own := hashlib.sha256(data).hexdigest()):
        raise _altered(uri, f"it has sha256 {own}, the database has {committed or 'none'} on record")
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
