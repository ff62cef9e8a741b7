"""The lines of rows as PostgreSQL renders them, and the digest that adds them up in any order.

A row's line is what COPY writes for it in text format, without the newline; PostgreSQL renders it in SQL, so
a COPY that left something out does not agree with it. The exact copy is hashed block by block, see `blocks`.
Parquet, whose rows are cut into other pieces, has the sum over all rows of the first 120 bits of SHA-256 of
the line: the order of rows plays no part, a row more or less or another does, and a row that stands there
twice counts twice.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pgvigil.archive.shape import Column
    from pgvigil.postgres import Connection

# Under these a value has one text only. Without row security a hidden row is an error, not an absence.
SETTINGS = {
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "search_path": "pg_catalog",
    "row_security": "off",
    "synchronize_seqscans": "off",  # a scan begins at the first row
}

_HALF = 60
_HALF_DIGITS = _HALF // 4

# Types whose output never has what COPY escapes: numbers, moments, switches, addresses, shapes, ranges of
# these and arrays of the commonest.
_PLAIN = frozenset(
    {16, 20, 21, 23, 26, 27, 28, 29, 600, 601, 602, 603, 604, 628, 650, 700, 701, 718, 774, 829, 869, 1082}
    | {1083, 1114, 1184, 1186, 1266, 1560, 1562, 1700, 2950, 3220, 3904, 3906, 3908, 3910, 3912, 3926, 5069}
    | {1000, 1005, 1007, 1016, 1021, 1022, 1115, 1182, 1185, 1231, 2951}
)
_MOST_FIELDS = 45  # of one function call PostgreSQL takes 100 arguments, and a field may be two
_TEXTS = frozenset({25, 1043})  # text, varchar
_BACKSLASHED = frozenset(
    {17, 3802}
)  # bytea, jsonb: of what COPY escapes their output has the backslash alone


class Digest(Frozen):
    """How many rows there are, and their digest in hexadecimal; by blocks, how many rows each has."""

    rows: int
    value: str
    blocks: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.rows} rows, digest {self.value}"

    @classmethod
    def of_tables(cls, parts: Iterable[Digest]) -> Digest:
        """Make one digest of those of several tables, in their order."""
        known = list(parts)
        values = "\n".join(each.value for each in known)
        return cls(rows=sum(each.rows for each in known), value=hashlib.sha256(values.encode()).hexdigest())

    @classmethod
    def added(cls, parts: Iterable[Digest]) -> Digest:
        """Add up the digests of parts of one table."""
        known = list(parts)
        return cls(
            rows=sum(each.rows for each in known), value=_hex(sum(int(each.value, 16) for each in known))
        )


def pin(session: Connection, encoding: str | None = None) -> None:
    """Set everything that the text of a value depends on, and the encoding that it travels in."""
    encodings = {"client_encoding": encoding} if encoding else {}
    for name, value in {**SETTINGS, **encodings}.items():
        session.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


def compute_lines(session: Connection, table: sql.Identifier, line: sql.Composed, encoding: str) -> Digest:
    """Let PostgreSQL compute the digest of an expression over a table's rows, under the settings of `pin`."""
    statement = sql.SQL(
        "SELECT count(*) AS rows,"
        " coalesce(sum(('x' || substr(hash, 1, {half}))::bit({bits})::bigint), 0) AS high,"
        " coalesce(sum(('x' || substr(hash, {second}, {half}))::bit({bits})::bigint), 0) AS low"
        " FROM (SELECT encode(sha256(convert_to({line}, {encoding})), 'hex') AS hash"
        "         FROM {table} OFFSET 0) AS hashes"
    ).format(
        half=sql.Literal(_HALF_DIGITS),
        second=sql.Literal(_HALF_DIGITS + 1),
        bits=sql.Literal(_HALF),
        line=line,
        encoding=sql.Literal(encoding),
        table=table,
    )
    row = session.execute(statement).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has one row
    return Digest(rows=row["rows"], value=_hex((int(row["high"]) << _HALF) + int(row["low"])))


def _hex(total: int) -> str:
    return f"{total:040x}"


def line(columns: Sequence[Column]) -> sql.Composed:
    """Compose what COPY writes for a row, without the newline."""
    return join_fields([field(column) for column in columns])


def join_fields(fields: Sequence[sql.Composable]) -> sql.Composed:
    """Compose a row's line from the texts of its columns."""
    if not fields:
        return sql.SQL("{}").format(sql.Literal(""))
    groups = [fields[start : start + _MOST_FIELDS] for start in range(0, len(fields), _MOST_FIELDS)]
    lines = [sql.SQL("concat_ws(E'\\t', {})").format(sql.SQL(", ").join(group)) for group in groups]
    return sql.SQL(" || E'\\t' || ").join(lines)


def field(column: Column) -> sql.Composed:
    """Compose one column's text in COPY's own form, as an argument of `concat_ws`, or as two.

    `concat` and `concat_ws` use a type's output function, where a cast to text may not (boolean, character,
    inet). Of the value itself `concat_ws` makes no other text in between; it skips NULL, whose mark is then
    the other argument. `num_nulls` tells NULL from a composite value all of whose fields are NULL.
    """
    name = sql.Identifier(column.name)
    if column.type_oid in _PLAIN:
        return sql.SQL("{0}, CASE WHEN {0} IS NULL THEN E'\\\\N' END").format(name)
    if column.type_oid in _TEXTS:
        return sql.SQL("coalesce({}, E'\\\\N')").format(escaped(name))
    if column.type_oid in _BACKSLASHED:
        return sql.SQL(r"coalesce(replace({}::text, {}), E'\\N')").format(name, _ESCAPES[0])
    return sql.SQL("CASE WHEN num_nulls({}) = 0 THEN {} ELSE E'\\\\N' END").format(
        name, escaped(sql.SQL("concat({})").format(name))
    )


_ESCAPES = (
    sql.SQL(r"E'\\', E'\\\\'"),
    sql.SQL(r"E'\b', E'\\b'"),
    sql.SQL(r"E'\t', E'\\t'"),
    sql.SQL(r"E'\n', E'\\n'"),
    sql.SQL(r"E'\x0B', E'\\v'"),  # in a literal of PostgreSQL \v is a plain v
    sql.SQL(r"E'\f', E'\\f'"),
    sql.SQL(r"E'\r', E'\\r'"),
)


def escaped(text: sql.Composable) -> sql.Composable:
    """Compose a text as COPY escapes it; no search is made under a collation that is not deterministic."""
    text = sql.SQL('{} COLLATE "C"').format(text)
    for escape in _ESCAPES:
        text = sql.SQL("replace({}, {})").format(text, escape)
    return text


class LineDigest:
    """The digest from the bytes of a copy, fed in pieces of any size."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._rows = 0
        self._total = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        *lines, rest = chunk.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._rest, lines[0]])
            self._rest = []
        self._rest.append(rest)
        self._rows += len(lines)
        self._total += _sum(lines)

    def result(self) -> Digest:
        """Give the digest of what was fed; a last line without its end counts as one that differs."""
        rest = list(filter(None, [b"".join(self._rest)]))
        return Digest(rows=self._rows + len(rest), value=_hex(self._total + _sum(rest)))


def total_of(lines: Iterable[bytes]) -> Digest:
    """Give the digest of lines that are whole."""
    known = list(lines)
    return Digest(rows=len(known), value=_hex(_sum(known)))


def _sum(lines: Iterable[bytes]) -> int:
    first = 2 * _HALF // 8
    number, digest = int.from_bytes, hashlib.sha256
    return sum([number(digest(line).digest()[:first], "big") for line in lines])
