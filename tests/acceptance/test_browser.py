"""The Prefect UI as an operator meets it, in Debian's Chromium; `make screenshots` keeps pictures."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import yaml
from playwright.sync_api import Locator, Page, sync_playwright
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    DeploymentFilter,
    DeploymentFilterId,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments.deploy import deploy
from deployments.manifest import read_manifest
from deployments.steps import Wanted
from pgvigil.fleet import load_fleet
from pgvigil.lock import hold
from pgvigil.partitions.managing import lock_identity
from pgvigil.postgres import connect
from pgvigil.processes import marked_processes
from pgvigil.sandbox import Sandbox, down
from tests.fixtures.backup import processes_of
from tests.fixtures.deployed import up_unwatched
from tests.fixtures.sandbox import reachable_directory

pytestmark = pytest.mark.long

T = TypeVar("T")
CHROMIUM = "/usr/bin/chromium"
# Nothing but this host is ever asked for anything.
OFFLINE = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
PATIENCE = 90_000

Picture = Callable[[str], object]


@pytest.fixture(scope="module")
def prefect_sandbox() -> Iterator[Sandbox]:
    """A sandbox of these tests alone: what waits for approval here must not be rolled by others."""
    directory = reachable_directory()
    yield up_unwatched(directory / "browser")
    down(directory / "browser")
    directory.rmdir()


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One browser window."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OFFLINE)
        window = browser.new_page(viewport={"width": 1200, "height": 960})
        window.set_default_timeout(PATIENCE)
        yield window
        browser.close()


@pytest.fixture
def picture(page: Page) -> Picture:
    """Keep what the window shows, if PGVIGIL_SCREENSHOTS names a directory."""

    def take(name: str) -> None:
        folder = os.environ.get("PGVIGIL_SCREENSHOTS")
        if folder:
            page.wait_for_timeout(1500)  # for what fades in
            page.screenshot(path=Path(folder, f"{name}.png"))

    return take


@pytest.fixture
def url(prefect_sandbox: Sandbox) -> str:
    """Where the UI is."""
    return prefect_sandbox.environment["PREFECT_API_URL"].removesuffix("/api")


@pytest.fixture
def client(url: str) -> Iterator[SyncPrefectClient]:
    """A client of the sandbox's server."""
    with temporary_settings({PREFECT_API_URL: f"{url}/api"}), get_client(sync_client=True) as session:
        yield session


class Desk:
    """An operator's way through the UI."""

    def __init__(self, page: Page, client: SyncPrefectClient, url: str) -> None:
        self.page = page
        self.client = client
        self.url = url

    def open_form(self, name: str) -> UUID:
        deployment = self.client.read_deployment_by_name(f"{name.replace('-', '_')}/{name}")
        self.page.goto(f"{self.url}/v2/deployments/deployment/{deployment.id}/run")
        self.page.get_by_text("Enforce Parameter Schema").wait_for()
        return deployment.id

    def choose(self, field: str, value: str) -> None:
        self.page.get_by_label(f"Select {field}").click()
        self.page.get_by_role("option", name=value, exact=True).click()

    def submit(self, deployment: UUID) -> FlowRun:
        """Send the form and return the run that it made."""
        before = {run.id for run in self.runs(deployment)}
        self.page.get_by_role("button", name="Submit").click()
        return _await(lambda: next((run for run in self.runs(deployment) if run.id not in before), None))

    def runs(self, deployment: UUID) -> list[FlowRun]:
        wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        found = self.client.read_flow_runs(deployment_filter=wanted, sort=FlowRunSort.START_TIME_DESC)
        return [run for run in found if not run.auto_scheduled]

    def await_state(self, run: UUID, *names: str) -> FlowRun:
        def look() -> FlowRun | None:
            found = self.client.read_flow_run(run)
            return found if found.state_name in names else None

        return _await(look)

    def open_run(self, run: UUID, tab: str = "Logs") -> None:
        self.page.goto(f"{self.url}/v2/runs/flow-run/{run}")
        self.page.get_by_role("tab", name=tab).click()

    def read_report(self, run: UUID, key: str) -> None:
        """Open the page of evidence that a run has left."""
        self.open_run(run, "Artifacts")
        self.page.get_by_role("link", name=key).first.click()
        self.page.get_by_role("link", name=re.compile("^[0-9a-f]{8}$")).first.click()

    def menu(self, item: str) -> None:
        """Choose from the menu of the run's page."""
        dots = self.page.locator("button:has(svg circle)")
        dots.first.click()
        self.page.get_by_role("menuitem", name=item, exact=True).click()


@pytest.fixture
def desk(page: Page, client: SyncPrefectClient, url: str) -> Desk:
    """The operator at work."""
    return Desk(page, client, url)


def test_a_backup_is_run_through_its_form_and_its_report_is_read(
    desk: Desk, page: Page, picture: Picture
) -> None:
    """The cluster stands there already, the type is a choice, and the page of evidence says verified."""
    form = desk.open_form("nightly-backup")
    assert page.get_by_label("Select Cluster").inner_text() == "demo"
    desk.choose("Backup type", "full")
    picture("form")
    run = desk.submit(form)
    assert run.parameters["backup_type"] == "full"

    assert (
        desk.await_state(run.id, "Completed", "Failed", "Refuted", "Inconclusive").state_name == "Completed"
    )
    desk.read_report(run.id, "nightly-backup-demo")
    page.get_by_role("heading", name="VERIFIED: nightly_backup on demo").wait_for()
    picture("report")


@pytest.fixture
def slow(prefect_sandbox: Sandbox) -> Iterator[None]:
    """Backups that take long enough to be watched."""
    conf = prefect_sandbox.pgbackrest_conf
    before = conf.read_text(encoding="utf-8")
    conf.write_text(f"{before}\n[global:backup]\ncompress-type=bz2\ncompress-level=9\nprocess-max=1\n")
    with connect(prefect_sandbox.admin_dsn(prefect_sandbox.primary_port, "shop"), "test") as session:
        for number in range(4):  # progress is told after each file
            session.execute(
                f"CREATE TABLE public.big_{number} AS SELECT md5(n::text) || md5((n + 1)::text) AS t"
                " FROM generate_series(1, 250000) AS n"
            )
        yield
        session.execute("DROP TABLE public.big_0, public.big_1, public.big_2, public.big_3")
    conf.write_text(before, encoding="utf-8")


@pytest.mark.usefixtures("slow")
def test_a_backups_progress_is_watched(
    desk: Desk, page: Page, picture: Picture, prefect_sandbox: Sandbox
) -> None:
    """While it runs its page says how far it is: held in its middle, neither at the begin nor at the end."""
    backup = desk.client.read_deployment_by_name("nightly_backup/nightly-backup")
    wanted = {"cluster": "demo", "backup_type": "full"}
    run = desk.client.create_flow_run_from_deployment(backup.id, parameters=wanted).id
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    _await(lambda: [a for a in desk.client.read_artifacts(artifact_filter=of_run) if a.data >= 1], pause=0.05)

    with held(processes_of(prefect_sandbox)):
        desk.open_run(run, "Artifacts")
        page.get_by_text("Running", exact=True).first.wait_for()
        page.get_by_role("link", name="demo-backup-progress").first.click()
        said = page.get_by_text(re.compile(r" of [\d.]+ MB \([\d.]+ %\)")).first.inner_text()
        picture("progress")
    assert 0 < float(re.findall(r"\(([\d.]+) %\)", said)[0]) < 100
    assert desk.await_state(run, "Completed", "Refuted", "Inconclusive").state_name == "Completed"


@contextmanager
def held(processes: list[int]) -> Iterator[None]:
    """Stop processes for the block."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)


def test_what_destroys_begins_as_a_dry_run(desk: Desk, page: Page, picture: Picture) -> None:
    """The switch is on in the form, and the run gets what the form shows."""
    form = desk.open_form("roll-partitions")
    assert page.get_by_label("Dry run").get_attribute("aria-checked") == "true"
    picture("dry-run")

    assert desk.submit(form).parameters["dry_run"] is True


def test_a_form_without_a_choice_is_refused_at_once(desk: Desk, page: Page, picture: Picture) -> None:
    """The action is missing: the form says so beside the field, and no run begins."""
    form = desk.open_form("steer-backfill")
    assert page.get_by_label("Select Backfill").inner_text() == "cents"
    page.get_by_role("button", name="Submit").click()

    page.get_by_text("'action' is a required property", exact=True).wait_for()
    page.get_by_text("The database as cluster/database.").scroll_into_view_if_needed()
    picture("refused")
    assert desk.runs(form) == []


@pytest.fixture
def waiting(prefect_sandbox: Sandbox, client: SyncPrefectClient) -> Iterator[UUID]:
    """A run of roll-partitions whose fleet file asks a person; the file is put back."""
    before = prefect_sandbox.fleet_file.read_text(encoding="utf-8")
    data = yaml.safe_load(before)
    (own,) = data["clusters"]["demo"]["databases"]["shop"]["partitions"]
    own |= {"drop": "approve", "max_drops": 2, "wait": "5m"}
    prefect_sandbox.fleet_file.write_text(yaml.safe_dump(data), encoding="utf-8")
    deployment = client.read_deployment_by_name("roll_partitions/roll-partitions")
    yield client.create_flow_run_from_deployment(deployment.id, parameters={"database": "demo/shop"}).id
    prefect_sandbox.fleet_file.write_text(before, encoding="utf-8")


def test_a_drop_is_approved_in_the_dialog(
    desk: Desk, page: Page, picture: Picture, waiting: UUID, prefect_sandbox: Sandbox
) -> None:
    """Plan and proof stand in it, the decision is a choice; after it the tables are gone."""
    desk.await_state(waiting, "Suspended")
    assert len(tables(prefect_sandbox)) == 2
    desk.open_run(waiting)
    desk.menu("Resume")
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("read back from S3").wait_for()
    desk.choose("Decision", "approve")
    dialog.get_by_label("Your name").fill("Ada L.")
    dialog.get_by_label("Note").fill("CHG-17")
    picture("approve")
    dialog.get_by_role("button", name="Resume").click()

    assert desk.await_state(waiting, "Completed", "Failed", "Inconclusive").state_name == "Completed"
    assert tables(prefect_sandbox) == []


def tables(sandbox: Sandbox) -> list[str]:
    """Return the tables that are detached and wait."""
    with connect(sandbox.admin_dsn(sandbox.primary_port, "shop"), "test") as session:
        return [
            row["name"]
            for row in session.execute("SELECT name FROM pgvigil.departure WHERE name ~ 'events'").fetchall()
        ]


@pytest.fixture
def stuck(prefect_sandbox: Sandbox) -> Iterator[None]:
    """Somebody else works on the partitions, so that a run waits."""
    dsn = prefect_sandbox.admin_dsn(prefect_sandbox.primary_port, "shop")
    with connect(dsn, "test") as session:
        (row,) = session.execute("SELECT to_regclass('public.events')::oid::bigint AS oid").fetchall()
    what, identity = "the partitions of 'public.events'", lock_identity(row["oid"])
    with hold(dsn, what, "somebody", timedelta(seconds=30), identity=identity):
        yield


@pytest.mark.usefixtures("stuck")
def test_a_run_is_cancelled_from_its_page(desk: Desk, page: Page, picture: Picture, waiting: UUID) -> None:
    """It ends as Cancelled, and nothing of it is left."""
    desk.await_state(waiting, "Running")
    desk.open_run(waiting)
    desk.menu("Cancel")
    picture("cancel")
    page.get_by_role("button", name="Cancel Flow Run").click()

    assert desk.await_state(waiting, "Cancelled", "Completed").state_name == "Cancelled"
    assert _await(lambda: not marked_processes(f"PREFECT__FLOW_RUN_ID={waiting}"))


@pytest.fixture
def policies(
    prefect_sandbox: Sandbox,
    client: SyncPrefectClient,  # noqa: ARG001 - its server is deployed to
) -> Iterator[Callable[[Callable[[dict[str, Any]], None]], None]]:
    """Change the fleet file and deploy; both are undone at the end."""
    before = prefect_sandbox.fleet_file.read_text(encoding="utf-8")

    def bring_up(text: str) -> None:
        prefect_sandbox.fleet_file.write_text(text, encoding="utf-8")
        fleet = load_fleet(prefect_sandbox.fleet_file)
        deploy(Wanted(read_manifest(fleet), fleet))

    def change(how: Callable[[dict[str, Any]], None]) -> None:
        data = yaml.safe_load(before)
        how(data)
        bring_up(yaml.safe_dump(data))

    yield change
    bring_up(before)


NOTHING_LISTENS = "postgresql://pgvigil@127.0.0.1:1/postgres"


def test_the_page_of_a_wave_has_the_worst_first(
    desk: Desk, page: Page, picture: Picture, policies: Callable[..., None]
) -> None:
    """Who failed stands above who is proven, with the reason and the run; who was left out stands below."""

    def add(fleet: dict[str, Any]) -> None:
        away = fleet["clusters"]["demo"] | {"dsn": NOTHING_LISTENS, "databases": {}}
        fleet["clusters"] |= {"orders-away": away, "staging": away}
        fleet["waves"] = {"nightly-backup": {"leave_out": ["staging"]}}

    policies(add)
    wave = desk.client.read_deployment_by_name("watch_fleet/fleet-nightly-backup")
    run = desk.client.create_flow_run_from_deployment(wave.id).id

    assert desk.await_state(run, "Completed", "Failed", "Inconclusive").state_name == "Inconclusive"
    desk.read_report(run, "watch-fleet-nightly-backup")
    page.get_by_role("heading", name="INCONCLUSIVE: watch_fleet on nightly-backup").wait_for()
    broken = page.get_by_role("listitem").filter(has_text="orders-away").first
    proven = page.get_by_role("row").filter(has_text="demo").first
    left_out = page.get_by_role("row").filter(has_text="staging").first
    picture("wave")
    assert _top(broken) < _top(proven) < _top(left_out)
    assert page.get_by_role("link", name="its run").count() == 2


def _top(element: Locator) -> float:
    box = element.bounding_box()
    assert box is not None
    return box["y"]


def test_the_page_of_the_watch_has_what_is_wrong(
    desk: Desk, page: Page, picture: Picture, policies: Callable[..., None]
) -> None:
    """The alarm and its cure, and the proof that it is about with its state."""
    backup = desk.client.read_deployment_by_name("nightly_backup/nightly-backup")
    watch = desk.client.read_deployment_by_name("keep_watch/keep-watch")
    proof = desk.client.create_flow_run_from_deployment(backup.id, parameters={"cluster": "demo"}).id
    assert desk.await_state(proof, "Completed", "Inconclusive").state_name == "Completed"
    policies(lambda fleet: fleet["clusters"]["demo"]["backup"].update(fresh="1s"))
    run = desk.client.create_flow_run_from_deployment(watch.id).id

    assert desk.await_state(run, "Completed", "Failed", "Inconclusive").state_name == "Completed"
    desk.read_report(run, "keep-watch-fleet")
    page.get_by_role("heading", name="VERIFIED: keep_watch on fleet").wait_for()
    picture("watch")
    assert page.get_by_role("listitem").filter(has_text="is not proven: older than 0:00:01").count() >= 1
    assert page.get_by_text("alarm: backup repo1 of demo is not proven").count() >= 1
    assert page.get_by_role("row").filter(has_text="stale").count() >= 1


def _await(find: Callable[[], T | None], seconds: float = 150, pause: float = 0.5) -> T:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(pause)
    return found
