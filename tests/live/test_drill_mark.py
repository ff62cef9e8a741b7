"""Claims about marks: exact under writers, bounded for them, and honest where they cannot be had."""

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgvigil import postgres
from pgvigil.drill.content import SourceContent, hash_database
from pgvigil.drill.facts import Content
from pgvigil.drill.fence import _attempt, _await_locks, _bound, _look_again, _prepare, _Siege
from pgvigil.drill.mark import mark
from pgvigil.drill.point import Source, exporter, read_source
from pgvigil.drill.slot import from_slot
from pgvigil.drill.standby import _await_pause, _paused
from pgvigil.errors import PreconditionFailed
from pgvigil.policies.drill import DrillPolicy
from pgvigil.sandbox import Sandbox
from tests.fixtures.drill_source import RUN, Copy, Field, admin, make_database, nothing, wait

ROUNDS = int(os.environ.get("PGVIGIL_ROUNDS", "1"))
NO_STANDBY = "standby: the fleet file names no standby"
NO_LOGICAL = "slot: wal_level is replica, a slot needs logical"
METHODS = ("fence", "slot", "standby")

Pair = tuple[SourceContent, Content]


def position(content: SourceContent) -> int:
    high, low = content.mark.lsn.split("/")
    return int(high, 16) << 32 | int(low, 16)


def digests(content: Content) -> dict[str, Any]:
    return {str(table): digest for table, digest in content.tables}


def differing(source: Content, copy: Content) -> set[str]:
    theirs = digests(copy)
    return {
        name
        for name, ours in digests(source).items()
        if name not in theirs or (ours.rows, ours.hash) != (theirs[name].rows, theirs[name].hash)
    }


@pytest.fixture(scope="module")
def recovered(field_with_standby: Field) -> Iterator[tuple[Copy, list[Pair]]]:
    """What every method marked while users were at work, and the copy's content at each of these places."""
    with field_with_standby.writers() as writers:
        contents = [
            content
            for _ in range(ROUNDS)
            for method in METHODS
            for content in field_with_standby.contents(method)
        ]
    assert writers.committed > 100
    with admin(field_with_standby.sandbox) as session:
        session.execute("SELECT pg_create_restore_point('end'), pg_switch_wal()")
    with field_with_standby.copy() as copy:
        pairs = []
        for content in sorted(contents, key=position):
            copy.recover(content.mark.lsn)
            pairs.append((content, copy.hash(content)))
        copy.control("promote")
        yield copy, pairs


@pytest.mark.parametrize("method", METHODS)
def test_a_copy_recovered_to_the_mark_equals_the_source(
    recovered: tuple[Copy, list[Pair]], method: str
) -> None:
    """Under writers, with aborts and subtransactions, every table is the same, and none is doubted."""
    _, pairs = recovered
    own = [pair for pair in pairs if pair[0].mark.method == method]

    assert {(frozenset(), (), ())} == {
        (frozenset(differing(source, copy)), source.doubts, copy.unproven) for source, copy in own
    }
    assert [ROUNDS] * 8 == [*Counter(str(table) for source, _ in own for table, _ in source.tables).values()]


@pytest.mark.parametrize(
    ("change", "table"),
    [
        ("UPDATE shop.accounts SET balance = balance + 1 WHERE id = 7", "shop.accounts"),
        ("DELETE FROM shop.totals WHERE id = 1", "shop.totals"),
        ("INSERT INTO shop.ledger SELECT * FROM shop.ledger LIMIT 1", "shop.ledger"),
        (
            "UPDATE shop.journal SET what = '{}' WHERE id = (SELECT max(id) FROM shop.journal_1)",
            "shop.journal_1",
        ),
        ("SELECT lo_unlink(max(loid)) FROM pg_largeobject", "pg_catalog.pg_largeobject"),
    ],
    ids=["changed", "missing", "twice", "leaf", "large-object"],
)
def test_one_row_in_the_copy_makes_its_table_differ(
    recovered: tuple[Copy, list[Pair]], change: str, table: str
) -> None:
    """A changed, missing or doubled row is seen, in its own table alone."""
    copy, pairs = recovered
    (all_tables, _) = next(pair for pair in pairs if len(pair[0].tables) == 8)
    before = copy.hash(all_tables)

    copy.sql(change)

    assert {table} == differing(before, copy.hash(before))


def policy(**settings: object) -> DrillPolicy:
    return DrillPolicy.model_validate({"fence_for": "1s", **settings})


@pytest.fixture(scope="module")
def ward(sandbox: Sandbox) -> Iterator[str]:
    """A database of the shared sandbox, where wal_level is replica, with three tables."""
    make_database(sandbox, "ward")
    with admin(sandbox, "ward") as session:
        session.execute("SET search_path = public")
        session.execute("CREATE TABLE calm AS SELECT 1 AS n")
        session.execute("CREATE TABLE busy AS SELECT 1 AS n")
        session.execute('CREATE TABLE "Ä""b.c\'; --" AS SELECT 1 AS n')
        session.execute("CREATE MATERIALIZED VIEW sums AS SELECT sum(n) FROM calm")
    yield sandbox.dsn("ward")
    with admin(sandbox) as session:
        session.execute("DROP DATABASE ward WITH (FORCE)")


@pytest.fixture(autouse=True)
def _environment(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the passwords of the shared sandbox; the field asks for none."""
    monkeypatch.setenv("PGPASSFILE", str(sandbox.passfile))


@pytest.fixture
def writer(sandbox: Sandbox) -> Iterator[psycopg.Connection]:
    """A session of a user in database `ward`."""
    dsn = sandbox.admin_dsn(sandbox.primary_port, "ward")
    with psycopg.connect(dsn, application_name="payroll", autocommit=True) as session:
        yield session


def test_where_nothing_gentler_fits_a_fence_is_taken_and_says_why(ward: str) -> None:
    """With wal_level = replica and no standby every table is fenced, and the report can tell the reasons."""
    with mark(ward, policy(), RUN) as marked:
        assert ("fence", ()) == (marked.mark.method, marked.doubts)
        assert [
            "standby: the fleet file names no standby",
            "slot: wal_level is replica, a slot needs logical",
        ] == [*marked.declined]


def test_the_gentlest_method_that_works_is_taken(field_with_standby: Field) -> None:
    """A standby comes before a slot, and a slot before a fence."""
    standby = field_with_standby.policy()
    with mark(field_with_standby.dsn, standby, RUN) as first:
        assert "standby" == first.mark.method
    with mark(field_with_standby.dsn, standby.model_copy(update={"standby": None}), RUN) as second:
        assert "slot" == second.mark.method


def test_a_method_that_was_asked_for_is_not_replaced(ward: str) -> None:
    """The operator's word stands: a slot on a server without logical WAL is refused with its cure."""
    with (
        pytest.raises(PreconditionFailed, match="wal_level is replica"),
        mark(ward, policy(mark="slot"), RUN),
    ):
        pass


def test_a_primary_is_no_standby(field_with_standby: Field) -> None:
    """Replay is held nowhere but on a standby of this very system."""
    wrong = field_with_standby.policy(mark="standby", standby=field_with_standby.dsn)
    with (
        pytest.raises(PreconditionFailed, match="is no standby of system"),
        mark(field_with_standby.dsn, wrong, RUN),
    ):
        pass


def test_a_table_with_a_writer_that_does_not_end_is_doubted_and_the_writer_named(
    ward: str, writer: psycopg.Connection
) -> None:
    """The other tables are fenced; who writes to them waits no longer than the bound."""
    with writer.transaction(), mark(ward, policy(), RUN) as marked:
        pass  # the writer holds nothing yet
    with writer.transaction():
        writer.execute("INSERT INTO busy VALUES (2)")
        with mark(ward, policy(), RUN) as held:
            assert ["public.busy"] == [doubt.relation for doubt in held.doubts]
            assert "'payroll'" in held.doubts[0].reason
            assert "INSERT INTO busy VALUES (2)" in held.doubts[0].reason
            assert held.mark.writers_waited_ms <= 200
        raise psycopg.Rollback
    assert () == marked.doubts


@pytest.fixture
def parted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the last of the tables that a fence is for contended, as long as there are others."""
    prepare = _prepare

    def prepare_contended(source: Source, watch: postgres.Connection) -> _Siege:
        siege = prepare(source, watch)
        siege.mutual.update(siege.order[-1:] * 12)
        siege.part()
        return siege

    monkeypatch.setattr("pgvigil.drill.fence._prepare", prepare_contended)


@pytest.mark.usefixtures("parted")
def test_tables_that_cannot_be_fenced_together_get_marks_of_their_own(ward: str) -> None:
    """Writers that lock two tables in both orders cost a second mark, and no table its proof."""
    contents = hash_database(ward, policy(), RUN, on_progress=nothing)

    tables = [str(table) for content in contents for table, _ in content.tables]
    assert len(tables) == len(set(tables)) == 5
    assert len({content.mark.name for content in contents}) == len(contents) > 1


@pytest.fixture
def torn(writer: psycopg.Connection) -> Iterator[str]:
    """The name of a table that is made last, so that it is parted from the others."""
    writer.execute("CREATE TABLE torn AS SELECT 1 AS n")
    yield "public.torn"
    writer.execute("DROP TABLE IF EXISTS torn; DROP FUNCTION IF EXISTS same(int)")


STRANGE = """
CREATE FUNCTION same(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1';
ALTER FUNCTION same(int) OWNER TO pgvigil;
ALTER TABLE torn ADD twice int GENERATED ALWAYS AS (n * 2) STORED;
CREATE INDEX ON torn (same(n))
"""


@pytest.mark.usefixtures("parted")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (STRANGE, "superuser"),
        ("ALTER TABLE torn SET UNLOGGED", "nor have its own"),
        ("DROP TABLE torn", "nor have its own"),
    ],
    ids=["strange", "unlogged", "dropped"],
)
def test_a_table_that_gets_no_mark_at_all_is_told_and_the_others_keep_theirs(
    ward: str, writer: psycopg.Connection, torn: str, change: str, reason: str
) -> None:
    """What its owner does between the first mark and its own neither hides it nor costs the first one."""
    due = [change]

    def between(_: object) -> None:
        if due:
            writer.execute(due.pop().encode())

    contents = hash_database(ward, policy(), RUN, on_progress=between)

    told = [each.reason for content in contents for each in content.unproven if each.relation == torn]
    assert [reason in each for each in told] == [True]
    assert "calm" in {table.name for table, _ in contents[0].tables}


@pytest.mark.parametrize(
    ("change", "reason"),
    [("DROP TABLE torn", "dropped before its own"), ("ALTER TABLE torn SET UNLOGGED", "unlogged")],
    ids=["dropped", "unlogged"],
)
def test_a_table_that_is_none_to_compare_at_its_own_mark_is_told(
    ward: str, writer: psycopg.Connection, torn: str, change: str, reason: str
) -> None:
    """It was one at the first mark, and beside another one that has its own it is not passed over."""
    with mark(ward, policy(), RUN) as marked:
        both = [each.table for each in marked.inventory.tables if each.table.name in {"calm", "torn"}]
    writer.execute(change.encode())
    with mark(ward, policy(), RUN, only=both) as marked:
        (told,) = marked.inventory.unproven
        assert ["calm"] == [each.table.name for each in marked.inventory.tables]

    assert (told.relation, reason in told.reason) == (torn, True)


def test_databases_at_rest_share_a_fence(ward: str, sandbox: Sandbox) -> None:
    """They are at the same restore point, each with a snapshot of its own, so recovery stops there once."""
    with mark(ward, policy(), RUN, beside=[sandbox.dsn("shop")]) as marked:
        (shared,) = marked.beside
        with shared.connect() as session:
            session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            session.execute(f"SET TRANSACTION SNAPSHOT '{shared.snapshot}'".encode())
            session.execute("SELECT FROM public.customers")

    place = marked.mark.lsn, marked.mark.name
    assert ("shop", *place, ()) == (shared.mark.database, shared.mark.lsn, shared.mark.name, shared.doubts)
    assert 0 < shared.mark.writers_waited_ms <= 200


def test_neighbours_of_a_fence_leave_the_connections_to_users(ward: str, sandbox: Sandbox) -> None:
    """Where few are spare, each database gets a mark of its own."""
    with ExitStack() as users:
        for _ in range(read_source(ward, RUN, policy()).spare - 7):
            users.enter_context(admin(sandbox))
        with mark(ward, policy(), RUN, beside=[sandbox.dsn("shop")]) as marked:
            assert () == marked.beside


def test_databases_share_the_hold_of_a_standby(field_with_standby: Field) -> None:
    """One held replay is one place in WAL for all of them."""
    wanted = field_with_standby.policy(mark="standby")
    other = postgres.in_database(field_with_standby.dsn, "postgres")
    with mark(field_with_standby.dsn, wanted, RUN, beside=[other]) as marked:
        assert [("postgres", marked.mark.lsn)] == [(e.mark.database, e.mark.lsn) for e in marked.beside]


def test_a_database_at_work_shares_no_fence(ward: str, sandbox: Sandbox) -> None:
    """Nobody there waits for the fence of another database; it is left to a mark of its own."""
    with admin(sandbox, "shop") as session, session.transaction():
        session.execute("LOCK TABLE public.customers IN ROW EXCLUSIVE MODE")
        with mark(ward, policy(), RUN, beside=[sandbox.dsn("shop")]) as marked:
            assert () == marked.beside


def test_a_database_with_a_view_that_may_be_refreshed_shares_no_fence(ward: str, sandbox: Sandbox) -> None:
    """Nothing can lock it against a refresh between the restore point and the snapshot."""
    with mark(sandbox.dsn("shop"), policy(), RUN, beside=[ward]) as marked:
        assert () == marked.beside


UNHELD = {
    "pg_catalog.pg_largeobject": "SELECT lo_unlink(loid) FROM pg_largeobject",
    "public.sums": "REFRESH MATERIALIZED VIEW CONCURRENTLY public.sums",
}


@pytest.fixture
def unheld(writer: psycopg.Connection) -> Iterator[None]:
    """A large object and a view, of which what users change is held by no fence."""
    writer.execute("SELECT lo_from_bytea(0, 'x')")
    writer.execute("CREATE UNIQUE INDEX ON sums (sum)")
    yield
    writer.rollback()
    writer.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    writer.execute("DROP INDEX sums_sum_idx")


@pytest.mark.usefixtures("unheld")
@pytest.mark.parametrize("relation", UNHELD)
def test_what_no_fence_holds_is_doubted_while_it_changes(
    ward: str, writer: psycopg.Connection, relation: str
) -> None:
    """It may be committed between snapshot and restore point: tried again, then told by its name alone."""
    writer.execute("BEGIN; SAVEPOINT one")
    writer.execute(UNHELD[relation].encode())
    with mark(ward, policy(), RUN) as marked:
        assert [relation] == [doubt.relation for doubt in marked.doubts]
        assert marked.mark.attempts > 1


@pytest.mark.usefixtures("unheld")
@pytest.mark.parametrize("relation", UNHELD)
def test_a_fence_beside_a_change_that_it_does_not_hold_is_void(
    ward: str, writer: psycopg.Connection, relation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one, whose snapshot shows the change, is exact; who changes something else is no reason."""
    attempt = _attempt

    def attempt_beside(*them: Any) -> Any:
        row = attempt(*them)
        writer.execute("COMMIT")
        return row

    monkeypatch.setattr("pgvigil.drill.fence._attempt", attempt_beside)
    writer.execute("BEGIN; SAVEPOINT one")
    writer.execute(UNHELD[relation].encode())
    with mark(ward, policy(), RUN) as marked:
        assert (2, ()) == (marked.mark.attempts, marked.doubts)
    writer.execute("BEGIN")
    writer.execute("SELECT pg_current_xact_id(), lo_create(0)")
    with mark(ward, policy(), RUN) as unconcerned:
        assert (1, ()) == (unconcerned.mark.attempts, unconcerned.doubts)


def test_a_neighbour_of_a_fence_in_which_large_objects_are_unlinked_leaves_it(
    ward: str, sandbox: Sandbox
) -> None:
    """It is left to a mark of its own, which tells why it is not exact."""
    with admin(sandbox, "shop") as session:
        session.execute("SELECT lo_from_bytea(0, 'x')")
        session.execute("BEGIN; SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
        with mark(ward, policy(), RUN, beside=[sandbox.dsn("shop")]) as marked:
            assert () == marked.beside
        session.execute("COMMIT")


def test_where_every_table_is_held_there_is_no_mark(ward: str, writer: psycopg.Connection) -> None:
    """Nothing is guessed: the refusal names the holder, and how long anybody waited for it."""
    with writer.transaction():
        writer.execute('LOCK TABLE calm, busy, "Ä""b.c\'; --", pg_largeobject IN ROW EXCLUSIVE MODE')
        with pytest.raises(PreconditionFailed, match="payroll") as refused, mark(ward, policy(), RUN):
            pass

    assert "writers waited at most" in refused.value.message


def test_a_prepared_transaction_is_named(field_with_standby: Field) -> None:
    """It has no process, and it stays until somebody ends it."""
    with psycopg.connect(field_with_standby.sandbox.dsn("field", "shop")) as session:
        session.tpc_begin("forgotten")
        session.execute("UPDATE shop.totals SET amount = amount WHERE id = 1")
        session.tpc_prepare()
        wanted = field_with_standby.policy(mark="fence", fence_for="500ms")
        with mark(field_with_standby.dsn, wanted, RUN) as marked:
            doubts = marked.doubts
        session.tpc_rollback()

    assert ["shop.totals"] == [doubt.relation for doubt in doubts]
    assert "prepared transaction 'forgotten'" in doubts[0].reason


@contextmanager
def without_function(sandbox: Sandbox, table: str) -> Iterator[None]:
    """Leave the role of drills to its own rights, which cover one table."""
    with admin(sandbox, "ward") as session:
        session.execute("REVOKE EXECUTE ON FUNCTION pgvigil_drill.fence(oid[]) FROM pgvigil")
        session.execute(f"GRANT UPDATE ON public.{table} TO pgvigil".encode())
        try:
            yield
        finally:
            session.execute("GRANT EXECUTE ON FUNCTION pgvigil_drill.fence(oid[]) TO pgvigil")
            session.execute(f"REVOKE UPDATE ON public.{table} FROM pgvigil".encode())


def test_without_the_function_the_cure_is_told(ward: str, sandbox: Sandbox) -> None:
    """A role that may not lock doubts each table, and what it may lock it locks itself."""
    with without_function(sandbox, "calm"), mark(ward, policy(), RUN) as marked:
        doubts = {doubt.relation: doubt.reason for doubt in marked.doubts}

    assert {"public.busy", "public.Ä\"b.c'; --", "pg_catalog.pg_largeobject"} == set(doubts)
    assert all("infra/roles.sql" in reason for reason in doubts.values())


@pytest.fixture
def replaced(writer: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user who gives the name of a table to another one while the first fence waits for him."""

    def replace_meanwhile(siege: _Siege, locking: Any, watch: Any, locker: postgres.Connection) -> None:
        waiting = f"SELECT pid FROM pg_locks WHERE pid = {locker.info.backend_pid} AND NOT granted"
        if writer.info.transaction_status is TransactionStatus.INTRANS:
            wait(lambda: writer.execute(waiting.encode()).fetchone())
            writer.execute("COMMIT")
        _await_locks(siege, locking, watch, locker)

    monkeypatch.setattr("pgvigil.drill.fence._await_locks", replace_meanwhile)
    writer.execute("BEGIN; ALTER TABLE busy RENAME TO aside")
    writer.execute("CREATE TABLE busy AS SELECT 2 AS n; GRANT UPDATE ON busy TO pgvigil")
    yield
    writer.execute("ROLLBACK; DROP TABLE busy; ALTER TABLE aside RENAME TO busy")
    writer.execute("REVOKE UPDATE ON busy FROM pgvigil")


@pytest.mark.parametrize("is_helped", [True, False])
def test_a_table_that_loses_its_name_while_a_fence_waits_is_not_taken_for_fenced(
    ward: str, sandbox: Sandbox, request: pytest.FixtureRequest, is_helped: bool
) -> None:
    """The lock is on the other table then, so the attempt is void; the next one knows the new name."""
    source = read_source(ward, RUN, policy(fence="5s"))
    with ExitStack() as stack:
        if not is_helped:
            stack.enter_context(without_function(sandbox, "busy"))
        watch = stack.enter_context(source.connect())
        snapshot = stack.enter_context(exporter(source))
        siege = _prepare(source, watch)
        request.getfixturevalue("replaced")
        assert _attempt(siege, snapshot, watch) is None
        _look_again(siege, watch)
        assert ("public", "aside") in siege.names.values()
        assert _attempt(siege, snapshot, watch) is not None


def test_a_function_that_is_not_a_superusers_is_not_called(ward: str, sandbox: Sandbox) -> None:
    """Whoever owns a function decides what it does with our rights."""
    with admin(sandbox, "ward") as session:
        session.execute("ALTER FUNCTION pgvigil_drill.fence(oid[]) OWNER TO shop")
        try:
            with mark(ward, policy(mark="fence"), RUN):
                pytest.fail("it was called")
        except PreconditionFailed as refused:
            message = refused.message
        finally:
            session.execute("ALTER FUNCTION pgvigil_drill.fence(oid[]) OWNER TO postgres")

    assert "infra/roles.sql" in message


def test_a_fence_whose_holder_stands_still_is_ended_by_the_server(
    ward: str, writer: psycopg.Connection
) -> None:
    """A run that is frozen with all tables locked cannot keep users waiting."""
    source = read_source(ward, RUN, policy())
    with source.connect() as watch, psycopg.connect(ward, autocommit=True) as frozen:
        siege = _prepare(source, watch)
        _bound(frozen, siege)  # type: ignore[arg-type]
        frozen.execute("BEGIN")
        frozen.execute("SELECT pgvigil_drill.fence(%s::oid[])", (siege.order,))

        writer.execute("SET lock_timeout = '30s'")
        writer.execute("INSERT INTO busy SELECT 1 LIMIT 0")

        with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout):
            frozen.execute("SELECT")


def test_a_table_that_appears_while_the_mark_is_made_is_doubted(
    ward: str, writer: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fence did not know of it did not hold."""
    prepare = _prepare

    def prepare_early(source: Source, watch: postgres.Connection) -> Any:
        siege = prepare(source, watch)
        writer.execute("CREATE TABLE new AS SELECT 1 AS n")
        return siege

    monkeypatch.setattr("pgvigil.drill.fence._prepare", prepare_early)
    with mark(ward, policy(), RUN) as marked:
        doubts = [(doubt.relation, doubt.reason) for doubt in marked.doubts]
    writer.execute("DROP TABLE new")

    assert [("public.new", "created while the mark was made")] == doubts


def test_more_tables_than_the_server_can_lock_are_doubted(ward: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fence leaves users their share of the lock table, and says what to raise."""
    monkeypatch.setattr("pgvigil.drill.fence._SHARE_OF_LOCKS", 5000)
    with mark(ward, policy(), RUN) as marked:
        reasons = {doubt.reason for doubt in marked.doubts}

    assert ["more tables than the server can lock at once: raise max_locks_per_transaction"] == [*reasons]


def test_a_mark_leaves_nothing_behind(field_with_standby: Field) -> None:
    """No slot, no lock, no session and no held replay outlives its block."""
    for method in METHODS:
        with mark(field_with_standby.dsn, field_with_standby.policy(mark=method), RUN):
            pass

    with admin(field_with_standby.sandbox, "field") as session:
        query = (
            "SELECT (SELECT count(*) FROM pg_replication_slots) AS slots, count(*) AS n FROM pg_stat_activity"
            " WHERE application_name LIKE 'pgvigil restore_drill%'"
        )
        wait(lambda: session.execute(query).fetchone() == {"slots": 0, "n": 0})
    assert [("not paused",)] == field_with_standby.standby.sql("SELECT pg_get_wal_replay_pause_state()")


def hold_replay(source: Source) -> None:
    """Hold the replay until somebody kills this process."""
    with source.connect() as pauser, source.connect() as watch, _paused(pauser, watch, source):
        _await_pause(watch, source)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_replay_held_by_a_killed_run_goes_on_by_itself(field_with_standby: Field) -> None:
    """The hold runs inside the standby, which ends it after two seconds whoever is left."""
    source = read_source(field_with_standby.standby.dsn(), RUN, field_with_standby.policy())
    child = multiprocessing.get_context("spawn").Process(target=hold_replay, args=(source,))
    child.start()
    child.join(60)

    assert -signal.SIGKILL == child.exitcode
    state = "SELECT pg_get_wal_replay_pause_state()"
    wait(lambda: field_with_standby.standby.sql(state) == [("not paused",)], seconds=20)


def make_slot(source: Source) -> None:
    with from_slot(source):
        pass


def test_a_slot_in_the_making_does_not_outlive_its_run(field_with_standby: Field) -> None:
    """It waits for a writer, while it holds back vacuum of the catalogues; the server sees the client die."""
    source = read_source(field_with_standby.dsn, RUN, field_with_standby.policy())
    child = multiprocessing.get_context("spawn").Process(target=make_slot, args=(source,))
    slots = "SELECT count(*) AS n FROM pg_replication_slots WHERE temporary"
    waiting = (
        "SELECT count(*) AS n FROM pg_stat_activity"
        " WHERE query LIKE 'CREATE_REPLICATION_SLOT%' AND wait_event = 'transactionid'"
    )
    with (
        admin(field_with_standby.sandbox, "field") as user,
        admin(field_with_standby.sandbox) as session,
        user.transaction(force_rollback=True),
    ):
        user.execute("SELECT pg_current_xact_id()")
        child.start()
        wait(lambda: session.execute(waiting).fetchone() == {"n": 1})
        child.kill()
        child.join(60)
        wait(lambda: session.execute(slots).fetchone() == {"n": 0}, seconds=20)


def test_a_replay_that_somebody_else_holds_is_left_alone(field_with_standby: Field) -> None:
    """It is neither used nor resumed; the message says how to end it."""
    standby = field_with_standby.standby
    standby.sql("SELECT pg_wal_replay_pause()")
    try:
        wanted = field_with_standby.policy(mark="standby")
        with (
            pytest.raises(PreconditionFailed, match="is held already") as refused,
            mark(field_with_standby.dsn, wanted, RUN),
        ):
            pass
        assert "pg_wal_replay_resume()" in refused.value.hint
        assert [("not paused",)] != standby.sql("SELECT pg_get_wal_replay_pause_state()")
    finally:
        standby.sql("SELECT pg_wal_replay_resume()")


def test_a_snapshot_is_held_no_longer_than_allowed(ward: str) -> None:
    """When hash_for is over the server ends the session that holds back vacuum."""
    short = policy().model_copy(update={"hash_for": timedelta(milliseconds=200)})
    with mark(ward, short, RUN) as marked:
        held = (
            "SELECT count(*) AS n FROM pg_stat_activity WHERE backend_xmin IS NOT NULL"
            " AND application_name LIKE 'pgvigil restore_drill%' AND pid <> pg_backend_pid()"
        )
        with marked.connect() as session:
            wait(lambda: session.execute(held).fetchone() == {"n": 0}, seconds=20)
