"""The policy of run_backfill: what is changed where, within which limits."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from pgvigil.policies.clocks import Clock, Watched
from pgvigil.policies.units import Duration, ServerWait
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator


class BatchPolicy(Frozen):
    """How much is changed in one transaction; its size follows the target within these limits."""

    rows: int = Field(default=1000, ge=1, description="rows of the first batch")
    most_rows: int = Field(default=50_000, ge=1, description="most rows of a batch")
    target: Duration = Field(default=timedelta(milliseconds=100), description="how long a batch should take")
    longest: ServerWait = Field(
        default=timedelta(seconds=10), description="a batch that takes longer is undone and halved"
    )
    wal_mb: float = Field(default=64, gt=0, description="most WAL that one batch should write")
    lock_wait: ServerWait = Field(
        default=timedelta(milliseconds=100), description="rows locked longer than this are left for later"
    )


class SqlSignal(Frozen):
    """A question to the database whose answer, one number, must not be above a limit."""

    name: str = Field(min_length=1, description="how reports and progress call it")
    sql: str = Field(min_length=1, description="a query of one row with one number")
    most: float = Field(description="the limit: above it the backfill stops")


class Limits(Frozen):
    """What the database may suffer at most; at 70 % of a limit the backfill slows, above it stops."""

    replication_mb: float = Field(default=256, gt=0, description="WAL that a standby has not replayed")
    replication_lag: Duration = Field(
        default=timedelta(seconds=30), description="age of the newest of our commits that a standby replayed"
    )
    slot_mb: float = Field(default=1024, gt=0, description="WAL that a replication slot holds back")
    archive_files: int = Field(default=64, ge=1, description="WAL files waiting for the archiver")
    connections: float = Field(default=0.9, gt=0, le=1, description="part of max_connections in use")
    transaction: Duration = Field(
        default=timedelta(hours=1), description="age of the oldest transaction, which VACUUM cannot pass"
    )
    horizon: int = Field(
        default=100_000_000, ge=1, description="transactions that a slot or prepared one holds VACUUM back"
    )
    yield_to_autovacuum: bool = Field(
        default=True, description="wait while autovacuum is at work on the table"
    )
    signals: tuple[SqlSignal, ...] = Field(default=(), description="questions of your own")
    tries: int = Field(default=3, ge=1, description="a signal unread so often in a row counts as a stop")


class BackfillPolicy(Watched):
    """One data migration: rows of `table` that meet `where` are changed until none meets it."""

    table: str = Field(min_length=1, description="schema.table, quoted as in SQL where its name needs that")
    where: str = Field(min_length=1, description="SQL condition that a row no longer meets once it is done")
    set: dict[str, str] = Field(default_factory=dict, description="column: SQL expression over the row")
    into: str | None = Field(
        default=None, description="schema.table that rows are inserted into, `set` naming its columns"
    )
    function: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="module:function, from a list of rows to what each gets in `columns`",
    )
    columns: tuple[str, ...] = Field(default=(), description="the columns that `function` gives")
    key: tuple[str, ...] | None = Field(
        default=None, description="columns of the unique index to walk by; without it the best one is taken"
    )
    search_path: str = Field(default="pg_catalog, public", description="for expressions and triggers")
    force: bool = Field(default=False, description="go on although the next batch cannot be found by index")
    workers: int = Field(default=1, ge=1, le=32, description="ranges that are walked at the same time")
    batch: BatchPolicy = BatchPolicy()
    limits: Limits = Limits()
    vacuum_after: float | None = Field(
        default=0.1, gt=0, description="VACUUM once this part of the table was changed"
    )
    vacuum_rows: int = Field(default=50_000, ge=1, description="but not before so many rows")
    quarantine: int = Field(default=100, ge=0, description="rows that may fail before the run stops")
    passes: int = Field(default=3, ge=1, description="walks, for rows that others moved behind the cursor")
    sweep_for: Duration = Field(
        default=timedelta(minutes=10), description="how long to try for rows that others hold locked"
    )
    outage: Duration = Field(
        default=timedelta(minutes=10), description="how long to wait for a server that is away"
    )
    chunk: Duration = Field(default=timedelta(minutes=10), description="length of one task in Prefect")
    count_for: ServerWait = Field(
        default=timedelta(hours=6), description="longest time of the count that proves the end"
    )
    not_null: tuple[str, ...] = Field(
        default=(), description="columns that become NOT NULL once no row is left"
    )
    before_images: Duration | None = Field(
        default=None, description="keep what the rows held before, for so long"
    )

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.function is None and not self.set:
            raise ValueError("it changes nothing: give 'set', or 'function' with 'columns'")
        if self.function is not None and (self.set or self.into or not self.columns):
            raise ValueError("'function' goes with 'columns', and neither with 'set' nor with 'into'")
        if self.function is None and self.columns:
            raise ValueError("'columns' are those that 'function' gives; 'set' names its own")
        if self.into and (self.before_images or self.not_null):
            raise ValueError("'into' changes no row of the table: leave out 'before_images' and 'not_null'")
        return self

    def clocks(self) -> Iterator[Clock]:
        """Want the proof of a backfill that was begun; once given, it does not age."""
        yield Clock(
            flow="run_backfill",
            proof="backfill",
            max_age=timedelta.max,
            per_repository=False,
            takes_turns=True,
            begun=True,
            undone_by="steer_backfill",
        )

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that are written."""
        return tuple(self.set) or self.columns
