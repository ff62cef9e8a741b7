"""What people see while a task works: a capped log and one progress artifact."""

from __future__ import annotations

import re
import time
from contextvars import copy_context
from threading import Thread
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from prefect import get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_LINES = 500  # a line costs Prefect's API about a millisecond; the whole output is in the evidence
EVERY_SECONDS = 2.0
LAST_SECONDS = 2.0


class HasPercent(Protocol):
    """Progress that says how far it is, and itself as a sentence."""

    @property
    def percent(self) -> float:
        """0 to 100."""


class ToolLog:
    """Passes a tool's lines to the run's log, up to a number; the rest is told as a count."""

    def __init__(self) -> None:
        self.logger = get_run_logger()
        self.count = 0

    def line(self, text: str) -> None:
        """Log one line, or only count it."""
        self.count += 1
        if self.count <= MOST_LINES:
            self.logger.info(text)
        elif self.count == MOST_LINES + 1:
            self.logger.info("… more lines: the whole output is in the run's evidence")


class ProgressBar:
    """One progress artifact per run, updated at most every two seconds and at the end.

    It is sent from a thread of its own: when Prefect's server is away, its client tries again for a minute,
    and the work that goes on meanwhile may hold locks that others wait for.
    """

    def __init__(self, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
        self.clock = clock
        self.logger = get_run_logger()
        self.artifact: UUID | None = None
        self.next_at = 0.0
        self.sender = Thread()

    def show(self, progress: HasPercent) -> None:
        """Show how far it is, unless the last word is still on its way; the end waits a moment for that."""
        now = self.clock()
        if now < self.next_at and progress.percent < 100:
            return
        self.next_at = now + EVERY_SECONDS
        if progress.percent >= 100 and self.sender.is_alive():
            self.sender.join(LAST_SECONDS)
        if self.sender.is_alive():
            return
        self.sender = Thread(target=copy_context().run, args=(self._send, progress), daemon=True)
        self.sender.start()
        if progress.percent >= 100:
            self.sender.join(LAST_SECONDS)

    def _send(self, progress: HasPercent) -> None:
        try:
            self._update(progress)
        except Exception as error:  # what people do not see must not end the work
            self.logger.warning("progress could not be shown: %s", error)

    def _update(self, progress: HasPercent) -> None:
        if self.artifact is None:
            self.logger.info("%s", progress)
            created = create_progress_artifact(progress.percent, key=self.key, description=str(progress))
            self.artifact = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(self.artifact, progress.percent, description=str(progress))
