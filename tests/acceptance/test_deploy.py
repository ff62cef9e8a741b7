import time
from collections.abc import Callable, Iterator

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL, temporary_settings

from pgvigil.sandbox import Sandbox
from tests.acceptance.conftest import Pgvigil

WAVE = "watch_fleet/fleet-nightly-backup"
NAME = "nightly_backup/nightly-backup"
UNCHANGED = "nothing to change: the server is as prefect.yaml and the fleet file say\n"


@pytest.fixture
def client(prefect_sandbox: Sandbox) -> Iterator[SyncPrefectClient]:
    """A client of the sandbox's server."""
    url = prefect_sandbox.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as session:
        yield session


@pytest.fixture
def deployment(client: SyncPrefectClient) -> DeploymentResponse:
    """The nightly backup's deployment as the server has it."""
    return client.read_deployment_by_name(NAME)


@pytest.fixture
def wave(client: SyncPrefectClient) -> DeploymentResponse:
    """The deployment that takes the nightly backup over the fleet."""
    return client.read_deployment_by_name(WAVE)


def test_the_schedule_makes_runs(client: SyncPrefectClient, wave: DeploymentResponse) -> None:
    """The server's scheduler plans the coming nights, each with its pipeline."""
    planned = _await(
        lambda: [r for r in client.read_flow_runs() if r.auto_scheduled and r.deployment_id == wave.id]
    )

    assert {str(run.parameters) for run in planned} == {"{'pipeline': 'nightly-backup'}"}


def test_a_second_deploy_changes_nothing(pgvigil: Pgvigil) -> None:
    """The sandbox is deployed already: deploying again says so."""
    assert UNCHANGED == pgvigil("deploy").stdout


@pytest.mark.long
def test_a_dry_run_only_tells(pgvigil: Pgvigil, client: SyncPrefectClient, wave: DeploymentResponse) -> None:
    """A schedule that somebody deleted is announced, not made; the deploy after it makes it."""
    client.delete_deployment_schedule(wave.id, wave.schedules[0].id)

    told = pgvigil("deploy", "--dry-run").stdout

    assert told == "would create schedule 'wave' of 'fleet-nightly-backup' at '30 3 * * *' Etc/UTC\n"
    assert client.read_deployment_by_name(WAVE).schedules == []
    assert pgvigil("deploy").stdout == told.replace("would", "done:")
    assert UNCHANGED == pgvigil("deploy").stdout


def test_every_field_of_the_form_explains_itself(deployment: DeploymentResponse) -> None:
    """Each parameter has a description and a place, and the server checks what is entered."""
    schema = deployment.parameter_openapi_schema
    assert schema is not None
    fields = schema["properties"]
    assert {"cluster", "backup_type", "dry_run"} == set(fields)
    assert all(field["description"] and "position" in field for field in fields.values())
    assert deployment.enforce_parameter_schema


def test_the_worker_completes_a_run(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    """A run that is started in the UI is picked up, and ends Completed because the backup is proven."""
    run = client.create_flow_run_from_deployment(deployment.id, parameters={"cluster": "demo"})

    (ended,) = _await(lambda: [r for r in [client.read_flow_run(run.id)] if r.state and r.state.is_final()])

    assert ended.state_name == "Completed", ended.state


def _await(find: Callable[[], list[FlowRun]], seconds: float = 90) -> list[FlowRun]:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.5)
    return found
