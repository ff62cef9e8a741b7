"""The SQL of a backfill that is made of names and of people's expressions; one function per statement.

Expressions come from the fleet file, whose owner may run SQL here anyway. Each stands in parentheses on
lines of its own, so that a comment in it ends where it does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.backfill.facts import Key, KeyColumn, Leaf, Target
    from pgvigil.policies.backfills import BackfillPolicy

LAST_IN_BLOCK = 65535

Span = Literal["first", "next", "one"]
"""The rows up to a key; those between two keys, without the first; the row of a key."""


def expression(text: str) -> sql.Composed:
    """Let a person's expression stand as one operand; a percent sign is doubled, as parameters follow."""
    trusted = text.replace("%", "%%")
    return sql.SQL("(\n{}\n)").format(sql.SQL(trusted))


def named(*parts: str) -> sql.Identifier:
    """Write a name; a percent sign in it is doubled, as every statement here is executed with parameters."""
    return sql.Identifier(*(part.replace("%", "%%") for part in parts))


def relation(leaf: Leaf) -> sql.Composed:
    """Name a table."""
    return sql.SQL("{}").format(named(leaf.schema_name, leaf.name))


def parameters(name: str, key: Key | Sequence[str] | None) -> dict[str, str]:
    """Return the parameters of one key: its columns' values as text."""
    return {f"{name}{place}": value for place, value in enumerate(key or ())}


def boundary(target: Target, leaf: Leaf, *, span: Span) -> sql.Composed:
    """Find the last of the next so many rows, `skip` after the first; by ctid up to `most0` as well.

    The key becomes text outside, or that of every row that is skipped would.
    """
    near = sql.SQL(" AND ctid <= %(most0)s::tid") if leaf.index is None else sql.SQL("")
    return sql.SQL(
        "SELECT {texts} FROM (SELECT {names} FROM ONLY {table} AS {alias} WHERE {interval}{near}"
        " ORDER BY {keys} OFFSET %(skip)s LIMIT 1) AS {alias}"
    ).format(
        texts=_texts(target, leaf),
        names=sql.SQL(", ").join(
            sql.SQL("{}.{}").format(named(target.name), named(c.name)) for c in leaf.key
        ),
        table=relation(leaf),
        alias=named(target.name),
        interval=_interval(target, leaf, span=span),
        near=near,
        keys=_keys(target, leaf),
    )


def edges(target: Target, leaf: Leaf, *, span: Span) -> sql.Composed:
    """Find the places of the first and of the last row of an interval."""
    columns = _columns(target, leaf)
    orders = [sql.SQL(", ").join(columns), sql.SQL(", ").join(key + sql.SQL(" DESC") for key in columns)]
    places = [
        sql.SQL(
            "(SELECT {alias}.ctid FROM ONLY {table} AS {alias} WHERE {interval} ORDER BY {order} LIMIT 1)"
        ).format(
            alias=named(target.name),
            table=relation(leaf),
            interval=_interval(target, leaf, span=span),
            order=order,
        )
        for order in orders
    ]
    return sql.SQL("SELECT least({0}, {1})::text AS low, greatest({0}, {1})::text AS high").format(*places)


def newest(target: Target, leaf: Leaf) -> sql.Composed:
    """Find the last key."""
    descending = sql.SQL(", ").join(key + sql.SQL(" DESC") for key in _columns(target, leaf))
    return sql.SQL("SELECT {texts} FROM ONLY {table} AS {alias} ORDER BY {keys} LIMIT 1").format(
        texts=_texts(target, leaf),
        table=relation(leaf),
        alias=named(target.name),
        keys=descending,
    )


def sample_keys(target: Target, leaf: Leaf) -> sql.Composed:
    """Read the keys of `percent` of the blocks, in order."""
    return sql.SQL(
        "SELECT {texts} FROM ONLY {table} AS {alias} TABLESAMPLE SYSTEM (%(percent)s) ORDER BY {keys}"
    ).format(
        texts=_texts(target, leaf),
        table=relation(leaf),
        alias=named(target.name),
        keys=_keys(target, leaf),
    )


def sample_share(target: Target, leaf: Leaf, policy: BackfillPolicy) -> sql.Composed:
    """Count the rows, and those to change, in `percent` of the blocks."""
    return sql.SQL(
        "SELECT count(*) AS rows, count(*) FILTER (WHERE {where}) AS todo"
        " FROM ONLY {table} AS {alias} TABLESAMPLE SYSTEM (%(percent)s)"
    ).format(where=expression(policy.where), table=relation(leaf), alias=named(target.name))


def closed(target: Target, leaf: Leaf, text: str) -> sql.Composed:
    """Read an expression between brackets: one that closes our parentheses is a syntax error there."""
    return sql.SQL("SELECT ARRAY[\n{}\n] FROM ONLY {} AS {} WHERE false").format(
        sql.SQL(text.replace("%", "%%")), relation(leaf), named(target.name)
    )


def change(
    target: Target, leaf: Leaf, policy: BackfillPolicy, *, span: Span, turn: bool = False
) -> sql.Composed:
    """Change the rows of an interval, or insert what they give; waits for rows that others hold."""
    interval = _interval(target, leaf, span=span, turn=turn)
    if policy.into:
        return _insert(target, leaf, policy, interval)
    return sql.SQL("UPDATE ONLY {table} AS {alias} SET {writes} WHERE {interval} AND {where}").format(
        table=relation(leaf),
        alias=named(target.name),
        writes=_writes(policy),
        interval=interval,
        where=expression(policy.where),
    )


def change_unlocked(  # noqa: PLR0913 - the parts of one statement
    target: Target, leaf: Leaf, policy: BackfillPolicy, *, span: Span, wait: bool, turn: bool = False
) -> sql.Composed:
    """Change the rows of an interval that nobody else holds, and keep what they held if that is asked for.

    The rows are locked first and joined by key, so that each is changed as it is now.
    """
    if policy.into:
        return _insert(target, leaf, policy, _interval(target, leaf, span=span))
    columns = _columns(target, leaf)
    names = [named(f"pgvigil key {place}") for place, _ in enumerate(columns)]
    locked = [c + sql.SQL(" AS ") + n for c, n in zip(columns, names, strict=True)]
    same = [c + sql.SQL(" = held.") + n for c, n in zip(columns, names, strict=True)]
    before, returning, keep = _before(target, leaf, policy)
    statement = sql.SQL(
        "WITH held AS MATERIALIZED (SELECT {locked} FROM ONLY {table} AS {alias} WHERE {interval} AND {where}"
        " FOR NO KEY UPDATE{skip}), changed AS (UPDATE ONLY {table} AS {alias} SET {writes} FROM held"
        " WHERE {same} AND {where} RETURNING {returning}){keep} SELECT count(*) AS done FROM changed"
    )
    return statement.format(
        locked=sql.SQL(", ").join([*locked, *before]),
        table=relation(leaf),
        alias=named(target.name),
        interval=_interval(target, leaf, span=span, turn=turn),
        where=expression(policy.where),
        skip=sql.SQL("" if wait else " SKIP LOCKED"),
        writes=_writes(policy),
        same=sql.SQL(" AND ").join(same),
        returning=returning,
        keep=keep,
    )


def _before(
    target: Target, leaf: Leaf, policy: BackfillPolicy
) -> tuple[list[sql.Composed], sql.Composable, sql.Composable]:
    """Compose the parts of a change that keep what rows held: columns to hold, to return, and the insert."""
    if not policy.before_images:
        return [], sql.SQL("1"), sql.SQL("")
    alias = named(target.name)
    names = [named(f"pgvigil before {place}") for place, _ in enumerate(policy.targets)]
    columns = [sql.SQL("{}.{}").format(alias, named(name)) for name in policy.targets]
    held = [c + sql.SQL("::text AS ") + n for c, n in zip(columns, names, strict=True)]
    arrays = [
        sql.SQL(", ").join(c + sql.SQL("::text") for c in _columns(target, leaf)),
        sql.SQL(", ").join(sql.SQL("held.") + n for n in names),
        sql.SQL(", ").join(c + sql.SQL("::text") for c in columns),
    ]
    returning = sql.SQL("ARRAY[{}] AS key, ARRAY[{}] AS before, ARRAY[{}] AS after").format(*arrays)
    return held, returning, sql.SQL(", kept AS ({})").format(sql.SQL(_KEEP))


_KEEP = (
    "INSERT INTO pgvigil.backfill_image"
    " (backfill, relation, key_columns, key, columns, before, after, expires_at)"
    " SELECT %(name)s, %(relation)s::oid, %(key_columns)s::text[], key, %(columns)s::text[], before, after,"
    " %(expires)s FROM changed"
)


def restore(target: Target, leaf: Leaf, columns: Sequence[str]) -> sql.Composed:
    """Give rows back what they held, unless somebody has changed them since.

    Takes the newest images that have these columns, of each row the newest only: a row that was changed
    twice goes back one step at a time.
    """
    types = {column.name: column.type for column in target.columns}
    alias = named(target.name)
    writes, unchanged = [], []
    for place, name in enumerate(columns, 1):
        column, kind = named(name), sql.SQL(types[name])
        writes.append(sql.SQL("{} = image.before[{}]::{}").format(column, sql.Literal(place), kind))
        unchanged.append(
            sql.SQL("{}.{}::text IS NOT DISTINCT FROM image.after[{}]").format(
                alias, column, sql.Literal(place)
            )
        )
    same = [
        c + sql.SQL(" = image.key[{}]::{}").format(sql.Literal(place), _type(leaf.key[place - 1]))
        for place, c in enumerate(_columns(target, leaf), 1)
    ]
    return sql.SQL(
        "WITH newest AS (SELECT id, key FROM pgvigil.backfill_image"
        " WHERE backfill = %(name)s AND relation = %(relation)s::oid AND id >= %(first)s"
        " ORDER BY id DESC LIMIT %(most)s),"
        " image AS (DELETE FROM pgvigil.backfill_image WHERE id IN (SELECT max(id) FROM newest GROUP BY key)"
        " RETURNING *), changed AS (UPDATE ONLY {table} AS {alias} SET {writes} FROM image"
        " WHERE {same} AND {unchanged} RETURNING image.id)"
        " SELECT (SELECT count(*) FROM image) AS images, (SELECT count(*) FROM changed) AS done,"
        " (SELECT array_agg(array_to_string(key, ', ')) FROM (SELECT key FROM image"
        " WHERE id NOT IN (SELECT id FROM changed) LIMIT 20) AS few) AS kept"
    ).format(
        table=relation(leaf),
        alias=alias,
        writes=sql.SQL(", ").join(writes),
        same=sql.SQL(" AND ").join(same),
        unchanged=sql.SQL(" AND ").join(unchanged),
    )


def lock_rows(  # noqa: PLR0913 - the parts of one statement
    target: Target, leaf: Leaf, policy: BackfillPolicy, *, span: Span, wait: bool, turn: bool = False
) -> sql.Composed:
    """Read the rows of an interval whole for a function, and hold them."""
    return sql.SQL(
        "SELECT {alias}.*, ARRAY[{texts}] AS {key} FROM ONLY {table} AS {alias}"
        " WHERE {interval} AND {where} ORDER BY {keys} FOR NO KEY UPDATE{skip}"
    ).format(
        alias=named(target.name),
        texts=sql.SQL(", ").join(c + sql.SQL("::text") for c in _columns(target, leaf)),
        key=named(ROW_KEY),
        table=relation(leaf),
        interval=_interval(target, leaf, span=span, turn=turn),
        where=expression(policy.where),
        keys=_keys(target, leaf),
        skip=sql.SQL("" if wait else " SKIP LOCKED"),
    )


ROW_KEY = "pgvigil key"


def write_row(target: Target, leaf: Leaf, policy: BackfillPolicy) -> sql.Composed:
    """Write what a function gave for one row that is held, and keep what it held if that is asked for."""
    writes = [
        sql.SQL("{} = %({})s").format(named(c), sql.SQL(f"new{n}")) for n, c in enumerate(policy.columns)
    ]
    parts = {
        "table": relation(leaf),
        "alias": named(target.name),
        "writes": sql.SQL(", ").join(writes),
        "row": _row(_columns(target, leaf)),
        "key": _values(leaf, "key"),
    }
    if not policy.before_images:
        return sql.SQL("UPDATE ONLY {table} AS {alias} SET {writes} WHERE {row} = {key}").format(**parts)
    held, returning, _ = _before(target, leaf, policy)
    return sql.SQL(
        "WITH held AS MATERIALIZED (SELECT {held} FROM ONLY {table} AS {alias} WHERE {row} = {key}),"
        " changed AS (UPDATE ONLY {table} AS {alias} SET {writes} FROM held WHERE {row} = {key}"
        " RETURNING {returning}) {keep}"
    ).format(held=sql.SQL(", ").join(held), returning=returning, keep=sql.SQL(_KEEP), **parts)


def rows_in(target: Target, leaf: Leaf, *, span: Span) -> sql.Composed:
    """Count the rows of an interval, done or not."""
    return sql.SQL("SELECT count(*) AS rows FROM ONLY {table} AS {alias} WHERE {interval}").format(
        table=relation(leaf), alias=named(target.name), interval=_interval(target, leaf, span=span)
    )


def left_in(target: Target, leaf: Leaf, policy: BackfillPolicy, *, span: Span) -> sql.Composed:
    """Count the rows of an interval that are still to change."""
    return sql.SQL(
        "SELECT count(*) AS left FROM ONLY {table} AS {alias} WHERE {interval} AND {where}"
    ).format(
        table=relation(leaf),
        alias=named(target.name),
        interval=_interval(target, leaf, span=span),
        where=expression(policy.where),
    )


def left(target: Target, policy: BackfillPolicy) -> sql.Composed:
    """Count the rows of the whole table that are still to change."""
    return sql.SQL("SELECT count(*) AS left FROM {table} AS {alias} WHERE {where}").format(
        table=named(target.schema_name, target.name),
        alias=named(target.name),
        where=expression(policy.where),
    )


def one(target: Target, leaf: Leaf, policy: BackfillPolicy) -> sql.Composed:
    """Tell whether the row of a key is still to change."""
    return sql.SQL("SELECT 1 FROM ONLY {table} AS {alias} WHERE {row} = {key} AND {where}").format(
        table=relation(leaf),
        alias=named(target.name),
        row=_row(_columns(target, leaf)),
        key=_values(leaf, "key"),
        where=expression(policy.where),
    )


def explain(statement: sql.Composable) -> sql.Composed:
    """Ask for a statement's plan."""
    return sql.SQL("EXPLAIN (FORMAT JSON) ") + statement


def explain_analyze(statement: sql.Composable) -> sql.Composed:
    """Run a statement and ask what it did, its WAL included."""
    return sql.SQL("EXPLAIN (ANALYZE, WAL, TIMING OFF, FORMAT JSON) ") + statement


def vacuum(leaf: Leaf) -> sql.Composed:
    """Make the room of old row versions free; never waits for a lock, and takes none that blocks users."""
    return sql.SQL("VACUUM (SKIP_LOCKED, TRUNCATE off, PARALLEL 0) {}").format(relation(leaf))


def add_check(target: Target, column: str, constraint: str) -> sql.Composed:
    """Promise NOT NULL for new rows."""
    return sql.SQL("ALTER TABLE {} ADD CONSTRAINT {} CHECK ({} IS NOT NULL) NOT VALID").format(
        _table(target), named(constraint), named(column)
    )


def validate_check(target: Target, constraint: str) -> sql.Composed:
    """Prove the promise for all rows, while they are read and written."""
    return sql.SQL("ALTER TABLE {} VALIDATE CONSTRAINT {}").format(_table(target), named(constraint))


def set_not_null(target: Target, column: str) -> sql.Composed:
    """Make the column NOT NULL; with the proven CHECK no row is read."""
    return sql.SQL("ALTER TABLE {} ALTER COLUMN {} SET NOT NULL").format(_table(target), named(column))


def drop_check(target: Target, constraint: str) -> sql.Composed:
    """Drop the CHECK, which has served."""
    return sql.SQL("ALTER TABLE {} DROP CONSTRAINT IF EXISTS {}").format(_table(target), named(constraint))


def _table(target: Target) -> sql.Composed:
    return sql.SQL("{}").format(named(target.schema_name, target.name))


def _insert(target: Target, leaf: Leaf, policy: BackfillPolicy, interval: sql.Composable) -> sql.Composed:
    assert policy.into  # noqa: S101 - the caller looked
    return sql.SQL(
        "INSERT INTO {into} ({columns}) SELECT {values} FROM ONLY {table} AS {alias}"
        " WHERE {interval} AND {where}"
    ).format(
        into=sql.SQL(policy.into.replace("%", "%%")),
        columns=sql.SQL(", ").join(map(named, policy.set)),
        values=sql.SQL(", ").join(map(expression, policy.set.values())),
        table=relation(leaf),
        alias=named(target.name),
        interval=interval,
        where=expression(policy.where),
    )


def _writes(policy: BackfillPolicy) -> sql.Composed:
    writes = [sql.SQL("{} = ").format(named(c)) + expression(e) for c, e in policy.set.items()]
    return sql.SQL(", ").join(writes)


def _interval(target: Target, leaf: Leaf, *, span: Span, turn: bool = False) -> sql.Composed:
    row = _row(_columns(target, leaf))
    if span == "one":
        return sql.SQL("{} = {}").format(row, _values(leaf, "to"))
    bounds = [sql.SQL("{} <= {}").format(row, _values(leaf, "to"))]
    if span == "next":
        bounds.append(sql.SQL("{} > {}").format(row, _values(leaf, "after")))
    return _turn(target, bounds) if turn else sql.SQL(" AND ").join(bounds)


def _turn(target: Target, bounds: Sequence[sql.Composed]) -> sql.Composed:
    """Take a part of each page's rows; one that moves meanwhile is left for the last, which takes all.

    The pages are read one after the other: bounds in this form do not make the planner think of the index.
    """
    return sql.SQL(
        "{place} BETWEEN %(low)s::tid AND %(high)s::tid AND {bounds}"
        " AND pg_catalog.hashtid({place}) & %(most)s = %(turn)s"
    ).format(
        place=sql.SQL("{}.ctid").format(named(target.name)),
        bounds=sql.SQL(" AND ").join(sql.SQL("({}) IS TRUE").format(bound) for bound in bounds),
    )


def _columns(target: Target, leaf: Leaf) -> list[sql.Composed]:
    alias = named(target.name)
    return [_collate(sql.SQL("{}.{}").format(alias, named(c.name)), c) for c in leaf.key]


def _collate(name: sql.Composed, column: KeyColumn) -> sql.Composed:
    if column.collation is None:
        return name
    return sql.SQL("({} COLLATE {})").format(name, named(*column.collation))


def _keys(target: Target, leaf: Leaf) -> sql.Composed:
    return sql.SQL(", ").join(_columns(target, leaf))


def _texts(target: Target, leaf: Leaf) -> sql.Composed:
    texts = [
        sql.SQL("{}.{}::text AS {}").format(named(target.name), named(c.name), named(f"k{place}"))
        for place, c in enumerate(leaf.key)
    ]
    return sql.SQL(", ").join(texts)


def _row(columns: Sequence[sql.Composable]) -> sql.Composable:
    return columns[0] if len(columns) == 1 else sql.SQL("({})").format(sql.SQL(", ").join(columns))


def _values(leaf: Leaf, name: str) -> sql.Composable:
    values = [
        sql.SQL("{}::{}").format(sql.Placeholder(f"{name}{place}"), _type(column))
        for place, column in enumerate(leaf.key)
    ]
    return _row(values)


def _type(column: KeyColumn) -> sql.SQL:
    """Write a type as the catalog's own format_type gave it, quoted where it must be."""
    return sql.SQL(column.type.replace("%", "%%"))
