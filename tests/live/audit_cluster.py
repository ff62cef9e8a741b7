"""A throw-away PostgreSQL cluster for the audit log's tests, with a fresh database for each."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pgvigil.audit import install
from pgvigil.fleet import AuditSettings
from pgvigil.sandbox.postgres import find_programs
from tests.fixtures.sandbox import programs

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARIES = programs() or find_programs(None)
USER = "postgres" if os.geteuid() == 0 else None


@dataclass(frozen=True)
class Cluster:
    """A server that can be stopped and started."""

    directory: Path
    port: int

    def run(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs as its owner."""
        argv = [str(BINARIES / program), "-D", str(self.directory / "data"), *arguments]
        subprocess.run(argv, user=USER, check=True, stdout=subprocess.DEVNULL, cwd="/")

    def start(self) -> None:
        """Start the server and wait until it takes sessions."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        options += " -c max_connections=230"
        self.run("pg_ctl", "-w", "-l", str(self.directory / "log"), "-o", options, "start")

    def stop(self) -> None:
        """Stop the server as a crash would."""
        self.run("pg_ctl", "-w", "-m", "immediate", "stop")

    def dsn(self, database: str = "postgres", user: str = "admin") -> str:
        """Name a database of this server."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"


@dataclass(frozen=True)
class AuditStore:
    """One installed audit database: as its superuser, and as a writer sees it."""

    cluster: Cluster
    database: str
    settings: AuditSettings

    @property
    def admin(self) -> str:
        """The superuser's connection string."""
        return self.cluster.dsn(self.database)


def free_port() -> int:
    """Find a loopback port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def audit_cluster() -> Iterator[Cluster]:
    """Start one server for all tests."""
    directory = Path(tempfile.mkdtemp(prefix="pgvigil-audit-", dir="/tmp"))
    if USER:
        shutil.chown(directory, USER, USER)
    cluster = Cluster(directory, free_port())
    cluster.run("initdb", "-U", "admin", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    cluster.start()
    try:
        with psycopg.connect(cluster.dsn(), autocommit=True) as connection:
            connection.execute("CREATE ROLE writer LOGIN")
            connection.execute("CREATE ROLE stranger LOGIN")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(directory)


@pytest.fixture
def empty_database(audit_cluster: Cluster) -> Iterator[str]:
    """Create a database and drop it after the test."""
    name = f"audit_{uuid4().hex}"
    create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(audit_cluster.dsn(), autocommit=True) as connection:
        connection.execute(create)
    yield name
    with psycopg.connect(audit_cluster.dsn(), autocommit=True) as connection:
        connection.execute(drop)


@pytest.fixture
def store(audit_cluster: Cluster, empty_database: str, tmp_path: Path) -> AuditStore:
    """Install the audit log for a writer that is no superuser."""
    install(audit_cluster.dsn(empty_database))
    with psycopg.connect(audit_cluster.dsn(empty_database), autocommit=True) as connection:
        connection.execute("GRANT pgvigil_writer TO writer")
    settings = AuditSettings(
        dsn=audit_cluster.dsn(empty_database, "writer"),
        reports=f"file://{tmp_path}/reports",
        spool=tmp_path / "spool",
    )
    return AuditStore(audit_cluster, empty_database, settings)
