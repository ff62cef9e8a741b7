"""What a table is, as data that rebuilds it: columns, constraints, indexes, comments, settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from psycopg import sql

from pgvigil.errors import PreconditionFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pgvigil.postgres import Connection


BOUND_CHECK = "pgvigil_bound"


class Column(Frozen):
    """One column; `expression` is its default, or what it is generated from."""

    name: str
    type: str
    type_oid: int
    collation: str | None = None
    not_null: bool = False
    expression: str | None = None
    generated: str = ""
    identity: str = ""
    storage: str = ""
    compression: str = ""
    statistics: int | None = None
    comment: str | None = None


class Constraint(Frozen):
    """One constraint by its definition; kinds are those of pg_constraint."""

    name: str
    kind: str
    definition: str
    comment: str | None = None


class Index(Frozen):
    """One index that no constraint brings along; `body` is what stands after USING."""

    name: str
    is_unique: bool
    body: str
    comment: str | None = None


Named = TypeVar("Named", Constraint, Index)


class Grant(Frozen):
    """One privilege; no grantee means PUBLIC."""

    grantee: str | None
    privilege: str
    is_grantable: bool = False


class Shape(Frozen):
    """A whole table without its rows."""

    schema_: str
    name: str
    owner: str
    columns: tuple[Column, ...]
    constraints: tuple[Constraint, ...] = ()
    indexes: tuple[Index, ...] = ()
    grants: tuple[Grant, ...] = ()
    options: tuple[str, ...] = ()
    row_security: bool = False
    force_row_security: bool = False
    replica_identity: str = "d"
    replica_index: str | None = None
    comment: str | None = None
    left_out: tuple[str, ...] = ()
    partition_by: str = ""

    @property
    def stored_columns(self) -> tuple[Column, ...]:
        """The columns that COPY takes: those that are not generated."""
        return tuple(column for column in self.columns if not column.generated)

    @property
    def table(self) -> sql.Identifier:
        """The table's name, quoted."""
        return sql.Identifier(self.schema_, self.name)


def read_shape(session: Connection, oid: int) -> Shape:
    """Read a table's shape; raises PreconditionFailed when it is gone."""
    asked = {"oid": oid}
    head = session.execute(query("archive", "table"), asked).fetchone()
    if head is None:
        raise PreconditionFailed(f"the table with OID {oid} is gone", hint="plan again")
    replica = session.execute(query("archive", "replica_index"), asked).fetchone()
    return Shape(
        schema_=head["schema"],
        name=head["name"],
        owner=head["owner"],
        columns=tuple(Column(**row) for row in session.execute(query("archive", "columns"), asked)),
        constraints=tuple(
            Constraint(**row) for row in session.execute(query("archive", "constraints"), asked)
        ),
        indexes=tuple(Index(**row) for row in session.execute(query("archive", "indexes"), asked)),
        grants=tuple(Grant(**row) for row in session.execute(query("partitions", "grants"), asked)),
        options=tuple(head["options"]),
        row_security=head["row_security"],
        force_row_security=head["force_row_security"],
        replica_identity=head["replica_identity"],
        replica_index=replica["name"] if replica else None,
        comment=head["comment"],
        left_out=tuple(row["what"] for row in session.execute(query("archive", "left_out"), asked)),
        partition_by=head["partition_by"],
    )


def renamed(shape: Shape, name: str) -> Shape:
    """Give a table and its indexes other names; a CHECK keeps its own, by which it is known above."""
    owned = [each.name for each in shape.constraints if each.kind in "pux"]
    owned += [each.name for each in shape.indexes]
    names = {old: f"{name}_{number}" for number, old in enumerate(owned)}
    changes = {
        "name": name,
        "constraints": tuple(_called(each, names) for each in shape.constraints),
        "indexes": tuple(_called(each, names) for each in shape.indexes),
        "replica_index": names.get(shape.replica_index or ""),
    }
    return shape.model_copy(update=changes)


def _called(each: Named, names: Mapping[str, str]) -> Named:
    return each.model_copy(update={"name": names.get(each.name, each.name)})


# Definitions come from this server's catalog, or from a manifest whose digest was proven; they are SQL.
def _raw(text: str) -> sql.SQL:
    return sql.SQL(text)


def create_table(shape: Shape, table: sql.Identifier) -> sql.Composed:
    """Compose the bare table: columns, defaults, NOT NULL, partition key, storage settings."""
    columns = sql.SQL(", ").join(map(column_definition, shape.columns))
    by = _raw(f" PARTITION BY {shape.partition_by}" if shape.partition_by else "")
    return sql.SQL("CREATE TABLE {} ({}){}{}").format(table, columns, by, with_options(shape.options))


def attach_partition(parent: sql.Identifier, child: sql.Identifier, bound: str) -> sql.Composed:
    """Compose the ATTACH of a partition."""
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(parent, child, _raw(bound))


def with_options(options: Sequence[str]) -> sql.Composable:
    """Compose the WITH of a table from its reloptions, `name=value` each; nothing without any."""
    if not options:
        return sql.SQL("")
    parts = (option.partition("=") for option in options)
    pairs = (sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)) for name, _, value in parts)
    return sql.SQL(" WITH ({})").format(sql.SQL(", ").join(pairs))


def column_definition(column: Column) -> sql.Composed:
    """Compose one column as CREATE TABLE and ADD COLUMN take it."""
    words: list[sql.Composable] = [sql.Identifier(column.name), _raw(column.type)]
    if column.compression:
        words.append(_raw("COMPRESSION " + {"p": "pglz", "l": "lz4"}[column.compression]))
    if column.collation:
        words.append(_raw(f"COLLATE {column.collation}"))
    if column.identity:
        always = "ALWAYS" if column.identity == "a" else "BY DEFAULT"
        words.append(_raw(f"GENERATED {always} AS IDENTITY"))
    elif column.generated:
        words.append(_raw(f"GENERATED ALWAYS AS ({column.expression}) STORED"))
    elif column.expression is not None:
        words.append(_raw(f"DEFAULT {column.expression}"))
    if column.not_null:
        words.append(sql.SQL("NOT NULL"))
    return sql.SQL(" ").join(words)


_STORAGE = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}


def column_settings(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose what a column cannot be given when its table is created."""
    for column in shape.columns:
        alter = sql.SQL("ALTER TABLE {} ALTER COLUMN {} ").format(table, sql.Identifier(column.name))
        if column.storage:
            yield alter + _raw(f"SET STORAGE {_STORAGE[column.storage]}")
        if column.statistics is not None:
            yield alter + _raw(f"SET STATISTICS {column.statistics}")


def checks(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose the CHECK constraints, which every row passes when it is loaded."""
    yield from (_constraint(each, table) for each in shape.constraints if each.kind == "c")


def keys(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose keys and indexes, which are best built when the rows are there."""
    yield from (_constraint(each, table) for each in shape.constraints if each.kind in "pux")
    for index in shape.indexes:
        unique = sql.SQL("UNIQUE ") if index.is_unique else sql.SQL("")
        name = sql.Identifier(index.name)
        yield sql.SQL("CREATE {}INDEX {} ON {} USING {}").format(unique, name, table, _raw(index.body))


def foreign_keys(shape: Shape) -> tuple[Constraint, ...]:
    """Give the foreign keys, which are added without a check and validated later."""
    return tuple(each for each in shape.constraints if each.kind == "f")


def add_foreign_key(each: Constraint, shape: Shape) -> sql.Composed:
    """Compose a foreign key that does not look at the rows yet.

    A partitioned table cannot have it so: it takes over those of its partitions, and looks at no row either.
    """
    definition = each.definition.removesuffix(" NOT VALID") + ("" if shape.partition_by else " NOT VALID")
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
        shape.table, sql.Identifier(each.name), _raw(definition)
    )


def _constraint(each: Constraint, table: sql.Identifier) -> sql.Composed:
    name = sql.Identifier(each.name)
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(table, name, _raw(each.definition))


def add_check(table: sql.Identifier, name: str, condition: str) -> sql.Composed:
    """Compose a CHECK of a condition that the catalog rendered."""
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({})").format(
        table, sql.Identifier(name), _raw(condition)
    )


def bound_clause(bound: str) -> sql.SQL:
    """Return a partition bound as the catalog rendered it."""
    return _raw(bound)


def dressings(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose comments, replica identity, row security, grants and owner, the owner last."""
    yield from _comments(shape, table)
    if shape.replica_identity in "fn":
        word = "FULL" if shape.replica_identity == "f" else "NOTHING"
        yield sql.SQL("ALTER TABLE {} REPLICA IDENTITY {}").format(table, _raw(word))
    if shape.replica_identity == "i" and shape.replica_index:
        index = sql.Identifier(shape.replica_index)
        yield sql.SQL("ALTER TABLE {} REPLICA IDENTITY USING INDEX {}").format(table, index)
    if shape.row_security:
        yield sql.SQL("ALTER TABLE {} ENABLE ROW LEVEL SECURITY").format(table)
    if shape.force_row_security:
        yield sql.SQL("ALTER TABLE {} FORCE ROW LEVEL SECURITY").format(table)
    for grant in shape.grants:
        yield grant_statement(grant, table)


def grant_statement(grant: Grant, table: sql.Identifier) -> sql.Composed:
    """Compose one GRANT."""
    who = sql.Identifier(grant.grantee) if grant.grantee else sql.SQL("PUBLIC")
    option = sql.SQL(" WITH GRANT OPTION") if grant.is_grantable else sql.SQL("")
    return sql.SQL("GRANT {} ON {} TO {}{}").format(_raw(grant.privilege), table, who, option)


def _comments(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    if shape.comment is not None:
        yield sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(shape.comment))
    for column in shape.columns:
        if column.comment is not None:
            where = sql.Identifier(*table._obj, column.name)  # noqa: SLF001 - a name longer by one part
            yield sql.SQL("COMMENT ON COLUMN {} IS {}").format(where, sql.Literal(column.comment))
    for constraint in shape.constraints:
        if constraint.comment is not None and constraint.kind != "f":
            yield sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}").format(
                sql.Identifier(constraint.name), table, sql.Literal(constraint.comment)
            )
    for index in shape.indexes:
        if index.comment is not None:
            where = sql.Identifier(table._obj[0], index.name)  # noqa: SLF001 - beside its table
            yield sql.SQL("COMMENT ON INDEX {} IS {}").format(where, sql.Literal(index.comment))


def ddl(shape: Shape) -> tuple[str, ...]:
    """Render everything but foreign keys as SQL text, for people who rebuild a table without pgvigil."""
    table = shape.table
    statements = [create_table(shape, table), *column_settings(shape, table), *checks(shape, table)]
    statements += [*keys(shape, table), *dressings(shape, table)]
    return tuple(statement.as_string(None) for statement in statements)


def foreign_key_ddl(shape: Shape) -> tuple[str, ...]:
    """Render the foreign keys as SQL text."""
    return tuple(add_foreign_key(each, shape).as_string(None) for each in foreign_keys(shape))


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
