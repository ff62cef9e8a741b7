"""Proving a copy by its bytes: downloaded again and compared; committed by its manifest only then."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive import digest
from pgvigil.archive.ddl import create_table
from pgvigil.archive.manifest import Manifest, Stored, StoredRows, read_manifest, to_bytes
from pgvigil.archive.stream import Progress, Rows, column_list, read_back, show_share
from pgvigil.archive.view import view
from pgvigil.errors import ObjectExists, ObjectMissing, PreconditionFailed, StorageFailed
from pgvigil.objectstore import holds
from pgvigil.postgres import copy_in
from pgvigil.reports import Check, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.archive.copying import Copy
    from pgvigil.archive.digest import Digest
    from pgvigil.archive.manifest import Leaf
    from pgvigil.fleet import S3Settings
    from pgvigil.objectstore import ObjectStore, StoredObject
    from pgvigil.postgres import Connection

# What tells damaged rows.
_CONTENT = frozenset({"copy.there", "copy.sha256", "copy.size", "copy.digest", "copy.stored"})


def prove(
    store: ObjectStore, copy: Copy, settings: S3Settings, on_progress: Callable[[Progress], None]
) -> list[Proven]:
    """Download every object and compare everything with what PostgreSQL said and what was sent."""
    leaves = copy.manifest.leaves
    proven = [
        _prove_leaf(store, copy, leaf, settings, partial(show_share, on_progress, number, len(leaves)))
        for number, leaf in enumerate(leaves)
    ]
    if copy.manifest.tree:
        total = digest.Digest.of_tables(each.digest for each in proven if each.digest)
        proven.append(Proven(None, (_equal("copy.tree", str(copy.manifest.digest), str(total)),), total))
    if copy.manifest.view:
        proven.append(Proven(None, (_check_view(store, copy.manifest),)))
    return proven


def _check_view(store: ObjectStore, manifest: Manifest) -> Check:
    wanted = view(manifest.shape.name, manifest.leaves)
    is_equal = store.get(manifest.view) == wanted.encode()
    return _check("copy.view", "the view as it was written", manifest.view, is_equal=is_equal)


@dataclass(frozen=True)
class Proven:
    """What reading back one leaf showed, or with no leaf all of them together."""

    leaf: Leaf | None
    checks: tuple[Check, ...]
    digest: Digest | None = None

    @property
    def damaged(self) -> tuple[str, ...]:
        """The addresses of what does not have the content any more that was stored."""
        if self.leaf is None:
            return ()
        stored = self.leaf.stored
        refuted = {check.id for check in self.checks if check.verdict is Verdict.REFUTED}
        rows = (stored.rows.uri,) if refuted & _CONTENT else ()
        return rows + (stored.parquet_uris if "copy.parquet" in refuted else ())


def _prove_leaf(
    store: ObjectStore,
    copy: Copy,
    leaf: Leaf,
    settings: S3Settings,
    on_progress: Callable[[Progress], None],
) -> Proven:
    rows, expected = leaf.stored.rows, leaf.stored.digest
    total = max(1, rows.text_size)

    def show(done: int) -> None:
        percent = min(100.0, 100 * done / total)
        on_progress(Progress(percent=percent, text=f"read back {percent:.0f} %"))

    try:
        got = read_back(Rows(store, rows.uri, expected.blocks, rows.version_id), show)
    except ObjectMissing as error:
        check = _check("copy.there", "the object is in the store", error.message, is_equal=False)
        return Proven(leaf, (check,))
    except StorageFailed as error:
        if error.context.get("s3_code") != "ContentAltered":
            raise
        return Proven(leaf, (_check("copy.sha256", rows.sha256, error.message, is_equal=False),))
    checks = (
        _equal("copy.sha256", rows.sha256, got.sha256),
        _equal("copy.size", f"{rows.text_size} bytes of text", f"{got.text_size} bytes of text"),
        _equal("copy.digest", f"{expected} in PostgreSQL", f"{got.digest} in PostgreSQL"),
        *_check_dress(store, copy, rows, settings),
        *_check_parquet(store, leaf),
    )
    return Proven(leaf, checks, got.digest)


def _check_parquet(store: ObjectStore, leaf: Leaf) -> list[Check]:
    """Download the Parquet files, if there are any, and compare what they hold with PostgreSQL's digest."""
    copy = leaf.stored.parquet
    if copy is None:
        return []
    from pgvigil.archive import parquet  # noqa: PLC0415 - large: loaded by those alone who want it

    try:
        found = str(parquet.read_back(store, copy, leaf.shape))
    except ObjectMissing as error:
        found = error.message
    return [_equal("copy.parquet", str(copy.digest), found)]


def _check_dress(store: ObjectStore, copy: Copy, rows: StoredRows, settings: S3Settings) -> list[Check]:
    """Compare what the store says of an object with what the settings ask for."""
    head = store.head(rows.uri)
    checks = [_equal("copy.stored", _marks(rows), _marks(head))]
    if settings.sse:
        wanted = settings.kms_key_id or ""
        told = f"{settings.sse} {wanted}".strip(), f"{head.sse} {head.kms_key_id}".strip()
        is_equal = head.sse == settings.sse and _is_key(wanted, head.kms_key_id)
        checks.append(_check("copy.encryption", *told, is_equal=is_equal))
    if settings.storage_class and not copy.is_committed:  # later a rule of the bucket may move it on
        checks.append(_equal("copy.class", settings.storage_class, head.storage_class))
    if rows.lock:
        told = str(rows.lock), str(head.lock or "no lock")
        checks.append(_check("copy.lock", *told, is_equal=holds(head.lock, rows.lock)))
    return checks


def _marks(stored: StoredRows | StoredObject) -> str:
    """Tell what another object at the same address would have otherwise."""
    return f"{stored.size} bytes, ETag {stored.etag}, version {stored.version_id}"


def _is_key(wanted: str, found: str) -> bool:
    """Tell whether the store names the wanted key: it answers with an ARN, which tells no alias."""
    if "alias/" in wanted:
        return bool(found)
    return wanted == "" or found.rpartition("/")[2] == wanted.rpartition("/")[2]


def _equal(name: str, expected: str, actual: str) -> Check:
    return _check(name, expected, actual, is_equal=expected == actual)


def _check(name: str, expected: str, actual: str, *, is_equal: bool) -> Check:
    verdict = Verdict.VERIFIED if is_equal else Verdict.REFUTED
    return Check(id=name, verdict=verdict, expected=expected, actual=actual)


def compare_reloaded(session: Connection, store: ObjectStore, copy: Copy, leaf: Leaf) -> Check:
    """Load a leaf's copy into a temporary table and compare it with the original both ways."""
    shape = leaf.shape
    digest.pin(session, copy.manifest.origin.encoding)
    bare = shape.model_copy(update={"options": (), "is_unlogged": False})
    scratch = sql.Identifier("pg_temp", f"pgvigil_{leaf.relation}")
    session.execute(create_table(bare, scratch))
    columns = column_list(shape)
    load = sql.SQL("COPY {} ({}) FROM STDIN").format(scratch, columns)
    copy_in(session, load, Rows(store, leaf.stored.rows.uri))
    left = _difference(session, shape.table, scratch, columns)
    right = _difference(session, scratch, shape.table, columns)
    session.execute(sql.SQL("DROP TABLE {}").format(scratch))
    return _equal(
        "copy.reloaded", "0 rows more here, 0 more there", f"{left} rows more here, {right} more there"
    )


def _difference(
    session: Connection, one: sql.Identifier, other: sql.Identifier, columns: sql.Composed
) -> int:
    # Types without equality (json, xml, point) have none here either: rows are compared by their text.
    statement = sql.SQL(
        "SELECT count(*) AS rows FROM (SELECT ROW({c})::text FROM {one}"
        " EXCEPT ALL SELECT ROW({c})::text FROM {other}) AS more"
    ).format(c=columns, one=one, other=other)
    row = session.execute(statement).fetchone()
    return int(row["rows"]) if row else -1


def seal(store: ObjectStore, copy: Copy) -> Copy:
    """Finish the manifest of a copy that was proven; what it will be as an object is known by its hash."""
    proven = copy.manifest.model_copy(update={"proven_at": datetime.now(tz=UTC)})
    manifest = proven.with_stored({leaf.relation: _dressed(store, leaf.stored) for leaf in proven.leaves})
    return replace(copy, manifest=manifest, sha256=hashlib.sha256(to_bytes(manifest)).hexdigest())


def commit(store: ObjectStore, copy: Copy) -> Manifest:
    """Write the manifest of a copy that was sealed: from now on the copy counts.

    The write is conditional. A manifest that is there already after a lost answer is our own if it is equal.
    """
    data = to_bytes(copy.manifest)
    try:
        store.put(
            copy.place.manifest,
            data,
            content_type="application/json",
            only_if_absent=True,
            lock=copy.place.object_lock,
        )
    except ObjectExists:
        if store.get(copy.place.manifest) != data:
            raise
    return read_manifest(store, copy.place.manifest, copy.sha256)


def _dressed(store: ObjectStore, stored: Stored) -> Stored:
    """Add what the store says of the object with the rows, which must be the one that was sent."""
    head = _require(store, stored.rows)
    told = {"sse": head.sse, "storage_class": head.storage_class}
    return stored.model_copy(update={"rows": stored.rows.model_copy(update=told)})


def require(store: ObjectStore, uri: str | None, sha256: str | None) -> Manifest:
    """Return a manifest; raises StorageFailed unless it and its rows are in the store now, unreplaced.

    The hash is that on record in the database.
    """
    if uri is None or sha256 is None:
        raise PreconditionFailed("no copy was proven", hint="plan again")
    manifest = read_manifest(store, uri, sha256)
    for leaf in manifest.leaves:
        _require(store, leaf.stored.rows)
    return manifest


def _require(store: ObjectStore, rows: StoredRows) -> StoredObject:
    head = store.head(rows.uri)
    if _marks(head) != _marks(rows):
        raise StorageFailed(
            f"{rows.uri} has {_marks(head)}; its manifest says {_marks(rows)}",
            hint="somebody wrote over it: see the bucket's log",
            s3_code="ContentAltered",
        )
    return head
