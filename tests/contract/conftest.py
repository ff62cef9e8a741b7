"""A real S3 endpoint: moto's WSGI app behind TLS with keep-alive, in a process of its own."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import trustme
from urllib3 import HTTPSConnectionPool, Retry

from pgvigil.fleet import S3Settings

APP = "from moto.server import DomainDispatcherApplication, create_backend_app\n"
APP += "app = DomainDispatcherApplication(create_backend_app)\n"
# One process, because moto keeps the objects in memory; keep-alive, because pgBackRest insists.
GUNICORN = [
    *("-m", "gunicorn", "s3app:app", "--worker-class=gthread", "--workers=1", "--threads=8"),
    *("--keep-alive=60", "--certfile=tls.pem", "--keyfile=tls.pem", "--graceful-timeout=1"),
    *("--log-file=log", "--no-control-socket"),
]
# A run of tests that is killed ends it as well.
WITH_US = ["setpriv", "--pdeathsig", "TERM"]


@pytest.fixture(scope="session")
def s3_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Settings]:
    """Start an S3 endpoint for the session and end it, process and files."""
    directory = tmp_path_factory.mktemp("s3")
    (directory / "s3app.py").write_text(APP)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(directory / "tls.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = subprocess.Popen(
            [*WITH_US, sys.executable, *GUNICORN, f"--bind=fd://{listener.fileno()}"],
            cwd=directory,
            pass_fds=[listener.fileno()],
        )
    try:
        wait_until_served(port, directory / "ca.pem")
        yield S3Settings(
            endpoint_url=f"https://127.0.0.1:{port}", region="us-east-1", ca_file=directory / "ca.pem"
        )
    finally:
        server.terminate()
        server.wait(30)


def wait_until_served(port: int, ca_file: Path) -> None:
    """Ask until the endpoint answers: the socket listens already, so one patient request is enough."""
    with HTTPSConnectionPool("127.0.0.1", port, ca_certs=str(ca_file), timeout=60) as pool:
        answer = pool.request("GET", "/moto-api/data.json", retries=Retry(3, backoff_factor=0.5))
    assert answer.status == 200


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give boto3's chain planted credentials, and nothing of the machine's own."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED000000000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture(scope="session")
def raw(s3_settings: S3Settings) -> Iterator[object]:
    """Give a plain client for what the store under test does not do: buckets, planted uploads."""
    client = boto3.client(
        "s3",
        endpoint_url=s3_settings.endpoint_url,
        region_name=s3_settings.region,
        verify=str(s3_settings.ca_file),
        aws_access_key_id="AKIAPLANTED000000000",
        aws_secret_access_key="planted",
    )
    client.create_bucket(Bucket="plain")
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    yield client
    client.close()
