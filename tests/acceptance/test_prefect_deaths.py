"""The server of Prefect and the worker die in the middle of each flow: the work does not depend on them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.settings import PREFECT_API_URL, temporary_settings

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


@pytest.fixture
def client(prefect_sandbox: Sandbox) -> Iterator[SyncPrefectClient]:
    """A client of the sandbox's server."""
    url = prefect_sandbox.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as session:
        yield session


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


def verdict(sandbox: Sandbox, run: UUID) -> str | None:
    found = record(sandbox, run)
    return found["verdict"] if found else None


@pytest.mark.long
@pytest.mark.usefixtures("provided")
@pytest.mark.parametrize(("name", "parameters"), FLOWS, ids=[name.partition("/")[0] for name, _ in FLOWS])
def test_a_run_goes_on_without_server_and_worker(
    prefect_sandbox: Sandbox, client: SyncPrefectClient, name: str, parameters: dict[str, Any]
) -> None:
    """Both are killed in its middle: it ends verified, nothing of it is left, and Prefect hears later."""
    deployment = client.read_deployment_by_name(name)
    run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters).id
    begun = _await(lambda: record(prefect_sandbox, run))
    os.kill(begun["pid"], signal.SIGSTOP)
    kill_prefect(prefect_sandbox)
    assert verdict(prefect_sandbox, run) is None
    os.kill(begun["pid"], signal.SIGCONT)

    ended = _await(lambda: verdict(prefect_sandbox, run), 240)
    start_prefect(prefect_sandbox)

    assert "verified" == ended
    state = _await(lambda: final_state(client, run))
    assert ("Completed", StateType.COMPLETED) == (state.name, state.type), state.message
    _await(lambda: not marked_processes(f"PREFECT__FLOW_RUN_ID={run}"))


def final_state(client: SyncPrefectClient, run: UUID) -> State[Any] | None:
    found = client.read_flow_run(run).state
    return found if found and found.is_final() else None


def _await(find: Callable[[], T | None], seconds: float = 120) -> T:
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found
