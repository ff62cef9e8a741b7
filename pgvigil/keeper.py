"""The process that stands between pgvigil and a tool, so that no tool outlives the run that started it.

It runs as a script of its own (`python -I -S keeper.py`) and needs the standard library only, and little
of it: every call of a tool pays for its imports. Standard input is a socket to the run: first comes the
order, then its end is the signal that the run is gone, however it went: returned, cancelled, or killed
with SIGKILL.

Why this holds where simpler constructions fail:
- own session: a signal to the run's process group (cancel in the Prefect UI) does not take the keeper
  down before the tool;
- child subreaper: whatever the tool leaves behind, in whatever session, becomes a child of the keeper,
  so the tree can be ended to the last process and its end can be seen (wait says: no child left);
- death signal on the tool: if the keeper itself is killed, the kernel ends the tool;
- a run that is killed with words of the keeper unread resets the socket: that is its end as well, and
  whatever else befalls the keeper, it ends the tree before it goes;
- the last word ("exit" or "signal") is sent only when no process is left, so an exit code can never be
  read of a tool that is still at work.
"""

from __future__ import annotations

import ctypes
import grp
import marshal
import os
import pwd
import select
import signal
import sys
import time
import warnings  # noqa: F401 - execvpe imports it, where the tool's user may not read the library

TYPE_CHECKING = False  # not from typing, which costs more than the rest
if TYPE_CHECKING:
    from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TICK = 0.5  # seconds between looks at the run's pid
LOOK = 2.0  # seconds between looks at the tool's activity
LINGER = 2.0  # seconds that the tool's own children get to end by themselves after it
GIVE_UP = 15.0  # seconds of SIGKILL after which a process is beyond us (another user's, or stuck in a disk)


def main() -> None:
    """Obey one order, then report how it ended on the socket."""
    link = os.dup(0)
    order = _read_order(link)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _note)
    keeper = _Keeper(link, wake, order)
    keeper.start(libc)
    keeper.watch()


_noted: set[int] = set()


def _note(number: int, _frame: object) -> None:
    _noted.add(number)


class _Keeper:
    def __init__(self, link: int, wake: int, order: dict[str, Any]) -> None:
        self.link = link
        self.wake = wake
        self.order = order
        self.run_pid = os.getppid()
        self.tool = 0
        self.tool_stdin = -1
        self.status: int | None = None
        self.leftovers: list[int] = []
        self.activity = -1
        self.next_look = time.monotonic() + LOOK

    def start(self, libc: Any) -> None:
        """Fork and execute the tool; a failure before exec is told to the run and ends the keeper."""
        failed_read, failed_write = os.pipe()  # closed by a successful exec
        child_stdin, self.tool_stdin = os.pipe()
        keeper = os.getpid()
        self.tool = os.fork()
        if self.tool == 0:
            try:
                os.setsid()
                if not self.order["lifeline"]:
                    child_stdin = os.open(os.devnull, os.O_RDONLY)
                os.dup2(child_stdin, 0)
                _restore_signals()
                _become(self.order["user"], self.order["env"])
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                if os.getppid() != keeper:
                    os._exit(1)
                os.execvpe(self.order["argv"][0], self.order["argv"], self.order["env"])  # noqa: S606
            except BaseException as error:
                os.write(failed_write, _reason(error, self.order).encode(errors="replace"))
                os._exit(127)
        os.close(failed_write)
        os.close(child_stdin)
        failure = os.read(failed_read, 4096).decode(errors="replace")
        os.close(failed_read)
        self._let_go_of_output()
        if failure:
            os.waitpid(self.tool, 0)
            self._say({"failed": failure})
            sys.exit(0)
        self._say({"pid": self.tool})

    def _let_go_of_output(self) -> None:
        # The run sees the end of the tool's output only when nobody else holds the pipes.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)

    def watch(self) -> None:
        """Wait for the tool's end or the run's, whichever comes first, and leave nothing alive."""
        try:
            reason = self._attend()
        except Exception as error:  # whatever it was: a keeper that dies of it would leave the tree alive
            reason = f"keeper failed: {error!r}"
        if reason is None:
            self._let_children_end()
        alive = self._end_tree(self.order["grace"])
        self._say({**self._how(), "reason": reason, "leftovers": self.leftovers, "alive": alive})

    def _attend(self) -> str | None:
        """Return why the tool must be ended, or None once it has ended by itself."""
        reason = None
        while self.status is None and reason is None:
            reason = self._wait()
            self._reap()
            self._tell_activity()
        return reason

    def _wait(self) -> str | None:
        """Sleep up to one tick; return why the tool must be ended, if it must."""
        watched: list[Any] = [self.link, self.wake]
        ready, _, _ = select.select(watched, [], [], TICK)
        if self.wake in ready:
            _drain(self.wake)
        if self.link in ready:
            return "asked" if self._is_asked() else "run gone"
        if _noted & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            return "keeper stopped"
        # A forked sibling of the run may hold its end of the socket, so the run's death is also read here.
        return "run gone" if os.getppid() != self.run_pid else None

    def _is_asked(self) -> bool:
        """Tell a word of the run from its end, which is an error where it left words of ours unread."""
        try:
            return bool(os.read(self.link, 64))
        except ConnectionError:
            return False

    def _tell_activity(self) -> None:
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + LOOK
        seen = _activity(_descendants(os.getpid()))
        if seen != self.activity:
            self.activity = seen
            self._say({"activity": seen})

    def _reap(self) -> bool:
        """Collect every ended child; return whether children are left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.tool:
                self.status = status

    def _let_children_end(self) -> None:
        deadline = time.monotonic() + LINGER
        while self._reap():
            if time.monotonic() > deadline:
                self.leftovers = _descendants(os.getpid())
                return
            select.select([self.wake], [], [], 0.05)
            _drain(self.wake)

    def _end_tree(self, grace: float) -> list[int]:
        """Ask politely once, then kill until no child is left; return what even that did not end."""
        if not self._reap():
            return []
        os.close(self.tool_stdin)  # a remote wrapper ends its tool when this closes
        self._ask()
        deadline = time.monotonic() + grace
        while self._reap():
            if self.status is not None and self.order["ask"] == "SIGINT":
                deadline = min(deadline, time.monotonic() + LINGER)
            late = time.monotonic() - deadline
            if late > GIVE_UP:
                return _descendants(os.getpid())
            if late >= 0:
                _send(signal.SIGKILL)
            select.select([self.wake], [], [], 0.05)
            _drain(self.wake)
        return []

    def _ask(self) -> None:
        if self.order["ask"] == "SIGTERM":
            _send(signal.SIGTERM, self.tool)
        elif self.status is None:
            os.kill(self.tool, signal.SIGINT)

    def _how(self) -> dict[str, int]:
        if self.status is None:
            return {"signal": signal.SIGKILL}
        if os.WIFSIGNALED(self.status):
            return {"signal": os.WTERMSIG(self.status)}
        return {"exit": os.WEXITSTATUS(self.status)}

    def _say(self, word: dict[str, Any]) -> None:
        try:
            os.write(self.link, repr(word).encode() + b"\n")
        except OSError:
            return  # the run is gone, which is dealt with where it is read


def _restore_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def _reason(error: BaseException, order: dict[str, Any]) -> str:
    """Say in words of the host why a tool could not be started."""
    program = order["argv"][0]
    folders = order["env"].get("PATH", os.defpath).split(os.pathsep)
    if isinstance(error, LookupError):
        return f"there is no user '{order['user']}' on this host"
    if "/" not in program and not any(os.path.exists(os.path.join(folder, program)) for folder in folders):
        return "no such program in PATH"
    return str(getattr(error, "strerror", None) or f"{type(error).__name__}: {error}")


def _become(user: str | None, env: dict[str, str]) -> None:
    if user is None:
        return
    entry = pwd.getpwnam(user)
    env.update({"HOME": entry.pw_dir, "USER": user, "LOGNAME": user})
    if os.geteuid() == entry.pw_uid:
        return
    groups = [group.gr_gid for group in grp.getgrall() if user in group.gr_mem]
    os.setgroups([entry.pw_gid, *groups])
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def _read_order(link: int) -> dict[str, Any]:
    """Read the order: eight bytes that say its length, then as many of `marshal`'s."""
    size = int.from_bytes(_read(link, 8), "big")
    order: dict[str, Any] = marshal.loads(_read(link, size))  # noqa: S302 - from the run that started us
    return order


def _read(link: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(link, size - len(data))
        if not part:
            sys.exit(0)  # the run died before it gave an order: nothing was started
        data += part
    return data


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 512):
            pass
    except BlockingIOError:
        pass


def _processes() -> dict[int, int]:
    """Map every pid on this host to its parent's."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue  # it ended while we looked
    return parents


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in _processes().items():
        children.setdefault(parent, []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _activity(pids: list[int]) -> int:
    """Sum what the processes have read, written and computed so far; any change is a sign of life."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            with open(f"/proc/{pid}/io", "rb") as file:
                lines = file.read().split()
            total += int(fields[11]) + int(fields[12]) + int(lines[1]) + int(lines[3])
        except (OSError, IndexError):
            continue
    return total


def _send(number: int, group: int = 0) -> None:
    if group:
        _kill(-group, number)
    for pid in _descendants(os.getpid()):
        _kill(pid, number)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


if __name__ == "__main__":
    main()
