"""Expire by a plan that never gives up the last proven full backup."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pgvigil.backup.facts import PROOF_NOTE, ExpirePlan
from pgvigil.errors import PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from pgvigil.pgbackrest import Backup, PgBackRest
    from pgvigil.policies.backup import Retention


def plan_expire(backups: Sequence[Backup], repo: int, retention: Retention, now: datetime) -> ExpirePlan:
    """Choose what to expire: never one of the newest proven fulls, nor what a moment of `days` needs.

    A moment is restored from the proven full before it, so the newest that is `days` old stays as well.
    With fewer proven fulls than the policy asks for, nothing goes, whatever the ages say; so at least
    one proven full is always left.
    """
    fulls = sorted((b for b in backups if b.type == "full"), key=lambda b: b.timestamp.stop)
    proven = [b for b in fulls if b.note(PROOF_NOTE) and not b.error]
    old = [b for b in proven if b.timestamp.stop <= now - timedelta(days=retention.days)]
    if len(proven) < retention.fulls or not old:
        found = f"{len(proven)} proven fulls, {len(old)} of them {retention.days} days old"
        keep = tuple(b.label for b in fulls)
        return ExpirePlan(repo=repo, keep=keep, reason=f"{found}; {_policy(retention)}")
    oldest_kept = min(proven[-retention.fulls].timestamp.stop, old[-1].timestamp.stop)
    return ExpirePlan(
        repo=repo,
        expire=tuple(b.label for b in fulls if b.timestamp.stop < oldest_kept),
        keep=tuple(b.label for b in fulls if b.timestamp.stop >= oldest_kept),
        reason=_policy(retention),
    )


def _policy(retention: Retention) -> str:
    days = f", and each moment of {retention.days} days" if retention.days else ""
    return f"policy keeps {retention.fulls} proven fulls{days}"


def apply_expire(pgbackrest: PgBackRest, plan: ExpirePlan) -> tuple[str, ...]:
    """Expire what the plan names, oldest first, and return the labels that are gone by the list.

    Re-reads the list before it begins: a plan whose kept fulls are no longer there is refused. A full that
    came since counts among those whose WAL stays.
    """
    listed = pgbackrest.info().backups(plan.repo)
    before = {b.label for b in listed}
    lost = set(plan.keep) - before
    if lost:
        raise PreconditionFailed(
            f"nothing was expired: {', '.join(sorted(lost))} should stay but is gone",
            hint="somebody else expires in this repository; run again",
        )
    keep = sum(b.type == "full" and b.label not in plan.expire for b in listed)
    for label in plan.expire:
        if label in before:
            pgbackrest.expire(plan.repo, label, keep)
    after = {b.label for b in pgbackrest.info().backups(plan.repo)}
    return tuple(sorted(before - after))
