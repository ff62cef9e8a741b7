"""The statements that rebuild a table from its shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive.shape import BOUND_CHECK

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import LiteralString

    from pgvigil.archive.shape import (
        Column,
        Constraint,
        Grant,
        Hook,
        Index,
        Numbering,
        Policy,
        Publication,
        Shape,
        Statistics,
    )


# Definitions come from this server's catalog, or from a manifest whose digest was proven; they are SQL.
def _raw(text: str) -> sql.SQL:
    return sql.SQL(text)


def create_table(shape: Shape, table: sql.Identifier) -> sql.Composed:
    """Compose the bare table: columns, defaults, NOT NULL, partition key, storage settings."""
    columns = sql.SQL(", ").join(map(column_definition, shape.columns))
    by = partition_by(shape.partition_by)
    kind = _raw("UNLOGGED " if shape.is_unlogged else "")
    options = with_options(shape.options)
    return sql.SQL("CREATE {}TABLE {} ({}){}{}").format(kind, table, columns, by, options)


def partition_by(key: str) -> sql.SQL:
    """Compose the PARTITION BY of a table from its key as the catalog renders it; nothing without one."""
    return _raw(f" PARTITION BY {key}" if key else "")


def attach_partition(parent: sql.Identifier, child: sql.Identifier, bound: str) -> sql.Composed:
    """Compose the ATTACH of a partition."""
    return sql.SQL("ALTER TABLE {} ATTACH PARTITION {} {}").format(parent, child, _raw(bound))


def with_options(options: Sequence[str]) -> sql.Composable:
    """Compose the WITH of a table from its reloptions, `name=value` each; nothing without any."""
    if not options:
        return sql.SQL("")
    parts = (option.partition("=") for option in options)
    pairs = (
        sql.SQL("{} = {}").format(
            sql.Identifier(*name.split(".")), sql.Literal(value)
        )  # toast.… is two names
        for name, _, value in parts
    )
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
        if column.numbering:
            words.append(sql.SQL("({})").format(_raw(_numbers(column.numbering))))
    elif column.generated:
        kept = "STORED" if column.generated == "s" else "VIRTUAL"
        words.append(_raw(f"GENERATED ALWAYS AS ({column.expression}) {kept}"))
    elif column.expression is not None:
        words.append(_raw(f"DEFAULT {column.expression}"))
    if column.not_null:
        words.append(sql.SQL("NOT NULL"))
    return sql.SQL(" ").join(words)


def _numbers(numbering: Numbering) -> str:
    """Render how a sequence counts."""
    return (
        f"START {numbering.start} INCREMENT {numbering.increment} MINVALUE {numbering.minimum}"
        f" MAXVALUE {numbering.maximum} CACHE {numbering.cache}{' CYCLE' if numbering.is_cycled else ''}"
    )


def create_sequence(numbering: Numbering) -> sql.Composed:
    """Compose a sequence that the default of a column draws from."""
    name = sql.Identifier(numbering.schema_, numbering.name)
    how = _raw(f"AS {numbering.type} {_numbers(numbering)}")
    return sql.SQL("CREATE SEQUENCE {} {}").format(name, how)


def own_sequence(numbering: Numbering, table: sql.Identifier, column: str) -> sql.Composed:
    """Compose what lets a sequence go with its column."""
    name = sql.Identifier(numbering.schema_, numbering.name)
    return sql.SQL("ALTER SEQUENCE {} OWNED BY {}").format(name, sql.Identifier(*table._obj, column))  # noqa: SLF001 - a name longer by one part


_STORAGE = {"p": "PLAIN", "e": "EXTERNAL", "m": "MAIN", "x": "EXTENDED"}


def column_settings(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose what a column cannot be given when its table is created."""
    for column in shape.columns:
        alter = sql.SQL("ALTER TABLE {} ALTER COLUMN {} ").format(table, sql.Identifier(column.name))
        if column.storage:
            yield alter + _raw(f"SET STORAGE {_STORAGE[column.storage]}")
        if column.statistics is not None:
            yield alter + _raw(f"SET STATISTICS {column.statistics}")
        if column.options:
            yield alter + _raw(f"SET ({', '.join(column.options)})")


def checks(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose the CHECK constraints, which every row passes when it is loaded."""
    proven = (each for each in shape.constraints if each.kind == "c" and not each.is_unproven)
    yield from (add_constraint(each, table) for each in proven)


def keys(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose keys and indexes, which are best built when the rows are there, and what rows may break."""
    unproven = (each for each in shape.constraints if each.kind == "c" and each.is_unproven)
    yield from (add_constraint(each, table) for each in unproven)
    yield from (add_not_null(table, each.name) for each in shape.columns if each.not_null_unproven)
    yield from (add_constraint(each, table) for each in shape.constraints if each.kind in "pux")
    for index in shape.indexes:
        yield add_index(table, index, index.name)
        yield from _targets(index, table)


def _targets(index: Index, table: sql.Identifier) -> Iterator[sql.Composed]:
    alter = sql.SQL("ALTER INDEX {} ALTER COLUMN ").format(_beside(table, index.name))
    for column, target in index.statistics.items():
        yield alter + _raw(f"{column} SET STATISTICS {target}")


def _beside(table: sql.Identifier, name: str) -> sql.Identifier:
    return sql.Identifier(table._obj[0], name)  # noqa: SLF001 - in the schema of its table


def add_index(table: sql.Identifier, index: Index, name: str = "") -> sql.Composed:
    """Compose an index; without a name PostgreSQL finds one."""
    unique = sql.SQL("UNIQUE ") if index.is_unique else sql.SQL("")
    called = sql.SQL("{} ").format(sql.Identifier(name)) if name else sql.SQL("")
    return sql.SQL("CREATE {}INDEX {}ON {} USING {}").format(unique, called, table, _raw(index.body))


def add_key(table: sql.Identifier, key: Constraint) -> sql.Composed:
    """Compose a key for which PostgreSQL finds a name."""
    return sql.SQL("ALTER TABLE {} ADD {}").format(table, _raw(key.definition))


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


def add_constraint(each: Constraint, table: sql.Identifier) -> sql.Composed:
    """Compose a constraint by its own definition."""
    name = sql.Identifier(each.name)
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(table, name, _raw(each.definition))


def add_not_null(table: sql.Identifier, column: str) -> sql.Composed:
    """Compose a NOT NULL that does not look at the rows, which PostgreSQL 18 was the first to have."""
    return sql.SQL("ALTER TABLE {} ADD NOT NULL {} NOT VALID").format(table, sql.Identifier(column))


def add_check(table: sql.Identifier, name: str, condition: str) -> sql.Composed:
    """Compose a CHECK of a condition that the catalog rendered."""
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({})").format(
        table, sql.Identifier(name), _raw(condition)
    )


def drop_bound_check(table: sql.Identifier) -> sql.Composed:
    """Compose what takes the CHECK of its bound off a table that is a partition again."""
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(table, sql.Identifier(BOUND_CHECK))


def condition_clause(condition: str) -> sql.SQL:
    """Return the condition that a partition puts on its rows as the catalog rendered it."""
    return _raw(condition)


def bound_clause(bound: str) -> sql.SQL:
    """Return a partition bound as the catalog rendered it."""
    return _raw(bound)


def dressings(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose comments, marks of indexes, replica identity and the switches of row security."""
    yield from _comments(shape, table)
    if shape.cluster_index:
        yield sql.SQL("ALTER TABLE {} CLUSTER ON {}").format(table, sql.Identifier(shape.cluster_index))
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


def companions(shape: Shape, table: sql.Identifier) -> Iterator[tuple[str, sql.Composed]]:
    """Compose what leans on roles and functions that may be gone since, each with what it is called."""
    for statistics in shape.statistics:
        yield from (
            (f"extended statistics {statistics.name}", each) for each in _statistics(statistics, table)
        )
    for policy in shape.policies:
        yield from ((f"policy {policy.name}", each) for each in _policy(policy, table))
    for trigger in shape.triggers:
        yield from ((f"trigger {trigger.name}", each) for each in _trigger(trigger, table))
    for rule in shape.rules:
        yield from ((f"rule {rule.name}", each) for each in _rule(rule, table))
    for publication in shape.publications:
        yield f"place in publication {publication.name}", _publish(publication, table)
    for grant in shape.grants:
        yield f"grant of {grant.privilege} to {grant.grantee or 'PUBLIC'}", grant_statement(grant, table)


_KINDS = {"d": "ndistinct", "f": "dependencies", "m": "mcv"}  # expressions bring their own along


def _statistics(each: Statistics, table: sql.Identifier) -> Iterator[sql.Composed]:
    name = sql.Identifier(each.schema_, each.name)
    kinds = ", ".join(_KINDS[kind] for kind in each.kinds if kind in _KINDS)
    yield sql.SQL("CREATE STATISTICS {} {}ON {} FROM {}").format(
        name, _raw(f"({kinds}) " if kinds else ""), _raw(each.columns), table
    )
    if each.target is not None:
        yield sql.SQL("ALTER STATISTICS {} SET STATISTICS {}").format(name, _raw(str(each.target)))
    if each.comment is not None:
        yield sql.SQL("COMMENT ON STATISTICS {} IS {}").format(name, sql.Literal(each.comment))


_COMMANDS = {"*": "ALL", "r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE"}


def _policy(each: Policy, table: sql.Identifier) -> Iterator[sql.Composed]:
    name = sql.Identifier(each.name)
    words = [
        sql.SQL("CREATE POLICY {} ON {} AS {} FOR {} TO {}").format(
            name,
            table,
            sql.SQL("PERMISSIVE" if each.is_permissive else "RESTRICTIVE"),
            _raw(_COMMANDS[each.command]),
            sql.SQL(", ").join(sql.Identifier(role) if role else sql.SQL("PUBLIC") for role in each.roles),
        )
    ]
    words += [sql.SQL("USING ({})").format(_raw(each.visible))] if each.visible is not None else []
    words += [sql.SQL("WITH CHECK ({})").format(_raw(each.writable))] if each.writable is not None else []
    yield sql.SQL(" ").join(words)
    if each.comment is not None:
        yield sql.SQL("COMMENT ON POLICY {} ON {} IS {}").format(name, table, sql.Literal(each.comment))


_ENABLE: dict[str, LiteralString] = {"D": "DISABLE", "A": "ENABLE ALWAYS", "R": "ENABLE REPLICA"}


def _trigger(each: Hook, table: sql.Identifier) -> Iterator[sql.Composed]:
    yield sql.SQL("{} ON {} {}").format(_raw(each.head), table, _raw(each.tail))
    yield from _switched("TRIGGER", each, table)


def _rule(each: Hook, table: sql.Identifier) -> Iterator[sql.Composed]:
    yield sql.SQL("{} TO {}{}").format(_raw(each.head), table, _raw(each.tail))
    yield from _switched("RULE", each, table)


def _switched(kind: LiteralString, each: Hook, table: sql.Identifier) -> Iterator[sql.Composed]:
    what, name = sql.SQL(kind), sql.Identifier(each.name)
    if each.enabled in _ENABLE:
        yield sql.SQL("ALTER TABLE {} {} {} {}").format(table, sql.SQL(_ENABLE[each.enabled]), what, name)
    if each.comment is not None:
        yield sql.SQL("COMMENT ON {} {} ON {} IS {}").format(what, name, table, sql.Literal(each.comment))


def _publish(each: Publication, table: sql.Identifier) -> sql.Composed:
    words: list[sql.Composable] = [
        sql.SQL("ALTER PUBLICATION {} ADD TABLE ONLY {}").format(sql.Identifier(each.name), table)
    ]
    if each.columns:
        words.append(sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Identifier, each.columns))))
    words += [sql.SQL("WHERE ({})").format(_raw(each.condition))] if each.condition is not None else []
    return sql.SQL(" ").join(words)


def revocations(shape: Shape, here: Sequence[Grant], *, as_owner: bool) -> Iterator[sql.Composed]:
    """Compose what takes from a new table all rights that its shape has not: by default it may have more."""
    for grant in here:
        if grant not in shape.grants:
            who = sql.Identifier(grant.grantee) if grant.grantee else sql.SQL("PUBLIC")
            yield sql.SQL("REVOKE {} ON {} FROM {}").format(_raw(grant.privilege), shape.table, who)
    for privilege in shape.owner_lacks if as_owner else ():
        yield sql.SQL("REVOKE {} ON {} FROM {}").format(
            _raw(privilege), shape.table, sql.Identifier(shape.owner)
        )


def grant_statement(grant: Grant, table: sql.Identifier) -> sql.Composed:
    """Compose one GRANT."""
    who = sql.Identifier(grant.grantee) if grant.grantee else sql.SQL("PUBLIC")
    option = sql.SQL(" WITH GRANT OPTION") if grant.is_grantable else sql.SQL("")
    what: sql.Composable = _raw(grant.privilege)
    if grant.column is not None:
        what = sql.SQL("{} ({})").format(what, sql.Identifier(grant.column))
    return sql.SQL("GRANT {} ON {} TO {}{}").format(what, table, who, option)


def _comments(shape: Shape, table: sql.Identifier) -> Iterator[sql.Composed]:
    if shape.comment is not None:
        yield sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(shape.comment))
    for column in shape.columns:
        if column.comment is not None:
            where = sql.Identifier(*table._obj, column.name)  # noqa: SLF001 - a name longer by one part
            yield sql.SQL("COMMENT ON COLUMN {} IS {}").format(where, sql.Literal(column.comment))
    for constraint in shape.constraints:
        if constraint.kind != "f":
            yield from constraint_comment(constraint, table)
    for index in shape.indexes:
        if index.comment is not None:
            where = _beside(table, index.name)
            yield sql.SQL("COMMENT ON INDEX {} IS {}").format(where, sql.Literal(index.comment))


def constraint_comment(each: Constraint, table: sql.Identifier) -> Iterator[sql.Composed]:
    """Compose the comment of a constraint, if it has one."""
    if each.comment is not None:
        yield sql.SQL("COMMENT ON CONSTRAINT {} ON {} IS {}").format(
            sql.Identifier(each.name), table, sql.Literal(each.comment)
        )


def ddl(shape: Shape) -> tuple[str, ...]:
    """Render everything but foreign keys as SQL text, for people who rebuild a table without pgvigil."""
    table = shape.table
    owned = [(each.name, each.numbering) for each in shape.columns if each.numbering and not each.identity]
    statements = [create_sequence(numbering) for _, numbering in owned]
    statements += [create_table(shape, table), *column_settings(shape, table), *checks(shape, table)]
    statements += [own_sequence(numbering, table, column) for column, numbering in owned]
    statements += [*keys(shape, table), *dressings(shape, table)]
    statements += [statement for _, statement in companions(shape, table)]
    return tuple(statement.as_string(None) for statement in statements)


def foreign_key_ddl(shape: Shape) -> tuple[str, ...]:
    """Render the foreign keys as SQL text."""
    statements: list[sql.Composed] = []
    for each in foreign_keys(shape):
        statements += [add_foreign_key(each, shape), *constraint_comment(each, shape.table)]
    return tuple(statement.as_string(None) for statement in statements)
