"""The one place that starts tools: streamed, bounded, redacted, and never left behind.

Every tool runs under a keeper process (keeper.py), which ends the tool's whole tree when this process
asks or vanishes. On another host, behind ssh, docker exec or kubectl exec, a small shell wrapper does
the same there: its standard input is the lifeline.
"""

from __future__ import annotations

import ast
import marshal
import os
import pwd
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections import deque
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import Field

from pgvigil.errors import (
    CommandNotFound,
    DeadlineExceeded,
    PgvigilError,
    ProcessKilled,
    ProcessLost,
    Stalled,
    ToolFailed,
)
from pgvigil.redaction import LONGEST_SECRET, redactor
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEEPER = Path(__file__).with_name("keeper.py")
TOKEN = "PGVIGIL_PROCESS"  # noqa: S105 - the variable that marks every process of one tool run
TAIL_LINES = 40
LONGEST_LINE = 65536  # bytes; what is longer is broken, so that no tool fills memory without a line end
BEAT = timedelta(seconds=10)  # between two looks at what a tool on another host has computed
LAST_WORD_PATIENCE = 30.0  # seconds beyond the grace in which a keeper must have ended the tree

# The shell says its own process id before it becomes the program, whose output goes elsewhere.
_ANNOUNCE = 'echo $$; exec "$@" >&2'

# Runs on the tool's host: when standard input ends, so does the tool, with its group and whatever else
# carries its token; and when the tool ends, nothing of it is left before its exit code is passed on. Where a
# stalled tool is to be noticed, its token on standard error says that it computes: that cannot be seen here.
_LIFELINE = """
exec 3<&0
computed() {{
    t=0
    for f in /proc/[0-9]*/stat; do
        {{ read -r line <"$f"; }} 2>/dev/null || continue
        set -- ${{line##*) }}
        [ "$3" = "$p" ] && t=$((t+${{12}}+${{13}}))
    done
    echo $t
}}
beat() {{
    trap 'kill $s; exit' TERM
    while sleep {beat} 2>/dev/null & s=$!; wait $s; kill -0 $p 2>/dev/null; do
        now=$(computed)
        [ "$now" = "$before" ] || echo {token} >&2
        before=$now
    done
}}
sweep() {{
    kill -KILL $g$p
    for e in $(grep -ls {token} /proc/[0-9]*/environ); do e=${{e#/proc/}}; kill -KILL ${{e%/environ}}; done
}}
watch() {{
    while read -r _; do :; done
    kill -TERM $g$p
    i=0
    while [ $i -lt {grace} ] && kill -0 $g$p; do sleep 1; i=$((i+1)); done
    sweep
}}
if command -v setsid >/dev/null 2>&1
then setsid env "$@" 3<&- </dev/null & g=-
else env "$@" 3<&- </dev/null & g=
fi
p=$!
watch <&3 >/dev/null 2>&1 & w=$!
exec 3<&-
if [ {beat} -gt 0 ]; then beat </dev/null >/dev/null & b=$!; fi
wait $p
r=$?
kill $w $b 2>/dev/null
[ -z "$b" ] || wait $b
sweep >/dev/null 2>&1
exit $r
""".strip()


class Command(Frozen):
    """What to run and within which bounds; `prefix` is what reaches another host (ssh, docker exec -i)."""

    argv: tuple[str, ...] = Field(min_length=1)
    prefix: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    user: str | None = None
    deadline: timedelta = timedelta(hours=1)
    stall: timedelta | None = None
    grace: timedelta = timedelta(seconds=5)
    ask: Literal["SIGTERM", "SIGINT"] = Field(
        default="SIGTERM",
        description="how it is asked to end: SIGTERM to its whole tree, or SIGINT to the program alone, "
        "which PostgreSQL takes for a fast shutdown",
    )
    capture_limit: int = 512 * 1024 * 1024


class Completed(Frozen):
    """A tool that ended by itself, with no process of it left."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes = b""
    tail: tuple[str, ...] = ()
    seconds: float
    leftovers: int = 0


def run(
    command: Command,
    *,
    on_line: Callable[[str], None] | None = None,
    sink: Callable[[bytes], None] | None = None,
    transcript: Path | None = None,
) -> Completed:
    """Run a tool to its end and return its exit code, whatever it is; judging it is the caller's work.

    With `on_line`, every line of both streams goes there as it comes (and whole into `transcript`);
    with `sink`, standard output goes there as raw chunks; otherwise it is kept in `stdout`, up to
    `capture_limit` bytes. Secrets of the environment never reach lines, transcript or errors. Raises
    CommandNotFound, DeadlineExceeded, Stalled, ProcessKilled, ProcessLost. However this call ends, no
    process of the tool is alive afterwards, on this host.
    """
    with _kept(command, on_line, sink, transcript) as tool:
        tool.pump()
        return tool.conclude()


class Held:
    """A server that runs under a keeper."""

    def __init__(self, tool: _Tool) -> None:
        self._tool = tool
        self.pid = tool.pid

    def is_running(self) -> bool:
        """Tell whether the server has not ended by itself, or lost its keeper."""
        return self._tool.listen()

    def conclude(self) -> Completed:
        """Tell how it ended, once it runs no more; raises as `run` does."""
        return self._tool.conclude()


@contextmanager
def hold(command: Command, transcript: Path) -> Iterator[Held]:
    """Keep a server running as long as the block, its output in `transcript`; ended with the block."""
    with transcript.open("ab") as file, _kept(command, None, None, None, output=file) as tool:
        tool.await_start()
        yield Held(tool)


def launch(command: Command, transcript: Path) -> int:
    """Start a server that outlives this process, its output in `transcript`, and return its process id.

    Nobody ends it but who finds it: record where it is before it starts. Raises CommandNotFound.
    """
    with transcript.open("ab") as file:
        try:
            told = subprocess.run(
                ["setsid", "--fork", "sh", "-c", _ANNOUNCE, "sh", *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd="/",
                env=_inherited(command),
                timeout=LAST_WORD_PATIENCE,
                check=True,
                **_identity(command.user),
            )
        except (OSError, subprocess.SubprocessError, KeyError) as error:
            raise CommandNotFound(
                f"cannot start {Path(command.argv[0]).name}: {error}",
                hint="install it on this host, or correct command and user in the fleet file",
            ) from error
    return int(told.stdout)


def _identity(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    if os.geteuid() == entry.pw_uid:
        return {}
    groups = os.getgrouplist(user, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


@contextmanager
def _kept(
    command: Command,
    on_line: Callable[[str], None] | None,
    sink: Callable[[bytes], None] | None,
    transcript: Path | None,
    output: IO[bytes] | None = None,
) -> Iterator[_Tool]:
    file = transcript.open("a", encoding="utf-8") if transcript else None
    try:
        tool = _Tool(command, on_line, sink, file, output)
        try:
            yield tool
        finally:
            tool.end()
    finally:
        if file:
            with suppress(OSError):  # every line was flushed, and told of, when it was written
                file.close()


class _Tool:
    """One tool run: the keeper's socket and the tool's two pipes, read by one thread."""

    def __init__(
        self,
        command: Command,
        on_line: Callable[[str], None] | None,
        sink: Callable[[bytes], None] | None,
        transcript: IO[str] | None,
        output: IO[bytes] | None,
    ) -> None:
        self.command = command
        self.on_line = on_line
        self.sink = sink
        self.transcript = transcript
        self.token = uuid.uuid4().hex
        self.sign_of_life = _mark_there(self.token).encode()
        self.argv = reach(command, self.token)
        self.env = _environment(command, self.token)
        self.redact = redactor(self.env)
        self.started = self.last_sign = time.monotonic()
        self.stdout = bytearray()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.partial: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        self.word: dict[str, Any] | None = None
        self.pid = 0
        self.words = b""
        self.selector = selectors.DefaultSelector()
        self.keeper = self._start(output)

    def _start(self, output: IO[bytes] | None) -> subprocess.Popen[bytes]:
        ours, theirs = socket.socketpair()
        with theirs:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER)],
                stdin=theirs.fileno(),
                stdout=output or subprocess.PIPE,
                stderr=output or subprocess.PIPE,
                start_new_session=True,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath), TOKEN: self.token},
            )
        self.link = ours
        order = {
            "argv": self.argv,
            "env": self.env,
            "user": self.command.user,
            "grace": self.command.grace.total_seconds(),
            "ask": self.command.ask,
            "lifeline": bool(self.command.prefix),
        }
        data = marshal.dumps(order)
        self.link.sendall(len(data).to_bytes(8, "big") + data)
        self.selector.register(self.link, selectors.EVENT_READ, self._hear)
        for name, stream in (("stdout", keeper.stdout), ("stderr", keeper.stderr)):
            if stream:
                self.selector.register(
                    stream, selectors.EVENT_READ, lambda n=name, s=stream: self._read(n, s)
                )
        return keeper

    def pump(self) -> None:
        """Read until the keeper has said its last word and both pipes are empty, or the keeper is dead."""
        while self.selector.get_map() and not self._is_orphaned():
            for key, _ in self.selector.select(timeout=0.5):
                key.data()
            self._check_bounds()

    def _is_orphaned(self) -> bool:
        heard_out = self.link not in [key.fileobj for key in self.selector.get_map().values()]
        return heard_out and (self.word is None or bool(self.word.get("alive")))

    def await_start(self) -> None:
        """Read until the tool runs or could not be started."""
        while not self.pid and self.word is None and self.selector.get_map():
            for key, _ in self.selector.select(timeout=0.5):
                key.data()
        if not self.pid:
            self.conclude()

    def listen(self) -> bool:
        """Hear what the keeper has said since, without waiting; False once the tool has ended."""
        while self.word is None and self.selector.get_map() and self.selector.select(timeout=0):
            self._hear()
        return self.word is None and bool(self.selector.get_map())

    def _check_bounds(self) -> None:
        now = time.monotonic()
        if self.word is not None:
            return
        if now - self.started > self.command.deadline.total_seconds():
            raise self._error(
                DeadlineExceeded,
                f"{self._name} was ended: not finished within {_span(self.command.deadline)}",
                "find out why it is slow, or raise the deadline in the fleet file",
            )
        stall = self.command.stall
        if stall and now - self.last_sign > stall.total_seconds():
            raise self._error(
                Stalled,
                f"{self._name} was ended: no output, no input and no computing for {_span(stall)}",
                "look at its host: storage or network that hangs; the next run starts anew",
            )

    def _hear(self) -> None:
        part = self.link.recv(65536)
        if not part:
            self.selector.unregister(self.link)
            return
        *lines, self.words = (self.words + part).split(b"\n")
        for line in lines:
            word = ast.literal_eval(line.decode())
            self.last_sign = time.monotonic()
            self.pid = word.get("pid", self.pid)
            if "exit" in word or "signal" in word or "failed" in word:
                self.word = word

    def _read(self, name: str, stream: IO[bytes]) -> None:
        chunk = os.read(stream.fileno(), 1 << 20)
        self.last_sign = time.monotonic()
        if not chunk:
            self.selector.unregister(stream)
            self._take_lines(name, b"\n" if self.partial[name] else b"")
        elif name == "stdout" and self.sink:
            self.sink(chunk)
        elif name == "stdout" and not self.on_line:
            self._capture(chunk)
        else:
            self._take_lines(name, chunk)

    def _capture(self, chunk: bytes) -> None:
        self.stdout += chunk
        if len(self.stdout) > self.command.capture_limit:
            raise self._error(
                ToolFailed,
                f"{self._name} wrote more than {self.command.capture_limit} bytes",
                "narrow the request",
            )

    def _take_lines(self, name: str, chunk: bytes) -> None:
        *lines, rest = (self.partial[name] + chunk).split(b"\n")
        if len(rest) > LONGEST_LINE:
            # Masked before it is broken, and its end kept back: a secret may stand there, or have half come.
            rest = self._mask(rest)
            lines, rest = [*lines, rest[:-LONGEST_SECRET]], rest[-LONGEST_SECRET:]
        self.partial[name] = rest
        for raw in lines:
            told = raw.removesuffix(self.sign_of_life)
            if raw and not told:
                continue
            line = self.redact(told.decode(errors="replace").rstrip("\r"))
            self.tail.append(line)
            if self.transcript:
                self._keep(self.transcript, line)
            if self.on_line:
                self.on_line(line)

    def _mask(self, raw: bytes) -> bytes:
        return self.redact(raw.decode(errors="surrogateescape")).encode(errors="surrogateescape")

    def _keep(self, transcript: IO[str], line: str) -> None:
        try:
            transcript.write(line + "\n")
            transcript.flush()
        except OSError as error:
            raise self._error(
                ToolFailed,
                f"{self._name} was ended: its output cannot be kept in {transcript.name}: {error.strerror}",
                "free space there; the next run starts anew",
            ) from error

    def conclude(self) -> Completed:
        """Judge the keeper's last word; only an exit that nobody forced is a completed run."""
        word = self.word
        if word is None:
            self._sweep()
            raise self._error(
                ProcessLost,
                f"{self._name}: its keeper (pid {self.keeper.pid}) died, so nobody saw how it ended",
                "its processes were ended; the next run starts anew",
            )
        if "failed" in word:
            raise self._error(
                CommandNotFound,
                f"cannot start {self._name}: {self.redact(word['failed'])}",
                "install it on this host, or correct command and user in the fleet file",
            )
        if word.get("alive"):
            raise self._error(
                ToolFailed,
                f"{self._name}: processes {word['alive']} could not be ended",
                "they belong to another user or hang in the kernel; run pgvigil as root or as that user",
            )
        if "signal" in word or word.get("reason"):
            how = _signal_name(word["signal"]) if "signal" in word else word["reason"]
            raise self._error(
                ProcessKilled,
                f"{self._name} was ended by {how}, its work is not finished",
                "see who ended it: operator, service manager or the kernel's out-of-memory killer",
            )
        return self._completed(word)

    def _completed(self, word: dict[str, Any]) -> Completed:
        code = word["exit"]
        if self.command.prefix and code > 128 and code != 255:
            raise self._error(
                ProcessKilled,
                f"{self._name} was ended by signal {code - 128} on its host, its work is not finished",
                "see who ended it there: operator, service manager or the out-of-memory killer",
            )
        return Completed(
            argv=self.command.argv,
            exit_code=code,
            stdout=bytes(self.stdout),
            tail=tuple(self.tail),
            seconds=time.monotonic() - self.started,
            leftovers=len(word["leftovers"]),
        )

    def end(self) -> None:
        """Leave nothing behind: ask the keeper to end the tree, wait for it, then look for survivors."""
        try:
            if self.word is None:
                self._ask_to_end()
        finally:
            self.link.close()
            self.selector.close()
            for stream in (self.keeper.stdout, self.keeper.stderr):
                if stream:
                    stream.close()
            self.keeper.wait()

    def _ask_to_end(self) -> None:
        patience = time.monotonic() + self.command.grace.total_seconds() + LAST_WORD_PATIENCE
        try:
            self.link.sendall(b"end\n")
        except OSError:
            self._sweep()
            return
        # Its output no longer matters, but a full pipe must not keep the tool from ending.
        while self.word is None and not self._is_orphaned():
            for key, _ in self.selector.select(timeout=0.5):
                if key.fileobj is self.link:
                    self._hear()
                elif not os.read(key.fd, 1 << 20):
                    self.selector.unregister(key.fileobj)
            if time.monotonic() > patience:
                self.keeper.kill()
                break
        if self.word is None:
            self._sweep()

    def _sweep(self) -> None:
        """End what carries this run's token; needed only when the keeper itself was killed."""
        for pid in marked_processes(f"{TOKEN}={self.token}"):
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    @property
    def _name(self) -> str:
        return Path(self.command.argv[0]).name

    def _error(self, kind: type[PgvigilError], message: str, hint: str) -> PgvigilError:
        return kind(
            message,
            hint=hint,
            argv=[self.redact(word) for word in self.argv],
            tail=list(self.tail),
            pid=self.pid,
        )


def reach(command: Command, token: str) -> list[str]:
    """Build the argv that runs the tool where it lives: as it is, or behind a prefix with a lifeline."""
    if not command.prefix:
        return list(command.argv)
    mark = _mark_there(token)
    script = _LIFELINE.format(grace=int(command.grace.total_seconds()), token=mark, beat=_beat(command.stall))
    variables = [mark, *(f"{name}={value}" for name, value in command.env.items())]
    remote = ["sh", "-c", script, "pgvigil", *variables, *command.argv]
    if Path(command.prefix[0]).name == "ssh":
        # ssh joins its arguments with blanks and hands the line to a shell on the other side.
        return [*command.prefix, " ".join(shlex.quote(word) for word in remote)]
    return [*command.prefix, *remote]


def _mark_there(token: str) -> str:
    return f"{TOKEN}={token}-there"  # not the local mark: "another host" may be this one


def _beat(stall: timedelta | None) -> int:
    """Return the seconds between two signs of life: several within the bound, 0 for none."""
    return max(1, int(min(BEAT, stall / 3).total_seconds())) if stall else 0


def marked_processes(mark: str) -> list[int]:
    """Find the processes that were started with `NAME=value` in their environment, as far as we may look."""
    needle = mark.encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                environment = Path(entry.path, "environ").read_bytes()
            except OSError:
                continue  # ended meanwhile, or another user's
            if needle in environment.split(b"\0"):
                found.append(int(entry.name))
    return found


def _environment(command: Command, token: str) -> dict[str, str]:
    return {**_inherited(command), TOKEN: token}


def _inherited(command: Command) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    return {**inherited, **command.env}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals between the two that have names
        return f"signal {number}"


def _span(span: timedelta) -> str:
    seconds = span.total_seconds()
    if seconds < 120:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 7200 else f"{seconds / 3600:g} h"
