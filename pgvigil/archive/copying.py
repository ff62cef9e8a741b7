"""One table's copy: made, read back, proven, committed by its manifest, found again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import count
from typing import TYPE_CHECKING, Any

import zstandard
from psycopg import sql

from pgvigil import __version__
from pgvigil.archive import blocks, digest, place
from pgvigil.archive.manifest import (
    Manifest,
    Node,
    Origin,
    ParquetCopy,
    Stored,
    StoredRows,
    read_manifest,
    to_bytes,
)
from pgvigil.archive.shape import create_table
from pgvigil.archive.stream import Meter, Progress, Rows, column_list, export, read_back
from pgvigil.archive.tree import read_tree, tree_ddl, without_bound
from pgvigil.archive.view import view
from pgvigil.errors import ConfigError, ObjectExists, ObjectMissing, PreconditionFailed, StorageFailed
from pgvigil.objectstore import ObjectLock, holds
from pgvigil.postgres import copy_in, translated
from pgvigil.reports import Check, Verdict
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from pgvigil.archive.digest import Digest
    from pgvigil.archive.manifest import Leaf
    from pgvigil.archive.parquet import Layout
    from pgvigil.archive.tree import Branch
    from pgvigil.fleet import S3Settings
    from pgvigil.objectstore import ObjectStore
    from pgvigil.partitions.facts import Entry, Name
    from pgvigil.policies.partitions import ObjectLockPolicy, ParquetPolicy, PartitionPolicy
    from pgvigil.postgres import Connection

_CONTENT = frozenset({"copy.there", "copy.sha256", "copy.size", "copy.digest"})  # tell damaged rows


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
    parquet: ParquetPolicy | None = None

    @property
    def manifest(self) -> str:
        """The address of the manifest: the commit point of the copy, wherever it was when that was made."""
        return self.entry.manifest or place.manifest_uri(self.folder, self.id)

    @classmethod
    def of(cls, policy: PartitionPolicy, cluster: str, database: str, parent: Name, entry: Entry) -> Place:
        """Find the place of an entry; raises ConfigError without an archive."""
        own = (entry.name.schema_, entry.name.name)
        folder = place.folder(table_folder(policy, cluster, database, parent), *own)
        return cls(folder, entry.id, cluster, database, parent, entry, policy.lock, policy.parquet)


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


def _unheard(relation: int, stored: Stored) -> None:
    """Tell nobody."""


def find(store: ObjectStore, where: Place) -> Copy | None:
    """Return the committed copy of a departure, if there is one."""
    try:
        manifest = read_manifest(store, where.manifest)
    except ObjectMissing as error:
        if error.context.get("s3_code") == "NoSuchBucket":
            raise
        return None
    return Copy(where, manifest, is_committed=True)


def make(  # noqa: PLR0913 - both ends, and who hears of it
    sessions: Sessions,
    store: ObjectStore,
    where: Place,
    run_id: UUID,
    on_progress: Callable[[Progress], None],
    on_leaf: Callable[[int, Stored], None] = _unheard,
) -> Copy:
    """Stream the table, or every leaf of a tree, into new objects; PostgreSQL computes the digests beside it.

    What earlier tries left unfinished is removed first; the leaves that they finished are taken as they are.
    `on_leaf` hears of each leaf that is finished. The tables are fenced, so all sessions read the same rows.
    """
    done = clear(store, where)
    session = sessions.export
    with translated(sessions.dsn):
        origin = session.execute(query("archive", "origin")).fetchall()[0]
        digest.pin(session)
        tree = without_bound(read_tree(session, where.entry.relation), where.entry.condition)
        for each in (sessions.export, sessions.digest):
            digest.pin(each, origin["encoding"])
    leaves = [branch for branch in tree if branch.is_leaf]
    waiting = [leaf for leaf in leaves if leaf.relation not in done]
    with translated(sessions.dsn):
        layouts = survey(session, waiting, origin["encoding"], where.parquet)
    for leaf in waiting:
        show = partial(_show_share, on_progress, leaves.index(leaf), len(leaves))
        job = _Job(sessions, store, where, run_id, origin["encoding"], show)
        done[leaf.relation] = _copy_leaf(job, leaf, layouts.get(leaf.relation))
        on_leaf(leaf.relation, done[leaf.relation])
    manifest = _manifest(where, run_id, origin, tree, done)
    return Copy(where, _with_view(store, where, manifest), is_committed=False)


def survey(
    session: Connection, leaves: Iterable[Branch], encoding: str, policy: ParquetPolicy | None
) -> dict[int, Layout]:
    """Say how each table becomes Parquet, if it shall; raises PreconditionFailed for what that would change.

    The session's settings are those of `digest.pin`.
    """
    if policy is None:
        return {}
    from pgvigil.archive import parquet  # noqa: PLC0415 - large: loaded by those alone who want it

    return {leaf.relation: parquet.survey(session, leaf.shape, encoding, policy) for leaf in leaves}


def preflight(session: Connection, relation: int, policy: ParquetPolicy) -> None:
    """Raise PreconditionFailed, naming the columns, where Parquet would change values of a table or tree."""
    origin = session.execute(query("archive", "origin")).fetchall()[0]
    digest.pin(session)
    leaves = (branch for branch in read_tree(session, relation) if branch.is_leaf)
    survey(session, leaves, origin["encoding"], policy)


def _with_view(store: ObjectStore, where: Place, manifest: Manifest) -> Manifest:
    """Write the view over the Parquet files, if there are any, and name it."""
    if not any(leaf.stored.parquet for leaf in manifest.leaves):
        return manifest
    uri = place.view_uri(where.folder, where.id, manifest.run_id)
    text = view(manifest.shape.name, manifest.leaves)
    lock = _object_lock(where.lock)
    store.put(uri, text.encode(), content_type="application/sql", only_if_absent=True, lock=lock)
    return manifest.model_copy(update={"view": uri})


@dataclass(frozen=True)
class _Job:
    sessions: Sessions
    store: ObjectStore
    place: Place
    run_id: UUID
    encoding: str
    on_progress: Callable[[Progress], None]


def _show_share(on_progress: Callable[[Progress], None], number: int, count: int, now: Progress) -> None:
    whole = now.text if count == 1 else f"table {number + 1} of {count}: {now.text}"
    on_progress(Progress(percent=(100 * number + now.percent) / count, text=whole))


def _copy_leaf(job: _Job, leaf: Branch, layout: Layout | None) -> Stored:
    """Stream one table into a new object, while PostgreSQL computes its digest beside it."""
    sessions, where, shape = job.sessions, job.place, leaf.shape
    with translated(sessions.dsn):
        size = sessions.export.execute(query("archive", "table"), {"oid": leaf.relation}).fetchall()[0][
            "size"
        ]
    only = leaf.relation == where.entry.relation
    uri = place.data_uri(where.folder, where.id, job.run_id, None if only else leaf.relation)
    meter = Meter(size, job.on_progress)
    lock = _object_lock(where.lock)
    with ThreadPoolExecutor(1, "pgvigil-digest") as pool:
        computing = pool.submit(
            blocks.compute, sessions.digest, shape.table, shape.stored_columns, job.encoding
        )
        try:
            with translated(sessions.dsn):
                sent = export(sessions.export, shape, job.store, uri, meter=meter, lock=lock)
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
    return Stored(rows=rows, digest=found, parquet=_copy_parquet(job, layout) if layout else None)


def _copy_parquet(job: _Job, layout: Layout) -> ParquetCopy:
    """Store one table once more as Parquet, while PostgreSQL computes the digest of what goes into it."""
    from pgvigil.archive import parquet  # noqa: PLC0415 - large: loaded by those alone who want it

    sessions, where, shape = job.sessions, job.place, layout.shape
    uris = (
        place.parquet_uri(where.folder, where.id, job.run_id, (shape.schema_, shape.name), number)
        for number in count()
    )
    with ThreadPoolExecutor(1, "pgvigil-digest") as pool, translated(sessions.dsn):
        digest.pin(sessions.export, "UTF8")
        computing = pool.submit(
            digest.compute_lines, sessions.digest, shape.table, parquet.line(layout), "UTF8"
        )
        try:
            files = parquet.write(sessions.export, layout, job.store, uris, _object_lock(where.lock))
            found = computing.result()
        except BaseException:
            sessions.digest.cancel_safe()
            raise
        digest.pin(sessions.export, job.encoding)
    return ParquetCopy(files=files, digest=found, digest_algorithm=parquet.ALGORITHM, as_text=layout.as_text)


def _manifest(
    where: Place,
    run_id: UUID,
    origin: dict[str, Any],
    tree: tuple[Branch, ...],
    done: dict[int, Stored],
) -> Manifest:
    root, *below = tree
    is_plain = root.is_leaf and not below
    stored = done.get(root.relation)
    nodes = [Node(**dict(branch), stored=done.get(branch.relation)) for branch in tree]
    return Manifest(
        id=where.id,
        run_id=run_id,
        origin=_origin(where, origin),
        shape=root.shape,
        ddl=tree_ddl(tree),
        rows=stored.rows if stored else None,
        digest=_whole(stored, [node.stored for node in nodes if node.stored]),
        digest_algorithm=blocks.ALGORITHM,
        parquet=stored.parquet if stored else None,
        tree=() if is_plain else tuple(nodes),
        settings={**digest.SETTINGS, "client_encoding": origin["encoding"]},
        exported_at=origin["now"],
        proven_at=datetime.now(tz=UTC),
        tools=_tools(where),
    )


def _whole(root: Stored | None, leaves: list[Stored]) -> Digest:
    """Give the digest of the table, or of all leaves of a tree together."""
    return root.digest if root else digest.Digest.of_tables(each.digest for each in leaves)


def _tools(where: Place) -> dict[str, str]:
    tools = {"pgvigil": __version__, "zstandard": zstandard.__version__}
    return tools | ({"pyarrow": version("pyarrow")} if where.parquet else {})


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


def clear(store: ObjectStore, where: Place) -> dict[int, Stored]:
    """Remove what killed runs left of a copy that was never committed: unfinished uploads, orphaned objects.

    Returns the leaves that an earlier run finished and that are still there. The caller holds the table's
    lock and looked for the manifest, so nobody else writes there.
    """
    prefix = f"{where.folder}{where.id}/"
    for upload in store.list_uploads(prefix):
        store.abort_upload(upload)
    there = {item.uri: item.size for item in store.list(prefix)}
    if where.manifest in there:
        raise PreconditionFailed(
            f"{where.manifest} appeared meanwhile", hint="another run committed it; run again"
        )
    done = {relation: each for relation, each in where.entry.leaves.items() if _is_whole(each, where, there)}
    kept = {uri for each in done.values() for uri in each.uris}
    for uri in there.keys() - kept:
        store.delete(uri)
    return done


def _is_whole(stored: Stored, where: Place, there: dict[str, int]) -> bool:
    """Tell whether all of a finished leaf is still there, and all that is wanted now."""
    if (stored.parquet is None) != (where.parquet is None) or not _is_locked(stored.rows, where.lock):
        return False
    sizes = {stored.rows.uri: stored.rows.size}
    sizes |= {file.uri: file.size for file in (stored.parquet.files if stored.parquet else ())}
    return all(there.get(uri) == size for uri, size in sizes.items())


def _is_locked(rows: StoredRows, wanted: ObjectLockPolicy | None) -> bool:
    """Tell whether rows were stored under such a lock; a retention counts from their own upload."""
    kind = (rows.lock.mode, rows.lock.legal_hold) if rows.lock else (None, False)
    return wanted is None or kind == (wanted.mode, wanted.legal_hold)


def prove(
    store: ObjectStore, copy: Copy, settings: S3Settings, on_progress: Callable[[Progress], None]
) -> list[Proven]:
    """Download every object and compare everything with what PostgreSQL said and what was sent."""
    leaves = copy.manifest.leaves
    proven = [
        _prove_leaf(store, copy, leaf, settings, partial(_show_share, on_progress, number, len(leaves)))
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
        got = read_back(store, rows.uri, show, expected.blocks)
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


def compare_reloaded(session: Connection, store: ObjectStore, copy: Copy, leaf: Leaf) -> Check:
    """Load a leaf's copy into a temporary table and compare it with the original both ways."""
    shape = leaf.shape
    digest.pin(session, copy.manifest.origin.encoding)
    bare = shape.model_copy(update={"options": ()})
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


def commit(store: ObjectStore, copy: Copy, lock: ObjectLockPolicy | None) -> Manifest:
    """Write the manifest of a copy that was proven: from now on the copy counts.

    The write is conditional. A manifest that is there already after a lost answer is our own if it is equal.
    """
    proven = copy.manifest.model_copy(update={"proven_at": datetime.now(tz=UTC)})
    manifest = proven.with_stored({leaf.relation: _dressed(store, leaf.stored) for leaf in proven.leaves})
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


def _dressed(store: ObjectStore, stored: Stored) -> Stored:
    """Add what the store says of the object with the rows."""
    head = store.head(stored.rows.uri)
    told = {
        "sse": head.sse,
        "storage_class": head.storage_class,
        "version_id": head.version_id,
        "etag": head.etag,
    }
    return stored.model_copy(update={"rows": stored.rows.model_copy(update=told)})


def require(store: ObjectStore, manifest_uri: str | None) -> None:
    """Raise StorageFailed unless manifest and rows are in the store at this moment, unreplaced."""
    if manifest_uri is None:
        raise PreconditionFailed("no copy was proven", hint="plan again")
    for leaf in read_manifest(store, manifest_uri).leaves:
        _require(store, leaf.stored.rows)


def _require(store: ObjectStore, rows: StoredRows) -> None:
    head = store.head(rows.uri)
    found = f"{head.size} bytes, ETag {head.etag}, version {head.version_id}"
    expected = f"{rows.size} bytes, ETag {rows.etag}, version {rows.version_id}"
    if found != expected:
        raise StorageFailed(
            f"{rows.uri} has {found}; its manifest says {expected}",
            hint="somebody wrote over it: see the bucket's log",
            s3_code="ContentAltered",
        )
