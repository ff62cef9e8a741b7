"""infra/pgbackrest/repository-host.conf and database-host.conf, as they stand, on one host."""

import re
import socket
from pathlib import Path

import pytest
import trustme
import yaml

from pgvigil.reports import Verdict
from pgvigil.sandbox import Sandbox, services
from tests.fixtures.backup import Night

pytestmark = pytest.mark.long

EXAMPLES = Path(__file__).parents[2] / "infra" / "pgbackrest"
HOSTS = ("repository-1", "orders-1")


def free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as first, socket.create_server(("127.0.0.1", 0)) as second:
        return first.getsockname()[1], second.getsockname()[1]


def certify(box: Sandbox, directory: Path) -> None:
    """Give each host a certificate in its own name, which is what the other one lets in."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.crt")
    for host in HOSTS:
        issued = authority.issue_cert("localhost", common_name=host)
        issued.private_key_pem.write_to_path(directory / f"{host}.key")
        (directory / f"{host}.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    for file in directory.iterdir():
        file.chmod(0o600)
        box.give(file)


def place(box: Sandbox, name: str, own_port: int, other: str, other_port: int) -> Path:
    """Write an example with this sandbox's places; every other line stays as it is, but for the standby's."""
    home = box.directory / name
    home.mkdir()
    reach = ["localhost", f"-port={other_port}", f"-config={box.directory}/{other}/pgbackrest.conf"]
    places = {
        "[global]": ["[global]", f"log-path={home}", f"lock-path={home}/lock"],
        "[orders]": ["[demo]"],
        "tls-server-address": ["tls-server-address=127.0.0.1"],
        "tls-server-port": [f"tls-server-port={own_port}"],
        "pg1-host": [f"pg1-host={reach[0]}", *(f"pg1-host{each}" for each in reach[1:])],
        "repo1-host": [f"repo1-host={reach[0]}", *(f"repo1-host{each}" for each in reach[1:])],
        "repo1-path": [f"repo1-path={home}/repository"],
        "pg1-path": [f"pg1-path={box.data('primary')}", f"pg1-port={box.primary_port}"],
        "pg1-socket-path": [f"pg1-socket-path={box.sockets}"],
        "pg1-port": [],
        "backup-standby": [],
    }
    lines: list[str] = []
    for line in (EXAMPLES / f"{name}.conf").read_text(encoding="utf-8").splitlines():
        option, _, value = line.partition("=")
        if not option.startswith("pg2-"):
            lines += places.get(option, [f"{option}={value}" if value else option])
    text = "\n".join(lines).replace("/etc/pgbackrest/tls", f"{box.directory}/certificates")
    file = home / "pgbackrest.conf"
    file.write_text(re.sub("^(tls-server-auth=.*)=orders$", r"\1=demo", text, flags=re.MULTILINE) + "\n")
    box.give(file)
    box.give(home)
    return file


def serve(box: Sandbox, name: str, file: Path) -> None:
    argv = ["pgbackrest", f"--config={file}", "server"]
    services.start_service(box.directory, name, argv, user=box.server_user)


def test_a_backup_over_tls_is_proven(own_night: Night) -> None:
    """WAL goes to the repository host, a backup is fetched from the database host, and its proof is whole."""
    box = own_night.sandbox
    certificates = box.directory / "certificates"
    certificates.mkdir()
    box.give(certificates)
    certify(box, certificates)
    repository, database = free_ports()
    own = place(box, "repository-host", repository, "database-host", database)
    other = place(box, "database-host", database, "repository-host", repository)
    box.pgbackrest_conf.write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
    serve(box, "repository-host", own)
    serve(box, "database-host", other)
    fleet = yaml.safe_load(box.fleet_file.read_text(encoding="utf-8"))
    fleet["clusters"]["demo"]["pgbackrest"]["config"] = str(own)
    box.fleet_file.write_text(yaml.safe_dump(fleet), encoding="utf-8")
    command = ["pgbackrest", f"--config={own}", "--stanza=demo"]
    services.run_tool(box.directory, [*command, "stanza-create"], user=box.server_user)

    report = own_night.backup()

    assert report.verdict is Verdict.VERIFIED, report.findings
    assert list((own.parent / "repository" / "archive" / "demo").iterdir())
