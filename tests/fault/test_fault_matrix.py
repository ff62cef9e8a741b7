"""The fault matrix: tests/fixtures/faults/cases.py lists the cases, `make fault` runs all of them."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

import boto3
import pytest

from pgvigil.postgres import connect
from tests.fixtures.faults import cases
from tests.fixtures.faults.aftermath import aftermath
from tests.fixtures.faults.cases import CASES, EVENTS, Case
from tests.fixtures.faults.scenes import NEEDS_BACKUP, STAGE
from tests.fixtures.faults.story import Story, Theatre, told
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


# --- that the aftermath would notice -------------------------------------------------------------------


@contextmanager
def _run_left(_: Story) -> Iterator[None]:
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            yield
        finally:
            process.kill()


def _session_left(story: Story) -> AbstractContextManager[object]:
    return connect(story.world.sandbox.primary_admin_dsn, "pgvigil left")


def _audit_session_left(story: Story) -> AbstractContextManager[object]:
    return connect(story.world.sandbox.ops_admin_dsn, "pgvigil left")


@contextmanager
def _lock_left(story: Story) -> Iterator[None]:
    with story.world.session() as session:
        session.execute("SELECT pg_advisory_lock(7)")
        yield


@contextmanager
def _slot_left(story: Story) -> Iterator[None]:
    story.world.sql("SELECT pg_create_physical_replication_slot('left')")
    try:
        yield
    finally:
        story.world.sql("SELECT pg_drop_replication_slot('left')")


@contextmanager
def _file_left(place: str, story: Story) -> Iterator[None]:
    file = story.world.sandbox.directory / place
    file.parent.mkdir(exist_ok=True)
    file.touch()
    try:
        yield
    finally:
        file.unlink()


@contextmanager
def _upload_left(story: Story) -> Iterator[None]:
    client = boto3.client(
        "s3", endpoint_url=story.world.sandbox.endpoint_url, verify=str(story.world.sandbox.ca_file)
    )
    answer = client.create_multipart_upload(Bucket="archive", Key="stage/left")
    try:
        yield
    finally:
        client.abort_multipart_upload(Bucket="archive", Key="stage/left", UploadId=answer["UploadId"])


@contextmanager
def _event_edited(story: Story) -> Iterator[None]:
    _edit_event(story, "body || ' '")
    try:
        yield
    finally:
        _edit_event(story, "left(body, -1)")


def _edit_event(story: Story, body: str) -> None:
    with connect(story.world.sandbox.ops_admin_dsn, "test") as session, session.transaction():
        session.execute("ALTER TABLE pgvigil.audit_log DISABLE TRIGGER USER")
        session.execute(f"UPDATE pgvigil.audit_log SET body = {body} WHERE seq = {story.head}".encode())
        session.execute("ALTER TABLE pgvigil.audit_log ENABLE ALWAYS TRIGGER append_only")


@contextmanager
def _on_stage(statement: str, story: Story) -> Iterator[None]:
    story.world.sql(f"SET search_path = public; {statement}", STAGE)  # the stage is anew for each story
    yield


_DOUBLED = (
    "(created_at, customer_id, kind, payload) SELECT created_at, customer_id, kind, payload FROM events"
)
DAMAGES: dict[str, tuple[Callable[[Story], AbstractContextManager[object]], str]] = {
    "process": (_run_left, "processes are left"),
    "session": (_session_left, "sessions are left"),
    "audit session": (_audit_session_left, "audit sessions are left"),
    "lock": (_lock_left, "locks are left"),
    "slot": (_slot_left, "slots are left"),
    "run": (partial(_file_left, "disk/runs/left"), "left"),
    "event": (partial(_file_left, "disk/spool/left.json"), "left"),
    "temporary file": (partial(_file_left, "tmp/left"), "left"),
    "upload": (_upload_left, "UnfinishedUpload"),
    "edited event": (_event_edited, "seq|event|row"),
    "table": (partial(_on_stage, "CREATE TABLE stray ()"), "stray"),
    "partition": (partial(_on_stage, "ALTER TABLE events DETACH PARTITION events_2"), "events_2"),
    "row changed": (partial(_on_stage, "UPDATE events SET kind = 'x' WHERE customer_id = 9"), "events"),
    "row lost": (partial(_on_stage, "DELETE FROM events WHERE kind = 'writer'"), "rows are lost"),
    "row doubled": (
        partial(_on_stage, f"INSERT INTO events {_DOUBLED} WHERE kind = 'writer' LIMIT 1"),
        "rows are doubled",
    ),
}
KILLED = next(
    case
    for case in CASES
    if case.flow == "roll_partitions" and case.fault == cases.KILLED_AT and case.writers
)


@pytest.mark.long
@pytest.mark.parametrize("flow", [KILLED.flow])
@pytest.mark.parametrize("damage", list(DAMAGES))
def test_the_aftermath_notices_what_would_be_wrong(
    theatre: Theatre, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the matrix asks of every story is answered with no where somebody made it so."""
    make, words = DAMAGES[damage]
    story = theatre.perform(KILLED)
    aftermath(story)
    monkeypatch.setattr("tests.fixtures.faults.aftermath.PATIENCE", 0.2)

    with make(story), pytest.raises(AssertionError, match=words):
        aftermath(story)
