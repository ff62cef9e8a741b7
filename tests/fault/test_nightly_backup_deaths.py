import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from deployments.server import python_path, start_worker
from pgvigil.audit import RunSummary, list_runs
from pgvigil.postgres import Connection, connect
from pgvigil.processes import marked_processes
from pgvigil.sandbox import Sandbox, down, services
from tests.fixtures.backup import processes_of
from tests.fixtures.deployed import kill_prefect, start_prefect, up_unwatched
from tests.fixtures.sandbox import reachable_directory
from tests.fixtures.told import argv_of

pytestmark = pytest.mark.long

DEPLOYMENT = "nightly_backup/nightly-backup"


def wait_for(condition: Callable[[], object], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slow_sandbox() -> Iterator[Sandbox]:
    """A sandbox with Prefect whose backups take long enough to be killed in the middle of a file."""
    directory = reachable_directory()
    made = up_unwatched(directory / "slow", empty=True)
    conf = made.pgbackrest_conf
    slow = "[global:backup]\ncompress-type=bz2\ncompress-level=9\nprocess-max=1\n"
    conf.write_text(f"{conf.read_text()}\n{slow}")
    with connect(made.admin_dsn(made.primary_port, "shop"), "test") as session:
        session.execute(
            "CREATE TABLE public.big AS SELECT md5(n::text) || md5((n + 1)::text) AS t"
            " FROM generate_series(1, 1000000) n"
        )
    yield made
    down(directory / "slow")
    directory.rmdir()


@pytest.fixture
def client(slow_sandbox: Sandbox) -> Iterator[SyncPrefectClient]:
    """A client of the sandbox's Prefect server."""
    with (
        temporary_settings({PREFECT_API_URL: slow_sandbox.environment["PREFECT_API_URL"]}),
        get_client(sync_client=True) as made,
    ):
        yield made


@pytest.fixture
def run_in_mid_backup(slow_sandbox: Sandbox, client: SyncPrefectClient) -> FlowRun:
    """A run of the deployment, started through the worker, whose backup is at work."""
    deployment = client.read_deployment_by_name(DEPLOYMENT)
    run = client.create_flow_run_from_deployment(
        deployment.id, parameters={"cluster": "demo", "backup_type": "full"}
    )
    wait_for(lambda: len(processes_of(slow_sandbox)) > 1, "the backup's workers")
    return run


def flow_processes(run: FlowRun) -> list[int]:
    """Find the process that executes a flow run, not the tools below it."""
    found = marked_processes(f"PREFECT__FLOW_RUN_ID={run.id}")
    return [pid for pid in found if b"prefect" in b" ".join(argv_of(pid))]


def worker_pid(sandbox: Sandbox) -> int:
    """Find the sandbox's Prefect worker."""
    for pid in services.find(sandbox.directory, [None]):
        if {b"prefect", b"worker"} <= set(argv_of(pid)):
            return pid
    raise LookupError("no worker")


def state(client: SyncPrefectClient, run: FlowRun) -> str:
    found = client.read_flow_run(run.id).state
    return found.name if found else ""


def backups(session: Connection) -> list[RunSummary]:
    """List the runs of this flow: the worker has those of others to do as well, as their schedules tell."""
    return [run for run in list_runs(session) if run.flow == "nightly_backup"]


def audited(sandbox: Sandbox) -> list[str]:
    with connect(sandbox.ops_admin_dsn, "test") as session:
        return [f"{run.state} {run.verdict} {run.headline}" for run in backups(session)]


def is_over(client: SyncPrefectClient, run: FlowRun) -> bool:
    now = client.read_flow_run(run.id).state
    return now is not None and now.is_final()


def next_run(sandbox: Sandbox, client: SyncPrefectClient) -> dict[str, object]:
    """Run again through the worker and return the stored report."""
    deployment = client.read_deployment_by_name(DEPLOYMENT)
    run = client.create_flow_run_from_deployment(deployment.id, parameters={"cluster": "demo"})
    wait_for(lambda: is_over(client, run), "the next run's end", 120)
    with connect(sandbox.ops_admin_dsn, "test") as session:
        newest = backups(session)[0]
    return {"state": state(client, run), "verdict": newest.verdict, "headline": newest.headline}


def assert_good_afterwards(sandbox: Sandbox, client: SyncPrefectClient) -> None:
    assert [] == processes_of(sandbox)
    after = next_run(sandbox, client)
    assert ("Completed", "verified") == (after["state"], after["verdict"]), after
    assert [] == processes_of(sandbox)


def test_a_cancel_in_prefect_ends_the_backup(
    slow_sandbox: Sandbox, client: SyncPrefectClient, run_in_mid_backup: FlowRun
) -> None:
    """Within seconds no process of the tool is alive, the run says Cancelled, and so does the audit log."""
    client.set_flow_run_state(run_in_mid_backup.id, Cancelling())

    wait_for(lambda: not processes_of(slow_sandbox), "the backup's end", 30)
    wait_for(lambda: state(client, run_in_mid_backup) == "Cancelled", "Cancelled")
    assert audited(slow_sandbox)[0].startswith("ended inconclusive")
    assert_good_afterwards(slow_sandbox, client)


def test_a_flow_process_killed_alone_takes_its_backup_along(
    slow_sandbox: Sandbox, client: SyncPrefectClient, run_in_mid_backup: FlowRun
) -> None:
    """SIGKILL of the flow's process: no orphan, and the next run tells of the lost one."""
    for pid in flow_processes(run_in_mid_backup):
        os.kill(pid, signal.SIGKILL)

    wait_for(lambda: not processes_of(slow_sandbox), "the backup's end", 30)
    wait_for(lambda: state(client, run_in_mid_backup) == "Crashed", "Crashed")
    assert_good_afterwards(slow_sandbox, client)
    assert any(run.startswith("lost") for run in audited(slow_sandbox))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_dies_leaves_no_orphan(
    slow_sandbox: Sandbox, client: SyncPrefectClient, run_in_mid_backup: FlowRun, number: int
) -> None:
    """SIGTERM takes the flow along, SIGKILL lets it finish: either way nothing is left at work."""
    os.kill(worker_pid(slow_sandbox), number)

    wait_for(lambda: not processes_of(slow_sandbox), "the backup's end", 120)
    wait_for(lambda: not flow_processes(run_in_mid_backup), "the flow's end", 120)
    start_worker(slow_sandbox, slow_sandbox.environment["PREFECT_API_URL"], "dba")
    if number == signal.SIGKILL:
        assert audited(slow_sandbox)[0].startswith("ended verified"), audited(slow_sandbox)
    else:
        assert_found_by_the_watch(slow_sandbox, client, run_in_mid_backup)
    assert_good_afterwards(slow_sandbox, client)


def assert_found_by_the_watch(sandbox: Sandbox, client: SyncPrefectClient, run: FlowRun) -> None:
    """Prefect held it for running; the watch tells what it left and what comes next."""
    assert state(client, run) == "Running"
    with command(sandbox, "run", "keep-watch", "fleet") as watching:
        watching.communicate(timeout=300)
    assert watching.returncode == 0
    found = client.read_flow_run(run.id).state
    assert found is not None
    assert found.name == "Crashed"
    assert "has no outcome; the next nightly_backup of demo finds what it left" in str(found.message)


def command(sandbox: Sandbox, *words: str) -> subprocess.Popen[str]:
    """Start the program with the environment of a sandbox."""
    return subprocess.Popen(
        [sys.executable, "-m", "deployments", *words],
        env={**os.environ, **sandbox.environment, "PYTHONPATH": python_path()},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_worker_that_was_drained_is_stopped_without_a_loss(
    slow_sandbox: Sandbox, client: SyncPrefectClient, run_in_mid_backup: FlowRun
) -> None:
    """The run at work ends verified, a new one waits for the worker that comes after the maintenance."""
    with command(slow_sandbox, "drain", "dba") as draining:
        wait_for(lambda: client.read_work_pool("dba").is_paused, "the pause")
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        waiting = client.create_flow_run_from_deployment(deployment.id, parameters={"cluster": "demo"})
        told, _ = draining.communicate(timeout=300)
    assert f"waiting for: {client.read_flow_run(run_in_mid_backup.id).name}" in told
    assert (0, "Completed") == (draining.returncode, state(client, run_in_mid_backup))
    assert state(client, waiting) in {"Scheduled", "Late"}

    pid = worker_pid(slow_sandbox)
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not services.is_alive(pid), "the worker's end")
    start_worker(slow_sandbox, slow_sandbox.environment["PREFECT_API_URL"], "dba")
    with command(slow_sandbox, "drain", "dba", "--resume") as resuming:
        assert "'dba' takes runs again" in resuming.communicate(timeout=300)[0]

    wait_for(lambda: is_over(client, waiting), "the run that waited", 120)
    assert "Completed" == state(client, waiting)


def test_a_pool_that_a_person_paused_stays_so(slow_sandbox: Sandbox, client: SyncPrefectClient) -> None:
    """A drain ends at once where nothing is at work, and undoes only its own pause."""
    client.update_work_pool("dba", WorkPoolUpdate(is_paused=True))
    for words in (("drain", "dba"), ("drain", "dba", "--resume")):
        with command(slow_sandbox, *words) as done:
            told, _ = done.communicate(timeout=300)
        assert client.read_work_pool("dba").is_paused
    client.update_work_pool("dba", WorkPoolUpdate(is_paused=False))

    assert told == "'dba' stays paused: a person paused it, not a drain\n"


def test_a_run_whose_server_dies_goes_on_to_its_report(
    slow_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect killed in mid-backup: who started the run in a shell gets the verdict that is on record."""
    monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "1")  # or each of its calls takes a minute to give up
    full = ("-p", "backup_type=full")  # any other would be over before it is seen
    with command(slow_sandbox, "run", "nightly-backup", "demo", *full, "--json") as run:
        wait_for(lambda: len(processes_of(slow_sandbox)) > 1, "the backup's workers")
        kill_prefect(slow_sandbox)
        said, _ = run.communicate(timeout=300)
    start_prefect(slow_sandbox)

    assert (0, "verified") == (run.returncode, json.loads(said)["verdict"])
    assert audited(slow_sandbox)[0].startswith("ended verified")


def test_nothing_of_a_run_is_left_beside_the_spool(slow_sandbox: Sandbox) -> None:
    """Directories of killed runs are gone after the next run."""
    assert [] == list((slow_sandbox.directory / "runs").iterdir())
