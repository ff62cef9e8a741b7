"""Take one backup, with progress, and know it again whatever happened on the way."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from pgvigil.backup.facts import RUN_NOTE, Line, bytes_text
from pgvigil.errors import PgvigilError, ToolFailed
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgvigil.pgbackrest import Backup, PgBackRest, StanzaInfo


class Progress(Frozen):
    """How far a backup is: bytes, percent, bytes per second, and seconds to go."""

    done: int
    total: int
    percent: float
    rate: float
    eta_seconds: float

    def __str__(self) -> str:
        return (
            f"{bytes_text(self.done)} of {bytes_text(self.total)} ({self.percent:.1f} %), "
            f"{bytes_text(self.rate)}/s, {self.eta_seconds:.0f} s to go"
        )


_FILE_LINE = re.compile(
    r"backup file .*\((?:bundle [^,]+, )?(?P<size>[\d.]+)(?P<unit>B|KB|MB|GB|TB|PB), (?P<percent>[\d.]+)%\)"
)
_UNIT = {unit: 1024**power for power, unit in enumerate(("B", "KB", "MB", "GB", "TB", "PB"))}


class ProgressMeter:
    """Reads pgBackRest's lines and reckons progress; the total follows from bytes done and percent."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.started = clock()
        self.done = 0

    def read(self, line: str) -> Progress | None:
        """Return the progress after a line, or None for a line of no file or of 0 %."""
        match = _FILE_LINE.search(line)
        if match is None:
            return None
        self.done += int(float(match["size"]) * _UNIT[match["unit"]])
        percent = float(match["percent"])
        if not percent:
            return None
        rate = self.done / max(self.clock() - self.started, 0.001)
        total = int(self.done * 100 / percent)
        left = (total - self.done) / rate if rate else 0.0
        return Progress(done=self.done, total=total, percent=percent, rate=rate, eta_seconds=left)


def take(  # noqa: PLR0913 - each is a fact of one backup
    pgbackrest: PgBackRest,
    line: Line,
    run_id: str,
    *,
    on_line: Callable[[str], None],
    on_progress: Callable[[Progress], None],
    transcript: Path,
) -> Backup:
    """Take the backup of one line and return it as the repository lists it.

    Idempotent per run: a backup that an earlier attempt of this run finished is returned, not taken
    again. Never resumes what a killed backup left. Raises the tool's typed failure, unless the backup
    is listed all the same.
    """
    done = find_own(pgbackrest.info(), line.repo, run_id)
    if done:
        return done
    meter = ProgressMeter()

    def read(text: str) -> None:
        progress = meter.read(text)
        if progress:
            on_progress(progress)
        elif " DETAIL: " not in text:
            on_line(text)

    failed: PgvigilError | None = None
    try:
        pgbackrest.backup(line.repo, line.type, {RUN_NOTE: run_id}, read, transcript)
    except ToolFailed as error:
        failed = error
    done = find_own(pgbackrest.info(), line.repo, run_id)
    if done:
        return done
    raise failed or ToolFailed(
        f"pgbackrest reported success, but repository {line.repo} lists no backup of this run",
        hint=f"see {transcript}",
    )


def find_own(stanza: StanzaInfo, repo: int, run_id: str) -> Backup | None:
    """Find the backup of a run by its annotation: no clock and no guess is involved."""
    own = [b for b in stanza.backups(repo) if b.note(RUN_NOTE) == run_id]
    return own[-1] if own else None
