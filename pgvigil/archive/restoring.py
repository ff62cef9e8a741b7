"""Rebuilding a table from its copy, in one transaction: wholly and proven, or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive import digest
from pgvigil.archive.blocks import digest_of
from pgvigil.archive.shape import (
    add_check,
    checks,
    column_definition,
    column_settings,
    create_table,
    dressings,
    keys,
)
from pgvigil.archive.stream import Rows, column_list
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.postgres import copy_in, copy_out, translated
from pgvigil.reports import Check, Verdict, conclude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgvigil.archive.manifest import Manifest
    from pgvigil.archive.shape import Column, Shape
    from pgvigil.objectstore import ObjectStore
    from pgvigil.postgres import Connection

BOUND_CHECK = "pgvigil_bound"


@dataclass(frozen=True)
class Order:
    """What is rebuilt, where, and as whose."""

    manifest: Manifest
    schema: str
    name: str
    owner: str | None

    @property
    def table(self) -> sql.Identifier:
        """The new table's name, quoted."""
        return sql.Identifier(self.schema, self.name)

    @property
    def shape(self) -> Shape:
        """The shape under the new table's name."""
        return self.manifest.shape.model_copy(update={"schema_": self.schema, "name": self.name})


class NotAsArchivedError(Exception):
    """What came back is not what was archived; carries the checks."""

    def __init__(self, found: list[Check]) -> None:
        super().__init__("content differs from the manifest")
        self.checks = found


def rebuild(
    session: Connection,
    store: ObjectStore,
    order: Order,
    on_progress: Callable[[int], None],
    finish: Callable[[list[Check]], None],
) -> list[Check]:
    """Build, load and prove a table in one transaction; `finish` is called in it, as the session's own role.

    Foreign keys are left to later: to add them locks the tables that they refer to. Whatever fails, or what
    `finish` raises, leaves nothing behind. Raises NotAsArchivedError, DatabaseFailed, StorageFailed.
    """
    digest.pin(session, order.manifest.origin.encoding)
    with session.transaction():
        if order.owner:
            session.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(order.owner)))
        session.execute(create_table(order.shape, order.table))
        for statement in (*column_settings(order.shape, order.table), *checks(order.shape, order.table)):
            session.execute(statement)
        found = _load(session, store, order, on_progress)
        for statement in (*keys(order.shape, order.table), *dressings(order.shape, order.table)):
            session.execute(statement)
        found.append(_compare(session, order))
        if conclude(found) is not Verdict.VERIFIED:
            raise NotAsArchivedError(found)
        session.execute("RESET ROLE")
        finish(found)
    return found


def _load(
    session: Connection, store: ObjectStore, order: Order, on_progress: Callable[[int], None]
) -> list[Check]:
    manifest = order.manifest
    rows = Rows(store, manifest.rows.uri, manifest.digest.blocks)
    columns = column_list(order.shape)
    load = sql.SQL("COPY {} ({}) FROM STDIN").format(order.table, columns)
    count = copy_in(session, load, _counted(rows, on_progress))
    got = rows.received()
    found = [
        _equal("content.sha256", manifest.rows.sha256, got.sha256),
        _equal("content.digest", str(manifest.digest), str(got.digest)),
        _equal("content.rows", f"{manifest.digest.rows} rows", f"{count} rows"),
    ]
    if conclude(found) is not Verdict.VERIFIED:
        raise NotAsArchivedError(found)
    return found


def _counted(rows: Rows, on_progress: Callable[[int], None]) -> Iterator[bytes]:
    done = 0
    for chunk in rows:
        done += len(chunk)
        on_progress(done)
        yield chunk


def _compare(session: Connection, order: Order) -> Check:
    manifest = order.manifest
    rows = sql.SQL("COPY {} ({}) TO STDOUT").format(order.table, column_list(order.shape))
    found = digest_of(copy_out(session, rows), manifest.digest.blocks)
    return _equal("table.digest", str(manifest.digest), str(found))


def _equal(name: str, expected: str, actual: str) -> Check:
    verdict = Verdict.VERIFIED if expected == actual else Verdict.REFUTED
    return Check(id=name, verdict=verdict, expected=expected, actual=actual)


# --- fitting it to a table that went on without it ----------------------------------------------------


class Adaption:
    """What has to be altered so that a table fits as a partition, as statements and as sentences."""

    def __init__(self, table: sql.Identifier, own: Shape, parent: Shape) -> None:
        self.table = table
        self.statements: list[sql.Composed] = []
        self.told: list[str] = []
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

    def _drop(self, column: Column) -> None:
        name = sql.Identifier(column.name)
        self.statements.append(sql.SQL("ALTER TABLE {} DROP COLUMN {}").format(self.table, name))
        self.told.append(f"column '{column.name}' was dropped since: its values stay in the archive alone")

    def _add(self, column: Column) -> None:
        if column.not_null and column.expression is None:
            raise PreconditionFailed(
                f"column '{column.name}' was added since, is NOT NULL and has no default",
                hint="bring the partition back with attach=false, give the column values, attach it by hand",
            )
        bare = column.model_copy(update={"identity": "", "storage": "", "statistics": None})
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

    def _add_checks(self, own: Shape, parent: Shape) -> None:
        have = {constraint.name for constraint in own.constraints}
        for constraint in parent.constraints:
            if constraint.kind == "c" and constraint.name not in have:
                condition = constraint.definition.removeprefix("CHECK ").removesuffix(" NO INHERIT")
                self.statements.append(add_check(self.table, constraint.name, condition))
                self.told.append(f"constraint '{constraint.name}' was added since: every row passed it")


def adapt(session: Connection, dsn: str, adaption: Adaption, condition: str, own: Shape) -> None:
    """Alter the table to fit, and prove by a validated CHECK that its rows are within its bound."""
    try:
        with translated(dsn), session.transaction():
            for statement in adaption.statements:
                session.execute(statement)
            if not bound_checks(own, condition):
                session.execute(add_check(adaption.table, BOUND_CHECK, condition))
    except DatabaseFailed as error:
        raise PreconditionFailed(
            f"the table cannot be made to fit: {error.message}",
            hint="bring the partition back with attach=false and look",
        ) from error


def bound_checks(own: Shape, condition: str) -> tuple[str, ...]:
    """Name the CHECKs that say the same as the bound: ours, and what a concurrent detach leaves."""
    wanted = _bare(condition)
    return tuple(
        each.name
        for each in own.constraints
        if each.kind == "c" and (each.name == BOUND_CHECK or _bare(each.definition) == wanted)
    )


def _bare(text: str) -> str:
    return "".join(text.removeprefix("CHECK ").split()).strip("()")
