"""The digest of a table in the order of its rows: computed by PostgreSQL, and by us from the copy's bytes.

A row's line is what COPY writes for it in text format. PostgreSQL renders the lines itself in SQL, so a COPY
that left something out does not agree with it. It hashes them block by block, a block being the rows of
some neighbouring pages, and says how many rows each has; from the bytes of a copy the same blocks are hashed
again. Blocks are large, so both sides hash at the speed of SHA-256 and not at that of a call per row.

The order is that of the rows in the table, which is also COPY's. A table that was rebuilt from a copy has the
same order in other pages, so there the blocks go by the number of rows alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from psycopg import sql

from pgvigil.archive.digest import Digest, line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pgvigil.archive.shape import Column
    from pgvigil.postgres import Connection

ALGORITHM = (
    "sha256 of the sha256 of each block of rows, in COPY text format and in the table's order; "
    "a line of more than 2000 bytes counts as \\sha256 and its own"
)

PAGES = 128
WIDE = 2000  # longer lines stand for themselves by their hash, so that a block's text stays small everywhere
_UNBOUNDED = 2**63

# Blocks follow each other in physical order only where nothing scans in parallel, and each is read alone.
# Compiled (jit) the lines are no faster.
_PLANNING = {"enable_seqscan": "off", "max_parallel_workers_per_gather": "0", "jit": "off"}


def compute(session: Connection, table: sql.Identifier, columns: Sequence[Column], encoding: str) -> Digest:
    """Let PostgreSQL compute the digest of a table and its blocks, under the settings of `digest.pin`."""
    for name, value in _PLANNING.items():
        session.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
    chain, blocks = hashlib.sha256(), []
    for row in session.execute(_statement(table, columns, encoding, session)):
        if row["rows"]:
            blocks.append(row["rows"])
            chain.update(row["hash"])
    return Digest(rows=sum(blocks), value=chain.hexdigest(), blocks=tuple(blocks))


def _statement(
    table: sql.Identifier, columns: Sequence[Column], encoding: str, session: Connection
) -> sql.Composed:
    return sql.SQL(
        "SELECT block.rows, block.hash"
        " FROM generate_series(0, pg_relation_size({name}::regclass) / current_setting('block_size')::bigint,"
        " {pages}) AS start"
        " CROSS JOIN LATERAL ("
        "SELECT count(*) AS rows, sha256(convert_to(string_agg(CASE WHEN octet_length(line) > {wide}"
        r" THEN E'\\sha256 ' || encode(sha256(convert_to(line, {encoding})), 'hex') ELSE line END, E'\n')"
        r" || E'\n', {encoding})) AS hash"
        " FROM (SELECT {line} AS line FROM ONLY {table}"
        " WHERE ctid >= format('(%s,0)', start)::tid AND ctid < format('(%s,0)', start + {pages})::tid"
        " OFFSET 0) AS lines) AS block"
        " ORDER BY start"
    ).format(
        name=sql.Literal(table.as_string(session)),
        pages=sql.Literal(PAGES),
        wide=sql.Literal(WIDE),
        encoding=sql.Literal(encoding),
        line=line(columns),
        table=table,
    )


class BlockDigest:
    """The digest from the bytes of a copy, fed in pieces of any size, by the blocks that PostgreSQL told."""

    def __init__(self, blocks: Sequence[int]) -> None:
        self._blocks = tuple(blocks)
        self._coming: Iterator[int] = iter(self._blocks)
        self._chain = hashlib.sha256()
        self._rest: list[bytes] = []
        self._rows = 0
        self._begin()

    def _begin(self) -> None:
        # Rows beyond the last block make one more, and so another digest.
        self._left = next(self._coming, _UNBOUNDED)
        self._block = hashlib.sha256()
        self._is_empty = True

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        cut = chunk.rfind(b"\n") + 1
        if cut:
            self._take(b"".join([*self._rest, chunk[:cut]]))
            self._rest = []
        self._rest.append(chunk[cut:])

    def _take(self, text: bytes) -> None:
        start = 0
        while start < len(text):
            # The last end of a line within reach: all lines up to there are short.
            end = text.rfind(b"\n", start, start + WIDE + 1) + 1
            if end:
                self._short(text[start:end])
            else:
                end = text.index(b"\n", start) + 1
                own = hashlib.sha256(memoryview(text)[start : end - 1]).hexdigest()
                self._short(rb"\sha256 " + own.encode() + b"\n")
            start = end

    def _short(self, lines: bytes) -> None:
        count = lines.count(b"\n")
        while count >= self._left:
            lines, count = self._finish(lines, count)
        if lines:
            self._add(lines, count)
            self._left -= count

    def _finish(self, lines: bytes, count: int) -> tuple[bytes, int]:
        """Complete a block with the first of these lines; returns the others."""
        others = lines.split(b"\n", self._left)[-1]
        self._add(lines[: len(lines) - len(others)], self._left)
        count -= self._left
        self._chain.update(self._block.digest())
        self._begin()
        return others, count

    def _add(self, lines: bytes, count: int) -> None:
        self._block.update(lines)
        self._rows += count
        self._is_empty = False

    def result(self) -> Digest:
        """Give the digest of all that was fed; a last line without its end counts as one that differs."""
        if rest := b"".join(self._rest):
            self._add(rest, 1)
        if not self._is_empty:
            self._chain.update(self._block.digest())
        return Digest(rows=self._rows, value=self._chain.hexdigest(), blocks=self._blocks)


def digest_of(chunks: Iterable[bytes], blocks: Sequence[int]) -> Digest:
    """Compute the digest of rows in COPY text format."""
    digest = BlockDigest(blocks)
    for chunk in chunks:
        digest.feed(chunk)
    return digest.result()
