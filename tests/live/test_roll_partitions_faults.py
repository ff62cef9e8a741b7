import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest

from pgvigil.objectstore import parse_uri
from pgvigil.reports import Verdict
from pgvigil.sandbox import operate
from pgvigil.sandbox import postgres as servers
from tests.fixtures.partitions import Shop, quote, run, wait_for
from tests.fixtures.reports import refuted


def oldest(shop: Shop) -> str:
    return min(shop.partitions(), key=lambda name: shop.partitions()[name])


def count(shop: Shop, table: str) -> int:
    return int(shop.sql(f"SELECT count(*) AS n FROM {table}")[0]["n"])


def messages(report: object) -> str:
    return " / ".join(finding.message for finding in report.findings)  # type: ignore[attr-defined]


@contextmanager
def reader(shop: Shop, statement: str) -> Iterator[None]:
    """A transaction that has read something and does not end."""
    with shop.session() as session, session.transaction():
        run(session, statement)
        yield


def leave_pending(shop: Shop, name: str) -> None:
    """Interrupt a concurrent detach as a statement_timeout does."""
    with reader(shop, "TABLE events LIMIT 1"), shop.session() as session:
        session.execute("SET statement_timeout = 300; SET search_path = public")
        with pytest.raises(Exception, match="statement timeout"):
            session.execute(f"ALTER TABLE events DETACH PARTITION {name} CONCURRENTLY".encode())


def test_a_detach_that_was_interrupted_is_finished_first(shop: Shop) -> None:
    """A pending partition that is due is archived; one that is not is left standing, whole."""
    young = max(shop.partitions(), key=lambda name: shop.partitions()[name])
    leave_pending(shop, young)
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert ["finalize", "create"] == [outcome.action for outcome in report.outcomes][:2]
    assert [{"p": False}] == shop.sql(
        f"SELECT relispartition AS p FROM pg_class WHERE oid = '{young}'::regclass"
    )


def test_a_pending_detach_of_a_held_partition_keeps_no_other_from_leaving(shop: Shop) -> None:
    """It can only be finished, and the statement that attaches it again is told; the next one leaves."""
    name, second = sorted(shop.partitions(), key=lambda each: shop.partitions()[each])[:2]
    bound = shop.partitions()[name]
    shop.policy(keep="13 months", hold=[name])
    leave_pending(shop, name)
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [("finalize", name), ("drop", second)] == [
        (o.action, o.partition) for o in report.outcomes if o.action in {"finalize", "drop"}
    ]
    (told,) = [finding for finding in report.findings if finding.code == "detach-finished"]
    shop.sql(told.hint.partition(";")[0])
    assert bound == shop.partitions()[name]


def test_a_pending_detach_that_cannot_be_finished_is_named(shop: Shop) -> None:
    """Whatever forbids it: the run says which partition keeps all others."""
    name = oldest(shop)
    leave_pending(shop, name)
    shop.sql(
        "CREATE FUNCTION no_change() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'frozen'; END $$;"
        "CREATE EVENT TRIGGER frozen ON ddl_command_start WHEN TAG IN ('ALTER TABLE')"
        " EXECUTE FUNCTION no_change()"
    )
    report = shop.roll()

    assert f"the pending detach of 'public.{name}' cannot be finished" in messages(report)
    shop.sql("DROP EVENT TRIGGER frozen")
    assert Verdict.VERIFIED == shop.roll().verdict


def test_who_holds_a_detach_up_is_named_and_nothing_is_left_pending(shop: Shop) -> None:
    """A reader that never ends: the run gives up with pid and query, and the next one does it."""
    shop.policy(wait="1s", block="100ms")
    name = oldest(shop)
    with reader(shop, "SELECT count(*) FROM events"):
        report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    assert f"the detach of 'public.{name}' did not get its lock: pid" in messages(report)
    assert "SELECT count(*) FROM events" in messages(report)
    assert [{"n": 0}] == shop.sql("SELECT count(*) AS n FROM pg_inherits WHERE inhdetachpending")
    shop.policy()
    assert Verdict.VERIFIED == shop.roll().verdict


def test_a_detach_that_somebody_still_works_on_is_waited_for(shop: Shop) -> None:
    """Its server process may outlive its client: it is named and not raced, and the next run goes on."""
    shop.policy(wait="1s")
    odd = 'Odd "name'
    shop.sql(f"ALTER TABLE {oldest(shop)} RENAME TO {quote(odd)}")
    pending = "SELECT inhrelid::bigint AS oid FROM pg_inherits WHERE inhdetachpending"

    def detach() -> None:
        with shop.session() as session:
            session.execute("SET lock_timeout = 0")
            run(session, f"ALTER TABLE public.events DETACH PARTITION public.{quote(odd)} CONCURRENTLY")

    with reader(shop, "TABLE events LIMIT 1"):
        worker = threading.Thread(target=detach)
        worker.start()
        wait_for(lambda: shop.sql(pending))
        report = shop.roll()
    worker.join()

    assert f"has been detaching 'public.{odd}'" in messages(report)
    assert [] == shop.sql(pending)
    assert Verdict.VERIFIED == shop.roll().verdict


@pytest.mark.long
def test_a_prepared_transaction_in_the_way_is_named(shop: Shop) -> None:
    """It holds the table without a process; nothing is left pending, and without it the next run goes on."""
    operate.configure(shop.sandbox, max_prepared_transactions="2")
    operate.stop(shop.sandbox)
    servers.start(shop.sandbox, "primary")
    shop.policy(wait="1s", block="100ms")
    name = oldest(shop)
    with shop.session() as session:
        run(session, f"BEGIN; SELECT count(*) FROM {name}; PREPARE TRANSACTION 'forgotten one'")
        report = shop.roll()
        run(session, "ROLLBACK PREPARED 'forgotten one'")

    assert "prepared transaction 'forgotten one' (postgres, prepared)" in messages(report)
    assert name in shop.partitions()
    shop.policy()
    assert Verdict.VERIFIED == shop.roll().verdict


def test_an_old_snapshot_elsewhere_holds_a_pending_detach_up_and_is_named(shop: Shop) -> None:
    """Even one that read another table: it is named, no row is lost, and what is needed next is made."""
    shop.policy(wait="1s", block="100ms", ahead=4)
    name = oldest(shop)
    before = len(shop.partitions())
    rows = count(shop, name)
    leave_pending(shop, name)
    with shop.session() as session, session.transaction():
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        run(session, "SELECT count(*) FROM customers")
        report = shop.roll()

    assert "the pending detach" in messages(report)
    assert "SELECT count(*) FROM customers" in messages(report)
    assert rows == count(shop, name)
    assert {"create"} == {outcome.action for outcome in report.outcomes}
    assert before < len(shop.partitions())
    assert "public.events.horizon" not in refuted(report)
    shop.policy()
    assert Verdict.VERIFIED == shop.roll().verdict


def test_a_check_that_cannot_be_taken_off_default_is_named(shop: Shop) -> None:
    """A killed run has left it, and it refuses users' rows: who keeps it there is told."""
    shop.sql("SET ROLE shop; CREATE TABLE events_rest PARTITION OF events DEFAULT")
    shop.sql("ALTER TABLE events_rest ADD CONSTRAINT pgvigil_empty CHECK (id > 0) NOT VALID")
    shop.policy(wait="1s", block="100ms")
    with reader(shop, "TABLE events_rest LIMIT 1"):
        report = shop.roll()

    assert "the CHECK 'pgvigil_empty' off DEFAULT, which until then refuses rows" in messages(report)
    assert "TABLE events_rest LIMIT 1" in messages(report)
    shop.policy()
    assert Verdict.VERIFIED == shop.roll().verdict
    assert [] == shop.sql("SELECT conname FROM pg_constraint WHERE conname = 'pgvigil_empty'")


def test_rows_in_default_move_to_the_new_partition_and_no_write_fails(shop: Shop) -> None:
    """While others write into the very range, each row is in the table once; who waited was not refused."""
    shop.sql("SET ROLE shop; CREATE TABLE events_rest PARTITION OF events DEFAULT")
    late = "date_trunc('month', now(), 'UTC') + interval '2 months'"
    statement = f"INSERT INTO events (created_at, customer_id, kind, payload) VALUES ({late}, 1, 'x', '{{}}')"
    before = count(shop, "events")
    for _ in range(50):
        shop.sql(statement)
    is_over, failures, written = threading.Event(), [], [50]

    def write() -> None:
        with shop.session() as session:
            session.execute("SET lock_timeout = '20s'")
            while not is_over.is_set():
                try:
                    run(session, statement)
                    written[0] += 1
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        report = shop.roll()
    finally:
        is_over.set()
        thread.join()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [] == failures
    archived = sum(manifest.digest.rows for manifest in report.manifests)
    assert before + written[0] - archived == count(shop, "events")
    assert 0 == count(shop, "events_rest")
    assert "blocking" in {step.method.partition(":")[0] for step in report.steps}


LATE_ROW = (
    "INSERT INTO events (created_at, customer_id, kind, payload)"
    " VALUES (date_trunc('month', now(), 'UTC') + interval '2 months', 1, 'x', '{}')"
)


def test_a_key_to_default_alone_forbids_a_move_too(shop: Shop) -> None:
    """Rows that refer to DEFAULT itself would go with those that leave it."""
    shop.sql("SET ROLE shop; CREATE TABLE events_rest PARTITION OF events DEFAULT")
    shop.sql(
        "SET ROLE shop; CREATE TABLE notes (event bigint, at timestamptz,"
        " FOREIGN KEY (event, at) REFERENCES events_rest ON DELETE CASCADE)"
    )
    shop.sql(LATE_ROW)
    shop.sql("INSERT INTO notes SELECT id, created_at FROM events_rest")
    shop.policy(keep=None, archive=None)
    refused = shop.roll()

    assert "would delete or change those that refer to them: notes_event_at_fkey" in messages(refused)
    assert (1, 1) == (count(shop, "notes"), count(shop, "events_rest"))


@pytest.mark.parametrize("published", ["TABLE events", "TABLE events WITH (publish_via_partition_root)"])
def test_a_move_that_subscribers_would_take_for_a_deletion_is_refused(shop: Shop, published: str) -> None:
    """They would hear of the rows that left DEFAULT, and not of those that came to no partition yet."""
    shop.sql("SET ROLE shop; CREATE TABLE events_rest PARTITION OF events DEFAULT")
    shop.sql(LATE_ROW)
    shop.sql(f"CREATE PUBLICATION told FOR {published}")
    shop.policy(keep=None, archive=None)
    refused = shop.roll()
    shop.sql("ALTER PUBLICATION told SET (publish = 'insert, update')")

    assert "would delete them at the subscribers of told" in messages(refused)
    assert Verdict.VERIFIED == shop.roll().verdict
    assert 0 == count(shop, "events_rest")


def test_a_move_out_of_default_is_no_deletion(shop: Shop) -> None:
    """Triggers do not fire for it and are as before; a key by which other rows would go forbids it."""
    shop.sql("SET ROLE shop; CREATE TABLE events_rest PARTITION OF events DEFAULT")
    shop.sql(
        "SET ROLE shop; CREATE TABLE gone (id bigint);"
        "CREATE FUNCTION mourn() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.gone VALUES (old.id); RETURN old; END $$;"
        "CREATE TRIGGER mourn AFTER DELETE ON events FOR EACH ROW EXECUTE FUNCTION mourn();"
        "CREATE TRIGGER own BEFORE DELETE ON events_rest FOR EACH ROW EXECUTE FUNCTION mourn();"
        "ALTER TABLE events_rest ENABLE ALWAYS TRIGGER own;"
        "CREATE TABLE notes (event bigint, at timestamptz,"
        " FOREIGN KEY (event, at) REFERENCES events ON DELETE CASCADE)"
    )
    late = "date_trunc('month', now(), 'UTC') + interval '2 months'"
    shop.sql(f"INSERT INTO events (created_at, customer_id, kind, payload) VALUES ({late}, 1, 'x', '{{}}')")
    shop.sql("INSERT INTO notes SELECT id, created_at FROM events_rest")
    enabled = "SELECT tgname, tgenabled::text AS e FROM pg_trigger WHERE tgrelid = 'events_rest'::regclass"
    enabled += " AND NOT tgisinternal ORDER BY 1"
    before = shop.sql(enabled)
    shop.policy(keep=None, archive=None)
    refused = shop.roll()

    shop.sql(
        "ALTER TABLE notes DROP CONSTRAINT notes_event_at_fkey, ADD FOREIGN KEY (event, at) REFERENCES events"
    )
    referred = shop.roll()

    assert "would delete or change those that refer to them: notes_event_at_fkey of public.notes" in messages(
        refused
    )
    assert "are in the DEFAULT partition, and are referred to" in messages(referred)
    assert (1, 1) == (count(shop, "events_rest"), count(shop, "notes"))
    shop.sql("DROP TABLE notes")
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert (0, 0) == (count(shop, "events_rest"), count(shop, "gone"))
    assert before == shop.sql(enabled)


def test_settings_of_the_role_play_no_part(shop: Shop) -> None:
    """A statement timeout, other date and interval styles, another zone: the digests agree all the same."""
    for setting in (
        "statement_timeout = '50ms'",
        "datestyle = 'German'",
        "intervalstyle = 'sql_standard'",
        "timezone = 'Asia/Kathmandu'",
        "extra_float_digits = -5",
        "bytea_output = 'escape'",
        "search_path = 'public'",
    ):
        shop.sql(f"ALTER ROLE pgvigil IN DATABASE {shop.database} SET {setting}")
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert "drop" in {outcome.action for outcome in report.outcomes}


def hide_rows(shop: Shop, name: str) -> int:
    """Let a policy show its owner a part of a partition; returns how many rows there are."""
    shop.sql(f"ALTER TABLE {name} ENABLE ROW LEVEL SECURITY; ALTER TABLE {name} FORCE ROW LEVEL SECURITY")
    shop.sql(f"CREATE POLICY few ON {name} USING (kind = 'view')")
    return count(shop, name)


def test_row_security_hides_no_row_from_a_role_that_passes_it(shop: Shop) -> None:
    """As infra/roles.sql makes it, pgvigil archives every row, whatever a policy shows others."""
    rows = hide_rows(shop, oldest(shop))
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [rows] == [manifest.digest.rows for manifest in report.manifests]


def test_where_row_security_hides_rows_nothing_is_archived(shop: Shop) -> None:
    """A role that does not pass it would copy a part and drop the whole, so the run refuses."""
    name = oldest(shop)
    rows = hide_rows(shop, name)
    shop.sql("ALTER ROLE pgvigil NOBYPASSRLS")
    try:
        report = shop.roll()
    finally:
        shop.sql("ALTER ROLE pgvigil BYPASSRLS")

    assert Verdict.INCONCLUSIVE == report.verdict
    assert "row-level security" in messages(report)
    assert (rows, []) == (count(shop, name), shop.objects())


LATE = "date_trunc('month', now(), 'UTC') + interval '2 months'"


def put_into_default(shop: Shop, rows: int) -> None:
    """Give events a DEFAULT partition with rows of a range that has no partition yet."""
    shop.sql("SET ROLE shop; CREATE TABLE events_rest PARTITION OF events DEFAULT")
    shop.sql(
        "INSERT INTO events (created_at, customer_id, kind, payload)"
        f" SELECT {LATE}, n, 'x', '{{}}' FROM generate_series(1, {rows}) n"
    )
    shop.policy(keep=None, archive=None, wait="5s")


def test_what_runs_out_of_time_under_its_locks_is_not_tried_again(shop: Shop) -> None:
    """Rows that cannot move within `block` stay in DEFAULT, and the run tells how many, after one try."""
    put_into_default(shop, 3)
    shop.sql(
        "CREATE SEQUENCE tries; GRANT USAGE ON tries TO PUBLIC;"
        "CREATE FUNCTION slow() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('application_name') LIKE 'pgvigil%' THEN"
        " PERFORM nextval('public.tries'), pg_sleep(30); END IF; RETURN true; END $$;"
        "SET ROLE shop; ALTER TABLE events ADD CHECK (slow())"
    )
    report = shop.roll()

    assert "the DEFAULT partition has 3 rows of FOR VALUES" in messages(report)
    assert [{"n": 1}] == shop.sql("SELECT last_value AS n FROM tries")
    assert 3 == count(shop, "events_rest")


def test_rows_do_not_move_while_an_older_snapshot_would_miss_them(shop: Shop) -> None:
    """The table would look for them in the new partition alone: who began before is waited for, and named."""
    put_into_default(shop, 3)
    shop.policy(keep=None, archive=None, wait="1s")
    with shop.session() as session, session.transaction():
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        run(session, "SELECT count(*) FROM customers")
        report = shop.roll()
        seen = run(session, f"SELECT count(*) AS n FROM events WHERE created_at = {LATE}")

    assert [{"n": 3}] == seen
    assert "would not be seen by transactions that began before: pid" in messages(report)
    assert "SELECT count(*) FROM customers" in messages(report)
    assert Verdict.VERIFIED == shop.roll().verdict
    assert 0 == count(shop, "events_rest")


def test_who_reads_while_rows_move_sees_each_once(shop: Shop) -> None:
    """A reader that comes in the midst of it waits, and then looks for the rows where they are."""
    put_into_default(shop, 3)
    shop.policy(keep=None, archive=None, block="10s", wait="20s")
    shop.sql(
        "CREATE FUNCTION gate() RETURNS bool LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_setting('application_name') LIKE 'pgvigil%' THEN"
        " PERFORM pg_advisory_xact_lock(1); END IF; RETURN true; END $$;"
        "SET ROLE shop; ALTER TABLE events ADD CHECK (gate())"
    )
    waiting = "SELECT pid FROM pg_locks WHERE NOT granted AND locktype = 'advisory'"
    attaching = (
        "SELECT pid FROM pg_locks WHERE granted AND mode = 'AccessExclusiveLock'"
        " AND relation = 'events_rest'::regclass"
    )
    held_up = "SELECT pid FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock'"
    late = f"SELECT count(*) AS n FROM events WHERE created_at = {LATE}"
    with ThreadPoolExecutor(2) as pool, shop.session() as gate, shop.session() as older:
        gate.execute("SELECT pg_advisory_lock(1)")
        rolling = pool.submit(shop.roll)
        wait_for(lambda: shop.sql(waiting))
        with older.transaction():
            older.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            run(older, "SELECT count(*) FROM customers")
            gate.execute("SELECT pg_advisory_unlock(1)")
            wait_for(lambda: shop.sql(attaching))
            reading = pool.submit(shop.sql, late)
            wait_for(lambda: shop.sql(held_up))
        seen, report = reading.result(), rolling.result()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [{"n": 3}] == seen
    assert 0 == count(shop, "events_rest")


def test_a_policy_on_default_hides_no_row_from_the_move(shop: Shop) -> None:
    """Forced row security shows the owner a part; pgvigil passes it, or says that it does not."""
    put_into_default(shop, 3)
    hide_rows(shop, "events_rest")
    shop.sql("ALTER ROLE pgvigil NOBYPASSRLS")
    try:
        refused = shop.roll()
    finally:
        shop.sql("ALTER ROLE pgvigil BYPASSRLS")

    assert "row-level security" in messages(refused)
    assert 3 == count(shop, "events_rest")
    assert Verdict.VERIFIED == shop.roll().verdict
    assert (0, 3) == (count(shop, "events_rest"), count(shop, f"events WHERE created_at = {LATE}"))


def implied(shop: Shop) -> int:
    """Count how often an attach found that it need not look through DEFAULT."""
    log = (shop.sandbox.directory / "log" / "primary.log").read_text(encoding="utf-8", errors="replace")
    return log.count('default partition "events_rest" is implied by existing constraints')


def make_large_default(shop: Shop) -> float:
    """Give events a large DEFAULT partition; returns the milliseconds that a look through it takes."""
    shop.sql("SET ROLE shop; CREATE TABLE events_rest PARTITION OF events DEFAULT")
    shop.sql(
        "ALTER TABLE events_rest DISABLE TRIGGER ALL; INSERT INTO events_rest"
        " (id, created_at, customer_id, kind, payload) OVERRIDING SYSTEM VALUE"
        " SELECT n, now() + interval '9 years', 1, 'x', '{}' FROM generate_series(1, 800000) n;"
        "ALTER TABLE events_rest ENABLE TRIGGER ALL; ALTER TABLE events_rest SET (parallel_workers = 0)"
    )
    shop.sql(f"ALTER ROLE pgvigil IN DATABASE {shop.database} SET log_min_messages = 'debug1'")
    look = "SELECT count(*) FROM events_rest WHERE created_at < now()"
    plans = [shop.sql(f"EXPLAIN (ANALYZE, TIMING off, FORMAT json) {look}") for _ in range(3)]
    return min(float(plan["QUERY PLAN"][0]["Execution Time"]) for (plan,) in plans)


@pytest.mark.long
def test_an_attach_beside_a_large_default_looks_through_it_beforehand(shop: Shop) -> None:
    """While nobody waits, a CHECK is validated that says enough; a CHECK that a kill left is taken away."""
    name = oldest(shop)
    look = make_large_default(shop)
    shop.sql("ALTER TABLE events_rest ADD CONSTRAINT pgvigil_empty CHECK (id > 0) NOT VALID")
    shop.policy(block=f"{2 * look:.0f}ms", wait="20s", keep="14 months")  # a look of a quarter of it is quick
    before = implied(shop)
    rolled = shop.roll()
    made = implied(shop) - before
    back = shop.restore(name, attach=True)

    assert (Verdict.VERIFIED, Verdict.VERIFIED) == (rolled.verdict, back.verdict), messages(
        rolled
    ) + messages(back)
    assert sum(outcome.action == "create" for outcome in rolled.outcomes) == made
    assert made + 1 == implied(shop) - before
    assert [] == shop.sql("SELECT conname FROM pg_constraint WHERE conname = 'pgvigil_empty'")


def test_a_detach_that_would_look_for_references_too_long_is_refused(shop: Shop) -> None:
    """It would do so while everybody waits for the table; the index that makes it short is named."""
    name = oldest(shop)
    shop.policy(keep=None)
    shop.roll()
    shop.sql(
        "SET ROLE shop; CREATE TABLE refunds (event bigint, at timestamptz);"
        "INSERT INTO refunds SELECT id, created_at FROM events, generate_series(1, 30)"
        " WHERE created_at > now() - interval '6 months';"
        "ALTER TABLE refunds ADD FOREIGN KEY (event, at) REFERENCES events"
    )
    shop.policy(block="8ms")
    report = shop.roll()

    assert f"to see that no row of public.refunds refers to 'public.{name}' takes more than" in messages(
        report
    )
    assert "index public.refunds (event, at)" in " ".join(finding.hint for finding in report.findings)
    assert name in shop.partitions()


@pytest.mark.long
def test_a_row_that_no_copy_can_carry_is_found_before_the_detach(shop: Shop) -> None:
    """As text it would be longer than 1 GiB; row and column are named, and the partition stays."""
    name = oldest(shop)
    shop.sql("SET ROLE shop; ALTER TABLE events ADD COLUMN body bytea")
    shop.sql(
        f"UPDATE {name} SET body = convert_to(repeat('x', 540000000), 'UTF8')"
        f" WHERE id = (SELECT min(id) FROM {name})"
    )
    report = shop.roll()

    assert f"a row of 'public.{name}' (ctid (" in messages(report)
    assert "longer than 1 GiB as text, most of it in column 'body'" in messages(report)
    assert name in shop.partitions()


@contextmanager
def database_of_bytes(shop: Shop) -> Iterator[Shop]:
    """A shop whose database looks at no encoding."""
    name = f"{shop.database}_bytes"
    shop.sql(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0 OWNER shop")
    try:
        made = Shop(shop.sandbox, name)
        made.sql((Path(__file__).parents[2] / "infra" / "target.sql").read_text(encoding="utf-8"))
        yield made
    finally:
        shop.sql(f"DROP DATABASE {name} WITH (FORCE)")


def test_what_no_manifest_can_say_is_found_before_the_detach(shop: Shop) -> None:
    """A comment of bytes that are not UTF-8 is told with a cure; rows of such bytes are archived."""
    with database_of_bytes(shop) as bare:
        bare.sql(
            "CREATE TABLE t (at date NOT NULL, v text) PARTITION BY RANGE (at); ALTER TABLE t OWNER TO shop;"
            "CREATE TABLE t_99 PARTITION OF t FOR VALUES FROM ('1999-01-01') TO ('2000-01-01');"
            "CREATE TABLE t_now PARTITION OF t FOR VALUES FROM ('2000-01-01') TO ('2100-01-01');"
            "ALTER TABLE t_99 OWNER TO shop; INSERT INTO t VALUES ('1999-05-05', E'\\xff\\xfe');"
            "DO $$ BEGIN EXECUTE format('COMMENT ON TABLE t_99 IS %L', E'sch\\xf6n'); END $$"
        )
        bare.policy(table="public.t", key="at", every="1 year", keep="2 years", ahead=1)
        refused = bare.roll()
        standing = set(bare.partitions("t"))
        bare.sql("COMMENT ON TABLE t_99 IS NULL")
        report = bare.roll()

    assert "is not UTF-8, which this database (SQL_ASCII) does not look at" in messages(refused)
    assert "t_99" in standing
    assert ["t_99"] == [each.shape.name for each in report.manifests], messages(report)


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip, id="bit"),
        pytest.param(lambda data: data[:-9], id="cut", marks=pytest.mark.long),
        pytest.param(lambda _: b"other", id="other", marks=pytest.mark.long),
    ],
)
def test_a_copy_that_is_not_what_was_sent_refutes_and_nothing_is_dropped(
    shop: Shop, damage: Callable[[bytes], bytes]
) -> None:
    """Damage between upload and proof: refuted, no manifest; the next run makes a new copy and goes on."""
    name = oldest(shop)

    def hurt(step: str) -> None:
        if step == "prove":
            (uri,) = shop.objects(".copy.zst")
            shop.store.put(uri, damage(shop.store.get(uri)))

    shop.before = hurt
    report = shop.roll()

    assert Verdict.REFUTED == report.verdict
    assert [] == shop.objects("manifest.json")
    assert count(shop, name) > 0
    shop.before = lambda _: None
    assert Verdict.VERIFIED == shop.roll().verdict
    assert (1, 2) == (len(shop.objects("manifest.json")), len(shop.objects()))


def test_a_copy_that_vanished_before_the_drop_stops_it(shop: Shop) -> None:
    """Proven a moment ago is not enough: what is dropped has its copy in the store now."""

    def lose(step: str) -> None:
        if step == "drop":
            shop.store.delete(shop.objects(".copy.zst")[0])

    shop.before = lose
    name = oldest(shop)
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    assert count(shop, name) > 0


def test_a_store_that_is_away_costs_nothing(shop: Shop) -> None:
    """Partitions ahead are made all the same; the old one waits, detached and whole, for the next run."""
    shop.policy(archive="s3://no-such-bucket/x")
    name = oldest(shop)
    rows = count(shop, name)
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    assert "no-such-bucket" in messages(report)
    assert {"create", "detach"} == {outcome.action for outcome in report.outcomes}
    assert rows == count(shop, name)
    shop.policy()
    assert Verdict.VERIFIED == shop.roll().verdict


def test_a_view_in_the_way_of_a_drop_is_named(shop: Shop) -> None:
    """The copy is proven, the table stays, and the message says what depends on it."""
    shop.sql(f"CREATE VIEW seen AS TABLE {oldest(shop)}")
    report = shop.roll()

    assert "cannot be dropped" in messages(report)
    assert 1 == len(shop.objects("manifest.json"))


def test_a_table_that_somebody_attached_again_takes_writes_again(shop: Shop) -> None:
    """Its fence comes down and its departure is forgotten."""
    shop.policy(drop="keep")
    name = oldest(shop)
    bound = shop.partitions()[name]
    shop.roll()
    shop.sql(f"ALTER TABLE events ATTACH PARTITION {name} {bound}")
    shop.policy(keep=None)
    report = shop.roll()
    shop.sql(f"UPDATE {name} SET kind = 'again'")

    assert "attached-again" in {finding.code for finding in report.findings}
    assert 0 == count(shop, "pgvigil.departure")


@pytest.mark.parametrize(
    ("drop", "then"),
    [
        ({"after": "7d"}, ""),
        ("approve", "DROP TRIGGER pgvigil_no_write ON {0}; UPDATE {0} SET kind = 'late' WHERE id % 2 = 0"),
    ],
    ids=["as it was", "opened"],
)
def test_a_table_that_is_attached_again_after_the_plan_is_not_taken_out(
    shop: Shop, drop: object, then: str
) -> None:
    """Its copy was proven and its drop due or approved: it stays a partition, with what was written to it."""
    shop.policy(drop=drop)
    name = oldest(shop)
    bound = shop.partitions()[name]
    asked = shop.roll().questions
    shop.sql("UPDATE pgvigil.departure SET detached_at = detached_at - interval '8 days'")
    attach = f"ALTER TABLE events ATTACH PARTITION {name} {bound}; {then.format(name)}"
    shop.before = lambda step: step == "detach" and shop.sql(attach)
    report = shop.roll(approve=asked[0].digest if asked else "")

    assert Verdict.INCONCLUSIVE == report.verdict
    assert f"'public.{name}' was attached again meanwhile" in messages(report)
    assert name in shop.partitions()


def test_the_copy_of_an_abandoned_timeline_counts_for_nothing(shop: Shop) -> None:
    """After a recovery to before its fence a table is copied anew, with what was written to it since."""
    shop.policy(drop="keep")
    name = oldest(shop)
    shop.roll()
    shop.recover(name)
    shop.sql(f"UPDATE {name} SET kind = 'late' WHERE id = (SELECT min(id) FROM {name})")
    shop.policy()
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert Verdict.VERIFIED == shop.restore(name).verdict
    assert 1 == count(shop, f"{name} WHERE kind = 'late'")


def test_an_upload_that_nobody_will_finish_is_aborted(shop: Shop) -> None:
    """That of a table which was attached again while it was being copied, and is not to leave any more."""
    shop.policy(drop="keep")
    name = oldest(shop)
    bound = shop.partitions()[name]
    shop.roll()
    at = parse_uri(shop.objects("manifest.json")[0])
    client = boto3.client("s3", endpoint_url=shop.sandbox.endpoint_url, verify=str(shop.sandbox.ca_file))
    client.create_multipart_upload(Bucket=at.bucket, Key=f"{at.key.rpartition('/')[0]}/rows")
    shop.sql(f"ALTER TABLE events ATTACH PARTITION {name} {bound}")
    shop.policy(keep=None)
    shop.roll()

    assert [] == list(shop.store.list_uploads(f"s3://{at.bucket}/"))


def test_foreign_keys_that_forbid_a_detach_are_explained(shop: Shop) -> None:
    """The referring table is named and nothing has changed."""
    name = oldest(shop)
    shop.sql(
        "SET ROLE shop; CREATE TABLE refunds (event bigint, at timestamptz,"
        " FOREIGN KEY (event, at) REFERENCES events)"
    )
    shop.sql(f"INSERT INTO refunds SELECT id, created_at FROM {name} LIMIT 1")
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    assert "public.refunds refer to rows of" in messages(report)
    assert name in shop.partitions()


def test_a_reload_compares_row_by_row(shop: Shop) -> None:
    """With verify: reload the copy is loaded and compared both ways as well."""
    shop.policy(verify="reload")
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert "0 rows more here, 0 more there" in {check.actual for check in report.checks}


def test_a_reload_finds_what_is_more_on_either_side(shop: Shop) -> None:
    """A row that changed in the table after its copy is one more here and one more there: refuted, kept."""
    shop.policy(verify="reload")
    name = oldest(shop)

    def change(step: str) -> None:
        if step == "prove":
            shop.sql(
                f"ALTER TABLE {name} DISABLE TRIGGER ALL;"
                f"UPDATE {name} SET kind = 'late' WHERE id = (SELECT min(id) FROM {name})"
            )

    shop.before = change
    report = shop.roll()

    assert Verdict.REFUTED == report.verdict
    assert "1 rows more here, 1 more there" in {check.actual for check in report.checks}
    assert [] == shop.objects("manifest.json")


def test_a_new_partition_gets_what_postgres_does_not_copy(shop: Shop) -> None:
    """Grants, owner, replica identity, row security, statistics targets and storage options are there."""
    shop.sql(
        "GRANT SELECT, UPDATE (kind) ON events TO pgvigil; ALTER TABLE events ENABLE ROW LEVEL SECURITY;"
        "ALTER TABLE events REPLICA IDENTITY FULL; ALTER TABLE events ALTER kind SET STATISTICS 7"
    )
    newest = max(shop.partitions(), key=lambda name: shop.partitions()[name])
    shop.sql(f"ALTER TABLE {newest} SET (fillfactor = 71, toast.autovacuum_enabled = off)")
    report = shop.roll()
    made = {outcome.partition for outcome in report.outcomes if outcome.action == "create"}
    drifted = {f.message.split("'")[1] for f in report.findings if f.code == "drift"}

    assert made
    assert made & drifted == set()
    assert newest in drifted
    assert [{"o": ["fillfactor=71"], "t": ["autovacuum_enabled=off"], "u": "shop", "c": True}] == shop.sql(
        "SELECT part.reloptions AS o, toast.reloptions AS t, part.relowner::regrole::text AS u,"
        " EXISTS (SELECT FROM pg_attribute WHERE attrelid = part.oid AND attacl::text LIKE '%=w/%') AS c"
        " FROM pg_class AS part JOIN pg_class AS toast ON toast.oid = part.reltoastrelid"
        f" WHERE part.relname = '{made.pop()}'"
    )


@contextmanager
def four_users(shop: Shop) -> Iterator[tuple[list[int], list[str]]]:
    """Write and read through the table, up to 200 times a second each; gives what was written and refused."""
    is_over, failures, written = threading.Event(), [], []

    def use(number: int) -> None:
        insert = f"INSERT INTO events (customer_id, kind, payload) VALUES ({number}, 'x', '{{}}')"
        with shop.session() as session:
            session.execute("SET lock_timeout = '1s'")  # a wait above the bound is an error here
            while not is_over.wait(0.02):
                try:
                    run(session, insert)
                    written.append(number)
                    run(session, "SELECT count(*) FROM events WHERE created_at > now() - interval '1 hour'")
                except Exception as error:
                    failures.append(str(error))

    users = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for user in users:
        user.start()
    try:
        yield written, failures
    finally:
        is_over.set()
        for user in users:
            user.join()


def test_users_notice_nothing_of_a_whole_roll(shop: Shop) -> None:
    """Four users write and read through the table all the while; none gets an error or a long wait."""
    shop.policy(ahead=6, keep="12 months", block="500ms")
    before = count(shop, "events")
    with four_users(shop) as (written, failures):
        report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [] == failures
    assert 3 == sum(outcome.action == "drop" for outcome in report.outcomes)
    archived = sum(manifest.digest.rows for manifest in report.manifests)
    assert before + len(written) - archived == count(shop, "events")


def test_users_would_notice_a_table_that_is_held(shop: Shop) -> None:
    """The probe of the claim above can fail: a lock kept beyond the bound is an error to each user."""
    with four_users(shop) as (written, failures):
        wait_for(lambda: written)
        with reader(shop, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE"):
            wait_for(lambda: len(failures) >= 4)

    assert all("lock timeout" in failure for failure in failures)
