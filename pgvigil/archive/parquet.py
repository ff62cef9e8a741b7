"""The same rows as Parquet, for queries in place: never instead of the exact copy, always beside it.

PostgreSQL turns each value into something that Parquet holds exactly (a date into its number of days, bytes
into hexadecimal), and computes a digest of that. The files, downloaded again, must give the same digest.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from psycopg import sql

from pgvigil.archive.digest import Digest, field, join_fields, total_of
from pgvigil.archive.manifest import ParquetFile
from pgvigil.errors import PreconditionFailed
from pgvigil.postgres import copy_out
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pgvigil.archive.manifest import ParquetCopy
    from pgvigil.archive.shape import Column, Shape
    from pgvigil.objectstore import ObjectLock, ObjectStore
    from pgvigil.policies.partitions import ParquetPolicy
    from pgvigil.postgres import Connection

ALGORITHM = "sum of the first 120 bits of sha256 of each row's line of values as Parquet holds them"
GROUP_SIZE = 4 * 1024 * 1024  # of text; what is held in memory as a table
FILE_SIZE = 64 * 1024 * 1024  # of text; what is held in memory as bytes, much smaller by then
BATCH_ROWS = 4096  # what is held in memory as Python values
COMPRESSION = "zstd"
_MOST_DIGITS = 38


@dataclass(frozen=True)
class Kind:
    """How values of a type travel: as `sent`, read as `read`, stored as `stored`.

    `line` is their text in the digest, and `show` computes it from what Parquet holds. Where `spoils` is
    true of a value, Parquet would change it.
    """

    stored: pa.DataType
    read: pa.DataType
    sent: str = "{}"
    line: str = "{}::text"
    show: Callable[[Any], str] = str
    spoils: str = ""
    why: str = ""


def _show_float(code: str) -> Callable[[float], str]:
    def show(value: float) -> str:
        return "NaN" if value != value else struct.pack(code, value).hex()  # noqa: PLR0124 - NaN is no other

    return show


def _float(stored: pa.DataType, send: str, code: str) -> Kind:
    line = f"CASE WHEN {{0}} = 'NaN' THEN 'NaN' ELSE encode({send}({{0}}), 'hex') END"
    return Kind(stored, stored, line=line, show=_show_float(code))


def _show_bool(value: bool) -> str:
    return "t" if value else "f"


def _show_decimal(value: object) -> str:
    return format(value, "f")


def _moment(stored: pa.DataType) -> Kind:
    # int64 counts microseconds until 294247-01-10, PostgreSQL's type does not end before 294277.
    spoils = "NOT isfinite({0}) OR {0} >= '294247-01-01'"
    why = "infinite, or beyond the year 294246"
    return Kind(stored, pa.int64(), _MICROSECONDS, _MICROSECONDS + "::text", spoils=spoils, why=why)


_MICROSECONDS = "(extract(epoch FROM {0}) * 1000000)::bigint"
_DAYS = "({0} - '1970-01-01'::date)"
_HEX = "encode({0}, 'hex')"

_KINDS = {
    16: Kind(pa.bool_(), pa.bool_(), line="concat({0})", show=_show_bool),
    21: Kind(pa.int16(), pa.int16()),
    23: Kind(pa.int32(), pa.int32()),
    20: Kind(pa.int64(), pa.int64()),
    26: Kind(pa.uint32(), pa.uint32()),
    700: _float(pa.float32(), "float4send", ">f"),
    701: _float(pa.float64(), "float8send", ">d"),
    17: Kind(pa.binary(), pa.string(), _HEX, _HEX, bytes.hex),
    1082: Kind(pa.date32(), pa.int32(), _DAYS, _DAYS + "::text", spoils="NOT isfinite({0})", why="infinite"),
    1083: Kind(
        pa.time64("us"),
        pa.int64(),
        _MICROSECONDS,
        _MICROSECONDS + "::text",
        spoils="{0} = '24:00'",
        why="24:00",
    ),
    1114: _moment(pa.timestamp("us")),
    1184: _moment(pa.timestamp("us", "UTC")),
}
# Their values are text: text, varchar, char, name, json, jsonb, xml, uuid.
_TEXTS = frozenset({25, 1043, 1042, 19, 114, 3802, 142, 2950})
_NUMERIC = 1700
_PRECISION = re.compile(r"numeric\((\d+),(\d+)\)")
_ESCAPES = str.maketrans(
    {"\\": r"\\", "\b": r"\b", "\t": r"\t", "\n": r"\n", "\v": r"\v", "\f": r"\f", "\r": r"\r"}
)


def _show_text(value: str) -> str:
    return value.translate(_ESCAPES)


_TEXT = Kind(pa.string(), pa.string(), show=_show_text)


def _kind(column: Column) -> Kind | None:
    """Say how a column's values travel; None when Parquet has no type for them."""
    if column.type_oid in _TEXTS:
        return _TEXT
    if column.type_oid != _NUMERIC:
        return _KINDS.get(column.type_oid)
    found = _PRECISION.fullmatch(column.type)
    if not found or not int(found[2]) <= int(found[1]) <= _MOST_DIGITS:
        return None
    stored = pa.decimal128(int(found[1]), int(found[2]))
    return Kind(stored, stored, show=_show_decimal, spoils="{0} = 'NaN'", why="NaN")


class Change(Frozen):
    """A column whose values Parquet would change, and how."""

    column: str
    why: str

    def __str__(self) -> str:
        return f"'{self.column}' ({self.why})"


@dataclass(frozen=True)
class Layout:
    """How a table's columns become Parquet."""

    shape: Shape
    kinds: tuple[Kind, ...]
    as_text: tuple[str, ...]

    @property
    def schema(self) -> pa.Schema:
        """The schema of the files."""
        pairs = zip(self.shape.columns, self.kinds, strict=True)
        return pa.schema([(column.name, kind.stored) for column, kind in pairs])


def survey(session: Connection, shape: Shape, encoding: str, policy: ParquetPolicy) -> Layout:
    """Look which values Parquet would change; raises PreconditionFailed, naming the columns.

    Reads the table once when it has columns of types that Parquet holds in part. Columns that the policy
    lets be text are stored as PostgreSQL writes them.
    """
    _require_text(shape, encoding)
    wanted = {column.name: _kind(column) for column in shape.columns}
    named = set(policy.as_text)
    kinds = {name: kind for name, kind in wanted.items() if kind and name not in named}
    changes = [
        Change(column=column.name, why=f"{column.type}: Parquet has no such type")
        for column in shape.columns
        if wanted[column.name] is None
    ]
    changes += _spoiled(session, shape, kinds)
    refused = [change for change in changes if not {"*", change.column} & named]
    if refused:
        raise PreconditionFailed(
            f"Parquet would change values of '{shape.schema_}.{shape.name}': {', '.join(map(str, refused))}",
            hint="name them in parquet.as_text to store PostgreSQL's text of them ('*' for all such columns),"
            " or take parquet out of the policy",
        )
    text = {change.column for change in changes} | named & wanted.keys()
    return Layout(
        shape=shape,
        kinds=tuple(_TEXT if name in text else kind or _TEXT for name, kind in wanted.items()),
        as_text=tuple(name for name in wanted if name in text),
    )


def _require_text(shape: Shape, encoding: str) -> None:
    if encoding == "SQL_ASCII" or not shape.columns:
        raise PreconditionFailed(
            f"'{shape.schema_}.{shape.name}' cannot be Parquet: "
            + (
                "the database does not know the encoding of its text"
                if shape.columns
                else "it has no columns"
            ),
            hint="take parquet out of the policy of this table",
        )


def _spoiled(session: Connection, shape: Shape, kinds: dict[str, Kind]) -> list[Change]:
    """Find the columns that have a value which Parquet would change; one scan for all of them."""
    partly = [(name, kind) for name, kind in kinds.items() if kind.spoils]
    if not partly:
        return []
    asked = [
        sql.SQL("coalesce(bool_or({}), false) AS {}").format(
            _filled(kind.spoils, name), sql.Identifier(str(number))
        )
        for number, (name, kind) in enumerate(partly)
    ]
    statement = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(asked), shape.table)
    row = session.execute(statement).fetchall()[0]
    return [Change(column=name, why=kind.why) for n, (name, kind) in enumerate(partly) if row[str(n)]]


def _filled(template: str, name: str) -> sql.Composable:
    return sql.SQL(template).format(sql.Identifier(name))


def line(layout: Layout) -> sql.Composed:
    """Compose the line of a row as the digest takes it."""
    pairs = zip(layout.shape.columns, layout.kinds, strict=True)
    return join_fields([_line(column, kind) for column, kind in pairs])


def _line(column: Column, kind: Kind) -> sql.Composable:
    if kind is _TEXT:
        return field(column)
    text = _filled(kind.line, column.name)
    return sql.SQL("coalesce({}, E'\\\\N')").format(text)  # none of these has what is escaped in a line


def write(
    session: Connection, layout: Layout, store: ObjectStore, uris: Iterator[str], lock: ObjectLock | None
) -> tuple[ParquetFile, ...]:
    """Stream a table's rows into Parquet files of bounded size; at least one, even of no rows.

    The session's settings are those of `digest.pin`, its encoding UTF8.
    """
    pairs = zip(layout.shape.columns, layout.kinds, strict=True)
    values = sql.SQL(", ").join(_filled(kind.sent, column.name) for column, kind in pairs)
    statement = sql.SQL("COPY (SELECT {} FROM {}) TO STDOUT (FORMAT csv)").format(values, layout.shape.table)
    groups = (_read(layout, piece) for piece in whole_rows(copy_out(session, statement), GROUP_SIZE))
    return tuple(_store(store, next(uris), data, rows, lock) for data, rows in _files(layout, groups))


def _store(store: ObjectStore, uri: str, data: bytes, rows: int, lock: ObjectLock | None) -> ParquetFile:
    head = store.put(uri, data, content_type="application/vnd.apache.parquet", only_if_absent=True, lock=lock)
    sha256 = hashlib.sha256(data).hexdigest()
    return ParquetFile(uri=uri, version_id=head.version_id, sha256=sha256, size=len(data), rows=rows)


def whole_rows(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Cut CSV into pieces of about this size, each of whole rows: a line may end within quotes."""
    waiting = bytearray()
    for chunk in chunks:
        waiting += chunk
        if len(waiting) >= size and (end := _last_row_end(waiting)):
            yield bytes(waiting[:end])
            del waiting[:end]
    if waiting:
        yield bytes(waiting)


def _last_row_end(data: bytearray) -> int:
    quotes = data.count(b'"')
    end = len(data)
    while (newline := data.rfind(b"\n", 0, end)) >= 0:
        quotes -= data.count(b'"', newline, end)
        if quotes % 2 == 0:
            return newline + 1
        end = newline
    return 0


def _read(layout: Layout, piece: bytes) -> tuple[pa.Table, int]:
    """Turn a piece of CSV into a table of the files' schema; gives the piece's size with it."""
    names = [column.name for column in layout.shape.columns]
    places = [str(place) for place in range(len(names))]
    raw = pa.csv.read_csv(
        io.BytesIO(piece),
        pa.csv.ReadOptions(column_names=places, block_size=len(piece) + 1, use_threads=False),
        pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        pa.csv.ConvertOptions(
            column_types={place: kind.read for place, kind in zip(places, layout.kinds, strict=True)},
            null_values=[""],
            true_values=["t"],
            false_values=["f"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    columns = [_cast(raw.column(place), kind) for place, kind in enumerate(layout.kinds)]
    return pa.Table.from_arrays(columns, schema=layout.schema), len(piece)


def _cast(values: pa.ChunkedArray, kind: Kind) -> pa.ChunkedArray:
    if kind.stored == pa.binary():
        unhexed = [None if each is None else bytes.fromhex(each) for each in values.to_pylist()]
        return pa.chunked_array([pa.array(unhexed, pa.binary())])
    return values.cast(kind.stored)


def _files(layout: Layout, groups: Iterable[tuple[pa.Table, int]]) -> Iterator[tuple[bytes, int]]:
    """Make files of about the right size from row groups; gives each with its number of rows."""
    file = _File(layout.schema)
    is_first = True
    for group, size in groups:
        file.add(group, size)
        if file.text_size >= FILE_SIZE:
            yield file.close()
            file, is_first = _File(layout.schema), False
    if is_first or file.rows:
        yield file.close()


class _File:
    """One Parquet file on its way, in memory."""

    def __init__(self, schema: pa.Schema) -> None:
        self._bytes = io.BytesIO()
        self._writer = pa.parquet.ParquetWriter(self._bytes, schema, compression=COMPRESSION)
        self.rows = 0
        self.text_size = 0

    def add(self, group: pa.Table, text_size: int) -> None:
        self._writer.write_table(group, row_group_size=max(1, group.num_rows))
        self.rows += group.num_rows
        self.text_size += text_size

    def close(self) -> tuple[bytes, int]:
        self._writer.close()
        return self._bytes.getvalue(), self.rows


def read_back(store: ObjectStore, copy: ParquetCopy, shape: Shape) -> Digest:
    """Download the files one by one and compute the digest of what they hold.

    A file whose bytes are not those that were sent is not looked into, so its rows are missing.
    """
    shows = [_show_of(column, copy.as_text) for column in shape.columns]
    found = []
    for file in copy.files:
        data = store.get(file.uri)
        if hashlib.sha256(data).hexdigest() == file.sha256:
            found += [_digest(batch, shows) for batch in _batches(data)]
    return Digest.added(found)


def _show_of(column: Column, as_text: Sequence[str]) -> Callable[[Any], str]:
    kind = None if column.name in as_text else _kind(column)
    return (kind or _TEXT).show


def _batches(data: bytes) -> Iterator[pa.RecordBatch]:
    file = pa.parquet.ParquetFile(io.BytesIO(data))
    yield from file.iter_batches(BATCH_ROWS, use_threads=False)


def _digest(batch: pa.RecordBatch, shows: Sequence[Callable[[Any], str]]) -> Digest:
    columns = [
        ["\\N" if value is None else show(value) for value in _plain(batch.column(place)).to_pylist()]
        for place, show in enumerate(shows)
    ]
    lines = ("\t".join(row).encode() for row in zip(*columns, strict=True))
    return total_of(lines)


def _plain(values: pa.Array) -> pa.Array:
    """Give moments as the numbers that they are: Python's own types reach from year 1 to 9999."""
    if pa.types.is_date32(values.type):
        return values.cast(pa.int32())
    if pa.types.is_timestamp(values.type) or pa.types.is_time64(values.type):
        return values.cast(pa.int64())
    return values
