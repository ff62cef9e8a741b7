import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgvigil import audit
from pgvigil.audit import AuditLog, Kind, RunIdentity, RunSummary
from pgvigil.fleet import load_fleet
from pgvigil.pages import markdown
from pgvigil.postgres import connect
from pgvigil.reports import Verdict, headline
from pgvigil.waves.report import WaveReport
from pgvigil.waves.selection import Member
from tests.fixtures.waves import ENV, HOUSE, NOTHING_LISTENS, PIPELINE, Watch, watch

pytestmark = pytest.mark.long

__all__ = ["watch"]


def recorded(watch: Watch) -> list[RunSummary]:
    """All runs that are on record, oldest first."""
    with connect(watch.sandbox.ops_dsn(watch.log), "test") as session:
        return list(reversed(audit.list_runs(session, limit=1000)))


def members(watch: Watch) -> list[RunSummary]:
    """The runs of members that are on record, oldest first."""
    return [run for run in recorded(watch) if run.flow != "watch_fleet"]


def states(report: WaveReport) -> dict[str, str]:
    return {
        each.subject.partition("/")[2]: each.state if each.state != "ended" else str(each.verdict)
        for each in report.outcomes
    }


def test_every_member_is_a_check_and_the_worst_comes_first(watch: Watch) -> None:
    """Refuted, missing privilege and unreachable end as they do alone; nobody else's run suffers by them."""
    for name in ("a", "b", "c"):
        watch.database(f"wave_{name}")
    watch.database("wave_bad", good=False)
    watch.database("wave_closed", closed=True)
    watch.write(at_once=3)

    report = watch.wave()

    assert Verdict.REFUTED is report.verdict
    assert [
        ("demo/wave_bad", "refuted", "state: expected good, found bad"),
        ("away/nowhere", "inconclusive", "connection refused"),
        ("demo/wave_closed", "inconclusive", "permission denied for database"),
        *((f"demo/wave_{name}", "verified", "1 checks verified") for name in ("a", "b", "c")),
    ] == [(each.subject, each.verdict, _part(each.said)) for each in report.outcomes]
    assert ["selection", *(each.subject for each in report.outcomes)] == [c.id for c in report.checks]
    assert headline(report).startswith("1 refuted, 2 inconclusive, 3 verified of 6 subjects; demo/wave_bad")
    lines = [line for line in markdown(report).splitlines() if line.startswith("- ") and "**" in line]
    assert "**refuted** demo/wave\\_bad: state: expected good, found bad (run " in lines[0]
    assert {run.run_id for run in members(watch)} >= {
        each.run_id for each in report.outcomes if each.run_id and "nowhere" not in each.subject
    }
    assert 3 >= _most_at_once(members(watch))


def _part(said: str) -> str:
    known = ("connection refused", "permission denied for database")
    return next((part for part in known if part in said.lower()), said)


def _most_at_once(runs: list[RunSummary]) -> int:
    return max(
        sum(each.started_at <= run.started_at < each.ended_at for each in runs if each.ended_at)
        for run in runs
    )


def test_a_budget_ends_the_wave_and_the_next_run_does_what_is_left(watch: Watch) -> None:
    """Who failed is not run again unless all are, anew; a wave that left nobody is not gone on with."""
    watch.database("wave_bad", good=False)
    watch.database("wave_left")
    watch.write("nowhere", "wave_bad", "wave_left", at_once=1, budget=2)

    stopped = watch.wave()

    assert {"wave_bad": "refuted", "nowhere": "inconclusive", "wave_left": "left"} == states(stopped)
    assert "2 subjects were not verified, the budget is 2" == stopped.stopped
    (told,) = [each for each in stopped.findings if each.code == "wave-stopped"]
    assert told.message.endswith("left: demo/wave_left")

    assert 3 == len(watch.wave(anew=True, dry_run=True).to_begin)
    assert ("demo/wave_left",) == watch.wave(dry_run=True).to_begin

    goes_on = watch.wave()

    assert stopped.wave == goes_on.wave
    assert "verified" == states(goes_on)["wave_left"]
    assert {"away/nowhere": 1, "demo/wave_bad": 1, "demo/wave_left": 1} == Counter(
        run.subject for run in members(watch)
    )
    watch.write("wave_left")
    assert goes_on.wave < watch.wave().wave


def test_a_wave_that_was_killed_goes_on_with_what_is_left(watch: Watch) -> None:
    """Its children end with it; who had ended is not run again, who was at work is."""
    for name in ("first", "held", "last"):
        watch.database(f"wave_{name}")
    watch.write(*watch.databases, at_once=1)
    (watch.gates / "wave_held").touch()
    killed = subprocess.Popen(
        [sys.executable, "-m", "tests.fixtures.waves", str(watch.gates)],
        cwd=HOUSE,
        env={**os.environ, **ENV},
        stderr=subprocess.DEVNULL,
    )
    _await(lambda: [run for run in members(watch) if run.subject == "demo/wave_held"])

    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (watch.gates / "wave_held").unlink()
    report = watch.wave()

    assert Verdict.VERIFIED is report.verdict
    assert {"demo/wave_first": True, "demo/wave_held": False, "demo/wave_last": False} == {
        each.subject: each.earlier for each in report.outcomes
    }
    assert {"demo/wave_first": 1, "demo/wave_held": 2, "demo/wave_last": 1} == Counter(
        run.subject for run in members(watch)
    )
    assert ["lost", "ended"] == [run.state for run in recorded(watch) if run.flow == "watch_fleet"]


def _await(find: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not find():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def test_a_second_wave_at_the_same_time_begins_nobody(watch: Watch) -> None:
    """It ends Inconclusive and names the first."""
    watch.write("nowhere")
    seconds: list[WaveReport] = []

    first = watch.wave(inside=lambda: seconds.append(watch.wave()))

    (second,) = seconds
    assert Verdict.INCONCLUSIVE is second.verdict
    assert () == second.outcomes
    assert f"the wave of {PIPELINE} is held by 'pgvigil watch_fleet {first.run_id}" in headline(second)


def test_a_dry_run_begins_nobody(watch: Watch) -> None:
    """It says whom it would, and how many at once."""
    watch.database("wave_one")
    watch.write("wave_one", "nowhere")

    report = watch.wave(dry_run=True)

    assert [] == members(watch)
    assert ["2 selected, 0 left out"] == [check.actual for check in report.checks]
    assert "To begin, 4 at once: away/nowhere, demo/wave\\_one" in markdown(report)


def test_a_member_that_cannot_be_begun_is_left_and_keeps_nobody_off(watch: Watch) -> None:
    """It is told with the reason."""
    watch.database("wave_one")
    watch.write("nowhere", "wave_one")

    report = watch.wave(
        argv=lambda _, each: ("/no/such/program",) if "nowhere" in each.subject else ("true",)
    )

    assert {"nowhere": "left", "wave_one": "verified"} == states(report)
    assert "it could not be begun: cannot start" in report.outcomes[0].said


def test_a_wave_that_is_over_its_deadline_waits_for_nobody(watch: Watch) -> None:
    """Who is at work is told as such, who did not begin as left."""
    watch.write("nowhere", "shop", at_once=1, deadline="1ms")

    report = watch.wave(argv=lambda *_: ("sleep", "60"))

    assert {"nowhere": "at work", "shop": "left"} == states(report)
    assert "its deadline of 0.001 s was over" == report.stopped


def test_five_hundred_subjects_are_as_many_at_once_as_the_policy_says(watch: Watch) -> None:
    """And no thread more than for one: each is a process that is looked at, and nobody waits in a thread."""
    watch.write(*(f"wave_{number:03}" for number in range(500)), at_once=20)
    seen: list[tuple[int, int]] = []
    # What other tests have left in this process may end meanwhile, and counts for nothing.
    threads_before, children_before = set(threading.enumerate()), set(_children())

    def argv(_: str, __: Member) -> tuple[str, ...]:
        own = set(threading.enumerate()) - threads_before
        seen.append((len(own), len(set(_children()) - children_before)))
        return ("true",)

    report = watch.wave(argv=argv)

    threads, children = zip(*seen, strict=True)
    assert {"verified": 500} == Counter(states(report).values())
    assert (1, True) == (len(set(threads)), max(children) < 20)


def _children() -> list[str]:
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="ascii").split()


def test_without_the_audit_store_a_wave_goes_on_and_says_what_it_cannot_know(watch: Watch) -> None:
    """What its runs said by their exit codes counts."""
    watch.write("nowhere", "shop", audit=NOTHING_LISTENS)

    report = watch.wave(argv=lambda _, each: ("false",) if "nowhere" in each.subject else ("true",))

    assert {"nowhere": "refuted", "shop": "verified"} == states(report)
    assert {"wave-without-lock", "wave-without-memory"} <= {each.code for each in report.findings}


SLOT = datetime(2026, 11, 26, 3, 30, tzinfo=UTC)
ASKS = UUID(int=1)


SERVES: dict[str, tuple[dict[str, Any], list[Kind], bool]] = {
    "the same slot": ({}, [], True),
    "a later one": ({"slot": SLOT + timedelta(days=1)}, [], True),
    "an earlier one": ({"slot": SLOT - timedelta(days=1)}, [], False),
    "other parameters": ({"parameters": {"cluster": "demo", "repo": 2}}, [], False),
    "the run that asks": ({"prefect_flow_run": ASKS}, [], False),
    "lost": ({}, [Kind.RUN_LOST], False),
}


def test_a_slot_is_served_by_another_run_for_it_or_a_later_one(watch: Watch) -> None:
    """With the same parameters, as a schedule's runs have, and unless it died."""
    watch.write("shop")
    given = {"slot": SLOT, "parameters": {"cluster": "demo"}, "prefect_flow_run": UUID(int=2)}
    with AuditLog(load_fleet().audit, "test") as log:
        for flow, (changes, ends, _) in SERVES.items():
            run = RunIdentity(run_id=uuid4(), flow=flow, subject="demo", actor="test")
            for event in (run.event(Kind.RUN_STARTED, "", given | changes), *map(run.event, ends)):
                log.append(event)
    with connect(watch.sandbox.ops_dsn(watch.log), "test") as session:
        found = {
            flow: bool(audit.served(session, flow, "demo", SLOT, {"cluster": "demo"}, ASKS))
            for flow in SERVES
        }

    assert {flow: is_served for flow, (_, _, is_served) in SERVES.items()} == found
