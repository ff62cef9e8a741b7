"""A sandbox with Prefect in it: server, work pool, worker and every deployment."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.manifest import read_manifest
from deployments.server import start_in, start_worker
from deployments.steps import Wanted
from pgvigil import sandbox as bare
from pgvigil.errors import DeadlineExceeded
from pgvigil.fleet import load_fleet

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from deployments.server import StartingServer
    from pgvigil.sandbox import Sandbox

_WORKER_SECONDS = 60.0
_POLL_SECONDS = 0.2


def default_directory() -> Path:
    """Return where a sandbox is unless told: one per user, and open to the servers' user below /tmp."""
    return Path(f"/tmp/pgvigil-sandbox-{os.getuid()}")  # noqa: S108 - `up` refuses what it did not make


def up(directory: Path, *, empty: bool = False, postgres_bin: Path | None = None) -> Sandbox:
    """Create a sandbox with Prefect and return it running; whatever fails, nothing is left behind."""
    sandbox = bare.up(directory, empty=empty, postgres_bin=postgres_bin)
    try:
        _add_prefect(sandbox)
    except BaseException:
        bare.down(directory)
        raise
    return sandbox


def _add_prefect(sandbox: Sandbox) -> None:
    server = start_in(sandbox)
    sandbox.export(
        {
            "PREFECT_API_URL": server.url,
            "PREFECT_HOME": str(sandbox.directory / "prefect"),
            "DO_NOT_TRACK": "1",
        }
    )
    _deploy(sandbox, server)


def _deploy(sandbox: Sandbox, server: StartingServer) -> None:
    # Importing Prefect takes seconds in which the server starts as well.
    from prefect.client.orchestration import get_client  # noqa: PLC0415
    from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: PLC0415

    from deployments.deploy import deploy  # noqa: PLC0415

    fleet = load_fleet(sandbox.fleet_file)
    wanted = Wanted(read_manifest(fleet), fleet)
    server.await_ready()
    with temporary_settings({PREFECT_API_URL: server.url}), get_client(sync_client=True) as client:
        deploy(wanted)
        for pool in sorted({entry.work_pool.name for entry in wanted.manifest.deployments}):
            start_worker(sandbox, server.url, pool)
            _await_worker(client, pool)


def _await_worker(client: SyncPrefectClient, pool: str) -> None:
    deadline = time.monotonic() + _WORKER_SECONDS
    while client.read_work_pool(pool).status != "READY":
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"no worker came online in work pool '{pool}' within {_WORKER_SECONDS:g} s",
                hint="look at the load of this host, then try again",
            )
        time.sleep(_POLL_SECONDS)
