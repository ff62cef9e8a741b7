"""What cannot be copied, found while the table is still whole and in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive import digest
from pgvigil.archive.tree import read_tree
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.postgres import savepoint
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.archive.tree import Branch
    from pgvigil.postgres import Connection

NOT_UTF8 = "22021"
_TOO_LONG = frozenset({"54000", "XX000"})  # a string, and what it is made in, takes less than 1 GiB
_DOUBTFUL = 1_000_000_000
_SMALL_TOAST = 1024 * 1024  # compressed at its best (1 to 255) no row that is doubtful takes less


def require_copyable(session: Connection, relation: int) -> None:
    """Raise PreconditionFailed where a table or tree has a name, definition or row that no copy can have."""
    digest.pin(session)
    for branch in _read(session, relation):
        if branch.is_leaf:
            _require_short_rows(session, branch)


def _read(session: Connection, relation: int) -> tuple[Branch, ...]:
    try:
        with savepoint(session):
            return read_tree(session, relation)
    except DatabaseFailed as error:
        if error.sqlstate != NOT_UTF8:
            raise
        raise PreconditionFailed(
            "a name, comment, constraint or default of it is not UTF-8, which this database (SQL_ASCII) does "
            f"not look at and a manifest cannot have: {error.message}",
            hint="write it anew in UTF-8; what stands in the rows may be any bytes",
        ) from error


def _require_short_rows(session: Connection, leaf: Branch) -> None:
    """Look at the sizes that the rows have stored with them, and render only what may be too long."""
    columns = session.execute(query("archive", "long_columns"), {"oid": leaf.relation}).fetchall()
    if not columns or columns[0]["toast_size"] < _SMALL_TOAST:
        return
    sizes = [_most(row["name"], is_counted=row["is_counted"]) for row in columns]
    doubtful = session.execute(
        sql.SQL("SELECT ctid::text AS place, ARRAY[{}]::bigint[] AS sizes FROM ONLY {} WHERE {} > {}").format(
            sql.SQL(", ").join(sizes), leaf.shape.table, sql.SQL(" + ").join(sizes), sql.Literal(_DOUBTFUL)
        )
    ).fetchall()
    for row in doubtful:
        longest = max(zip(row["sizes"], columns, strict=True), key=lambda pair: pair[0])[1]["name"]
        _render(session, leaf, row["place"], longest)


def _most(column: str, *, is_counted: bool) -> sql.Composed:
    """Compose how long a value's text may be at most, from what is known without reading it whole.

    Text at worst doubles when it is escaped, and bytes do as hexadecimal digits. Of other types only the
    stored size is known, which compression made smaller by 90 times (pglz) or 255 (lz4) at most.
    """
    text = "coalesce(2 * octet_length({0})::bigint, 0)"
    stored = (
        "coalesce(4 * pg_column_size({0})::bigint * CASE pg_column_compression({0})"
        " WHEN 'pglz' THEN 90 WHEN 'lz4' THEN 255 ELSE 1 END, 0)"
    )
    return sql.SQL(text if is_counted else stored).format(sql.Identifier(column))


def _render(session: Connection, leaf: Branch, place: str, column: str) -> None:
    line = digest.line(leaf.shape.stored_columns)
    statement = sql.SQL("SELECT octet_length({}) FROM ONLY {} WHERE ctid = {}::tid").format(
        line, leaf.shape.table, sql.Literal(place)
    )
    try:
        with savepoint(session):
            session.execute(statement)
    except DatabaseFailed as error:
        if error.sqlstate not in _TOO_LONG:
            raise
        raise PreconditionFailed(
            f"a row of '{leaf.name}' (ctid {place}) is longer than 1 GiB as text, most of it in column "
            f"'{column}', and COPY carries no such row: {error.message}",
            hint="store the value in parts or as a large object, or put the partition under hold: it stays",
        ) from error
