"""What is known of a backup run, as data: the world before, the plan, what was taken, the report."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from pgvigil.pages import cell, table
from pgvigil.pgbackrest.info import BackupType, StanzaInfo
from pgvigil.position import Position
from pgvigil.reports import Check, Finding, Frozen, Report
from pgvigil.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

BackupChoice = Literal["auto", "full", "diff", "incr"]

# Annotations that pgvigil writes beside a backup in the repository.
RUN_NOTE = "pgvigil-run"
PROOF_NOTE = "pgvigil-proven"


class ServerFacts(Position):
    """The server before a backup; `ready` counts WAL files waiting for the archiver, sizes are bytes."""

    version_num: int
    data_checksums: bool
    archive_command: str
    archived_count: int
    failed_count: int
    ready: int
    size: int
    clock_skew: timedelta

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.version_num // 10000


class Survey(Frozen):
    """The world before a backup: server, repositories, program."""

    server: ServerFacts
    stanza: StanzaInfo
    version: tuple[int, int]


class Line(Frozen):
    """What will be done in one repository, and why."""

    repo: int
    type: BackupType
    reason: str
    base: str | None = None


class BackupFacts(Frozen):
    """One backup as it was taken and found: sizes in bytes, rate in bytes per second."""

    repo: int
    label: str
    requested: str
    type: BackupType
    reason: str
    chain: tuple[str, ...]
    started_at: datetime
    stopped_at: datetime
    size: int
    delta: int
    repo_size: int
    repo_delta: int
    wal_start: str
    wal_stop: str
    lsn_stop: str = ""
    seconds: float
    rate: float
    log: str = ""


class ExpirePlan(Frozen):
    """Which fulls go, with all that depends on them, and what stays."""

    repo: int
    expire: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    reason: str = ""


class BackupReport(Report):
    """What `nightly_backup` returns."""

    plan: tuple[Line, ...] = ()
    backups: tuple[BackupFacts, ...] = ()
    expire: tuple[ExpirePlan, ...] = ()
    expired: tuple[str, ...] = ()

    def section(self) -> str:
        """Render the plan, each backup with sizes and rates, its chain as a picture, and what expired."""
        return "\n\n".join(
            [
                "## Plan\n\n"
                + table(
                    ("repository", "type", "because", "parent"),
                    ((line.repo, line.type, line.reason, line.base or "none") for line in self.plan),
                ),
                *(_backup_section(backup) for backup in self.backups),
                *(_expire_section(plan, self.expired, dry_run=self.dry_run) for plan in self.expire),
            ]
        )


def _backup_section(backup: BackupFacts) -> str:
    facts = (
        ("type", f"{backup.type} (asked for: {backup.requested})"),
        ("took", f"{backup.seconds:.1f} s, {bytes_text(backup.rate)}/s"),
        ("database", f"{bytes_text(backup.size)}, of it copied {bytes_text(backup.delta)}"),
        ("repository", f"{bytes_text(backup.repo_size)}, of it new {bytes_text(backup.repo_delta)}"),
        ("WAL", f"{backup.wal_start} to {backup.wal_stop}"),
        ("restorable to", f"any point from LSN {backup.lsn_stop}, {backup.stopped_at:%Y-%m-%d %H:%M:%S} UTC"),
    )
    return (
        f"## Backup {cell(backup.label)} in repository {backup.repo}\n\n"
        + table(("what", "value"), facts)
        + f"\n\n```\n{draw_chain([' '.join(visible(label).split()) for label in backup.chain])}\n```"
    )


def draw_chain(chain: Sequence[str]) -> str:
    """Draw a chain from its full to the newest, each with what it builds on to its left."""
    return "\n".join("   " * depth + ("└─ " if depth else "") + label for depth, label in enumerate(chain))


def _expire_section(plan: ExpirePlan, expired: Sequence[str], *, dry_run: bool) -> str:
    gone = plan.expire if dry_run else [label for label in expired if label.split("_")[0] in plan.expire]
    return (
        f"## Retention in repository {plan.repo}\n\n{cell(plan.reason)}; "
        f"{'would expire now' if dry_run else 'expired'}: {cell(', '.join(gone) or 'nothing')}; "
        f"fulls kept: {cell(', '.join(plan.keep) or 'none')}"
    )


class Proven(Frozen):
    """What reading the repository back showed of one backup."""

    facts: BackupFacts
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]


def bytes_text(count: float) -> str:
    """Write bytes as people read them, in powers of 1024."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"
