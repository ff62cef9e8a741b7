"""Whether evidence can be kept: the audit store, the spool for when it is away, the report store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from pgvigil import postgres
from pgvigil.doctor.lines import Look
from pgvigil.errors import PgvigilError, PreconditionFailed
from pgvigil.reportstore import open_report_store
from pgvigil.spool import Spool
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.fleet import Fleet

SESSION = "pgvigil doctor"


def audit_reachable(fleet: Fleet) -> str:
    """Open a session with the audit store."""
    _read_store(fleet)
    return f"{postgres.describe(fleet.audit.dsn)} takes our session"


def audit_installed(fleet: Fleet) -> str:
    """Find the schema of the audit log."""
    if not _read_store(fleet)["is_installed"]:
        raise PreconditionFailed(
            f"{postgres.describe(fleet.audit.dsn)} has no audit log, expected schema pgvigil",
            hint="run 'pgvigil audit init'",
        )
    return "the audit log is installed"


def audit_writable(fleet: Fleet) -> str:
    """Ask the store whether our role may append and whether anything may be written."""
    store = _read_store(fleet)
    if store["is_standby"] or store["is_read_only"]:
        raise PreconditionFailed(
            f"{postgres.describe(fleet.audit.dsn)} is {'a standby' if store['is_standby'] else 'read-only'}, "
            "expected a store that takes writes",
            hint="name the primary in audit.dsn (target_session_attrs=read-write), or end its read-only mode",
        )
    if not store["may_write"]:
        raise PreconditionFailed(
            f"role '{store['role']}' may not append to the audit log",
            hint=f'GRANT pgvigil_writer TO "{store["role"]}"',
        )
    return f"role '{store['role']}' may append to the audit log"


def _read_store(fleet: Fleet) -> dict[str, Any]:
    dsn = fleet.audit.dsn
    with postgres.connect(dsn, SESSION, connect_timeout=postgres.IMPATIENT) as connection:
        return connection.execute(query("doctor", "audit_store")).fetchall()[0]


def spool_writable(fleet: Fleet) -> str:
    """Ask the file system whether spool and run directories could be written; creates nothing."""
    spool = fleet.audit.spool
    for directory in (spool, spool.parent / "runs"):
        hint = f"make '{directory}' a directory that this user can write, or name another audit.spool"
        _require_writable(directory, hint)
    return f"'{spool}' can be written; {len(Spool(spool).pending())} events wait there"


def _require_writable(directory: Path, hint: str) -> None:
    place = _nearest(directory)
    if not place.is_dir():
        raise PreconditionFailed(f"'{place}' is a file, expected a directory", hint=hint)
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise PreconditionFailed(f"'{place}' cannot be written by this user", hint=hint)
    if os.statvfs(place).f_bavail == 0:
        raise PreconditionFailed(f"the file system of '{place}' is full", hint="free space there")


def _nearest(path: Path) -> Path:
    """Return the path itself, or the nearest above it that exists."""
    candidates = (path.absolute(), *path.absolute().parents)
    return next(place for place in candidates if os.path.exists(place))  # noqa: PTH110 - Path.exists raises where we may not look


def reports_writable(fleet: Fleet) -> str:
    """Write, read and delete one object of a unique name where reports are kept.

    A directory that never held a report is only looked at, for writing there leaves directories behind.
    """
    uri = fleet.audit.reports
    store = open_report_store(uri, fleet.s3)
    directory = Path(unquote(uri.removeprefix("file://"))) if uri.startswith("file:///") else None
    if directory and not (directory / ".incoming").is_dir():
        _require_place(directory)
        return f"{uri} can be created or written"
    store.probe()
    return f"{uri} takes, returns and drops a report"


def _require_place(directory: Path) -> None:
    hint = f"create '{directory}' for this user to write, or correct audit.reports"
    if not directory.parent.is_dir():
        raise PreconditionFailed(f"'{directory.parent}' does not exist, expected a directory", hint=hint)
    _require_writable(directory, hint)


AUDIT = (
    Look("audit.reachable", audit_reachable, refutes=PgvigilError),
    Look("audit.installed", audit_installed, needs=("audit.reachable",)),
    Look("audit.writable", audit_writable, needs=("audit.installed",)),
    Look("audit.spool", spool_writable),
)
REPORTS = (Look("reports.writable", reports_writable, refutes=PgvigilError),)
