"""The sandbox's two PostgreSQL clusters: created, started on a free port, and let in by the kernel's word."""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil.errors import CommandNotFound, DeadlineExceeded, ToolFailed
from pgvigil.sandbox.directory import make
from pgvigil.sandbox.model import ADMIN, BACKUP_ROLE, HOST, STANZA
from pgvigil.sandbox.services import invoking_user, is_alive, log_file, run_tool, start_service, tail

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pgvigil.sandbox.model import Site

START_SECONDS = 120
_POLL_SECONDS = 0.05
_PORT_ATTEMPTS = 10
_LOWEST_PORT = 10_000

_COMMON = {
    "listen_addresses": HOST,
    "shared_buffers": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "256MB",
    "dynamic_shared_memory_type": "mmap",  # inside the data directory, so that no kill leaves it in /dev/shm
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%u@%d %a: ",
}

_HBA = f"""\
local all {ADMIN},{BACKUP_ROLE} peer map=sandbox
local all all scram-sha-256
host all all {HOST}/32 scram-sha-256
"""


def find_programs(postgres_bin: Path | None) -> Path:
    """Return the directory of the servers' programs: the one asked for, else the newest installed."""
    if postgres_bin is None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
        initdb = str(found[-1]) if found else shutil.which("initdb")
    else:
        initdb = shutil.which(postgres_bin / "initdb")
    if initdb is None:
        raise CommandNotFound(
            f"no PostgreSQL server programs in '{postgres_bin or '/usr/lib/postgresql/*/bin'}'",
            hint="install postgresql, or name the directory of initdb with --postgres-bin",
        )
    return Path(initdb).absolute().parent


def _version(initdb: Path) -> float:
    name = initdb.parent.parent.name
    return float(name) if name.replace(".", "", 1).isdigit() else 0


def read_major(site: Site) -> int:
    """Ask the servers' programs which PostgreSQL they are."""
    told = run_tool(site.directory, [site.postgres_bin / "initdb", "--version"], user=site.server_user)
    found = re.search(r"\d+", told)
    if found is None:
        raise ToolFailed(f"'{site.postgres_bin / 'initdb'}' told no version but {told[:60]!r}")
    return int(found[0])


def archive_settings(pgbackrest: str, configuration: Path) -> dict[str, str]:
    """Return the settings by which a cluster archives its WAL through pgBackRest."""
    words = [pgbackrest, f"--config={configuration}", f"--stanza={STANZA}", "archive-push"]
    return {
        "wal_level": "replica",
        "max_wal_senders": "10",
        "archive_mode": "on",
        "archive_command": shlex.join(words).replace("%", "%%") + " %p",
        "archive_timeout": "0",
    }


def create(site: Site, cluster: str, settings: Mapping[str, str]) -> int:
    """Create a cluster, start it on a port that nobody has, and return the port."""
    make(site.data(cluster), site.server_user)
    run_tool(site.directory, _initdb(site, cluster), user=site.server_user)
    _write(site, cluster, "pg_hba.conf", _HBA)
    _write(site, cluster, "pg_ident.conf", _ident(site))
    with (site.data(cluster) / "postgresql.conf").open("a", encoding="utf-8") as configuration:
        configuration.write("\ninclude 'sandbox.conf'\n")
    return _start_onfree_port(site, cluster, settings)


def _initdb(site: Site, cluster: str) -> list[str | Path]:
    layout = ["--data-checksums", "--encoding=UTF8", "--locale=C.UTF-8"]
    access = [f"--username={ADMIN}", "--auth-local=peer", "--auth-host=scram-sha-256"]
    return [site.postgres_bin / "initdb", *layout, *access, "--no-sync", "-D", site.data(cluster)]


def _ident(site: Site) -> str:
    accounts = {invoking_user(), site.server_user or invoking_user()}
    return "".join(f'sandbox "{account}" {role}\n' for account in accounts for role in (ADMIN, BACKUP_ROLE))


def _start_onfree_port(site: Site, cluster: str, settings: Mapping[str, str]) -> int:
    for _ in range(_PORT_ATTEMPTS):
        port = free_port()
        sockets = '"' + str(site.sockets).replace('"', '""') + '"'
        ours = {**_COMMON, **settings, "unix_socket_directories": sockets, "port": str(port)}
        _write(site, cluster, "sandbox.conf", "".join(map(_setting, ours.items())))
        try:
            start(site, cluster)
        except ToolFailed:
            # Somebody took the port between our look and the server's bind.
            if "Address already in use" not in tail(log_file(site.directory, cluster)):
                raise
            log_file(site.directory, cluster).unlink()
        else:
            return port
    raise ToolFailed(f"cluster '{cluster}' found no free port in {_PORT_ATTEMPTS} attempts", hint="try again")


def _setting(item: tuple[str, str]) -> str:
    name, value = item
    return "{} = '{}'\n".format(name, value.replace("\\", "\\\\").replace("'", "''"))


def _write(site: Site, cluster: str, name: str, text: str) -> None:
    file = site.data(cluster) / name
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    site.give(file)


def start(site: Site, cluster: str) -> int:
    """Start an existing cluster, wait until it takes sessions, and return the postmaster's process id."""
    argv: list[str | Path] = [site.postgres_bin / "postgres", "-D", site.data(cluster)]
    pid = start_service(site.directory, cluster, argv, user=site.server_user)
    deadline = time.monotonic() + START_SECONDS
    while not _is_ready(site.data(cluster), pid):
        if not is_alive(pid):
            raise ToolFailed(
                f"cluster '{cluster}' did not start; its log ends: {tail(log_file(site.directory, cluster))}"
            )
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"cluster '{cluster}' was not ready within {START_SECONDS} s")
        time.sleep(_POLL_SECONDS)
    return pid


def _is_ready(data: Path, pid: int) -> bool:
    """Read the postmaster's own word, as pg_ctl does: line 1 its process id, line 8 its state."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"


def release_memory(directory: Path) -> None:
    """Remove the shared memory that killed postmasters of this directory left in the kernel.

    Only a segment that nobody is attached to, and whose key and id a postmaster.pid here records.
    """
    table = Path("/proc/sysvipc/shm")
    rows = [line.split() for line in table.read_text(encoding="ascii").splitlines()[1:]]
    idle = {(row[0], row[1]) for row in rows if row[6] == "0"}
    for file in directory.glob("*/postmaster.pid"):
        lines = file.read_text(encoding="utf-8").splitlines()
        segment = tuple(lines[6].split()) if len(lines) > 6 else ()
        if segment in idle:
            run_tool(directory, ["ipcrm", "-m", segment[1]])


def free_port() -> int:
    """Return a port nobody has, below those that the kernel gives to outgoing connections.

    A server that was killed can so come back on its own port.
    """
    top = _first_outgoing_port()
    while True:
        port = _LOWEST_PORT + secrets.randbelow(top - _LOWEST_PORT)
        if _can_bind(port):
            return port


def _can_bind(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _first_outgoing_port() -> int:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    return first if first > _LOWEST_PORT + 1000 else 60_000
