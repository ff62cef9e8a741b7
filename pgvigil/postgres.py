"""The one place that opens database sessions: bounded, named, and with errors in our own words."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import dict_row

from pgvigil.errors import DatabaseFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

Connection = psycopg.Connection[dict[str, Any]]

CONNECT_TIMEOUT = timedelta(seconds=10)
STATEMENT_TIMEOUT = timedelta(seconds=60)
LOCK_TIMEOUT = timedelta(seconds=2)
IDLE_IN_TRANSACTION_TIMEOUT = timedelta(seconds=60)


@contextmanager
def connect(
    dsn: str,
    application_name: str,
    *,
    statement_timeout: timedelta = STATEMENT_TIMEOUT,
    lock_timeout: timedelta = LOCK_TIMEOUT,
) -> Iterator[Connection]:
    """Open an autocommit session whose waits are all bounded, and close it at the end.

    Passwords come from libpq (service file, password file, environment); `application_name` is cut to
    the 63 bytes that PostgreSQL keeps. Rows come back as dicts. Errors of the driver, inside the block
    as well, leave as DatabaseFailed.
    """
    with translated(dsn), _open(dsn, application_name, statement_timeout, lock_timeout) as connection:
        yield connection


def _open(
    dsn: str, application_name: str, statement_timeout: timedelta, lock_timeout: timedelta
) -> Connection:
    connection = psycopg.connect(
        dsn,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=int(CONNECT_TIMEOUT.total_seconds()),
        application_name=application_name[:63],
        keepalives_idle=30,
        keepalives_interval=10,
        keepalives_count=3,
    )
    settings = {
        "statement_timeout": milliseconds(statement_timeout),
        "lock_timeout": milliseconds(lock_timeout),
        "idle_in_transaction_session_timeout": milliseconds(IDLE_IN_TRANSACTION_TIMEOUT),
        "idle_session_timeout": "0",  # a run that waits for a tool for hours is not an abandoned one
        "tcp_keepalives_idle": "30",  # so that the server drops the locks of a host that vanished
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "search_path": "pg_catalog",
        "timezone": "UTC",
    }
    try:
        for name, value in settings.items():
            connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
    except BaseException:
        connection.close()
        raise
    return connection


def milliseconds(span: timedelta) -> str:
    """Render a duration as PostgreSQL's timeout settings take it."""
    return str(int(span.total_seconds() * 1000))


@contextmanager
def translated(dsn: str) -> Iterator[None]:
    """Turn the driver's errors into DatabaseFailed, naming the server but never a password."""
    try:
        yield
    except psycopg.Error as error:
        where = describe(dsn)
        sqlstate = error.sqlstate or ""
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DatabaseFailed(
            f"{where}: {text}",
            hint=_hint(sqlstate, text),
            sqlstate=sqlstate,
            unreachable=_is_unreachable(error),
        ) from error


def _is_unreachable(error: psycopg.Error) -> bool:
    """Tell a server that is away from one that said no: libpq reports both without a SQLSTATE."""
    if error.sqlstate or not isinstance(error, psycopg.OperationalError):
        return False
    text = str(error)
    passing = ("starting up", "shutting down", "too many", "recovery")
    return "FATAL" not in text or any(word in text for word in passing)


def describe(dsn: str) -> str:
    """Name a server for a message: service, or host, port and database; never user secrets."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
    except psycopg.Error:
        return "postgresql (unreadable dsn)"
    if "service" in parts:
        return f"postgresql service {parts['service']}"
    host = parts.get("host") or "local socket"
    return f"postgresql {host}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"


def _hint(sqlstate: str, text: str) -> str:  # noqa: PLR0911 - a table, read from the top
    if sqlstate == "42501":
        return "grant what infra/roles.sql grants to this role"
    if "password" in text:
        return "put the password into the password file (PGPASSFILE) or the service file, not the fleet file"
    if sqlstate[:2] == "28":
        return "let this role in: pg_hba.conf, role name, password file"
    if sqlstate in {"3D000", "42P01", "3F000"}:
        return "check the database in the fleet file; for the audit store run 'pgvigil audit init'"
    if sqlstate == "55P03":
        return "another session holds the lock; see pg_locks"
    if not sqlstate:
        return "check that the server is up and that host and port in the fleet file are right"
    return ""
