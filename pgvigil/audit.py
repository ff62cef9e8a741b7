"""The audit log: who did what to what, when and with which result, in a chain that nobody edits unseen."""

from __future__ import annotations

import json
import logging
import math
import os
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal, LiteralString, Self
from uuid import UUID, uuid4, uuid5

from pydantic import BaseModel, Field

from pgvigil import liveness, postgres
from pgvigil.chain import ChainReport, Fault, Head, Link, verify
from pgvigil.errors import (
    AuditUnreachable,
    ConfigError,
    DatabaseFailed,
    EvidenceError,
    PgvigilError,
    PreconditionFailed,
    VersionUnsupported,
)
from pgvigil.redaction import MASK, is_secret, redact
from pgvigil.reports import Frozen, Verdict
from pgvigil.spool import Spool
from pgvigil.sql import query
from pgvigil.status import Claim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from pgvigil.fleet import AuditSettings
    from pgvigil.postgres import Connection

AWAY = timedelta(seconds=30)
BEAT = timedelta(seconds=30)
QUIET = timedelta(minutes=10)
STATEMENT_TIMEOUT = timedelta(seconds=30)
LOCK_TIMEOUT = timedelta(seconds=15)

_MIGRATIONS = ("chain",)

__all__ = [
    "AuditLog",
    "ChainReport",
    "Event",
    "Fault",
    "Head",
    "Kind",
    "Link",
    "LostRun",
    "OpenRun",
    "RecordedEvent",
    "RunIdentity",
    "RunRecord",
    "RunSummary",
    "Served",
    "find_runs",
    "install",
    "last_claims",
    "list_runs",
    "lost_runs",
    "reader",
    "served",
    "show_run",
    "step",
    "sweep",
    "verify",
]

_log = logging.getLogger(__name__)


# --- what is recorded ---------------------------------------------------------------------------------


class Kind(StrEnum):
    """What an event tells: the life of a run, and within it each step's intent and outcome."""

    RUN_STARTED = "run_started"
    INTENT = "intent"
    OUTCOME = "outcome"
    RUN_ENDED = "run_ended"
    RUN_LOST = "run_lost"


class Event(Frozen):
    """One fact for the log; host, process and client clock are those of whoever makes it."""

    event_id: UUID = Field(default_factory=uuid4)
    run_id: UUID
    kind: Kind
    flow: str
    subject: str
    step: str = ""
    actor: str
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    process_started: int | None = Field(default_factory=liveness.own_start)
    pid_space: str = Field(default_factory=liveness.pid_space)
    recorded_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    detail: dict[str, Any] = Field(default_factory=dict)


class RunIdentity(Frozen):
    """Which run an event belongs to, on what, and on whose behalf."""

    run_id: UUID
    flow: str
    subject: str
    actor: str

    def event(self, kind: Kind, step: str = "", detail: Mapping[str, Any] | None = None) -> Event:
        """Make an event of this run."""
        return Event(
            run_id=self.run_id,
            flow=self.flow,
            subject=self.subject,
            actor=self.actor,
            kind=kind,
            step=step,
            detail=dict(detail or {}),
        )


# --- writing ------------------------------------------------------------------------------------------


class AuditLog:
    """The way into the audit log: its own session, the spool for when the store is away, and redaction.

    Opened lazily, safe to share between threads, to be closed (a context manager). While runs that were
    started here are in progress, a thread gives a sign of life for them and drains the spool.
    """

    def __init__(
        self, settings: AuditSettings, application_name: str, redact: Callable[[str], str] = redact
    ) -> None:
        self.settings = settings
        self.application_name = application_name
        self._redact = redact
        self._spool = Spool(settings.spool)
        self._guard = threading.RLock()
        self._session = ExitStack()
        self._connection: Connection | None = None
        self._away_until = 0.0
        self._away_reason = ""
        self._runs: set[UUID] = set()
        self._closing = threading.Event()
        self._keeper: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the session and the sign of life; what is in the spool stays there."""
        self._closing.set()
        if self._keeper:
            self._keeper.join()
        with self._guard:
            self._disconnect()

    def append(self, event: Event) -> Link | None:
        """Commit an event and return its link, or None if it went to the spool because the store is away.

        Idempotent on event_id. Spooled events go first. Raises EvidenceError when the store refuses the
        event, or when neither store nor spool takes it.
        """
        with self._guard:
            try:
                self.drain()
                link = self._send(_render(event, self._redact))
            except AuditUnreachable as away:
                self._keep(event, away)
                link = None
            self._watch(event)
        return link

    def drain(self) -> int:
        """Send what waits in the spool, in order, and count it; raises AuditUnreachable, EvidenceError."""
        with self._guard:
            try:
                return self._spool.drain(self._send_spooled)
            except OSError as error:
                raise EvidenceError(
                    f"the spool '{self.settings.spool}' cannot be drained: {error}",
                    hint="make the directory and its files readable and removable for this user",
                ) from error

    def read(self, statement: LiteralString, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Read what is on record, after what waits in the spool; raises AuditUnreachable, EvidenceError."""
        with self._guard:
            self.drain()
            return self._execute(statement, parameters)

    def _send(self, document: str) -> Link:
        (row,) = self._execute(query("audit", "append"), (document,))
        return Link(seq=row["seq"], hash=row["hash"].hex())

    def _send_spooled(self, file: Path) -> None:
        """Send what the spool kept; raises EvidenceError naming the file, for all others wait behind it."""
        try:
            self._send(file.read_text(encoding="utf-8"))
        except AuditUnreachable:
            raise
        except (EvidenceError, UnicodeDecodeError) as error:
            told, cure = (error.message, error.hint) if isinstance(error, EvidenceError) else (str(error), "")
            raise EvidenceError(
                f"'{file}' cannot be sent from the spool: {told}",
                hint=cure or "it is no event that pgvigil wrote: keep it elsewhere, out of the spool",
            ) from error

    def _execute(self, statement: LiteralString, parameters: Any) -> list[dict[str, Any]]:
        """Run a statement; a session that was lost since its last use is opened again, once."""
        is_reused = self._connection is not None
        try:
            return self._try(statement, parameters)
        except AuditUnreachable:
            if not is_reused or self._connection is not None:
                raise
            return self._try(statement, parameters)

    def _try(self, statement: LiteralString, parameters: Any) -> list[dict[str, Any]]:
        connection = self._connect()
        try:
            with postgres.translated(self.settings.dsn):
                return connection.execute(statement, parameters).fetchall()
        except DatabaseFailed as error:
            # No answer leaves the session in an unknown state, even if the driver still calls it open.
            if connection.closed or error.context.get("unreachable"):
                self._disconnect()
                raise _explain(error, is_away=True) from error
            raise self._remember(error) from error

    def _connect(self) -> Connection:
        if time.monotonic() < self._away_until:
            raise AuditUnreachable(self._away_reason, hint="it is tried again within 30 seconds")
        if self._connection is None:
            try:
                self._connection = self._session.enter_context(self._open())
            except DatabaseFailed as error:
                raise self._remember(error) from error
        return self._connection

    @contextmanager
    def _open(self) -> Iterator[Connection]:
        with postgres.connect(
            self.settings.dsn,
            self.application_name,
            statement_timeout=STATEMENT_TIMEOUT,
            lock_timeout=LOCK_TIMEOUT,
            connect_timeout=postgres.IMPATIENT,
        ) as connection:
            connection.execute(query("audit", "isolate"))
            yield connection

    def _remember(self, error: DatabaseFailed) -> EvidenceError:
        """Explain a failure, and spare the next events the wait if the store is away."""
        explained = _explain(error, is_away=_is_away(error))
        if isinstance(explained, AuditUnreachable):
            self._away_until = time.monotonic() + AWAY.total_seconds()
            self._away_reason = explained.message
        return explained

    def _disconnect(self) -> None:
        self._connection = None
        with suppress(PgvigilError):
            self._session.close()

    def _keep(self, event: Event, away: AuditUnreachable) -> None:
        document = _render(event, self._redact, spooled=True)
        try:
            self._spool.write(str(event.event_id), document)
        except OSError as error:
            raise EvidenceError(
                f"neither the audit store ({away.message}) nor the spool '{self.settings.spool}' ({error}) "
                f"takes '{_name(event)}': {_consequence(event)}",
                hint="bring the audit store back, or make the spool writable for this user",
            ) from away
        _log.warning("audit store away, '%s' is kept in %s", _name(event), self.settings.spool)

    def _watch(self, event: Event) -> None:
        """Take a run into, or out of, the care of the thread that gives signs of life."""
        if event.kind is Kind.RUN_ENDED:
            self._runs.discard(event.run_id)
        elif event.kind is Kind.RUN_STARTED:
            self._runs.add(event.run_id)
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep_alive, name="pgvigil-audit", daemon=True)
                self._keeper.start()

    def _keep_alive(self) -> None:
        while not self._closing.wait(BEAT.total_seconds()):
            with suppress(EvidenceError):
                self.beat()

    def beat(self) -> None:
        """Give a sign of life for the runs in progress and drain the spool; raises as `drain` does."""
        with self._guard:
            if self._runs:
                self.drain()
                self._execute(query("audit", "seen"), (list(self._runs),))


def _name(event: Event) -> str:
    return f"{event.kind} {event.step}".strip()


def _consequence(event: Event) -> str:
    if event.kind in {Kind.RUN_STARTED, Kind.INTENT}:
        return "nothing was changed"
    return "what was done is not on record"


def _is_away(error: DatabaseFailed) -> bool:
    """Tell a store that will take the event later (away, full, hung, a standby) from one that says no."""
    return error.transient or error.sqlstate in {"57014", "25006"}


_CURES = {
    "42501": "GRANT pgvigil_writer to the role of audit.dsn",
    "42883": "run 'pgvigil audit init'",
    "42P01": "run 'pgvigil audit init'",
    "3F000": "run 'pgvigil audit init'",
}


def _explain(error: DatabaseFailed, *, is_away: bool) -> EvidenceError:
    if is_away:
        return AuditUnreachable(f"audit store away: {error.message}", hint=error.hint, **error.context)
    return EvidenceError(
        f"the audit store refuses: {error.message}",
        hint=_CURES.get(error.sqlstate) or error.hint,
        **error.context,
    )


def _render(event: Event, redact: Callable[[str], str], *, spooled: bool = False) -> str:
    document = {**_plain(event, redact), "spooled": True} if spooled else _plain(event, redact)
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _plain(value: Any, redact: Callable[[str], str]) -> Any:
    """Turn a value into JSON that PostgreSQL's jsonb takes, without secrets."""
    if isinstance(value, BaseModel):
        return _plain(dict(value), redact)
    if isinstance(value, dict):
        return {
            _storable(str(key)): MASK if is_secret(str(key)) else _plain(item, redact)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, redact) for item in value]
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return redact(_storable(value.isoformat() if isinstance(value, datetime) else str(value)))


def _storable(text: str) -> str:
    """Replace what jsonb cannot hold: NUL, and the halves of characters that file names may carry."""
    return text.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def step(
    log: AuditLog, run: RunIdentity, name: str, detail: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Commit the intent before the body and its outcome after it, whatever becomes of the body.

    Yields a dict for facts that go with the outcome. The body does not run if the intent cannot be kept.
    An outcome that cannot be kept is an EvidenceError as well, chained to the body's own error.
    """
    intent = run.event(Kind.INTENT, name, detail)
    log.append(intent)
    facts: dict[str, Any] = {}
    result: dict[str, Any] = {"intent": str(intent.event_id), "facts": facts}
    try:
        yield facts
    except BaseException as error:
        try:
            log.append(run.event(Kind.OUTCOME, name, result | _failure(error)))
        except EvidenceError as unrecorded:
            raise unrecorded from error
        raise
    log.append(run.event(Kind.OUTCOME, name, result | {"result": "ok"}))


def _failure(error: BaseException) -> dict[str, str]:
    return {
        "result": "failed" if isinstance(error, Exception) else "cancelled",
        "code": error.code if isinstance(error, PgvigilError) else type(error).__name__,
        "message": str(error),
    }


# --- runs that died -----------------------------------------------------------------------------------


class LostRun(Frozen):
    """A run without an end, the process that started it, and the last step that has no outcome."""

    run_id: UUID
    flow: str
    subject: str
    host: str
    pid: int
    open_step: str


class OpenRun(LostRun):
    """As the log has it while nobody gave it up: what tells whether it is still at work."""

    seq: int
    process_started: int | None
    pid_space: str
    last_seen: datetime
    is_silent: bool


def sweep(log: AuditLog, quiet: timedelta = QUIET) -> tuple[OpenRun, ...]:
    """Close the runs whose process is gone with `run_lost` and return them; a live run is never closed.

    In this boot and pid namespace the process itself is looked at. Elsewhere a run is gone after `quiet`
    without event or sign of life while the store was up; should it speak again, its own end counts.
    Idempotent. Raises AuditUnreachable, EvidenceError.
    """
    here = liveness.pid_space()
    gone = [run for run in _open_runs(log, quiet) if _is_gone(run, here)]
    # Read again: a process that was alive at the first reading may have recorded its end before it went.
    still_open = {run.seq for run in _open_runs(log, quiet)} if gone else set()
    return tuple(_give_up(log, run) for run in gone if run.seq in still_open)


def lost_runs(log: AuditLog, flow: str, subject: str) -> tuple[LostRun, ...]:
    """Return the runs of a flow on a subject that were given up since the last one that ended had begun.

    It does not matter who gave them up. Raises AuditUnreachable, EvidenceError.
    """
    rows = log.read(query("audit", "lost_runs"), {"flow": flow, "subject": subject})
    return tuple(LostRun(**row) for row in rows)


def _open_runs(log: AuditLog, quiet: timedelta) -> list[OpenRun]:
    return [OpenRun(**row) for row in log.read(query("audit", "open_runs"), {"quiet": quiet})]


def _is_gone(run: OpenRun, here: str) -> bool:
    if here and run.pid_space == here:
        return liveness.process_is_gone(run.pid, run.process_started)
    return run.is_silent


def _give_up(log: AuditLog, run: OpenRun) -> OpenRun:
    where = f"process {run.pid} on {run.host}"
    event = Event(
        event_id=uuid5(run.run_id, f"lost {run.seq}"),  # two sweepers write one event
        run_id=run.run_id,
        kind=Kind.RUN_LOST,
        flow=run.flow,
        subject=run.subject,
        step=run.open_step,
        actor="pgvigil sweep",
        detail={
            "host": run.host,
            "pid": run.pid,
            "open_step": run.open_step,
            "last_seen": run.last_seen.isoformat(),
            "headline": f"{where} is gone, last seen {run.last_seen:%Y-%m-%d %H:%M:%S} UTC, "
            + (f"its step '{run.open_step}' has no outcome" if run.open_step else "between two steps"),
        },
    )
    log.append(event)
    return run


# --- reading ------------------------------------------------------------------------------------------


class RunSummary(Frozen):
    """One run in one line; an open run is in progress, or died and was not yet swept."""

    run_id: UUID
    flow: str
    subject: str
    actor: str
    host: str
    pid: int
    started_at: datetime
    ended_at: datetime | None
    state: Literal["open", "ended", "lost"]
    verdict: Verdict | None
    headline: str
    dry_run: bool


class RecordedEvent(Event):
    """An event as it stands in the log: with its place, server time, database role and hash."""

    seq: int
    at: datetime
    db_user: str
    spooled: bool
    hash: str


class RunRecord(Frozen):
    """Everything on record about one run."""

    run: RunSummary
    events: tuple[RecordedEvent, ...]


@contextmanager
def reader(dsn: str, application_name: str) -> Iterator[Connection]:
    """Open a session that reads the log; raises AuditUnreachable or EvidenceError, with the store's cures."""
    try:
        with postgres.connect(dsn, application_name) as connection:
            yield connection
    except DatabaseFailed as error:
        raise _explain(error, is_away=_is_away(error)) from error


def list_runs(connection: Connection, subject: str | None = None, limit: int = 50) -> tuple[RunSummary, ...]:
    """List the newest runs, of one subject or of all."""
    return _runs(connection, subject=subject, limit=limit)


def find_runs(connection: Connection, run_ids: Sequence[UUID]) -> tuple[RunSummary, ...]:
    """Return those of these runs that are on record."""
    return _runs(connection, run_ids=list(run_ids))


def _runs(connection: Connection, **wanted: Any) -> tuple[RunSummary, ...]:
    everything = {"subject": None, "run_ids": None, "limit": None}
    rows = connection.execute(query("audit", "runs"), everything | wanted)
    return tuple(RunSummary(**row) for row in rows)


def show_run(connection: Connection, run_id: UUID) -> RunRecord:
    """Return a run with all its events in order; ConfigError if there is none of this id."""
    found = find_runs(connection, [run_id])
    if not found:
        raise ConfigError(f"no run {run_id} in the audit log", hint="'pgvigil audit list' shows the runs")
    events = connection.execute(query("audit", "run_events"), (run_id,))
    return RunRecord(run=found[0], events=tuple(RecordedEvent(**row) for row in events))


def last_claims(connection: Connection) -> tuple[Claim, ...]:
    """Read the newest claim per subject, flow, proof and verdict for `status.assess`, without dry runs."""
    return tuple(Claim(**row) for row in connection.execute(query("audit", "last_claims")))


class Served(Frozen):
    """A run that a schedule started, and the slot that it was for."""

    run_id: UUID
    started_at: datetime
    slot: datetime


def served(  # noqa: PLR0913 - what a slot is of
    connection: Connection,
    flow: str,
    subject: str,
    slot: datetime,
    parameters: Mapping[str, Any],
    but: UUID,
) -> Served | None:
    """Return the newest run of a schedule for this slot or a later one, with the same parameters.

    `but` is the Prefect run that asks. A run that was lost has served nobody.
    """
    wanted = {
        "flow": flow,
        "subject": subject,
        "slot": slot,
        "parameters": json.dumps(_plain(dict(parameters), redact)),
        "prefect_flow_run": str(but),
    }
    row = connection.execute(query("audit", "served"), wanted).fetchone()
    return Served(**row) if row else None


# --- installation -------------------------------------------------------------------------------------


def install(dsn: str) -> int:
    """Create or migrate schema and roles as an admin, in one transaction; return the schema's version.

    Idempotent. The admin is a superuser, or may create roles and has CREATE on the database; PostgreSQL 16
    and newer want ADMIN OPTION on roles that another admin has made. Raises DatabaseFailed,
    PreconditionFailed (encoding), VersionUnsupported (made by a newer pgvigil).
    """
    try:
        return _install(dsn)
    except DatabaseFailed as error:
        if error.sqlstate != "42501":
            raise
        raise DatabaseFailed(
            error.message,
            hint="name an admin's session with --dsn: a superuser, or who may create roles and schemas "
            "there; from PostgreSQL 16 on, where another admin has made the roles, with ADMIN OPTION on them",
            **error.context,
        ) from error


def _install(dsn: str) -> int:
    with postgres.connect(dsn, "pgvigil audit init") as connection, connection.transaction():
        connection.execute(query("audit_schema", "serialize"))
        _require_utf8(connection)
        for name in ("roles", "schema", "become_owner", "version_table"):
            connection.execute(query("audit_schema", name))
        version = _migrate(connection)
        connection.execute(query("audit_schema", "grants"))
        connection.execute(query("audit_schema", "become_admin"))
    return version


def _require_utf8(connection: Connection) -> None:
    encoding = connection.execute(query("audit_schema", "encoding")).fetchall()[0]["encoding"]
    if encoding != "UTF8":
        raise PreconditionFailed(
            f"the audit database '{connection.info.dbname}' has encoding {encoding}, expected UTF8",
            hint="create it with ENCODING 'UTF8' TEMPLATE template0",
        )


def _migrate(connection: Connection) -> int:
    version: int = connection.execute(query("audit_schema", "version")).fetchall()[0]["version"]
    if version > len(_MIGRATIONS):
        raise VersionUnsupported(
            f"the audit schema has version {version}, this pgvigil knows up to {len(_MIGRATIONS)}",
            hint="upgrade pgvigil on this host",
        )
    for number, name in enumerate(_MIGRATIONS[version:], start=version + 1):
        connection.execute(query("audit_schema", name))
        connection.execute(query("audit_schema", "applied"), (number,))
    return len(_MIGRATIONS)
