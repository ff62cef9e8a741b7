"""The one place that opens database sessions: bounded, named, and with errors in our own words."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql as sql  # noqa: PLC0414 - handed on to who composes statements
from psycopg.generators import fetch_many
from psycopg.rows import dict_row
from psycopg.waiting import Wait

from pgvigil.errors import DatabaseFailed

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator, Mapping

    from psycopg.abc import PQGen
    from psycopg.sql import Composed

Connection = psycopg.Connection[dict[str, Any]]

CONNECT_TIMEOUT = timedelta(seconds=10)
IMPATIENT = timedelta(seconds=5)  # for who has something else to do when the server is away
STATEMENT_TIMEOUT = timedelta(seconds=60)
LOCK_TIMEOUT = timedelta(seconds=2)
IDLE_IN_TRANSACTION_TIMEOUT = timedelta(seconds=60)
COPY_PIECE = 256 * 1024
UNREADABLE = "postgresql (unreadable dsn)"

_QUOTED = re.compile(r'(?<!connection option )"[^"]*"')


@contextmanager
def connect(
    dsn: str,
    application_name: str,
    *,
    statement_timeout: timedelta = STATEMENT_TIMEOUT,
    lock_timeout: timedelta = LOCK_TIMEOUT,
    connect_timeout: timedelta = CONNECT_TIMEOUT,
) -> Iterator[Connection]:
    """Open an autocommit session whose waits are all bounded, and close it at the end.

    `connect_timeout` (at least 2 s, libpq's least) covers the whole greeting, so a server that accepts
    and says nothing is given up as well. Within the session the server's own timeouts bound a statement,
    and TCP's a host that vanished; a server process that is frozen in mid-statement is bounded by nothing.
    Passwords come from libpq (service file, password file, environment); `application_name` is cut to
    the 63 bytes that PostgreSQL keeps. Rows come back as dicts. Errors of the driver, inside the block
    as well, leave as DatabaseFailed.
    """
    with translated(dsn), _greet(dsn, application_name, connect_timeout) as connection:
        _bound(connection, statement_timeout, lock_timeout)
        yield connection


@contextmanager
def connect_pooled(dsn: str, application_name: str) -> Iterator[Connection]:
    """Open an autocommit session that leaves no trace of its own in the server's session.

    A pooler may give each transaction another server session, and ours to somebody else afterwards. So
    nothing is set, prepared or locked beyond a transaction: do everything within `transaction`. Rows and
    errors are as with `connect`.
    """
    with translated(dsn), _greet(dsn, application_name, IMPATIENT) as connection:
        connection.prepare_threshold = None
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # whatever the role's default is
        yield connection


@contextmanager
def transaction(connection: Connection, bounds: Mapping[str, str]) -> Iterator[Connection]:
    """Do the block in one transaction with settings of its own, committed at its end."""
    with connection.transaction():
        _set(connection, {**_lasting(connection), **bounds}, is_local=True)
        yield connection


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Do the block so that what fails in it is undone alone; raises DatabaseFailed."""
    with translated(connection.info.dsn), connection.transaction():
        yield


def _greet(
    dsn: str, application_name: str, connect_timeout: timedelta, *, replication: str | None = None
) -> Connection:
    return psycopg.connect(
        dsn,
        autocommit=True,
        row_factory=dict_row,
        connect_timeout=int(connect_timeout.total_seconds()),
        application_name=application_name[:63],
        keepalives_idle=30,
        keepalives_interval=10,
        keepalives_count=3,
        tcp_user_timeout=60_000,  # without it, what was sent to a vanished host is repeated for 15 minutes
        replication=replication,
    )


@contextmanager
def replicate(dsn: str, application_name: str, *, deadline: timedelta) -> Iterator[Connection]:
    """Open a session that takes replication commands of one database, each bounded by the deadline.

    The server itself gives up what it does for a client that died, within a second. The role needs
    REPLICATION, and the server a free wal sender. Raises DatabaseFailed.
    """
    with (
        translated(dsn),
        _greet(dsn, application_name, CONNECT_TIMEOUT, replication="database") as connection,
    ):
        # A wal sender takes no parameters, and looks after its client from the next SQL statement on.
        for name, value in (
            ("client_connection_check_interval", "1000"),
            ("lock_timeout", milliseconds(deadline)),
        ):
            connection.execute(sql.SQL("SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        expiry = threading.Timer(deadline.total_seconds(), connection.cancel_safe)
        expiry.daemon = True
        expiry.start()
        try:
            yield connection
        finally:
            expiry.cancel()


def _bound(connection: Connection, statement_timeout: timedelta, lock_timeout: timedelta) -> None:
    settings = {
        "statement_timeout": milliseconds(statement_timeout),
        "lock_timeout": milliseconds(lock_timeout),
        "idle_in_transaction_session_timeout": milliseconds(IDLE_IN_TRANSACTION_TIMEOUT),
        "idle_session_timeout": "0",  # a run that waits for a tool for hours is not an abandoned one
        "tcp_keepalives_idle": "30",  # so that the server drops the locks of a host that vanished
        "tcp_keepalives_interval": "10",
        "tcp_keepalives_count": "3",
        "client_connection_check_interval": "10000",  # so that it stops working for a client that died
        "search_path": "pg_catalog",
        "client_encoding": "UTF8",  # a database of bytes (SQL_ASCII) would give its names as such
        "timezone": "UTC",
        # A role may have others as its own, which the driver cannot read.
        "datestyle": "ISO, MDY",
        "intervalstyle": "postgres",
    }
    _set(connection, {**settings, **_lasting(connection)}, is_local=False)


def _lasting(connection: Connection) -> Mapping[str, str]:
    """Let a transaction last, whatever the role's default: each statement is bounded, a copy takes long."""
    return {"transaction_timeout": "0"} if connection.info.server_version >= 170_000 else {}


def _set(connection: Connection, settings: Mapping[str, str], *, is_local: bool) -> None:
    """Set everything in one round trip: a drill opens a hundred sessions, and its source may be far away.

    Qualified throughout, because somebody's search_path still holds.
    """
    connection.execute(
        "SELECT pg_catalog.set_config(name, value, %s)"
        " FROM ROWS FROM (pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[]))"
        " AS setting (name, value)",
        (is_local, list(settings), list(settings.values())),
    )


def in_database(dsn: str, database: str) -> str:
    """Return the connection string for another database of the same cluster."""
    try:
        return psycopg.conninfo.make_conninfo(dsn, dbname=database)
    except psycopg.Error:
        return dsn  # unreadable: opening it tells why


def is_unencoded(connection: Connection) -> bool:
    """Tell a database whose text is bytes of no known encoding."""
    return connection.info.parameter_status("server_encoding") == "SQL_ASCII"


def read_bytes(connection: Connection) -> None:
    """Let the text of a database of bytes come as LATIN1, which takes any and gives them back."""
    if is_unencoded(connection):
        connection.execute("SELECT pg_catalog.set_config('client_encoding', 'LATIN1', false)")


def copy_out(connection: Connection, statement: Composed) -> Generator[bytes]:
    """Give the bytes of a COPY … TO STDOUT in pieces of a few hundred kilobytes; errors as in `connect`.

    A piece is cut without regard to where rows end, however long one is.
    """
    piece = bytearray()
    for row in copy_rows(connection, statement):
        if piece and len(piece) + len(row) > COPY_PIECE:
            yield bytes(piece)
            piece.clear()
        if len(row) > COPY_PIECE:
            yield from (bytes(row[start : start + COPY_PIECE]) for start in range(0, len(row), COPY_PIECE))
            del row  # or it would be held while the next one is read
        else:
            piece += row  # rows kept to be joined would cost thrice as much: each has memory of its own
    if piece:
        yield bytes(piece)


def copy_rows(connection: Connection, statement: Composed) -> Generator[memoryview]:
    """Give the messages of a COPY … TO STDOUT, each of which is one row; errors as in `connect`.

    In binary format the head comes with the first row, and the end alone (PostgreSQL manual, 55.7).
    """
    pgconn = connection.pgconn
    with connection.cursor() as cursor, cursor.copy(statement):
        # The driver's own loop sets up two generators for each row, which costs more than the row.
        while (taken := pgconn.get_copy_data(1))[0] >= 0:
            if not taken[0]:
                connection.wait(_receive(pgconn))
                continue
            yield taken[1]
            del taken
        for result in connection.wait(fetch_many(pgconn)):
            if result.status != psycopg.pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result, encoding=connection.info.encoding)


def _receive(pgconn: psycopg.pq.abc.PGconn) -> PQGen[None]:
    """Wait until the server has sent more."""
    while not (yield Wait.R):
        pass
    pgconn.consume_input()


def copy_in(connection: Connection, statement: Composed, chunks: Iterable[bytes]) -> int:
    """Feed a COPY … FROM STDIN and return the number of rows; an error of the chunks undoes it."""
    with connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for chunk in chunks:
                copy.write(chunk)
        return cursor.rowcount


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
        if where == UNREADABLE:
            text = _QUOTED.sub('"***"', text)  # libpq quotes what it cannot read, and that may be a password
        raise DatabaseFailed(
            f"{where}: {text}",
            hint=_hint(sqlstate, text),
            sqlstate=sqlstate,
            said=text,
            unreachable=_is_unreachable(error),
            **_named(error),
        ) from error


def _named(error: psycopg.Error) -> dict[str, str]:
    """Give the names of type and constraint, where the server says whose rule a value broke."""
    said = error.diag
    name = ".".join(part for part in (said.schema_name, said.datatype_name) if part)
    found = {"type": name if said.datatype_name else None, "constraint": said.constraint_name}
    return {key: value for key, value in found.items() if value}


# At connection time libpq gives texts only. A server that says no says FATAL first; these pass by themselves.
_PASSING = re.compile(
    r"FATAL:\s+(the database system is (starting up|shutting down|in recovery mode|not yet accepting)"
    r"|sorry, too many clients|too many connections|remaining connection slots|the connection slot)"
)
_REFUSED = re.compile(
    r"FATAL:|no password supplied|SSL was required|certificate (verify failed|file)|certificate for"
    r"|definition of service|authentication method|channel binding|GSSAPI encryption required"
    r"|for connection option|invalid port number"
)


def _is_unreachable(error: psycopg.Error) -> bool:
    """Tell a server that is away, or has no room, from one that said no: libpq gives both no SQLSTATE."""
    if error.sqlstate or not isinstance(error, psycopg.OperationalError):
        return False
    text = str(error)
    return bool(_PASSING.search(text)) or not _REFUSED.search(text)


def conninfo(dsn: str = "", /, **parts: str | int) -> str:
    """Render a connection string from its parts, whatever signs they hold, instead of those of `dsn`."""
    return psycopg.conninfo.make_conninfo(dsn, **parts)


def describe(dsn: str) -> str:
    """Name a server for a message: service, or host, port and database; never user secrets."""
    try:
        parts = psycopg.conninfo.conninfo_to_dict(dsn)
    except (psycopg.Error, UnicodeError):
        return UNREADABLE
    if "service" in parts:
        return f"postgresql service {parts['service']}"
    host = parts.get("host") or "local socket"
    return f"postgresql {host}:{parts.get('port') or 5432}/{parts.get('dbname') or parts.get('user') or ''}"


def is_readable(dsn: str) -> bool:
    """Tell whether libpq can read a connection string."""
    return describe(dsn) != UNREADABLE


def has_password(dsn: str) -> bool:
    """Tell whether a secret stands in a connection string; one that libpq cannot read has none to use."""
    try:
        options = psycopg.pq.Conninfo.parse(dsn.encode())
    except (psycopg.Error, UnicodeError):
        return False
    return any(option.val and option.dispchar.startswith(b"*") for option in options)


def _hint(sqlstate: str, text: str) -> str:
    if sqlstate:
        return _CURES.get(sqlstate) or _CURES.get(sqlstate[:2], "")
    return next(cure for pattern, cure in _REFUSALS if re.search(pattern, text))


_PASSWORD = "put the password into the password file (PGPASSFILE) or the service file, not the fleet file"  # noqa: S105
_DATABASE = "check the database in the fleet file; for the audit store run 'pgvigil audit init'"
_ROOM = "end idle sessions, or raise max_connections or the limit of the role or database"

_CURES = {
    "28": "let this role in: pg_hba.conf, role name, password file",
    "3D000": _DATABASE,
    "3F000": _DATABASE,
    "42501": "grant what infra/roles.sql grants to this role",
    "42P01": _DATABASE,
    "53300": _ROOM,
    "55P03": "another session holds the lock; see pg_locks",
}
# The first that fits; the last fits always.
_REFUSALS = (
    (r"no password supplied|password authentication failed|password .*required", _PASSWORD),
    (r"definition of service", "add the service to the service file (PGSERVICEFILE), or correct the dsn"),
    (
        r"SSL was required|certificate (verify|file|for)",
        "make sslmode and sslrootcert of the dsn fit what the server offers (ssl = on)",
    ),
    (r"database \".*\" does not exist", _DATABASE),
    (r"permission denied for database", "GRANT CONNECT ON DATABASE to this role, as infra/roles.sql does"),
    (r"too many|connection slots", _ROOM),
    (r"pg_hba.conf|role \".*\"|authentication|channel binding", _CURES["28"]),
    (r"the database system is", "wait until it accepts sessions; its log says what it is doing"),
    (
        r"connection info|connection option|percent-encoded|URI|invalid port number",
        "correct the dsn in the fleet file: postgresql://role@host:port/database, without a password",
    ),
    (r"", "check that the server is up and that host and port in the fleet file are right"),
)
