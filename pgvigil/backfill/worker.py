"""A worker: leases ranges and does their batches, one after the other, until it is told to stop."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from pgvigil.backfill.batch import Job, Order, Outcome, run_batch
from pgvigil.backfill.health import Level
from pgvigil.backfill.pace import Pace, limits_of
from pgvigil.backfill.remedy import Remedy, remedy
from pgvigil.backfill.turns import Habit
from pgvigil.errors import DatabaseFailed

if TYPE_CHECKING:
    from pgvigil.backfill.control import Control
    from pgvigil.backfill.ledger import Lease, Overrides
    from pgvigil.backfill.session import Session
    from pgvigil.backfill.turns import Course

_NAP = 0.05
_LONGEST_NAP = 2.0


class Worker:
    """One worker's session, pace and patience; it shares nothing with the others but the control."""

    def __init__(self, number: int, job: Job, control: Control, session: Session) -> None:
        self.number = number
        self.job = job
        self.control = control
        self.session = session
        batch = job.policy.batch
        limits = limits_of(batch.most_rows, batch.target.total_seconds(), batch.wal_mb)
        self.pace = Pace(control.rows or batch.rows, limits)
        self._overrides: Overrides | None = None
        self._habit = Habit()
        self._course: Course | None = None
        self._failing_since: float | None = None

    def work(self) -> None:
        """Do ranges until none is left or the control says so; raises what no retry can help."""
        while self.control.is_open(self.number):
            lease = self._lease()
            if lease is None:
                self.control.note_idle()
                time.sleep(_NAP * 4)
                continue
            self._do(lease)

    def _lease(self) -> Lease | None:
        try:
            with self.session.transaction() as connection:
                found = self.job.ledger.lease(connection, self.number, self.control.workers)
                if found and self.job.leaf(found.relation) is None:
                    self.job.ledger.abandon(connection, found)
                    return None
        except DatabaseFailed as error:
            self._bear(error)
            return None
        self._failing_since = None
        return found

    def _do(self, lease: Lease) -> None:
        """Do the batches of one range, or give it back when told to stop."""
        is_over, self._course = False, None
        while not is_over and self.control.await_green(self.number):
            is_over = self._step(lease)
        if not is_over:
            self._release(lease)

    def _step(self, lease: Lease) -> bool:
        """Do one batch with the remedy that its failure needs; True when the range is over."""
        order = self._order(lease)
        outcome: Outcome | None
        try:
            outcome = run_batch(self.session, self.job, lease, order)
        except DatabaseFailed as error:
            self._course = None
            outcome = self._heal(lease, order, error)
        if outcome is None:
            return False
        self._failing_since = None
        self._learn(lease, outcome)
        return outcome.is_over

    def _order(self, lease: Lease) -> Order:
        leaf = self.job.leaf(lease.relation)
        takes_turns = leaf is not None and leaf.takes_turns and not lease.is_sweep and not self.pace.is_capped
        turns = self._habit.turns if takes_turns else 1
        return Order(self.pace.rows, turns, self._course)

    def _heal(self, lease: Lease, order: Order, error: DatabaseFailed) -> Outcome | None:
        what = remedy(error)
        if what is Remedy.STOP:
            raise error
        if what is Remedy.AGAIN:
            self._bear(error)
            return None
        if what is Remedy.SKIP_LOCKED:
            return self._skip_locked(lease, order)
        if self.pace.fail():
            return None
        return self._try_alone(lease)

    def _try_alone(self, lease: Lease) -> Outcome | None:
        """Do the next row, or put it aside; what is not its own fault is waited for."""
        try:
            return run_batch(self.session, self.job, lease, Order(1, aside=True))
        except DatabaseFailed as error:
            self._bear(error)
            return None

    def _skip_locked(self, lease: Lease, order: Order) -> Outcome | None:
        try:
            return run_batch(self.session, self.job, lease, Order(order.rows, skip_locked=True))
        except DatabaseFailed as error:
            if remedy(error) is Remedy.SKIP_LOCKED:  # a lock on the whole table
                self._bear(error)
                return None
            return self._heal(lease, order, error)

    def _bear(self, error: DatabaseFailed) -> None:
        """Wait a little before the next try; raises the error when that has gone on for too long."""
        if remedy(error) is Remedy.STOP:
            raise error
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        lasted = now - self._failing_since
        if lasted > self.job.policy.outage.total_seconds():
            raise error
        self.control.note_trouble(error)
        time.sleep(min(_LONGEST_NAP, _NAP + lasted / 4) * random.uniform(0.5, 1))  # noqa: S311 - no secret

    def _learn(self, lease: Lease, outcome: Outcome) -> None:
        if outcome.wanted != "run":
            self.control.steer(outcome.wanted)
            return
        if outcome.course:
            self._habit.note(outcome.course, outcome.done, outcome.hot)
            self._course = outcome.course.next()
            self.pace.succeed(outcome.seen, outcome.seconds, outcome.wal)
        self._take(outcome.overrides)
        if self.control.has_victims():
            self.pace.shrink()
            self._course = None  # its batches are as large as before
        self.control.note_batch(lease.relation, outcome, self.pace.rows)
        if self.control.level is Level.SLOW:
            time.sleep(outcome.seconds)

    def _take(self, overrides: Overrides) -> None:
        """Go on as people want it, from this batch on."""
        if overrides == self._overrides:
            return
        batch, rows = self.job.policy.batch, overrides.rows
        target = (overrides.target_ms or batch.target.total_seconds() * 1000) / 1000
        self.pace.limits = limits_of(overrides.most_rows or batch.most_rows, target, batch.wal_mb)
        if rows and (self._overrides is None or rows != self._overrides.rows):
            self.pace.resize(rows)
        self._course, self._overrides = None, overrides

    def _release(self, lease: Lease) -> None:
        """Give the range back; a session that is lost need not, the next token frees it."""
        try:
            with self.session.transaction() as connection:
                self.job.ledger.release(connection, lease)
        except DatabaseFailed:
            self.session.close()
