"""The end of a backfill: proven from ranges, count and quarantine; then NOT NULL, where that is wanted."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from pgvigil.backfill import enforce
from pgvigil.backfill.facts import Quarantined
from pgvigil.backfill.operation import patiently, read_quarantine
from pgvigil.backfill.remedy import persist
from pgvigil.errors import DatabaseFailed, PgvigilError, PreconditionFailed
from pgvigil.reports import Check, Proof, Verdict
from pgvigil.sql import query

if TYPE_CHECKING:
    from pgvigil.backfill.operation import Move


def conclude(move: Move) -> None:
    """Prove the end, make columns NOT NULL if that is wanted, and note checks, proof and facts."""
    run = move.work.run
    checks = patiently(move, _prove)
    if all(check.verdict is Verdict.VERIFIED for check in checks):
        checks += _enforce(move)
    run.checks += checks
    verdict = Verdict.VERIFIED if all(c.verdict is Verdict.VERIFIED for c in checks) else _worst(checks)
    run.proofs[:] = [Proof(name=f"backfill {move.work.name}", verdict=verdict)]
    patiently(move, _count_images)


def _prove(move: Move) -> list[Check]:
    """Judge ranges, count and quarantine, and note in the ledger if they prove the end."""
    move.work.run.facts["quarantined"] = tuple(_told(move, entry) for entry in read_quarantine(move))
    checks = [_covered(move), _rows_left(move), _quarantine(move)]
    if all(check.verdict is Verdict.VERIFIED for check in checks):
        with move.session.transaction() as connection:
            move.ledger.finish(connection)
    return checks


def _worst(checks: list[Check]) -> Verdict:
    """Return refuted if any is, else inconclusive."""
    refuted = any(check.verdict is Verdict.REFUTED for check in checks)
    return Verdict.REFUTED if refuted else Verdict.INCONCLUSIVE


def _covered(move: Move) -> Check:
    """Prove from the ranges themselves that the walk left no hole."""
    expected = "every range of the walk is done, without a hole"
    if move.conductor.is_cancelled:
        return Check(
            id="walk.covered",
            verdict=Verdict.INCONCLUSIVE,
            expected=expected,
            actual="cancelled: 'pgvigil backfill resume', then run it again, and it goes on where it was",
        )
    with move.session.transaction() as connection:
        state = connection.execute(query("backfill", "read"), {"name": move.work.name}).fetchone()
        number = state["pass"] if state else 0
        holes = move.ledger.holes(connection, number)
    if holes:
        return Check(
            id="walk.covered",
            verdict=Verdict.REFUTED,
            expected=expected,
            actual=f"{holes} ranges are not done; others have held rows locked for longer than "
            f"{move.work.policy.sweep_for.total_seconds():g} s",
        )
    return Check(
        id="walk.covered", verdict=Verdict.VERIFIED, expected=expected, actual=f"pass {number} is whole"
    )


def _rows_left(move: Move) -> Check:
    expected = f"no row of '{move.job.target.label}' meets: {move.work.policy.where}"
    left = move.work.run.facts.get("rows_left")
    if left is None:
        return Check(id="rows.left", verdict=Verdict.INCONCLUSIVE, expected=expected, actual="not counted")
    verdict = Verdict.VERIFIED if left == 0 else Verdict.REFUTED
    return Check(
        id="rows.left",
        verdict=verdict,
        expected=expected,
        actual=f"{left} rows",
        detail=_why_left(move, left),
    )


def _why_left(move: Move, left: int) -> str:
    aside = len(move.work.run.facts["quarantined"])
    if not left or left <= aside:
        return ""
    if move.conductor.gave_up_sweeping:
        return f"{left - aside} of them are held locked by others: see pg_locks, then run it again"
    return (
        f"{left - aside} of them were inserted or moved while {move.passes} passes ran: let the application "
        "write the column itself, by a default or trigger, then run it again"
    )


def _quarantine(move: Move) -> Check:
    found = move.work.run.facts["quarantined"]
    first = f", one with {found[0].sqlstate}: {found[0].message}" if found else ""
    return Check(
        id="rows.quarantine",
        verdict=Verdict.REFUTED if found else Verdict.VERIFIED,
        expected="no row in quarantine",
        actual=f"{len(found)} rows{first}",
        detail="correct them, then run it again with retry_failed" if found else "",
    )


def _told(move: Move, entry: dict[str, Any]) -> Quarantined:
    leaf = move.job.leaf(entry["relation"])
    return Quarantined(
        table=leaf.label if leaf else str(entry["relation"]),
        key=tuple(entry["key"]),
        sqlstate=entry["sqlstate"],
        message=entry["message"],
        at=entry["at"],
    )


def _enforce(move: Move) -> list[Check]:
    """Make the columns NOT NULL; what was proven stands even if that cannot be done now."""
    work, done, checks = move.work, list[str](), list[Check]()
    for column in work.policy.not_null:
        expected = f"column '{column}' is NOT NULL"
        try:
            with work.run.step("set not null", {"table": move.job.target.label, "column": column}):
                enforced = partial(
                    enforce.make_not_null, move.session, move.job.target, column, work.policy.count_for
                )
                persist(enforced, work.policy.outage)
        except PgvigilError as error:
            if not isinstance(error, DatabaseFailed | PreconditionFailed):
                raise
            verdict = (
                Verdict.REFUTED if error.context.get("sqlstate") == enforce.VIOLATED else Verdict.INCONCLUSIVE
            )
            checks.append(
                Check(id=f"not_null.{column}", verdict=verdict, expected=expected, actual=error.message)
            )
            continue
        done.append(column)
        checks.append(
            Check(id=f"not_null.{column}", verdict=Verdict.VERIFIED, expected=expected, actual="it is")
        )
    work.run.facts["not_null"] = tuple(done)
    return checks


def _count_images(move: Move) -> None:
    with move.session.transaction() as connection:
        connection.execute(query("backfill", "expire_images"), {})
        row = connection.execute(query("backfill", "images"), {"name": move.work.name}).fetchone()
    move.work.run.facts["images"] = row["count"] if row else 0
