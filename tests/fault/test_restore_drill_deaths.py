"""Killed at any step: the next drill takes over what was left, and nothing stays behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from pgvigil.audit import list_runs
from pgvigil.drill.copyprocesses import find
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from tests.fixtures.drill import Exercise

# Each drill dies at the next of these places.
PLACES = ("claimed", "marked", "restoring", "restored", "replaying", "stopped", "promoted", "examined")

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
    after_mark=die("marked"),
    on_restore=die("restoring"),
    after_restore=die("restored"),
    on_replay=die("replaying"),
    at_stop=die("stopped"),
    after_promote=die("promoted"),
    after_examine=die("examined"),
)
exercise.drill(recovery_target="name")
"""


def test_a_drill_killed_anywhere_is_cleaned_up_by_the_next(exercise: Exercise) -> None:
    """Eight drills die in a row, each one step later; every next one removes what its predecessor left."""
    box = exercise.sandbox
    before = sorted(exercise.pgbackrest("repo-ls", "--recurse", "backup").splitlines())
    for place in PLACES:
        words = [sys.executable, "-c", DRILL, str(box.directory), place]
        died = subprocess.run(words, check=False, capture_output=True, timeout=300)
        assert -signal.SIGKILL == died.returncode, (place, died.stderr.decode()[-2000:])

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


def left_behind(directory: Path) -> list[int]:
    """Find servers of copies that still run."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory / "drill") in words:
            found.append(int(entry.name))
    return found
