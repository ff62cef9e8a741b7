import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import PrefectHTTPStatusError

from deployments.deploy import deploy
from deployments.manifest import read_manifest
from deployments.steps import Wanted
from pgvigil.fleet import Fleet, load_fleet
from pgvigil.sandbox import Sandbox, services
from tests.acceptance.conftest import Pgvigil
from tests.fixtures.sockets import listening

pytestmark = pytest.mark.long

WAVE = "watch_fleet/fleet-nightly-backup"
NAME = "nightly_backup/nightly-backup"
UNCHANGED = "nothing to change: the server is as prefect.yaml and the fleet file say\n"


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


def test_nothing_of_a_sandbox_listens_beyond_this_host(prefect_sandbox: Sandbox) -> None:
    """PostgreSQL, S3, and Prefect's server and worker: every socket is on loopback."""
    box = prefect_sandbox
    prefect = urlsplit(box.environment["PREFECT_API_URL"]).port
    found = listening(services.find(box.directory, [None, box.server_user]))

    assert {box.primary_port, box.ops_port, box.s3_port, prefect} <= {port for port, _ in found}
    assert [place for place in found if not place[1].is_loopback] == []


def test_no_other_page_may_use_a_sandbox(client: SyncPrefectClient) -> None:
    """Without a password, a browser could: so no other origin is let in, and a write needs a token."""
    url = str(client.api_url)
    asked = urllib.request.Request(f"{url}health", headers={"Origin": "http://elsewhere.example"})  # noqa: S310
    with urllib.request.urlopen(asked) as answer:  # noqa: S310 - the sandbox's own address
        assert answer.headers["Access-Control-Allow-Origin"] is None
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{url}flow_runs/", data=b"{}")  # noqa: S310 - as above


def _await(find: Callable[[], list[FlowRun]], seconds: float = 90) -> list[FlowRun]:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.5)
    return found


@pytest.fixture
def change(
    prefect_sandbox: Sandbox,
    client: SyncPrefectClient,  # noqa: ARG001 - its server is deployed to
) -> Iterator[Callable[..., tuple[str, ...]]]:
    """Deploy with keys added to the cluster, and deployments of prefect.yaml left out; undone at the end."""
    fleet = load_fleet(prefect_sandbox.fleet_file)

    def apply(*without: str, **keys: Any) -> tuple[str, ...]:
        data = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
        data["clusters"]["demo"] |= keys
        changed = Fleet.model_validate(data)
        manifest = read_manifest(changed)
        kept = tuple(each for each in manifest.deployments if each.name not in without)
        return deploy(Wanted(manifest.model_copy(update={"deployments": kept}), changed))

    yield apply
    deploy(Wanted(read_manifest(fleet), fleet))


OWN = {"nightly-backup": {"cron": "0 22 * * *", "timezone": "Europe/Berlin"}}


def test_a_time_of_its_own_comes_and_goes_with_the_fleet_file(
    client: SyncPrefectClient, change: Callable[..., tuple[str, ...]]
) -> None:
    """The wave, which has nobody else, gives its schedule up meanwhile; what people scheduled stays."""
    found = client.read_deployment_by_name(NAME)
    people = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 12 * * *", timezone="Etc/UTC"))
    (by_hand,) = client.create_deployment_schedules(found.id, [people])

    assert {
        "update deployment 'nightly-backup': parameters",
        "create schedule 'own-demo' of 'nightly-backup' at '0 22 * * *' Europe/Berlin",
        "delete schedule 'wave' of 'fleet-nightly-backup', which nothing asks for any more",
    } <= set(change(schedules=OWN))
    assert () == change(schedules=OWN)
    assert {"own-demo", None} == {each.slug for each in client.read_deployment_schedules(found.id)}

    assert "delete schedule 'own-demo' of 'nightly-backup', which nothing asks for any more" in change()
    assert [by_hand.id] == [each.id for each in client.read_deployment_schedules(found.id)]
    client.delete_deployment_schedule(found.id, by_hand.id)


def test_a_database_that_left_the_fleet_file_is_neither_scheduled_nor_offered(
    client: SyncPrefectClient, change: Callable[..., tuple[str, ...]], prefect_sandbox: Sandbox
) -> None:
    """Its schedule goes with the runs that were planned, and who asks for one by hand is refused."""
    fleet = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
    shop = fleet["clusters"]["demo"]["databases"]["shop"]
    own = {"schedules": {"roll-partitions": {"cron": "0 22 * * *", "timezone": "Etc/UTC"}}}
    change(databases={"shop": shop | own, "other": shop})
    deployment = client.read_deployment_by_name("roll_partitions/roll-partitions")
    assert _await(lambda: planned(client, deployment))

    assert "delete schedule 'own-demo/shop' of 'roll-partitions', which nothing asks for any more" in change(
        databases={"other": shop}
    )

    assert () == change(databases={"other": shop})
    assert [] == planned(client, deployment)
    schema = client.read_deployment(deployment.id).parameter_openapi_schema
    assert schema is not None
    assert ["demo/other"] == schema["properties"]["database"]["enum"]
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        client.create_flow_run_from_deployment(deployment.id, parameters={"database": "demo/shop"})


def planned(client: SyncPrefectClient, deployment: DeploymentResponse) -> list[FlowRun]:
    """Return the runs that a schedule of the deployment has made for later."""
    found = client.read_flow_runs()
    return [run for run in found if run.auto_scheduled and run.deployment_id == deployment.id]


def test_a_server_of_another_fleet_is_left_alone(
    pgvigil: Pgvigil, prefect_sandbox: Sandbox, tmp_path: Path
) -> None:
    """Told from ours by its audit store; who moved that takes over, and nothing of it is made twice."""
    moved = tmp_path / "fleet.yaml"
    data = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
    data["audit"]["dsn"] = "postgresql://pgvigil@127.0.0.1:1/elsewhere"
    moved.write_text(yaml.safe_dump(data), encoding="utf-8")

    refused = [pgvigil("deploy", *words, PGVIGIL_FLEET=str(moved)) for words in ((), ("--dry-run",))]
    assert [(2, "")] * 2 == [(each.returncode, each.stdout) for each in refused]
    assert "127.0.0.1:1/elsewhere" in refused[0].stderr
    assert UNCHANGED == pgvigil("deploy").stdout

    taken = pgvigil("deploy", "--take-over", PGVIGIL_FLEET=str(moved)).stdout.splitlines()
    assert {"tags"} == {line.rpartition(": ")[2] for line in taken}
    assert 2 == pgvigil("deploy").returncode
    assert len(taken) == len(pgvigil("deploy", "--take-over").stdout.splitlines())
    assert UNCHANGED == pgvigil("deploy").stdout


def test_a_deployment_that_is_gone_from_the_file_is_deleted(
    client: SyncPrefectClient, change: Callable[..., tuple[str, ...]]
) -> None:
    """One that people made of the same flow, under another name, stays."""
    gone = client.read_deployment_by_name("steer_backfill/steer-backfill")
    by_hand = client.create_deployment(gone.flow_id, "by-hand", tags=["pgvigil"])

    assert ("delete deployment 'steer-backfill', which prefect.yaml no longer has",) == change(
        "steer-backfill"
    )

    names = {each.name for each in client.read_deployments()}
    assert ("by-hand" in names, "steer-backfill" in names) == (True, False)
    assert 1 == len(change())
    client.delete_deployment(by_hand)


def test_what_an_operator_paused_stays_paused(
    client: SyncPrefectClient, change: Callable[..., tuple[str, ...]], wave: DeploymentResponse
) -> None:
    """A schedule whose time a deploy changes, and a whole deployment."""
    (schedule,) = wave.schedules
    client.update_deployment_schedule(wave.id, schedule.id, active=False)
    client.pause_deployment(client.read_deployment_by_name(NAME).id)
    client.update_deployment_schedule(
        wave.id, schedule.id, schedule=CronSchedule(cron="0 1 * * *", timezone="Etc/UTC")
    )

    assert ("update schedule 'wave' of 'fleet-nightly-backup' at '30 3 * * *' Etc/UTC",) == change()

    (after,) = client.read_deployment_schedules(wave.id)
    assert (after.active, after.schedule.cron) == (False, "30 3 * * *")
    assert client.read_deployment_by_name(NAME).paused
    client.update_deployment_schedule(wave.id, schedule.id, active=True)
    client.resume_deployment(client.read_deployment_by_name(NAME).id)
