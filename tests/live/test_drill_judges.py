"""Claims about the judges of a restored copy, each damage made on a real copy of a real source."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from itertools import pairwise

import pytest

from pgvigil.drill import amcheck, assertions, catalogue, checksums, sequences
from pgvigil.drill.judgement import Judgement
from pgvigil.policies.drill import Assertion
from pgvigil.postgres import Connection, connect
from pgvigil.reports import Verdict, conclude
from tests.fixtures.drill_judges import (
    DATABASE,
    SCOPES,
    Bench,
    Copy,
    at_bench,
    bench,
    copy,
    healthy_copy,
    operated,
)
from tests.fixtures.drill_source import wait

__all__ = ["at_bench", "bench", "copy", "healthy_copy", "operated"]

BOUND = timedelta(seconds=120)
NAME = "pgvigil test"


def decisive(judgement: Judgement) -> Verdict:
    return conclude(judgement.checks)


def subjects(judgement: Judgement) -> list[str]:
    return sorted(finding.subject for finding in judgement.findings)


# --- a healthy copy ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["database", "cluster"])
def test_a_healthy_copy_has_the_sources_catalogue(
    at_bench: Bench, operated: Copy, scope: catalogue.Scope
) -> None:
    """Read by a role without superuser's rights at the source and by a superuser in the copy: no finding."""
    with connect(operated.access.database(DATABASE), NAME) as copied:
        judgement = at_bench.judge_catalogue(copied, scope)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


def test_a_healthy_copy_is_sound_and_told_what_was_not_checked(healthy_copy: Copy) -> None:
    """Every database counts its relations, template0 included; the GIN index is told as not checked."""
    judgement = amcheck.check(healthy_copy.access, NAME, BOUND)
    checked = {check.id for check in judgement.checks if check.verdict is Verdict.VERIFIED}

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED
    assert {f"amcheck {name}" for name in ("template0", "template1", "postgres", DATABASE)} <= checked
    (other,) = (check for check in judgement.checks if check.id == f"amcheck {DATABASE} other")
    assert other.verdict is Verdict.INCONCLUSIVE
    assert "shop.items_tags (gin index)" in other.detail


def test_a_healthy_copy_has_every_page_as_written(copy: Copy) -> None:
    """A stopped copy is scanned whole, and none of its databases met a bad page before."""
    with connect(copy.access.database(DATABASE), NAME) as session:
        met = checksums.read_failures(session)
    copy.stop()
    scanned = checksums.check(copy.access, copy.data, BOUND, {})
    copy.start()

    assert met.findings == scanned.findings == ()
    assert decisive(met) is decisive(scanned) is Verdict.VERIFIED


def test_healthy_sequences_stand_where_the_source_has_them(at_bench: Bench, healthy_copy: Copy) -> None:
    """Logged ahead, counting down or going round, none is behind or runs away."""
    with (
        connect(at_bench.sandbox.dsn(DATABASE), NAME) as source,
        connect(healthy_copy.access.database(DATABASE), NAME) as copied,
    ):
        after, theirs = sequences.read(source), sequences.read(copied)
    judgement = sequences.judge(DATABASE, at_bench.sequences, after, theirs)

    assert len(theirs) == 4
    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


def test_collations_of_this_host_fit(healthy_copy: Copy) -> None:
    """The copy runs on the source's host, so versions are the recorded ones."""
    with connect(healthy_copy.access.database(DATABASE), NAME) as session:
        judgement = catalogue.read_collations(DATABASE, session)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


def test_a_copy_in_recovery_is_read_as_well(at_bench: Bench, copy: Copy) -> None:
    """Paused at a mark a copy takes no writes; catalogue, sequences and collations need none."""
    copy.stop()
    (copy.data / "standby.signal").touch()
    copy.sandbox.give(copy.data / "standby.signal")
    copy.start()
    with (
        connect(at_bench.sandbox.dsn(DATABASE), NAME) as source,
        connect(copy.access.database(DATABASE), NAME) as copied,
    ):
        shape = at_bench.judge_catalogue(copied)
        states = sequences.judge(DATABASE, at_bench.sequences, sequences.read(source), sequences.read(copied))
        collations = catalogue.read_collations(DATABASE, copied)
        assert copied.execute("SELECT pg_is_in_recovery() AS is_paused").fetchone() == {"is_paused": True}

    assert {decisive(each) for each in (shape, states, collations)} == {Verdict.VERIFIED}


def test_without_the_right_to_read_everything_the_catalogue_is_read_all_the_same(
    at_bench: Bench, operated: Copy
) -> None:
    """A role with no rights of its own reads some things from views, and equal to a superuser."""
    with (
        connect(at_bench.sandbox.admin_dsn(at_bench.sandbox.primary_port, DATABASE), NAME) as source,
        connect(operated.access.database(DATABASE), NAME) as copied,
    ):
        source.execute("SET SESSION AUTHORIZATION leaver")
        for scope in SCOPES:
            lowly = catalogue.read(source, scope)
            assert catalogue.compare(lowly, lowly, catalogue.read(copied, scope)) == ()
        source.execute("RESET SESSION AUTHORIZATION")


def test_settings_of_a_role_are_no_difference(at_bench: Bench, operated: Copy) -> None:
    """Quoted names and rounded numbers are how a session writes, at the source or in the copy."""
    at_bench.sql("ALTER ROLE pgvigil SET extra_float_digits = -5")
    with connect(operated.access.database(DATABASE), NAME) as copied:
        copied.execute("SET quote_all_identifiers = on")
        judgement = at_bench.judge_catalogue(copied)
    at_bench.sql("ALTER ROLE pgvigil RESET extra_float_digits")

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


# --- the catalogue, damaged -------------------------------------------------------------------------

HOSTILE = '"Ä""b.c\'; --"'

DAMAGES = {
    "function body": (
        "CREATE OR REPLACE FUNCTION shop.total(integer) RETURNS integer LANGUAGE sql AS 'SELECT $1 * 3'",
        "function shop.total(integer)",
    ),
    "function rights": (
        "REVOKE EXECUTE ON FUNCTION shop.total FROM PUBLIC",
        "function shop.total(integer)",
    ),
    "function missing": ("DROP PROCEDURE shop.tidy()", "procedure shop.tidy()"),
    "table missing": ("DROP TABLE shop.lines CASCADE", "table shop.lines"),
    "table more": ("CREATE TABLE shop.more (id serial PRIMARY KEY, t text)", "table shop.more"),
    "hostile name": (f"DROP TABLE {HOSTILE}.{HOSTILE}", f"table {HOSTILE}.{HOSTILE}"),
    "column type": ("ALTER FOREIGN TABLE shop.abroad ALTER id TYPE bigint", "foreign table shop.abroad"),
    "column null": ("ALTER TABLE shop.lines ALTER note SET NOT NULL", "table shop.lines"),
    "column storage": ("ALTER TABLE shop.items ALTER remark SET STORAGE MAIN", "table shop.items"),
    "column target": ("ALTER TABLE shop.lines ALTER note SET STATISTICS 7", "table shop.lines"),
    "column rights": ("REVOKE SELECT (name) ON shop.items FROM PUBLIC", "table shop.items"),
    "column default": (
        "ALTER TABLE shop.items ALTER name SET DEFAULT 'other'",
        "default value for shop.items.name",
    ),
    "table rights": ("GRANT DELETE ON shop.items TO reader", "table shop.items"),
    "table owner": ("UPDATE pg_class SET relowner = 10 WHERE relname = 'lines'", "table shop.lines"),
    "table options": ("ALTER TABLE shop.items SET (fillfactor = 50)", "table shop.items"),
    "row security": ("ALTER TABLE shop.items DISABLE ROW LEVEL SECURITY", "table shop.items"),
    "replica identity": ("ALTER TABLE shop.items REPLICA IDENTITY FULL", "table shop.items"),
    "comment": ("COMMENT ON COLUMN shop.items.name IS NULL", "table shop.items"),
    "index missing": ("DROP INDEX shop.items_name", "index shop.items_name"),
    "index invalid": (
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'shop.items_name'::regclass",
        "index shop.items_name",
    ),
    "constraint": (
        "ALTER TABLE shop.lines DROP CONSTRAINT lines_item_fkey",
        "table constraint lines_item_fkey on shop.lines",
    ),
    "trigger": ("ALTER TABLE shop.items DISABLE TRIGGER items_stamp", "trigger items_stamp on shop.items"),
    "policy": ("ALTER POLICY mine ON shop.items USING (true)", "policy mine on shop.items"),
    "view": (
        "CREATE OR REPLACE VIEW shop.cheap AS SELECT id, name FROM shop.items WHERE price < 11",
        'rule "_RETURN" on shop.cheap',
    ),
    "enum": ("ALTER TYPE shop.mood RENAME VALUE 'bad' TO 'worse'", "type shop.mood"),
    "domain": ("ALTER DOMAIN shop.positive SET NOT NULL", "type shop.positive"),
    "sequence": ("ALTER SEQUENCE shop.tickets CACHE 1", "sequence shop.tickets"),
    "statistics": ("DROP STATISTICS shop.items_stats", "statistics object shop.items_stats"),
    "publication": ("ALTER PUBLICATION news SET (publish = 'insert')", "publication news"),
    "published": (
        "ALTER PUBLICATION news DROP TABLE shop.items",
        "publication relation shop.items in publication news",
    ),
    "default rights": (
        "ALTER DEFAULT PRIVILEGES IN SCHEMA shop REVOKE SELECT ON TABLES FROM reader",
        "default acl for role postgres in schema shop on tables",
    ),
    "foreign server": ("ALTER SERVER away OPTIONS (SET host 'elsewhere')", "server away"),
    "user mapping": ("DROP USER MAPPING FOR app SERVER away", "user mapping app on server away"),
    "extension": ("CREATE EXTENSION pgstattuple SCHEMA shop", "extension pgstattuple"),
    "event trigger": ("DROP EVENT TRIGGER guard", "event trigger guard"),
    "large object": ("SELECT lo_create(4712)", "large object 4712"),
    "large object missing": ("SELECT lo_unlink(4711)", "large object 4711"),
    "large object rights": ("GRANT SELECT ON LARGE OBJECT 4711 TO reader", "large object 4711"),
    "system function": (
        "REVOKE EXECUTE ON FUNCTION pg_sleep FROM PUBLIC",
        "function pg_catalog.pg_sleep(double precision)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_to_the_catalogue_is_one_finding_that_names_the_object(
    at_bench: Bench, operated: Copy, damage: str
) -> None:
    """Whatever was changed in the copy alone is refuted by its name, and nothing else is."""
    statement, name = DAMAGES[damage]
    with damaged(operated, statement) as (copied, until):
        judgement = at_bench.judge_catalogue(copied, until=until)

    # From PostgreSQL 17 (domains) and 18 (tables) on, a NOT NULL is an object of its own as well.
    found = [each for each in subjects(judgement) if "_not_null on " not in each]
    assert found == [f"{DATABASE}: {name}"]
    assert decisive(judgement) is Verdict.REFUTED


@contextmanager
def damaged(copy: Copy, statement: str) -> Iterator[tuple[Connection, int]]:
    """Change the copy in a transaction that is rolled back; yields it, and the id that was next before."""
    with connect(copy.access.database(DATABASE), NAME) as copied:
        until = catalogue.read_window(copied).next
        with copied.transaction(force_rollback=True):
            copied.execute(f"SET LOCAL allow_system_table_mods = on; {statement}".encode())
            yield copied, until


CLUSTER_DAMAGES = {
    "role missing": ("DROP ROLE leaver", "role leaver"),
    "role attribute": ("ALTER ROLE leaver CREATEDB", "role leaver"),
    "role setting": ("ALTER ROLE app RESET search_path", "role app"),
    "membership": ("REVOKE reader FROM app", "role app"),
    "database setting": (f"ALTER DATABASE {DATABASE} RESET work_mem", f"database {DATABASE}"),
    "database rights": (f"REVOKE CONNECT ON DATABASE {DATABASE} FROM PUBLIC", f"database {DATABASE}"),
    "parameter rights": ("GRANT SET ON PARAMETER work_mem TO reader", "parameter ACL work_mem"),
}


@pytest.mark.parametrize("damage", CLUSTER_DAMAGES)
def test_each_damage_to_what_databases_share_is_one_finding(
    at_bench: Bench, operated: Copy, damage: str
) -> None:
    """Roles, memberships and settings are compared once for the cluster."""
    statement, name = CLUSTER_DAMAGES[damage]
    with damaged(operated, statement) as (copied, until):
        judgement = at_bench.judge_catalogue(copied, "cluster", until=until)

    assert subjects(judgement) == [f"cluster: {name}"]
    assert decisive(judgement) is Verdict.REFUTED


def test_an_object_made_anew_is_told_as_different(at_bench: Bench, operated: Copy) -> None:
    """A default that was dropped and set has another OID; it is one finding, with both expressions."""
    statement, _ = DAMAGES["column default"]
    with damaged(operated, statement) as (copied, until):
        judgement = at_bench.judge_catalogue(copied, until=until)

    (finding,) = judgement.findings
    assert finding.code == "catalogue-differs"
    assert "'none'::text" in finding.message
    assert "'other'::text" in finding.message


def test_a_reading_stands_until_a_row_comes_goes_or_changes(at_bench: Bench) -> None:
    """What one reading is made of is not read again for nothing, and no change is passed over."""
    with connect(at_bench.sandbox.admin_dsn(at_bench.sandbox.primary_port, DATABASE), NAME) as source:
        first = catalogue.read(source, "database")
        stands = catalogue.reread(source, first)
        readings = [first]
        for statement in (
            "CREATE TABLE shop.new ()",
            "COMMENT ON TABLE shop.new IS 'n'",
            "DROP TABLE shop.new",
        ):
            source.execute(statement.encode())
            readings.append(catalogue.reread(source, readings[-1]))

    assert stands.items is first.items
    assert [True] * 3 == [one.items != two.items for one, two in pairwise(readings)]
    assert {a: item.digest for a, item in first.items.items()} == {
        a: item.digest for a, item in readings[-1].items.items()
    }


def test_secrets_are_not_told(at_bench: Bench, operated: Copy) -> None:
    """A foreign server that differs is told without the password that is one of its options."""
    with damaged(operated, "ALTER SERVER away OPTIONS (SET host 'x', SET password 'other-word')") as (
        copied,
        until,
    ):
        judgement = at_bench.judge_catalogue(copied, until=until)

    assert "host=x" in judgement.findings[0].message
    assert "-word" not in judgement.model_dump_json()


def test_changes_at_the_source_around_the_mark_refute_nothing(at_bench: Bench, operated: Copy) -> None:
    """Objects that were made, changed or dropped at the source since are as before in the copy: good."""
    at_bench.sql(
        "CREATE TABLE shop.new (id int); COMMENT ON TABLE shop.lines IS 'new'; CREATE TEMP TABLE t ()"
    )
    try:
        with connect(operated.access.database(DATABASE), NAME) as copied:
            judgement = at_bench.judge_catalogue(copied)
    finally:
        at_bench.sql("DROP TABLE shop.new; COMMENT ON TABLE shop.lines IS NULL")

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


def test_what_came_and_went_around_the_mark_is_told_as_moved(at_bench: Bench, operated: Copy) -> None:
    """A table that the copy has, made by a transaction of that window, refutes nothing, nor is it proven."""
    with damaged(operated, "CREATE TABLE shop.passing (id int)") as (copied, until):
        judgement = at_bench.judge_catalogue(copied, until=until + 1000)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.INCONCLUSIVE
    (told,) = (check for check in judgement.checks if check.id == f"catalogue {DATABASE} meanwhile")
    assert "table shop.passing" in told.detail


def test_more_damage_than_a_report_can_hold_is_counted(at_bench: Bench, operated: Copy) -> None:
    """Hundreds of differing objects are refuted, the first fifty told, and the rest not kept quiet."""
    with damaged(operated, "UPDATE pg_proc SET procost = 7 WHERE oid < 2000") as (copied, until):
        judgement = at_bench.judge_catalogue(copied, until=until)

    assert len(judgement.findings) == 51
    assert judgement.findings[-1].code == "catalogue-more"
    assert decisive(judgement) is Verdict.REFUTED


def test_more_moves_than_a_report_can_hold_refute_nothing(at_bench: Bench, operated: Copy) -> None:
    """Hundreds of objects that changed around the mark are no finding, and no proof."""
    with damaged(operated, "UPDATE pg_proc SET procost = 7 WHERE oid < 2000") as (copied, until):
        judgement = at_bench.judge_catalogue(copied, until=until + 1000)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.INCONCLUSIVE


@pytest.mark.icu
def test_another_collation_version_is_told(operated: Copy) -> None:
    """Indexes built by another release of the host's collations may be wrong, which is said by name."""
    statement = "UPDATE pg_collation SET collversion = '1' WHERE collname = 'german'"
    with damaged(operated, statement) as (copied, _):
        judgement = catalogue.read_collations(DATABASE, copied)

    assert subjects(judgement) == [f"{DATABASE}: collation german"]


# --- sequences, amcheck, checksums ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "code", "name"),
    [
        ("SELECT setval('shop.tickets', 1)", "sequence-behind", "shop.tickets"),
        ("SELECT setval('shop.tickets', 999)", "sequence-ahead", "shop.tickets"),
        ("SELECT setval('shop.down', -1, false)", "sequence-behind", "shop.down"),
        ("SELECT setval('shop.ring', 1, false)", "sequence-behind", "shop.ring"),
    ],
)
def test_a_sequence_that_does_not_fit_is_named_with_both_values(
    at_bench: Bench, operated: Copy, statement: str, code: str, name: str
) -> None:
    """Behind, values would come twice; far ahead, something is wrong: up, down or round."""
    with connect(at_bench.sandbox.dsn(DATABASE), NAME) as source:
        after = sequences.read(source)
    states = next(state for state in after.values() if state.name == name)
    with connect(operated.access.database(DATABASE), NAME) as copied:
        copied.execute(statement.encode())
        judgement = sequences.judge(DATABASE, at_bench.sequences, after, sequences.read(copied))
        copied.execute("SELECT setval(%s, %s, false)", (name, states.next))

    assert [finding.code for finding in judgement.findings] == [code]
    assert f"{states.next} to {states.next} at the source" in judgement.findings[0].message
    assert subjects(judgement) == [f"{DATABASE}: sequence {name}"]


RENAMED = "ALTER SEQUENCE shop.renamed RENAME TO renewed"
SPYING = """
CREATE TABLE shop.renamed (last_value int, is_called boolean);
CREATE FUNCTION shop.spy(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
CREATE INDEX ON shop.renamed (shop.spy(1));
CREATE OR REPLACE FUNCTION shop.spy(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS
    'BEGIN RAISE ''spied as %'', current_user; END';
"""


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (RENAMED, "shop.renewed"),
        (f"{RENAMED}; CREATE SEQUENCE shop.renamed", "shop.renewed"),
        (f"{RENAMED}; CREATE TABLE shop.renamed (n int)", "shop.renewed"),
        (f"{RENAMED}; {SPYING}", "shop.renewed"),
        ("DROP SEQUENCE shop.renamed", ""),
    ],
    ids=["renamed", "replaced", "by a table", "by a spy", "dropped"],
)
def test_a_sequence_that_is_renamed_while_it_is_read_is_no_dropped_one(
    at_bench: Bench, change: str, name: str
) -> None:
    """It is read by the name that it has now, and nothing that took the old one is read in its place."""
    waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = {}"
    with (
        connect(at_bench.sandbox.dsn(DATABASE), NAME) as source,
        connect(at_bench.sandbox.admin_dsn(at_bench.sandbox.primary_port, DATABASE), NAME) as user,
        ThreadPoolExecutor(1) as pool,
    ):
        user.execute("CREATE SEQUENCE shop.renamed; SELECT setval('shop.renamed', 5000)")
        (made,) = user.execute("SELECT 'shop.renamed'::regclass::oid::bigint AS oid").fetchall()
        with user.transaction():
            user.execute(change.encode())
            reading = pool.submit(sequences.read, source)
            wait(lambda: at_bench.sql(waiting.format(made["oid"])))
        found = {oid: (state.name, state.next) for oid, state in reading.result().items()}
        user.execute("DROP SEQUENCE IF EXISTS shop.renewed")
        user.execute(f"DROP {'TABLE' if 'TABLE' in change else 'SEQUENCE'} IF EXISTS shop.renamed".encode())
        user.execute("DROP FUNCTION IF EXISTS shop.spy(int)")

    assert found.get(made["oid"]) == ((name, 5001) if name else None)


@pytest.mark.parametrize("was_there", [True, False])
@pytest.mark.parametrize(("position", "verdict"), [(3000, Verdict.VERIFIED), (2000, Verdict.INCONCLUSIVE)])
def test_a_sequence_that_moved_or_came_around_the_mark_is_held_to_its_column(
    at_bench: Bench, operated: Copy, position: int, verdict: Verdict, *, was_there: bool
) -> None:
    """Anywhere on its way it is good, but not behind the values that the rows of the copy have."""
    name = "shop.items_id_seq"
    with connect(at_bench.sandbox.dsn(DATABASE), NAME) as source:
        after = sequences.read(source)
    oid = next(state.oid for state in after.values() if state.name == name)
    start = after[oid].model_copy(update={"next": 1000})
    before = {each: state for each, state in (after | {oid: start}).items() if was_there or each != oid}
    with connect(operated.access.database(DATABASE), NAME) as copied:
        copied.execute("SELECT setval(%s, %s)", (name, position))
        judgement = sequences.prove(DATABASE, (before, after), copied)
        copied.execute("SELECT setval(%s, 3000)", (name,))

    assert judgement.findings == ()
    assert decisive(judgement) is verdict


@pytest.mark.parametrize(
    "table",
    [
        "shop.tallied (id bigserial PRIMARY KEY); CREATE INDEX ON shop.tallied (shop.total(1))",
        (
            "shop.tallied (id bigserial, n int) PARTITION BY RANGE ((n + shop.total(1)));"
            "CREATE TABLE shop.tally PARTITION OF shop.tallied DEFAULT; CREATE INDEX ON shop.tallied (id)"
        ),
    ],
    ids=["index", "partition key"],
)
def test_no_column_is_asked_where_that_calls_functions_of_its_owner(operated: Copy, table: str) -> None:
    """To plan for the last value would; the sequence is held to its own place alone."""
    with connect(operated.access.database(DATABASE), NAME) as copied:
        copied.execute("BEGIN; ALTER FUNCTION shop.total(integer) IMMUTABLE")
        copied.execute(f"CREATE TABLE {table}; INSERT INTO shop.tallied DEFAULT VALUES".encode())
        (state,) = [each for each in sequences.read(copied).values() if each.name == "shop.tallied_id_seq"]
        trusted = sequences.read_used(copied, [state])
        copied.execute("ALTER FUNCTION shop.total(integer) OWNER TO app")
        strange = sequences.read_used(copied, [state])
        copied.execute("ROLLBACK")

    assert trusted == {state.oid: 1}
    assert strange == {}


def test_a_flipped_heap_page_is_found_by_amcheck_and_by_checksums(copy: Copy) -> None:
    """One broken page of a table is one finding of either judge, though every index check meets it too."""
    with connect(copy.access.database(DATABASE), NAME) as session:
        files = checksums.read_files(session)
    path = copy.flip("shop.items", 3)
    sound = amcheck.check_database(copy.access, NAME, DATABASE, BOUND)
    with connect(copy.access.database(DATABASE), NAME) as session:
        met = checksums.read_failures(session)
    copy.stop()
    scanned = checksums.check(copy.access, copy.data, BOUND, files)
    copy.start()

    assert subjects(sound) == [f"{DATABASE}: shop.items"]
    assert "invalid page in block 3" in sound.findings[0].message
    assert decisive(sound) is decisive(met) is decisive(scanned) is Verdict.REFUTED
    assert subjects(scanned) == [f"{DATABASE}: shop.items ({path})"]
    assert "first block 3" in scanned.findings[0].message


def test_a_broken_index_is_named(copy: Copy) -> None:
    """An overwritten page of an index refutes that index and nothing else, in that database alone."""
    copy.flip("shop.items_name", 2)
    judgement = amcheck.check(copy.access, NAME, BOUND)

    assert subjects(judgement) == [f"{DATABASE}: shop.items_name"]
    assert [c.id for c in judgement.checks if c.verdict is Verdict.REFUTED] == [f"amcheck {DATABASE}"]


def test_an_index_that_lacks_a_row_is_named(copy: Copy) -> None:
    """A row without its index entry is found, though every page is as it was written."""
    copy.sql("UPDATE pg_index SET indisready = false WHERE indexrelid = 'shop.items_name'::regclass")
    copy.sql("INSERT INTO shop.items (name) VALUES ('unlisted')")
    copy.sql("UPDATE pg_index SET indisready = true WHERE indexrelid = 'shop.items_name'::regclass")
    judgement = amcheck.check_database(copy.access, NAME, DATABASE, BOUND)

    assert subjects(judgement) == [f"{DATABASE}: shop.items_name"]
    assert "lacks matching index tuple" in judgement.findings[0].message


def test_an_event_trigger_does_not_hinder_amcheck(copy: Copy) -> None:
    """A trigger that forbids all DDL, always, is put aside for the extension and is as before afterwards."""
    copy.sql("ALTER EVENT TRIGGER guard ENABLE ALWAYS")
    judgement = amcheck.check_database(copy.access, NAME, DATABASE, BOUND)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED
    assert copy.sql("SELECT evtenabled::text AS state FROM pg_event_trigger") == [{"state": "A"}]


def test_settings_of_the_database_do_not_hinder_amcheck(copy: Copy) -> None:
    """Read only, and with a timeout that no check could meet: that is for users, not for the judge."""
    copy.sql(
        f"ALTER DATABASE {DATABASE} SET default_transaction_read_only = on;"
        f"ALTER DATABASE {DATABASE} SET statement_timeout = 1"
    )
    judgement = amcheck.check_database(copy.access, NAME, DATABASE, BOUND)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


def test_a_prepared_transaction_does_not_hinder_amcheck(healthy_copy: Copy) -> None:
    """It came with the WAL and nobody would ever end it: it is rolled back in the copy."""
    with connect(healthy_copy.access.database(DATABASE), NAME) as session:
        session.execute("BEGIN")
        session.execute("UPDATE shop.items SET name = name WHERE id = 1")
        session.execute("PREPARE TRANSACTION 'it''s forgotten'")

    judgement = amcheck.check_database(healthy_copy.access, NAME, DATABASE, BOUND)

    assert decisive(judgement) is Verdict.VERIFIED
    assert judgement.findings == ()


def test_a_database_without_amcheck_is_inconclusive_by_name(copy: Copy) -> None:
    """Where the extension cannot be installed nothing is known, and the other databases are checked."""
    copy.sql(f"CREATE SCHEMA {amcheck.SCHEMA}")
    judgement = amcheck.check(copy.access, NAME, BOUND)

    assert [finding.code for finding in judgement.findings] == ["amcheck-unchecked"]
    assert subjects(judgement) == [DATABASE]
    assert decisive(judgement) is Verdict.INCONCLUSIVE


def test_no_function_beside_amchecks_own_is_called_in_its_place(copy: Copy) -> None:
    """pg_amcheck calls with an OID, which fits somebody else's function better than the extension's own."""
    copy.sql("CREATE EXTENSION amcheck SCHEMA shop")
    copy.sql(
        "CREATE FUNCTION shop.bt_index_parent_check(index oid, heapallindexed boolean, rootdescend boolean)"
        " RETURNS void LANGUAGE plpgsql AS 'BEGIN RAISE ''called as %'', current_user; END';"
        "ALTER FUNCTION shop.bt_index_parent_check(oid, boolean, boolean) OWNER TO app"
    )
    judgement = amcheck.check_database(copy.access, NAME, DATABASE, BOUND)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


def test_a_check_that_fails_is_no_corruption(copy: Copy) -> None:
    """An index whose function raises an error cannot be checked: inconclusive, and the index is named."""
    copy.sql("CREATE FUNCTION shop.same(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
    copy.sql("CREATE INDEX items_same ON shop.items (shop.same(name))")
    body = "BEGIN RAISE EXCEPTION ''not today''; END"
    copy.sql(
        f"CREATE OR REPLACE FUNCTION shop.same(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS '{body}'"
    )
    judgement = amcheck.check_database(copy.access, NAME, DATABASE, BOUND)

    assert decisive(judgement) is Verdict.INCONCLUSIVE
    assert [finding.code for finding in judgement.findings] == ["amcheck-unchecked"]
    assert "shop.items_same" in judgement.findings[0].message


def test_amcheck_that_has_no_time_is_inconclusive(healthy_copy: Copy) -> None:
    """Beyond the deadline every database that is left is told as not checked."""
    judgement = amcheck.check(healthy_copy.access, NAME, timedelta(milliseconds=1))

    assert decisive(judgement) is Verdict.INCONCLUSIVE
    assert len(judgement.findings) == len(healthy_copy.sql("SELECT datname FROM pg_database"))


def test_checksums_of_a_running_or_unprotected_copy_are_not_known(copy: Copy) -> None:
    """Exit code 1 of a scan that did not happen is no bad page; a cluster without checksums is told."""
    running = checksums.check(copy.access, copy.data, BOUND, {})
    copy.stop()
    copy.tool("pg_checksums", "--disable", "-D", str(copy.data))
    without = checksums.check(copy.access, copy.data, BOUND, {})
    copy.start()

    assert decisive(running) is Verdict.INCONCLUSIVE
    assert "must be shut down" in running.checks[0].detail
    assert not without.checks[0].required
    assert "are off" in without.checks[0].detail


# --- assertions -------------------------------------------------------------------------------------


def asked(copy: Copy, statement: str, role: str | None = "app") -> Judgement:
    assertion = Assertion(name="it", database=DATABASE, sql=statement, role=role)
    return assertions.check(copy.access, NAME, [assertion], timedelta(seconds=2))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) = 3000 FROM lines",
        "SELECT current_user = 'app' AND session_user = 'app';",
        "SELECT current_setting('transaction_read_only') = 'on' AND 'a' LIKE '%a'",
        "SELECT current_setting('work_mem') = '5MB'",
        "SELECT count(*) = 999 FROM items",
    ],
)
def test_what_is_true_as_the_role_passes(operated: Copy, statement: str) -> None:
    """An assertion runs as its role would: its rights, policies, search path and settings; read only."""
    judgement = asked(operated, statement)

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


@pytest.mark.parametrize(
    ("statement", "code", "verdict"),
    [
        ("SELECT count(*) = 1 FROM lines", "assertion-false", Verdict.REFUTED),
        ("SELECT NULL::boolean", "assertion-null", Verdict.REFUTED),
        ("SELECT true WHERE false", "assertion-no-row", Verdict.REFUTED),
        ("SELECT true FROM lines", "assertion-not-one", Verdict.REFUTED),
        ("SELECT true, true", "assertion-not-one", Verdict.REFUTED),
        ("SELECT 1", "assertion-not-boolean", Verdict.REFUTED),
        ("SELECT count(*) > 0 FROM counted", "assertion-failed-to-run", Verdict.INCONCLUSIVE),
        ("SELECT true FROM nowhere", "assertion-failed-to-run", Verdict.INCONCLUSIVE),
        ("SELECT pg_sleep(9) IS NULL", "assertion-failed-to-run", Verdict.INCONCLUSIVE),
        ("INSERT INTO lines VALUES (1) RETURNING true", "assertion-failed-to-run", Verdict.INCONCLUSIVE),
        ("RESET SESSION AUTHORIZATION; SELECT true", "assertion-failed-to-run", Verdict.INCONCLUSIVE),
        ("SELECT shop.is_superuser()", "assertion-false", Verdict.REFUTED),
    ],
)
def test_anything_but_one_true_has_its_own_code(
    operated: Copy, statement: str, code: str, verdict: Verdict
) -> None:
    """An answer that is not true refutes; an error leaves the question open; neither passes."""
    judgement = asked(operated, statement)

    assert [finding.code for finding in judgement.findings] == [code]
    assert decisive(judgement) is verdict


def test_a_role_that_only_others_become_can_be_asked_as_well(operated: Copy) -> None:
    """A group without LOGIN and without CONNECT is let in to the copy, with the settings that it has."""
    operated.sql(f"REVOKE CONNECT ON DATABASE {DATABASE} FROM PUBLIC; ALTER ROLE reader SET work_mem = '7MB'")
    judgement = asked(
        operated, "SELECT session_user = 'reader' AND current_setting('work_mem') = '7MB'", role="reader"
    )

    assert judgement.findings == ()
    assert decisive(judgement) is Verdict.VERIFIED


def test_a_role_that_the_copy_lacks_refutes(operated: Copy) -> None:
    """What nobody can log in as after a restore is not restored."""
    judgement = asked(operated, "SELECT true", role="nobody-there")

    assert [finding.code for finding in judgement.findings] == ["assertion-role-missing"]
    assert decisive(judgement) is Verdict.REFUTED
