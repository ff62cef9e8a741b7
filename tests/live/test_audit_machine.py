from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg.rows import dict_row

from pgvigil import audit
from pgvigil.audit import AuditLog, Event, Head, Kind, RunIdentity, sweep, verify
from pgvigil.errors import AuditUnreachable
from pgvigil.fleet import S3Settings
from pgvigil.liveness import process_stat
from pgvigil.reportstore import open_report_store
from tests.fixtures import tampering

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.fleet import AuditSettings
    from tests.live.audit_cluster import AuditStore

pytest_plugins = ["tests.live.audit_cluster"]

EXAMPLES = 4 * int(os.environ.get("PGVIGIL_ROUNDS", "1"))
STEPS = 25
HOSTS = ("here", "far")  # each with a spool; the processes of one are beyond this host's sight
ANY = st.integers(0, 99)
EMPTY = (
    "TRUNCATE pgvigil.audit_log, pgvigil.presence",
    "ALTER TABLE pgvigil.audit_log ENABLE TRIGGER ALL",
    "ALTER TABLE pgvigil.audit_log ENABLE ALWAYS TRIGGER append_only",
)
UNGUARDED = "ALTER TABLE pgvigil.audit_log DISABLE TRIGGER ALL"

Fault = tuple[int, str] | None


@dataclass
class Worker:
    """One run at work: its process, its way into the log, and the model of what it has on record."""

    host: str
    log: AuditLog
    process: subprocess.Popen[bytes]
    started: int
    run: RunIdentity = field(
        default_factory=lambda: RunIdentity(
            run_id=uuid4(), flow="nightly-backup", subject=tampering.SUBJECT, actor="tester"
        )
    )
    accepted: list[UUID] = field(default_factory=list)
    intents: list[Event] = field(default_factory=list)
    has_ended: bool = False

    def event(self, kind: Kind, step: str = "", **detail: Any) -> Event:
        """Make an event as this worker's process would."""
        event = self.run.event(kind, step, detail)
        mine = {"pid": self.process.pid, "process_started": self.started}
        return event.model_copy(update=mine | ({"pid_space": "other boot"} if self.host == "far" else {}))

    def append(self, event: Event) -> None:
        """Have an event accepted, by the store or by the spool."""
        self.log.append(event)
        self.accepted.append(event.event_id)

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    def die(self) -> None:
        """Go as SIGKILL has it."""
        self.process.kill()
        self.process.wait()
        self.log.close()


class Audit(RuleBasedStateMachine):
    """Runs that write, die and are given up; a store that goes and comes; somebody who forges."""

    def __init__(self, store: AuditStore) -> None:
        super().__init__()
        self.store = store
        self.is_up = True
        self.workers: list[Worker] = []
        self.lost: Counter[UUID] = Counter()
        self.anchored: set[int] = set()
        self.fault: Callable[[int], Fault] | None = None  # of so many rows, once the log is forged

    @initialize()
    def begin_anew(self) -> None:
        with psycopg.connect(self.store.admin) as session:
            for statement in (UNGUARDED, *EMPTY):
                session.execute(statement)
        shutil.rmtree(self.store.settings.spool.parent)
        self.store.settings.spool.parent.mkdir()

    def teardown(self) -> None:
        for worker in self.workers:
            worker.die()
        if not self.is_up:
            self.store.cluster.start()

    # --- what there is

    def settings_of(self, host: str) -> AuditSettings:
        return self.store.settings.model_copy(update={"spool": self.store.settings.spool.parent / host})

    @property
    def at_work(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.is_alive and not worker.has_ended]

    @property
    def reports(self) -> Any:
        return open_report_store(self.store.settings.reports, S3Settings())

    def rows(self) -> list[dict[str, Any]]:
        with psycopg.connect(self.store.admin, row_factory=dict_row) as session:
            return session.execute("SELECT event_id, run_id, kind FROM pgvigil.audit ORDER BY seq").fetchall()

    def spooled(self, host: str) -> list[dict[str, Any]]:
        files = sorted(self.settings_of(host).spool.glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def found(self, source: str | psycopg.Connection[Any]) -> tuple[Fault, int]:
        """What `pgvigil audit verify` finds first, and how many links hold."""
        heads = [Head(seq=seq, hash=digest) for seq, digest in self.reports.anchors()]
        report = verify(source, heads)
        assert report.ok == (report.fault is None)
        return (report.fault.seq, report.fault.what) if report.fault else None, report.length

    def length(self) -> int:
        with psycopg.connect(self.store.admin) as session:
            return int(session.execute("SELECT count(*) FROM pgvigil.audit_log").fetchall()[0][0])

    # --- runs

    @precondition(lambda self: len(self.at_work) < 4)
    @rule(host=st.sampled_from(HOSTS))
    def a_run_begins(self, host: str) -> None:
        process = subprocess.Popen(["sleep", "infinity"])
        stat = process_stat(process.pid)
        assert stat
        worker = Worker(host, AuditLog(self.settings_of(host), "test audit"), process, stat[1])
        self.workers.append(worker)
        worker.append(worker.event(Kind.RUN_STARTED))

    @precondition(lambda self: self.at_work)
    @rule(pick=ANY)
    def a_run_intends(self, pick: int) -> None:
        worker = self.at_work[pick % len(self.at_work)]
        event = worker.event(Kind.INTENT, f"step {len(worker.accepted)}")
        worker.append(event)
        worker.intents.append(event)

    @precondition(lambda self: any(worker.intents for worker in self.at_work))
    @rule(pick=ANY)
    def a_step_has_its_outcome(self, pick: int) -> None:
        stepping = [worker for worker in self.at_work if worker.intents]
        worker = stepping[pick % len(stepping)]
        intent = worker.intents.pop()
        worker.append(worker.event(Kind.OUTCOME, intent.step, intent=str(intent.event_id), result="ok"))

    @precondition(lambda self: self.at_work)
    @rule(pick=ANY, goes=st.booleans())
    def a_run_ends(self, pick: int, *, goes: bool) -> None:
        """Its process may stay, as a notebook's does."""
        worker = self.at_work[pick % len(self.at_work)]
        worker.append(worker.event(Kind.RUN_ENDED, verdict="verified"))
        worker.has_ended = True
        if goes:
            worker.die()

    @precondition(lambda self: self.at_work)
    @rule(pick=ANY, in_mid_write=st.booleans())
    def a_process_dies(self, pick: int, *, in_mid_write: bool) -> None:
        worker = self.at_work[pick % len(self.at_work)]
        worker.die()
        if in_mid_write:
            spool = self.settings_of(worker.host).spool
            spool.mkdir(parents=True, exist_ok=True)
            (spool / "incoming").write_text('{"event_id": "torn', encoding="utf-8")

    @precondition(lambda self: len(self.at_work) > 1)
    @rule(pick=ANY, count=st.integers(1, 4))
    def two_write_at_once(self, pick: int, count: int) -> None:
        one = pick % len(self.at_work)
        both = (self.at_work[one], self.at_work[one - 1])
        start = threading.Barrier(2)

        def write(worker: Worker) -> None:
            start.wait()
            for number in range(count):
                worker.append(worker.event(Kind.INTENT, f"at once {number}"))

        threads = [threading.Thread(target=write, args=(worker,)) for worker in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    # --- the store goes and comes

    @precondition(lambda self: self.is_up)
    @rule()
    def the_store_goes(self) -> None:
        self.store.cluster.stop()
        self.is_up = False

    @precondition(lambda self: not self.is_up)
    @rule()
    def the_store_comes(self) -> None:
        self.store.cluster.start()
        self.is_up = True

    @precondition(lambda self: self.at_work)
    @rule(pick=ANY)
    def who_found_it_away_asks_again(self, pick: int) -> None:
        """Half a minute has passed for this process."""
        self.at_work[pick % len(self.at_work)].log._away_until = 0

    @precondition(lambda self: self.is_up and self.fault is None and self.at_work)
    @rule(pick=ANY)
    def an_answer_gets_lost(self, pick: int) -> None:
        """The store has the event, and the worker, who does not know, has it in the spool."""
        worker = self.at_work[pick % len(self.at_work)]
        event = worker.event(Kind.INTENT, "unanswered")
        with AuditLog(self.settings_of(worker.host), "test audit") as log:
            log.append(event)
        worker.log._away_until = float("inf")
        worker.append(event)

    @rule(host=st.sampled_from(HOSTS))
    def somebody_drains(self, host: str) -> None:
        with AuditLog(self.settings_of(host), "test drain") as log:
            if self.is_up or not self.spooled(host):
                log.drain()
                assert self.spooled(host) == []
            else:
                with pytest.raises(AuditUnreachable):
                    log.drain()

    @precondition(lambda self: self.is_up and self.fault is None)
    @rule(host=st.sampled_from(HOSTS), after_silence=st.booleans())
    def somebody_sweeps(self, host: str, *, after_silence: bool) -> None:
        """Those that are gone, and nobody else; elsewhere whoever was silent."""
        with AuditLog(self.settings_of(host), "test sweep") as log:
            log.drain()
            open_ones = self.open_on_record()
            gone = {
                worker.run.run_id
                for worker in self.workers
                if (after_silence if worker.host == "far" else not worker.is_alive)
            }
            swept = sweep(log, timedelta() if after_silence else audit.QUIET)
        assert {run.run_id for run in swept} == open_ones & gone
        self.lost.update(run.run_id for run in swept)

    def open_on_record(self) -> set[UUID]:
        rows = self.rows()
        closed = {row["run_id"] for row in rows if row["kind"] in {"run_ended", "run_lost"}}
        return {row["run_id"] for row in rows if row["kind"] == "run_started"} - closed

    # --- what proves it

    @precondition(lambda self: self.is_up and self.length())
    @rule()
    def the_head_is_anchored(self) -> None:
        with psycopg.connect(self.store.admin) as session:
            last = "SELECT seq, encode(hash, 'hex') FROM pgvigil.audit_log ORDER BY seq DESC LIMIT 1"
            ((seq, digest),) = session.execute(last).fetchall()
        self.reports.anchor(seq, digest)
        if self.fault is None:
            self.anchored.add(seq)

    @precondition(lambda self: self.is_up and self.fault is None and self.length())
    @rule(
        how=st.sampled_from(["edit", "replace", "delete", "insert", "reorder", "cut", "rewrite"]),
        pick=ANY,
        stays=st.integers(0, 3).map(lambda luck: luck == 0),
    )
    def somebody_forges(self, how: str, pick: int, *, stays: bool) -> None:
        """Found at its place, now and whatever is written later; but what no anchor is against is not."""
        length = self.length()
        seq = pick % length + 1
        if seq == length and how in {"delete", "reorder"}:
            return  # the one is a cut, for the other there is no row
        statements, fault = self.forgery(how, seq, length)
        with psycopg.connect(self.store.admin, row_factory=dict_row) as session:
            session.execute(UNGUARDED)
            for statement in statements:
                session.execute(statement.encode())
            remaining = session.execute("SELECT count(*) AS n FROM pgvigil.audit_log").fetchall()[0]["n"]
            found, _ = self.found(session)
            assert found == fault(remaining), how
            if not stays or found is None:
                session.rollback()
                return
        self.fault = fault

    def forgery(self, how: str, seq: int, length: int) -> tuple[tuple[str, ...], Callable[[int], Fault]]:
        """What is done to the rows, and what must be found in so many rows from then on."""
        follows = "row does not follow the one before it"
        first = min(self.anchored, default=None)
        later = min((each for each in self.anchored if each >= seq), default=None)
        chained = (seq + 1, follows) if seq < length else None
        forgeries: dict[str, tuple[tuple[str, ...], Callable[[int], Fault]]] = {
            "edit": (tampering.edit(seq), lambda _: (seq, "body was altered")),
            "replace": (tampering.replace(seq), lambda _: _anchored(seq) if later == seq else chained),
            "delete": (tampering.delete(seq), lambda _: (seq, "row is missing")),
            "insert": (tampering.insert(seq + 1), lambda _: (seq + 1, follows)),
            "reorder": (tampering.reorder(seq), lambda _: (seq, follows)),
            "cut": (tampering.cut(seq), lambda rows: _cut(later, rows)),
            "rewrite": ((tampering.REWRITE,), lambda _: _anchored(first) if first else None),
        }
        return forgeries[how]

    # --- what is always true

    @precondition(lambda self: self.is_up)
    @invariant()
    def verification_tells_the_truth(self) -> None:
        """Valid if and only if nobody forged, and else it names the place."""
        found, holding = self.found(self.store.admin)
        rows = self.length()
        assert found == (self.fault(rows) if self.fault else None)
        assert self.fault or rows == holding

    @precondition(lambda self: self.is_up and self.fault is None)
    @invariant()
    def every_event_stands_once_in_order(self) -> None:
        """In the store, or in the spool behind what is in the store; and nothing else is there."""
        rows = self.rows()
        spooled = {host: [UUID(each["event_id"]) for each in self.spooled(host)] for host in HOSTS}
        for worker in self.workers:
            stored = [row["event_id"] for row in rows if row["event_id"] in worker.accepted]
            waiting = [each for each in spooled[worker.host] if each in worker.accepted]
            assert stored + [each for each in waiting if each not in stored] == worker.accepted
        accepted = {each for worker in self.workers for each in worker.accepted}
        given_up = Counter(row["run_id"] for row in rows if row["event_id"] not in accepted)
        assert given_up == self.lost
        assert set(given_up.values()) <= {1}

    @precondition(lambda self: self.is_up and self.fault is None)
    @invariant()
    def every_run_is_listed_as_it_ended(self) -> None:
        rows = self.rows()
        kinds = {
            worker.run.run_id: {r["kind"] for r in rows if r["run_id"] == worker.run.run_id}
            for worker in self.workers
        }
        with audit.reader(self.store.settings.dsn, "test") as session:
            listed = {run.run_id: run.state for run in audit.list_runs(session)}
        assert listed == {run_id: _state(found) for run_id, found in kinds.items() if found}


def _anchored(seq: int) -> Fault:
    return seq, "row is not the one that was anchored"


def _cut(anchor: int | None, rows: int) -> Fault:
    """A cut tail is missing until others have grown over it."""
    if anchor is None:
        return None
    return _anchored(anchor) if anchor <= rows else (rows + 1, "rows at the end are missing")


def _state(kinds: set[str]) -> str:
    if "run_ended" in kinds:
        return "ended"
    return "lost" if "run_lost" in kinds else "open"


@pytest.mark.rounds
def test_the_log_is_as_a_list_would_be(store: AuditStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of runs, processes and store: each event once and in order, and each forgery named."""
    monkeypatch.setattr(audit, "AWAY", timedelta(hours=1))  # ends only by a rule, however slow the machine
    run_state_machine_as_test(
        lambda: Audit(store),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None, derandomize=True
        ),
    )
