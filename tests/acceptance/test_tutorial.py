"""The tutorial is walked, block by block, on a cluster that no sandbox made."""

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pgvigil.sandbox.postgres import find_programs, free_port
from tests.fixtures.sandbox import reachable_directory

pytestmark = pytest.mark.long

HOUSE = Path(__file__).resolve().parents[2]
BLOCKS = re.compile(r"^```(sh|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SERVER_USER = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
PASSWORD = "walked-it-myself"


class OwnCluster:
    """A cluster with pgBackRest, set up by hand as infra/pgbackrest/one-host.conf says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs = find_programs(None)
        self.port = free_port()
        self.conf = directory / "pgbackrest.conf"
        self.environment = {
            **os.environ,
            "PATH": f"{directory / 'bin'}:{self.programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(HOUSE),
            "HOME": str(directory),
            "PGPASSFILE": str(directory / "pgpass"),
            "PGHOST": str(directory / "socket"),
            "PGPORT": str(self.port),
            "PGUSER": SERVER_USER,
        }
        self.environment.pop("PREFECT_API_URL", None)

    def set_up(self) -> None:
        """Make it, archiving, with one table of its owner's."""
        shutil.chown(self.directory, SERVER_USER)
        for name in ("socket", "repository", "log", "bin"):
            (self.directory / name).mkdir()
            shutil.chown(self.directory / name, SERVER_USER)
        self.conf.write_text(
            f"[global]\nrepo1-path={self.directory}/repository\nlog-path={self.directory}/log\n"
            f"lock-path={self.directory}/log\nstart-fast=y\narchive-timeout=60\n"
            f"[orders]\npg1-path={self.directory}/data\npg1-port={self.port}\n"
            f"pg1-socket-path={self.directory}/socket\npg1-user={SERVER_USER}\n",
            encoding="utf-8",
        )
        shim = self.directory / "bin" / "pgvigil"
        shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m deployments "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
        self.as_server(
            "initdb", "--data-checksums", "--auth-local=trust", "--auth-host=scram-sha-256", "data"
        )
        archive = f"pgbackrest --config={self.conf} --stanza=orders archive-push %p"
        with (self.directory / "data" / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(f"port={self.port}\nunix_socket_directories='{self.directory}/socket'\n")
            settings.write(f"listen_addresses='127.0.0.1'\narchive_mode=on\narchive_command='{archive}'\n")
        self.as_server("pg_ctl", "-w", "-D", "data", "-l", "log/server.log", "start")
        self.as_server("pgbackrest", f"--config={self.conf}", "--stanza=orders", "stanza-create")
        self.as_server("psql", "-Xc", "CREATE TABLE payments AS SELECT generate_series(1, 1000)", "postgres")

    def as_server(self, *argv: str) -> None:
        """Run a program as the user of the server."""
        user = SERVER_USER if os.geteuid() == 0 else None
        subprocess.run(argv, cwd=self.directory, env=self.environment, user=user, group=user, check=True)

    def tear_down(self) -> None:
        """End the server, if it is there."""
        if (self.directory / "data" / "postmaster.pid").exists():
            self.as_server("pg_ctl", "-w", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(self.directory)


@pytest.fixture
def own() -> Iterator[OwnCluster]:
    """Somebody's own cluster."""
    cluster = OwnCluster(reachable_directory())
    try:
        cluster.set_up()
        yield cluster
    finally:
        cluster.tear_down()


def adapted(text: str, own: OwnCluster) -> str:
    """Put this cluster's places and names for those of the tutorial."""
    names: Mapping[str, str] = {
        "127.0.0.1:5432": f"127.0.0.1:{own.port}",
        # Whoever may read this checkout walks, root perhaps: then pgBackRest is given the server's user.
        "/etc/pgbackrest/pgbackrest.conf": f"{own.conf}\n      user: {SERVER_USER}",
        "/var/lib/pgvigil": str(own.directory / "pgvigil"),
        "infra/roles.sql": str(HOUSE / "infra" / "roles.sql"),
        # Kinds of target that were never drilled are told with exit code 2, as the page says.
        "pgvigil status ": "test $(pgvigil status >/dev/null; echo $?) = 2 ",
    }
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def test_the_tutorial_leads_to_a_proven_restore(own: OwnCluster) -> None:
    """Every command of it, in its order; only the installation is this checkout's own."""
    (own.directory / "pgpass").write_text(f"127.0.0.1:{own.port}:*:pgvigil:{PASSWORD}\n", encoding="ascii")
    (own.directory / "pgpass").chmod(0o600)
    fleet = own.directory / "pgvigil" / "fleet.yaml"
    text = (HOUSE / "docs" / "tutorial.md").read_text(encoding="utf-8")
    install, become, *walk = BLOCKS.findall(text)
    assert ("make .venv/.runtime" in install[1], "cd /opt/pgvigil" in become[1]) == (True, True)
    said = []
    for kind, block in walk:
        own_block = adapted(block, own)
        if kind == "yaml":
            fleet.write_text(own_block, encoding="utf-8")
            continue
        own.environment["PGVIGIL_FLEET"] = str(fleet)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", own_block],
            cwd=own.directory,
            env=own.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{own_block}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        said.append(done.stdout)
        if "infra" in block:
            password = f"ALTER ROLE pgvigil PASSWORD '{PASSWORD}'"
            own.as_server("psql", "-Xqc", password, "postgres")

    drill = next(text for text in said if "restore_drill" in text and "nightly_backup" not in text)
    assert "VERIFIED: restore_drill on orders-1" in drill
