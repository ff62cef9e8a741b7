"""A way into the target that survives the loss of its connection and leaves nothing behind in a pooler."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from pgvigil import postgres
from pgvigil.errors import DatabaseFailed, PgvigilError
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from pgvigil.postgres import Connection

READ_ONLY = "25006"  # a former primary after a failover

# How values look as text; keys, images and cursors are kept so.
_WRITING = {
    "timezone": "UTC",
    "datestyle": "ISO, YMD",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "row_security": "off",  # a policy that hides rows becomes an error instead of a walk that misses them
}


class Bounds(Frozen):
    """How long one transaction's statements may run and wait, and where its expressions look for names."""

    statement: timedelta = timedelta(seconds=30)
    lock: timedelta = timedelta(seconds=2)
    search_path: str = "pg_catalog"
    is_durable: bool = True
    by_index: bool = False

    def settings(self) -> dict[str, str]:
        """Render as settings of the server."""
        return {
            "statement_timeout": postgres.milliseconds(self.statement),
            "lock_timeout": postgres.milliseconds(self.lock),
            # A client that froze in mid-batch gives its locks up as soon as a statement would.
            "idle_in_transaction_session_timeout": postgres.milliseconds(self.statement),
            "client_connection_check_interval": "1000",  # so that a batch ends whose runner has died
            "search_path": self.search_path,
            # Rows and cursor are lost together or not at all, so no batch needs to wait for the disk.
            **({} if self.is_durable else {"synchronous_commit": "off"}),
            # Of two keys with the same first column the planner thinks that half of the table lies between.
            **({"enable_seqscan": "off"} if self.by_index else {}),
            **_WRITING,
        }


STATE = Bounds()


class Session:
    """One connection, opened at its first use and again after it was lost; a context manager."""

    def __init__(self, dsn: str, name: str) -> None:
        self.dsn = dsn
        self.name = name
        self._stack = ExitStack()
        self._connection: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        self._connection = None
        with suppress(PgvigilError):
            self._stack.close()

    @contextmanager
    def transaction(self, bounds: Bounds = STATE) -> Iterator[Connection]:
        """Do the block in one transaction within bounds; raises DatabaseFailed."""
        connection = self.connect()
        try:
            with postgres.translated(self.dsn), postgres.transaction(connection, bounds.settings()):
                yield connection
        except DatabaseFailed as error:
            if error.sqlstate == READ_ONLY:  # another host of the DSN may be the primary now
                self.close()
            raise
        finally:
            if connection.closed or connection.broken:
                self.close()

    def execute(self, statement: Any) -> None:
        """Run one statement that may stand in no transaction; raises DatabaseFailed."""
        connection = self.connect()
        try:
            with postgres.translated(self.dsn):
                connection.execute(statement, {})
        finally:
            if connection.closed or connection.broken:
                self.close()

    def cancel(self) -> None:
        """End the statement that another thread runs here, if there is one."""
        if self._connection is not None:
            self._connection.cancel()

    def connect(self) -> Connection:
        """Return the open connection; raises DatabaseFailed."""
        if self._connection is None:
            opened = postgres.connect_pooled(self.dsn, self.name)
            self._connection = self._stack.enter_context(opened)
        return self._connection
