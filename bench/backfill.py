"""run_backfill beside one UPDATE and beside the loop over ctid that people write: rate, growth, WAL, latency.

`gentle` is one worker whose batches take a tenth of their usual time: fewer users meet a row of theirs.
BACKFILL_ROWS (a list of millions, default "1") says how large; each side runs alone, then under pgbench on
the same table. From LARGE million rows on each side runs once, and the loop, whose time grows with the square
of the table, not at all: its ratio at a million is the least that it would be there.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from measure import TURNS, Row, call

from pgvigil.backfill import operation, proof
from pgvigil.backfill.facts import BackfillReport
from pgvigil.postgres import connect
from pgvigil.runs import Run, conduct
from pgvigil.sandbox import Sandbox, down, up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from pgvigil.postgres import Connection

MILLIONS = [float(word) for word in os.environ.get("BACKFILL_ROWS", "1").split()]
CHANGE = "SET cents = (amount * 100)::bigint"
GENTLE = {"target": "10ms"}
QUIET_SECONDS, RATE, CLIENTS = 10, 200, 2
LARGE = 5
SCRIPT = "\\set id random(1, {rows})\nUPDATE public.p SET paid = paid + 1 WHERE id = :id;\n"


@dataclass(frozen=True)
class Measured:
    """One side once: seconds, bytes, and what pgbench's users felt, in milliseconds."""

    seconds: float
    growth: float
    wal: float
    p99: float = 0.0
    longest: float = 0.0


def compare() -> list[Row]:
    """Measure every size; our own side with one and two workers."""
    with _sandbox() as box:
        return [row for millions in MILLIONS for row in _rows(box, int(millions * 1_000_000))]


def _rows(box: Sandbox, rows: int) -> Iterator[Row]:
    is_large = rows >= LARGE * 1_000_000
    runs = 1 if is_large else TURNS
    sides: dict[str, Callable[[], None]] = {
        "ours": lambda: _ours(box, 1),
        "ours2": lambda: _ours(box, 2),
        "gentle": lambda: _ours(box, 1, GENTLE),
        "one UPDATE": lambda: _update(box),
    }
    if not is_large:
        sides["a loop over ctid"] = lambda: _loop(box)
    _fill(box, rows)
    alone, beside = _in_turn(box, rows, sides, runs), _in_turn(box, rows, sides, runs, users=True)
    quiet = _in_turn(box, rows, {"": _rest}, runs, users=True)[""]
    size = f"{rows / 1e6:g} million rows"
    for other, word in (("one UPDATE", "update"), ("a loop over ctid", "loop")):
        if other not in sides:
            continue
        a, b, c = alone["ours"], alone["ours2"], alone[other]
        yield Row(f"backfill_{word}", size, a.seconds, c.seconds, other, "s", runs)
        yield Row(f"backfill_{word}_two_workers", size, b.seconds, c.seconds, other, "s", runs)
        yield Row(f"backfill_{word}_growth", size, a.growth, c.growth, other, "% of the table", runs)
        yield Row(f"backfill_{word}_wal", size, a.wal, c.wal, other, "MB", runs)
        yield Row(f"backfill_{word}_p99", size, beside["ours"].p99, beside[other].p99, other, "ms", runs)
        longest = beside["ours"].longest, beside[other].longest
        yield Row(f"backfill_{word}_longest", size, *longest, other, "ms", runs)
    whole, gentle = alone["one UPDATE"].seconds, alone["gentle"].seconds
    yield Row("backfill_gentle_update", size, gentle, whole, "one UPDATE", "s", runs)
    for name, side in (("backfill", beside["ours"]), ("backfill_gentle", beside["gentle"])):
        yield Row(f"{name}_quiet_p99", size, side.p99, quiet.p99, "no backfill at all", "ms", runs)
        yield Row(
            f"{name}_quiet_longest", size, side.longest, quiet.longest, "no backfill at all", "ms", runs
        )


def _in_turn(
    box: Sandbox, rows: int, sides: Mapping[str, Callable[[], None]], runs: int, *, users: bool = False
) -> dict[str, Measured]:
    """Run the sides one after the other, so many times, and give each side's medians."""
    turns = [[_measure(box, rows, side, users=users) for side in sides.values()] for _ in range(runs)]
    return dict(zip(sides, map(_median, zip(*turns, strict=True)), strict=True))


def _rest() -> None:
    time.sleep(QUIET_SECONDS)


def _median(runs: Sequence[Measured]) -> Measured:
    values = zip(*((m.seconds, m.growth, m.wal, m.p99, m.longest) for m in runs), strict=True)
    return Measured(*(max(0.001, round(statistics.median(each), 3)) for each in values))


def _measure(box: Sandbox, rows: int, side: Callable[[], None], *, users: bool = False) -> Measured:
    """Run one side on a fresh table, with users beside it or not."""
    _renew(box)
    with _admin(box) as session:
        size, lsn = _look(session)
        with _users(box, rows, wanted=users) as latencies:
            began = time.perf_counter()
            side()
            seconds = time.perf_counter() - began
        after, end = _look(session)
        (row,) = session.execute("SELECT count(*) AS n FROM p WHERE cents IS DISTINCT FROM amount * 100")
    if row["n"] and side is not _rest:
        sys.exit(f"{row['n']} rows were not changed")
    ordered = sorted(latencies) or [0.0]
    return Measured(
        seconds, 100 * (after / size - 1), (end - lsn) / 2**20, ordered[int(len(ordered) * 0.99)], ordered[-1]
    )


def _fill(box: Sandbox, rows: int) -> None:
    """Make the table; `_renew` copies its database for each turn."""
    with _admin(box) as session:
        session.execute("DROP TABLE IF EXISTS p")
        session.execute("TRUNCATE pgvigil.backfill CASCADE")
        session.execute(
            "CREATE TABLE p (id bigint PRIMARY KEY, account bigint NOT NULL, amount numeric(12, 2) NOT NULL,"
            " paid int NOT NULL DEFAULT 0, note text NOT NULL, cents bigint)"
        )
        some = f"FROM generate_series(1, {rows}) AS n"
        session.execute(
            f"INSERT INTO p SELECT n, n % 1000, n / 100.0, 0, 'payment number ' || n {some}".encode()
        )
        session.execute("CREATE INDEX ON p (account)")
        session.execute("ALTER TABLE p OWNER TO shop")
        session.execute("VACUUM ANALYZE p")
    with _admin(box, "postgres") as session:
        session.execute("DROP DATABASE IF EXISTS filled")
        session.execute("ALTER DATABASE shop RENAME TO filled")


def _renew(box: Sandbox) -> None:
    with _admin(box, "postgres") as session:
        session.execute("DROP DATABASE IF EXISTS shop")
        session.execute("CREATE DATABASE shop TEMPLATE filled STRATEGY file_copy")
        session.execute("CHECKPOINT")


def _look(session: Connection) -> tuple[float, float]:
    (row,) = session.execute(
        "SELECT pg_total_relation_size('p') AS size, pg_current_wal_lsn() - '0/0'::pg_lsn AS lsn"
    )
    return float(row["size"]), float(row["lsn"])


@contextmanager
def _users(box: Sandbox, rows: int, *, wanted: bool) -> Iterator[list[float]]:
    """Let pgbench update single rows at a fixed rate, and give its latencies in milliseconds at the end."""
    latencies: list[float] = []
    if not wanted:
        yield latencies
        return
    with tempfile.TemporaryDirectory(prefix="pgvigil-bench-", dir="/tmp") as place:
        script = Path(place) / "script"
        script.write_text(SCRIPT.format(rows=rows), encoding="utf-8")
        stop = threading.Event()
        thread = threading.Thread(target=_bench, args=(box, Path(place), script, stop))
        thread.start()
        time.sleep(1)
        yield latencies
        stop.set()
        thread.join()
        for log in Path(place).glob("log.*"):
            lines = log.read_text(encoding="utf-8").splitlines()
            latencies += [float(line.split()[2]) / 1000 for line in lines]


def _bench(box: Sandbox, place: Path, script: Path, stop: threading.Event) -> None:
    """Run pgbench in short pieces until it is told to stop."""
    options = ["-n", "-c", str(CLIENTS), "-R", str(RATE), "-T", "3", "-l"]
    while not stop.is_set():
        prefix = f"--log-prefix={place / 'log'}"
        words = [box.postgres_bin / "pgbench", *options, prefix, "-f", script, box.dsn("shop", "shop")]
        call(words, box.environment)


def _ours(box: Sandbox, workers: int, batch: Mapping[str, str] | None = None) -> None:
    fleet = yaml.safe_load(box.fleet_file.read_text(encoding="utf-8"))
    policy = {
        "table": "public.p",
        "set": {"cents": "(amount * 100)::bigint"},
        "where": "cents IS NULL",
        "workers": workers,
        "batch": batch or {},
        "limits": {"archive_files": 100_000},
    }
    fleet["clusters"]["demo"]["databases"]["shop"]["backfills"] = {"bench": policy}
    box.fleet_file.write_text(yaml.safe_dump(fleet), encoding="utf-8")
    os.environ.update(box.environment)
    report = conduct(BackfillReport, "run_backfill", "demo/shop", _steps)
    if report.verdict != "verified":
        sys.exit(f"a backfill that was not proven cannot be compared: {report.findings} {report.checks}")


def _steps(run: Run) -> None:
    """Do what flows/run_backfill.py does, without Prefect, which the other side has not either."""
    work = operation.open_backfill(run, "bench")
    operation.look(work)
    with operation.hold(work) as move:
        while operation.next_pass(move):
            while operation.walk(move, lambda _: None):
                pass
            operation.count(move)
        proof.conclude(move)


def _update(box: Sandbox) -> None:
    with _admin(box) as session:
        session.execute(f"UPDATE p {CHANGE} WHERE cents IS NULL".encode())


def _loop(box: Sandbox) -> None:
    """Do what people write: take any rows that are left, until there are none."""
    statement = f"UPDATE p {CHANGE} WHERE ctid IN (SELECT ctid FROM p WHERE cents IS NULL LIMIT 10000)"  # noqa: S608 - our own
    with _admin(box) as session:
        while session.execute(statement.encode()).rowcount:
            pass


@contextmanager
def _admin(box: Sandbox, database: str = "shop") -> Iterator[Connection]:
    with connect(box.admin_dsn(box.primary_port, database), "bench") as session:
        session.execute("SET search_path = public")
        session.execute("SET statement_timeout = 0")
        session.execute("SET lock_timeout = 0")
        yield session


@contextmanager
def _sandbox() -> Iterator[Sandbox]:
    """Start a sandbox that archives for nothing, so that all sides are spared the same."""
    parent = Path(tempfile.mkdtemp(prefix="pgvigil-bench-", dir="/tmp"))
    parent.chmod(0o755)
    try:
        box = up(parent / "box", empty=True)
        with _admin(box) as session:
            session.execute("ALTER SYSTEM SET archive_command = '/bin/true'")
            session.execute("ALTER SYSTEM SET max_wal_size = '4GB'")
            session.execute("SELECT pg_reload_conf()")
            session.execute("GRANT ALL ON SCHEMA public TO shop")
        yield box
    finally:
        down(parent / "box")
        shutil.rmtree(parent)
