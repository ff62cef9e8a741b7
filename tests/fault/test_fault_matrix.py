"""The fault matrix: tests/fixtures/faults/cases.py lists the cases, `make fault` runs all of them."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.faults import cases
from tests.fixtures.faults.aftermath import aftermath
from tests.fixtures.faults.cases import CASES, EVENTS, Case
from tests.fixtures.faults.scenes import NEEDS_BACKUP
from tests.fixtures.faults.story import Theatre, told
from tests.fixtures.faults.world import IS_ROOT, adopted, make_world

RESULTS = os.environ.get("PGVIGIL_FAULT_RESULTS")
DISKS = {cases.DISK_FULL, cases.REPOSITORY_FULL, cases.SCRATCH_FULL}


@pytest.fixture(scope="session")
def databases() -> Iterator[Theatre]:
    """Where the flows play that need no backup."""
    with make_world({"disk": 96, "scratch": 16}) as world:
        yield Theatre(world)


@pytest.fixture(scope="session")
def clusters() -> Iterator[Theatre]:
    """Where the flows play that take, prove or restore a backup."""
    with make_world({"disk": 96, "repo": 400, "scratch": 600}) as world:
        yield Theatre(world)


@pytest.fixture
def theatre(request: pytest.FixtureRequest, flow: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Theatre]:
    """Where the case's flow plays, its environment set."""
    found: Theatre = request.getfixturevalue("clusters" if flow in NEEDS_BACKUP else "databases")
    for name, value in found.world.environment.items():
        monkeypatch.setenv(name, value)
    yield found
    for pid in adopted():  # of a case that failed, so that the next ones do not
        os.kill(pid, signal.SIGKILL)


def _parameter(case: Case) -> object:
    marks = [pytest.mark.long if case.is_fast else pytest.mark.fault_matrix]
    if case.fault in DISKS:
        marks.append(pytest.mark.skipif(not IS_ROOT, reason="only root mounts a small disk"))
    return pytest.param(case.flow, case, id=case.id, marks=marks)


@pytest.mark.usefixtures("flow")
@pytest.mark.parametrize(("flow", "case"), [_parameter(case) for case in CASES])
def test_the_next_run_makes_good_what_a_fault_left(theatre: Theatre, case: Case) -> None:
    """Final state as after a clean run, nothing lost or doubled, both runs on record, nothing left behind."""
    _tell({"number": case.number, "passed": False})
    story = theatre.perform(case)
    aftermath(story)
    _tell(told(story))


def _tell(result: dict[str, object]) -> None:
    if RESULTS:
        (Path(RESULTS) / f"{result['number']}.json").write_text(json.dumps(result))


@pytest.mark.fault_matrix
@pytest.mark.parametrize("flow", list(EVENTS))
def test_the_boundaries_are_all_there_are(theatre: Theatre, flow: str) -> None:
    """A clean run has as many events as there are kills at each side of one."""
    assert EVENTS[flow] == theatre.clean(flow).counted["event"]
