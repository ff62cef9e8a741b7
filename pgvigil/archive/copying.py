"""One table's copy: made, read back, proven, committed by its manifest, found again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import zstandard
from psycopg import sql

from pgvigil import __version__
from pgvigil.archive import blocks, digest, place
from pgvigil.archive.manifest import Manifest, Origin, StoredRows, read_manifest, to_bytes
from pgvigil.archive.shape import create_table, ddl, read_shape
from pgvigil.archive.stream import Meter, Progress, Rows, column_list, export, read_back
from pgvigil.errors import ConfigError, ObjectExists, ObjectMissing, PreconditionFailed, StorageFailed
from pgvigil.objectstore import ObjectLock, holds
from pgvigil.postgres import copy_in, translated
from pgvigil.reports import Check, Verdict
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from pgvigil.fleet import S3Settings
    from pgvigil.objectstore import ObjectStore
    from pgvigil.partitions.facts import Entry, Name
    from pgvigil.policies.partitions import ObjectLockPolicy, PartitionPolicy
    from pgvigil.postgres import Connection

CONTENT = ("copy.there", "copy.sha256", "copy.size", "copy.digest")  # the checks that tell a damaged copy


@dataclass(frozen=True)
class Place:
    """Where one departure's copy belongs, and what it is a copy of."""

    folder: str
    id: UUID
    cluster: str
    database: str
    parent: Name
    entry: Entry
    lock: ObjectLockPolicy | None

    @property
    def manifest(self) -> str:
        """The address of the manifest: the commit point of the copy, wherever it was when that was made."""
        return self.entry.manifest or place.manifest_uri(self.folder, self.id)

    @classmethod
    def of(cls, policy: PartitionPolicy, cluster: str, database: str, parent: Name, entry: Entry) -> Place:
        """Find the place of an entry; raises ConfigError without an archive."""
        own = (entry.name.schema_, entry.name.name)
        folder = place.folder(table_folder(policy, cluster, database, parent), *own)
        return cls(folder, entry.id, cluster, database, parent, entry, policy.lock)


def table_folder(policy: PartitionPolicy, cluster: str, database: str, parent: Name) -> str:
    """Return the folder of all copies of a table's partitions; raises ConfigError without an archive."""
    if policy.archive is None:
        raise ConfigError(
            f"'{policy.table}' has no archive", hint="set archive: s3://bucket/prefix in the fleet file"
        )
    return place.folder(policy.archive, cluster, database, parent.schema_, parent.name)


@dataclass(frozen=True)
class Sessions:
    """Two sessions that read the same fenced table."""

    export: Connection
    digest: Connection
    dsn: str


@dataclass(frozen=True)
class Copy:
    """A copy with the manifest that it gets, or has, if it is proven."""

    place: Place
    manifest: Manifest
    is_committed: bool
    seconds: float = 0.0


def find(store: ObjectStore, where: Place) -> Copy | None:
    """Return the committed copy of a departure, if there is one."""
    try:
        manifest = read_manifest(store, where.manifest)
    except ObjectMissing as error:
        if error.context.get("s3_code") == "NoSuchBucket":
            raise
        return None
    return Copy(where, manifest, is_committed=True)


def make(
    sessions: Sessions,
    store: ObjectStore,
    where: Place,
    run_id: UUID,
    on_progress: Callable[[Progress], None],
) -> Copy:
    """Stream the table into a new object, while PostgreSQL computes its digest beside it.

    What earlier tries left unfinished is removed first. The table is fenced, so both read the same rows.
    """
    clear(store, where)
    session = sessions.export
    with translated(sessions.dsn):
        origin = session.execute(query("archive", "origin")).fetchall()[0]
        digest.pin(session)
        shape = read_shape(session, where.entry.relation)
        size = session.execute(query("archive", "table"), {"oid": where.entry.relation}).fetchall()[0]["size"]
        for each in (sessions.export, sessions.digest):
            digest.pin(each, origin["encoding"])
    uri = place.data_uri(where.folder, where.id, run_id)
    meter = Meter(size, on_progress)
    lock = _object_lock(where.lock)
    with ThreadPoolExecutor(1, "pgvigil-digest") as pool:
        computing = pool.submit(
            blocks.compute, sessions.digest, shape.table, shape.stored_columns, origin["encoding"]
        )
        try:
            with translated(sessions.dsn):
                sent = export(session, shape, store, uri, meter=meter, lock=lock)
                found = computing.result()
        except BaseException:
            sessions.digest.cancel_safe()
            raise
    rows = StoredRows(
        uri=uri,
        version_id=sent.version_id,
        sha256=sent.sha256,
        size=sent.size,
        text_size=sent.text_size,
        lock=lock,
    )
    now = datetime.now(tz=UTC)
    manifest = Manifest(
        id=where.id,
        run_id=run_id,
        origin=_origin(where, origin),
        shape=shape,
        ddl=ddl(shape),
        rows=rows,
        digest=found,
        digest_algorithm=blocks.ALGORITHM,
        settings={**digest.SETTINGS, "client_encoding": origin["encoding"]},
        exported_at=origin["now"],
        proven_at=now,
        tools={"pgvigil": __version__, "zstandard": zstandard.__version__},
    )
    return Copy(where, manifest, is_committed=False)


def _origin(where: Place, found: dict[str, object]) -> Origin:
    return Origin(
        cluster=where.cluster,
        database=where.database,
        system_id=str(found["system_id"]),
        server_version=str(found["version"]),
        encoding=str(found["encoding"]),
        parent_schema=where.parent.schema_,
        parent=where.parent.name,
        relation=where.entry.relation,
        bound=where.entry.bound,
        condition=where.entry.condition,
        lsn=str(found["lsn"]),
    )


def _object_lock(wanted: ObjectLockPolicy | None) -> ObjectLock | None:
    if wanted is None:
        return None
    until = datetime.now(tz=UTC) + wanted.retain if wanted.retain else None
    return ObjectLock(mode=wanted.mode, retain_until=until, legal_hold=wanted.legal_hold)


def clear(store: ObjectStore, where: Place) -> None:
    """Remove what killed runs left of a copy that was never committed: unfinished uploads, orphaned objects.

    The caller holds the table's lock and looked for the manifest, so nobody else writes there.
    """
    prefix = f"{where.folder}{where.id}/"
    for upload in store.list_uploads(prefix):
        store.abort_upload(upload)
    for item in list(store.list(prefix)):
        if item.uri == where.manifest:
            raise PreconditionFailed(
                f"{where.manifest} appeared meanwhile", hint="another run committed it; run again"
            )
        store.delete(item.uri)


def prove(
    store: ObjectStore, copy: Copy, settings: S3Settings, on_progress: Callable[[Progress], None]
) -> list[Check]:
    """Download the copy and compare everything with what PostgreSQL said and what was sent."""
    manifest = copy.manifest
    total = max(1, manifest.rows.text_size)

    def show(done: int) -> None:
        percent = min(100.0, 100 * done / total)
        on_progress(Progress(percent=percent, text=f"read back {percent:.0f} %"))

    try:
        got = read_back(store, manifest.rows.uri, show, manifest.digest.blocks)
    except ObjectMissing as error:
        return [_check("copy.there", "the object is in the store", error.message, is_equal=False)]
    except StorageFailed as error:
        if error.context.get("s3_code") != "ContentAltered":
            raise
        return [_check("copy.sha256", manifest.rows.sha256, error.message, is_equal=False)]
    return [
        _equal("copy.sha256", manifest.rows.sha256, got.sha256),
        _equal("copy.size", f"{manifest.rows.text_size} bytes of text", f"{got.text_size} bytes of text"),
        _equal("copy.digest", f"{manifest.digest} in PostgreSQL", f"{got.digest} in PostgreSQL"),
        *_check_dress(store, copy, settings),
    ]


def _check_dress(store: ObjectStore, copy: Copy, settings: S3Settings) -> list[Check]:
    """Compare what the store says of the object with what the settings ask for."""
    rows = copy.manifest.rows
    head = store.head(rows.uri)
    checks = [_equal("copy.stored", f"{rows.size} bytes", f"{head.size} bytes")]
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


def compare_reloaded(session: Connection, store: ObjectStore, copy: Copy) -> list[Check]:
    """Load the copy into a temporary table and compare it with the original both ways."""
    shape = copy.manifest.shape
    digest.pin(session, copy.manifest.origin.encoding)
    bare = shape.model_copy(update={"options": ()})
    session.execute(create_table(bare, sql.Identifier("pg_temp", shape.name)))
    scratch = sql.Identifier("pg_temp", shape.name)
    columns = column_list(shape)
    load = sql.SQL("COPY {} ({}) FROM STDIN").format(scratch, columns)
    copy_in(session, load, Rows(store, copy.manifest.rows.uri))
    left = _difference(session, shape.table, scratch, columns)
    right = _difference(session, scratch, shape.table, columns)
    return [
        _equal(
            "copy.reloaded", "0 rows more here, 0 more there", f"{left} rows more here, {right} more there"
        )
    ]


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


def commit(store: ObjectStore, copy: Copy, lock: ObjectLockPolicy | None) -> Manifest:
    """Write the manifest of a copy that was proven: from now on the copy counts.

    The write is conditional. A manifest that is there already after a lost answer is our own if it is equal.
    """
    rows = copy.manifest.rows
    head = store.head(rows.uri)
    manifest = copy.manifest.model_copy(
        update={
            "proven_at": datetime.now(tz=UTC),
            "rows": rows.model_copy(
                update={
                    "sse": head.sse,
                    "storage_class": head.storage_class,
                    "version_id": head.version_id,
                    "etag": head.etag,
                }
            ),
        }
    )
    data = to_bytes(manifest)
    try:
        store.put(
            copy.place.manifest,
            data,
            content_type="application/json",
            only_if_absent=True,
            lock=_object_lock(lock),
        )
    except ObjectExists:
        if store.get(copy.place.manifest) != data:
            raise
    return read_manifest(store, copy.place.manifest)


def require(store: ObjectStore, manifest_uri: str | None) -> None:
    """Raise StorageFailed unless manifest and rows are in the store at this moment, unreplaced."""
    if manifest_uri is None:
        raise PreconditionFailed("no copy was proven", hint="plan again")
    manifest = read_manifest(store, manifest_uri)
    head = store.head(manifest.rows.uri)
    found = f"{head.size} bytes, ETag {head.etag}, version {head.version_id}"
    expected = f"{manifest.rows.size} bytes, ETag {manifest.rows.etag}, version {manifest.rows.version_id}"
    if found != expected:
        raise StorageFailed(
            f"{manifest.rows.uri} has {found}; its manifest says {expected}",
            hint="somebody wrote over it: see the bucket's log",
            s3_code="ContentAltered",
        )
