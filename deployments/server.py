"""Prefect servers that pgvigil starts itself: a sandbox's, and one that lives only as long as a run."""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import shutil
import sqlite3
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deployments.serving import PORT
from pgvigil.errors import ConfigError, DeadlineExceeded, ToolFailed
from pgvigil.processes import Command, hold
from pgvigil.sandbox.postgres import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.sandbox import Sandbox

HOUSE = Path(__file__).resolve().parents[1]
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
# A run of its own needs no schedules, no watching over other runs and no pages.
_BARE = {
    "PREFECT_SERVER_UI_ENABLED": "false",
    **{
        f"PREFECT_SERVER_SERVICES_{service}_ENABLED": "false"
        for service in (
            "SCHEDULER",
            "LATE_RUNS",
            "FOREMAN",
            "CANCELLATION_CLEANUP",
            "PAUSE_EXPIRATIONS",
            "REPOSSESSOR",
            "TRIGGERS",
            "CLEANUP_RECONCILER",
        )
    },
}
_DATABASE = "prefect.db"
_ANNOUNCE_SECONDS = 30.0
_READY_SECONDS = 120.0
_ANSWER_SECONDS = 5.0
_POLL_SECONDS = 0.05
_WITH_CREDENTIALS = {401, 403}  # Prefect has them and sends them; this question does not


class StartingServer:
    """A server that has its address and soon answers; its log is quoted when it does not."""

    def __init__(self, announcement: Path, log: Path) -> None:
        self.log = log
        self.url = _read_address(announcement, log)

    @property
    def ui(self) -> str:
        """The address for the browser."""
        return self.url.removesuffix("/api")

    def await_ready(self) -> None:
        """Wait until the server answers; raises ToolFailed when it ended, DeadlineExceeded when it hangs."""
        try:
            _ask(self.url, _READY_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the Prefect server did not answer within {_READY_SECONDS:g} s: {_end_of(self.log)}",
                hint="look at the load of this host, then try again",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ToolFailed(
                f"the Prefect server did not start ({error}): {_end_of(self.log)}",
                hint="try again; if it stays so, install Prefect and FastAPI in the locked versions",
            ) from error


class PrivateServer(StartingServer):
    """A server for one run; its first start ever leaves a migrated database for the next ones."""

    def await_ready(self) -> None:
        """Wait until the server answers; raises as any server does, and then doubts what it began with."""
        try:
            super().await_ready()
        except ToolFailed:
            _template().unlink(missing_ok=True)
            raise
        _keep_template(self.log.with_name(_DATABASE))


def require_answer(url: str) -> None:
    """Raise ConfigError when the Prefect server of PREFECT_API_URL is away, is another, or lets us not in."""
    try:
        _ask(url, _ANSWER_SECONDS)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"the Prefect server at {url} does not answer: {reason}",
            hint="start it, or add --local: the same run on a server of its own, with the same audit log",
        ) from error
    _require_admission(url)


def _require_admission(url: str) -> None:
    """Raise ConfigError when the server wants a password and ours is none or another.

    Prefect would say so in the middle of a run's beginning, as an HTTP error without a cure.
    """
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - who asks imports Prefect next anyway
    from prefect.exceptions import PrefectHTTPStatusError  # noqa: PLC0415
    from prefect.settings import PREFECT_API_AUTH_STRING  # noqa: PLC0415

    try:
        with get_client(sync_client=True) as client:
            client.api_version()
    except PrefectHTTPStatusError as refusal:
        if refusal.response.status_code not in _WITH_CREDENTIALS:
            raise
        given = (
            "another password" if PREFECT_API_AUTH_STRING.value() else "no password (PREFECT_API_AUTH_STRING)"
        )
        raise ConfigError(
            f"the Prefect server at {url} refuses this caller, who has {given}",
            hint="set PREFECT_API_AUTH_STRING to what the server has in PREFECT_SERVER_API_AUTH_STRING",
        ) from None


def required_url() -> str:
    """Return PREFECT_API_URL, or raise ConfigError when it is not set."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        raise ConfigError(
            "PREFECT_API_URL is not set, so there is no server to ask",
            hint="set it to the server's address, such as http://127.0.0.1:4200/api",
        )
    return url


def _ask(url: str, patience: float) -> None:
    request = urllib.request.Request(f"{url.rstrip('/')}/health")  # noqa: S310 - the operator's own address
    try:
        with urllib.request.urlopen(request, timeout=patience) as answer:  # noqa: S310 - as above
            if answer.read(16).strip() != b"true":
                raise http.client.HTTPException("what answers there is no Prefect server")
    except urllib.error.HTTPError as refusal:
        if refusal.code in _WITH_CREDENTIALS:
            return
        if refusal.code < 500:
            raise http.client.HTTPException(
                f"what answers there is no Prefect server (HTTP {refusal.code})"
            ) from refusal
        raise
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise error.reason from error
        raise


@contextmanager
def private_server() -> Iterator[PrivateServer]:
    """Run a server that lives and dies with the block, SIGKILL of this process included.

    Its home is a temporary directory that goes with it. The block starts while the server still loads.
    """
    with tempfile.TemporaryDirectory(prefix="pgvigil-run-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        with suppress(FileNotFoundError):
            shutil.copyfile(_template(), home / _DATABASE)
        env = {
            **QUIET,
            **_BARE,
            "PYTHONPATH": python_path(),
            "PREFECT_HOME": name,
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / _DATABASE}",
        }
        with hold(Command(argv=(*_argv(home / "url"), "--temporary"), env=env), home / "server.log"):
            yield PrivateServer(home / "url", home / "server.log")


def _template() -> Path:
    """Name the empty database of this version of Prefect; migrating one is most of a first start."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "pgvigil", f"prefect-{importlib.metadata.version('prefect')}.db")


def _keep_template(database: Path) -> None:
    """Save a fresh database for later runs, whole or not at all; without it they are slower, no more."""
    file = _template()
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    if file.exists():
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(draft)) as copy:
            source.backup(copy)
        draft.replace(file)
    except (OSError, sqlite3.Error):
        draft.unlink(missing_ok=True)


def start_in(sandbox: Sandbox) -> StartingServer:
    """Start the server of a sandbox, with its database in the sandbox's second cluster.

    It gets a port that no outgoing connection can take while it is down, and has that one ever after.
    """
    home = sandbox.directory / "prefect"
    home.mkdir(mode=0o700, exist_ok=True)
    env = {
        **QUIET,
        "PYTHONPATH": python_path(),
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": _database(sandbox),
        # Leases in memory die with the server, and with them every run that holds one.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # No password, so that its page opens at once; but no other page in the same browser may use it.
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
    }
    before = home / "url"
    port = urlsplit(before.read_text(encoding="ascii")).port if before.exists() else free_port()
    before.unlink(missing_ok=True)
    env[PORT] = str(port)
    sandbox.start_service("prefect-server", _argv(home / "url"), env)
    return StartingServer(home / "url", sandbox.directory / "log" / "prefect-server.log")


def start_worker(sandbox: Sandbox, url: str, pool: str) -> None:
    """Start the sandbox's worker; it looks for runs every two seconds."""
    argv = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", "sandbox"]
    env = {"PREFECT_API_URL": url, "PREFECT_WORKER_QUERY_SECONDS": "2", "PYTHONPATH": python_path()}
    sandbox.start_service("prefect-worker", argv, env)


def python_path() -> str:
    """Return where a child process finds this checkout's packages, from whichever directory it starts."""
    return os.pathsep.join(filter(None, [str(HOUSE), os.environ.get("PYTHONPATH")]))


def _argv(announcement: Path) -> tuple[str, ...]:
    return (sys.executable, "-m", "deployments.serving", str(announcement))


def _database(sandbox: Sandbox) -> str:
    """Compose the address of the database; the driver finds the password in DIR/pgpass by itself."""
    return sandbox.ops_dsn("prefect", "prefect").replace("postgresql://", "postgresql+asyncpg://", 1)


def _read_address(announcement: Path, log: Path) -> str:
    deadline = time.monotonic() + _ANNOUNCE_SECONDS
    while not announcement.exists():
        if time.monotonic() > deadline:
            raise ToolFailed(
                f"the Prefect server did not start: {_end_of(log)}", hint="run 'pgvigil doctor' on this host"
            )
        time.sleep(_POLL_SECONDS)
    return announcement.read_text(encoding="ascii")


def _end_of(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return text.strip()[-1000:] or "its log is empty"
