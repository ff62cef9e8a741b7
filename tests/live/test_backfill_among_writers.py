import itertools
import os
import signal
import threading
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgvigil.backfill import steering
from pgvigil.fleet import load_fleet
from pgvigil.postgres import connect
from tests.fixtures.backfill import Yard
from tests.fixtures.deaths import count_calls, in_child

EXAMPLES = int(os.environ.get("PGVIGIL_ROUNDS", "4"))
ROWS = 200

# What users do meanwhile, to a row of the table: (verb, its key, a number).
WRITES = st.tuples(
    st.sampled_from(["insert", "update", "delete", "move key", "move partition", "hold"]),
    st.integers(1, ROWS),
    st.integers(1, 1000),
)
STATEMENTS = {
    "insert": "INSERT INTO t VALUES (%(n)s * 1000 + %(k)s, %(n)s %% 4, %(n)s) ON CONFLICT DO NOTHING",
    "update": "UPDATE t SET v = %(n)s, w = NULL WHERE k = %(k)s",
    "delete": "DELETE FROM t WHERE k = %(k)s",
    "move key": "UPDATE t SET k = k + 1000000 * %(n)s WHERE k = %(k)s",
    "move partition": "UPDATE t SET d = (d + 1) %% 4 WHERE k = %(k)s",
    "hold": "SELECT FROM t WHERE k = %(k)s FOR UPDATE",
}


def table(yard: Yard, key: str = ", PRIMARY KEY (k, d)") -> None:
    """A partitioned table whose trigger counts what the backfill, and nobody else, changes."""
    yard.sql("DROP TABLE IF EXISTS t, touched; TRUNCATE pgvigil.backfill CASCADE", None)
    yard.sql(f"CREATE TABLE t (k bigint, d int, v int NOT NULL, w int{key}) PARTITION BY LIST (d)")
    yard.sql("CREATE TABLE t1 PARTITION OF t FOR VALUES IN (0, 1)")
    yard.sql("CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2, 3)")
    yard.sql("CREATE TABLE touched (k bigint, v int)")
    yard.sql(f"INSERT INTO t SELECT n, n % 4, n FROM generate_series(1, {ROWS}) AS n; ANALYZE t")
    body = "$$ BEGIN INSERT INTO public.touched VALUES (new.k, new.v); RETURN NULL; END $$"
    yard.sql(f"CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS {body}")
    mine = "WHEN (old.w IS NULL AND new.w IS NOT NULL)"
    yard.sql(f"CREATE TRIGGER touch AFTER UPDATE ON t FOR EACH ROW {mine} EXECUTE FUNCTION touch()")


def write(yard: Yard, writes: list[tuple[str, int, int]]) -> None:
    """Be the users: one short transaction each, tried again when it loses."""
    with connect(yard.sandbox.admin_dsn(yard.sandbox.primary_port, "shop"), "user") as session:
        session.execute("SET search_path = public")
        for verb, key, number in writes:
            values: dict[str, Any] = {"k": key, "n": number}
            with session.transaction():
                session.execute(STATEMENTS[verb].encode(), values)
                session.execute("SELECT pg_sleep(0.005)")


@pytest.mark.rounds
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.sampled_from([", PRIMARY KEY (k, d)", ""]), st.lists(WRITES, min_size=20, max_size=60))
def test_what_users_write_meanwhile_is_never_lost(
    yard: Yard, key: str, writes: list[tuple[str, int, int]]
) -> None:
    """Inserts, updates, deletes, key changes, partition moves beside it: each row ends right, key or not."""
    table(yard, key)
    yard.define(
        table="public.t",
        set={"w": "v * 2"},
        where="w IS NULL",
        batch={"rows": 5, "most_rows": 10, "lock_wait": "20ms"},
        workers=2,
    )
    users = threading.Thread(target=write, args=(yard, writes))
    users.start()
    yard.run()
    users.join()
    report = yard.run()

    assert report.verdict == "verified", report.model_dump_json(indent=1)
    # Nobody but the backfill sets w, and whoever changes v takes w away.
    assert yard.value("SELECT count(*) FROM t WHERE w IS DISTINCT FROM v * 2") == 0
    # A row is done twice only where a user undid it in between; without a key there may be two of one number.
    undone = sum(verb in {"update", "insert" if not key else ""} for verb, _, _ in writes)
    assert yard.value("SELECT count(*) - count(DISTINCT k) FROM touched") <= undone


@pytest.mark.parametrize("workers", [1, 3])
def test_the_result_is_that_of_one_update(yard: Yard, workers: int) -> None:
    """Row by row the same as the single statement that a user would run on a quiet table."""
    table(yard)
    yard.sql("CREATE TABLE wanted AS SELECT k, d, v, v * 2 AS w FROM t")
    yard.define(table="public.t", set={"w": "v * 2"}, where="w IS NULL", workers=workers, batch={"rows": 7})

    assert yard.run().verdict == "verified"
    assert yard.sql("SELECT * FROM t EXCEPT SELECT * FROM wanted") == []
    assert yard.value("SELECT count(*) FROM touched") == ROWS


class Migration(RuleBasedStateMachine):
    """A table in use, runs that are cancelled, paused, killed and begun anew; the model is a dict of rows."""

    def __init__(self, yard: Yard) -> None:
        super().__init__()
        self.yard = yard
        self.keys = itertools.count(ROWS + 1)
        self.rows: dict[int, list[int | None]] = {}  # by key: d, v, w
        self.done = 0  # how often a row was seen to be done that was not before
        self.was_run = False

    @initialize(workers=st.sampled_from([1, 3]), has_key=st.booleans())
    def begin(self, workers: int, *, has_key: bool) -> None:
        table(self.yard, ", PRIMARY KEY (k, d)" if has_key else "")
        self.rows = {k: [k % 4, k, None] for k in range(1, ROWS + 1)}
        batch = {"rows": 5, "most_rows": 10}
        self.yard.define(
            table="public.t", set={"w": "v * 2"}, where="w IS NULL", batch=batch, workers=workers
        )

    # --- users

    @rule(pick=st.integers(0, 10**6), number=st.integers(1, 1000))
    def a_user_updates(self, pick: int, number: int) -> None:
        key = self.one_of_them(pick)
        self.yard.sql(f"UPDATE t SET v = {number}, w = NULL WHERE k = {key}")
        self.rows[key][1:] = [number, None]

    @rule(number=st.integers(1, 1000))
    def a_user_inserts(self, number: int) -> None:
        key = next(self.keys)
        self.yard.sql(f"INSERT INTO t VALUES ({key}, {number % 4}, {number})")
        self.rows[key] = [number % 4, number, None]

    @rule(pick=st.integers(0, 10**6))
    def a_user_deletes(self, pick: int) -> None:
        key = self.one_of_them(pick)
        self.yard.sql(f"DELETE FROM t WHERE k = {key}")
        del self.rows[key]

    @rule(pick=st.integers(0, 10**6), back=st.booleans())
    def a_user_changes_a_key(self, pick: int, *, back: bool) -> None:
        """To behind the cursor, or to before it."""
        key = self.one_of_them(pick)
        new = -next(self.keys) if back else next(self.keys)
        self.yard.sql(f"UPDATE t SET k = {new} WHERE k = {key}")
        self.rows[new] = self.rows.pop(key)

    @rule(pick=st.integers(0, 10**6))
    def a_user_moves_a_row_to_another_partition(self, pick: int) -> None:
        key = self.one_of_them(pick)
        row = self.rows[key]
        assert row[0] is not None
        row[0] = (row[0] + 1) % 4
        self.yard.sql(f"UPDATE t SET d = {row[0]} WHERE k = {key}")

    def one_of_them(self, pick: int) -> int:
        return sorted(self.rows)[pick % len(self.rows)]

    # --- runs

    @rule()
    def a_run(self) -> None:
        report = self.yard.run()
        self.was_run = True
        assert report.verdict == "verified", report.model_dump_json(indent=1)
        assert self.yard.value("SELECT count(*) FROM t WHERE w IS NULL") == 0

    @rule(call=st.integers(10, 120))
    def a_run_dies(self, call: int) -> None:
        """Before any of its statements, if it makes so many."""

        def run() -> int:
            count_calls(call)
            self.yard.run()
            return 0

        assert in_child(run) in {0, -signal.SIGKILL}
        self.yard.wait(lambda: shown().state not in {"running", "paused"})

    @precondition(lambda self: self.was_run)
    @rule()
    def a_run_is_held_up(self) -> None:
        """Paused before it begins, it changes nothing until somebody resumes it."""
        self.steer("pause")
        runner = threading.Thread(target=self.yard.run)
        runner.start()
        self.yard.wait(lambda: shown().state == "paused" or not runner.is_alive())
        before = self.yard.value("SELECT count(*) FROM touched")
        self.a_user_updates(0, 7)
        assert before == self.yard.value("SELECT count(*) FROM touched")
        self.steer("resume")
        runner.join()

    @precondition(lambda self: self.was_run)
    @rule()
    def a_cancelled_run_ends(self) -> None:
        """Until somebody resumes it, a run changes nothing, and says so if there is anything to change."""
        self.steer("cancel")
        before = self.yard.sql("SELECT * FROM t ORDER BY k")
        is_done = all(row["w"] is not None for row in before)
        assert self.yard.run().verdict == ("verified" if is_done else "inconclusive")
        assert before == self.yard.sql("SELECT * FROM t ORDER BY k")
        self.steer("resume")

    @precondition(lambda self: self.was_run)
    @rule()
    def the_cursor_is_forgotten(self) -> None:
        self.steer("restart")
        self.was_run = False

    def steer(self, action: steering.Action) -> None:
        report = steering.conduct_steering("demo/shop", "work", action, {})
        assert report.verdict == "verified", report.model_dump_json(indent=1)

    @invariant()
    def every_row_is_done_once_for_each_need(self) -> None:
        """The table is the model, but for what was done since; and the trigger saw exactly that."""
        found = {row["k"]: [row["d"], row["v"], row["w"]] for row in self.yard.sql("SELECT * FROM t")}
        for key, row in self.rows.items():
            if row[2] is None and found.get(key, [None])[-1] is not None:
                assert row[1] is not None
                row[2] = row[1] * 2
                self.done += 1
        assert found == self.rows
        assert self.yard.value("SELECT count(*) FROM touched") == self.done


def shown() -> steering.Shown:
    return steering.show(load_fleet(), "demo/shop", "work")


@pytest.mark.rounds
def test_a_migration_is_as_one_of_a_dict_would_be(yard: Yard) -> None:
    """Whatever users do and becomes of the runs: each row right in the end, and done once for each need."""
    run_state_machine_as_test(
        partial(Migration, yard),
        settings=settings(
            max_examples=EXAMPLES // 2, stateful_step_count=12, deadline=None, database=None, derandomize=True
        ),
    )
