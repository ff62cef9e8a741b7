"""What earlier drills of a cluster restored, how that ended and how long it took, from the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import ConfigDict, ValidationError

from pgvigil import postgres
from pgvigil.drill.choose import Tried
from pgvigil.drill.facts import Phase, SetKind, TargetKind
from pgvigil.reports import Frozen, Verdict
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LIMIT = 240  # twenty years of monthly drills


class Memory(Frozen):
    """What a drill leaves in the audit log for later ones; sizes are bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # the log outlives the version that wrote it

    repo: int
    label: str
    set_kind: SetKind
    target_kind: TargetKind
    target_value: str | None = None
    proven: bool = False
    phases: tuple[Phase, ...] = ()
    backup_bytes: int = 0
    wal_bytes: int = 0


class Drill(Frozen):
    """One earlier drill that got as far as choosing what to restore."""

    run_id: UUID
    at: datetime
    verdict: Verdict
    memory: Memory


class History(Frozen):
    """Earlier drills, oldest first, and how many runs left nothing that can be read."""

    drills: tuple[Drill, ...] = ()
    untold: int = 0

    @property
    def tried(self) -> tuple[Tried, ...]:
        """What took its turn; a drill to a point of the past was no turn, for it could not prove equality."""
        return tuple(
            Tried(
                repo=drill.memory.repo,
                set_kind=drill.memory.set_kind,
                target_kind=drill.memory.target_kind,
                at=drill.at,
                proven=drill.memory.proven,
            )
            for drill in self.drills
            if drill.memory.target_value is None
        )


def read_history(dsn: str, application_name: str, cluster: str, limit: int = LIMIT) -> History:
    """Read the newest drills of a cluster from the audit store; raises DatabaseFailed when it is away."""
    with postgres.connect(dsn, application_name, connect_timeout=postgres.IMPATIENT) as session:
        rows = session.execute(query("drill_history", "drills"), {"cluster": cluster, "limit": limit})
        return read_rows(rows.fetchall())


def read_rows(rows: Iterable[Mapping[str, Any]]) -> History:
    """Make a history of rows, newest first; what a run that ended early left is counted, no more."""
    read = [_read(row) for row in rows]
    drills = [drill for drill in reversed(read) if drill]
    return History(drills=tuple(drills), untold=len(read) - len(drills))


def _read(row: Mapping[str, Any]) -> Drill | None:
    try:
        return Drill(
            run_id=row["run_id"],
            at=row["at"],
            verdict=row["verdict"],
            memory=Memory.model_validate(row["remembered"]),
        )
    except ValidationError:
        return None  # nobody can mend the log: one odd entry must not forbid all later drills
