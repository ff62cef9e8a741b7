"""A fleet of many databases: what status, doctor and planning take as it grows, on real servers.

FLEET_SIZES names the numbers of databases. They are copies of one template on one server, each with a
partitioned table and a backfill; the audit log has AUDIT_EVENTS events about them. Each command is a process
of its own, as a person or a scheduler starts it; what it takes to start alone stands beside it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Self

import yaml
from measure import PGVIGIL, TURNS, Row, call

from deployments.server import start_in
from pgvigil.postgres import connect
from pgvigil.sandbox import Sandbox, down, up
from pgvigil.sandbox.lifecycle import TARGET

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

SIZES = [int(word) for word in os.environ.get("FLEET_SIZES", "10,100,500").split(",")]
EVENTS = int(os.environ.get("AUDIT_EVENTS", "100000"))
EMPTY = "the same program, asked for its help"
EACH = "one for each database"
BY_HAND = "psql -c 'SELECT 1' in one database after the other"
WAVE = """
from pgvigil.fleet import Fleet
from pgvigil.runs import conduct
from pgvigil.waves import operation
from pgvigil.waves.report import WaveReport
def plan(run):
    assert len(operation.plan(run, None).selection.members) == {size}
report = conduct(WaveReport, "watch_fleet", "roll-partitions", plan, known=Fleet.wave)
assert report.verdict == "verified", report
"""
TABLES = """
CREATE TABLE public.events (id bigint, at timestamptz NOT NULL) PARTITION BY RANGE (at);
CREATE TABLE public.payments (id bigint PRIMARY KEY, amount numeric, cents bigint);
INSERT INTO public.payments SELECT n, n FROM generate_series(1, 100) AS n;
ALTER TABLE public.events OWNER TO shop;
ALTER TABLE public.payments OWNER TO shop;
"""
HISTORY = """
SELECT count(pgvigil.append(jsonb_build_object(
    'event_id', gen_random_uuid(), 'run_id', md5('run' || n / 4)::uuid, 'flow', 'roll_partitions',
    'kind', (ARRAY['run_started', 'intent', 'outcome', 'run_ended'])[n % 4 + 1], 'step', 'roll',
    'subject', 'demo/scale_' || lpad((n / 4 % {size})::text, 3, '0'),
    'actor', 'bench', 'host', 'bench', 'pid', 1,
    'detail', CASE WHEN n % 4 = 3 THEN jsonb_build_object(
        'verdict', 'verified', 'digest', 'x', 'headline', 'all is well',
        'proofs', '[{{"name": "partitions public.events", "verdict": "verified"}}]'::jsonb)
        ELSE '{{}}' END)))
  FROM generate_series(0, {events} - 1) AS n
"""


@dataclass(frozen=True)
class Spent:
    """What one run of a command took: seconds, MB at its peak, sessions in all and at once."""

    seconds: float
    memory: float
    sessions: int
    at_once: int


def compare() -> list[Row]:
    """Measure every command at each size."""
    place = Path(tempfile.mkdtemp(prefix="pgvigil-bench-", dir="/tmp"))
    place.chmod(0o755)
    try:
        box = up(place / "box", empty=True)
        _start_prefect(box)
        _make_template(box)
        made = 0
        rows: list[Row] = []
        for size in SIZES:
            _copy(box, made, size)
            made = size
            _write(box, size)
            _remember(box, size)
            rows += _measure(box, size)
        return rows
    finally:
        down(place / "box")
        shutil.rmtree(place)


def _start_prefect(box: Sandbox) -> None:
    """Start a server and no worker, so that no run of a schedule comes in between."""
    server = start_in(box)
    box.export({"PREFECT_API_URL": server.url, "PREFECT_HOME": str(box.directory / "prefect")})
    server.await_ready()


def _make_template(box: Sandbox) -> None:
    with connect(box.primary_admin_dsn, "bench") as session:
        session.execute("CREATE DATABASE scale TEMPLATE template1")
    with connect(box.admin_dsn(box.primary_port, "scale"), "bench") as session:
        session.execute(TARGET.read_bytes())
        session.execute(TABLES.encode())


def _copy(box: Sandbox, first: int, size: int) -> None:
    with connect(box.primary_admin_dsn, "bench") as session:
        for number in range(first, size):
            # By files, or each copy would be in the WAL, and in the archive.
            session.execute(f"CREATE DATABASE scale_{number:03} TEMPLATE scale STRATEGY file_copy".encode())


def _write(box: Sandbox, size: int) -> None:
    fleet = yaml.safe_load(box.fleet_file.read_text())
    policy = {"table": "public.events", "key": "at", "every": "1 month", "archive": "s3://archive/scale"}
    backfill = {
        "table": "public.payments",
        "set": {"cents": "(amount * 100)::bigint"},
        "where": "cents IS NULL",
    }
    database = {"partitions": [policy], "backfills": {"cents": backfill}}
    text = yaml.safe_dump(database)
    fleet["clusters"]["demo"]["databases"] = {
        f"scale_{number:03}": yaml.safe_load(text) for number in range(size)
    }
    box.fleet_file.write_text(yaml.safe_dump(fleet))


def _remember(box: Sandbox, size: int) -> None:
    """Give the audit log its events, spread over the databases there are; before that it is emptied."""
    with connect(box.ops_admin_dsn, "bench") as session:
        session.execute("SET statement_timeout = 0")
        session.execute("ALTER TABLE pgvigil.audit_log DISABLE TRIGGER append_only")
        session.execute("TRUNCATE pgvigil.audit_log")
        session.execute("ALTER TABLE pgvigil.audit_log ENABLE ALWAYS TRIGGER append_only")
        session.execute(HISTORY.format(size=size, events=EVENTS).encode())
        session.execute("VACUUM ANALYZE pgvigil.audit_log")


def _measure(box: Sandbox, size: int) -> list[Row]:
    call([PGVIGIL, "deploy"], box.environment)  # a dry run compares with what is there
    start = _typical(box, [PGVIGIL, "--help"])
    wave = [sys.executable, "-c", WAVE.format(size=size)]
    rows: list[Row] = []
    for name, argv in (
        ("status", [PGVIGIL, "status", "--json"]),
        ("check", [PGVIGIL, "fleet", "check"]),
        ("deploy", [PGVIGIL, "deploy", "--dry-run"]),
        ("wave", wave),
        ("doctor", [PGVIGIL, "doctor", "--json"]),
    ):
        spent = _typical(box, argv)
        row = partial(Row, size=f"{size} databases", runs=TURNS)
        other, other_is = (_by_hand(box, size), BY_HAND) if name == "doctor" else (start.seconds, EMPTY)
        rows.append(row(f"fleet_{name}", ours=spent.seconds, other=other, other_is=other_is, unit="s"))
        rows.append(
            row(f"fleet_{name}_memory", ours=spent.memory, other=start.memory, other_is=EMPTY, unit="MB")
        )
        if spent.sessions:
            for kind, count in (("sessions", spent.sessions), ("at_once", spent.at_once)):
                rows.append(
                    row(f"fleet_{name}_{kind}", ours=count, other=size, other_is=EACH, unit="sessions")
                )
    return rows


def _typical(box: Sandbox, argv: Sequence[str | Path]) -> Spent:
    """Run a command once to warm up, then as often as asked; medians, and of sessions the most."""
    turns = [_spend(box, argv) for _ in range(TURNS + 1)][1:]
    return Spent(
        round(median(each.seconds for each in turns), 3),
        round(median(each.memory for each in turns), 1),
        max(each.sessions for each in turns),
        max(each.at_once for each in turns),
    )


def _spend(box: Sandbox, argv: Sequence[str | Path]) -> Spent:
    with Watcher(box) as watcher:
        began = perf_counter()
        with subprocess.Popen(
            [str(word) for word in argv],
            env={**os.environ, **box.environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
        ) as process:
            watcher.follow(process.pid)
            _, said = process.communicate()
        seconds = perf_counter() - began
    if process.returncode not in {0, 1, 2} or b"Traceback" in said:
        sys.exit(f"{argv} ended with {process.returncode}: {said.decode()}")
    return Spent(seconds, watcher.memory, watcher.sessions, watcher.at_once)


class Watcher:
    """Looks at a process and at the sessions of both servers while it runs."""

    def __init__(self, box: Sandbox) -> None:
        self.servers = [box.primary_admin_dsn, box.ops_admin_dsn]
        self.memory = 0.0
        self.sessions = self.at_once = 0
        self._stack = ExitStack()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._looks = [self._stack.enter_context(connect(dsn, "bench watcher")) for dsn in self.servers]
        self.sessions = -self._ask(ALL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        while self._ask(NOW):
            time.sleep(0.05)
        self.sessions += self._ask(ALL)
        self._stack.close()

    def follow(self, pid: int) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._look, args=(pid,))
        self._thread.start()

    def _look(self, pid: int) -> None:
        while not self._over.wait(0.02):
            found = re.search(r"VmHWM:\s+(\d+)", _status(pid))
            self.memory = max(self.memory, int(found[1]) / 1024 if found else 0)
            self.at_once = max(self.at_once, self._ask(NOW))

    def _ask(self, query: str) -> int:
        return sum(int(row["n"] or 0) for look in self._looks for row in look.execute(query.encode()))


ALL = "SELECT sum(sessions)::int AS n FROM pg_stat_database WHERE datname <> 'prefect'"
NOW = "SELECT count(*)::int AS n FROM pg_stat_activity WHERE usename = 'pgvigil'"


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _by_hand(box: Sandbox, size: int) -> float:
    """Ask each database one thing, as a loop in a shell does."""
    script = (
        f'for n in $(seq -f %03g 0 {size - 1}); do "$PSQL" -qXAtc "SELECT 1" "${{DSN}}_$n" >/dev/null; done'
    )
    env = {**box.environment, "PSQL": str(box.postgres_bin / "psql"), "DSN": box.dsn("scale")}
    turns = []
    for _ in range(TURNS):
        began = perf_counter()
        call(["bash", "-e", "-c", script], env)
        turns.append(perf_counter() - began)
    return round(median(turns), 3)
