"""What is known of a backfill, as data: the table and its key, the forecast, the progress, the report."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import Field

from pgvigil.backup.facts import bytes_text
from pgvigil.pages import cell, table
from pgvigil.reports import Frozen, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

Key = tuple[str, ...]
"""One row's key: each column's value as text."""


class KeyColumn(Frozen):
    """One column to walk by; `collation` only where the index has another than the column."""

    name: str
    type: str
    collation: tuple[str, str] | None = None


class Leaf(Frozen):
    """A table that holds rows, and the key by which they are walked over; without an index it is ctid.

    It takes turns, see `turns`, where no index holds what is written.
    """

    oid: int
    schema_name: str
    name: str
    rows: int
    size: int
    block_size: int
    fillfactor: int
    is_partition: bool
    takes_turns: bool
    key: tuple[KeyColumn, ...]
    index: str | None

    @property
    def label(self) -> str:
        """How people call it."""
        return f"{self.schema_name}.{self.name}"

    @property
    def quoted(self) -> str:
        """Its name as SQL reads it."""
        return ".".join('"' + part.replace('"', '""') + '"' for part in (self.schema_name, self.name))

    @property
    def walk(self) -> list[str]:
        """Its key's columns and types: a position in one key says nothing in another."""
        return [f"{column.name} {column.type}" for column in self.key]

    @property
    def blocks_per(self) -> float:
        """Blocks for one row, on the average."""
        return max(1, self.size // self.block_size) / max(1, self.rows)


class Column(Frozen):
    """A column of the table."""

    name: str
    type: str
    not_null: bool
    is_generated: bool


class Target(Frozen):
    """The table of a backfill as the catalog has it."""

    oid: int
    schema_name: str
    name: str
    columns: tuple[Column, ...]
    leaves: tuple[Leaf, ...]

    @property
    def label(self) -> str:
        """How people call it."""
        return f"{self.schema_name}.{self.name}"

    @property
    def rows(self) -> int:
        """All rows, as the statistics or a sample have them."""
        return sum(leaf.rows for leaf in self.leaves)


class Forecast(Frozen):
    """What the change would cost one worker, from batches that were done and undone; bytes and seconds."""

    sampled_rows: int = 0
    changed_rows: int = 0
    rows: int = 0
    seconds: float = 0
    wal_bytes: int = 0
    growth_bytes: int = 0
    hot_ratio: float | None = None
    rows_per_second: float = 0


class Plan(Frozen):
    """What a run would do: by which key each table is walked, what is written, what fires, what it costs."""

    table: str
    writes: tuple[str, ...]
    where: str
    walks: tuple[str, ...]
    indexed: tuple[str, ...] = ()
    triggers: tuple[str, ...] = ()
    forecast: Forecast = Forecast()
    resumes: str = ""


class Quarantined(Frozen):
    """A row that could not be changed, and why."""

    table: str
    key: Key
    sqlstate: str
    message: str
    at: datetime


class Progress(Frozen):
    """How far a run is: rows, rows per second, seconds to go with their uncertainty, bytes of WAL."""

    rows_seen: int = 0
    rows_done: int = 0
    rows_total: int = 0
    batches: int = 0
    ranges_left: int | None = None
    quarantined: int = 0
    rate: float = 0
    seconds_left: float | None = None
    seconds_left_least: float | None = None
    seconds_left_most: float | None = None
    wal_bytes: int = 0
    wal_bytes_left: int = 0
    batch_rows: int = 0
    workers: int = 0
    waiting_for: str = ""
    waiting_since: datetime | None = None

    @property
    def percent(self) -> float:
        """0 to 100; an estimate never says that it is over, only that no range is left does."""
        if self.ranges_left == 0:
            return 100
        return min(99.0, 100 * self.rows_seen / self.rows_total) if self.rows_total else 0

    def __str__(self) -> str:
        seen = f"{self.rows_seen} of about {self.rows_total} seen ({self.percent:.0f} %)"
        parts = [f"{self.rows_done} rows changed", seen, f"{self.rate:.0f} rows/s"]
        if self.seconds_left is not None:
            parts.append(
                f"{duration_text(self.seconds_left)} to go"
                f" ({duration_text(self.seconds_left_least)} to {duration_text(self.seconds_left_most)})"
            )
        parts.append(f"WAL {bytes_text(self.wal_bytes)}, about {bytes_text(self.wal_bytes_left)} to go")
        if self.quarantined:
            parts.append(f"{self.quarantined} rows in quarantine")
        if self.waiting_for:
            since = f" since {self.waiting_since:%H:%M:%S} UTC" if self.waiting_since else ""
            parts.append(f"waiting for {self.waiting_for}{since}")
        return ", ".join(parts)


class BackfillReport(Report):
    """What `run_backfill` returns."""

    backfill: str = ""
    plan: Plan | None = None
    progress: Progress | None = None
    rows_left: int | None = None
    quarantined: tuple[Quarantined, ...] = ()
    not_null: tuple[str, ...] = Field(default=(), description="columns that are NOT NULL now")
    images: int = 0

    def section(self) -> str:
        """Render the plan, what was done, and the rows in quarantine."""
        return "\n\n".join(part for part in self._parts() if part)

    def _parts(self) -> Iterator[str]:
        if self.plan:
            yield "## Plan\n\n" + table(("what", "value"), _plan_rows(self.plan))
        if self.progress:
            yield f"## What was done\n\n{cell(self.progress)}"
        if self.quarantined:
            rows = ((q.table, ", ".join(q.key), q.sqlstate, q.message) for q in self.quarantined)
            yield "## Rows in quarantine\n\n" + table(("table", "key", "SQLSTATE", "message"), rows)


def _plan_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "table", plan.table
    yield from (("writes", text) for text in plan.writes)
    yield "where", plan.where
    yield from (("walks", text) for text in plan.walks)
    yield "indexes on what is written", ", ".join(plan.indexed) or "none: updates within a page need no index"
    yield "triggers that fire", ", ".join(plan.triggers) or "none"
    cost = plan.forecast
    yield "rows to change", f"about {cost.rows}, from {cost.sampled_rows} sampled"
    yield "time", f"about {duration_text(cost.seconds)} at {cost.rows_per_second:.0f} rows/s with one worker"
    yield "WAL", f"about {bytes_text(cost.wal_bytes)}, less where the rows of a page take turns"
    yield "growth", f"at most {bytes_text(cost.growth_bytes)}, less with turns and VACUUM in between"
    if cost.hot_ratio is not None:
        yield "heap-only updates", f"{100 * cost.hot_ratio:.0f} % of the sample"
    if plan.resumes:
        yield "goes on", plan.resumes


def duration_text(seconds: float | None) -> str:
    """Write a time as people say it."""
    if seconds is None:
        return "unknown"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
