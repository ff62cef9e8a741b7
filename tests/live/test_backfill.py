import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from pgvigil.backfill import steering
from pgvigil.backfill.facts import BackfillReport, Progress
from pgvigil.backfill.session import Bounds, Session
from pgvigil.fleet import load_fleet
from pgvigil.postgres import connect
from tests.fixtures.backfill import Yard, pooler, standby
from tests.fixtures.sandbox import since

POOLER = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin")
CENTS: dict[str, Any] = {"set": {"cents": "(amount * 100)::bigint"}, "where": "cents IS NULL"}
SMALL = {"rows": 20, "most_rows": 40, "lock_wait": "50ms", "longest": "2s"}


def payments(yard: Yard, rows: int, key: str = "id bigint PRIMARY KEY") -> None:
    yard.sql(f"CREATE TABLE payments ({key}, amount numeric(12, 2), cents bigint)")
    yard.sql(f"INSERT INTO payments SELECT n, n / 100.0 FROM generate_series(1, {rows}) AS n")
    yard.sql("ANALYZE payments")


def done(yard: Yard) -> int:
    return int(yard.value("SELECT count(*) FROM payments WHERE cents = amount * 100"))


def told(report: BackfillReport) -> str:
    return report.model_dump_json(indent=1)


def actual(report: BackfillReport, check: str) -> str:
    return next(f"{c.verdict}: {c.actual} {c.detail}".strip() for c in report.checks if c.id == check)


@contextmanager
def running(yard: Yard, name: str = "work") -> Iterator[list[BackfillReport]]:
    """Run the backfill beside the block, and wait for its end after it."""
    found: list[BackfillReport] = []
    thread = threading.Thread(target=lambda: found.append(yard.run(name)))
    thread.start()
    try:
        yield found
    finally:
        thread.join()


@contextmanager
def session(yard: Yard, *statements: str) -> Iterator[Any]:
    """A session of somebody else in an open transaction."""
    with connect(yard.sandbox.admin_dsn(yard.sandbox.primary_port, "shop"), "user") as other:
        other.execute("SET search_path = public; BEGIN")
        for statement in statements:
            other.execute(statement.encode())
        yield other
        other.execute("ROLLBACK")


OTHERS = """
SELECT count(*) FROM pg_stat_activity
 WHERE pid <> pg_backend_pid() AND (datname = 'shop' OR backend_type LIKE 'autovacuum%')
"""


@contextmanager
def alone(yard: Yard) -> Iterator[None]:
    """No snapshot of others keeps old rows in their pages; autovacuum's does while it analyses a table."""
    configure(yard, "autovacuum", "off")
    try:
        yard.wait(lambda: not yard.value(OTHERS))
        yield
    finally:
        configure(yard, "autovacuum", "on")


# --- walking ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("k bigint PRIMARY KEY", "n * 3000000007 - 900000000000"),
        ("k uuid PRIMARY KEY", "md5(n::text)::uuid"),
        ("k text PRIMARY KEY", "md5(n::text) || CASE WHEN n % 2 = 0 THEN 'ä' ELSE 'Z' END"),
        ('k text COLLATE "C" PRIMARY KEY', "md5(n::text) || '%'"),
        ("k timestamptz PRIMARY KEY", "'2026-01-01 00:00+02'::timestamptz + n * interval '1.000001 s'"),
        ("k numeric NOT NULL UNIQUE", "(n - 200) / 7.0"),
        ("k date, l text, PRIMARY KEY (k, l)", "'2026-01-01'::date + n % 9, 'x''y' || n"),
        ("k text, l int, PRIMARY KEY (l, k)", "'a' || n % 3, n / 3"),
        ("k int", "n % 7"),
        ("k int UNIQUE", "nullif(n, 5)"),
    ],
    ids=["gaps", "uuid", "text", "C", "time", "unique", "composite", "swapped", "none", "nullable"],
)
def test_any_key_is_walked_once_over(yard: Yard, columns: str, values: str) -> None:
    """Whatever the key, or without a usable one, each row is changed exactly once."""
    yard.sql(f"CREATE TABLE t ({columns}, v int, hits int NOT NULL DEFAULT 0)")
    place = ", ".join(name for name in ("k", "l") if f"{name} " in columns)
    yard.sql(f"INSERT INTO t ({place}, v) SELECT {values}, n FROM generate_series(1, 400) AS n; ANALYZE t")
    yard.define(table="public.t", set={"hits": "hits + 1", "v": "-v"}, where="v > 0", batch=SMALL)

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert yard.value("SELECT count(*) FROM t WHERE hits = 1") == 400


def test_an_index_with_another_collation_is_walked(yard: Yard) -> None:
    """Rows come in the order of the index, which need not be that of the column."""
    yard.sql("CREATE TABLE t (k text NOT NULL, v int)")
    yard.sql('CREATE UNIQUE INDEX u ON t (k COLLATE "POSIX")')
    yard.sql("INSERT INTO t SELECT chr(64 + n % 60) || n, 1 FROM generate_series(1, 300) AS n; ANALYZE t")
    yard.define(table="public.t", set={"v": "0"}, where="v > 0", batch=SMALL)

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert report.plan
    assert "by u" in report.plan.walks[0]


@pytest.mark.icu
def test_a_collation_for_which_two_texts_are_one_is_walked(yard: Yard) -> None:
    """The cursor compares as the index does: a key that is written in another way meanwhile stays one row."""
    yard.sql("CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    yard.sql("CREATE TABLE t (k text COLLATE ci PRIMARY KEY, v int, hits int NOT NULL DEFAULT 0)")
    yard.sql("INSERT INTO t SELECT 'Ä' || n % 9 || 'x' || n, 1 FROM generate_series(1, 400) AS n; ANALYZE t")
    yard.define(table="public.t", set={"v": "0", "hits": "hits + 1"}, where="v > 0", batch=SMALL)
    yard.on_progress = lambda _: yard.sql("UPDATE t SET k = translate(k, 'äxÄX', 'ÄXäx')")

    assert yard.run().verdict == "verified"
    assert yard.value("SELECT count(*) FROM t WHERE hits = 1") == 400


def test_an_index_in_an_order_of_its_own_is_passed_over(yard: Yard) -> None:
    """One that no comparison of keys can use does not stand in the way of walking by blocks."""
    yard.sql("CREATE TABLE t (k text NOT NULL, v int); CREATE UNIQUE INDEX u ON t (k text_pattern_ops)")
    yard.sql("INSERT INTO t SELECT 'k' || n, 1 FROM generate_series(1, 300) AS n; ANALYZE t")
    yard.define(table="public.t", set={"v": "0"}, where="v > 0", batch=SMALL)

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert report.plan
    assert "block ranges" in report.plan.walks[0]


@since(18, "keys WITHOUT OVERLAPS")
def test_a_key_over_time_is_passed_over(yard: Yard) -> None:
    """It tells rows apart, but its index has no order by which they could be walked."""
    yard.sql("CREATE EXTENSION btree_gist", role=None)
    yard.sql("CREATE TABLE t (k int, at daterange, v int, PRIMARY KEY (k, at WITHOUT OVERLAPS))")
    yard.sql("INSERT INTO t SELECT n, '[2026-01-01,)', 1 FROM generate_series(1, 300) AS n; ANALYZE t")
    yard.define(table="public.t", set={"v": "0"}, where="v > 0", batch=SMALL)

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert report.plan
    assert "block ranges" in report.plan.walks[0]


@since(18, "NOT NULL … NOT VALID")
def test_a_not_null_that_was_never_proven_is_proven(yard: Yard) -> None:
    """A column that only promises it is not taken for one that keeps it."""
    yard.sql("CREATE TABLE t (k int PRIMARY KEY, v int); INSERT INTO t VALUES (1, NULL), (2, 2)")
    yard.sql("ALTER TABLE t ADD CONSTRAINT promised NOT NULL v NOT VALID")
    yard.define(table="public.t", set={"v": "0"}, where="v IS NULL", not_null=["v"])

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert ("v",) == report.not_null
    assert yard.value("SELECT convalidated FROM pg_constraint WHERE conname = 'promised'")


def test_no_batch_scans_the_table(yard: Yard) -> None:
    """Also where the planner takes two keys of the same first column for half of the table."""
    yard.sql("CREATE TABLE t (a int, b uuid, v int, PRIMARY KEY (a, b))")
    yard.sql(
        "INSERT INTO t SELECT n % 2, md5(n::text)::uuid, 1 FROM generate_series(1, 20000) AS n; ANALYZE t"
    )
    yard.define(table="public.t", set={"v": "0"}, where="v > 0", batch={"rows": 200, "most_rows": 200})

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert report.progress
    assert report.progress.batches >= 100
    # Those of the forecast, of the count and of VACUUM.
    assert yard.value("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 't'") < 20


def test_what_is_added_meanwhile_is_walked_in_the_next_pass(yard: Yard) -> None:
    """A partition that was created, and blocks that were appended, after the walk had begun."""
    yard.sql("CREATE TABLE t (k int, d int, v int) PARTITION BY LIST (d)")
    yard.sql("CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1)")
    yard.sql("INSERT INTO t SELECT n, 1, 1 FROM generate_series(1, 1000) AS n; ANALYZE t")
    yard.define(table="public.t", set={"v": "0"}, where="v > 0", batch=SMALL)

    statements = [
        "INSERT INTO t SELECT n, 1 + n % 2, 1 FROM generate_series(1, 1000) AS n",
        "CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2)",
    ]

    def add(_: Progress) -> None:
        while statements:
            yard.sql(statements.pop())

    yard.on_progress = add
    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert yard.value("SELECT count(*) FROM t WHERE v = 0") == 2000


def test_a_walk_by_a_key_that_is_gone_is_begun_anew(yard: Yard) -> None:
    """A position in one key says nothing in another, so what is left of the old walk is given up."""
    yard.sql("CREATE TABLE payments (id bigint, other uuid NOT NULL, amount numeric, cents bigint)")
    yard.sql("INSERT INTO payments SELECT n, md5(n::text)::uuid, n / 100.0 FROM generate_series(1, 600) AS n")
    slow(yard)
    yard.define(table="public.payments", **CENTS, batch=SMALL)
    steer_in_mid_walk(yard, "cancel")
    yard.sql("ALTER TABLE payments ADD PRIMARY KEY (other)")
    steering.conduct_steering("demo/shop", "work", "resume", {})

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert done(yard) == 600


def test_names_are_data(yard: Yard) -> None:
    """A table, key and column of the worst names are walked like any other."""
    yard.sql("""CREATE TABLE "Ä""b.c'; --%s" ("k %(a)s" int PRIMARY KEY, "x""y%" int)""")
    yard.sql("""INSERT INTO "Ä""b.c'; --%s" SELECT generate_series(1, 100)""")
    name = '''public."Ä""b.c'; --%s"'''
    yard.define(
        table=name, set={'x"y%': '"k %(a)s" % 7 -- comment'}, where='"x""y%" IS NULL', not_null=['x"y%']
    )

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert ('x"y%',) == report.not_null
    assert yard.value('''SELECT sum("x""y%") FROM "Ä""b.c'; --%s"''') == sum(n % 7 for n in range(1, 101))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_table_of_no_or_one_row_is_finished(yard: Yard, rows: int) -> None:
    """Nothing to do is proven by the same count."""
    payments(yard, rows)
    yard.define(table="public.payments", **CENTS)

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert (rows, 0) == (done(yard), report.rows_left)


def test_every_partition_is_walked(yard: Yard) -> None:
    """All leaves of a tree, each by its own key; one without an index by its blocks."""
    yard.sql("CREATE TABLE t (k int NOT NULL, d int NOT NULL, v int) PARTITION BY RANGE (d)")
    yard.sql("CREATE TABLE t1 PARTITION OF t (PRIMARY KEY (k)) FOR VALUES FROM (0) TO (10)")
    yard.sql("CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20) PARTITION BY LIST (d)")
    yard.sql("CREATE TABLE t3 PARTITION OF t2 DEFAULT")
    yard.sql("INSERT INTO t SELECT n, n % 20, 1 FROM generate_series(1, 1000) AS n; ANALYZE t")
    yard.define(table="public.t", set={"v": "t.v + 1"}, where="t.v = 1", batch=SMALL)

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert yard.value("SELECT count(*) FROM t WHERE v = 2") == 1000


def test_a_range_that_a_lost_answer_left_behind_is_done(yard: Yard) -> None:
    """A worker that lost its connection while it gave a range back leaves none that nobody takes."""
    yard.sql(
        "CREATE TABLE payments (id bigint PRIMARY KEY, amount numeric, cents bigint) PARTITION BY RANGE (id)"
    )
    yard.sql("CREATE TABLE low PARTITION OF payments FOR VALUES FROM (0) TO (501)")
    yard.sql("CREATE TABLE high PARTITION OF payments FOR VALUES FROM (501) TO (1001)")
    yard.sql("INSERT INTO payments SELECT n, n / 100.0 FROM generate_series(1, 1000) AS n; ANALYZE payments")
    yard.define(table="public.payments", **CENTS, batch=SMALL)
    heard: list[Progress] = []

    def leave_behind(progress: Progress) -> None:
        heard.append(progress)
        assert len(heard) < 60, "a range is waited for that nobody has"
        yard.sql(
            "UPDATE pgvigil.backfill_range SET worker = 9"
            " WHERE worker IS NULL AND NOT is_done AND batches = 0",
            None,
        )

    yard.on_progress = leave_behind
    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert done(yard) == 1000


def test_rows_whose_cursor_cannot_move_are_not_changed(yard: Yard) -> None:
    """Cursor and rows are one transaction: where the one fails at the batch's end, the others never were."""
    payments(yard, 300)
    yard.define(table="public.payments", **CENTS)
    yard.sql(
        "CREATE FUNCTION public.stay() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'the cursor cannot move'; END $$;"
        "CREATE TRIGGER stay BEFORE UPDATE OF reached ON pgvigil.backfill_range"
        " FOR EACH ROW EXECUTE FUNCTION public.stay()",
        None,
    )
    try:
        report = yard.run()
    finally:
        yard.sql("DROP FUNCTION public.stay() CASCADE", None)

    assert report.verdict == "inconclusive", told(report)
    assert "the cursor cannot move" in report.findings[-1].message
    assert done(yard) == 0


def test_it_ends_under_inserts(yard: Yard) -> None:
    """Rows that keep coming undone never make it endless: it ends, and says what would help."""
    payments(yard, 500)
    yard.define(table="public.payments", **CENTS, passes=2, batch=SMALL)
    insert = "INSERT INTO payments SELECT max(id) + 1, 1 FROM payments"

    yard.on_progress = lambda _: yard.sql(insert)
    report = yard.run()

    assert report.verdict == "refuted"
    assert "let the application write the column itself" in actual(report, "rows.left")
    assert yard.value("SELECT count(*) FROM payments WHERE id <= 500 AND cents IS NULL") == 0


def test_running_it_again_proves_it_again(yard: Yard) -> None:
    """A second run counts, changes nothing, and is verified."""
    payments(yard, 200)
    yard.define(table="public.payments", **CENTS)
    yard.run()
    before = yard.value("SELECT sum(xmin::text::bigint) FROM payments")

    assert yard.run().verdict == "verified"
    assert yard.value("SELECT sum(xmin::text::bigint) FROM payments") == before


# --- before the first batch ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"table": "public.nothing"}, "there is no table 'public.nothing'"),
        ({"set": {"cent": "1"}}, "has no column 'cent'"),
        ({"set": {"id": "id + 1"}, "key": ["id"]}, "is in the key by which"),
        ({"set": {"cents": "amount * "}}, "syntax error"),
        ({"set": {"cents": "'x' || amount"}}, "is of type bigint but expression is of type text"),
        ({"where": "cent IS NULL"}, "does not exist"),
        ({"where": "cents IS NULL) OR (true"}, "syntax error"),
        ({"set": {"cents": "1"}, "into": "public.nowhere"}, 'relation "public.nowhere" does not exist'),
        (
            {"set": {}, "function": f"{__name__}:give_nothing", "columns": ["cents"]},
            "it gave no list of dicts",
        ),
        ({"where": "amount > 0"}, "still meet 'where' after they were changed"),
        ({"set": {"cents": "(1 / (amount - amount))::bigint"}}, "division by zero"),
        ({"key": ["amount"]}, "has no usable unique index on (amount)"),
        ({"set": {"doubled": "1"}, "where": "true"}, "'doubled' of 'public.payments' is generated"),
        ({"table": "pg_catalog.pg_class", "set": {"relname": "'x'"}, "where": "true"}, "permission denied"),
        ({"set": {}, "function": "nowhere:no", "columns": ["cents"]}, "cannot be imported"),
    ],
)
def test_a_wrong_definition_is_one_message(yard: Yard, policy: dict[str, Any], message: str) -> None:
    """Nothing is changed and nothing is left on record."""
    payments(yard, 300)
    yard.sql("ALTER TABLE payments ADD doubled numeric GENERATED ALWAYS AS (amount * 2) STORED")
    yard.define(**{"table": "public.payments", **CENTS, **policy})

    report = yard.run()

    assert report.verdict == "inconclusive"
    assert message in report.findings[-1].message, told(report)
    assert done(yard) == 0
    assert yard.value("SELECT count(*) FROM pgvigil.backfill") == 0


def test_a_dry_run_forecasts_and_changes_nothing(yard: Yard) -> None:
    """Rows, time, WAL, triggers and index of the target are told; no row and no state is written."""
    payments(yard, 3000)
    yard.sql("CREATE INDEX cents_idx ON payments (cents)")
    yard.sql("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'")
    yard.sql("CREATE TRIGGER tell BEFORE UPDATE OF cents ON payments FOR EACH ROW EXECUTE FUNCTION f()")
    yard.define(table="public.payments", **CENTS)

    plan = yard.run(dry_run=True).plan

    assert plan
    assert ("cents_idx (cents)",) == plan.indexed
    assert "tell" in plan.triggers[0]
    assert plan.forecast.rows == pytest.approx(3000, rel=0.1)
    assert plan.forecast.wal_bytes > 0 < plan.forecast.seconds
    assert plan.forecast.hot_ratio == 0
    assert (0, 0) == (done(yard), yard.value("SELECT count(*) FROM pgvigil.backfill"))


def test_rows_hidden_by_a_policy_are_no_rows_done(yard: Yard) -> None:
    """Row security that would hide rows from us is an error, not a short walk."""
    payments(yard, 100)
    yard.sql("ALTER TABLE payments ENABLE ROW LEVEL SECURITY; ALTER TABLE payments FORCE ROW LEVEL SECURITY")
    yard.sql("CREATE POLICY low ON payments USING (id < 10)")
    yard.define(table="public.payments", **CENTS)
    yard.sql("ALTER ROLE pgvigil NOBYPASSRLS", role=None)
    try:
        report = yard.run()
    finally:
        yard.sql("ALTER ROLE pgvigil BYPASSRLS", role=None)

    assert report.verdict == "inconclusive"
    assert "row-level security" in report.findings[-1].message


def test_a_changed_definition_does_not_go_on(yard: Yard) -> None:
    """What was begun with one expression is not ended with another, until its cursor is given up."""
    payments(yard, 400)
    yard.define(table="public.payments", **CENTS, batch=SMALL)
    steer_in_mid_walk(yard, "cancel")
    yard.define(table="public.payments", **{**CENTS, "set": {"cents": "0"}}, batch=SMALL)

    refused = yard.run()
    steering.conduct_steering("demo/shop", "work", "restart", {})

    assert "was begun with another definition" in refused.findings[-1].message
    assert yard.run().verdict == "verified"


# --- rows that fail, rows that are held ------------------------------------------------------------------


def test_a_failing_row_is_put_aside_and_named(yard: Yard) -> None:
    """The batch is halved down to it; the rest is done; the end is refuted; retried alone it is good."""
    payments(yard, 1000)
    yard.sql("UPDATE payments SET amount = -1 WHERE id IN (1, 333, 1000)")
    yard.sql("ALTER TABLE payments ADD CONSTRAINT positive CHECK (cents > 0)")
    yard.define(table="public.payments", **CENTS, not_null=["cents"])

    report = yard.run()

    assert report.verdict == "refuted"
    assert {("1",), ("333",), ("1000",)} == {row.key for row in report.quarantined}
    assert {"23514"} == {row.sqlstate for row in report.quarantined}
    assert 'violates check constraint "positive"' in report.quarantined[0].message
    assert done(yard) == 997
    assert not report.not_null

    yard.sql("UPDATE payments SET amount = 1 WHERE amount < 0")
    again = yard.run(retry_failed=True)
    assert again.verdict == "verified", told(again)
    assert done(yard) == 1000
    assert ("cents",) == again.not_null


def test_too_many_failing_rows_stop_the_run(yard: Yard) -> None:
    """Past the limit the definition is at fault, not the rows."""
    payments(yard, 1000)
    yard.define(
        table="public.payments",
        set={"cents": "(1 / (CASE WHEN id BETWEEN 300 AND 700 THEN 0 ELSE 1 END))::bigint"},
        where="cents IS NULL",
        quarantine=5,
    )

    report = yard.run()

    assert report.verdict == "inconclusive"
    assert "more than 5 rows cannot be changed" in report.findings[-1].message


def test_rows_held_by_others_are_done_later(yard: Yard) -> None:
    """A session that holds rows delays these rows only; they come in a sweep once it is over."""
    payments(yard, 1000)
    yard.define(table="public.payments", **CENTS, batch=SMALL)
    held = session(yard, "UPDATE payments SET amount = 7777 WHERE id BETWEEN 100 AND 110")
    with running(yard) as found, held as other:
        yard.wait(lambda: done(yard) == 989)
        other.execute("COMMIT")

    assert found[0].verdict == "verified", told(found[0])
    assert yard.value("SELECT count(*) FROM payments WHERE cents = 777700") == 11


def test_rows_held_for_too_long_are_told(yard: Yard) -> None:
    """When nobody lets go, it ends and says what is left; the next run does it."""
    payments(yard, 300)
    yard.define(table="public.payments", **CENTS, batch=SMALL, sweep_for="500ms")
    with session(yard, "SELECT FROM payments WHERE id = 5 FOR UPDATE"):
        report = yard.run()

    assert report.verdict == "refuted"
    assert actual(report, "rows.left").startswith("refuted: 1 rows")
    assert yard.run().verdict == "verified"


def test_nobody_waits_long_for_us(yard: Yard) -> None:
    """A batch that takes longer than the bound is undone and halved, so who waits waits no longer."""
    payments(yard, 200)
    slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
    yard.sql(f"{slow} $$ BEGIN PERFORM pg_sleep(0.01); RETURN new; END $$")
    yard.sql("CREATE TRIGGER slow BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION slow()")
    yard.define(table="public.payments", **CENTS, batch={"rows": 200, "longest": "400ms"})

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert report.progress
    assert report.progress.batches > 5


# --- pace and signals -----------------------------------------------------------------------------------


def waits_for(yard: Yard, words: str) -> Callable[[Progress], None]:
    """Return what hears the progress; `yard.heard` is set once it waits for these words."""
    yard.heard = threading.Event()  # type: ignore[attr-defined]
    return lambda progress: yard.heard.set() if words in progress.waiting_for else None  # type: ignore[attr-defined]


def assert_waits(yard: Yard, words: str, cure: Callable[[], object]) -> None:
    """It waits for these words, changes nothing meanwhile, and ends once they are cured."""
    yard.on_progress = waits_for(yard, words)
    with running(yard) as found:
        assert yard.heard.wait(20)  # type: ignore[attr-defined]
        assert done(yard) < 3000
        cure()
    assert found[0].verdict == "verified", told(found[0])


def test_a_signal_of_the_users_own_holds_it(yard: Yard) -> None:
    """Above the limit it waits, and goes on once the number falls."""
    payments(yard, 3000)
    yard.sql("CREATE TABLE load AS SELECT 9 AS n; GRANT SELECT ON load TO pgvigil")
    signal = {"name": "load", "sql": "SELECT n FROM public.load", "most": 5}
    yard.define(table="public.payments", **CENTS, batch=SMALL, limits={"signals": [signal]})

    assert_waits(yard, "signal load: 9 (limit 5)", lambda: yard.sql("UPDATE load SET n = 1"))


def test_a_signal_that_cannot_be_read_holds_it(yard: Yard) -> None:
    """Not knowing counts as unhealthy after a few tries."""
    payments(yard, 3000)
    signal = {"name": "load", "sql": "SELECT n FROM public.load", "most": 5}
    slow = SMALL | {"most_rows": 20}
    yard.define(table="public.payments", **CENTS, batch=slow, limits={"signals": [signal], "tries": 1})

    assert_waits(yard, "signal load: cannot be read", lambda: yard.sql("CREATE TABLE load AS SELECT 1 AS n"))


@pytest.mark.stanza
def test_a_failing_archiver_holds_it(yard: Yard) -> None:
    """While archive_command fails, no more WAL is made by us."""
    payments(yard, 3000)
    configure(yard, "archive_command", "/bin/false")
    yard.sql("SELECT pg_switch_wal()", None)
    yard.wait(lambda: yard.value("SELECT last_failed_time IS NOT NULL FROM pg_stat_archiver"))
    yard.define(table="public.payments", **CENTS, batch=SMALL)

    assert_waits(yard, "archive_command fails", lambda: configure(yard, "archive_command", "/bin/true"))


def configure(yard: Yard, name: str, value: str) -> None:
    yard.sql(f"ALTER SYSTEM SET {name} = '{value}'", None)
    yard.sql("SELECT pg_reload_conf()", None)


def test_a_slot_that_holds_wal_back_holds_it(yard: Yard) -> None:
    """The WAL that a slot keeps counts, also when nobody reads it."""
    payments(yard, 3000)
    yard.sql("SELECT pg_create_physical_replication_slot('behind', true)", None)
    yard.define(table="public.payments", **CENTS, batch=SMALL, limits={"slot_mb": 0.1})

    assert_waits(
        yard, "slot behind: holds", lambda: yard.sql("SELECT pg_drop_replication_slot('behind')", None)
    )


def test_an_old_transaction_holds_it(yard: Yard) -> None:
    """VACUUM cannot pass a transaction that somebody forgot, so bloat waits for its end."""
    payments(yard, 3000)
    yard.define(table="public.payments", **CENTS, batch=SMALL, limits={"transaction": "100ms"})
    with session(yard, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT 1 FROM payments") as other:
        assert_waits(yard, "oldest transaction", lambda: other.execute("ROLLBACK"))


def test_a_paused_standby_holds_it(yard: Yard) -> None:
    """WAL that a standby has not replayed counts, however idle the primary was before."""
    payments(yard, 3000)
    with standby(yard) as port, connect(yard.sandbox.admin_dsn(port), "test") as replica:
        replica.execute("SELECT pg_wal_replay_pause()")
        yard.define(table="public.payments", **CENTS, batch=SMALL, limits={"replication_mb": 0.1})
        assert_waits(yard, "MB behind", lambda: replica.execute("SELECT pg_wal_replay_resume()"))


def test_a_full_server_holds_it(yard: Yard) -> None:
    """The part of the connections in use is a signal: users come first."""
    payments(yard, 3000)
    yard.define(table="public.payments", **CENTS, batch=SMALL, limits={"connections": 0.12})
    with ExitStack() as crowd:
        for _ in range(10):
            crowd.enter_context(session(yard))
        assert_waits(yard, "connections: ", crowd.close)


@pytest.mark.stanza
def test_wal_that_waits_for_the_archiver_holds_it(yard: Yard) -> None:
    """The queue counts also before the archiver has failed, as with one that hangs."""
    payments(yard, 3000)
    yard.define(table="public.payments", **CENTS, batch=SMALL, limits={"archive_files": 1})
    hold = yard.sandbox.data("primary") / "hold"
    hold.touch()
    yard.sql("ALTER SYSTEM SET archive_command = 'while [ -e hold ]; do sleep 0.1; done'", None)
    yard.sql("SELECT pg_reload_conf()", None)
    try:
        for _ in range(3):
            yard.sql("SELECT pg_logical_emit_message(false, '', ''), pg_switch_wal()", None)
        assert_waits(yard, "files wait (limit 1)", hold.unlink)
    finally:
        hold.unlink(missing_ok=True)
        yard.sql("ALTER SYSTEM SET archive_command = '/bin/true'", None)
        yard.sql("SELECT pg_reload_conf()", None)


@pytest.mark.long
def test_sessions_that_wait_for_us_shrink_the_batches(yard: Yard) -> None:
    """Somebody who waits for our locks halves the batch that comes after."""
    slow_payments(yard, 8000)
    yard.sql("CREATE INDEX ON payments (cents)")  # no batch leaves rows of its pages to a later turn
    yard.define(table="public.payments", **CENTS, batch={"rows": 200, "most_rows": 200, "target": "60s"})
    halves = "SELECT count(*) FROM (SELECT FROM payments GROUP BY xmin::text HAVING count(*) = 100) AS batch"
    with running(yard) as found:
        yard.wait(lambda: done(yard) > 0)
        while not found and not yard.value(halves):
            yard.sql("BEGIN; LOCK TABLE payments IN SHARE ROW EXCLUSIVE MODE; COMMIT")
        yard.sql("ALTER TABLE payments DISABLE TRIGGER slow")

    assert found[0].verdict == "verified", told(found[0])
    assert yard.value(halves)


def test_vacuum_runs_within_the_run(yard: Yard) -> None:
    """At the budget of dead rows the table is vacuumed, so it grows by less than what was rewritten."""
    yard.sql("CREATE TABLE t (id int PRIMARY KEY, pad text, v int) WITH (autovacuum_enabled = off)")
    yard.sql("INSERT INTO t SELECT n, repeat('x', 200) FROM generate_series(1, 40000) AS n")
    yard.sql("VACUUM ANALYZE t")
    before = yard.value("SELECT pg_relation_size('t')")
    yard.define(
        table="public.t", set={"v": "1"}, where="v IS NULL", vacuum_rows=2000, batch={"target": "30ms"}
    )

    with alone(yard):
        assert yard.run().verdict == "verified"
    assert yard.value("SELECT pg_relation_size('t')") < 1.5 * before
    yard.wait(lambda: yard.value("SELECT vacuum_count > 0 FROM pg_stat_user_tables WHERE relname = 't'"))


def test_rows_of_a_page_take_turns(yard: Yard) -> None:
    """Most new versions find room in their own page, so the table grows by a part without any VACUUM."""
    yard.sql("CREATE TABLE t (id int PRIMARY KEY, pad text, v int) WITH (autovacuum_enabled = off)")
    yard.sql("INSERT INTO t SELECT n, repeat('x', 60) FROM generate_series(1, 20000) AS n; ANALYZE t")
    before = yard.value("SELECT pg_relation_size('t')")
    batch = {"rows": 200, "most_rows": 200}
    yard.define(table="public.t", set={"v": "1"}, where="v IS NULL", vacuum_after=None, batch=batch)

    with alone(yard):
        assert yard.run().verdict == "verified"
    assert yard.value("SELECT pg_relation_size('t')") < 1.5 * before
    stayed = "SELECT n_tup_hot_upd > 0.5 * n_tup_upd AND n_tup_upd >= 20000 FROM pg_stat_user_tables"
    yard.wait(lambda: yard.value(f"{stayed} WHERE relname = 't'"))


def test_the_roles_own_settings_do_not_matter(yard: Yard) -> None:
    """A timeout, search_path or isolation level of the role changes nothing."""
    slow_payments(yard, 400)
    yard.sql("ALTER ROLE pgvigil SET statement_timeout = '150ms'", None)
    yard.sql("ALTER ROLE pgvigil SET default_transaction_isolation = 'serializable'", None)
    yard.sql("ALTER ROLE pgvigil SET search_path = 'none'", None)
    try:
        yard.define(table="public.payments", **CENTS, batch={"rows": 400})
        assert yard.run().verdict == "verified"
    finally:
        yard.sql("ALTER ROLE pgvigil RESET ALL", None)


@pytest.mark.skipif(POOLER is None, reason="pgbouncer is not installed")
def test_it_works_through_a_pooler(yard: Yard) -> None:
    """PgBouncer in transaction mode, with fewer sessions than workers: done, proven, steered, fenced."""
    payments(yard, 3000)
    poison = {"cents": "CASE WHEN id = 99 THEN 1 / (id - 99) ELSE (amount * 100)::bigint END"}
    yard.define(table="public.payments", set=poison, where="cents IS NULL", workers=3, batch=SMALL)
    with pooler(yard, sessions=2) as port:
        yard.reach(f"postgresql://pgvigil@127.0.0.1:{port}/postgres")
        report = yard.run()
        again = yard.run()

    assert actual(report, "rows.quarantine").startswith("refuted: 1 rows, one with 22012"), told(report)
    assert actual(again, "rows.quarantine").startswith("refuted: 1 rows, one with 22012"), told(again)
    assert done(yard) == 2999


def test_nothing_stays_in_the_servers_session(yard: Yard) -> None:
    """A pooler may hand the server's session to anybody after a transaction: it is as it was before."""
    own = "SELECT name, setting FROM pg_settings WHERE source = 'session' OR name = 'search_path'"
    left = "SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_locks"
    left += " WHERE locktype = 'advisory' AND pid = pg_backend_pid()) AS n"
    with Session(yard.sandbox.dsn("shop"), "test") as session:
        before = session.connect().execute(own).fetchall()
        for _ in range(10):
            with session.transaction(Bounds(search_path="pg_catalog", is_durable=False)) as connection:
                connection.execute("SELECT 1 WHERE %(x)s = 1", {"x": 1})

        assert before == session.connect().execute(own).fetchall()
        assert session.connect().execute(left).fetchone() == {"n": 0}


@since(17, "transaction_timeout")
def test_a_bound_that_the_role_has_for_whole_transactions_ends_none_of_ours(yard: Yard) -> None:
    """Within a transaction it is off, for each statement has its own; the session has it afterwards."""
    bound = "SELECT pg_catalog.current_setting('transaction_timeout') AS bound"
    with Session(yard.sandbox.dsn("shop"), "test") as session:
        session.connect().execute("SET transaction_timeout = '10s'")
        with session.transaction(Bounds()) as connection:
            within = connection.execute(bound).fetchone()

        assert (within, session.connect().execute(bound).fetchone()) == ({"bound": "0"}, {"bound": "10s"})


# --- steering -------------------------------------------------------------------------------------------


def steer_in_mid_walk(yard: Yard, action: steering.Action, **limits: float) -> BackfillReport:
    """Run it, and steer once some batches are done."""
    before = done(yard)
    with running(yard) as found:
        yard.wait(lambda: done(yard) > before)
        steering.conduct_steering("demo/shop", "work", action, limits)
    return found[0]


def slow_payments(yard: Yard, rows: int = 600) -> None:
    """A table whose rows take a millisecond each."""
    payments(yard, rows)
    slow(yard)


def slow(yard: Yard) -> None:
    """Let each row of the table take a millisecond."""
    body = "$$ BEGIN PERFORM pg_sleep(0.001); RETURN new; END $$"
    yard.sql(f"CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS {body}")
    yard.sql("CREATE TRIGGER slow BEFORE UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION slow()")


def test_a_cancelled_run_goes_on_after_resume(yard: Yard) -> None:
    """Cancel ends the run inconclusive; it stays so until resume, and then goes on where it was."""
    slow_payments(yard)
    yard.define(table="public.payments", **CENTS, batch=SMALL)

    cancelled = steer_in_mid_walk(yard, "cancel")
    half = done(yard)
    still = yard.run()
    steering.conduct_steering("demo/shop", "work", "resume", {})
    report = yard.run()

    assert ["inconclusive", "inconclusive", "verified"] == [r.verdict for r in (cancelled, still, report)]
    assert 0 < half < 600
    assert report.progress
    assert report.progress.rows_done == 600


def test_a_paused_run_waits_until_resume(yard: Yard) -> None:
    """Paused, no further batch is committed; who paused it stands in the progress and in the audit log."""
    slow_payments(yard)
    yard.define(table="public.payments", **CENTS, batch=SMALL)
    with running(yard) as found:
        yard.wait(lambda: done(yard) > 0)
        steering.conduct_steering("demo/shop", "work", "pause", {})
        yard.wait(lambda: "paused by" in str(shown().progress))
        half = done(yard)
        yard.wait(lambda: shown().state == "paused")
        assert done(yard) == half < 600
        steering.conduct_steering("demo/shop", "work", "resume", {})

    assert found[0].verdict == "verified", told(found[0])
    assert audited(yard, "pause backfill") >= 1


def shown() -> steering.Shown:
    return steering.show(load_fleet(), "demo/shop", "work")


def audited(yard: Yard, step: str) -> int:
    with connect(yard.sandbox.ops_admin_dsn, "test") as ops:
        row = ops.execute("SELECT count(*) AS n FROM pgvigil.audit WHERE step = %s", (step,)).fetchone()
    assert row
    return int(row["n"])


def test_sizes_and_workers_change_under_way(yard: Yard) -> None:
    """What is set holds from the next batch on, and stays on record."""
    slow_payments(yard)
    yard.define(table="public.payments", **CENTS, batch=SMALL | {"rows": 2, "most_rows": 2})

    report = steer_in_mid_walk(yard, "set", most_rows=300, rows=300, workers=2)

    assert report.verdict == "verified", told(report)
    assert report.progress
    assert report.progress.batches < 300
    assert (300, 2) == (shown().overrides.most_rows, report.progress.workers)


# --- kinds of change, and the end -----------------------------------------------------------------------


def halve(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a user's function looks like."""
    return [{"cents": int(row["amount"] * 100)} for row in rows]


def give_nothing(_: list[dict[str, Any]]) -> None:
    """A function that forgot its return."""


def fail_at_seven(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A function with a fault."""
    if any(row["id"] == 7 for row in rows):
        raise ValueError("seven")
    return halve(rows)


def test_a_python_function_changes_rows(yard: Yard) -> None:
    """Rows go in as dicts, and what comes out is written in the same transaction."""
    payments(yard, 300)
    yard.define(
        table="public.payments", where="cents IS NULL", function=f"{__name__}:halve", columns=["cents"]
    )

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert done(yard) == 300
    assert report.plan
    assert report.plan.forecast.seconds > 0


def test_a_row_at_which_a_function_fails_is_put_aside(yard: Yard) -> None:
    """Its exception is the message, and class 38 the SQLSTATE."""
    payments(yard, 100)
    function = f"{__name__}:fail_at_seven"
    yard.define(table="public.payments", where="cents IS NULL", function=function, columns=["cents"])

    report = yard.run()

    assert [(("7",), "38000", "ValueError: seven")] == [
        (row.key, row.sqlstate, row.message) for row in report.quarantined
    ], told(report)
    assert done(yard) == 99


MEANWHILE: list[Callable[[], object]] = []


def fail_at_seventy(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A function that fails at one row; when it is alone with it, others have done something meanwhile."""
    ids = [row["id"] for row in rows]
    while MEANWHILE and ids == [70]:
        MEANWHILE.pop()()
    if 70 in ids:
        raise ValueError("seventy")
    return halve(rows)


def test_only_a_row_that_fails_is_put_aside(yard: Yard) -> None:
    """One that somebody inserts just before it, once the batch had failed, is done."""
    payments(yard, 100)
    yard.sql("DELETE FROM payments WHERE id = 69")
    function = f"{__name__}:fail_at_seventy"
    yard.define(table="public.payments", where="cents IS NULL", function=function, columns=["cents"])
    MEANWHILE.append(lambda: yard.sql("INSERT INTO payments VALUES (69, 1)"))

    report = yard.run()

    assert [("70",)] == [row.key for row in report.quarantined], told(report)
    assert (99, []) == (done(yard), MEANWHILE)


def test_rows_are_copied_into_another_table(yard: Yard) -> None:
    """`into` inserts what the expressions give; the predicate looks into the new table."""
    payments(yard, 500)
    yard.sql("CREATE TABLE cents (payment bigint PRIMARY KEY, cents bigint NOT NULL)")
    yard.define(
        table="public.payments",
        into="public.cents",
        set={"payment": "id", "cents": "(amount * 100)::bigint"},
        where="NOT EXISTS (SELECT FROM public.cents AS c WHERE c.payment = payments.id)",
        batch=SMALL,
    )

    report = yard.run()

    assert report.verdict == "verified", told(report)
    assert (500, 0) == (yard.value("SELECT count(*) FROM cents"), done(yard))


def test_the_column_becomes_not_null(yard: Yard) -> None:
    """After the proof, without a CHECK left behind; a second run finds it done."""
    payments(yard, 200)
    yard.define(table="public.payments", **CENTS, not_null=["cents"])

    report = yard.run()

    assert ("cents",) == report.not_null, told(report)
    assert yard.value("SELECT attnotnull FROM pg_attribute WHERE attname = 'cents'")
    assert yard.value("SELECT count(*) FROM pg_constraint WHERE conname LIKE 'pgvigil%'") == 0
    assert yard.run().verdict == "verified"


def test_a_kill_within_not_null_is_finished_later(yard: Yard) -> None:
    """A CHECK that a killed run left is gone on from, not tripped over."""
    payments(yard, 50)
    yard.define(table="public.payments", **CENTS, not_null=["cents"])
    from pgvigil.backfill.enforce import constraint_name  # noqa: PLC0415

    yard.sql(
        f"ALTER TABLE payments ADD CONSTRAINT {constraint_name('cents')} CHECK (cents IS NOT NULL) NOT VALID"
    )
    yard.sql("INSERT INTO payments VALUES (999, 1, 100)")

    assert ("cents",) == yard.run().not_null


def test_before_images_lead_back(yard: Yard) -> None:
    """What rows held is kept and restored, but not over what somebody wrote since."""
    payments(yard, 300)
    yard.define(
        table="public.payments",
        set={"amount": "amount + 1", "cents": "1"},
        where="cents IS NULL",
        before_images="7d",
        batch=SMALL,
    )

    report = yard.run()
    yard.sql("UPDATE payments SET amount = 77 WHERE id = 5")
    back = steering.conduct_steering("demo/shop", "work", "undo", {})

    assert (report.verdict, report.images) == ("verified", 300), told(report)
    assert back.verdict == "verified", back.model_dump_json(indent=1)
    assert yard.value("SELECT count(*) FROM payments WHERE cents IS NULL AND amount = id / 100.0") == 299
    assert yard.value("SELECT amount FROM payments WHERE id = 5") == 77
    assert yard.value("SELECT count(*) FROM pgvigil.backfill_image") == 0
    assert [finding.code for finding in back.findings] == ["changed-since"]
    assert back.findings[0].message.endswith("since: 5")


def undo() -> Any:
    return steering.conduct_steering("demo/shop", "work", "undo", {})


def test_a_row_that_was_changed_twice_goes_all_the_way_back(yard: Yard) -> None:
    """Its newest image comes first, also where both stand in one batch of the undo."""
    payments(yard, 300)
    twice = {"set": {"cents": "amount * 100"}, "where": "cents IS DISTINCT FROM amount * 100"}
    yard.define(table="public.payments", **twice, before_images="7d")
    yard.run()
    yard.sql("UPDATE payments SET amount = amount + 1")
    yard.run()

    assert undo().findings == ()
    assert yard.value("SELECT count(*) FROM payments WHERE cents IS NULL") == 300


def test_the_way_back_does_not_hang_on_the_fleet_file(yard: Yard) -> None:
    """Images say themselves which columns they hold: another order in `set` mixes nothing up."""
    payments(yard, 50)
    yard.sql("ALTER TABLE payments ADD note int DEFAULT 7")
    yard.define(
        table="public.payments", set={"note": "8", "cents": "1"}, where="note = 7", before_images="7d"
    )
    yard.run()
    yard.define(
        table="public.payments", set={"cents": "1", "note": "8"}, where="note = 7", before_images="7d"
    )

    assert undo().findings == ()
    assert yard.value("SELECT count(*) FROM payments WHERE note = 7 AND cents IS NULL") == 50


def test_what_a_function_changes_has_a_way_back(yard: Yard) -> None:
    """Before-images are kept whoever computes the new values."""
    payments(yard, 50)
    function = f"{__name__}:halve"
    yard.define(
        table="public.payments",
        function=function,
        columns=["cents"],
        where="cents IS NULL",
        before_images="7d",
    )

    assert yard.run().images == 50
    assert undo().findings == ()
    assert yard.value("SELECT count(*) FROM payments WHERE cents IS NULL") == 50


def test_rows_without_a_key_have_no_way_back(yard: Yard) -> None:
    """A block and line number may be another row's by then, so before-images are refused."""
    payments(yard, 10, "id bigint")
    yard.define(table="public.payments", **CENTS, before_images="7d")

    assert "no usable unique index, so no way back" in yard.run().findings[-1].message


def test_an_undo_that_cannot_be_changes_nothing(yard: Yard) -> None:
    """NULLs do not fit a column that is NOT NULL now: one message with the cure, and all images stay."""
    payments(yard, 50)
    yard.define(table="public.payments", **CENTS, before_images="7d", not_null=["cents"])
    assert yard.run().verdict == "verified"

    refused = undo()
    assert "held NULL in column 'cents', which is NOT NULL now" in refused.findings[-1].message
    assert yard.value("SELECT count(*) FROM pgvigil.backfill_image") == 50
    yard.sql("ALTER TABLE payments ALTER cents DROP NOT NULL")
    assert undo().findings == ()
    assert yard.value("SELECT count(*) FROM payments WHERE cents IS NULL") == 50


def test_the_state_tables_come_again_unharmed(yard: Yard) -> None:
    """Running infra/target.sql again changes nothing, beside an audit log in the same database too."""
    from pgvigil.audit import install  # noqa: PLC0415
    from pgvigil.sandbox.lifecycle import TARGET  # noqa: PLC0415

    payments(yard, 20)
    yard.define(table="public.payments", **CENTS)
    yard.run()
    admin = yard.sandbox.admin_dsn(yard.sandbox.primary_port, "shop")
    with connect(admin, "test") as superuser:
        superuser.execute(TARGET.read_bytes())
    install(admin)
    install(admin)
    with connect(admin, "test") as superuser:
        superuser.execute(TARGET.read_bytes())

    assert yard.value("SELECT state FROM pgvigil.backfill") == "done"
    assert yard.run().verdict == "verified"
