"""NOT NULL without a scan under lock: CHECK NOT VALID, VALIDATE, SET NOT NULL, drop the CHECK."""

from __future__ import annotations

import hashlib
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgvigil.backfill import statements
from pgvigil.backfill.session import Bounds, Session
from pgvigil.errors import DatabaseFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.backfill.facts import Target

VIOLATED = "23514"
# While we wait for such a lock, everybody queues behind us: short tries, long pauses.
LOCK_WAIT = timedelta(milliseconds=300)
TRIES = 30
PAUSE = 1.0


def make_not_null(session: Session, target: Target, column: str, longest: timedelta) -> None:
    """Make a column NOT NULL; going on after a kill, and doing nothing if it is already.

    Readers and writers wait for a few short locks only. Raises DatabaseFailed: 23514 for a new NULL.
    """
    if _is_not_null(session, target, column):
        _try_lock(session, statements.drop_check(target, constraint_name(column)))
        return
    constraint = constraint_name(column)
    state = _constraint(session, target, constraint)
    if state is None:
        _try_lock(session, statements.add_check(target, column, constraint))
    if not state:
        _validate(session, target, constraint, longest)
    _try_lock(session, statements.set_not_null(target, column))
    _try_lock(session, statements.drop_check(target, constraint))


def _validate(session: Session, target: Target, constraint: str, longest: timedelta) -> None:
    """Scan the table while it is read and written; a NULL takes the CHECK away again."""
    try:
        with session.transaction(Bounds(statement=longest)) as connection:
            connection.execute(statements.validate_check(target, constraint), {})
    except DatabaseFailed as error:
        if error.sqlstate == VIOLATED:
            _try_lock(session, statements.drop_check(target, constraint))
        raise


def constraint_name(column: str) -> str:
    """Name the CHECK of a column."""
    return f"pgvigil_not_null_{hashlib.sha256(column.encode()).hexdigest()[:12]}"


def _is_not_null(session: Session, target: Target, column: str) -> bool:
    with session.transaction() as connection:
        rows = connection.execute(query("backfill", "columns"), {"relation": target.oid}).fetchall()
    return any(row["name"] == column and row["not_null"] for row in rows)


def _constraint(session: Session, target: Target, constraint: str) -> bool | None:
    """Return whether the CHECK is proven, None when there is none."""
    values = {"relation": target.oid, "constraint": constraint}
    with session.transaction() as connection:
        row = connection.execute(query("backfill", "constraint"), values).fetchone()
    return bool(row["is_validated"]) if row else None


def _try_lock(session: Session, statement: Any) -> None:
    """Run a statement that needs the whole table for a moment, in many short tries."""
    for left in reversed(range(TRIES)):
        try:
            with session.transaction(Bounds(lock=LOCK_WAIT)) as connection:
                connection.execute(statement, {})
        except DatabaseFailed as error:
            if error.sqlstate != LOCK_NOT_AVAILABLE or not left:
                raise
            time.sleep(PAUSE)
        else:
            return
