import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pgvigil.backfill.facts import BackfillReport
from pgvigil.sandbox import postgres as servers
from tests.fixtures.backfill import Yard

ROUNDS = int(os.environ.get("PGVIGIL_ROUNDS", "3"))
ROWS = 2500 * max(2, ROUNDS)
SMALL = {"rows": 50, "most_rows": 100, "longest": "2s"}


def counted(yard: Yard, workers: int = 1) -> None:
    """A table whose trigger counts how often each row is changed, walked over in many small batches."""
    yard.sql("CREATE TABLE t (id bigint PRIMARY KEY, v numeric NOT NULL, w bigint)")
    yard.sql("CREATE TABLE touched (id bigint)")
    yard.sql("CREATE TABLE slow AS SELECT 0.0001 AS s")  # until somebody empties it
    yard.sql(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.touched VALUES (new.id); PERFORM pg_sleep(s) FROM public.slow;"
        " RETURN NULL; END $$"
    )
    yard.sql(f"INSERT INTO t SELECT n, n FROM generate_series(1, {ROWS}) AS n")
    yard.sql("CREATE TRIGGER touch AFTER UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch(); ANALYZE t")
    yard.define(
        table="public.t", set={"w": "(v * 2)::bigint"}, where="w IS NULL", batch=SMALL, workers=workers
    )


BUSY = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pgvigil%' AND xact_start IS NOT NULL"
)
CONSISTENT = """
WITH r AS MATERIALIZED (
    SELECT coalesce(after[1], '0')::bigint AS after, through[1]::bigint,
           coalesce(reached[1], '0')::bigint AS reached, ahead[1]::bigint, rows_done
      FROM pgvigil.backfill_range
), beside AS (
    SELECT FROM t LEFT JOIN r ON t.id > r.after AND t.id <= r.through
     WHERE CASE WHEN t.w IS NULL THEN t.id <= r.reached
                ELSE t.id > coalesce(r.ahead, r.reached, 0) END
) SELECT (SELECT count(*) FROM beside)
       + abs((SELECT coalesce(sum(rows_done), 0) FROM r) - (SELECT count(*) FROM t WHERE w IS NOT NULL))
"""


def assert_exactly_once(yard: Yard, report: BackfillReport) -> None:
    assert report.verdict == "verified", report.model_dump_json(indent=1)
    assert yard.value("SELECT count(*) FROM t WHERE w = v * 2") == ROWS
    assert (ROWS, ROWS) == tuple(
        yard.sql("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM touched")[0].values()
    )


@contextmanager
def another_process(yard: Yard) -> Iterator[int]:
    """A process that runs the backfill; killed at the end."""
    pid = os.fork()
    if pid == 0:
        try:
            report = yard.run()
            print([finding.message for finding in report.findings], flush=True)  # noqa: T201 - for a failure
            os._exit(report.verdict.exit_code)
        finally:
            os._exit(9)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError, ChildProcessError):  # it has ended, and somebody waited for it
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def freeze(yard: Yard, pid: int) -> None:
    """Stop a runner between two batches, so that it sleeps without a lock."""

    def is_idle() -> bool:
        os.kill(pid, signal.SIGSTOP)
        if yard.value(BUSY) == 0:
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    yard.wait(is_idle)


def walked(yard: Yard) -> int:
    return int(yard.value("SELECT coalesce(sum(batches), 0) FROM pgvigil.backfill_range"))


@pytest.mark.rounds
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_runner_goes_on_where_it_was(yard: Yard, workers: int) -> None:
    """SIGKILL at random instants: the cursor always stands where the rows do, none is done twice."""
    counted(yard, workers)
    luck = random.Random(workers)  # noqa: S311 - no secret
    for _ in range(ROUNDS):
        before = walked(yard)
        with another_process(yard):
            yard.wait(lambda before=before: walked(yard) > before)
            assert yard.value(CONSISTENT) == 0
            time.sleep(luck.uniform(0, 0.2))
        assert yard.value(CONSISTENT) == 0

    yard.sql("DELETE FROM slow")
    assert_exactly_once(yard, yard.run())


def run_beside(yard: Yard) -> tuple[threading.Thread, list[BackfillReport]]:
    found: list[BackfillReport] = []
    thread = threading.Thread(target=lambda: found.append(yard.run()))
    thread.start()
    return thread, found


@pytest.mark.long
@pytest.mark.rounds
@pytest.mark.parametrize("how", ["backend", "immediate stop"])
def test_a_server_that_dies_is_waited_for(yard: Yard, how: str) -> None:
    """SIGKILL of a backend, or an immediate stop, in mid-batch: the same run goes on and ends verified."""
    counted(yard)
    thread, found = run_beside(yard)
    for _ in range(ROUNDS):
        before = walked(yard)
        yard.wait(lambda before=before: not thread.is_alive() or walked(yard) > before)
        if how == "backend":
            kill_backend(yard)
        else:
            restart(yard)
        assert yard.value(CONSISTENT) == 0
    yard.sql("DELETE FROM slow")
    thread.join()

    assert_exactly_once(yard, found[0])


def kill_backend(yard: Yard) -> None:
    row = yard.sql(
        "SELECT pid, pg_postmaster_start_time() FROM pg_stat_activity"
        " WHERE application_name LIKE 'pgvigil run_backfill%' AND state = 'active' ORDER BY random() LIMIT 1",
        None,
    )
    if row:
        os.kill(row[0]["pid"], signal.SIGKILL)
        backend = Path("/proc") / str(row[0]["pid"])
        yard.wait(lambda: not backend.exists())  # from then on the postmaster knows, and lets nobody in
        yard.wait(lambda: accepts(yard))


def restart(yard: Yard) -> None:
    pid = int((yard.sandbox.data("primary") / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGQUIT)
    yard.wait(lambda: not servers.is_alive(pid))
    servers.start(yard.sandbox, "primary")


def accepts(yard: Yard) -> bool:
    port = str(yard.sandbox.primary_port)
    asked = [yard.sandbox.postgres_bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", port]
    return subprocess.run(asked, check=False).returncode == 0


def test_a_runner_that_slept_is_fenced(yard: Yard) -> None:
    """A runner that was frozen past its lease and wakes up beside another commits nothing more."""
    counted(yard)
    with another_process(yard) as pid:
        yard.wait(lambda: walked(yard) > 3)
        freeze(yard, pid)
        yard.sql("UPDATE pgvigil.backfill SET leased_until = now() - interval '1 second'", None)
        yard.sql("DELETE FROM slow")
        report = yard.run()
        os.kill(pid, signal.SIGCONT)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 2
        assert_exactly_once(yard, report)


@pytest.mark.long
def test_a_second_runner_is_kept_out(yard: Yard) -> None:
    """While one runs, another ends inconclusive and names it."""
    counted(yard)
    with another_process(yard) as pid:
        yard.wait(lambda: walked(yard) > 3)
        freeze(yard, pid)
        second = yard.run()
        os.kill(pid, signal.SIGCONT)

    assert second.verdict == "inconclusive"
    assert "is run by 'pgvigil run_backfill" in second.findings[-1].message
