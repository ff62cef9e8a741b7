"""Claims about hashing tables: every type, any order, every change seen, and never more than was read."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta

import psycopg
import pytest

from pgvigil import postgres
from pgvigil.drill import amcheck, catalogue, compare
from pgvigil.drill.amcheck import Access
from pgvigil.drill.content import SourceContent, _in_turn, hash_copy, hash_source
from pgvigil.drill.digest import Limits, Piece, Progress, collect, cut, hash_piece, hash_tables, pin
from pgvigil.drill.facts import Digest
from pgvigil.drill.mark import Marked, mark
from pgvigil.drill.tables import Inventory, list_tables
from pgvigil.errors import DatabaseFailed
from pgvigil.policies.drill import DrillPolicy
from pgvigil.reports import Verdict
from pgvigil.sandbox import Sandbox
from tests.fixtures.drill_source import RUN, admin, make_database, nothing
from tests.fixtures.sandbox import has_libxml

TYPES = {
    "smallint": ("1", "2"),
    "integer": ("1", "-1"),
    "bigint": ("1", "9223372036854775807"),
    "numeric": ("1.0", "1.00"),
    "numeric(30,10)": ("'NaN'", "'1e-10'"),
    "numeric -- infinite": ("'Infinity'", "'-Infinity'"),
    "real": ("'NaN'", "'Infinity'"),
    "double precision": ("0.1", "0.1000000000000001"),
    "double precision -- zero": ("'0'", "'-0'"),
    "money": ("'1.01'", "'1.02'"),
    "text": ("''", "' '"),
    "varchar(20)": ("'a'", "'b'"),
    "char(5)": ("'a'", "'b'"),
    "bpchar": ("'a'", "'a '"),
    '"char"': ("'a'", "'b'"),
    "name": ("'a'", "'b'"),
    "bytea": (r"'\x00'", r"'\x0000'"),
    "boolean": ("true", "false"),
    "date": ("'infinity'", "'-infinity'"),
    "time": ("'24:00'", "'00:00'"),
    "timetz": ("'01:00+00'", "'02:00+01'"),
    "timestamp": ("'0044-03-15 BC'", "'0044-03-15'"),
    "timestamptz": ("'2026-10-25 02:30+02'", "'2026-10-25 02:30+01'"),
    "interval": ("'1 day'", "'24 hours'"),
    "uuid": ("'a0000000-0000-0000-0000-000000000000'", "'b0000000-0000-0000-0000-000000000000'"),
    "json": ("'{\"a\":1}'", "'{\"a\": 1}'"),
    "jsonb": ("'{\"a\":1}'", "'{\"a\":1.0}'"),
    "jsonpath": ("'$.a'", "'$.b'"),
    "xml": ("'<a/>'", "'<a></a>'"),
    "inet": ("'10.0.0.1'", "'10.0.0.1/8'"),
    "cidr": ("'10.0.0.0/8'", "'10.0.0.0/9'"),
    "macaddr": ("'08:00:2b:01:02:03'", "'08:00:2b:01:02:04'"),
    "macaddr8": ("'08:00:2b:01:02:03:04:05'", "'08:00:2b:01:02:03:04:06'"),
    "bit(3)": ("'101'", "'100'"),
    "varbit": ("'1'", "'10'"),
    "point": ("'(1,2)'", "'(1,3)'"),
    "line": ("'{1,2,3}'", "'{1,2,4}'"),
    "lseg": ("'[(0,0),(1,1)]'", "'[(0,0),(1,2)]'"),
    "box": ("'(1,1),(0,0)'", "'(2,1),(0,0)'"),
    "path": ("'((0,0),(1,1))'", "'[(0,0),(1,1)]'"),
    "polygon": ("'((0,0),(1,1))'", "'((0,0),(1,2))'"),
    "circle": ("'<(0,0),1>'", "'<(0,0),2>'"),
    "tsvector": ("'a:1'", "'a:2'"),
    "tsquery": ("'a & b'", "'a | b'"),
    "pg_lsn": ("'0/1'", "'0/2'"),
    "pg_snapshot": ("'1:2:'", "'1:3:'"),
    "xid8": ("'1'", "'2'"),
    "tid": ("'(0,1)'", "'(0,2)'"),
    "oid": ("1", "2"),
    "regclass": ("'pg_class'", "'pg_type'"),
    "aclitem": ("'postgres=r/postgres'", "'postgres=w/postgres'"),
    "aclitem[]": ("'{postgres=r/postgres}'", "NULL"),
    "int4range": ("'[1,2)'", "'[1,3)'"),
    "tstzrange": ("'empty'", "'(,)'"),
    "int4multirange": ("'{[1,2)}'", "'{[1,2),[3,4)}'"),
    "integer[]": ("'{1,NULL}'", "'{1,2}'"),
    "text[] -- bounds": ("'[0:1]={a,b}'", "'[1:2]={a,b}'"),
    "integer[][]": ("'{{1,2}}'", "'{1,2}'"),
    "mood": ("'sad'", "'glad'"),
    "mood[]": ("'{sad}'", "'{glad}'"),
    "percentage": ("1", "2"),
    "pair": ("ROW(1,'a')", "ROW(1,NULL)"),
    "pair[]": ("ARRAY[ROW(1,'a')::pair]", "ARRAY[ROW(1,'b')::pair]"),
    "guarded": ("ROW('postgres=r/postgres')", "ROW('postgres=w/postgres')"),
    "percentages": ("'[1,2)'", "'[1,3)'"),
}
LACKING = set() if has_libxml() else {"xml"}

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE DOMAIN percentage AS numeric CHECK (value <= 100);
CREATE TYPE pair AS (a int, b text);
CREATE TYPE guarded AS (acl aclitem);
CREATE TYPE percentages AS RANGE (subtype = numeric);
CREATE SCHEMA "s'"";--";
CREATE TABLE "s'"";--"."Ä""b.c'; --" AS SELECT 1 AS "t", 2 AS "Ä""b.c'; --";
CREATE TABLE t AS SELECT 1 AS t, 2 AS r, 3 AS hashed;
CREATE TABLE nothing ();
INSERT INTO nothing SELECT FROM generate_series(1, 3);
CREATE TABLE twice AS SELECT 1 AS n FROM generate_series(1, 2);
CREATE TABLE large AS SELECT n, md5(n::text) AS text FROM generate_series(1, 60000) AS n;
ALTER TABLE large ADD PRIMARY KEY (n);
CREATE TABLE wide (n int, text text);
ALTER TABLE wide ALTER text SET STORAGE EXTERNAL;
INSERT INTO wide SELECT n, repeat(n::text, 20000) FROM generate_series(1, 100) AS n;
CREATE TABLE made (a int, b int GENERATED ALWAYS AS (a * 2) STORED, c int);
INSERT INTO made (a, c) SELECT n, 7 FROM generate_series(1, 5) AS n;
ALTER TABLE made DROP COLUMN c;
CREATE UNLOGGED TABLE unlogged AS SELECT 1 AS n;
CREATE TABLE parent (n int) PARTITION BY RANGE (n);
CREATE TABLE leaf PARTITION OF parent FOR VALUES FROM (0) TO (10);
INSERT INTO parent VALUES (1);
CREATE TABLE old (n int);
CREATE TABLE heir () INHERITS (old);
INSERT INTO heir VALUES (1);
CREATE MATERIALIZED VIEW view AS SELECT count(*) FROM large;
CREATE MATERIALIZED VIEW empty AS SELECT 1 WITH NO DATA;
CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER nowhere FOREIGN DATA WRAPPER nowhere;
CREATE FOREIGN TABLE elsewhere (n int) SERVER nowhere;
CREATE TABLE secret AS SELECT 1 AS n;
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
SELECT lo_from_bytea(4711, 'large object');
"""


@pytest.fixture(scope="module")
def database(sandbox: Sandbox) -> Iterator[str]:
    """A database with one of everything; its dsn for role pgvigil."""
    make_database(sandbox, "types")
    with psycopg.connect(sandbox.admin_dsn(sandbox.primary_port, "types"), autocommit=True) as session:
        session.execute(SCHEMA.encode())
    yield sandbox.dsn("types")
    with admin(sandbox) as session:
        session.execute("DROP DATABASE types WITH (FORCE)")


@pytest.fixture(autouse=True)
def _environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the passwords of the sandbox."""
    monkeypatch.setenv("PGPASSFILE", str(sandbox.passfile))


@pytest.fixture
def owner(database: str, sandbox: Sandbox) -> Iterator[psycopg.Connection]:
    """A session of somebody who may change everything."""
    assert database
    with psycopg.connect(sandbox.admin_dsn(sandbox.primary_port, "types"), autocommit=True) as session:
        yield session


def connected(dsn: str) -> AbstractContextManager[postgres.Connection]:
    return postgres.connect(dsn, "test")


def inventory(dsn: str, names: Sequence[str] = ()) -> Inventory:
    with connected(dsn) as session:
        pin(session)
        found = list_tables(session, "types")
    kept = [listed for listed in found.tables if not names or listed.table.name in names]
    return found.model_copy(update={"tables": tuple(kept)})


def digests(dsn: str, *names: str, limits: Limits | None = None) -> dict[str, Digest]:
    limits = limits or Limits()
    results = hash_tables(lambda: connected(dsn), cut(inventory(dsn, names).tables, limits), limits)
    assert all(result.digest for result in results), [result.reason for result in results]
    return {result.table.name: result.digest for result in results if result.digest}


def digest(dsn: str, name: str) -> tuple[int, str]:
    found = digests(dsn, name)[name]
    return found.rows, found.hash


def _parameter(type_name: str) -> object:
    lacking = pytest.mark.skipif(type_name in LACKING, reason="this PostgreSQL is built without libxml")
    return pytest.param(type_name, marks=lacking)


@pytest.fixture(scope="module")
def probes(database: str, sandbox: Sandbox) -> dict[str, Digest]:
    """The digests of four tables per type: one value, another, the first again, and NULL."""
    with psycopg.connect(sandbox.admin_dsn(sandbox.primary_port, "types"), autocommit=True) as session:
        for number, (name, values) in enumerate(TYPES.items()):
            if name in LACKING:
                continue
            plain = name.split(" --")[0]
            for place, value in enumerate((*values, values[0], "NULL")):
                cast = f"CREATE TABLE probe_{number}_{place} AS SELECT CAST({value} AS {plain}) AS v"
                session.execute(cast.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PGPASSFILE", str(sandbox.passfile))
        found = digests(database)
    with psycopg.connect(sandbox.admin_dsn(sandbox.primary_port, "types"), autocommit=True) as session:
        session.execute(("DROP TABLE " + ", ".join(name for name in found if "probe_" in name)).encode())
    return found


@pytest.mark.parametrize("type_name", [_parameter(name) for name in TYPES])
def test_two_values_of_a_type_have_two_hashes(probes: dict[str, Digest], type_name: str) -> None:
    """Also values that the type calls equal; each the same when it is hashed again, and other than NULL."""
    number = list(TYPES).index(type_name)
    one, other, again, null = (probes[f"probe_{number}_{place}"].hash for place in range(4))

    assert one == again
    assert one != other
    assert null != one


def test_every_type_of_the_server_can_be_hashed(database: str, owner: psycopg.Connection) -> None:
    """A column of any type that a table may have makes no table unreadable, with or without values."""
    types = owner.execute(
        "SELECT format_type(oid, NULL) FROM pg_type WHERE typtype <> 'p' AND typisdefined"
        " AND typnamespace = 'pg_catalog'::regnamespace AND typrelid = 0"
        " AND typelem NOT IN (SELECT oid FROM pg_type WHERE typrelid <> 0 OR typtype = 'p')"
    ).fetchall()
    columns = ", ".join(f"c{number} {name}" for number, (name,) in enumerate(types))
    owner.execute(f"CREATE TABLE every ({columns})".encode())
    owner.execute("INSERT INTO every (c0) SELECT NULL FROM generate_series(1, 2)")

    rows, _ = digest(database, "every")
    owner.execute("DROP TABLE every")

    assert (2, True) == (rows, len(types) > 150)


@pytest.fixture
def unencoded(sandbox: Sandbox) -> Iterator[str]:
    """A database whose text is bytes."""
    with admin(sandbox) as session:
        session.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        yield sandbox.admin_dsn(sandbox.primary_port, "bytes")
        session.execute("DROP DATABASE bytes WITH (FORCE)")


def test_a_database_without_an_encoding_is_read_byte_by_byte(sandbox: Sandbox, unencoded: str) -> None:
    """Names and values that are no text anywhere: each has its own hash, and the catalogue can be read."""
    with postgres.connect(unencoded, RUN) as session:
        postgres.read_bytes(session)
        session.execute('CREATE TABLE public."one \xff" AS SELECT 1 AS n')
        session.execute("CREATE TABLE public.\"two \xfe\xfd\" (n) AS VALUES ('\xff')")
        first = digests(unencoded, "one \xff", "two \xfe\xfd")
        session.execute("UPDATE public.\"two \xfe\xfd\" SET n = '\xfe'")
        changed = digests(unencoded, "two \xfe\xfd")
        described = catalogue.read(session, "database")
    place = f"host={sandbox.sockets} port={sandbox.primary_port} user=postgres"
    access = Access(dsn=place, programs=sandbox.postgres_bin, user=sandbox.server_user)
    sound = amcheck.check_database(access, RUN, "bytes", timedelta(seconds=60))

    assert [1, 1] == [first["one \xff"].rows, first["two \xfe\xfd"].rows]
    assert first["two \xfe\xfd"].hash != changed["two \xfe\xfd"].hash
    assert described.items
    assert Verdict.VERIFIED is sound.checks[0].verdict, sound


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("nothing", 3),
        ("Ä\"b.c'; --", 1),
        ("t", 1),
        ("made", 5),
        ("leaf", 1),
        ("heir", 1),
        ("old", 0),
        ("view", 1),
    ],
)
def test_a_table_of_any_kind_is_counted_and_hashed(database: str, name: str, rows: int) -> None:
    """Without columns, with hostile names, generated or dropped columns, a leaf, an heir, a view."""
    assert rows == digests(database, name)[name].rows


def test_neither_order_nor_place_of_rows_matters(database: str, owner: psycopg.Connection) -> None:
    """CLUSTER and VACUUM FULL move every row; the table's hash stays."""
    owner.execute("UPDATE large SET n = n WHERE n % 3 = 0")
    before = digest(database, "large")
    owner.execute("CLUSTER large USING large_pkey")
    clustered = digest(database, "large")
    owner.execute("UPDATE large SET n = n WHERE n % 5 = 0")
    owner.execute("VACUUM FULL large")

    assert [before, before] == [clustered, digest(database, "large")]


def test_a_row_that_is_there_twice_counts_twice(database: str, owner: psycopg.Connection) -> None:
    """Two equal rows do not cancel each other out."""
    two = digest(database, "twice")
    owner.execute("DELETE FROM twice")
    none = digest(database, "twice")
    owner.execute("INSERT INTO twice VALUES (1), (1)")

    assert (two, True) == (digest(database, "twice"), two[1] != none[1])


def test_two_tables_that_swap_a_value_differ(database: str, owner: psycopg.Connection) -> None:
    """A value moved from one row to another is a change, though all values are still there."""
    owner.execute("CREATE TABLE swap AS VALUES (1, 'a'), (2, 'b')")
    before = digest(database, "swap")
    owner.execute("UPDATE swap SET column2 = CASE column1 WHEN 1 THEN 'b' ELSE 'a' END")
    after = digest(database, "swap")
    owner.execute("DROP TABLE swap")

    assert before != after


def test_what_toast_keeps_is_hashed(database: str, owner: psycopg.Connection) -> None:
    """One byte changed in the middle of a value of 60 000 bytes is seen."""
    before = digest(database, "wide")
    owner.execute("UPDATE wide SET text = overlay(text PLACING 'x' FROM 30000) WHERE n = 50")

    assert before != digest(database, "wide")


def test_a_large_object_is_hashed(database: str, owner: psycopg.Connection) -> None:
    """One byte changed in it is seen."""
    before = digest(database, "pg_largeobject")
    owner.execute("SELECT lo_put(4711, 3, 'X')")

    assert before != digest(database, "pg_largeobject")


def test_the_hash_is_the_same_for_other_settings_of_a_session(
    database: str, owner: psycopg.Connection, sandbox: Sandbox
) -> None:
    """What role or database prefer for dates, floats, bytea, money and encoding changes nothing."""
    before = digests(database)
    for setting in (
        "datestyle = 'German'",
        "intervalstyle = 'iso_8601'",
        "extra_float_digits = -3",
        "bytea_output = 'escape'",
        "client_encoding = 'SQL_ASCII'",
        "xmlbinary = 'hex'",
    ):
        owner.execute(f"ALTER ROLE pgvigil IN DATABASE types SET {setting}".encode())
    after = digests(database)
    owner.execute("ALTER ROLE pgvigil IN DATABASE types RESET ALL")

    assert before == after
    assert sandbox


def test_pieces_of_a_table_add_up_to_the_whole(database: str) -> None:
    """However a table is cut, and by however many sessions, its hash is the same."""
    (whole,) = digests(database, "large").values()
    many = digests(database, "large", limits=Limits(rate=2**30, workers=3))
    pieces = cut(inventory(database, ["large"]).tables, Limits(rate=1))

    with connected(database) as session:
        pin(session)
        results = [hash_piece(session, piece) for piece in pieces]

    assert {"large": whole} == many
    assert [len(pieces) > 3, whole.rows] == [True, sum(each.rows for each in results)]
    assert [result.digest for result in collect(pieces, results)] == [whole]


def test_what_cannot_be_compared_is_named_with_its_reason(database: str, owner: psycopg.Connection) -> None:
    """By design: unlogged, foreign, without data. For want of a right: each with the cure."""
    owner.execute("ALTER ROLE pgvigil NOBYPASSRLS")
    try:
        told = {each.relation: (each.by_design, each.reason) for each in inventory(database).unproven}
    finally:
        owner.execute("ALTER ROLE pgvigil BYPASSRLS")

    assert [("public.unlogged", True), ("public.elsewhere", True), ("public.empty", True)] == [
        (name, told[name][0]) for name in ("public.unlogged", "public.elsewhere", "public.empty")
    ]
    assert "BYPASSRLS" in told["public.secret"][1]


def test_a_role_without_rights_is_told_what_to_grant(database: str, owner: psycopg.Connection) -> None:
    """Nothing is hashed that cannot be read, and nothing that cannot be read is passed over."""
    owner.execute("REVOKE pg_read_all_data FROM pgvigil")
    try:
        found = inventory(database)
    finally:
        owner.execute("GRANT pg_read_all_data TO pgvigil")

    assert () == found.tables
    assert "GRANT pg_read_all_data" in {each.relation: each.reason for each in found.unproven}["public.large"]


POLICY = DrillPolicy.model_validate({"fence_for": "5s"})


def content(marked: Marked) -> SourceContent:
    return hash_source(marked, POLICY, on_progress=nothing)


def doubts(found: SourceContent) -> dict[str, str]:
    return {doubt.relation: doubt.reason for doubt in found.doubts}


def test_a_users_table_in_a_schema_of_the_server_is_fenced_and_hashed(
    database: str, owner: psycopg.Connection
) -> None:
    """It is whose rows they are that counts, not where they were put."""
    names = ["information_schema.earned", "pg_catalog.earned"]
    owner.execute("SET allow_system_table_mods = on")
    for name in names:
        owner.execute(f"CREATE TABLE {name} AS SELECT 1 AS n".encode())
    with mark(database, POLICY, RUN) as marked:
        found = content(marked)
    owner.execute(f"DROP TABLE {', '.join(names)}".encode())

    assert names == [str(table) for table, _ in found.tables if table.name == "earned"]
    assert {} == doubts(found)


def test_what_is_written_after_the_mark_is_not_hashed(database: str, owner: psycopg.Connection) -> None:
    """The content is that of the mark, though rows come, go and change while it is read."""
    before = digest(database, "large")
    with mark(database, POLICY, RUN) as marked:
        owner.execute("UPDATE large SET text = 'x' WHERE n < 1000")
        owner.execute("DELETE FROM large WHERE n > 50000")
        found = content(marked)
    after = digest(database, "large")

    (hashed,) = [each for table, each in found.tables if table.name == "large"]
    assert (before, True) == ((hashed.rows, hashed.hash), before != after)
    assert {} == doubts(found)


@pytest.fixture
def changing(owner: psycopg.Connection) -> Iterator[str]:
    """The name of a table that somebody changes as a whole."""
    owner.execute("CREATE TABLE changing AS SELECT 1 AS n, 'a' AS text")
    yield "public.changing"
    owner.execute("DROP TABLE changing")


@pytest.mark.parametrize("change", ["ADD m int", "DROP text"])
def test_a_table_that_got_other_columns_since_the_mark_is_doubted(
    database: str, owner: psycopg.Connection, changing: str, change: str
) -> None:
    """Such a change is seen through an older snapshot as well, so a difference would prove nothing."""
    with mark(database, POLICY, RUN) as marked:
        owner.execute(f"ALTER TABLE changing {change}".encode())
        found = content(marked)

    assert [changing] == [*doubts(found)]
    assert "columns were changed" in doubts(found)[changing]


@pytest.mark.parametrize(
    "change",
    ["TRUNCATE changing", "ALTER TABLE changing ALTER n TYPE bigint", "VACUUM FULL changing"],
)
def test_a_table_that_was_rewritten_since_the_mark_is_unproven(
    database: str, owner: psycopg.Connection, changing: str, change: str
) -> None:
    """An older snapshot may see it empty, and an empty table in the copy is not equal to that."""
    with mark(database, POLICY, RUN) as marked:
        owner.execute(change.encode())
        found = content(marked)

    (told,) = [each.reason for each in found.unproven if each.relation == changing]
    assert "rewritten since the mark" in told
    assert changing not in {str(table) for table, _ in found.tables}


def test_a_table_dropped_since_the_mark_is_unproven(database: str, owner: psycopg.Connection) -> None:
    """It was there at the mark and cannot be read any more: told, and nothing else fails."""
    owner.execute("CREATE TABLE going AS SELECT 1 AS n")
    with mark(database, POLICY, RUN) as marked:
        owner.execute("DROP TABLE going")
        found = content(marked)

    (told,) = [each.reason for each in found.unproven if each.relation == "public.going"]
    assert "dropped since the mark" in told
    assert "large" in {table.name for table, _ in found.tables}


SPY = """
CREATE FUNCTION owned.spy() RETURNS int LANGUAGE plpgsql AS $$BEGIN RAISE 'spied'; END$$;
CREATE VIEW owned.mine AS SELECT owned.spy() AS n
"""


@pytest.fixture
def mine(owner: psycopg.Connection) -> Iterator[str]:
    """The name of a table whose schema belongs to somebody who may not be trusted."""
    owner.execute("CREATE SCHEMA owned; CREATE TABLE owned.mine AS SELECT 1 AS n")
    yield "owned.mine"
    owner.execute("DROP SCHEMA owned CASCADE; DROP SCHEMA IF EXISTS away CASCADE")


@pytest.mark.parametrize(
    "change",
    [
        f"ALTER TABLE owned.mine RENAME TO aside; {SPY}",
        "ALTER TABLE owned.mine RENAME TO aside; CREATE TABLE owned.mine AS SELECT 1 AS n",
        "ALTER TABLE owned.mine RENAME TO aside; CREATE FOREIGN TABLE owned.mine (n int) SERVER nowhere",
        "ALTER SCHEMA owned RENAME TO away; CREATE SCHEMA owned; CREATE TABLE owned.mine AS SELECT 1 AS n",
    ],
    ids=["view", "table", "foreign table", "schema"],
)
def test_what_took_a_tables_name_since_the_mark_is_not_read(
    database: str, owner: psycopg.Connection, mine: str, change: str
) -> None:
    """The table is unproven by its name, and a function that somebody put there does not run as our role."""
    with mark(database, POLICY, RUN) as marked:
        owner.execute(change.encode())
        found = content(marked)

    (told,) = [each.reason for each in found.unproven if each.relation == mine]
    assert "another relation has its name now" in told
    assert "spied" not in told


@pytest.mark.usefixtures("mine")
def test_where_the_server_does_not_restrict_views_none_is_read(
    database: str, owner: psycopg.Connection
) -> None:
    """Under the lock the name is found not to be the table's, before anything of the view runs."""
    (piece,) = cut(
        [each for each in inventory(database, ["mine"]).tables if each.table.schema_name == "owned"], Limits()
    )
    owner.execute(f"ALTER TABLE owned.mine RENAME TO aside; {SPY}".encode())
    with connected(database) as session:
        hashed = hash_piece(session, piece)

    assert "another relation has its name now" in hashed.reason


def test_a_cast_of_a_table_to_text_does_not_run(database: str, owner: psycopg.Connection, mine: str) -> None:
    """A table that must be hashed as text is written by the server's own functions alone."""
    owner.execute("ALTER TABLE owned.mine ADD acl aclitem")
    owner.execute(
        "CREATE FUNCTION owned.spy(owned.mine) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'spied'; END$$;"
        "CREATE CAST (owned.mine AS text) WITH FUNCTION owned.spy(owned.mine)"
    )

    assert 1 == digests(database, "mine")["mine"].rows
    assert mine


# What an owner of tables, types and functions may do: the function was harmless until the index stood.
SPYING = "CREATE OR REPLACE FUNCTION owned.same(int) RETURNS int IMMUTABLE STRICT LANGUAGE plpgsql AS "
ARMED = SPYING + "$$BEGIN RAISE 'spied as %', current_user; END$$"
HARMLESS = SPYING + "$$BEGIN RETURN $1; END$$"
DOMAIN = "CREATE DOMAIN owned.checked AS int CHECK (owned.same(1) = 1)"
CAST = """
CREATE FUNCTION owned.plain(owned.mood) RETURNS text IMMUTABLE STRICT LANGUAGE plpgsql AS
    $$BEGIN RETURN 'sad'; END$$;
CREATE FUNCTION owned.worded(owned.mood) RETURNS text IMMUTABLE STRICT LANGUAGE sql AS
    $$SELECT pg_catalog.repeat(owned.plain($1), owned.same(1))$$;
CREATE CAST (owned.mood AS text) WITH FUNCTION owned.worded(owned.mood)
"""
BUILT_IN = {
    "index": "CREATE INDEX ON owned.mine (owned.same(1))",
    "condition": "CREATE INDEX ON owned.mine (n) WHERE owned.same(1) = 1",
    "operator": "CREATE INDEX ON owned.mine ((n + (OPERATOR(owned.###) 1)))",
    "statistics": "CREATE STATISTICS owned.s ON (n + owned.same(1)), n FROM owned.mine",
    "domain": f"{DOMAIN}; CREATE INDEX ON owned.mine ((n::owned.checked))",
    "domain in statistics": f"{DOMAIN}; CREATE STATISTICS owned.s ON (n::owned.checked), n FROM owned.mine",
    "cast of a constant": f"{CAST}; CREATE INDEX ON owned.mine (('a'::text || 'sad'::owned.mood))",
    "cast of a column": f"ALTER TABLE owned.mine ADD m owned.mood; {CAST};"
    " CREATE INDEX ON owned.mine (('a'::text || m))",
    "cast of a column's part": "CREATE DOMAIN owned.low AS owned.mood;"
    f" ALTER TABLE owned.mine ADD m owned.low; {CAST}; CREATE INDEX ON owned.mine (('a'::text || m))",
}


@pytest.fixture
def stranger(owner: psycopg.Connection, mine: str) -> Iterator[psycopg.Connection]:
    """A session that can build things of a role that is no superuser into a table of many rows."""
    owner.execute(
        f"CREATE ROLE stranger; {HARMLESS}; ALTER FUNCTION owned.same(int) OWNER TO stranger".encode()
    )
    owner.execute("CREATE OPERATOR owned.### (rightarg = int, function = owned.same)")
    owner.execute("CREATE TYPE owned.mood AS ENUM ('sad'); ALTER TYPE owned.mood OWNER TO stranger")
    owner.execute(f"INSERT INTO {mine} SELECT n FROM generate_series(2, 50000) AS n".encode())
    yield owner
    owner.execute("DROP SCHEMA owned CASCADE; CREATE SCHEMA owned; DROP ROLE stranger")


@pytest.mark.parametrize("built_in", BUILT_IN.values(), ids=BUILT_IN)
def test_what_a_stranger_built_into_a_table_does_not_run(
    database: str, stranger: psycopg.Connection, built_in: str
) -> None:
    """To plan a statement would compute it, as our role: the same rows come by COPY, every time alike."""
    stranger.execute(f"{built_in}; {ARMED}".encode())
    with pytest.raises(DatabaseFailed, match="spied as pgvigil"), connected(database) as session:
        session.execute("SELECT n FROM owned.mine WHERE n = 1")

    found = digests(database, "mine")["mine"]
    assert (found.rows, found.is_copied) == (50000, True)
    assert found == digests(database, "mine")["mine"]


@pytest.mark.parametrize("column", ["n", "acl"])
def test_a_table_that_comes_by_copy_is_hashed_as_exactly(
    database: str, stranger: psycopg.Connection, column: str
) -> None:
    """In binary form or as text: rows in another place are the same, another value and a row less are not."""
    stranger.execute(BUILT_IN["index"].encode())
    if column == "acl":
        stranger.execute("ALTER TABLE owned.mine ADD acl aclitem")
    hashes = [digest(database, "mine")]
    for change in (
        "UPDATE owned.mine SET n = n WHERE n % 3 = 0",
        "UPDATE owned.mine SET n = 0 WHERE n = 7",
        "DELETE FROM owned.mine WHERE n = 0",
        "INSERT INTO owned.mine VALUES (7)",
        "TRUNCATE owned.mine",
    ):
        stranger.execute(change.encode())
        hashes.append(digest(database, "mine"))

    first, moved, changed, fewer, restored, none = hashes
    assert first == moved == restored
    assert len({first, changed, fewer, none}) == 4
    assert none == (0, "0" * 32)


def test_the_copy_is_read_in_the_same_way(database: str, stranger: psycopg.Connection) -> None:
    """Its hash is of the same kind there, so that a row that differs is seen, and nothing else differs."""
    stranger.execute(BUILT_IN["index"].encode())
    with mark(database, POLICY, RUN) as marked:
        found = content(marked)
    equal = hash_copy(lambda: connected(database), found, Limits(), on_progress=nothing)
    stranger.execute("UPDATE owned.mine SET n = 0 WHERE n = 7")
    other = hash_copy(lambda: connected(database), found, Limits(), on_progress=nothing)

    before, after = (
        {each.table.name: each.outcome for each in compare.compare(found, copied, doubts={}).tables}
        for copied in (equal, other)
    )
    assert (before["mine"], after["mine"]) == ("equal", "differs")


@pytest.mark.parametrize("percent", [0, 100])
def test_what_a_stranger_builds_in_after_the_mark_is_told(
    database: str, stranger: psycopg.Connection, percent: int
) -> None:
    """The mark's snapshot does not show it and planning would meet it: unproven, even if it came too late."""
    due = [f"{BUILT_IN['index']}; {ARMED}"]

    def build(progress: Progress) -> None:
        if due and progress.percent == percent:
            stranger.execute(due.pop().encode())

    with mark(database, POLICY, RUN) as marked:
        build(Progress(bytes_done=0, bytes_total=1))
        found = hash_source(marked, POLICY, on_progress=build)

    (told,) = [each.reason for each in found.unproven if each.relation == "owned.mine"]
    assert "came to lean on function owned.same(integer), which belongs to no superuser" in told


def test_a_table_that_can_only_be_read_as_a_whole_leaves_time_for_the_others(
    database: str, stranger: psycopg.Connection
) -> None:
    """It comes last, whatever its size, so that time which ends with it has given each other its sample."""
    stranger.execute(BUILT_IN["index"].encode())
    pieces = cut(inventory(database).tables, Limits(rate=1, workers=1))
    first = {piece.oid: place for place, piece in reversed(list(enumerate(pieces)))}

    assert pieces[-1].listed.table.name == "mine"
    assert max(first.values()) == len(pieces) - 1


def test_a_generated_column_beside_a_strangers_function_is_unproven(
    database: str, stranger: psycopg.Connection
) -> None:
    """COPY leaves it out, so nobody could say that it is equal; the cure is named."""
    stranger.execute("ALTER TABLE owned.mine ADD twice int GENERATED ALWAYS AS (n * 2) STORED")
    stranger.execute(BUILT_IN["index"].encode())

    (told,) = [each.reason for each in inventory(database).unproven if each.relation == "owned.mine"]
    assert "let a superuser own" in told


def test_a_check_that_the_database_lets_planning_compute_does_not_run(
    database: str, stranger: psycopg.Connection
) -> None:
    """The owner of a database can set constraint_exclusion for every session in it."""
    stranger.execute("ALTER TABLE owned.mine ADD CHECK (n > 0 OR owned.same(1) = 2)")
    stranger.execute(f"ALTER DATABASE types SET constraint_exclusion = on; {ARMED}".encode())
    with pytest.raises(DatabaseFailed, match="spied"), connected(database) as session:
        session.execute("SELECT n FROM owned.mine WHERE n = 1")

    assert digests(database, "mine")["mine"].rows == 50000
    stranger.execute("ALTER DATABASE types RESET constraint_exclusion")


def test_a_locked_table_is_unproven_and_the_others_are_read(
    database: str, owner: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """We wait for it a bounded time, a bounded number of times."""
    monkeypatch.setattr("pgvigil.drill.digest._ATTEMPTS", 1)
    owner.execute("CREATE TABLE locked AS SELECT 1 AS n")
    with mark(database, POLICY, RUN) as marked, owner.transaction():
        owner.execute("LOCK TABLE locked IN ACCESS EXCLUSIVE MODE")
        found = content(marked)
    owner.execute("DROP TABLE locked")

    (told,) = [each.reason for each in found.unproven if each.relation == "public.locked"]
    assert "locked by a session that changes it" in told
    assert "large" in {table.name for table, _ in found.tables}


def test_a_view_that_is_being_refreshed_is_unproven_and_the_others_are_read(
    database: str, owner: psycopg.Connection
) -> None:
    """However long it takes: nobody waits for it, and neither it nor the drill fails."""
    with owner.transaction():
        owner.execute("REFRESH MATERIALIZED VIEW view")
        with mark(database, POLICY, RUN) as marked:
            found = content(marked)

    (told,) = [each.reason for each in found.unproven if each.relation == "public.view"]
    assert "locked by a transaction that was changing it at the mark" in told
    assert "large" in {table.name for table, _ in found.tables}


def test_of_databases_that_share_a_mark_the_smallest_is_hashed_first(database: str, sandbox: Sandbox) -> None:
    """Each has its share of the time, so that one which is too large for it leaves some to the others."""
    with mark(database, POLICY, RUN, beside=[sandbox.dsn("shop")]) as marked:
        small, large = _in_turn((marked, *marked.beside))

    assert ("shop", "types") == (small.mark.database, large.mark.database)
    assert small.until < large.until == pytest.approx(marked.until)


def test_a_table_that_is_locked_in_the_copy_is_unproven_and_the_others_are_read(
    database: str, owner: psycopg.Connection, changing: str
) -> None:
    """A paused replay keeps such a lock for ever, so nothing is asked that would wait for it."""
    with mark(database, POLICY, RUN) as marked:
        found = content(marked)
    with owner.transaction():
        owner.execute("LOCK TABLE changing IN ACCESS EXCLUSIVE MODE")
        copy = hash_copy(lambda: connected(database), found, Limits(), on_progress=nothing)
    comparison = compare.compare(found, copy, doubts={})

    assert {
        changing: "in the copy: locked by a transaction that was changing it at the mark: drill again"
    } == {str(each.table): each.reason for each in comparison.tables if each.outcome != "equal"}


def sample(database: str, seed: int) -> tuple[list[Piece], SourceContent]:
    """Hash half of the pieces of `large`, as when time was over then."""
    limits = Limits(rate=1, seed=seed)
    pieces = cut(inventory(database, ["large"]).tables, limits)
    with connected(database) as session, mark(database, POLICY, RUN) as marked:
        pin(session)
        done = [hash_piece(session, piece) for piece in pieces[: len(pieces) // 2]]
        (result,) = collect(pieces, done)
        assert result.digest
        return pieces, SourceContent(mark=marked.mark, tables=((result.table, result.digest),))


def test_a_sample_is_read_again_from_the_same_blocks(database: str) -> None:
    """What time allowed on the source is what is compared: the same ranges, the same hash."""
    _, part = sample(database, seed=1)

    copy = hash_copy(lambda: connected(database), part, Limits(), on_progress=nothing)

    (found,), (wanted,) = copy.tables, part.tables
    assert found[1] == wanted[1]
    assert 0 < found[1].blocks_read < found[1].blocks
    assert found[1].ranges


def test_a_sample_depends_on_its_seed_alone(database: str) -> None:
    """The same seed draws the same blocks again; another seed draws others."""
    ranges = [sample(database, seed)[1].tables[0][1].ranges for seed in (1, 1, 2)]

    assert ranges[0] == ranges[1] != ranges[2]


def test_when_no_time_is_left_nothing_is_called_read(database: str) -> None:
    """A deadline that is over makes every table unproven, none equal to an empty one."""
    limits = Limits(until=time.monotonic())
    results = hash_tables(lambda: connected(database), cut(inventory(database).tables, limits), limits)

    assert {(None, "no time was left to read it")} == {(each.digest, each.reason) for each in results}


def test_a_table_that_the_copy_lacks_is_missing(database: str, owner: psycopg.Connection) -> None:
    """Missing is neither equal nor merely unproven."""
    owner.execute("CREATE TABLE lost AS SELECT 1 AS n")
    with mark(database, POLICY, RUN) as marked:
        found = content(marked)
    owner.execute("DROP TABLE lost")

    copy = hash_copy(lambda: connected(database), found, Limits(), on_progress=nothing)
    comparison = compare.compare(found, copy, doubts={})

    assert ["public.lost"] == [str(each.table) for each in comparison.tables if each.outcome == "missing"]


def test_progress_counts_to_the_end(database: str) -> None:
    """Bytes done grow to bytes in all."""
    heard: list[Progress] = []
    limits = Limits()
    hash_tables(
        lambda: connected(database), cut(inventory(database).tables, limits), limits, on_progress=heard.append
    )

    assert heard == sorted(heard, key=lambda each: each.bytes_done)
    assert heard[-1].bytes_done == heard[-1].bytes_total > 0
