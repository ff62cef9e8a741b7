"""What workers and their conductor tell each other: permission to go on, trouble, and what was done."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from pgvigil.backfill.health import Level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgvigil.backfill.batch import Outcome
    from pgvigil.backfill.ledger import Wanted
    from pgvigil.errors import DatabaseFailed

_POLL = 0.2


class Control:
    """One board for all workers of a run; every method may be called from any thread."""

    def __init__(self, workers: int, dead: Counter[int] | None = None) -> None:
        self.rows: int | None = None
        self.level = Level.GO
        self.failure: BaseException | None = None
        self.batch_rows = 0
        self._workers = workers
        self._wanted: Wanted = "run"
        self._is_stopping = False
        self._is_idle = False
        self._budgets: dict[int, float] = {}
        self._victims = 0
        self._dead: Counter[int] = Counter() if dead is None else dead
        self._trouble = ""
        self._change = threading.Condition()

    # --- told by the conductor ---

    def steer(self, wanted: Wanted) -> None:
        """Pause, cancel or go on."""
        with self._change:
            self._wanted = wanted
            self._change.notify_all()

    def set_level(self, level: Level, victims: int) -> None:
        """Say what the signals ask for, and how many sessions wait for us."""
        with self._change:
            self.level, self._victims = level, victims
            self._change.notify_all()

    def set_workers(self, count: int) -> None:
        """Let so many workers go on; the others leave after their batch."""
        with self._change:
            self._workers = count
            self._change.notify_all()

    def set_budgets(self, budgets: Mapping[int, float]) -> None:
        """Say at how many dead rows a table is due for VACUUM; at twice that, the workers wait for it."""
        with self._change:
            self._budgets = dict(budgets)
            self._change.notify_all()

    def stop(self, failure: BaseException | None = None) -> None:
        """End all workers after their batch; the first failure is kept."""
        with self._change:
            self._is_stopping = True
            self.failure = self.failure or failure
            self._change.notify_all()

    def nap(self, seconds: float) -> None:
        """Wait until the time is over, or until there is something to do about the workers."""
        with self._change:
            self._is_idle = False
            was_due = self._due() is not None
            self._change.wait_for(lambda: self._has_news(was_due=was_due), seconds)

    def _has_news(self, *, was_due: bool) -> bool:
        """Tell whether a worker failed, has run out of ranges, or has made a table due for VACUUM."""
        return self._is_stopping or self._is_idle or (not was_due and self._due() is not None)

    # --- asked by workers ---

    @property
    def workers(self) -> int:
        """How many workers there are to be; those of a higher number leave."""
        return self._workers

    def is_open(self, number: int) -> bool:
        """Whether a worker may take another range."""
        with self._change:
            return not self._is_stopping and self._wanted != "cancel" and number < self._workers

    def await_green(self, number: int) -> bool:
        """Wait while the work is held; False when the worker should leave."""
        with self._change:
            while self._may_stay(number):
                if self._wanted == "run" and self.level is not Level.STOP and not self._is_overdue():
                    return True
                self._change.wait(_POLL)
        return False

    def _may_stay(self, number: int) -> bool:
        return not self._is_stopping and self._wanted != "cancel" and number < self._workers

    def has_victims(self) -> bool:
        """Whether a session waited for us when we last looked; each look is told once."""
        with self._change:
            waiting, self._victims = self._victims, 0
            return waiting > 0

    # --- told by workers ---

    def note_batch(self, relation: int, outcome: Outcome, rows: int) -> None:
        """Count what was done."""
        with self._change:
            self._dead[relation] += outcome.done - outcome.hot
            self._change.notify_all()
            self.batch_rows = rows
            self._trouble = ""

    def note_idle(self) -> None:
        """Note that a worker finds no range that is due."""
        with self._change:
            self._is_idle = True
            self._change.notify_all()

    def note_trouble(self, error: DatabaseFailed) -> None:
        """Keep the last passing failure for the progress."""
        with self._change:
            self._trouble = error.message

    # --- read by the conductor ---

    def due(self) -> int | None:
        """Return the table that is most in need of VACUUM, if one is due."""
        with self._change:
            return self._due()

    def _due(self) -> int | None:
        over = {oid: self._dead[oid] / budget for oid, budget in self._budgets.items()}
        worst = max(over, key=lambda oid: over[oid], default=None)
        return worst if worst is not None and over[worst] >= 1 else None

    def is_overdue(self) -> bool:
        """Whether the workers wait for VACUUM."""
        with self._change:
            return self._is_overdue()

    def _is_overdue(self) -> bool:
        return any(self._dead[oid] >= 2 * budget for oid, budget in self._budgets.items())

    @property
    def trouble(self) -> str:
        """The last passing failure, until a batch succeeds."""
        return self._trouble

    def dead(self, relation: int) -> int:
        """Return how many row versions were left behind since the last VACUUM."""
        with self._change:
            return self._dead[relation]

    def forget_dead(self, relation: int, count: int) -> None:
        """Note that VACUUM has seen so many."""
        with self._change:
            self._dead[relation] -= count
            self._change.notify_all()
