"""Drills in a row while users write throughout: none tells a difference that is not there."""

import os
from collections.abc import Iterator

import pytest

from pgvigil.drill.report import DrillReport
from pgvigil.reports import Verdict
from pgvigil.sandbox import Sandbox, down, services
from pgvigil.sandbox import postgres as servers
from tests.fixtures.drill import Exercise
from tests.fixtures.drill_source import TRUST, Server, admin
from tests.fixtures.load import busy_writer
from tests.fixtures.reports import codes
from tests.fixtures.sandbox import reachable_directory, up

pytestmark = [pytest.mark.long, pytest.mark.rounds]

ROUNDS = int(os.environ.get("PGVIGIL_ROUNDS", "1"))
# wal_level, whether the policy names the standby, and the mark that follows from it.
KINDS = (
    ("replica", False, "fence"),
    ("replica", True, "standby"),
    ("logical", False, "slot"),
    ("logical", True, "standby"),
)


@pytest.fixture(scope="module")
def bank() -> Iterator[Exercise]:
    """A small cluster with a full backup, and a standby that follows."""
    directory = reachable_directory()
    try:
        box = up(directory / "bank", empty=True)
        exercise = Exercise(box)
        exercise.pgbackrest("--type=full", "backup")
        standby = _follow(box)
        exercise.policy(standby=standby.dsn("postgres"))
        yield exercise
        standby.control("stop", "-m", "immediate")
    finally:
        down(directory / "bank")
        directory.rmdir()


def _follow(box: Sandbox) -> Server:
    (box.data("primary") / "pg_hba.conf").write_text(TRUST + "local replication postgres trust\n")
    with admin(box) as session:
        session.execute("ALTER SYSTEM SET wal_keep_size = '2GB'")
        session.execute("ALTER ROLE pgvigil REPLICATION")
        session.execute("SELECT pg_reload_conf()")
    standby = Server(box, "standby")
    tool = box.postgres_bin / "pg_basebackup"
    words = ["-h", str(box.sockets), "-p", str(box.primary_port), "-U", "postgres", "-c", "fast", "-R"]
    services.run_tool(box.directory, [tool, *words, "-D", str(standby.data)], user=None)
    services.run_tool(box.directory, ["chown", "-R", box.server_user or "root", standby.data])
    standby.configure()
    standby.start()
    return standby


def _set_wal_level(exercise: Exercise, wal_level: str) -> None:
    if exercise.sql("SHOW wal_level") != [{"wal_level": wal_level}]:
        exercise.sql(f"ALTER SYSTEM SET wal_level = '{wal_level}'")
        Server(exercise.sandbox, "primary", exercise.sandbox.primary_port).control("stop", "-m", "fast")
        servers.start(exercise.sandbox, "primary")


def _drill(exercise: Exercise, wal_level: str, *, with_standby: bool) -> DrillReport:
    _set_wal_level(exercise, wal_level)
    if not with_standby:
        exercise.policy(standby=None)
    with busy_writer(exercise.sandbox, rate=60):
        return exercise.drill()


def test_drills_in_a_row_find_no_difference_while_users_write(
    bank: Exercise, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever wal_level is, with a standby and without, whichever target has its turn: all is equal."""
    for name, value in bank.sandbox.environment.items():
        monkeypatch.setenv(name, value)
    fleet = bank.sandbox.fleet_file.read_text()
    for turn in sorted(range(ROUNDS), key=lambda number: number % len(KINDS)):
        wal_level, with_standby, method = KINDS[turn % len(KINDS)]
        report = _drill(bank, wal_level, with_standby=with_standby)
        bank.sandbox.fleet_file.write_text(fleet)

        told = wal_level, with_standby, [f.message for f in report.findings]
        assert (Verdict.VERIFIED, set()) == (report.verdict, set(codes(report)) - {"rto-trend"}), told
        assert {method} == {e.mark.method for e in report.databases if e.mark and e.database == "shop"}
