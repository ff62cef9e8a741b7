"""The server of Prefect and the worker die in the middle of each flow: the work does not depend on them."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, StateType

from pgvigil.postgres import connect
from pgvigil.processes import marked_processes
from pgvigil.sandbox import Sandbox
from tests.acceptance.conftest import Pgvigil
from tests.fixtures.deployed import kill_prefect, start_prefect

T = TypeVar("T")

FLOWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("nightly_backup/nightly-backup", {"cluster": "demo"}),
    ("verify_wal_archive/verify-wal-archive", {"cluster": "demo"}),
    ("restore_drill/restore-drill", {"cluster": "demo", "recovery_target": "default"}),
    ("reap_drills/reap-drills", {"cluster": "demo"}),
    ("roll_partitions/roll-partitions", {"database": "demo/shop"}),
    ("restore_partition/restore-partition", {"database": "demo/shop", "keep": False}),
    ("run_backfill/run-backfill", {"database": "demo/shop", "backfill": "cents"}),
)


@pytest.fixture(scope="module")
def provided(pgvigil: Pgvigil) -> None:
    """A backup to restore, and an archived partition to bring back."""
    assert pgvigil("run", "nightly-backup", "demo").returncode == 0
    assert pgvigil("run", "roll-partitions", "demo/shop").returncode == 0


def record(sandbox: Sandbox, run: UUID) -> dict[str, Any] | None:
    """Return what the audit log has of a run of Prefect: its process, and its verdict once it has ended."""
    with connect(sandbox.ops_admin_dsn, "test") as session:
        return session.execute(
            "SELECT s.pid, e.detail ->> 'verdict' AS verdict FROM pgvigil.audit AS s"
            " LEFT JOIN pgvigil.audit AS e ON e.run_id = s.run_id AND e.kind = 'run_ended'"
            " WHERE s.kind = 'run_started' AND s.detail ->> 'prefect_flow_run' = %s ORDER BY s.seq DESC",
            (str(run),),
        ).fetchone()


def verdict_of(sandbox: Sandbox, run: UUID) -> str | None:
    found = record(sandbox, run)
    return found["verdict"] if found else None


@pytest.mark.long
@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize(("name", "parameters"), FLOWS, ids=[name.partition("/")[0] for name, _ in FLOWS])
def test_a_run_goes_on_without_server_and_worker(
    prefect_sandbox: Sandbox, client: SyncPrefectClient, name: str, parameters: dict[str, Any]
) -> None:
    """Both are killed in its middle: it ends verified, nothing of it is left, and Prefect hears later."""
    verdict, state = bereaved(prefect_sandbox, client, name, parameters)

    assert "verified" == verdict
    assert ("Completed", StateType.COMPLETED) == (state.name, state.type), state.message


@pytest.mark.long
def test_steering_goes_on_without_server_and_worker(
    prefect_sandbox: Sandbox, client: SyncPrefectClient, pgvigil: Pgvigil
) -> None:
    """As every flow does; what was wanted of the backfill stands."""
    assert pgvigil("run", "run-backfill", "demo/shop", "-p", "backfill=cents").returncode == 0
    wanted = {"database": "demo/shop", "backfill": "cents", "action": "set", "limits": {"target_ms": 70}}

    verdict, state = bereaved(prefect_sandbox, client, "steer_backfill/steer-backfill", wanted)

    assert ("verified", "Completed") == (verdict, state.name), state.message
    shown = json.loads(pgvigil("backfill", "show", "demo/shop", "cents", "--json").stdout)
    assert 70 == shown["overrides"]["target_ms"]


@pytest.mark.long
def test_a_watch_waits_for_its_server(prefect_sandbox: Sandbox, client: SyncPrefectClient) -> None:
    """It tells Prefect what is wrong, so without the server it cannot end: it is kept when that is back."""
    verdict, state = bereaved(prefect_sandbox, client, "keep_watch/keep-watch", {}, needs_server=True)

    assert ("verified", "Completed") == (verdict, state.name), state.message


def bereaved(
    sandbox: Sandbox,
    client: SyncPrefectClient,
    name: str,
    parameters: dict[str, Any],
    *,
    needs_server: bool = False,
) -> tuple[str, State[Any]]:
    """Kill server and worker in the middle of a run, and start them when it has ended, leaving nothing."""
    deployment = client.read_deployment_by_name(name)
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
    begun = _await(lambda: record(sandbox, run))
    os.kill(begun["pid"], signal.SIGSTOP)
    kill_prefect(sandbox)
    assert verdict_of(sandbox, run) is None
    os.kill(begun["pid"], signal.SIGCONT)
    if needs_server:
        start_prefect(sandbox)

    ended = _await(lambda: verdict_of(sandbox, run), 240)
    if not needs_server:
        start_prefect(sandbox)

    state = _await(lambda: final_state(client, run))
    _await(lambda: not marked_processes(f"PREFECT__FLOW_RUN_ID={run}"))
    return ended, state


def final_state(client: SyncPrefectClient, run: UUID) -> State[Any] | None:
    found = client.read_flow_run(run).state
    return found if found and found.is_final() else None


def _await(find: Callable[[], T | None], seconds: float = 120) -> T:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found
