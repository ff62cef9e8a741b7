import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pgvigil.doctor import examine
from pgvigil.doctor.lines import AT_ONCE
from pgvigil.fleet import Fleet, load_fleet
from pgvigil.postgres import connect, sql
from pgvigil.reports import Verdict
from pgvigil.runs import Run, conduct
from pgvigil.sandbox import Sandbox
from pgvigil.sandbox.lifecycle import TARGET
from pgvigil.watch.proofs import read_status
from pgvigil.waves import operation
from pgvigil.waves.report import WaveReport
from tests.fixtures.waves import PIPELINE, Watch, watch

__all__ = ["watch"]

MANY = [f"many_{number:02}" for number in range(4 * AT_ONCE)]
BACKFILL = {"table": "public.t", "set": {"v": "0"}, "where": "v IS NULL"}


@pytest.fixture
def many(in_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    """So many databases, each with a backfill that could be begun."""
    with connect(in_sandbox.primary_admin_dsn, "test") as session:
        session.execute("CREATE DATABASE many")
        with connect(in_sandbox.admin_dsn(in_sandbox.primary_port, "many"), "test") as template:
            template.execute(TARGET.read_bytes())
            template.execute("CREATE TABLE public.t (k int PRIMARY KEY, v int)")
            template.execute("ALTER TABLE public.t OWNER TO shop")
            template.execute("INSERT INTO public.t VALUES (1, NULL)")
        for name in MANY:
            session.execute(sql.SQL("CREATE DATABASE {} TEMPLATE many").format(sql.Identifier(name)))
        fleet = yaml.safe_load(in_sandbox.fleet_file.read_text(encoding="utf-8"))
        fleet["clusters"]["demo"]["databases"] = {name: {"backfills": {"v": BACKFILL}} for name in MANY}
        (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet), encoding="utf-8")
        monkeypatch.setenv("PGVIGIL_FLEET", str(tmp_path / "fleet.yaml"))
        yield in_sandbox
        for name in ("many", *MANY):
            session.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def sessions(sandbox: Sandbox) -> int:
    """Count the sessions that the databases have had, as far as the server knows yet."""
    with connect(sandbox.primary_admin_dsn, "test") as session:
        query = "SELECT sum(sessions)::int AS n FROM pg_stat_database WHERE datname = ANY (%s)"
        ((count,),) = (row.values() for row in session.execute(query, (MANY,)).fetchall())
    return int(count)


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def test_the_doctor_needs_few_sessions_however_many_databases_there_are(many: Sandbox) -> None:
    """One for a database's fence and one for its backfill, and the server never has all of them at once."""
    with connect(many.primary_admin_dsn, "test") as session:
        # Half as many would do; a server process may outlive its session for a moment.
        session.execute(f"ALTER ROLE pgvigil CONNECTION LIMIT {2 * AT_ONCE}".encode())
    try:
        lines = examine(load_fleet(), "demo")
    finally:
        with connect(many.primary_admin_dsn, "test") as session:
            session.execute("ALTER ROLE pgvigil CONNECTION LIMIT -1")

    of_databases = [line for line in lines if line.id == "drill.marks" or "backfill" in line.id]
    subjects = list(dict.fromkeys(line.subject for line in of_databases))
    assert [] == [line for line in of_databases if line.verdict is not Verdict.VERIFIED]
    assert ["demo", *(f"demo/{name} v" for name in MANY)] == subjects
    until(lambda: sessions(many) == 2 * len(MANY))


def statements(watch: Watch, databases: int) -> list[int]:
    """Count what the audit store is asked for the status and for a wave's plan over so many databases."""
    names = [f"db_{number}" for number in range(databases)]
    watch.write(*names)
    log = watch.sandbox.directory / "log" / "ops.log"
    counts = []
    for ask in (read_status, plan_wave):
        before = log.stat().st_size
        ask(load_fleet())
        counts.append(log.read_bytes()[before:].count(f"@{watch.log} ".encode()))
    return counts


def plan_wave(_: Fleet) -> None:
    report = conduct(WaveReport, "watch_fleet", PIPELINE, plan, known=Fleet.wave)
    assert report.verdict is Verdict.VERIFIED, report


def plan(run: Run) -> None:
    assert operation.plan(run, None).waiting


def test_the_audit_store_is_asked_as_often_for_many_as_for_one(watch: Watch) -> None:
    """The status of a fleet, and the plan of a wave over it, cost no statement more for a database more."""
    with connect(watch.sandbox.ops_admin_dsn, "test") as session:
        session.execute(
            sql.SQL("ALTER DATABASE {} SET log_statement = 'all'").format(sql.Identifier(watch.log))
        )
    statements(watch, 1)  # what is asked once in a process

    few, many = statements(watch, 1), statements(watch, 300)

    assert few == many
    assert all(few)
