"""Workers and their watch: starts them, gives the sign of life, reads signals and wishes, tells progress."""

from __future__ import annotations

import threading
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgvigil.backfill import statements
from pgvigil.backfill.control import Control
from pgvigil.backfill.facts import Progress
from pgvigil.backfill.health import Health, Level
from pgvigil.backfill.ledger import Overrides
from pgvigil.backfill.pace import Speedometer
from pgvigil.backfill.remedy import Remedy, remedy
from pgvigil.backfill.session import Session
from pgvigil.backfill.worker import Worker
from pgvigil.errors import DatabaseFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from pgvigil.backfill.batch import Job
    from pgvigil.backfill.facts import Leaf

_FIRST_TICK, _TICK = 0.05, 1.0


class Conductor:
    """Walks one backfill in chunks; everything that must survive a kill is in the ledger, not here."""

    def __init__(self, job: Job, dsn: str, application: str, rows_total: int) -> None:
        self.job = job
        self.dsn = dsn
        self.application = application
        self.rows_total = rows_total
        self.progress = Progress(rows_total=rows_total)
        self.is_cancelled = False
        self.gave_up_sweeping = False
        self.vacuum_fault = ""
        self._watch = Session(dsn, application)
        self._limits = job.policy.limits
        self._health = Health(self._limits, application, [leaf.oid for leaf in job.target.leaves])
        self._meter = Speedometer()
        self._first_lsn: int | None = None
        self._lsn = 0
        self._first_seen: int | None = None
        self._waiting: tuple[str, datetime] | None = None
        self._away_since: float | None = None
        self._sweeping_since: float | None = None
        self._overrides = Overrides()
        self._vacuuming: threading.Thread | None = None
        self._vacuum_session = Session(dsn, application)
        self._is_closing = False
        self._dead: Counter[int] = Counter()
        self._wanted_by = ""

    def take(self, job: Job, rows_total: int) -> None:
        """Walk the table as a new pass has found it."""
        self.job, self.rows_total = job, rows_total
        self._health.relations = [leaf.oid for leaf in job.target.leaves]

    def close(self) -> None:
        """End the watch, and a VACUUM that is still at work: autovacuum goes on with that."""
        self._is_closing = True
        self._vacuum_session.cancel()
        if self._vacuuming is not None:
            self._vacuuming.join()
        self._watch.close()

    def walk(self, chunk: timedelta, on_progress: Callable[[Progress], None]) -> bool:
        """Work for the length of a chunk; False when no range is left that can be done.

        Raises what ended a worker for good: Fenced, DatabaseFailed, PreconditionFailed.
        """
        control = Control(self._worker_count, self._dead)
        control.rows = self.progress.batch_rows or None
        threads: list[threading.Thread] = []
        until = time.monotonic() + chunk.total_seconds()
        try:
            is_over = self._conduct(control, threads, until, on_progress)
        finally:
            control.stop()
            for thread in threads:
                thread.join()
        if control.failure:
            raise control.failure
        self._tick(control)
        on_progress(self.progress)
        return not is_over and not self.is_cancelled

    @property
    def _worker_count(self) -> int:
        return self._overrides.workers or self.job.policy.workers

    def _conduct(
        self,
        control: Control,
        threads: list[threading.Thread],
        until: float,
        on_progress: Callable[[Progress], None],
    ) -> bool:
        """Tick until the chunk is over; True when nothing is left to do."""
        pause = _FIRST_TICK
        while not control.failure and time.monotonic() < until:
            totals = self._tick(control)
            on_progress(self.progress)
            if self.is_cancelled or (totals is not None and self._is_over(totals)):
                return True
            self._staff(control, threads)
            self._vacuum_if_due(control)
            control.nap(pause)
            pause = min(_TICK, pause * 1.5)
        return False

    def _is_over(self, totals: dict[str, Any]) -> bool:
        """Tell whether every range is done, or only such are left as others have held locked for too long."""
        if totals["open"]:
            return False
        if not totals["sweeps"]:
            return True
        self._sweeping_since = self._sweeping_since or time.monotonic()
        lasted = time.monotonic() - self._sweeping_since
        self.gave_up_sweeping = lasted > self.job.policy.sweep_for.total_seconds()
        return self.gave_up_sweeping

    def _staff(self, control: Control, threads: list[threading.Thread]) -> None:
        """Have as many workers as people want; one that is too many leaves by itself."""
        control.set_workers(self._worker_count)
        threads[:] = [thread for thread in threads if thread.is_alive()]
        there = {thread.name for thread in threads}
        for number in range(self._worker_count):
            if str(number) not in there and not control.failure:
                thread = threading.Thread(target=self._work, args=(number, control), name=str(number))
                thread.start()
                threads.append(thread)

    def _work(self, number: int, control: Control) -> None:
        """Be one worker; whatever ends it for good ends all."""
        try:
            with Session(self.dsn, self.application) as session:
                Worker(number, self.job, control, session).work()
        except BaseException as error:  # a thread's failure must reach the run
            control.stop(error)

    # --- the watch ---

    def _tick(self, control: Control) -> dict[str, Any] | None:
        """Give the sign of life, read wishes, signals and totals; None while the server is away."""
        try:
            with self._watch.transaction() as connection:
                row = self.job.ledger.renew(connection, self.progress.model_dump_json())
                totals = self.job.ledger.totals(connection)
            self._obey(row, control)
            level = self._health.look(self._watch)
        except DatabaseFailed as error:
            self._bear(error, control)
            return None
        self._away_since = None
        control.set_level(level, self._health.victims)
        self._measure(row, totals, control)
        return totals

    def _obey(self, row: dict[str, Any], control: Control) -> None:
        self._wanted_by = row["wanted_by"] or "somebody"
        self._overrides = Overrides.model_validate(row["overrides"])
        self.is_cancelled = row["wanted"] == "cancel"
        self._health.limits = self._limits.model_copy(
            update={
                name: value
                for name in ("archive_files", "replication_mb")
                if (value := getattr(self._overrides, name)) is not None
            }
        )
        control.steer(row["wanted"])
        self._lsn = int(row["lsn"])
        self._first_lsn = self._lsn if self._first_lsn is None else self._first_lsn
        self._health.mark(self._lsn, row["now"])

    def _bear(self, error: DatabaseFailed, control: Control) -> None:
        """Go on without the server for a while; what no waiting cures ends the run."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        is_hopeless = remedy(error) is Remedy.STOP and not error.context.get("unreachable")
        if is_hopeless or now - self._away_since > self.job.policy.outage.total_seconds():
            control.stop(error)
        control.note_trouble(error)

    def _measure(self, row: dict[str, Any], totals: dict[str, Any], control: Control) -> None:
        seen, now = totals["seen"], time.monotonic()
        self._first_seen = seen if self._first_seen is None else self._first_seen
        self._meter.note(now, seen)
        left = max(0, self.rows_total - seen)
        outlook = self._meter.look(left)
        wal = max(0, self._lsn - (self._first_lsn or self._lsn))  # a failover may go back a little
        per_row = wal / max(1, seen - self._first_seen)
        self.progress = Progress(
            rows_seen=seen,
            rows_done=totals["done"],
            rows_total=self.rows_total,
            batches=totals["batches"],
            ranges_left=totals["open"] + totals["sweeps"],
            quarantined=totals["quarantined"],
            rate=round(outlook.rate, 1),
            seconds_left=outlook.seconds,
            seconds_left_least=outlook.least,
            seconds_left_most=outlook.most,
            wal_bytes=wal,
            wal_bytes_left=int(per_row * left),
            batch_rows=control.batch_rows or self.progress.batch_rows,
            workers=self._worker_count,
            **self._waits(row["wanted"], totals, control),
        )

    def _waits(self, wanted: str, totals: dict[str, Any], control: Control) -> dict[str, Any]:
        """Say what the work waits for, and since when it has been that."""
        reason = self._reason(wanted, totals, control)
        if not reason:
            self._waiting = None
            return {}
        kind = reason.partition(":")[0]
        if self._waiting is None or self._waiting[0] != kind:
            self._waiting = (kind, datetime.now(UTC))
        return {"waiting_for": reason, "waiting_since": self._waiting[1]}

    def _reason(self, wanted: str, totals: dict[str, Any], control: Control) -> str:
        if wanted == "pause":
            return f"resume: paused by {self._wanted_by}"
        if self._health.level is Level.STOP:
            return self._health.reason
        if control.is_overdue():
            return "VACUUM"
        if totals["sweeps"] and not totals["open"]:
            return "rows that others hold locked"
        return control.trouble

    # --- VACUUM ---

    def _budgets(self) -> dict[int, float]:
        policy = self.job.policy
        if policy.vacuum_after is None or self.vacuum_fault or policy.into:
            return {}
        return {
            leaf.oid: max(policy.vacuum_rows, policy.vacuum_after * leaf.rows)
            for leaf in self.job.target.leaves
        }

    def _vacuum_if_due(self, control: Control) -> None:
        """Start VACUUM at the budget of dead rows, one at a time."""
        control.set_budgets(self._budgets())
        if self._vacuuming is not None and self._vacuuming.is_alive():
            return
        leaf = self.job.leaf(control.due() or 0)
        if leaf:
            dead = control.dead(leaf.oid)
            self._vacuuming = threading.Thread(target=self._vacuum, args=(leaf, dead, control))
            self._vacuuming.start()

    def _vacuum(self, leaf: Leaf, dead: int, control: Control) -> None:
        try:
            with self._vacuum_session as session:
                session.execute(statements.vacuum(leaf))
        except DatabaseFailed as error:
            if not self._is_closing and not error.transient:
                self.vacuum_fault = f"VACUUM of '{leaf.label}': {error.message}"
        finally:
            control.forget_dead(leaf.oid, dead)
