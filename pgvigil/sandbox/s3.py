"""The sandbox's S3: moto behind a TLS server with keep-alive, its objects gone when it ends."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import sys
from typing import TYPE_CHECKING

import trustme

from pgvigil.errors import ToolFailed
from pgvigil.sandbox.directory import make
from pgvigil.sandbox.model import HOST
from pgvigil.sandbox.services import log_file, start_service, tail

if TYPE_CHECKING:
    from pathlib import Path

BUCKETS = ("pgbackrest", "reports", "archive")
SERVICE = "s3"

# pgBackRest looks for its host among a certificate's DNS names alone, even when it is an address, and
# "localhost" may be ::1 first. libc reads this name as 127.0.0.1, and a certificate may have it as a name.
PGBACKREST_HOST = "127.1"

_FIRST_ANSWER_SECONDS = 120


def start(directory: Path, ca_file: Path) -> int:
    """Start the endpoint with its buckets on a free port, and return the port.

    We bind the socket ourselves and hand it over, so nobody can take the port in between.
    """
    certificate = _certify(ca_file)
    with socket.create_server((HOST, 0), backlog=256) as listener:
        port: int = listener.getsockname()[1]
        argv = _gunicorn(directory, certificate, listener.fileno())
        start_service(directory, SERVICE, argv, pass_fds=[listener.fileno()])
    for bucket in BUCKETS:
        _create_bucket(directory, ca_file, port, bucket)
    return port


def _certify(ca_file: Path) -> Path:
    """Make an authority and a server's certificate below it; the authority's key is not kept."""
    make(ca_file.parent).chmod(0o755)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(ca_file)
    ca_file.chmod(0o644)
    server = ca_file.with_name("server.pem")
    server.touch(mode=0o600)
    authority.issue_cert(HOST, PGBACKREST_HOST).private_key_and_cert_chain_pem.write_to_path(server)
    return server


def _gunicorn(directory: Path, certificate: Path, listener: int) -> list[str | Path]:
    """Compose the server's command: one process, because moto keeps its objects in memory."""
    serving = ["--worker-class=gthread", "--workers=1", "--threads=16", "--keep-alive=75", "--timeout=0"]
    tls = [f"--certfile={certificate}", f"--keyfile={certificate}"]
    place = [f"--bind=fd://{listener}", f"--worker-tmp-dir={directory / 'tmp'}", "--no-control-socket"]
    program = [sys.executable, "-m", "gunicorn"]
    return [*program, *serving, *tls, *place, "pgvigil.sandbox.endpoint:application()"]


def _create_bucket(directory: Path, ca_file: Path, port: int, bucket: str) -> None:
    """Create a bucket; the first call waits in the listening socket until the server takes it."""
    trust = ssl.create_default_context(cafile=os.fspath(ca_file))
    connection = http.client.HTTPSConnection(HOST, port, timeout=_FIRST_ANSWER_SECONDS, context=trust)
    try:
        connection.request("PUT", f"/{bucket}")
        answer = connection.getresponse()
    except OSError as error:
        raise ToolFailed(
            f"S3 endpoint does not answer: {error}; its log ends: {tail(log_file(directory, SERVICE))}"
        ) from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise ToolFailed(f"S3 endpoint answered {answer.status} to creating bucket '{bucket}', expected 200")
