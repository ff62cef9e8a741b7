"""What a restore drill found, as data: the report of restore_drill and its page in Markdown."""

from __future__ import annotations

import base64
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field
from typing_extensions import override

from pgvigil.drill.choose import Choice, Wanted
from pgvigil.drill.drawing import draw
from pgvigil.drill.facts import Mark, Phase, Target, Unproven
from pgvigil.drill.history import Memory
from pgvigil.drill.page import page
from pgvigil.drill.trend import RTO_PHASES, Trend, seconds_text
from pgvigil.drill.words import restored_rows, share_text, unproven_of
from pgvigil.pages import cell, table
from pgvigil.reports import Frozen, Report, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SHOWN = 20  # rows of a list on the Markdown page; JSON and HTML have them all


class Versions(Frozen):
    """The programs and systems of this drill, as each says of itself."""

    source: str = Field(default="", description="PostgreSQL of the source")
    copied: str = Field(default="", description="PostgreSQL that ran the copy")
    pgbackrest: str = ""
    pgvigil: str = ""
    system: str = Field(default="", description="operating system and C library of the drill's host")


class Restored(Frozen):
    """The set that was restored, and the identity that the copy was found to have."""

    stanza: str
    repo: int
    label: str
    chain: tuple[str, ...] = ()
    stopped_at: datetime | None = None
    system_id: int
    expected_system_id: int
    bytes: int = 0
    scratch: str = ""
    kept_until: datetime | None = None


class WalUsed(Frozen):
    """The WAL that recovery needed: from the set's start to the target."""

    first: str = Field(default="", description="segment")
    last: str = Field(default="", description="segment")
    from_lsn: str = ""
    to_lsn: str = ""
    timeline: int = 0
    segments: int = 0
    bytes: int = 0


class Reached(Frozen):
    """How far recovery got. A heartbeat is None where none was made or nobody could look."""

    lsn: str
    timeline: int
    last_commit_at: datetime | None = None
    before_is_present: bool | None = None
    after_is_absent: bool | None = None
    promoted: bool = False


class TableResult(Frozen):
    """One relation on both sides; `verdict` verified means equal in all that was read."""

    relation: str
    verdict: Verdict
    rows: int | None = Field(default=None, description="on the source; of a sample, the rows read")
    rows_copy: int | None = None
    blocks: int = 0
    blocks_read: int = 0
    detail: str = ""


class DatabaseResult(Frozen):
    """One database: where it was marked, and what of it was proven equal."""

    database: str
    mark: Mark | None = None
    tables: tuple[TableResult, ...] = ()
    unproven: tuple[Unproven, ...] = ()
    bytes_read: int = 0
    seconds_source: float = 0.0
    seconds_copy: float = 0.0
    amchecked: int | None = Field(default=None, description="relations that pg_amcheck looked at")

    @property
    def share(self) -> float | None:
        """The share of blocks proven equal, 0 to 1, of those that can come back; None if nothing is known."""
        blocks = sum(each.blocks for each in self.tables)
        if not self.tables:
            return None
        proven = sum(each.blocks_read for each in self.tables if each.verdict is Verdict.VERIFIED)
        if blocks:
            return proven / blocks
        return 1.0 if all(each.verdict is Verdict.VERIFIED for each in self.tables) else 0.0

    def count(self, verdict: Verdict) -> int:
        """Return how many tables have this verdict."""
        return sum(each.verdict is verdict for each in self.tables)


class Rpo(Frozen):
    """What would be lost if the source were lost at this moment, in seconds."""

    last_commit_at: datetime
    age_seconds: float = Field(description="of the last commit that was replayed, when replay ended")
    arrival_seconds: float | None = Field(
        default=None, description="from a commit until its WAL was in the repository"
    )


class DrillReport(Report):
    """What `restore_drill` returns; what a drill did not get to is None or empty."""

    wanted: Wanted = Wanted()
    keep: bool = False
    actor: str = ""
    choice: Choice | None = None
    versions: Versions = Versions()
    restored: Restored | None = None
    target: Target | None = None
    reached: Reached | None = None
    wal: WalUsed | None = None
    databases: tuple[DatabaseResult, ...] = ()
    phases: tuple[Phase, ...] = ()
    trend: Trend | None = None
    rpo: Rpo | None = None

    @property
    def proven(self) -> bool:
        """Whether the copy was proven equal, however long that took."""
        if self.choice is None or not self.choice.proves_equality:
            return False
        name = f"restore repo{self.choice.repo} {self.choice.target_kind}"
        return any(proof.name == name and proof.verdict is Verdict.VERIFIED for proof in self.proofs)

    @override
    def section(self) -> str:
        return "\n\n".join(part for part in _parts(self) if part)

    @override
    def documents(self) -> dict[str, str]:
        picture = draw(self.trend) if self.trend else ""
        return {"html": page(self)} | ({"rto.svg": picture} if picture else {})

    @override
    def remembered(self) -> dict[str, Any]:
        if self.choice is None:
            return {}
        return Memory(
            repo=self.choice.repo,
            label=self.choice.label,
            set_kind=self.choice.set_kind,
            target_kind=self.choice.target_kind,
            target_value=self.choice.target_value,
            proven=self.proven,
            phases=self.phases,
            backup_bytes=self.restored.bytes if self.restored else 0,
            wal_bytes=self.wal.bytes if self.wal else 0,
        ).model_dump(mode="json")


# --- the page in Markdown -----------------------------------------------------------------------------


def _parts(report: DrillReport) -> Iterator[str]:
    yield "## What was restored\n\n" + table(("what", "value"), restored_rows(report))
    if report.databases:
        yield "## What was compared\n\n" + _databases(report.databases)
        yield _different(report.databases)
        yield _unproven(report.databases)
    if report.trend:
        yield _times(report.trend)


def _databases(databases: Sequence[DatabaseResult]) -> str:
    return table(
        (
            "database",
            "tables equal",
            "different",
            "not proven",
            "share proven",
            "marked by",
            "writers waited",
        ),
        (
            (
                each.database,
                each.count(Verdict.VERIFIED),
                each.count(Verdict.REFUTED),
                each.count(Verdict.INCONCLUSIVE) + len(each.unproven),
                share_text(each.share),
                each.mark.method if each.mark else "no mark",
                f"{each.mark.writers_waited_ms:.0f} ms" if each.mark else "",
            )
            for each in databases
        ),
    )


def _different(databases: Sequence[DatabaseResult]) -> str:
    rows = [
        (each.database, found.relation, found.rows, found.rows_copy, found.detail)
        for each in databases
        for found in each.tables
        if found.verdict is Verdict.REFUTED
    ]
    if not rows:
        return ""
    return f"### Different ({len(rows)})\n\n" + _capped(
        ("database", "table", "rows in the source", "rows in the copy", "detail"), rows
    )


def _unproven(databases: Sequence[DatabaseResult]) -> str:
    rows = [(each.database, name, reason) for each in databases for name, reason in unproven_of(each)]
    if not rows:
        return ""
    return f"### Not proven ({len(rows)})\n\n" + _capped(("database", "relation", "because"), rows)


def _capped(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    shown = table(head, rows[:SHOWN])
    more = len(rows) - SHOWN
    return shown + (f"\n\nand {more} more, all in the JSON and HTML report" if more > 0 else "")


def _times(found: Trend) -> str:
    seconds = found.this.seconds
    expected = {each.phase: each for each in found.foretold}
    rows: list[tuple[str, str, str]] = [
        (
            name,
            seconds_text(seconds[name]) if name in seconds else "not measured",
            seconds_text(expected[name].seconds) if name in expected else "",
        )
        for name in RTO_PHASES
    ]
    rows.append(("RTO", seconds_text(found.this.rto), seconds_text(found.seconds) if found.seconds else ""))
    parts = [
        "## How long it took",
        table(("phase", "this drill", "to be expected"), rows),
        cell(found.reason),
        _picture(found),
    ]
    return "\n\n".join(part for part in parts if part)


def _picture(found: Trend) -> str:
    picture = draw(found)
    data = base64.b64encode(picture.encode()).decode()
    return f"![RTO by phase](data:image/svg+xml;base64,{data})" if picture else ""
