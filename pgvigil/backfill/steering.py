"""Steering: what people may do to a backfill while it runs, and what they see of it."""

from __future__ import annotations

import getpass
import os
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pgvigil import postgres
from pgvigil.backfill import catalog, ledger
from pgvigil.backfill.facts import Progress, Quarantined
from pgvigil.backfill.ledger import Overrides, State, Wanted
from pgvigil.backfill.session import Session
from pgvigil.backfill.undo import undo
from pgvigil.errors import Busy, ConfigError
from pgvigil.reports import Check, Finding, Frozen, Proof, Report, Severity, Verdict
from pgvigil.runs import conduct
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pgvigil.backfill.undo import Undone
    from pgvigil.fleet import Fleet
    from pgvigil.policies.backfills import BackfillPolicy
    from pgvigil.runs import Run

Action = Literal["pause", "resume", "cancel", "set", "restart", "undo"]
_WANTED: dict[str, Wanted] = {"pause": "pause", "resume": "run", "cancel": "cancel"}
_MOST = 100


class Shown(Frozen):
    """A backfill as `pgvigil backfill show` has it."""

    backfill: str
    database: str
    state: str
    runner: str | None = None
    wanted: str = "run"
    wanted_by: str | None = None
    overrides: Overrides = Overrides()
    progress: Progress | None = None
    quarantined: tuple[Quarantined, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None


class SteeringReport(Report):
    """What `steer_backfill` returns."""

    backfill: str = ""
    action: str = ""
    shown: Shown | None = None


def show(fleet: Fleet, subject: str, name: str) -> Shown:
    """Read how a backfill stands; raises ConfigError for one that the fleet file does not name."""
    dsn, policy = _find(fleet, subject, name)
    with Session(dsn, "pgvigil backfill show") as session:
        state = _state(session, name)
        if state is None:
            return Shown(backfill=name, database=subject, state="never run")
        with session.transaction() as connection:
            target = catalog.read_target(connection, policy)
            rows = connection.execute(query("backfill", "quarantined"), {"name": name}).fetchall()
    names = {leaf.oid: leaf.label for leaf in target.leaves}
    return Shown(
        backfill=name,
        database=subject,
        state=_word(state),
        runner=state.runner if state.is_held else None,
        wanted=state.wanted,
        wanted_by=state.wanted_by,
        overrides=state.overrides,
        progress=Progress.model_validate(state.progress) if state.progress else None,
        quarantined=tuple(_quarantined(row, names) for row in rows[:_MOST]),
        started_at=state.started_at,
        ended_at=state.ended_at,
    )


def _find(fleet: Fleet, subject: str, name: str) -> tuple[str, BackfillPolicy]:
    cluster, database, settings = fleet.database(subject)
    return postgres.in_database(cluster.dsn, database), settings.backfill(name)


def _state(session: Session, name: str) -> State | None:
    with session.transaction() as connection:
        ledger.require_installed(connection)
    return ledger.read(session, name)


def _word(state: State) -> str:
    if state.state == "done":
        return "proven"
    if not state.is_held:
        return "cancelled" if state.wanted == "cancel" else "stopped"
    return "paused" if state.wanted == "pause" else "running"


def _quarantined(row: dict[str, Any], names: dict[int, str]) -> Quarantined:
    table = names.get(row["relation"], str(row["relation"]))
    return Quarantined(
        table=table, key=tuple(row["key"]), sqlstate=row["sqlstate"], message=row["message"], at=row["at"]
    )


def steer(run: Run, name: str, action: Action, overrides: Overrides) -> None:
    """Do what people want between intent and outcome; a runner heeds it within one batch.

    Raises ConfigError for a backfill that was never run, Busy where a run would have to end first.
    """
    dsn, policy = _find(run.fleet, run.identity.subject, name)
    detail = {"backfill": name, "action": action, "overrides": overrides.model_dump(exclude_unset=True)}
    run.facts |= {"backfill": name, "action": action}
    with Session(dsn, run.name) as session:
        state = _state(session, name)
        if state is None:
            raise ConfigError(
                f"backfill '{name}' was never run", hint=f"pgvigil run run-backfill … -p backfill={name}"
            )
        with run.step(f"{action} backfill", detail) as noted:
            if action == "undo":
                undone = undo(session, state, policy)
                noted.update(undone.model_dump())
                run.findings += _kept(run, undone)
                run.proofs.append(Proof(name=f"backfill {name}", verdict=Verdict.INCONCLUSIVE))
            else:
                noted.update(_act(session, state, action, overrides))
    run.facts["shown"] = show(run.fleet, run.identity.subject, name)
    run.checks.append(
        Check(id="steered", verdict=Verdict.VERIFIED, expected=action, actual=run.facts["shown"].state)
    )


def conduct_steering(
    subject: str, name: str, action: Action, limits: Mapping[str, float | None]
) -> SteeringReport:
    """Steer as a run of its own, on record in the audit log; needs no Prefect."""
    given = {key: value for key, value in limits.items() if value is not None}
    steps = partial(steer, name=name, action=action, overrides=Overrides.model_validate(given))
    return conduct(SteeringReport, "steer_backfill", subject, steps)


def _kept(run: Run, undone: Undone) -> Iterator[Finding]:
    """Tell of rows that did not go back; those that did are in the audit log."""
    others = undone.images - undone.restored
    if others:
        yield Finding(
            code="changed-since",
            severity=Severity.WARNING,
            message=f"{others} of {undone.images} images were not restored, as their rows were changed, "
            f"deleted or moved since: {'; '.join(undone.kept)}",
            hint="look at these rows; they have what others gave them",
            subject=run.identity.subject,
        )
    if undone.left:
        yield Finding(
            code="images-left",
            severity=Severity.WARNING,
            message=f"{undone.left} images are of tables that are no longer part of the backfill's table",
            hint="attach them again and undo again, or let the images expire",
            subject=run.identity.subject,
        )


def _act(session: Session, state: State, action: Action, overrides: Overrides) -> dict[str, Any]:
    if action == "restart":
        return _restart(session, state)
    if action == "set" and not overrides.model_dump(exclude_none=True):
        raise ConfigError("nothing to set", hint="name at least one limit")
    values = {
        "name": state.name,
        "wanted": _WANTED.get(action),
        "by": actor(),
        "overrides": overrides.model_dump_json(exclude_unset=True) if action == "set" else None,
    }
    with session.transaction() as connection:
        connection.execute(query("backfill", "steer"), values)
    return {"wanted": values["wanted"] or state.wanted}


def actor() -> str:
    """Name who steers."""
    return os.environ.get("SUDO_USER") or getpass.getuser()


def _require_idle(state: State) -> None:
    if state.is_held:
        raise Busy(
            f"backfill '{state.name}' is run by '{state.runner}'",
            hint="'pgvigil backfill cancel' ends that run; then try again",
        )


def _restart(session: Session, state: State) -> dict[str, Any]:
    """Give the cursor up; rows that are done stay done, as they no longer meet `where`."""
    _require_idle(state)
    with session.transaction() as connection:
        connection.execute(query("backfill", "forget"), {"name": state.name})
    return {"forgotten": True}
