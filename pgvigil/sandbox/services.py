"""The sandbox's processes: short tools, lasting services, and finding and ending every one of them."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgvigil.errors import CommandNotFound, DeadlineExceeded, ToolFailed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAG = "PGVIGIL_SANDBOX"
TOOL_SECONDS = 300
_STOPS = (
    # signal, to PostgreSQL's processes only, seconds to obey
    (signal.SIGQUIT, True, 10),
    (signal.SIGTERM, False, 5),
    (signal.SIGKILL, False, 10),
)
_POLL_SECONDS = 0.05
_TAIL_BYTES = 4000
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")

# The shell says its own process id before it becomes the program; our reading ends when it has, because
# the program's output goes elsewhere. setsid --fork leaves it to init, so that no caller must reap it.
_ANNOUNCE = 'echo $$; exec "$@" >&2'


def run_tool(
    directory: Path,
    argv: Sequence[str | Path],
    *,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program of the sandbox to its end and return its output; ToolFailed has the end of it."""
    name = Path(argv[0]).name
    try:
        done: subprocess.CompletedProcess[bytes] = subprocess.run(
            [os.fspath(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TOOL_SECONDS,
            check=False,
            **_surroundings(directory, user, env),
        )
    except FileNotFoundError:
        raise _missing(argv[0]) from None
    except subprocess.TimeoutExpired as error:
        raise DeadlineExceeded(
            f"{name} did not end within {TOOL_SECONDS} s", tail=_last(error.output or b"")
        ) from None
    if done.returncode:
        raise ToolFailed(
            f"{name} ended with {done.returncode}, expected 0; it said: {_last(done.stdout)}",
            hint=f"the whole command: {' '.join(map(str, argv))}",
            exit_code=done.returncode,
        )
    return done.stdout.decode(errors="replace")


def start_service(  # noqa: PLR0913
    directory: Path,
    name: str,
    argv: Sequence[str | Path],
    *,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a program that outlives us, with its output in DIR/log/NAME.log, and return its process id.

    It leads its own session and holds no file of ours but `pass_fds`; `down` finds it and all its
    children by the sandbox's name in their environment.
    """
    with log_file(directory, name).open("ab") as log:
        announced = subprocess.run(
            ["setsid", "--fork", "sh", "-c", _ANNOUNCE, "sh", *(os.fspath(part) for part in argv)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=pass_fds,
            timeout=TOOL_SECONDS,
            check=True,
            **_surroundings(directory, user, env),
        )
    return int(announced.stdout)


def succeeds(argv: Sequence[str], user: str | None) -> bool:
    """Tell whether a program, run as this user, says yes."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd="/", **_identity(user)
    )
    return done.returncode == 0


def exists(user: str) -> bool:
    """Tell whether this host has such a user."""
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def invoking_user() -> str:
    """Return the name of the user we run as, by the kernel's word and not by the environment's."""
    return pwd.getpwuid(os.geteuid()).pw_name


def group_of(user: str) -> int:
    """Return the id of a user's own group."""
    return pwd.getpwnam(user).pw_gid


def log_file(directory: Path, name: str) -> Path:
    """Return where a service writes."""
    return directory / "log" / f"{name}.log"


def tail(file: Path) -> str:
    """Return the end of a log, for an error message; empty when there is none."""
    try:
        return _last(file.read_bytes())
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] not in {"Z", "X"}


def find(directory: Path, users: Sequence[str | None]) -> dict[int, bool]:
    """Return every process of the sandbox, and whether it is PostgreSQL's.

    A process is the sandbox's when it was started with the sandbox's name in its environment, or when it
    is a PostgreSQL process at home in the directory: PostgreSQL overwrites what the kernel shows of its
    environment. Each of `users` looks once: even root may see only its own where ptrace is forbidden.
    """
    found: dict[int, bool] = {}
    for user in users:
        found |= dict.fromkeys(_tagged(directory, user), False)
        found |= dict.fromkeys(_postgres(directory, user), True)
    found.pop(os.getpid(), None)
    return {pid: kind for pid, kind in found.items() if is_alive(pid)}


def stop(directory: Path, users: Sequence[str | None]) -> None:
    """End every process of the sandbox, PostgreSQL first and at once; raise ToolFailed if one survives."""
    for sent, only_postgres, seconds in _STOPS:
        deadline = time.monotonic() + seconds
        told: set[int] = set()
        while targets := _targets(directory, users, only_postgres=only_postgres):
            if time.monotonic() > deadline:
                break
            for pid in targets - told:
                _send(pid, sent)
            told |= targets
            time.sleep(_POLL_SECONDS)
    if left := find(directory, users):
        raise ToolFailed(
            f"processes of sandbox '{directory}' survive SIGKILL: {sorted(left)}",
            hint="look at them with ps, then run 'pgvigil sandbox down' again",
        )


def _targets(directory: Path, users: Sequence[str | None], *, only_postgres: bool) -> set[int]:
    return {pid for pid, is_postgres in find(directory, users).items() if is_postgres or not only_postgres}


def _send(pid: int, sent: signal.Signals) -> None:
    try:
        os.kill(pid, sent)
    except ProcessLookupError:
        return


def _tagged(directory: Path, user: str | None) -> list[int]:
    argv = ["grep", "-lszxF", "-e", f"{TAG}={directory}", *map(str, Path("/proc").glob("[0-9]*/environ"))]
    return [int(line.split(b"/")[2]) for line in _look(argv, user).splitlines()]


def _postgres(directory: Path, user: str | None) -> list[int]:
    links = [str(path / link) for path in Path("/proc").glob("[0-9]*") for link in ("cwd", "exe")]
    fields = _look(["find", *links, "-maxdepth", "0", "-printf", r"%p\0%l\0"], user).split(b"\0")
    target = dict(zip(fields[::2], fields[1::2], strict=False))
    home = os.fsencode(directory) + b"/"
    return [
        int(path.split(b"/")[2])
        for path, where in target.items()
        if path.endswith(b"/cwd")
        and where.startswith(home)
        and target.get(path[:-3] + b"exe", b"").removesuffix(b" (deleted)").endswith(b"/postgres")
    ]


def _look(argv: list[str], user: str | None) -> bytes:
    """Read what a search prints; processes that vanish under it, or forbid the look, are no error."""
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd="/", **_identity(user)
    )
    return done.stdout


def _surroundings(directory: Path, user: str | None, env: Mapping[str, str] | None) -> dict[str, Any]:
    return {
        "cwd": directory,
        "env": _environment(directory, user) | dict(env or {}),
        "start_new_session": True,
        **_identity(user),
    }


def _environment(directory: Path, user: str | None) -> dict[str, str]:
    """Give a program what it needs and nothing that a caller happened to have set for PostgreSQL or S3."""
    account = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return kept | {
        "HOME": account.pw_dir,
        "USER": account.pw_name,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "TMPDIR": str(directory / "tmp"),
        TAG: str(directory),
    }


def _identity(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": group_of(user), "extra_groups": []} if user else {}


def _missing(program: str | Path) -> CommandNotFound:
    return CommandNotFound(f"program '{program}' is not on this host", hint="install it, or add it to PATH")


def _last(output: bytes) -> str:
    return output[-_TAIL_BYTES:].decode(errors="replace").strip()
