import json
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType

from pgvigil.postgres import connect
from pgvigil.sandbox import Sandbox
from tests.acceptance.conftest import Pgvigil
from tests.fixtures.deployed import kill_prefect, start_prefect

pytestmark = pytest.mark.long

T = TypeVar("T")
YES = ("--name", "Ada L.", "--note", "CHG-17")


class Table:
    """One partitioned table in the care of the fleet file, whose drops a person approves."""

    def __init__(self, sandbox: Sandbox, name: str) -> None:
        self.sandbox = sandbox
        self.name = name

    def sql(self, statement: str) -> list[dict[str, Any]]:
        with connect(self.sandbox.admin_dsn(self.sandbox.primary_port, "shop"), "test") as session:
            session.execute("SET search_path = public")
            cursor = session.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def make(self) -> None:
        columns = "at timestamptz NOT NULL, note text"
        self.sql(f"CREATE TABLE {self.name} ({columns}) PARTITION BY RANGE (at)")
        self.sql(f"ALTER TABLE {self.name} OWNER TO shop")
        for age in range(5):
            self._make_month(age)

    def _make_month(self, age: int) -> None:
        edge = (
            "(date_trunc('month', now(), 'UTC') AT TIME ZONE 'UTC' - interval '{} months') AT TIME ZONE 'UTC'"
        )
        lower, upper = edge.format(age), edge.format(age - 1)
        (found,) = self.sql(f"SELECT {lower} AS lower, {upper} AS upper")
        span = f"FROM ('{found['lower']}') TO ('{found['upper']}')"
        self.sql(f"CREATE TABLE {self.name}_{age} PARTITION OF {self.name} FOR VALUES {span}")
        self.sql(f"ALTER TABLE {self.name}_{age} OWNER TO shop")
        self.sql(f"INSERT INTO {self.name} SELECT '{found['lower']}', g FROM generate_series(1, 50) g")

    def policy(self, **changes: Any) -> None:
        """Let the fleet file look after this table alone."""
        own = {"table": f"public.{self.name}", "key": "at", "every": "1 month", "ahead": 1, "drop": "approve"}
        own |= {"keep": "3 months", "archive": f"s3://archive/{self.name}", "block": "500ms", "wait": "5s"}
        data = yaml.safe_load(self.sandbox.fleet_file.read_text(encoding="utf-8"))
        data["clusters"]["demo"]["databases"]["shop"]["partitions"] = [own | changes]
        self.sandbox.fleet_file.write_text(yaml.safe_dump(data), encoding="utf-8")

    @property
    def standing(self) -> list[int]:
        """The ages of the old tables that are still there, attached or not."""
        return [age for age in range(5) if self.sql(f"SELECT to_regclass('{self.name}_{age}') AS t")[0]["t"]]


@pytest.fixture
def table(prefect_sandbox: Sandbox, request: pytest.FixtureRequest) -> Iterator[Table]:
    """A table of the test's own, of which the oldest month waits to go; the fleet file is put back."""
    before = prefect_sandbox.fleet_file.read_text(encoding="utf-8")
    made = Table(prefect_sandbox, f"t{abs(hash(request.node.name)) % 10**6}")
    made.make()
    made.policy()
    yield made
    prefect_sandbox.fleet_file.write_text(before, encoding="utf-8")


def start(client: SyncPrefectClient) -> UUID:
    deployment = client.read_deployment_by_name("roll_partitions/roll-partitions")
    return client.create_flow_run_from_deployment(deployment.id, parameters={"database": "demo/shop"}).id


def await_state(client: SyncPrefectClient, run: UUID, *, question: int = 0) -> FlowRun:
    """Wait until the run has ended, or asks its question of this number."""

    def look() -> FlowRun | None:
        found = client.read_flow_run(run)
        asked = client.filter_flow_run_input(run, "suspended-approve", 100, set())
        is_asked = sum(each.key.endswith("-schema") for each in asked) == question
        is_paused = bool(found.state and found.state.is_paused() and question and is_asked)
        return found if is_paused or (found.state and found.state.is_final()) else None

    return _await(look)


def asking(client: SyncPrefectClient) -> UUID:
    """Start a run and wait for its question."""
    run = start(client)
    found = await_state(client, run, question=1)
    assert found.state_type is StateType.PAUSED, found.state
    return run


def decisions(pgvigil: Pgvigil) -> list[dict[str, Any]]:
    """Return what the audit log has of decisions in the newest run of the database."""
    (newest,) = json.loads(
        pgvigil("audit", "list", "--subject", "demo/shop", "--limit", "1", "--json").stdout
    )
    events = json.loads(pgvigil("audit", "show", newest["run_id"], "--json").stdout)["events"]
    return [e["detail"] for e in events if e["kind"] == "intent" and e["step"].startswith("decision")]


def test_a_drop_waits_for_a_person_and_outlives_server_and_worker(
    client: SyncPrefectClient, table: Table, pgvigil: Pgvigil, prefect_sandbox: Sandbox
) -> None:
    """While it waits no session is open; server and worker start anew; a yes drops, and is on record."""
    run = asking(client)
    assert [0, 1, 2, 3, 4] == table.standing
    assert [] == table.sql("SELECT 1 FROM pg_stat_activity WHERE application_name ~ 'roll_partitions'")
    assert [] == table.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory'")
    kill_prefect(prefect_sandbox)
    start_prefect(prefect_sandbox)
    _await(lambda: str(run) in pgvigil("approve").stdout)

    assert pgvigil("approve", str(run), *YES).returncode == 0

    assert await_state(client, run).state_name == "Completed"
    assert [0, 1, 2, 3] == table.standing
    ((decided),) = decisions(pgvigil)
    assert ("approve", "Ada L.", "CHG-17") == (decided["decision"], decided["approver"], decided["note"])
    assert len(decided["digests"][0]) == 12


def test_what_changed_since_is_asked_again_and_a_no_keeps_it(
    client: SyncPrefectClient, table: Table, pgvigil: Pgvigil
) -> None:
    """After a hold it is not the plan that was approved: nothing is dropped. A form needs a name."""
    table.policy(keep="2 months")
    run = asking(client)
    table.policy(keep="2 months", hold=[f"{table.name}_4"])
    pgvigil("approve", str(run), *YES)

    again = await_state(client, run, question=2)

    assert again.state_type is StateType.PAUSED, again.state
    assert [0, 1, 2, 3, 4] == table.standing
    refused = client.resume_flow_run(run, run_input={"decision": "approve"})
    assert "'approver' is a required property" in str(refused.details)
    assert pgvigil("approve", str(run), "--reject", *YES).returncode == 0
    assert await_state(client, run).state_name == "Completed"
    assert [0, 1, 2, 3, 4] == table.standing
    assert ["reject"] == [each["decision"] for each in decisions(pgvigil)]


def test_a_wave_does_not_wait_for_a_person(client: SyncPrefectClient, table: Table, pgvigil: Pgvigil) -> None:
    """It says that one is asked; answered, the subject's run goes on by itself."""
    done = pgvigil("run", "watch-fleet", "roll-partitions", "-p", "anew=true", "--json")

    (outcome,) = json.loads(done.stdout)["outcomes"]
    assert (0, "ended") == (done.returncode, outcome["state"]), done.stderr
    assert outcome["said"].endswith("; a person is asked")
    run = UUID(outcome["where"].rpartition("/")[2])
    assert pgvigil("approve", str(run), *YES).returncode == 0
    assert await_state(client, run).state_name == "Completed"
    assert [0, 1, 2, 3] == table.standing


def test_a_question_is_asked_once(client: SyncPrefectClient, table: Table) -> None:
    """A second run does not ask for the same plan while the first one waits."""
    first = asking(client)

    second = await_state(client, start(client), question=1)
    client.delete_flow_run(first)

    assert second.state_name == "Completed"
    assert [0, 1, 2, 3, 4] == table.standing


def test_a_question_that_nobody_answers_ends(client: SyncPrefectClient, table: Table) -> None:
    """After the policy's time the run fails, and nothing was dropped."""
    table.policy(approve_within="2s")

    ended = await_state(client, start(client))

    assert ended.state is not None
    assert ("Failed", "The flow was paused and never resumed.") == (ended.state_name, ended.state.message)
    assert [0, 1, 2, 3, 4] == table.standing


def test_an_answer_to_a_run_that_asks_nothing_is_refused(pgvigil: Pgvigil) -> None:
    """Exit code 2 and what to do."""
    done = pgvigil("approve", "00000000-0000-0000-0000-000000000000", "--name", "Ada")

    assert done.returncode == 2
    assert "'pgvigil approve' lists" in done.stderr


def _await(find: Callable[[], T | None], seconds: float = 90) -> T:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.5)
    return found
