"""Every alarm on a real Prefect server, as a webhook of the operator's hears it."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import yaml
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import State, StateType
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.events.schemas.events import Event
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import automations
from deployments.automations import OWNER, AutomationEntry, load_automations
from pgvigil import audit
from pgvigil.audit import Kind, RunIdentity
from pgvigil.errors import ConfigError
from pgvigil.fleet import load_fleet
from pgvigil.postgres import connect
from pgvigil.sandbox import Sandbox
from pgvigil.spool import Spool
from tests.acceptance.conftest import Pgvigil
from tests.fixtures.receiver import Receiver, receiving

pytestmark = pytest.mark.long

BLOCK = "custom-webhook/night-watch"
MESSAGE = {"subject": "{{subject}}", "body": "{{body}}"}


@pytest.fixture(scope="module")
def client(prefect_sandbox: Sandbox) -> Iterator[SyncPrefectClient]:
    """A client of the sandbox's server."""
    url = prefect_sandbox.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as session:
        yield session


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Where the operator hears."""
    with receiving() as made:
        yield made


def impatient(entry: AutomationEntry) -> AutomationEntry:
    """The same automation with the shortest wait that Prefect takes."""
    return entry.model_copy(update={"within": timedelta(seconds=10)}) if entry.within else entry


@pytest.fixture(scope="module")
def alarmed(client: SyncPrefectClient, receiver: Receiver) -> Iterator[Receiver]:
    """The automations of the file, sending to the receiver; gone at the end."""
    block = CustomWebhookNotificationBlock(name="n", url=f"{receiver.url}/notify", json_data=MESSAGE)
    block.save("night-watch", overwrite=True)
    entries = [impatient(entry) for entry in load_automations()]
    arm(client, receiver, entries)
    yield receiver
    apply(client, entries, [])


def arm(client: SyncPrefectClient, receiver: Receiver, entries: list[AutomationEntry]) -> None:
    """Make the automations, and try one until it is heard: a server takes a moment to heed new ones."""
    apply(client, entries, [BLOCK])
    count = len(receiver.bodies)
    while len(receiver.bodies) == count:
        event = Event(
            event="pgvigil.alarm.over",
            resource={"prefect.resource.id": "pgvigil.alarm.trial", "prefect.resource.name": "trial"},
            payload={"message": "trial"},
        )
        client.request("POST", "/events", json=[event.model_dump(mode="json")])
        time.sleep(0.5)


def apply(client: SyncPrefectClient, entries: list[AutomationEntry], notify: list[str]) -> list[str]:
    steps = list(automations.plan(client, entries, notify))
    for step in steps:
        step.apply()
    return [step.text for step in steps]


@pytest.fixture(scope="module")
def fleet(prefect_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Write the sandbox's fleet file with other alarms, and other policies of its cluster."""
    file = tmp_path_factory.mktemp("fleet") / "fleet.yaml"

    def write(alarms: dict[str, Any], change: Callable[[dict[str, Any]], None] = lambda _: None) -> str:
        data = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
        data["alarms"] = alarms
        change(data["clusters"]["demo"])
        file.write_text(yaml.safe_dump(data), encoding="utf-8")
        return str(file)

    return write


def start(client: SyncPrefectClient, name: str, due: datetime) -> UUID:
    """Make a run that waits for its time."""
    deployment = client.read_deployment_by_name(name)
    scheduled: State[None] = State(type=StateType.SCHEDULED, name="Scheduled")
    scheduled.state_details.scheduled_time = due
    run = client.create_flow_run_from_deployment(
        deployment.id,
        parameters={} if name.startswith("keep_watch") else {"cluster": "demo"},
        state=scheduled,
        name=f"{name} {due}",
    )
    return run.id


@pytest.mark.parametrize(
    ("type_", "name", "alarm"),
    [
        (StateType.FAILED, "Refuted", "refuted"),
        (StateType.FAILED, "Inconclusive", "inconclusive"),
        (StateType.FAILED, "Failed", "inconclusive"),
        (StateType.CRASHED, "Crashed", "crashed"),
    ],
)
def test_how_a_run_ended_is_told(
    client: SyncPrefectClient, alarmed: Receiver, type_: StateType, name: str, alarm: str
) -> None:
    """With the run's name, its reason and the address of its page."""
    run = start(client, "restore_drill/restore-drill", datetime.now(UTC) + timedelta(days=1))
    reason = f"because {name} {run}"
    client.set_flow_run_state(run, State(type=type_, name=name, message=reason), force=True)

    heard = alarmed.await_body(lambda body: reason in body["body"])

    assert heard["subject"].startswith(f"{alarm}: restore_drill/restore-drill")
    assert f"/runs/flow-run/{run}" in heard["body"]
    assert f"docs/alarms.md, '{alarm}'" in heard["body"]
    client.delete_flow_run(run)


def test_a_run_that_ends_well_is_not_told(client: SyncPrefectClient, alarmed: Receiver) -> None:
    """Health is silent: of two runs, only the one that died is heard of."""
    runs = [start(client, "reap_drills/reap-drills", datetime.now(UTC) + timedelta(days=1)) for _ in range(2)]
    good = State(type=StateType.COMPLETED, name="Completed", message=f"good {runs[0]}")
    client.set_flow_run_state(runs[0], good, force=True)
    client.set_flow_run_state(
        runs[1], State(type=StateType.CRASHED, name="Crashed", message=f"bad {runs[1]}"), force=True
    )

    alarmed.await_body(lambda body: f"bad {runs[1]}" in body["body"])

    assert [] == [body for body in alarmed.bodies if str(runs[0]) in body["body"]]
    for run in runs:
        client.delete_flow_run(run)


@pytest.mark.parametrize(
    ("name", "alarm"),
    [("nightly_backup/nightly-backup", "late"), ("keep_watch/keep-watch", "nobody watches")],
)
def test_a_run_that_does_not_start_is_told(
    client: SyncPrefectClient, alarmed: Receiver, name: str, alarm: str
) -> None:
    """While no worker takes runs, silence is an alarm."""
    client.update_work_pool("dba", WorkPoolUpdate(is_paused=True))
    run = start(client, name, datetime.now(UTC))
    try:
        heard = alarmed.await_body(lambda body: body["subject"].startswith(f"{alarm}: "), 120)
    finally:
        client.delete_flow_run(run)
        client.update_work_pool("dba", WorkPoolUpdate(is_paused=False))

    assert f"docs/alarms.md, '{alarm}'" in heard["body"]


def test_a_stale_proof_and_a_short_horizon_are_told_once_and_their_end_too(
    alarmed: Receiver, pgvigil: Pgvigil, fleet: Callable[..., str]
) -> None:
    """The watch tells what pgvigil's own state shows; a signal outside speaks for each watch."""
    assert pgvigil("run", "roll-partitions", "demo/shop").returncode == 0
    assert pgvigil("run", "nightly-backup", "demo").returncode == 0

    def spoil(cluster: dict[str, Any]) -> None:
        cluster["backup"]["fresh"] = "1ms"
        cluster["databases"]["shop"]["partitions"][0]["ahead"] = 100

    def watch(change: Callable[[dict[str, Any]], None] = lambda _: None) -> dict[str, Any]:
        policy = {"signal_from": "HEARD_AT"}
        done = pgvigil(
            "run",
            "keep-watch",
            "fleet",
            "--json",
            PGVIGIL_FLEET=fleet(policy, change),
            HEARD_AT=f"{alarmed.url}/alive/secret-word",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "secret-word" not in done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    first, second, third = watch(spoil), watch(spoil), watch()

    alarmed.await_body(lambda body: body["subject"] == "over: public.events of demo/shop")
    stale = [body for body in alarmed.bodies if body["subject"] == "stale proof: backup repo1 of demo"]
    short = [
        body for body in alarmed.bodies if body["subject"] == "horizon short: public.events of demo/shop"
    ]
    assert (1, 1) == (len(stale), len(short))
    assert "backup repo1 of demo is not proven: older than 0:00:00.001000" in stale[0]["body"]
    assert "expected 100 ahead" in short[0]["body"]
    assert {"alarm-stale", "alarm-horizon"} == {f["code"] for f in first["findings"]} - {"run-lost"}
    assert first["alarms"] == second["alarms"]
    assert {"stale", "horizon"} == {alarm["kind"] for alarm in third["over"]}
    assert ["/alive/secret-word"] * 3 == [path for path in alarmed.paths if path.startswith("/alive")]
    told = json.loads(pgvigil("audit", "show", first["run_id"], "--json").stdout)["events"]
    (signal,) = [e["detail"] for e in told if e["kind"] == "outcome" and e["step"] == "dead-man's signal"]
    assert {"status": 200} == signal["facts"]


def test_a_backfill_that_waits_is_told(
    alarmed: Receiver,
    pgvigil: Pgvigil,
    fleet: Callable[..., str],
    command: list[str],
    environment: dict[str, str],
) -> None:
    """With what it waits for, as long as its run is alive."""

    def hold(cluster: dict[str, Any]) -> None:
        never = {"name": "the moon", "sql": "SELECT 1", "most": 0}
        cluster["databases"]["shop"]["backfills"]["cents"]["limits"] = {"signals": [never]}

    file = fleet({"backfill_waits": "1ms"}, hold)
    words = [*command, "run", "run-backfill", "demo/shop", "-p", "backfill=cents"]
    with subprocess.Popen(
        words, env={**environment, "PGVIGIL_FLEET": file}, stderr=subprocess.DEVNULL
    ) as run:
        while '"waiting_since": "' not in pgvigil("backfill", "show", "demo/shop", "cents", "--json").stdout:
            assert run.poll() is None
        assert pgvigil("run", "keep-watch", "fleet", PGVIGIL_FLEET=file).returncode == 0
        pgvigil("backfill", "cancel", "demo/shop", "cents")
    pgvigil("backfill", "resume", "demo/shop", "cents")

    heard = alarmed.await_body(lambda body: body["subject"] == "backfill waiting: cents of demo/shop")
    assert "the moon" in heard["body"]


def test_prefect_follows_the_audit_log(
    client: SyncPrefectClient, pgvigil: Pgvigil, prefect_sandbox: Sandbox
) -> None:
    """A run that ended well is no crash, and who marks an unproven one as completed is contradicted; once."""
    states = {"verified": StateType.CRASHED, "inconclusive": StateType.COMPLETED}
    runs = {}
    for verdict, held in states.items():
        run = start(client, "reap_drills/reap-drills", datetime.now(UTC) + timedelta(days=1))
        client.set_flow_run_state(run, State(type=held, name=held.capitalize()), force=True)
        put_on_record(prefect_sandbox, run, verdict)
        runs[verdict] = run

    first, second = (json.loads(pgvigil("run", "keep-watch", "fleet", "--json").stdout) for _ in range(2))

    names = {verdict: client.read_flow_run(run).state_name for verdict, run in runs.items()}
    assert {"verified": "Completed", "inconclusive": "Inconclusive"} == names
    assert set(map(str, runs.values())) == {each["flow_run"] for each in first["corrections"]}
    assert ("verified", []) == (second["verdict"], second["corrections"])
    assert "run-corrected" in {finding["code"] for finding in first["findings"]}


def put_on_record(sandbox: Sandbox, run: UUID, verdict: str) -> None:
    """Let the spool hold what a run of ten minutes ago would have left there while the store was away."""
    identity = RunIdentity(run_id=uuid4(), flow="reap_drills", subject="demo", actor="test")
    ended = {"verdict": verdict, "headline": f"it was {verdict}"}
    for kind, detail in (
        (Kind.RUN_STARTED, {"prefect_flow_run": str(run)}),
        (Kind.RUN_ENDED, ended),
    ):
        event = identity.event(kind, "", detail)
        past = event.model_copy(update={"recorded_at": datetime.now(UTC) - timedelta(minutes=10)})
        spool = load_fleet(sandbox.fleet_file).audit.spool
        Spool(spool).write(str(past.event_id), audit._render(past, str, spooled=True))


def test_a_run_of_another_fleet_is_left_to_its_own_watch(
    client: SyncPrefectClient, pgvigil: Pgvigil, prefect_sandbox: Sandbox
) -> None:
    """Of two that run for an hour without a record in this audit log, only ours must have died."""
    runs = [start(client, "reap_drills/reap-drills", datetime.now(UTC) + timedelta(days=1)) for _ in range(2)]
    for run in runs:
        client.set_flow_run_state(run, State(type=StateType.RUNNING, name="Running"), force=True)
    with connect(prefect_sandbox.admin_dsn(prefect_sandbox.ops_port, "prefect"), "test") as session:
        session.execute(
            "UPDATE public.flow_run_state SET timestamp = timestamp - interval '1 hour'"
            " WHERE flow_run_id = ANY (%s)",
            (runs,),
        )
        session.execute(
            'UPDATE public.flow_run SET tags = \'["pgvigil", "fleet:another"]\' WHERE id = %s', runs[1:]
        )

    assert pgvigil("run", "keep-watch", "fleet").returncode == 0

    assert ["Crashed", "Running"] == [client.read_flow_run(run).state_name for run in runs]
    for run in runs:
        client.delete_flow_run(run)


def test_a_watch_that_is_not_heard_outside_is_inconclusive(
    receiver: Receiver, pgvigil: Pgvigil, fleet: Callable[..., str]
) -> None:
    """The service says no: exit code 2, and the message has its place and not its secret."""
    receiver.status = 404
    done = pgvigil(
        "run",
        "keep-watch",
        "fleet",
        "--json",
        PGVIGIL_FLEET=fleet({"signal_from": "HEARD_AT"}),
        HEARD_AT=f"{receiver.url}/secret-word",
    )
    receiver.status = 200

    assert done.returncode == 2
    assert f"{receiver.url} answers with HTTP 404" in str(json.loads(done.stdout)["findings"])
    assert "secret-word" not in done.stdout + done.stderr


def test_what_is_ours_is_made_changed_and_removed_and_nothing_else(
    client: SyncPrefectClient, alarmed: Receiver
) -> None:
    """Twice changes nothing; what an operator switched off stays off; what an operator made stays."""
    entries = [impatient(entry) for entry in load_automations()]
    name = entries[0].name
    theirs = AutomationCore(name=name, trigger=EventTrigger(), actions=[DoNothing()], enabled=False)
    kept = client.create_automation(theirs)
    ours = {each.name: each for each in client.read_resource_related_automations(OWNER)}
    client.pause_automation(ours[name].id)

    assert [] == apply(client, entries, [BLOCK])
    changed = [entries[0].model_copy(update={"body": "other"}), *entries[2:]]
    assert [
        f"update automation '{name}': actions",
        f"delete automation '{entries[1].name}', which nothing asks for any more",
    ] == apply(client, changed, [BLOCK])
    after = client.read_automation(ours[name].id)
    assert after is not None
    assert not after.enabled

    assert len(apply(client, changed, [])) == len(changed)
    assert [] == client.read_resource_related_automations(OWNER)
    assert [kept] == [each.id for each in client.read_automations_by_name(name)]
    client.delete_automation(kept)
    arm(client, alarmed, entries)


@pytest.mark.parametrize("block", ["custom-webhook/nobody", "nothing/dba"])
def test_a_block_that_is_not_there_is_named(client: SyncPrefectClient, block: str) -> None:
    """Before anything is changed."""
    with pytest.raises(ConfigError, match=f"the block '{block}', which the Prefect server does not have"):
        list(automations.plan(client, load_automations(), [block]))
