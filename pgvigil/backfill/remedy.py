"""What is done about a batch that failed: decided by the class of the error, in one place."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from pgvigil.errors import is_transient

if TYPE_CHECKING:
    from pgvigil.errors import DatabaseFailed


class Remedy(StrEnum):
    """The next step after a failure."""

    SKIP_LOCKED = "leave the rows that others hold for later"
    AGAIN = "try again"
    HALVE = "halve the batch, down to the row that fails"
    STOP = "stop: no other row would fare better"


_LOCKED = "55P03"
_CANCELED = "57014"  # by statement_timeout, mostly: a smaller batch may end in time
_READ_ONLY = "25006"  # a former primary after a failover
# Syntax, names, rights, login, catalog and schema: every batch would fail so.
_HOPELESS = frozenset({"42", "28", "3D", "3F", "0A", "26", "34"})


def remedy(error: DatabaseFailed) -> Remedy:
    """Decide what may help."""
    state = error.sqlstate
    if state == _LOCKED:
        return Remedy.SKIP_LOCKED
    if is_transient(error) or state == _READ_ONLY:
        return Remedy.AGAIN
    if not state or state[:2] in _HOPELESS:
        return Remedy.STOP
    return Remedy.HALVE
