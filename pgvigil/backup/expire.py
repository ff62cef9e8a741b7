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
    """Choose what to expire: never one of the newest proven fulls, nothing newer than them, nothing young.

    With fewer proven fulls than the policy asks for, nothing goes, whatever the ages say; so at least
    one proven full is always left.
    """
    fulls = sorted((b for b in backups if b.type == "full"), key=lambda b: b.timestamp.stop)
    proven = [b for b in fulls if b.note(PROOF_NOTE) and not b.error]
    if len(proven) < retention.fulls:
        reason = f"{len(proven)} proven fulls, policy keeps {retention.fulls}"
        return ExpirePlan(repo=repo, keep=tuple(b.label for b in fulls), reason=reason)
    oldest_kept = proven[-retention.fulls]
    youngest_gone = now - timedelta(days=retention.days)
    gone = [
        b for b in fulls if b.timestamp.stop < oldest_kept.timestamp.stop and b.timestamp.stop < youngest_gone
    ]
    labels = {b.label for b in gone}
    return ExpirePlan(
        repo=repo,
        expire=tuple(b.label for b in gone),
        keep=tuple(b.label for b in fulls if b.label not in labels),
        reason=f"policy keeps {retention.fulls} proven fulls and {retention.days} days",
    )


def apply_expire(pgbackrest: PgBackRest, plan: ExpirePlan, *, dry_run: bool = False) -> tuple[str, ...]:
    """Expire what the plan names, oldest first, and return the labels that are gone by the list.

    Re-reads the list before it begins: a plan whose kept fulls are no longer there is refused.
    """
    before = {b.label for b in pgbackrest.info().backups(plan.repo)}
    lost = set(plan.keep) - before
    if lost:
        raise PreconditionFailed(
            f"nothing was expired: {', '.join(sorted(lost))} should stay but is gone",
            hint="somebody else expires in this repository; run again",
        )
    keep = len(plan.keep)
    for label in plan.expire:
        if label in before:
            pgbackrest.expire(plan.repo, label, keep, dry_run=dry_run)
    after = {b.label for b in pgbackrest.info().backups(plan.repo)}
    return tuple(sorted(before - after))
