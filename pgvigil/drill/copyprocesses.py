"""The processes of a copy: found by the mark they were started with, or by living in its data directory."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from pgvigil.errors import ToolFailed
from pgvigil.liveness import process_stat
from pgvigil.processes import Command, marked_processes, run

MARK = "PGVIGIL_DRILL"
_QUICK_END = 10.0  # seconds that a postmaster gets for an orderly end
_HARD_END = 15.0  # seconds of SIGKILL after which a process is beyond us
_POLL = 0.05


def find(directory: Path, data: Path) -> set[int]:
    """Find every process of the copy in a directory, but never the asking one.

    PostgreSQL overwrites what the kernel shows of its environment, so its processes are known by
    program and working directory.
    """
    found = {*marked_processes(f"{MARK}={directory}"), *_servers(data)}
    return {pid for pid in found if _is_alive(pid)}


def _servers(data: Path) -> list[int]:
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                program = Path(entry.path, "exe").readlink().name
                place = Path(entry.path, "cwd").readlink()
            except OSError:
                continue  # ended meanwhile, or another user's
            if program.removesuffix(" (deleted)") == "postgres" and place.is_relative_to(data):
                found.append(int(entry.name))
    return found


def _is_alive(pid: int) -> bool:
    stat = process_stat(pid)
    return stat is not None and stat[0] not in "ZX"


def postmaster(data: Path) -> int | None:
    """Return the process id of the server that runs on a data directory, by its own file and the kernel."""
    lines = _pid_file(data)
    pid = int(lines[0]) if lines and lines[0].isdigit() else 0
    return pid if pid in _servers(data) else None


def _pid_file(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def end(directory: Path, data: Path) -> int:
    """End every process of the copy, its server in order if it can be; return how many there were.

    Raises ToolFailed when one survives SIGKILL. Idempotent.
    """
    count = len(find(directory, data))
    server = postmaster(data)
    if server:
        _send(server, signal.SIGINT)
        _wait_for_end(server)
    deadline = time.monotonic() + _HARD_END
    while left := find(directory, data):
        if time.monotonic() > deadline:
            raise ToolFailed(
                f"processes {sorted(left)} of the copy in '{directory}' survive SIGKILL",
                hint="they belong to another user or hang in the kernel: run the reaper as root",
            )
        for pid in left:
            _send(pid, signal.SIGKILL)
        time.sleep(_POLL)
    return count


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + _QUICK_END
    while _is_alive(pid) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def release_memory(data: Path) -> None:
    """Remove the shared memory that a killed server left in the kernel.

    Only the segment whose key and id its own postmaster.pid records and to which nobody is attached.
    """
    lines = _pid_file(data)
    segment = tuple(lines[6].split()) if len(lines) > 6 else ()
    if segment and segment in _idle_segments():
        run(Command(argv=("ipcrm", "-m", segment[1])))


def _idle_segments() -> set[tuple[str, str]]:
    table = Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()[1:]
    return {(row[0], row[1]) for row in map(str.split, table) if row[6] == "0"}
