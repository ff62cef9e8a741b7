"""Whether the process that left something behind is still there: pid and start time, within one boot."""

from __future__ import annotations

import os
from pathlib import Path


def process_stat(pid: int | str) -> tuple[str, int] | None:
    """Read a process's state letter and start time (clock ticks since boot), None if it cannot be seen."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = line.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def own_start() -> int | None:
    """Return this process's start time, None where /proc is hidden."""
    stat = process_stat("self")
    return stat[1] if stat else None


def pid_space() -> str:
    """Name the boot and the pid namespace in which this process's pid means something, '' if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def process_is_gone(pid: int, started: int | None) -> bool:
    """Tell whether a process of this pid space has ended; one that took over its pid is another."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's, and /proc may hide it
    stat = process_stat(pid)
    return stat is not None and (stat[0] in "ZX" or stat[1] != started)
