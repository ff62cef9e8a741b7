import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from psycopg.conninfo import conninfo_to_dict

from pgvigil.audit import install
from pgvigil.fleet import load_fleet
from pgvigil.postgres import connect, sql
from pgvigil.sandbox import Sandbox, down
from tests.fixtures.deployed import up_unwatched
from tests.fixtures.sandbox import reachable_directory

HOUSE = Path(__file__).resolve().parents[2]
Pgvigil = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def prefect_sandbox() -> Iterator[Sandbox]:
    """The session's sandbox with a Prefect server, a worker and every deployment."""
    directory = reachable_directory()
    yield up_unwatched(directory / "prefect")
    down(directory / "prefect")
    shutil.rmtree(directory)


@pytest.fixture
def client(prefect_sandbox: Sandbox) -> Iterator[SyncPrefectClient]:
    """A client of the sandbox's server."""
    url = prefect_sandbox.environment["PREFECT_API_URL"]
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as session:
        yield session


@pytest.fixture(scope="session")
def command() -> list[str]:
    """How the program is started: as the console script does, from this checkout."""
    return [sys.executable, "-m", "deployments"]


@pytest.fixture(scope="session")
def environment(prefect_sandbox: Sandbox) -> dict[str, str]:
    """What a shell has after sourcing DIR/env, with a cache that goes with the sandbox."""
    path = os.pathsep.join(filter(None, [str(HOUSE), os.environ.get("PYTHONPATH")]))
    cache = str(prefect_sandbox.directory / "cache")
    return {**os.environ, **prefect_sandbox.environment, "PYTHONPATH": path, "XDG_CACHE_HOME": cache}


@pytest.fixture(scope="session")
def pgvigil(
    command: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Pgvigil:
    """Run the program with arguments, and variables by name; it starts in an empty directory."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *arguments],
            env={**environment, **variables},
            cwd=tmp_path_factory.getbasetemp(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def proven(pgvigil: Pgvigil) -> subprocess.CompletedProcess[str]:
    """A nightly backup that was run once from the command line."""
    return pgvigil("run", "nightly-backup", "demo", "--json")


@pytest.fixture
def unwritten(prefect_sandbox: Sandbox, tmp_path: Path) -> Path:
    """A fleet file whose audit store is a database of its own: what other tests ran is not on its record."""
    name = f"audit_{uuid4().hex}"
    with connect(prefect_sandbox.ops_admin_dsn, "test") as session:
        session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    install(prefect_sandbox.admin_dsn(prefect_sandbox.ops_port, name))
    fleet = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
    fleet["audit"] |= {"dsn": prefect_sandbox.ops_dsn(name), "reports": f"file://{tmp_path}/reports"}
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(fleet), encoding="utf-8")
    return file


@pytest.fixture
def edited(unwritten: Path, prefect_sandbox: Sandbox, pgvigil: Pgvigil) -> Path:
    """A fleet file whose audit store has one run, and the first row of that was altered."""
    pgvigil("run", "nightly-backup", "demo", "--dry-run", PGVIGIL_FLEET=str(unwritten))
    store = conninfo_to_dict(load_fleet(unwritten).audit.dsn)["dbname"]
    with connect(prefect_sandbox.admin_dsn(prefect_sandbox.ops_port, str(store)), "test") as session:
        session.execute("ALTER TABLE pgvigil.audit_log DISABLE TRIGGER USER")
        session.execute("UPDATE pgvigil.audit_log SET body = replace(body, 'demo', 'prod') WHERE seq = 1")
    return unwritten
