"""The set-up of infra/ on several machines, in miniature: two APIs, services apart, Redis, two workers."""

import json
import shutil
from collections.abc import Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from pgvigil.fleet import load_fleet
from pgvigil.lock import hold_stanza
from pgvigil.objectstore import ObjectStore, connect
from pgvigil.sandbox import down, up
from tests.fixtures.sandbox import reachable_directory
from tests.fixtures.scale import Scale, await_it
from tests.fixtures.sockets import listening
from tests.fixtures.told import argv_of

pytestmark = pytest.mark.long

ENDED = {"Completed", "Refuted", "Inconclusive", "Crashed", "Failed"}


@pytest.fixture(scope="module")
def scale() -> Iterator[Scale]:
    """The whole of it on a bare sandbox, in the order of the systemd units."""
    directory = reachable_directory()
    made = Scale(up(directory / "scale", empty=True))
    try:
        made.up()
        yield made
    finally:
        down(directory / "scale")
        shutil.rmtree(directory)


@pytest.fixture
def client(scale: Scale) -> Iterator[SyncPrefectClient]:
    """A client that has the password."""
    settings = {PREFECT_API_URL: scale.url, PREFECT_API_AUTH_STRING: scale.password}
    with temporary_settings(settings), get_client(sync_client=True) as session:
        yield session


@pytest.fixture
def store(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The object store where the reports are."""
    for name, value in scale.sandbox.environment.items():
        monkeypatch.setenv(name, value)
    return connect(load_fleet(scale.sandbox.fleet_file).s3)


def start(client: SyncPrefectClient) -> UUID:
    deployment = client.read_deployment_by_name("nightly_backup/nightly-backup")
    return client.create_flow_run_from_deployment(deployment.id, parameters={"cluster": "demo"}).id


def await_state(client: SyncPrefectClient, run: UUID, *names: str) -> FlowRun:
    def look() -> FlowRun | None:
        found = client.read_flow_run(run)
        return found if found.state_name in names else None

    return await_it(look)


def test_a_caller_without_the_password_is_refused(scale: Scale) -> None:
    """By the front and by each API; pgvigil says which variable is missing, or wrong."""
    asked = [scale.ask("/api/admin/version", port=port)[0] for port in (scale.front, *scale.apis)]
    without = scale.pgvigil("run", "nightly-backup", "demo", PREFECT_API_AUTH_STRING="")
    wrong = scale.pgvigil("deploy", PREFECT_API_AUTH_STRING="admin:guess")

    assert asked == [401, 401, 401]
    assert "no password (PREFECT_API_AUTH_STRING)" in without.stderr
    assert "another password" in wrong.stderr
    assert "PREFECT_SERVER_API_AUTH_STRING" in without.stderr
    assert (without.returncode, wrong.returncode) == (2, 2)


def test_a_write_without_the_servers_token_is_refused(scale: Scale) -> None:
    """The password alone, which a browser would add by itself, starts nothing from another page."""
    status, told = scale.ask("/api/flow_runs/", "POST", Authorization=scale.basic)

    assert (status, "CSRF" in told) == (403, True)


def test_a_run_with_the_password_is_verified(scale: Scale) -> None:
    """From the shell, over whichever API; and a second deploy has nothing to do."""
    done = scale.pgvigil("run", "nightly-backup", "demo", "--json")

    assert json.loads(done.stdout)["verdict"] == "verified", done.stderr
    assert scale.pgvigil("deploy").stdout.startswith("nothing to change")


def test_the_page_is_served_by_every_api(scale: Scale) -> None:
    """The UI was unpacked where the unit lets it."""
    pages = [scale.ask("/v2/", port=port) for port in scale.apis]

    assert [(status, "<html" in page.lower()) for status, page in pages] == [(200, True)] * 2


def test_a_run_outlives_the_death_of_an_api_and_of_its_worker(
    scale: Scale, client: SyncPrefectClient
) -> None:
    """Both killed in its middle: it ends verified, on record in Prefect too, and the next run is right.

    It is in its middle because somebody else has the stanza. What dies is the worker that started it, so
    nobody is left who watches its process; and an API that held its connections.
    """
    cluster = scale.sandbox.admin_dsn(scale.sandbox.primary_port)
    with hold_stanza(cluster, "demo", "somebody", timedelta(seconds=30)):
        run = start(client)
        await_state(client, run, "Running")
        worker = await_it(lambda: scale.worker_of(run))
        scale.kill(worker)
        scale.kill(f"api-{scale.apis[0]}")

    assert await_state(client, run, *ENDED).state_name == "Completed"
    assert await_state(client, start(client), *ENDED).state_name == "Completed"
    told = json.loads(scale.pgvigil("audit", "list", "--json").stdout)
    assert [(each["state"], each["verdict"]) for each in told[:2]] == [("ended", "verified")] * 2

    scale.start_api(scale.apis[0])
    scale.start_worker(worker)


def test_nothing_of_it_listens_beyond_this_host(scale: Scale) -> None:
    """Databases, Redis, APIs, front, object store: every socket is on loopback."""
    box = scale.sandbox
    found = listening(scale.processes())

    ports = {box.primary_port, box.ops_port, box.s3_port, scale.redis, scale.front, *scale.apis}
    assert ports <= {port for port, _ in found}
    assert [place for place in found if not place[1].is_loopback] == []


def test_no_secret_is_in_a_log_a_process_list_or_a_report(
    scale: Scale, store: ObjectStore, client: SyncPrefectClient
) -> None:
    """The passwords of API, Redis and database: after runs that ended well, and ones that were refused."""
    kept = [line.message.encode() for line in client.read_logs()]
    commands = [b" ".join(argv_of(pid)) for pid in scale.processes()]
    logs = [file.read_bytes() for file in (scale.sandbox.directory / "log").rglob("*.log")]
    shown = scale.pgvigil("audit", "list", "--json").stdout.encode()
    reports = [store.get(each.uri) for each in store.list("s3://reports/pgvigil/")]

    assert len(logs) > 8
    assert reports
    assert kept
    for text in (*commands, *logs, *reports, *kept, shown):
        assert not [each for each in scale.secrets if each.encode() in text]
