"""Recover the copy to a stop and say how far replay got, from facts: what is there, not what looks healthy.

Recovery that meets the end of its WAL promotes and looks healthy, so a stop counts as reached only when
the server stopped for the target's own reason, not short of the expected LSN, and on the expected
timeline.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from pydantic import Field

from pgvigil.drill import copy as copies
from pgvigil.drill.facts import TargetKind
from pgvigil.errors import DatabaseFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query
from pgvigil.wal.names import lsn_text, parse_lsn, segment_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.drill.copy import Control, Copy, Server
    from pgvigil.drill.facts import Mark, Target

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_RESTARTS = 3  # the source's settings may have been raised so often between the backup and the stop


class Stop(Frozen):
    """Where recovery is to end; replay must reach `lsn` at least, on `timeline` if that is known."""

    kind: TargetKind
    value: str = ""
    inclusive: bool = True
    lsn: str
    timeline: int | None = None
    is_archived: bool = Field(
        default=False, description="whether the WAL up to `lsn` was seen in the repository"
    )

    @classmethod
    def at_mark(cls, mark: Mark) -> Self:
        """Stop where the content is known: at the restore point, else before the record at the mark's LSN."""
        known = cls(kind="lsn", lsn=mark.lsn, timeline=mark.timeline, is_archived=True)
        if mark.name:
            return known.model_copy(update={"kind": "name", "value": mark.name})
        return known.model_copy(update={"value": mark.lsn, "inclusive": False})

    @classmethod
    def at_target(cls, target: Target) -> Self:
        """Stop at the drill's final target; of one that a person asked for neither line nor WAL is known."""
        return cls(
            kind=target.kind,
            value=target.value,
            inclusive=target.inclusive,
            lsn=target.lsn,
            timeline=target.timeline,
            is_archived=target.timeline is not None,
        )

    def settings(self) -> dict[str, str]:
        """Return the recovery settings that stop there; the default goes on to the end of WAL."""
        if self.kind == "default":
            return {}
        inclusive = "on" if self.inclusive else "off"
        return {f"recovery_target_{self.kind}": self.value, "recovery_target_inclusive": inclusive}

    def __str__(self) -> str:
        return "the end of WAL" if self.kind == "default" else f"{self.kind} {self.value}"


class Outcome(StrEnum):
    """How recovery ended; only `reached` proves anything good."""

    REACHED = "reached"
    STOPPED_EARLY = "stopped-early"  # the target was met before the expected LSN
    WAL_MISSING = "wal-missing"  # WAL that must be there, or has successors, is not
    WAL_CORRUPT = "wal-corrupt"
    WAL_ENDS = "wal-ends"  # the archive goes no further: the target lies outside of its window
    BEFORE_BACKUP_END = "before-backup-end"  # the WAL of the backup itself is incomplete
    BEFORE_CONSISTENCY = "before-consistency"  # the target is older than the backup's end
    TIMELINE_MISSING = "timeline-missing"
    TIMELINE_STRAY = "timeline-stray"
    SETTINGS_TOO_LOW = "settings-too-low"
    FAILED = "failed"  # the server ended for another reason
    DEADLINE = "deadline"


class Replay(Frozen):
    """How far replay is; percent of the way from where it began to the expected LSN, where that is known."""

    lsn: str
    target: str
    percent: float
    committed_at: datetime | None = None

    def __str__(self) -> str:
        return f"replayed to {self.lsn} of {self.target} ({self.percent:.0f} %)"


class Recovery(Frozen):
    """How far one recovery got, and why no further; `lsn` is the end of what was replayed."""

    outcome: Outcome
    stop: Stop
    message: str
    hint: str = ""
    lines: tuple[str, ...] = Field(default=(), description="what the server said of it")
    lsn: str | None = None
    committed_at: datetime | None = Field(default=None, description="of the last transaction replayed")
    timeline: int | None = Field(default=None, description="that was followed")
    system_id: str = ""
    promoted: bool = Field(default=False, description="up for reads and writes, wherever replay ended")
    wanted: str | None = Field(
        default=None, description="the segment at which replay ended, or that it lacked"
    )
    replay_seconds: float = Field(default=0.0, description="from the server's start to the stop")

    @property
    def reached(self) -> bool:
        """Whether the stop was reached."""
        return self.outcome is Outcome.REACHED


class Watch(Frozen):
    """How a recovery is watched: for how long, and whom to ask and tell."""

    deadline: timedelta
    has_later: Callable[[str], bool] = Field(
        description="whether the repository holds WAL after a segment of its timeline"
    )
    on_progress: Callable[[Replay], None] = Field(default=lambda _: None)


@contextmanager
def recover(copy: Copy, stop: Stop, watch: Watch) -> Iterator[Recovery]:
    """Start the copy, recover it to a stop, and yield how far it got; the server ends with the block.

    Inside the block the copy is paused at the stop, or promoted (default target, or a stop that came
    before the copy could take sessions), or has ended: `outcome`, `promoted` tell. A later stop goes on
    from the last restart point. Settings that the source raised on the way are followed.
    """
    with ExitStack() as stack:
        for attempt in range(_RESTARTS + 1):
            server = stack.enter_context(copies.running(copy, stop.settings()))
            recovery = _follow(server, stop, watch)
            if recovery.outcome is not Outcome.SETTINGS_TOO_LOW or attempt == _RESTARTS:
                break
            stack.close()
        yield recovery


# --- watching ---------------------------------------------------------------------------------------


class _State(Frozen):
    in_recovery: bool
    pause: str
    lsn: str | None
    committed_at: datetime | None


def _follow(server: Server, stop: Stop, watch: Watch) -> Recovery:
    """Watch until recovery has ended in one way or another."""
    control = server.control
    deadline = server.started + watch.deadline.total_seconds()
    told = ""
    while True:
        is_running = server.is_running()
        state = _look(server) if is_running else None
        over = time.monotonic() > deadline
        if not is_running or over or (state and (not state.in_recovery or state.pause == "paused")):
            return _Judge(server, stop, watch, control, state).judge(is_running=is_running)
        lsn = (state.lsn if state else None) or _said_position(server.lines(), control)
        if lsn and lsn != told:
            told = lsn
            watch.on_progress(_progress(lsn, control, stop, state))
        time.sleep(_pause(time.monotonic() - server.started))


def _pause(elapsed: float) -> float:
    """Look often at a short replay, whose time is measured, and seldom at a long one."""
    return min(max(elapsed / 20, _SHORTEST_PAUSE), _LONGEST_PAUSE)


def _look(server: Server) -> _State | None:
    """Ask the server where it is; None while it takes no sessions, or is just changing its state."""
    if copies.state(server.copy.place, server.held.pid) not in {"standby", "ready"}:
        return None
    try:
        with copies.connect(server.copy, "postgres", "pgvigil drill recovery") as connection:
            row = connection.execute(query("drill_copy", "replay")).fetchone()
    except DatabaseFailed:
        return None  # it ends, or is being promoted; the next look knows
    return _State.model_validate(row)


_POSITION = re.compile(r"(?:redo starts at|current LSN:) (?P<lsn>[0-9A-F]+/[0-9A-F]+)")


def _said_position(lines: list[str], control: Control) -> str | None:
    """Tell the position from the log, which is all there is before the copy takes sessions."""
    found = [match["lsn"] for match in map(_POSITION.search, lines) if match]
    restored = [name for name in _restored(lines) if name[:8] != "00000000"]
    if restored:
        found.append(lsn_text(_start_of(restored[-1], control.segment_size)))
    return max(found, key=parse_lsn) if found else None


def _progress(lsn: str, control: Control, stop: Stop, state: _State | None) -> Replay:
    begin, now, end = (parse_lsn(text) for text in (control.checkpoint, lsn, stop.lsn))
    percent = 100.0 if end <= begin else max(0.0, min(100.0, 100 * (now - begin) / (end - begin)))
    committed_at = state.committed_at if state else None
    return Replay(lsn=lsn, target=stop.lsn, percent=percent, committed_at=committed_at)


# --- what the log says ------------------------------------------------------------------------------

_RESTORED = re.compile(r'restored log file "(?P<name>[0-9A-F]{24})" from archive')
_STOPPING = re.compile(r"recovery stopping (?:before|after|at) .*")
_STOP_LSN = re.compile(r'WAL location \(LSN\) "(?P<lsn>[0-9A-F]+/[0-9A-F]+)"')
_LSN = re.compile(r"\b[0-9A-F]+/[0-9A-F]+\b")
_REDO_DONE = re.compile(r"redo done at (?P<lsn>[0-9A-F]+/[0-9A-F]+)")
_LAST_COMMIT = re.compile(r"last completed transaction was at log time (?P<at>.+)$")
_SERIOUS = re.compile(r" (?:FATAL|PANIC|ERROR|WARNING|HINT|DETAIL):  |ERROR: \[\d{3}\]")
# xlogreader.c and xlogrecovery.c: what it says of bytes that are not the record it needs.
_COMPLAINT = re.compile(
    r"invalid (?:magic number|info bits|record|resource manager|contrecord|block)"
    r"|incorrect (?:resource manager|prev-link)|record with|unexpected pageaddr|out-of-sequence"
    r"|contrecord|WAL file is from different"
    r"|could not decompress|image .* bimg|archive file \".*\" has wrong size"
)
_TOO_LOW = "insufficient parameter settings"
_FATALS: tuple[tuple[str, Outcome], ...] = (
    ("requested recovery stop point is before consistent recovery point", Outcome.BEFORE_CONSISTENCY),
    ("WAL ends before end of online backup", Outcome.BEFORE_BACKUP_END),
    ("WAL ends before consistent recovery point", Outcome.BEFORE_BACKUP_END),
    ("could not locate required checkpoint record", Outcome.BEFORE_BACKUP_END),
    ("could not find redo location", Outcome.BEFORE_BACKUP_END),
    ("could not locate a valid checkpoint record", Outcome.BEFORE_BACKUP_END),
    (_TOO_LOW, Outcome.SETTINGS_TOO_LOW),
)


def _restored(lines: list[str]) -> list[str]:
    return [match["name"] for match in map(_RESTORED.search, lines) if match]


def _until_redo_is_done(lines: list[str]) -> list[str]:
    """Return what was said while WAL was read: a promotion fetches the last segment once more."""
    done = next((n for n, line in enumerate(lines) if _REDO_DONE.search(line)), len(lines))
    return lines[:done]


def _start_of(segment: str, size: int) -> int:
    return (int(segment[8:16], 16) << 32) + int(segment[16:24], 16) * size


def _last(pattern: re.Pattern[str], lines: list[str], group: str | int = 0) -> str | None:
    found = [match[group] for match in map(pattern.search, lines) if match]
    return found[-1] if found else None


# --- judging ----------------------------------------------------------------------------------------


class _Judge:
    """Everything that is known of one recovery that has ended, and what follows from it."""

    def __init__(
        self, server: Server, stop: Stop, watch: Watch, control: Control, state: _State | None
    ) -> None:
        self.copy = server.copy
        self.seconds = time.monotonic() - server.started
        self.lines = server.lines()
        self.log = server.log
        self.stop = stop
        self.watch = watch
        self.control = control
        self.state = state
        self.reading = _until_redo_is_done(self.lines)
        self.restored = _restored(self.reading)
        self.stopping = _last(_STOPPING, self.lines)

    def judge(self, *, is_running: bool) -> Recovery:
        """Tell what became of this recovery."""
        if not is_running:
            return self._judge_end()
        if self.state is None or (self.state.in_recovery and self.state.pause != "paused"):
            return self._tell(
                Outcome.DEADLINE, f"{self.stop} was not reached in time", "raise drill.deadline"
            )
        if not self.stopping and any(_TOO_LOW in line for line in self.lines):
            return self._too_low()
        elsewhere = self._judge_timeline(self.timeline)
        if elsewhere:
            return elsewhere
        if self.stop.kind != "default" and not self.stopping:
            return self._short("recovery stands still, but not at its target")
        return self._judge_distance()

    def _judge_distance(self) -> Recovery:
        """The server stopped for its own reason, or at the end of WAL: is that far enough?"""
        if parse_lsn(self.position) >= parse_lsn(self.stop.lsn):
            return self._tell(Outcome.REACHED, f"{self.stop} was reached at {self.position}")
        told = f"recovery to {self.stop} ended at {self.position}, expected {self.stop.lsn} at least"
        if self.stop.kind == "default":
            return self._short(f"{told}; the copy was promoted and looks healthy")
        return self._tell(
            Outcome.STOPPED_EARLY, told, "something else in the WAL fits the target: a name used twice?"
        )

    def _judge_end(self) -> Recovery:
        text = "\n".join(self.lines)
        if "recovery ended before configured recovery target was reached" in text:
            return self._short(f"recovery ended before {self.stop}")
        if "is not a child of this server's history" in text:
            named = _last(re.compile(r"requested timeline (\d+) is not a child"), self.lines, 1)
            return self._stray(int(named or self.timeline))
        if re.search(r"recovery target timeline \d+ does not exist", text):
            return self._missing_timeline()
        for words, outcome in _FATALS:
            if words in text:
                return self._fatal(words, outcome)
        return self._tell(Outcome.FAILED, f"the copy's server ended: {self._said()}", f"see {self.log}")

    def _fatal(self, words: str, outcome: Outcome) -> Recovery:
        if outcome is Outcome.SETTINGS_TOO_LOW:
            return self._too_low()
        hint = (
            "choose a later target, or an older backup set"
            if outcome is Outcome.BEFORE_CONSISTENCY
            else "the backup cannot be restored from this repository: run verify-wal-archive, take a new full"
        )
        return self._tell(outcome, f"recovery to {self.stop} failed: {words}", hint)

    # --- why it ended short ---

    def _short(self, told: str) -> Recovery:
        """WAL ended before the stop: find out which file, and whether it is lost, damaged or not yet due."""
        wanted = self.wanted
        elsewhere = self._judge_timeline(max(self.timeline, int(wanted[:8], 16)))
        if elsewhere:
            return elsewhere
        if self._is_damaged(wanted):
            outcome, why = Outcome.WAL_CORRUPT, f"WAL {wanted} cannot be read beyond {self.position}"
            hint = "run verify-wal-archive: it names every damaged segment; take a new full backup"
        elif self._must_exist(wanted):
            outcome, why = Outcome.WAL_MISSING, f"WAL {wanted} is not in the repository"
            hint = "run verify-wal-archive: it names every gap and what survives; take a new full backup"
        else:
            outcome, why = Outcome.WAL_ENDS, f"the archive ends before WAL {wanted}"
            hint = "choose a target that lies inside the archive"
        return self._tell(outcome, f"{told}: {why}", hint)

    def _is_damaged(self, wanted: str) -> bool:
        """A file that came and was complained about, or that pgBackRest itself could not hand out."""
        if wanted in self.restored:
            return self._must_exist(wanted)
        return any(re.search(r"ERROR: \[\d{3}\]", line) for line in self.lines)

    def _must_exist(self, wanted: str) -> bool:
        known = self.stop.is_archived and parse_lsn(self.position) < parse_lsn(self.stop.lsn)
        return known or self.watch.has_later(wanted)

    @property
    def wanted(self) -> str:
        """The segment that replay could not get past: one whose bytes were refused, else the next one."""
        size = self.control.segment_size
        tail = self.reading[self._last_restored_line + 1 :]
        complaints = [line for line in tail if _COMPLAINT.search(line)]
        if complaints:
            return self._segment_in(complaints[-1])
        if not self.restored:
            return segment_name(self.timeline, parse_lsn(self.position) // size, size)
        last = self.restored[-1]
        return segment_name(int(last[:8], 16), _start_of(last, size) // size + 1, size)

    @property
    def _last_restored_line(self) -> int:
        return max((n for n, line in enumerate(self.reading) if _RESTORED.search(line)), default=-1)

    def _segment_in(self, complaint: str) -> str:
        """Tell which segment a complaint is about: it names it, or a position in it."""
        named = re.search(r"\b[0-9A-F]{24}\b", complaint)
        if named:
            return named[0]
        size = self.control.segment_size
        at = parse_lsn((_LSN.findall(complaint) or [self.position])[-1])
        timeline = int(self.restored[-1][:8], 16) if self.restored else self.timeline
        return segment_name(timeline, at // size, size)

    # --- timelines ---

    @property
    def timeline(self) -> int:
        """The timeline that was followed: that of the last file replayed, or else of the backup.

        Files that were only read ahead do not count.
        """
        end = parse_lsn(self.position)
        replayed = [n for n in self.restored if _start_of(n, self.control.segment_size) < end]
        return int(replayed[-1][:8], 16) if replayed else self.control.timeline

    def _judge_timeline(self, met: int) -> Recovery | None:
        """Refute a recovery that went, or was about to go, along another timeline than the source's."""
        expected = self.stop.timeline
        if expected is None or met == expected:
            return None
        return self._stray(met) if met > expected else self._missing_timeline()

    def _stray(self, met: int) -> Recovery:
        return self._tell(
            Outcome.TIMELINE_STRAY,
            f"recovery met timeline {met}, expected "
            f"{self.stop.timeline or 'its own'}: the archive has a timeline that is not the source's",
            "remove that timeline's files from the archive once you know who wrote them; until then restore "
            "with --target-timeline=current",
        )

    def _missing_timeline(self) -> Recovery:
        return self._tell(
            Outcome.TIMELINE_MISSING,
            f"recovery ended on timeline {self.timeline}, expected {self.stop.timeline}: the archive lacks "
            "its history file or its WAL",
            "run verify-wal-archive; take a new full backup",
        )

    def _too_low(self) -> Recovery:
        return self._tell(
            Outcome.SETTINGS_TOO_LOW,
            "the source raised a setting that recovery needs, and the copy was started with less",
            "raise the limits of the host of the drill",
        )

    # --- telling ---

    @property
    def position(self) -> str:
        """The end of what was replayed, by the server's word; the last record's start once it is gone.

        A stop before a record is at that record's LSN: all before it was replayed, though the last
        record's end may lie a page header earlier.
        """
        if self.stopping and (match := _STOP_LSN.search(self.stopping)) and "before" in self.stopping:
            return match["lsn"]
        if self.state and self.state.lsn:
            return self.state.lsn
        return _last(_REDO_DONE, self.lines, "lsn") or self.control.checkpoint

    def _said(self) -> str:
        fatal = [line for line in self.lines if "FATAL:" in line or "PANIC:" in line]
        return (fatal or self.lines or ["it said nothing"])[-1]

    def _telling(self) -> tuple[str, ...]:
        patterns = (_SERIOUS, _STOPPING, _REDO_DONE, _COMPLAINT, _LAST_COMMIT)
        return tuple(line for line in self.lines if any(p.search(line) for p in patterns))[-20:]

    def _tell(self, outcome: Outcome, message: str, hint: str = "") -> Recovery:
        short = outcome in {Outcome.WAL_CORRUPT, Outcome.WAL_MISSING, Outcome.WAL_ENDS}
        return Recovery(
            outcome=outcome,
            stop=self.stop,
            message=message,
            hint=hint,
            lines=self._telling(),
            lsn=self.position,
            committed_at=self.state.committed_at if self.state else None,
            timeline=self.timeline,
            system_id=self.control.system_id,
            promoted=self.state is not None and not self.state.in_recovery,
            wanted=self.wanted if short else None,
            replay_seconds=self.seconds,
        )
