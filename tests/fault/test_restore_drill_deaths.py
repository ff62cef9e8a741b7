"""Killed at any step: the next drill takes over what was left, and nothing stays behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgvigil.audit import list_runs
from pgvigil.drill.copyprocesses import find
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from tests.fixtures.drill import Exercise
from tests.fixtures.load import ROUNDS

pytestmark = [pytest.mark.long, pytest.mark.rounds]

# Each drill dies at the next of these places, between two phases or in the middle of one; with few rounds
# at three of them: on the source, on the recovered copy, and beside a tool on the running copy.
ALL_PLACES = (
    "claimed",
    "hashing",
    "marked",
    "restoring",
    "restored",
    "stopped",
    "comparing",
    "promoted",
    "pg_amcheck",
    "examined",
)
PLACES = ALL_PLACES if len(ALL_PLACES) <= ROUNDS else ("hashing", "stopped", "pg_amcheck")

DRILL = """
import os, signal, sys
from pathlib import Path
from pgvigil.drill import scratch
from pgvigil.sandbox import Sandbox
from tests.fixtures.drill import Exercise

place = sys.argv[2]

def die(at):
    def kill(*_):
        if at == place:
            os.kill(os.getpid(), signal.SIGKILL)
    return kill

exercise = Exercise(
    Sandbox.load(Path(sys.argv[1])),
    after_claim=die("claimed"),
    on_source=die("hashing"),
    after_mark=die("marked"),
    on_restore=die("restoring"),
    after_restore=die("restored"),
    at_stop=die("stopped"),
    on_copy=die("comparing"),
    after_promote=die("promoted"),
    after_examine=die("examined"),
)
exercise.drill(recovery_target="name")
"""


def test_a_drill_killed_anywhere_is_cleaned_up_by_the_next(exercise: Exercise) -> None:
    """Drills die in a row, each one step later; every next one removes what its predecessor left."""
    box = exercise.sandbox
    before = sorted(exercise.pgbackrest("repo-ls", "--recurse", "backup").splitlines())
    for place in PLACES:
        words = [sys.executable, "-c", DRILL, str(box.directory), place]
        with subprocess.Popen(words, stderr=subprocess.PIPE) as dying:
            kill_beside(dying, place, box.directory)
            _, said = dying.communicate(timeout=300)
        assert -signal.SIGKILL == dying.returncode, (place, said.decode()[-2000:])

    report = exercise.drill(recovery_target="name")

    assert Verdict.VERIFIED is report.verdict
    assert {"drill-leftover", "run-lost"} == {finding.code for finding in report.findings}
    assert [] == list((box.directory / "drill").iterdir())
    assert set() == find(box.directory / "drill", box.directory / "drill")
    assert [] == exercise.sql("SELECT slot_name FROM pg_replication_slots")
    assert [] == exercise.sql(
        "SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory'"
        " AND application_name LIKE 'pgvigil restore_drill%'"
    )
    assert before == sorted(exercise.pgbackrest("repo-ls", "--recurse", "backup").splitlines())
    with connect(box.ops_admin_dsn, "test") as session:
        states = [run.state for run in list_runs(session)][: len(PLACES) + 1]
    assert ["ended", *["lost"] * len(PLACES)] == states
    assert [] == left_behind(box.directory)


def kill_beside(dying: subprocess.Popen[bytes], program: str, directory: Path) -> None:
    """Kill a drill while a program of this name works on its copy."""
    while program.startswith("pg_") and dying.poll() is None:
        if any(os.fsencode(program) in words for words in left_behind(directory)):
            dying.kill()
        time.sleep(0.01)


def command_lines() -> Iterator[bytes]:
    """Yield what every process was started with."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (entry / "cmdline").read_bytes()


def left_behind(directory: Path) -> list[bytes]:
    """Find servers of copies that still run."""
    return [words for words in command_lines() if os.fsencode(directory / "drill") in words]
