"""What the audit log knows of a wave: which one to go on with, and whose runs of it have ended."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from pgvigil.reports import Frozen, Verdict
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.audit import AuditLog

FLOW = "watch_fleet"
STEP = "wave"


class Identity(Frozen):
    """Which wave: of a pipeline, due at an instant, and begun by a run of the audit log."""

    id: str
    due: datetime
    begun_by: UUID


class Begun(Identity):
    """A wave on record; a finished one has left nobody."""

    finished: bool


class MemberRun(Frozen):
    """The newest run of a subject within a wave; without a verdict it has not come to its end."""

    subject: str
    run_id: UUID
    verdict: Verdict | None
    headline: str


def name(pipeline: str, due: datetime) -> str:
    """Name a wave; the same pipeline due at the same instant is the same wave."""
    return f"{pipeline}@{due:%Y-%m-%dT%H:%M:%SZ}"


def find(log: AuditLog, pipeline: str, wave: str | None = None) -> Begun | None:
    """Find the newest wave of a pipeline, or the one of this name; raises AuditUnreachable, EvidenceError."""
    wanted = {"flow": FLOW, "step": STEP, "pipeline": pipeline, "wave": wave}
    rows = log.read(query("waves", "begun"), wanted)
    return Begun(**rows[0]) if rows else None


def member_runs(log: AuditLog, flow: str, wave: Identity) -> dict[str, MemberRun]:
    """Read the newest run of each subject within a wave; raises AuditUnreachable, EvidenceError."""
    wanted = {"flow": flow, "wave": wave.id, "begun_by": wave.begun_by}
    rows = log.read(query("waves", "member_runs"), wanted)
    return {row["subject"]: MemberRun(**row) for row in rows}
