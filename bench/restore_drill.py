"""A whole drill beside a plain restore of the same set with recovery to the same point, by hand.

DRILL_MB gives the sizes, "100,1000,4000" for all. `restore_drill` is the whole drill; `restore_drill_frame`
is the drill without hashing, amcheck and checksums, which plain restores do not have.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from measure import TURNS, Row, call

from pgvigil.drill import finish, marking, prepare, proving
from pgvigil.drill.choose import Wanted
from pgvigil.drill.report import DrillReport
from pgvigil.postgres import connect
from pgvigil.runs import Run, conduct
from pgvigil.sandbox import Sandbox, down, up

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTES = [int(word) for word in os.environ.get("DRILL_MB", "100").split(",")]
OTHER = "pgbackrest restore, start to a named point, stop, remove"
LARGE = 1000  # MB
PROOF = {"hash source", "hash copy", "prove"}


def compare() -> list[Row]:
    """Measure both sides in turn at each size."""
    return [row for size in MEGABYTES for row in _compare(size)]


def _compare(size: int) -> Iterator[Row]:
    with _sandbox() as box:
        _fill(box, size)
        if size < LARGE:
            _turn(box)  # warms what is small beside a large restore
        turns = [_turn(box) for _ in range(TURNS)]
    phases, whole, other = zip(*turns, strict=True)
    frame = [all_ - sum(own[name] for name in PROOF) for own, all_ in zip(phases, whole, strict=True)]
    medians = {name: statistics.median(own[name] for own in phases) for name in phases[0]}
    print(f"{size} MB: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in medians.items()))
    plain = statistics.median(other)
    for name, seconds in (("restore_drill", whole), ("restore_drill_frame", frame)):
        yield Row(
            name=name,
            size=f"{size} MB",
            ours=round(statistics.median(seconds), 2),
            other=round(plain, 2),
            other_is=OTHER,
            unit="s",
            runs=len(turns),
        )


def _turn(box: Sandbox) -> tuple[dict[str, float], float, float]:
    """Drill, then restore by hand to the point that the drill had made."""
    phases, whole, point = _drill()
    return phases, whole, _plain(box, point)


@contextmanager
def _sandbox() -> Iterator[Sandbox]:
    parent = Path(tempfile.mkdtemp(prefix="pgvigil-bench-", dir="/tmp"))
    parent.chmod(0o755)
    try:
        box = up(parent / "box", empty=True)
        os.environ.update(box.environment)
        yield box
    finally:
        down(parent / "box")
        shutil.rmtree(parent)


def _fill(box: Sandbox, size: int) -> None:
    """Fill shop with pgbench's tables, take a full, and write a little after it."""
    place = ["-h", box.sockets, "-p", str(box.primary_port), "-U", "postgres"]
    pgbench = [box.postgres_bin / "pgbench", *place]
    with _unarchived(box):
        call([*pgbench, "-i", "-q", "-s", str(max(1, size // 15)), "shop"], user=box.server_user)
    _pgbackrest(box, "--type=full", "--compress-type=lz4", "backup")
    call([*pgbench, "-n", "-t", "2000", "shop"], user=box.server_user)


@contextmanager
def _unarchived(box: Sandbox) -> Iterator[None]:
    """Archive nothing during the block: no backup that comes after it needs the WAL of it."""
    with connect(box.primary_admin_dsn, "bench") as session:
        session.execute("ALTER SYSTEM SET archive_command = 'true # instead of pgbackrest'")
        session.execute("SELECT pg_reload_conf()")
        yield
        session.execute("SELECT pg_switch_wal()")
        while session.execute("SELECT FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'").fetchone():
            time.sleep(0.1)
        session.execute("ALTER SYSTEM RESET archive_command")
        session.execute("SELECT pg_reload_conf()")


def _drill() -> tuple[dict[str, float], float, str]:
    """Drill once; return the seconds of each phase, of the whole, and the name of the point."""
    began = time.perf_counter()
    report = conduct(DrillReport, "restore_drill", "demo", _steps)
    whole = time.perf_counter() - began
    if report.verdict != "verified":
        raise SystemExit(f"a drill that proved nothing cannot be compared: {report.findings}")
    assert report.target is not None  # noqa: S101 - it is verified
    phases: dict[str, float] = defaultdict(float)
    for phase in report.phases:
        phases[phase.name] += phase.seconds
    return phases, whole, report.target.value


def _steps(run: Run) -> None:
    with prepare.hold(run, Wanted(recovery_target="name")) as drill:
        plan = prepare.plan(drill)
        with prepare.claim(drill, plan) as place:
            marked = marking.mark(drill, plan, on_progress=_nothing)
            copy = proving.restore(drill, plan, place, on_line=_nothing, on_progress=_nothing)
            assert copy is not None  # noqa: S101 - the repository is sound
            for halt in proving.halts(marked):
                with proving.recover(drill, plan, marked, copy, halt, on_progress=_nothing):
                    for database in halt.databases:
                        proving.compare_database(drill, copy, database, on_progress=_nothing)
                    proving.compare_cluster(drill, copy, halt)
                    if halt.is_last:
                        proving.promote(drill, copy)
                        files = proving.examine(drill, copy)
            proving.scan(drill, copy, files)
            finish.check_untouched(drill, plan, marked)
            finish.measure(drill, plan)


def _nothing(_: object) -> None:
    """Hear it and do nothing."""


def _plain(box: Sandbox, point: str) -> float:
    """Restore and recover by hand, and return the seconds."""
    began = time.perf_counter()
    place = Path(tempfile.mkdtemp(prefix="plain-", dir=box.directory))
    data = place / "data"
    data.mkdir(mode=0o700)
    for path in (place, data):
        box.give(path)
    target = ["--type=name", f"--target={point}", "--archive-mode=off"]
    _pgbackrest(box, f"--pg1-path={data}", *target, "restore")
    _start(box, place, data)
    pg_ctl = box.postgres_bin / "pg_ctl"
    call([pg_ctl, "-D", data, "-m", "fast", "-w", "stop"], user=box.server_user)
    shutil.rmtree(place)
    return time.perf_counter() - began


def _start(box: Sandbox, place: Path, data: Path) -> None:
    settings = {
        "archive_mode": "off",
        "listen_addresses": "",
        "unix_socket_directories": str(place),
        "port": "5432",
        "hba_file": str(box.give(_write(place / "hba", "local all all trust\n"))),
    }
    words = [f"-c {name}='{value}'" for name, value in settings.items()]
    pg_ctl = [
        box.postgres_bin / "pg_ctl",
        "-D",
        data,
        "-w",
        "-o",
        " ".join(words),
        "-l",
        place / "log",
        "start",
    ]
    call(pg_ctl, user=box.server_user)
    psql = [
        "psql",
        "-h",
        place,
        "-U",
        "postgres",
        "-Atc",
        "SELECT pg_get_wal_replay_pause_state()",
        "postgres",
    ]
    while subprocess.check_output(list(map(str, psql)), text=True).strip() != "paused":
        time.sleep(0.05)


def _write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def _pgbackrest(box: Sandbox, *words: str) -> None:
    argv = [
        "pgbackrest",
        f"--config={box.pgbackrest_conf}",
        "--stanza=demo",
        "--log-level-console=off",
        *words,
    ]
    call(argv, user=box.server_user)
