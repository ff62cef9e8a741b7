"""Witnesses of where recovery ended: a commit before the target, a commit after it, and the target between.

A commit of ours is looked for by its transaction id, so it leaves no row in anybody's table.
"""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.drill.facts import Heartbeat, Mark, Target
from pgvigil.sql import query

if TYPE_CHECKING:
    from datetime import datetime

    from pgvigil.drill.facts import TargetKind
    from pgvigil.postgres import Connection

_APART = timedelta(milliseconds=2)  # a commit's time in WAL is in microseconds, and taken before its record
_POLL = 0.001


def beat(session: Connection, mark: str) -> Heartbeat:
    """Commit a transaction of our own; its LSN is that of WAL after it."""
    row = _ask(session, "beat", mark=mark)
    here = _ask(session, "here")
    return Heartbeat(mark=mark, xid=int(row["xid"]), lsn=here["lsn"], committed_at=here["at"])


def fix_target(
    session: Connection, kind: TargetKind, last: Mark | None, before: Heartbeat, name: str
) -> Target:
    """Fix the point at which recovery is to end, and commit the witness after it.

    Where the last mark can be such a point it is, and `before` was committed before it; else the target
    gets a witness of its own. Everything that was committed by then is in WAL before the target.
    """
    target = _at_mark(kind, last, before) or _after(session, kind, name)
    if target.kind == "default":
        return target
    return target.model_copy(update={"absent": beat(session, f"{name} after")})


def _at_mark(kind: TargetKind, mark: Mark | None, before: Heartbeat) -> Target | None:
    if mark is None or mark.method == "standby":  # its replay may lag behind the witness
        return None
    if kind == "name" and mark.name:
        return Target(kind=kind, value=mark.name, lsn=mark.lsn, present=before)
    if kind == "lsn":
        return Target(kind=kind, value=mark.lsn, inclusive=False, lsn=mark.lsn, present=before)
    return None


def _after(session: Connection, kind: TargetKind, name: str) -> Target:
    reached = _ask(session, "here")["lsn"]
    present = beat(session, f"{name} before")
    if kind == "xid":  # replay ends with its commit, and others may write before its LSN is asked for
        xid = str(present.xid % 2**32)  # the epoch is not part of what WAL has
        return Target(kind=kind, value=xid, lsn=reached, present=present)
    if kind == "time":
        until = _await_clock(session, present.committed_at + _APART)
        _await_clock(session, until + _APART)
        value = f"{until:%Y-%m-%d %H:%M:%S.%f}+00:00"
        return Target(kind=kind, value=value, lsn=present.lsn, present=present)
    if kind == "name":
        lsn = _ask(session, "point", name=name)["lsn"]
        return Target(kind=kind, value=name, lsn=lsn, present=present)
    value = present.lsn if kind == "lsn" else ""
    return Target(kind=kind, value=value, inclusive=False, lsn=present.lsn, present=present)


def _await_clock(session: Connection, moment: datetime) -> datetime:
    """Wait until the server's clock is past a moment, and return what it says."""
    while (now := _ask(session, "here")["at"]) <= moment:
        time.sleep(_POLL)
    return now  # type: ignore[no-any-return]


def end_segment(session: Connection) -> str:
    """End the WAL segment that holds everything so far, and name it."""
    return str(_ask(session, "end_segment")["segment"])


def is_committed(session: Connection, witness: Heartbeat) -> bool:
    """Tell whether a witness is in the copy; ask before the copy has given out transaction ids itself."""
    return bool(_ask(session, "committed", xid=str(witness.xid))["committed"])


def _ask(session: Connection, block: str, **parameters: str) -> dict[str, Any]:
    with postgres.translated(session.info.dsn):
        return session.execute(query("drill", block), parameters or None).fetchone() or {}
