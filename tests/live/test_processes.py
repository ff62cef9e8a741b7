import marshal
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from pgvigil.errors import CommandNotFound, DeadlineExceeded, ProcessKilled, ProcessLost, Stalled, ToolFailed
from pgvigil.processes import KEEPER, LONGEST_LINE, TOKEN, Command, hold, marked_processes, run
from tests.fixtures.told import argv_of

# A tool as nasty as they come: children in its own group, in sessions of their own, deaf to SIGTERM.
NASTY = (
    "trap '' TERM; sleep 600 & setsid sleep 600 & "
    "(trap '' TERM; setsid sh -c 'sleep 600; :') & echo up; sleep 600; :"
)

# Works without a word for longer than a bound on silence.
BUSY = "import time\nend = time.monotonic() + 8\nwhile time.monotonic() < end: pass\nprint('done')"

RUNNER = """
import sys, os, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us with & has it ignored
from pgvigil.processes import Command, run
mark, script, mode = sys.argv[1:]
if mode == "forked" and os.fork() == 0:
    pass
prefix = ("env",) if mode == "remote" else ()
run(Command(argv=("sh", "-c", script), env={"MARK": mark}, grace=1, prefix=prefix),
    on_line=lambda line: print(line, flush=True))
"""


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def mark() -> Iterator[str]:
    """A unique word in the environment of every process that a test starts."""
    word = uuid.uuid4().hex
    yield word
    left = marked_processes(f"MARK={word}")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert [] == left


def alive(mark: str) -> list[int]:
    return marked_processes(f"MARK={mark}")


def start_runner(mark: str, mode: str = "plain") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, mark, NASTY, mode],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert wait_until(lambda: len(alive(mark)) >= 5)
    return process


def close(process: subprocess.Popen[str]) -> None:
    process.wait(timeout=30)
    if process.stdout:
        process.stdout.close()


@pytest.mark.parametrize("mode", ["plain", "remote"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_tool_dies_with_the_run_that_started_it(mark: str, number: int, mode: str) -> None:
    """However the run's process ends, the tool and all its descendants are gone within seconds."""
    process = start_runner(mark, mode)

    process.send_signal(number)

    assert wait_until(lambda: not alive(mark))
    close(process)


def test_a_tool_dies_with_the_runs_process_group(mark: str) -> None:
    """A cancel that signals the whole group, as Prefect's does, ends the tool though it is elsewhere."""
    process = start_runner(mark)

    os.killpg(process.pid, signal.SIGTERM)

    assert wait_until(lambda: not alive(mark))
    close(process)


def test_a_tool_dies_with_a_run_that_left_words_of_its_keeper_unread(mark: str) -> None:
    """The kernel resets such a lifeline: the keeper hears an error, and does its work."""
    ours, theirs = socket.socketpair()
    with theirs:
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER)], stdin=theirs.fileno(), stdout=subprocess.DEVNULL
        )
    order = {
        "argv": ["sh", "-c", NASTY],
        "env": {**os.environ, "MARK": mark},
        "user": None,
        "grace": 1.0,
        "ask": "SIGTERM",
        "lifeline": False,
    }
    data = marshal.dumps(order)
    ours.sendall(len(data).to_bytes(8, "big") + data)
    assert wait_until(lambda: len(alive(mark)) >= 5)
    assert ours.recv(1, socket.MSG_PEEK)

    ours.close()

    assert wait_until(lambda: not alive(mark))
    assert keeper.wait(timeout=30) == 0


def test_a_forked_sibling_does_not_keep_the_tool_alive() -> None:
    """The lifeline's other end in a fork's hands does not hide the run's death."""
    mark = uuid.uuid4().hex
    script = (
        "import os, sys, time\n"
        "from pgvigil import processes\n"
        "seen = []\n"
        "def on_line(line):\n"
        "    if os.fork() == 0:\n"
        "        time.sleep(600)\n"
        "    print(line, flush=True)\n"
        "argv = ('sh', '-c', 'echo up; sleep 600; :')\n"
        f"processes.run(processes.Command(argv=argv, env={{'MARK': {mark!r}}}), on_line=on_line)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    assert alive(mark)

    process.kill()

    assert wait_until(lambda: not alive(mark))
    os.killpg(process.pid, signal.SIGKILL)
    close(process)


def test_a_tool_dies_with_its_keeper(mark: str) -> None:
    """The keeper killed alone: the tool ends and nobody takes it for finished."""

    def kill_keeper(_: str) -> None:
        tokens = set(marked_processes(f"MARK={mark}"))
        parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in tokens}
        (keeper,) = [pid for pid in parents - tokens if b"keeper.py" in b" ".join(argv_of(pid))]
        os.kill(keeper, signal.SIGKILL)

    with pytest.raises(ProcessLost, match="nobody saw how it ended"):
        run(
            Command(argv=("sh", "-c", "echo up; setsid sleep 600 & sleep 600; :"), env={"MARK": mark}),
            on_line=kill_keeper,
        )

    assert wait_until(lambda: not alive(mark))


def test_the_workers_of_a_main_process_killed_alone_are_ended(mark: str) -> None:
    """A main process killed in mid-work is a killed tool, and its workers do not go on behind our back."""
    with pytest.raises(ProcessKilled, match="SIGKILL"):
        run(Command(argv=("sh", "-c", "setsid sleep 600 & kill -9 $$"), env={"MARK": mark}))

    assert [] == alive(mark)


def test_a_signal_without_a_name_is_a_killed_tool_as_well() -> None:
    """Real-time signals have numbers only."""
    with pytest.raises(ProcessKilled, match="signal 40"):
        run(Command(argv=("sh", "-c", "kill -40 $$")))


def test_an_exit_code_is_told_only_when_no_process_is_left(mark: str) -> None:
    """A worker that outlives its main process is ended before the exit code is reported, and counted."""
    completed = run(Command(argv=("sh", "-c", "setsid sleep 600 & exit 3"), env={"MARK": mark}))

    assert (3, 1) == (completed.exit_code, completed.leftovers)
    assert [] == alive(mark)


def test_a_deadline_ends_the_whole_tree(mark: str) -> None:
    """The deadline is the runner's own, and SIGTERM-deaf descendants do not escape it."""
    command = Command(
        argv=("sh", "-c", NASTY),
        env={"MARK": mark},
        deadline=timedelta(seconds=0.5),
        grace=timedelta(seconds=0.5),
    )

    with pytest.raises(DeadlineExceeded, match=r"not finished within 0\.5 s"):
        run(command)

    assert [] == alive(mark)


def test_a_tool_that_does_nothing_is_stalled(mark: str) -> None:
    """No output, no input and no computing is noticed, long before the deadline."""
    with pytest.raises(Stalled, match="no output"):
        run(Command(argv=("sleep", "600"), env={"MARK": mark}, stall=timedelta(seconds=3)))


def test_a_silent_tool_that_computes_is_not_stalled() -> None:
    """Work without a word is work."""
    completed = run(Command(argv=(sys.executable, "-c", BUSY), stall=timedelta(seconds=4)))

    assert 0 == completed.exit_code


def test_lines_are_streamed_and_kept_whole(tmp_path: Path) -> None:
    """Every line reaches the listener as it comes, the transcript has them all, the tail the last ones."""
    seen: list[str] = []

    completed = run(
        Command(argv=("sh", "-c", "seq 1 5000; echo bad >&2; printf unfinished")),
        on_line=seen.append,
        transcript=tmp_path / "log",
    )

    expected = sorted([*map(str, range(1, 5001)), "bad", "unfinished"])
    assert expected == sorted(seen)
    assert expected == sorted((tmp_path / "log").read_text().splitlines())
    assert 40 == len(completed.tail)


def test_raw_output_is_not_decoded() -> None:
    """Binary output passes unchanged, in chunks or whole."""
    chunks: list[bytes] = []
    command = Command(argv=("sh", "-c", "printf '\\000\\377\\n\\001'"))

    run(command, sink=chunks.append)

    assert b"\x00\xff\n\x01" == b"".join(chunks) == run(command).stdout


def test_output_beyond_the_limit_is_refused() -> None:
    """A tool that floods memory is ended, not believed."""
    with pytest.raises(ToolFailed, match="more than 1000 bytes"):
        run(Command(argv=("yes",), capture_limit=1000))


@pytest.mark.parametrize("name", ["REPO_CIPHER_PASS", "PREFECT_API_AUTH_STRING"])
def test_secrets_reach_no_line_no_transcript_and_no_error(tmp_path: Path, name: str) -> None:
    """What the environment holds under a secret's name is masked wherever text leaves the runner."""
    seen: list[str] = []
    command = Command(
        argv=("sh", "-c", f"echo key=${name}; echo postgresql://u:hunter22@h/db; kill -9 $$"),
        env={name: "planted-secret"},
    )

    with pytest.raises(ProcessKilled) as caught:
        run(command, on_line=seen.append, transcript=tmp_path / "log")

    text = "\n".join([*seen, (tmp_path / "log").read_text(), repr(caught.value.context), str(caught.value)])
    assert "planted-secret" not in text
    assert "hunter22" not in text
    assert "key=***" in text


def test_a_secret_that_stands_where_a_long_line_breaks_is_masked() -> None:
    """What has no line end is broken, but never within a secret, however its bytes arrive."""
    script = (
        "import sys, time\n"
        f"sys.stdout.write('x' * {LONGEST_LINE} + 'planted')\n"
        "sys.stdout.flush()\n"
        "time.sleep(0.2)  # so that the second half is read by itself\n"
        f"sys.stdout.write('-secret ' + 'y' * {LONGEST_LINE - 4} + 'planted-secret' + 'z' * {LONGEST_LINE})"
    )
    seen: list[str] = []

    run(Command(argv=(sys.executable, "-c", script), env={"A_SECRET": "planted-secret"}), on_line=seen.append)

    text = "".join(seen)
    assert [3 * LONGEST_LINE - 4, 2] == [len(text.replace("***", "").replace(" ", "")), text.count("***")]


def test_a_secret_of_the_order_is_not_in_the_process_list(mark: str) -> None:
    """The tool's environment travels over a socket, never over a command line."""
    seen: list[bytes] = []

    def look(_: str) -> None:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.append(entry.read_bytes())
            except OSError:
                continue

    run(Command(argv=("sh", "-c", "echo up"), env={"MARK": mark, "A_SECRET": "planted-secret"}), on_line=look)

    assert seen
    assert not any(b"planted-secret" in line for line in seen)


def test_an_unknown_program_or_user_says_so() -> None:
    """What cannot be started is told apart from what failed."""
    with pytest.raises(CommandNotFound, match="cannot start no-such-program: no such program in PATH"):
        run(Command(argv=("no-such-program",)))
    with pytest.raises(CommandNotFound, match="cannot start group: Permission denied"):
        run(Command(argv=("/etc/group",)))
    with pytest.raises(CommandNotFound, match="there is no user 'nobody-here' on this host"):
        run(Command(argv=("true",), user="nobody-here"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a tool as somebody else")
def test_a_tool_runs_as_the_user_it_was_given() -> None:
    """User, groups and home directory are that user's."""
    completed = run(Command(argv=("sh", "-c", "id -un; echo $HOME"), user="nobody"))

    assert b"nobody\n/nonexistent\n" == completed.stdout


def test_arguments_reach_a_remote_tool_unchanged(tmp_path: Path) -> None:
    """Behind ssh, which joins words with blanks, and behind exec-like prefixes, which do not."""
    fake_ssh = tmp_path / "ssh"
    fake_ssh.write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    fake_ssh.chmod(0o755)
    argv = ("printf", "%s|", "a b", "$HOME", "it's", '"q"', "*", "")

    for prefix in ((str(fake_ssh), "host"), ("env",)):
        assert b'a b|$HOME|it\'s|"q"|*||' == run(Command(argv=argv, prefix=prefix)).stdout


HAS_SSH = pytest.mark.skipif(
    not Path("/usr/sbin/sshd").exists(),
    reason="no ssh server here; make test installs none where systemd would start it for good",
)


@HAS_SSH
def test_a_tool_on_another_host_dies_with_the_run(mark: str, ssh_prefix: tuple[str, ...]) -> None:
    """Behind a real ssh: the run killed alone, and the tool on the other side ends, deaf or not."""
    script = (
        "from pgvigil.processes import Command, run\n"
        f"command = Command(argv=('sh', '-c', {NASTY!r}), env={{'MARK': {mark!r}}}, grace=1,\n"
        f"    prefix={ssh_prefix!r})\n"
        "run(command, on_line=lambda line: print(line, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "up\n" == process.stdout.readline()
    assert alive(mark)

    process.kill()

    assert wait_until(lambda: not alive(mark))
    close(process)


@HAS_SSH
def test_a_silent_tool_on_another_host_that_computes_is_not_stalled(ssh_prefix: tuple[str, ...]) -> None:
    """What it does there cannot be seen from here, so it says so; and that is no output of the tool."""
    seen: list[str] = []
    busy = Command(argv=(sys.executable, "-c", BUSY), prefix=ssh_prefix, stall=timedelta(seconds=7))

    completed = run(busy, on_line=seen.append)

    assert (0, ["done"]) == (completed.exit_code, seen)


@HAS_SSH
def test_a_tool_on_another_host_that_does_nothing_is_stalled(mark: str, ssh_prefix: tuple[str, ...]) -> None:
    """Its host's silence about it is noticed as that of a tool here is, and it is ended there."""
    asleep = Command(argv=("sleep", "600"), env={"MARK": mark}, prefix=ssh_prefix, stall=timedelta(seconds=4))

    with pytest.raises(Stalled, match="no output"):
        run(asleep)

    assert wait_until(lambda: not alive(mark))


@HAS_SSH
def test_arguments_and_exit_code_cross_a_real_ssh(ssh_prefix: tuple[str, ...]) -> None:
    """Quoting holds through the remote shell, and the code is the tool's."""
    argv = ("sh", "-c", 'printf "%s|" "$@"; exit 55', "sh", "a b", "$HOME", "it's", "*", "")

    completed = run(Command(argv=argv, prefix=ssh_prefix))

    assert (55, b"a b|$HOME|it's|*||") == (completed.exit_code, completed.stdout)


def test_the_exit_code_of_a_remote_tool_comes_back() -> None:
    """The wrapper on the other side passes the code on, and a signal there is a killed tool here."""
    assert 55 == run(Command(argv=("sh", "-c", "exit 55"), prefix=("env",))).exit_code
    with pytest.raises(ProcessKilled, match="on its host"):
        run(Command(argv=("sh", "-c", "kill -9 $$"), prefix=("env",)))


def test_a_held_server_ends_with_its_block(mark: str, tmp_path: Path) -> None:
    """A server that a block needs is gone when the block is left, and its output is kept."""
    with hold(Command(argv=("sh", "-c", "echo serving; sleep 600; :"), env={"MARK": mark}), tmp_path / "log"):
        assert wait_until(lambda: "serving" in (tmp_path / "log").read_text())
        assert alive(mark)

    assert [] == alive(mark)


def test_a_token_marks_every_process_of_a_run() -> None:
    """Leftovers of a run can be told from everybody else's processes."""
    completed = run(Command(argv=("sh", "-c", f"echo ${TOKEN}")))

    assert 32 == len(completed.stdout.strip())
