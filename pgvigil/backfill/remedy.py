"""What is done about a batch that failed: decided by the class of the error, in one place."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from pgvigil.backfill.session import READ_ONLY
from pgvigil.errors import DatabaseFailed, is_transient

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

Result = TypeVar("Result")


class Remedy(StrEnum):
    """The next step after a failure."""

    SKIP_LOCKED = "leave the rows that others hold for later"
    AGAIN = "try again"
    HALVE = "halve the batch, down to the row that fails"
    STOP = "stop: no other row would fare better"


_LOCKED = "55P03"
_NAP = 0.5
# Syntax, names, rights, login, catalog and schema: every batch would fail so.
_HOPELESS = frozenset({"42", "28", "3D", "3F", "0A", "26", "34"})


def remedy(error: DatabaseFailed) -> Remedy:
    """Decide what may help."""
    state = error.sqlstate
    if state == _LOCKED:
        return Remedy.SKIP_LOCKED
    if is_transient(error) or state == READ_ONLY:
        return Remedy.AGAIN
    if not state or state[:2] in _HOPELESS:
        return Remedy.STOP
    return Remedy.HALVE


def persist(work: Callable[[], Result], outage: timedelta) -> Result:
    """Do what may be done twice, again and again while the server is away; raises what no waiting cures."""
    deadline = time.monotonic() + outage.total_seconds()
    while True:
        try:
            return work()
        except DatabaseFailed as error:
            if remedy(error) is not Remedy.AGAIN or time.monotonic() > deadline:
                raise
        time.sleep(_NAP)
