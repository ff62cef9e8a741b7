import os
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgvigil.postgres import connect
from tests.fixtures.backfill import Yard

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
