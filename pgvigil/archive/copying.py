"""One table's copy: made, or found again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import count
from typing import TYPE_CHECKING, Any

import zstandard

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
)
from pgvigil.archive.shape import read_numbers
from pgvigil.archive.stream import Meter, Progress, export, show_share
from pgvigil.archive.tree import held, read_tree, tree_ddl, without_bound
from pgvigil.archive.view import view
from pgvigil.errors import ObjectMissing, PreconditionFailed, StorageFailed
from pgvigil.postgres import translated
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from uuid import UUID

    from psycopg import sql

    from pgvigil.archive.digest import Digest
    from pgvigil.archive.parquet import Layout
    from pgvigil.archive.place import Place
    from pgvigil.archive.tree import Branch
    from pgvigil.objectstore import ObjectStore, StoredObject
    from pgvigil.policies.partitions import ObjectLockPolicy, ParquetPolicy
    from pgvigil.postgres import Connection


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
    sha256: str = ""
    seconds: float = 0.0


def _unheard(relation: int, stored: Stored) -> None:
    """Tell nobody."""


def find(store: ObjectStore, where: Place) -> Copy | None:
    """Return the committed copy of a departure, if there is one.

    Raises StorageFailed for a manifest that is not the one on record, or of a copy behind another fence.
    """
    known = where.entry.manifest_sha256 or ""
    try:
        manifest = read_manifest(store, where.manifest, known)
    except ObjectMissing as error:
        if error.context.get("s3_code") == "NoSuchBucket":
            raise
        return None
    if manifest.fence != where.entry.seal:
        raise StorageFailed(
            f"{where.manifest} is of a copy behind fence {manifest.fence}, expected {where.entry.seal}",
            hint="see who wrote to the work state",
            s3_code="ManifestAltered",
        )
    return Copy(where, manifest, is_committed=True, sha256=known)


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
        origin["columns"] = read_numbers(session, where.entry.parent)
        digest.pin(session)
        tree = without_bound(read_tree(session, where.entry.relation))
        for each in (sessions.export, sessions.digest):
            digest.pin(each, origin["encoding"])
    leaves = [branch for branch in tree if branch.is_leaf]
    waiting = [leaf for leaf in leaves if leaf.relation not in done]
    with translated(sessions.dsn):
        layouts = survey(session, waiting, origin["encoding"], where.parquet)
    for leaf in waiting:
        show = partial(show_share, on_progress, leaves.index(leaf), len(leaves))
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
    lock = where.object_lock
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


def _copy_leaf(job: _Job, leaf: Branch, layout: Layout | None) -> Stored:
    """Stream one table into a new object, while PostgreSQL computes its digest beside it."""
    sessions, where = job.sessions, job.place
    with translated(sessions.dsn):
        size = sessions.export.execute(query("archive", "table"), {"oid": leaf.relation}).fetchall()[0][
            "size"
        ]
    only = leaf.relation == where.entry.relation
    uri = place.data_uri(where.folder, where.id, job.run_id, None if only else leaf.relation)
    meter = Meter(size, job.on_progress)
    lock = where.object_lock
    with ThreadPoolExecutor(1, "pgvigil-digest") as pool:
        computing = pool.submit(_digest, sessions.digest, leaf, job.encoding)
        try:
            with translated(sessions.dsn):
                sent = export(sessions.export, leaf, job.store, uri, meter=meter, lock=lock)
                found = computing.result()
        except BaseException:
            sessions.digest.cancel_safe()
            raise
    rows = StoredRows(
        uri=uri,
        version_id=sent.version_id,
        etag=sent.etag,
        sha256=sent.sha256,
        size=sent.size,
        text_size=sent.text_size,
        lock=lock,
    )
    return Stored(
        rows=rows,
        digest=found,
        parquet=_copy_parquet(job, leaf, layout) if layout else None,
        generated=_digest_generated(job, leaf),
    )


def _digest_generated(job: _Job, leaf: Branch) -> Digest | None:
    """Let PostgreSQL compute the digest of the columns that COPY leaves out, if there are any."""
    columns = leaf.shape.computed_columns
    if not columns:
        return None
    session = job.sessions.digest
    with translated(job.sessions.dsn), held(session, leaf) as table:
        return digest.compute_lines(session, table, digest.line(columns), job.encoding)


def _digest(session: Connection, leaf: Branch, encoding: str) -> Digest:
    with held(session, leaf) as table:
        return blocks.compute(session, table, leaf.shape.stored_columns, encoding)


def _copy_parquet(job: _Job, leaf: Branch, layout: Layout) -> ParquetCopy:
    """Store one table once more as Parquet, while PostgreSQL computes the digest of what goes into it."""
    from pgvigil.archive import parquet  # noqa: PLC0415 - large: loaded by those alone who want it

    sessions, where, shape = job.sessions, job.place, layout.shape
    uris = (
        place.parquet_uri(where.folder, where.id, job.run_id, (shape.schema_, shape.name), number)
        for number in count()
    )
    with ThreadPoolExecutor(1, "pgvigil-digest") as pool, translated(sessions.dsn):
        digest.pin(sessions.export, "UTF8")
        computing = pool.submit(_digest_lines, sessions.digest, leaf, parquet.line(layout))
        try:
            files = parquet.write(sessions.export, layout, job.store, uris, where.object_lock)
            found = computing.result()
        except BaseException:
            sessions.digest.cancel_safe()
            raise
        digest.pin(sessions.export, job.encoding)
    return ParquetCopy(files=files, digest=found, digest_algorithm=parquet.ALGORITHM, as_text=layout.as_text)


def _digest_lines(session: Connection, leaf: Branch, line: sql.Composed) -> Digest:
    with held(session, leaf) as table:
        return digest.compute_lines(session, table, line, "UTF8")


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
        fence=where.entry.seal,
        origin=_origin(where, origin),
        shape=root.shape,
        ddl=tree_ddl(tree),
        rows=stored.rows if stored else None,
        digest=_whole(stored, [node.stored for node in nodes if node.stored]),
        digest_algorithm=blocks.ALGORITHM,
        parquet=stored.parquet if stored else None,
        generated=stored.generated if stored else None,
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


def _origin(where: Place, found: dict[str, Any]) -> Origin:
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
        parent_relation=where.entry.parent,
        parent_columns=found["columns"],
    )


def clear(store: ObjectStore, where: Place) -> dict[int, Stored]:
    """Remove what killed runs left of a copy that was never committed: unfinished uploads, orphaned objects.

    Returns the leaves that an earlier run finished and that are still there. The caller holds the table's
    lock and looked for the manifest, so nobody else writes there.
    """
    prefix = f"{where.folder}{where.id}/"
    abort_uploads(store, where.folder)
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


@dataclass(frozen=True)
class Remains:
    """Objects of a copy that has no manifest."""

    folder: str
    objects: int
    size: int


def remains(store: ObjectStore, folder: str, own: Collection[UUID]) -> list[Remains]:
    """Find what lies in a partition's folder without a manifest, apart from copies of one's own.

    A fence that was given up may have left it, or another clone of the database may be writing it.
    """
    copies: dict[str, list[StoredObject]] = {}
    for item in store.list(folder):
        copies.setdefault(item.uri.removeprefix(folder).partition("/")[0], []).append(item)
    return [
        Remains(f"{folder}{copy}/", len(items), sum(item.size for item in items))
        for copy, items in copies.items()
        if copy not in map(str, own)
        and f"{folder}{copy}/{place.MANIFEST}" not in (item.uri for item in items)
    ]


def abort_uploads(store: ObjectStore, folder: str) -> None:
    """Abort every unfinished upload of a partition's copies; the caller holds the table's lock."""
    for upload in store.list_uploads(folder):
        store.abort_upload(upload)


def _is_whole(stored: Stored, where: Place, there: dict[str, int]) -> bool:
    """Tell whether all of a finished leaf is still there, and all that is wanted now.

    Without the ETag of its upload, as older releases noted it, nothing tells it from what replaced it.
    """
    if (
        not stored.rows.etag
        or (stored.parquet is None) != (where.parquet is None)
        or not _is_locked(stored.rows, where.lock)
    ):
        return False
    sizes = {stored.rows.uri: stored.rows.size}
    sizes |= {file.uri: file.size for file in (stored.parquet.files if stored.parquet else ())}
    return all(there.get(uri) == size for uri, size in sizes.items())


def _is_locked(rows: StoredRows, wanted: ObjectLockPolicy | None) -> bool:
    """Tell whether rows were stored under such a lock; a retention counts from their own upload."""
    kind = (rows.lock.mode, rows.lock.legal_hold) if rows.lock else (None, False)
    return wanted is None or kind == (wanted.mode, wanted.legal_hold)
