"""What Prefect holds of a run, against what the audit log proves: the corrections, decided from both."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal
from uuid import UUID

from pgvigil.reports import Frozen, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from pgvigil.audit import RunSummary

SETTLE = timedelta(minutes=3)  # a run that has ended tries so long to tell Prefect itself
SILENT = timedelta(minutes=10)  # a run's first record comes within seconds
UNBORN = timedelta(hours=1)  # what a container may take to start

Name = Literal["Completed", "Refuted", "Inconclusive", "Crashed", "Cancelled"]

_NAMES: dict[Verdict, Name] = {
    Verdict.VERIFIED: "Completed",
    Verdict.REFUTED: "Refuted",
    Verdict.INCONCLUSIVE: "Inconclusive",
}
_AT_WORK = {"PENDING", "RUNNING", "CANCELLING"}


class Held(Frozen):
    """A run as Prefect has it; `began` is when its last attempt did, `is_ours` that it leaves a record."""

    id: UUID
    name: str
    type: Literal["PENDING", "RUNNING", "CANCELLING", "CRASHED", "COMPLETED"]
    began: datetime | None = None
    is_ours: bool = False


class Correction(Frozen):
    """One state that Prefect has wrong, and what the audit log makes of it."""

    flow_run: UUID
    name: str
    was: str
    becomes: Name
    because: str


def correct(
    held: Iterable[Held], records: Mapping[UUID, RunSummary], now: datetime
) -> tuple[Correction, ...]:
    """Decide the corrections; a run that may still tell Prefect itself is left to it.

    A person's answer begins a run anew under the same id: what an earlier attempt left decides nothing.
    """
    return tuple(found for run in held for found in _correct(run, _of_attempt(run, records), now))


def _of_attempt(run: Held, records: Mapping[UUID, RunSummary]) -> RunSummary | None:
    record = records.get(run.id)
    if record and record.ended_at and run.began and record.ended_at < run.began:
        return None
    return record


def _correct(run: Held, record: RunSummary | None, now: datetime) -> Iterator[Correction]:
    if record is None:
        if run.type in _AT_WORK and run.is_ours and _is_overdue(run, now):
            yield _as(run, _lost(run), "it left no record that it began, so it changed nothing")
    elif record.state == "lost":
        if run.type in _AT_WORK or run.type == "COMPLETED":
            yield _as(run, _lost(run), f"{record.headline}; {_next(record)}")
    elif record.state == "ended" and record.ended_at and record.verdict:
        becomes = _ended(run, record.verdict)
        if becomes and now - record.ended_at >= SETTLE:
            yield _as(run, becomes, f"{record.headline} (from the audit log, run {record.run_id})")


def _is_overdue(run: Held, now: datetime) -> bool:
    patience = UNBORN if run.type == "PENDING" else SILENT
    return run.began is not None and now - run.began >= patience


def _lost(run: Held) -> Name:
    return "Cancelled" if run.type == "CANCELLING" else "Crashed"


def _ended(run: Held, verdict: Verdict) -> Name | None:
    """Name what a run that ended must be, None where Prefect's word is as good."""
    if run.type == "COMPLETED":
        return None if verdict is Verdict.VERIFIED else _NAMES[verdict]
    if run.type in {"CRASHED", "CANCELLING"} and verdict is Verdict.INCONCLUSIVE:
        return "Cancelled" if run.type == "CANCELLING" else None
    return _NAMES[verdict]


def _next(record: RunSummary) -> str:
    return f"the next {record.flow} of {record.subject} finds what it left, and finishes or removes it"


def _as(run: Held, becomes: Name, because: str) -> Correction:
    return Correction(
        flow_run=run.id, name=run.name, was=run.type.capitalize(), becomes=becomes, because=because
    )
