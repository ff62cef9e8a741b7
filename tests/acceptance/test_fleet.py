import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, FlowRunFilterTags
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Scheduled

from deployments.deploy import deploy
from deployments.manifest import read_manifest
from deployments.steps import Wanted
from pgvigil import audit, objectstore
from pgvigil.audit import RunSummary
from pgvigil.fleet import load_fleet
from pgvigil.postgres import connect, sql
from pgvigil.sandbox import Sandbox
from pgvigil.sandbox.lifecycle import TARGET
from tests.acceptance.conftest import Pgvigil
from tests.fixtures.deployed import kill_prefect, start_prefect

pytestmark = pytest.mark.long
POOL = "dba"
T = TypeVar("T")


def ops(sandbox: Sandbox, database: str = "ops") -> str:
    return sandbox.admin_dsn(sandbox.ops_port, database)


def on_record(sandbox: Sandbox, flow: str, prefix: str = "") -> list[RunSummary]:
    with connect(ops(sandbox), "test") as session:
        runs = audit.list_runs(session, limit=5000)
    return [run for run in runs if run.flow == flow and run.subject.startswith(prefix)]


def wait_for(find: Callable[[], T], seconds: float = 120) -> T:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.5)
    return found


def wait_for_end(client: SyncPrefectClient, runs: Sequence[UUID], seconds: float = 120) -> list[FlowRun]:
    """Wait until all of them are over, and return them in this order."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=list(runs)))

    def over() -> list[FlowRun]:
        found = {run.id: run for run in client.read_flow_runs(flow_run_filter=wanted)}
        ended = [found[each] for each in runs if found[each].state and found[each].state.is_final()]
        return ended if len(ended) == len(runs) else []

    return wait_for(over, seconds)


def test_a_wave_starts_a_run_of_the_pipelines_own_deployment(
    pgvigil: Pgvigil, prefect_sandbox: Sandbox, client: SyncPrefectClient
) -> None:
    """A worker takes it; the wave is its tag in Prefect and stands with it in the audit log."""
    done = pgvigil("run", "watch-fleet", "reap-drills", "--json")

    report = json.loads(done.stdout)
    assert (0, "verified") == (done.returncode, report["verdict"]), done.stderr
    (outcome,) = report["outcomes"]
    tag = FlowRunFilterTags(all_=[f"wave:{report['wave']}"])
    (run,) = client.read_flow_runs(flow_run_filter=FlowRunFilter(tags=tag))
    assert outcome["where"].endswith(str(run.id))
    assert run.deployment_id == client.read_deployment_by_name("reap_drills/reap-drills").id
    with connect(ops(prefect_sandbox), "test") as session:
        (begun, *_) = audit.show_run(session, UUID(outcome["run_id"])).events
    assert (report["wave"], str(run.id)) == (begun.detail["wave"], begun.detail["prefect_flow_run"])


def test_runs_that_no_worker_takes_are_taken_back(
    pgvigil: Pgvigil, prefect_sandbox: Sandbox, client: SyncPrefectClient, tmp_path: Path
) -> None:
    """The wave ends, so that none of them begins in the middle of the day."""
    fleet = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
    fleet["waves"] = {"reap-drills": {"stall": "1s"}}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet), encoding="utf-8")
    with paused_pool(client):
        done = pgvigil(
            *("run", "watch-fleet", "reap-drills", "-p", "anew=true", "--json"),
            PGVIGIL_FLEET=str(tmp_path / "fleet.yaml"),
        )

    report = json.loads(done.stdout)
    assert (2, "left") == (done.returncode, report["outcomes"][0]["state"]), done.stderr
    assert "no worker took any of its runs for 1 s" == report["stopped"]
    run = client.read_flow_run(UUID(report["outcomes"][0]["where"].rpartition("/")[2]))
    assert "Cancelled" == run.state_name


@contextmanager
def paused_pool(client: SyncPrefectClient) -> Iterator[None]:
    """Keep the worker from taking anything while the block runs."""
    client.update_work_pool(POOL, WorkPoolUpdate(is_paused=True))
    try:
        yield
    finally:
        client.update_work_pool(POOL, WorkPoolUpdate(is_paused=False))


@pytest.fixture
def schedule_run(client: SyncPrefectClient, prefect_sandbox: Sandbox) -> Callable[..., UUID]:
    """Make a run as Prefect's scheduler does, for a slot of a schedule: the reaper's, unless named."""

    def make(slot: datetime, name: str = "reap_drills/reap-drills", **parameters: Any) -> UUID:
        deployment = client.read_deployment_by_name(name)
        run = client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"cluster": "demo", **parameters},
            state=Scheduled(scheduled_time=slot),
        )
        with connect(ops(prefect_sandbox, "prefect"), "test") as session:
            session.execute("UPDATE public.flow_run SET auto_scheduled = true WHERE id = %s", (run.id,))
        return run.id

    return make


def test_of_missed_runs_the_newest_works_and_the_others_are_skipped_by_name(
    client: SyncPrefectClient, schedule_run: Callable[..., UUID], prefect_sandbox: Sandbox
) -> None:
    """And a slot that is on record is not served again; a run that a person retries does the work."""
    now = datetime.now(UTC)
    with paused_pool(client):
        missed = [schedule_run(now - timedelta(hours=hours)) for hours in (3, 2, 1)]

    old, older, newest = wait_for_end(client, missed)

    assert ["Skipped", "Skipped", "Completed"] == [run.state_name for run in (old, older, newest)]
    assert "COMPLETED" == old.state_type
    assert old.state
    assert f"the run of {now - timedelta(hours=1):%Y-%m-%d %H:%M} UTC does the work" in str(old.state.message)

    with paused_pool(client):
        restored = schedule_run(now - timedelta(hours=1))
    (again,) = wait_for_end(client, [restored])
    before = len(on_record(prefect_sandbox, "reap_drills"))
    assert again.state
    assert ("Skipped", True) == (again.state_name, "the audit log has run" in str(again.state.message))

    client.set_flow_run_state(old.id, Scheduled(), force=True)
    wait_for(lambda: len(on_record(prefect_sandbox, "reap_drills")) > before)
    (retried,) = wait_for_end(client, [old.id])
    assert "Completed" == retried.state_name


def test_a_missed_run_finds_the_newer_one_behind_two_hundred_of_others(
    client: SyncPrefectClient, schedule_run: Callable[..., UUID], prefect_sandbox: Sandbox
) -> None:
    """A fleet in which everybody has a time of its own misses many at once; Prefect shows 200 and no more."""
    now = datetime.now(UTC)
    deployment = client.read_deployment_by_name("reap_drills/reap-drills")
    others = [
        client.create_flow_run_from_deployment(
            deployment.id, parameters={"cluster": "demo", "dry_run": True}, state=Cancelled()
        ).id
        for _ in range(201)
    ]
    with connect(ops(prefect_sandbox, "prefect"), "test") as session:
        session.execute(
            "UPDATE public.flow_run SET auto_scheduled = true,"
            " expected_start_time = now() - interval '1 minute' WHERE id = ANY (%s)",
            (others,),
        )
    with paused_pool(client):
        missed = [schedule_run(now - timedelta(minutes=minutes)) for minutes in (9, 3)]

    old, newest = wait_for_end(client, missed)

    assert ("Skipped", "Completed") == (old.state_name, newest.state_name)
    for run in others:
        client.delete_flow_run(run)


def test_two_schedules_that_meet_take_turns(
    client: SyncPrefectClient, schedule_run: Callable[..., UUID], prefect_sandbox: Sandbox
) -> None:
    """Due at one instant, each wanting another backup of the stanza: both are proven, never side by side."""
    now = datetime.now(UTC)
    with paused_pool(client):
        met = [
            schedule_run(now, "nightly_backup/nightly-backup", backup_type=kind) for kind in ("full", "incr")
        ]

    assert ["Completed", "Completed"] == [run.state_name for run in wait_for_end(client, met)]
    (_, first_end), (second_begin, _) = sorted(_taking(prefect_sandbox, run) for run in met)
    assert first_end < second_begin


def _taking(sandbox: Sandbox, run: UUID) -> tuple[datetime, datetime]:
    """Return when a run of Prefect began and ended to take its backup."""
    with connect(ops(sandbox), "test") as session:
        for each in on_record(sandbox, "nightly_backup"):
            begun, *events = audit.show_run(session, each.run_id).events
            if begun.detail["prefect_flow_run"] == str(run):
                begin, end = (event.at for event in events if event.step == "take backup")
                return begin, end
    raise AssertionError(f"run {run} is not on record")


def test_a_wave_waits_for_a_server_that_was_killed(
    prefect_sandbox: Sandbox, client: SyncPrefectClient
) -> None:
    """Server and worker are killed while its subject is at work, and come again: it ends verified."""
    wave = client.read_deployment_by_name("watch_fleet/fleet-reap-drills")
    before = len(on_record(prefect_sandbox, "reap_drills"))
    run = client.create_flow_run_from_deployment(wave.id)
    wait_for(lambda: len(on_record(prefect_sandbox, "reap_drills")) > before)

    kill_prefect(prefect_sandbox)
    start_prefect(prefect_sandbox)

    (ended,) = wait_for_end(client, [run.id], 240)
    assert "Completed" == ended.state_name, ended.state
    assert before + 1 == len(on_record(prefect_sandbox, "reap_drills"))


ROLLED = {"partitions": [{"table": "public.events", "key": "at", "every": "1 month", "ahead": 1}]}
HEALTHY = [f"night_{number:02d}" for number in range(47)]
AT_ONCE = 6


@pytest.fixture
def fifty(
    prefect_sandbox: Sandbox,
    client: SyncPrefectClient,  # noqa: ARG001 - its server is deployed to
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Sandbox]:
    """Fifty databases whose partitions are rolled; one is away, one lets nobody in, one takes no table."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, prefect_sandbox.environment[name])
    admin = prefect_sandbox.primary_admin_dsn
    template = prefect_sandbox.admin_dsn(prefect_sandbox.primary_port, "night")
    _databases(admin, "CREATE DATABASE {} OWNER shop", "night")
    with connect(template, "test") as session:
        session.execute("SET ROLE shop")
        session.execute("CREATE TABLE public.events (at timestamptz NOT NULL) PARTITION BY RANGE (at)")
        session.execute("RESET ROLE")
        session.execute(TARGET.read_text(encoding="utf-8").encode())
    names = [*HEALTHY, "night_closed", "night_full"]
    _databases(admin, "CREATE DATABASE {} TEMPLATE night OWNER shop", *names)
    _databases(admin, "ALTER DATABASE {} OWNER TO postgres", "night_closed")
    _databases(admin, "REVOKE ALL ON DATABASE {} FROM PUBLIC", "night_closed")
    with connect(prefect_sandbox.admin_dsn(prefect_sandbox.primary_port, "night_full"), "test") as session:
        session.execute("ALTER SCHEMA public OWNER TO postgres")
    before = prefect_sandbox.fleet_file.read_text(encoding="utf-8")
    fleet = yaml.safe_load(before)
    demo = fleet["clusters"]["demo"]
    away = {"dsn": "postgresql://pgvigil@127.0.0.1:1/postgres", "databases": {"night_gone": ROLLED}}
    fleet["clusters"] = {"away": demo | away, "demo": demo | {"databases": dict.fromkeys(names, ROLLED)}}
    fleet["waves"] = {"roll-partitions": {"at_once": AT_ONCE}}
    _bring_up(prefect_sandbox, yaml.safe_dump(fleet))
    yield prefect_sandbox
    _bring_up(prefect_sandbox, before)
    _databases(admin, "DROP DATABASE {} WITH (FORCE)", *names, "night")


def _databases(dsn: str, statement: str, *names: str) -> None:
    with connect(dsn, "test") as session:
        for name in names:
            session.execute(sql.SQL(statement).format(sql.Identifier(name)))  # type: ignore[arg-type]


def _bring_up(sandbox: Sandbox, fleet: str) -> None:
    """Change the fleet file, and the forms with it."""
    sandbox.fleet_file.write_text(fleet, encoding="utf-8")
    found = load_fleet(sandbox.fleet_file)
    deploy(Wanted(read_manifest(found), found))


def test_a_wave_over_fifty_databases_is_killed_and_goes_on(fifty: Sandbox, client: SyncPrefectClient) -> None:
    """Each has one run and no more, three are told as broken, the others are proven."""
    wave = client.read_deployment_by_name("watch_fleet/fleet-roll-partitions")
    first = client.create_flow_run_from_deployment(wave.id)
    wait_for(lambda: sum(r.ended_at is not None for r in on_record(fifty, "roll_partitions")) >= 8, 300)
    os.kill(on_record(fifty, "watch_fleet", "roll-partitions")[0].pid, signal.SIGKILL)
    (killed,) = wait_for_end(client, [first.id])

    second = client.create_flow_run_from_deployment(wave.id)
    (ended,) = wait_for_end(client, [second.id], 600)

    assert ("Crashed", "Refuted") == (killed.state_name, ended.state_name), ended.state
    tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[second.id])))
    assert ["plan"] == [task.name.partition("-")[0] for task in tasks]
    report = _report(fifty)
    assert {"verified": 47, "inconclusive": 2, "refuted": 1} == Counter(each["verdict"] for each in report)
    assert ["demo/night_full", "away/night_gone", "demo/night_closed"] == [e["subject"] for e in report[:3]]
    assert any(each["earlier"] for each in report)
    runs = on_record(fifty, "roll_partitions", "demo/night")
    assert Counter({f"demo/{name}": 1 for name in (*HEALTHY, "night_closed", "night_full")}) == Counter(
        run.subject for run in runs
    )
    assert AT_ONCE >= max(_at_once(run, runs) for run in runs)


def _report(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The outcomes of the last wave, as its report was stored."""
    with connect(ops(sandbox), "test") as session:
        run = on_record(sandbox, "watch_fleet", "roll-partitions")[0]
        (ended,) = [each for each in audit.show_run(session, run.run_id).events if each.kind == "run_ended"]
    (uri,) = [each for each in ended.detail["evidence"] if each.endswith(".json")]
    report = json.loads(objectstore.connect(load_fleet(sandbox.fleet_file).s3).get(uri))
    outcomes: list[dict[str, Any]] = report["outcomes"]
    return outcomes


def _at_once(run: RunSummary, runs: list[RunSummary]) -> int:
    return sum(each.started_at <= run.started_at < each.ended_at for each in runs if each.ended_at)
