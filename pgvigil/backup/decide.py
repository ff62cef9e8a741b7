"""Decide the type of a backup from the state of its repository."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgvigil.backup.facts import BackupChoice, Line, Survey
from pgvigil.wal import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import timedelta

    from pgvigil.pgbackrest import Backup, PgBackRest, StanzaInfo
    from pgvigil.pgbackrest.info import BackupType
    from pgvigil.policies.backup import BackupPolicy


SMALL_WAL = 1024**3  # bytes that replay in a minute or so: no reason for a new full, however small that is


def decide(
    world: Survey, repo: int, policy: BackupPolicy, choice: BackupChoice, broken: Mapping[str, str]
) -> Line:
    """Choose the backup type for one repository from its state; pure.

    `broken` maps labels that must not become a parent to what is wrong with them.
    """
    backups = world.stanza.backups(repo)
    fulls = [b for b in backups if b.type == "full"]
    if choice != "auto":
        parents = {"full": [], "diff": fulls, "incr": backups}[choice]
        base = parents[-1].label if parents else None
        return Line(repo=repo, type=choice, reason="asked for by parameter", base=base)
    if not fulls:
        return Line(repo=repo, type="full", reason="no full backup exists")
    last, full = backups[-1], fulls[-1]
    for cause in _reasons_for_full(world, full, last, policy, broken):
        return Line(repo=repo, type="full", reason=cause)
    kind, reason = _partial(world, backups, full, last, policy)
    return Line(repo=repo, type=kind, reason=reason, base=full.label if kind == "diff" else last.label)


def _reasons_for_full(
    world: Survey, full: Backup, last: Backup, policy: BackupPolicy, broken: Mapping[str, str]
) -> Iterator[str]:
    server, stanza = world.server, world.stanza
    for label in (*(last.reference or ()), last.label, full.label):
        if label in broken:
            yield f"{label} is no parent: {broken[label]}"
    recorded = stanza.history(last.repo, last.database.id).system_id
    if recorded != server.system_id:
        yield f"the system id changed from {recorded} to {server.system_id}"
    if last.timeline != server.timeline:
        yield f"the timeline changed from {last.timeline} to {server.timeline}"
    age = server.now - full.timestamp.stop
    if age >= policy.full_every:
        yield f"the last full is {_days(age)} old, policy says {_days(policy.full_every)}"
    chain = sum(b.full_label == full.label for b in stanza.backups(full.repo)) - 1
    if chain >= policy.max_chain:
        yield f"{chain} backups depend on the last full, policy says at most {policy.max_chain}"
    if server.lsn and full.lsn and full.info.size:
        wal = parse_lsn(server.lsn) - parse_lsn(full.lsn.stop)
        if wal > max(policy.wal_ratio * full.info.size, SMALL_WAL):
            times = wal / full.info.size
            yield f"{times:.1f} times its size of WAL since the last full, policy says {policy.wal_ratio:g}"


def _partial(
    world: Survey, backups: Sequence[Backup], full: Backup, last: Backup, policy: BackupPolicy
) -> tuple[BackupType, str]:
    if policy.diff_every is not None:
        diffs = [b for b in backups if b.type == "diff" and b.full_label == full.label]
        age = world.server.now - (diffs[-1] if diffs else full).timestamp.stop
        if age >= policy.diff_every:
            last_kind = "diff" if diffs else "full"
            return "diff", f"the last {last_kind} is {_days(age)} old, policy says {_days(policy.diff_every)}"
    age = world.server.now - full.timestamp.stop
    return "incr", f"the last full is {_days(age)} old and its chain is whole; parent is {last.label}"


def _days(span: timedelta) -> str:
    seconds = span.total_seconds()
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def find_broken(pgbackrest: PgBackRest, stanza: StanzaInfo, repo: int) -> dict[str, str]:
    """Look at the newest chain of a repository: which of its backups cannot be a parent, and why."""
    backups = stanza.backups(repo)
    if not backups:
        return {}
    last = backups[-1]
    full = next((b for b in reversed(backups) if b.type == "full"), last)
    chain = {*(last.reference or ()), last.label, full.label}
    parents = [b for b in backups if b.label in chain]
    broken = {b.label: "it has page checksum errors" for b in parents if b.error}
    broken |= {b.label: "it was taken offline, without WAL" for b in parents if not b.archive.stop}
    for label in sorted(chain):
        missing = missing_manifests(pgbackrest, repo, label)
        if missing:
            broken[label] = f"{missing} is missing in the repository"
    return broken


def missing_manifests(pgbackrest: PgBackRest, repo: int, label: str) -> str:
    """Name the manifest files that a backup lacks in its repository; empty when it has both."""
    found = pgbackrest.ls(repo, f"backup/{pgbackrest.target.stanza}/{label}")
    return ", ".join(name for name in ("backup.manifest", "backup.manifest.copy") if name not in found)
