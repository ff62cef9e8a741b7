"""How far replay got and why no further, from facts: what is there, not what looks healthy.

Recovery that meets the end of its WAL promotes and looks healthy, so a stop counts as reached only when
the server stopped for the target's own reason, not short of the expected serverlog.LSN, and on the expected
timeline.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from pgvigil.drill import serverlog
from pgvigil.drill.recovery import Outcome, Recovery
from pgvigil.wal.names import parse_lsn, segment_name
from pgvigil.wal.timelines import Branch, read_history, timeline_of

if TYPE_CHECKING:
    from pgvigil.drill.copy import Server
    from pgvigil.drill.recovery import State, Stop, Watch

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


def judge(server: Server, stop: Stop, watch: Watch, state: State | None, *, is_running: bool) -> Recovery:
    """Tell what became of a recovery that has ended, stands still, or was not there in time."""
    return _Judge(server, stop, watch, state).judge(is_running=is_running)


class _Judge:
    """Everything that is known of one recovery that has ended, and what follows from it."""

    def __init__(self, server: Server, stop: Stop, watch: Watch, state: State | None) -> None:
        self.copy = server.copy
        self.seconds = time.monotonic() - server.started
        self.lines = server.lines()
        self.log = server.log
        self.stop = stop
        self.watch = watch
        self.control = server.control
        self.state = state
        self.reading = serverlog.until_redo_is_done(self.lines)
        self.restored = serverlog.restored(self.reading)
        self.stopping = serverlog.last(serverlog.STOPPING, self.lines)
        self.aim, self.branches = self._read_way()

    def judge(self, *, is_running: bool) -> Recovery:
        """Tell what became of this recovery."""
        if self.stop.timeline is not None and self.led > self.stop.timeline:
            return self._stray(self.led)
        return self._judge_standing() if is_running else self._judge_end()

    def _judge_standing(self) -> Recovery:
        if self.state is None or (self.state.in_recovery and self.state.pause != "paused"):
            return self._tell(
                Outcome.DEADLINE, f"{self.stop} was not reached in time", "raise drill.deadline"
            )
        if not self.stopping and any(_TOO_LOW in line for line in self.lines):
            return self._too_low()
        if self._is_led_short():
            return self._missing_timeline()
        if self.stop.kind != "default" and not self.stopping:
            return self._short("recovery stands still, but not at its target")
        return self._judge_distance()

    def _judge_distance(self) -> Recovery:
        """The server stopped for its own reason, or at the end of WAL: is that far enough?"""
        if parse_lsn(self.position) >= parse_lsn(self.stop.lsn):
            if self.timeline < (self.stop.timeline or 0):
                return self._missing_timeline()
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
        if serverlog.ASTRAY.search(text):
            return self._stray(int(serverlog.last(serverlog.ASTRAY, self.lines, "timeline") or self.aim))
        if serverlog.NO_HISTORY.search(text):
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
        if self._is_led_short():
            return self._missing_timeline()
        wanted = self.wanted
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
        complaints = [line for line in tail if serverlog.COMPLAINT.search(line)]
        if complaints:
            return self._segment_in(complaints[-1])
        if not self.restored:
            return segment_name(self.timeline, parse_lsn(self.position) // size, size)
        number = serverlog.start_of(self.restored[-1], size) // size + 1
        return segment_name(self._timeline_of((number + 1) * size), number, size)

    @property
    def _last_restored_line(self) -> int:
        return max((n for n, line in enumerate(self.reading) if serverlog.RESTORED.search(line)), default=-1)

    def _segment_in(self, complaint: str) -> str:
        """Tell which segment a complaint is about: it names it, or a position in it."""
        named = re.search(r"\b[0-9A-F]{24}\b", complaint)
        if named:
            return named[0]
        size = self.control.segment_size
        at = parse_lsn((serverlog.LSN.findall(complaint) or [self.position])[-1])
        timeline = int(self.restored[-1][:8], 16) if self.restored else self.timeline
        return segment_name(timeline, at // size, size)

    # --- timelines ---

    def _read_way(self) -> tuple[int, tuple[Branch, ...]]:
        """Return the timeline that recovery aimed at, and where the way to it branches.

        The server takes the newest history of the archive, and follows it even where only WAL of older
        timelines is there: which files were restored does not tell the way.
        """
        found = serverlog.last(serverlog.HISTORY, self.reading, "timeline")
        if found is None:
            return self.control.timeline, ()
        file = self.copy.place.data / "pg_wal" / f"{found}.history"
        try:
            return int(found, 16), read_history(file.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError):
            return int(found, 16), ()  # the server could not follow it either, and says so

    def _timeline_of(self, lsn: int) -> int:
        return timeline_of(lsn, self.aim, self.branches)

    @property
    def timeline(self) -> int:
        """The timeline of what was replayed last, by the way and by the last file; at first the backup's.

        A branch begins with a copy of the segment that it leaves, so the file alone does not tell; nor does
        the way, from which a missing file leads astray to an older timeline. Files that were only read ahead
        do not count.
        """
        end = parse_lsn(self.position)
        replayed = [n for n in self.restored if serverlog.start_of(n, self.control.segment_size) < end]
        by_file = int(replayed[-1][:8], 16) if replayed else self.control.timeline
        return min(by_file, self._timeline_of(end))

    @property
    def led(self) -> int:
        """The timeline to which the way leads at the stop."""
        return self._timeline_of(parse_lsn(self.stop.lsn))

    def _is_led_short(self) -> bool:
        """Tell whether the way ends on a timeline that the source had left before the stop."""
        return self.stop.timeline is not None and self.led < self.stop.timeline

    def _stray(self, met: int) -> Recovery:
        return self._tell(
            Outcome.TIMELINE_STRAY,
            f"recovery was led to timeline {met}, expected "
            f"{self.stop.timeline or 'its own'}: the archive has a timeline that is not the source's",
            "remove that timeline's files from the archive once you know who wrote them; until then restore "
            "with --target-timeline=current",
        )

    def _missing_timeline(self) -> Recovery:
        return self._tell(
            Outcome.TIMELINE_MISSING,
            f"recovery ended on timeline {self.timeline}, expected {self.stop.timeline or 'its own'}: the "
            "archive lacks its history file or its WAL, or it is damaged",
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
        stopped = serverlog.STOP_LSN.search(self.stopping or "")
        if stopped and "before" in str(self.stopping):
            return stopped["lsn"]
        if self.state and self.state.lsn:
            return self.state.lsn
        return serverlog.last(serverlog.REDO_DONE, self.lines, "lsn") or self.control.checkpoint

    def _said(self) -> str:
        fatal = [line for line in self.lines if "FATAL:" in line or "PANIC:" in line]
        return (fatal or self.lines or ["it said nothing"])[-1]

    def _telling(self) -> tuple[str, ...]:
        patterns = (
            serverlog.SERIOUS,
            serverlog.STOPPING,
            serverlog.REDO_DONE,
            serverlog.COMPLAINT,
            serverlog.LAST_COMMIT,
        )
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
