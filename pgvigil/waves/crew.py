"""Who does a wave's work: what a wave asks of whoever runs its members, each in a process of its own."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Protocol

from pgvigil import processes
from pgvigil.errors import PgvigilError
from pgvigil.reports import Frozen, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from pgvigil.waves.selection import Member

_TAIL = 2000  # characters of a child's output that are looked at when it ended without a report


class Sight(Frozen):
    """How a run was seen, and what its runner says of it; one that is over will do no more by itself.

    One that `asks` waits for a person, whom no wave waits for.
    """

    state: Literal["waiting", "running", "over"]
    asks: bool = False
    verdict: Verdict = Verdict.INCONCLUSIVE
    said: str = ""


class Crew(Protocol):
    """Runs members side by side. `patience` is how long to wait between two looks."""

    patience: timedelta

    def start(self, member: Member) -> str | None:
        """Begin a member's run and say where it can be watched; None when nobody could be told to, yet.

        A run that was begun already is that same run. Raises PgvigilError when the member is refused.
        """

    def look(self, subjects: Iterable[str]) -> Mapping[str, Sight]:
        """Look at runs that were begun, all at once; one that could not be seen is not in the answer."""

    def recall(self, subject: str) -> None:
        """Take back a run that waits; what is running already goes on."""


class Children:
    """A crew of child processes on this host, which end with this one; `argv` is what runs a member.

    A child's exit code is its verdict: 0, 1, and anything else for unknown.
    """

    patience = timedelta(seconds=0.5)

    def __init__(
        self,
        argv: Callable[[Member], tuple[str, ...]],
        env: Mapping[str, str],
        directory: Path,
        deadline: timedelta,
    ) -> None:
        self.argv = argv
        self.env = dict(env)
        self.directory = directory / "children"
        self.deadline = deadline
        self._all = ExitStack()
        self._held: dict[str, tuple[processes.Held, ExitStack, Path]] = {}

    def __enter__(self) -> Self:
        self.directory.mkdir(mode=0o700)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, stack, _ in self._held.values():
            self._all.push(stack)
        self._all.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def start(self, member: Member) -> str:
        """Start the child; raises CommandNotFound."""
        output = self.directory / f"{len(list(self.directory.iterdir()))}.txt"
        stack = ExitStack()
        command = processes.Command(argv=self.argv(member), env=self.env, deadline=self.deadline)
        held = stack.enter_context(processes.hold(command, output))
        self._held[member.subject] = (held, stack, output)
        return f"process {held.pid}"

    def look(self, subjects: Iterable[str]) -> dict[str, Sight]:
        """Look at children; one that is over is cleared away."""
        return {subject: self._look(subject) for subject in subjects}

    def recall(self, subject: str) -> None:
        """Do nothing: a child is running as soon as it is started."""

    def _look(self, subject: str) -> Sight:
        held, stack, output = self._held[subject]
        if held.is_running():
            return Sight(state="running")
        del self._held[subject]
        with stack:
            return _ended(held, output)


def _ended(held: processes.Held, output: Path) -> Sight:
    try:
        code = held.conclude().exit_code
    except PgvigilError as error:
        return Sight(state="over", said=error.message)
    verdict = {0: Verdict.VERIFIED, 1: Verdict.REFUTED}.get(code, Verdict.INCONCLUSIVE)
    return Sight(state="over", verdict=verdict, said=f"exit code {code}: {_last_line(output)}")


def _last_line(output: Path) -> str:
    text = output.read_text(encoding="utf-8", errors="replace")[-_TAIL:]
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"
