import os
import signal
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pgvigil.postgres import connect
from pgvigil.sandbox import postgres as servers
from tests.fixtures.backfill import Yard, let_in, standby

pytestmark = pytest.mark.long

if TYPE_CHECKING:
    from pgvigil.backfill.facts import BackfillReport

ROWS = 4000


def counted(yard: Yard) -> None:
    """A table whose trigger counts how often each row is changed, slowly."""
    yard.sql("CREATE TABLE t (id bigint PRIMARY KEY, v numeric NOT NULL, w bigint)")
    yard.sql("CREATE TABLE touched (id bigint)")
    yard.sql(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.touched VALUES (new.id); PERFORM pg_sleep(0.0005); RETURN NULL; END $$"
    )
    yard.sql(f"INSERT INTO t SELECT n, n FROM generate_series(1, {ROWS}) AS n")
    yard.sql("CREATE TRIGGER touch AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch(); ANALYZE t")
    batch = {"rows": 50, "most_rows": 100}
    yard.define(
        table="public.t", set={"w": "v * 2"}, where="w IS NULL", workers=2, batch=batch, not_null=["w"]
    )


def batches(yard: Yard) -> int:
    return int(yard.value("SELECT coalesce(sum(batches), 0) FROM pgvigil.backfill_range"))


def test_a_run_goes_on_after_a_failover(yard: Yard) -> None:
    """The primary dies, its standby is promoted: the same run finds it by the DSN and ends verified.

    What the standby had not got is lost with its cursor, so each row it has is changed exactly once.
    """
    counted(yard)
    found: list[BackfillReport] = []
    with standby(yard) as port:
        let_in(yard.sandbox, port)
        hosts = f"127.0.0.1:{yard.sandbox.primary_port},127.0.0.1:{port}"
        yard.reach(f"postgresql://pgvigil@{hosts}/postgres?target_session_attrs=read-write")
        after = replace(yard, sandbox=yard.sandbox.model_copy(update={"primary_port": port}))
        run = threading.Thread(target=lambda: found.append(yard.run()))
        run.start()
        yard.wait(lambda: batches(after) > 5)
        kill_primary(yard)
        assert run.is_alive()
        with connect(after.sandbox.primary_admin_dsn, "test") as session:
            session.execute("SELECT pg_promote()")
        run.join()

        assert found[0].verdict == "verified", found[0].model_dump_json(indent=1)
        assert after.value("SELECT count(*) FROM t WHERE w = v * 2") == ROWS
        counts = after.sql("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM touched")
        assert (ROWS, ROWS) == tuple(counts[0].values())
        assert found[0].not_null == ("w",)


def kill_primary(yard: Yard) -> None:
    pid = int((yard.sandbox.data("primary") / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)
    yard.wait(lambda: not servers.is_alive(pid))
