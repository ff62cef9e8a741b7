"""Rebuilding a table from its copy, in one transaction: wholly and proven, or not at all."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive import digest
from pgvigil.archive.blocks import digest_of
from pgvigil.archive.ddl import (
    add_check,
    add_constraint,
    add_index,
    add_key,
    add_not_null,
    attach_partition,
    checks,
    column_definition,
    column_settings,
    companions,
    create_sequence,
    create_table,
    dressings,
    keys,
    own_sequence,
    revocations,
)
from pgvigil.archive.shape import BOUND_CHECK, Grant, bound_checks, read_numbers, renamed
from pgvigil.archive.stream import Rows, column_list, read_back
from pgvigil.archive.tree import attachments
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.postgres import copy_in, copy_out, translated
from pgvigil.reports import Check, Verdict, conclude
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pgvigil.archive.manifest import Leaf, Manifest, Node, Stored
    from pgvigil.archive.shape import Column, Numbering, Shape
    from pgvigil.objectstore import ObjectStore
    from pgvigil.postgres import Connection


FORBIDDEN = "42501"
UNKNOWN = {"42883", "42P01", "42704"}  # function, table, type
REFUSED = {"23514", "23502"}  # CHECK, NOT NULL


@dataclass(frozen=True)
class Order:
    """What is rebuilt: as whose tables, or in another schema and as nobody's."""

    manifest: Manifest
    as_owners: bool = True
    schema: str | None = None

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The tables as they are to be, parents first."""
        return tuple(self._moved(node) for node in self.manifest.nodes)

    def _moved(self, node: Node) -> Node:
        if self.schema is None:
            return node
        is_stranger = node.shape.schema_ != self.manifest.shape.schema_  # whose names others may have as well
        shape = renamed(node.shape, f"pgvigil_{node.relation}") if is_stranger else node.shape
        # Among temporary tables nothing is unlogged, and no sequence or statistics of the user's are made.
        there = {
            "schema_": self.schema,
            "is_unlogged": False,
            "statistics": (),
            "publications": (),
            "columns": tuple(_drawing_from_none(column) for column in shape.columns),
        }
        return node.model_copy(update={"shape": shape.model_copy(update=there)})


def _drawing_from_none(column: Column) -> Column:
    """Leave out the default that draws from a sequence of the column's own, which went with its table."""
    if column.identity or not column.numbering:
        return column
    return column.model_copy(update={"expression": None, "numbering": None})


class NotAsArchivedError(Exception):
    """What came back is not what was archived; carries the checks."""

    def __init__(self, found: list[Check]) -> None:
        super().__init__("content differs from the manifest")
        self.checks = found


def rebuild(  # noqa: PLR0913 - both ends, and who hears of it
    session: Connection,
    store: ObjectStore,
    order: Order,
    on_progress: Callable[[int], None],
    finish: Callable[[list[Check]], None],
    on_loss: Callable[[str, str], None],
) -> list[Check]:
    """Build, load and prove a table or a tree in one transaction; `finish` is called at its end.

    `on_loss` hears of each grant, policy, trigger and statistics that cannot be made any more, and why: the
    rows come back without them. Foreign keys are left to later: to add them locks the tables that they refer
    to. Whatever else fails, or what `finish` raises, leaves nothing behind. Raises NotAsArchivedError,
    DatabaseFailed, StorageFailed.
    """
    digest.pin(session, order.manifest.origin.encoding)
    nodes = order.nodes
    found: list[Check] = []
    with _hinted(session.info.dsn), session.transaction():
        for node in nodes:
            _act_as(session, order, node)
            _build(session, node.shape)
        done = 0
        for node in nodes:
            _act_as(session, order, node)
            if node.stored:
                found += _fill(session, store, order, node, partial(_from, on_progress, done))
                done += node.stored.rows.text_size
            for statement in (*keys(node.shape, node.shape.table), *dressings(node.shape, node.shape.table)):
                session.execute(statement)
            _accompany(session, order, node.shape, on_loss)
        session.execute("RESET ROLE")
        _tie(session, nodes)
        if order.manifest.tree:
            found.append(_compare_tree(order, found))
        finish(found)
    return found


@contextmanager
def _hinted(dsn: str) -> Iterator[None]:
    """Say what to do where a domain refuses a value, or the table's expressions miss something."""
    try:
        with translated(dsn):
            yield
    except DatabaseFailed as error:
        if error.sqlstate in REFUSED and "type" in error.context:
            raise _refused(error) from error
        if error.sqlstate not in UNKNOWN:
            raise
        raise PreconditionFailed(
            f"the table cannot be rebuilt: {error.message}",
            hint="if a function that a CHECK, an index or a generated column calls looks for it without its "
            "schema, let it: ALTER FUNCTION … SET search_path = …; if it is gone, make it again",
        ) from error


def _refused(error: DatabaseFailed) -> PreconditionFailed:
    """Name the domain and the constraint that keep an archived value out."""
    domain, constraint = error.context["type"], error.context.get("constraint")
    rule = f"constraint '{constraint}'" if constraint else "NOT NULL"
    again = "add it again as NOT VALID" if constraint else "decide what these values shall be"
    return PreconditionFailed(
        f"the table cannot be rebuilt: an archived value is refused by {rule} of domain '{domain}', added "
        f"since, or without a look at older rows: {error.message}",
        hint=f"take it off (ALTER DOMAIN … DROP …), bring the partition back, then {again}",
    )


def _from(on_progress: Callable[[int], None], start: int, done: int) -> None:
    on_progress(start + done)


def _act_as(session: Connection, order: Order, node: Node) -> None:
    if order.as_owners:
        session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(node.shape.owner)))


def _build(session: Connection, shape: Shape) -> None:
    drawing = [
        (column.name, column.numbering)
        for column in shape.columns
        if column.numbering and not column.identity and not _is_there(session, column.numbering)
    ]
    for _, numbering in drawing:
        session.execute(create_sequence(numbering))
    session.execute(create_table(shape, shape.table))
    for name, numbering in drawing:
        session.execute(own_sequence(numbering, shape.table, name))
    for statement in (*column_settings(shape, shape.table), *checks(shape, shape.table)):
        session.execute(statement)


def _is_there(session: Connection, numbering: Numbering) -> bool:
    asked = {"schema": numbering.schema_, "name": numbering.name}
    return session.execute(query("partitions", "relation"), asked).fetchone() is not None


def _accompany(session: Connection, order: Order, shape: Shape, on_loss: Callable[[str, str], None]) -> None:
    """Make what leans on roles and functions that may be gone since, each for itself; no right more."""
    if order.schema is None:
        here = session.execute(query("archive", "relation_grants"), _asked(shape))
        for statement in revocations(shape, [Grant(**row) for row in here], as_owner=order.as_owners):
            session.execute(statement)
    for what, statement in companions(shape, shape.table):
        try:
            with translated(session.info.dsn), session.transaction():
                session.execute(statement)
        except DatabaseFailed as error:
            if not error.sqlstate:
                raise
            # Only its owner may do everything with a table's functions; a drill is nobody's.
            if error.sqlstate != FORBIDDEN or order.schema is None:
                on_loss(what, error.message)


def _tie(session: Connection, nodes: Sequence[Node]) -> None:
    """Attach every table of a tree to the one above it; matching keys and indexes become one."""
    for node in attachments(nodes):
        if node.parent is not None:
            session.execute(attach_partition(nodes[node.parent].shape.table, node.shape.table, node.bound))


def _fill(
    session: Connection, store: ObjectStore, order: Order, node: Node, on_progress: Callable[[int], None]
) -> list[Check]:
    """Load one table and compare it, before its row security can hide a row; raises NotAsArchivedError."""
    stored, shape = node.stored, node.shape
    assert stored is not None  # noqa: S101 - the caller looked
    mark = f"{node.name}." if order.manifest.tree else ""
    rows = Rows(store, stored.rows.uri, stored.digest.blocks)
    columns = column_list(shape)
    load = sql.SQL("COPY {} ({}) FROM STDIN").format(shape.table, columns)
    try:
        with translated(session.info.dsn):
            count = copy_in(session, load, _counted(rows, on_progress))
    except DatabaseFailed as error:
        _require_as_archived(store, stored, mark, error)
        raise
    for column in shape.columns:
        if column.numbering:
            session.execute(_go_on(shape, column, column.numbering))
    got = rows.received()
    again = sql.SQL("COPY {} ({}) TO STDOUT").format(shape.table, columns)
    here = digest_of(copy_out(session, again), stored.digest.blocks)
    found = [
        _equal(f"{mark}content.sha256", stored.rows.sha256, got.sha256),
        _equal(f"{mark}content.digest", str(stored.digest), str(got.digest)),
        _equal(f"{mark}content.rows", f"{stored.digest.rows} rows", f"{count} rows"),
        _equal(f"{mark}table.digest", str(stored.digest), str(here)),
    ]
    if stored.generated:
        found.append(_compare_generated(session, order, node, mark, stored.generated))
    if conclude(found) is not Verdict.VERIFIED:
        raise NotAsArchivedError(found)
    return found


def _compare_generated(
    session: Connection, order: Order, node: Node, mark: str, expected: digest.Digest
) -> Check:
    """Compare what PostgreSQL generated anew with what stood there: a function may have changed since."""
    columns, encoding = node.shape.computed_columns, order.manifest.origin.encoding
    got = digest.compute_lines(session, node.shape.table, digest.line(columns), encoding)
    check = _equal(f"{mark}table.generated", str(expected), str(got))
    names = ", ".join(column.name for column in columns)
    detail = f"of {names}: what they are generated by has changed since, make it for a while as it was"
    return check if check.verdict is Verdict.VERIFIED else check.model_copy(update={"detail": detail})


def compare_again(session: Connection, manifest: Manifest) -> list[Check]:
    """Compare tables that stand with what was archived of them; the caller keeps writers off.

    Their columns are found by their places: to fit them to a parent, some may have been added or renamed.
    """
    digest.pin(session, manifest.origin.encoding)
    leaves = manifest.leaves
    root = session.execute(query("partitions", "relation"), _asked(manifest.shape)).fetchone()
    rows = session.execute(query("partitions", "leaves"), {"oid": root["oid"] if root else 0})
    there = sorted(f"{row['schema']}.{row['name']}" for row in rows)
    wanted = sorted(leaf.name for leaf in leaves)
    found = [_equal("table.leaves", ", ".join(wanted), ", ".join(there))]
    if wanted != there:
        return found
    for leaf in leaves:
        mark = f"{leaf.name}." if manifest.tree else ""
        actual = _digest_again(session, leaf)
        found.append(_equal(f"{mark}table.unchanged", str(leaf.stored.digest), actual))
    return found


def _digest_again(session: Connection, leaf: Leaf) -> str:
    relation = session.execute(query("partitions", "relation"), _asked(leaf.shape)).fetchall()[0]["oid"]
    names = {number: name for name, number in read_numbers(session, relation).items()}
    places = {column.name: place for place, column in enumerate(leaf.shape.columns, start=1)}
    wanted = [places[column.name] for column in leaf.shape.stored_columns]
    if gone := [place for place in wanted if place not in names]:
        return f"column '{leaf.shape.columns[gone[0] - 1].name}' is gone"
    columns = sql.SQL(", ").join(sql.Identifier(names[place]) for place in wanted)
    again = sql.SQL("COPY {} ({}) TO STDOUT").format(leaf.shape.table, columns)
    return str(digest_of(copy_out(session, again), leaf.stored.digest.blocks))


def _asked(shape: Shape) -> dict[str, str]:
    return {"schema": shape.schema_, "name": shape.name}


def _require_as_archived(store: ObjectStore, stored: Stored, mark: str, error: DatabaseFailed) -> None:
    """Tell a row that the server refuses from a copy that is not what was stored: cut short within a row."""
    if error.transient:
        return
    got = read_back(Rows(store, stored.rows.uri, stored.digest.blocks), _unheard)
    check = _equal(f"{mark}content.sha256", stored.rows.sha256, got.sha256)
    if check.verdict is not Verdict.VERIFIED:
        raise NotAsArchivedError([check.model_copy(update={"detail": error.message})]) from error


def _unheard(_: int) -> None:
    """Tell nobody."""


def _go_on(shape: Shape, column: Column, numbering: Numbering) -> sql.Composed:
    """Compose what lets a column count on from its last value: COPY does not move the sequence."""
    last = sql.SQL("max({})" if numbering.increment > 0 else "min({})").format(sql.Identifier(column.name))
    return sql.SQL(
        "SELECT setval(pg_get_serial_sequence({table}, {column}), {last}) FROM {name}"
        " HAVING {last} BETWEEN {least} AND {most}"
    ).format(
        table=sql.Literal(shape.table.as_string(None)),
        column=sql.Literal(column.name),
        last=last,
        name=shape.table,
        least=sql.Literal(numbering.minimum),
        most=sql.Literal(numbering.maximum),
    )


def _compare_tree(order: Order, found: Sequence[Check]) -> Check:
    leaves = len(order.manifest.leaves)
    equal = sum(check.id.endswith("table.digest") for check in found)
    return _equal("tree", f"{leaves} of {leaves} leaves equal", f"{equal} of {leaves} leaves equal")


def _counted(rows: Rows, on_progress: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    for chunk in rows:
        done += len(chunk)
        on_progress(done)
        yield chunk


def _equal(name: str, expected: str, actual: str) -> Check:
    verdict = Verdict.VERIFIED if expected == actual else Verdict.REFUTED
    return Check(id=name, verdict=verdict, expected=expected, actual=actual)


# --- fitting it to a table that went on without it ----------------------------------------------------


class Adaption:
    """What has to be altered so that a table fits as a partition, as statements and as sentences.

    What takes archived values away stands apart, in `drops`; `lost` names the columns.
    """

    def __init__(self, table: sql.Identifier, own: Shape, parent: Shape) -> None:
        self.table = table
        self.statements: list[sql.Composed] = []
        self.drops: list[sql.Composed] = []
        self.told: list[str] = []
        self.lost: list[str] = []
        ours = {column.name: column for column in own.columns}
        theirs = {column.name: column for column in parent.columns}
        for column in own.columns:
            if column.name not in theirs:
                self._drop(column)
        for column in parent.columns:
            if column.name not in ours:
                self._add(column)
            else:
                self._fit(ours[column.name], column)
        self._add_checks(own, parent)
        self._add_keys(own, parent)

    def _drop(self, column: Column) -> None:
        name = sql.Identifier(column.name)
        self.drops.append(sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(self.table, name))
        self.told.append(f"column '{column.name}' was dropped since: its values stay in the archive alone")
        self.lost += [] if column.generated else [column.name]

    def _add(self, column: Column) -> None:
        if column.not_null and column.expression is None:
            raise PreconditionFailed(
                f"column '{column.name}' was added since, is NOT NULL and has no default",
                hint="bring the partition back with attach=false, give the column values, attach it by hand",
            )
        bare = column.model_copy(
            update={"identity": "", "storage": "", "statistics": None, "numbering": None}
        )
        statement = column_definition(bare)
        self.statements.append(sql.SQL("ALTER TABLE {} ADD COLUMN {}").format(self.table, statement))
        value = column.expression or "NULL"
        self.told.append(f"column '{column.name}' was added since: it is {value} in every row")

    def _fit(self, own: Column, parent: Column) -> None:
        if (own.type, own.collation) != (parent.type, parent.collation):
            raise PreconditionFailed(
                f"column '{own.name}' was {own.type}, and is {parent.type} in the table now",
                hint="bring the partition back with attach=false and convert the column by hand",
            )
        if parent.not_null and not own.not_null:
            name = sql.Identifier(own.name)
            self.statements.append(
                sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET NOT NULL").format(self.table, name)
            )
        if parent.not_null_unproven and not (own.not_null or own.not_null_unproven):
            self.statements.append(add_not_null(self.table, own.name))

    def _add_checks(self, own: Shape, parent: Shape) -> None:
        have = {constraint.name for constraint in own.constraints}
        for constraint in parent.constraints:
            if constraint.kind == "c" and constraint.name not in have:
                self.statements.append(add_constraint(constraint, self.table))
                rows = "older rows may break it" if constraint.is_unproven else "every row passed it"
                self.told.append(f"constraint '{constraint.name}' was added since: {rows}")

    def _add_keys(self, own: Shape, parent: Shape) -> None:
        """Build what ATTACH would build under its locks: keys and indexes that the table gained since."""
        have = {each.definition for each in own.constraints} | {each.body for each in own.indexes}
        for key in parent.constraints:
            if key.kind in "pux" and key.definition not in have:
                self.statements.append(add_key(self.table, key))
                self.told.append(f"{key.definition} was added since: it is built")
        for index in parent.indexes:
            if index.body not in have:
                self.statements.append(add_index(self.table, index))
                self.told.append(f"an index was added since: {index.body} is built")


def adapt(session: Connection, dsn: str, adaption: Adaption, condition: str, own: Shape) -> None:
    """Alter the table to fit, and prove by a validated CHECK that its rows are within its bound.

    Nothing is dropped yet.
    """
    try:
        with translated(dsn), session.transaction():
            for statement in adaption.statements:
                session.execute(statement)
            if not bound_checks(own, condition):
                session.execute(add_check(adaption.table, BOUND_CHECK, condition))
    except DatabaseFailed as error:
        if error.transient:
            raise
        raise PreconditionFailed(
            f"the table cannot be made to fit: {error.message}",
            hint="bring the partition back with attach=false and look",
        ) from error
