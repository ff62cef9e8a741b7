from collections.abc import Iterator

import pytest
from psycopg import sql

from pgvigil.archive import blocks, digest
from pgvigil.archive.shape import Shape, read_shape
from pgvigil.archive.stream import column_list
from pgvigil.postgres import COPY_PIECE, Connection, connect, copy_out
from pgvigil.sandbox import Sandbox

# Two hundred pages in the middle are empty, some lines are wide, and some text is not ASCII. There are more
# columns than a function takes arguments.
TABLE = f"""
CREATE TABLE public.sparse (id int PRIMARY KEY, word text, noise text, flags bool[], body jsonb, nothing int,
    {", ".join(f"c{number} int" for number in range(100))}, last date DEFAULT '2024-02-29');
INSERT INTO public.sparse (id, word, noise, flags, body, c44, c45)
SELECT n, chr(228) || n, repeat(md5(n::text), 20 + n % 50), '{{t,NULL}}',
       jsonb_build_object('a', E'\\\\ \\n' || n), n, -n
  FROM generate_series(1, 4000) AS n;
DELETE FROM public.sparse WHERE id BETWEEN 1200 AND 3000;
VACUUM public.sparse
"""


@pytest.fixture(params=["UTF8", "LATIN1", "SQL_ASCII"])
def session(sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Connection]:
    """A session to a database of one encoding, with the table in it."""
    name = f"digest_{request.param.lower()}"
    with connect(sandbox.primary_admin_dsn, "test") as admin:
        made = f"CREATE DATABASE {name} ENCODING '{request.param}' LOCALE 'C' TEMPLATE template0"
        admin.execute(made.encode())
    with connect(sandbox.admin_dsn(sandbox.primary_port, name), "test") as opened:
        for statement in TABLE.split(";"):
            opened.execute(statement.encode())
        digest.pin(opened, request.param)
        yield opened
    with connect(sandbox.primary_admin_dsn, "test") as admin:
        admin.execute(f"DROP DATABASE {name}".encode())


def shape(session: Connection) -> Shape:
    row = session.execute("SELECT 'public.sparse'::regclass::oid::bigint AS oid").fetchone()
    assert row
    return read_shape(session, row["oid"])


def computed(session: Connection) -> digest.Digest:
    encoding = session.info.parameter_status("server_encoding") or ""
    columns = shape(session).stored_columns
    return blocks.compute(session, sql.Identifier("public", "sparse"), columns, encoding)


def copied(session: Connection, lengths: tuple[int, ...]) -> digest.Digest:
    statement = sql.SQL("COPY public.sparse ({}) TO STDOUT").format(column_list(shape(session)))
    return blocks.digest_of(copy_out(session, statement), lengths)


def test_postgres_and_the_copy_agree_block_by_block(session: Connection) -> None:
    """Over several blocks, empty pages, wide lines, encodings; one changed value is another digest."""
    found = computed(session)
    assert found == copied(session, found.blocks)
    assert (2199, True) == (found.rows, len(found.blocks) > 2)

    session.execute("UPDATE public.sparse SET word = word || '.' WHERE id = 3500")
    assert found.value != computed(session).value
    assert found.value != copied(session, found.blocks).value


def test_a_long_row_comes_in_short_pieces(session: Connection) -> None:
    """However long one is, what is kept of it at a time is not."""
    statement = sql.SQL("COPY (SELECT repeat('x', 20000000)) TO STDOUT").format()
    pieces = list(copy_out(session, statement))

    assert b"".join(pieces) == b"x" * 20_000_000 + b"\n"
    assert max(map(len, pieces)) <= COPY_PIECE


def test_a_digest_reads_each_page_once(session: Connection) -> None:
    """The plan has a scan of a range of pages in it and no other, however large the table is."""
    computed(session)
    columns = shape(session).stored_columns
    session.execute("SET client_encoding = 'UTF8'")
    statement = blocks._statement(sql.Identifier("public", "sparse"), columns, "UTF8", session)
    rows = session.execute(sql.SQL("EXPLAIN (COSTS OFF) {}").format(statement)).fetchall()
    scans = [row["QUERY PLAN"].strip(" ->") for row in rows if " Scan on " in row["QUERY PLAN"]]

    assert sorted(scans) == ["Function Scan on generate_series start", "Tid Range Scan on sparse"]
