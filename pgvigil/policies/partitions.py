"""The policy of roll_partitions: one entry per partitioned table."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator
from typing_extensions import override

from pgvigil.policies.clocks import Clock, Duty, Watched
from pgvigil.policies.names import read_name
from pgvigil.policies.schedule import Zone
from pgvigil.policies.units import Duration, ServerWait
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

Unit = Literal["hour", "day", "week", "month", "year"]

_SPAN = re.compile(r"^\s*([0-9]{1,9})\s*(hour|h|day|d|week|w|month|quarter|year)s?\s*$")
_SHORT: dict[str, Unit] = {"h": "hour", "d": "day", "w": "week"}
_DAYS = {"hour": 1 / 24, "day": 1, "week": 7, "month": 31, "year": 366}
_LONGEST = 366_000  # days, a thousand years: what is reckoned from it stays within the calendar
EVERY_ONE = "*"
_ADDRESS = re.compile(r"s3://[^/]+(/.*)?")


class Span(Frozen):
    """A span of calendar time: months and years are as long as the calendar makes them."""

    count: int = Field(ge=1)
    unit: Unit

    @property
    def days(self) -> float:
        """How long it is at most."""
        return self.count * _DAYS[self.unit]

    def __str__(self) -> str:
        return f"{self.count} {self.unit}{'s' if self.count > 1 else ''}"


def _read_span(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = _SPAN.match(value.lower())
    if match is None or int(match[1]) == 0:
        raise ValueError("a span is a number and a unit: '1 month', '7 days', '1 quarter'")
    if match[2] == "quarter":
        return Span(count=3 * int(match[1]), unit="month")
    return Span.model_validate({"count": int(match[1]), "unit": _SHORT.get(match[2], match[2])})


def _require_bounds(value: Span | int) -> Span | int:
    if isinstance(value, int) and value < 1:
        raise ValueError("a width in key values is at least 1")
    if isinstance(value, Span) and value.days > _LONGEST:
        raise ValueError("a span is at most 1000 years")
    return value


def _write_span(value: Span | int) -> str | int:
    return str(value) if isinstance(value, Span) else value


Width = Annotated[
    Span | int,
    BeforeValidator(_read_span),
    AfterValidator(_require_bounds),
    PlainSerializer(_write_span),
    WithJsonSchema({"type": ["string", "integer"], "examples": ["1 month", 1000000]}),
]


def _is_archive(address: str) -> str:
    if not _ADDRESS.fullmatch(address):
        raise ValueError(f"'{address}' is no address in an object store: write s3://bucket/prefix")
    return address.rstrip("/")


def _is_table(text: str) -> str:
    if len(read_name(text)) != 2:
        raise ValueError(f"'{text}' is not schema.table")
    return text


def _is_held(text: str) -> str:
    if text != EVERY_ONE and len(read_name(text)) > 2:
        raise ValueError(f"'{text}' is neither a partition's name nor schema.name")
    return text


class DropAfter(Frozen):
    """Drop when the table has been detached for so long."""

    after: Duration = Field(description="how long the detached table stays")


class ObjectLockPolicy(Frozen):
    """What protects the archived object from deletion in the store (Object Lock)."""

    mode: Literal["GOVERNANCE", "COMPLIANCE"] | None = Field(
        default=None, description="GOVERNANCE may be lifted with a permission, COMPLIANCE by nobody"
    )
    retain: Duration | None = Field(default=None, description="how long from the upload on")
    legal_hold: bool = Field(default=False, description="put a legal hold on what is archived")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.mode is None) != (self.retain is None):
            raise ValueError("a retention has both mode and retain")
        return self


class ParquetPolicy(Frozen):
    """What is stored as Parquet beside the exact copy, for queries in place."""

    as_text: tuple[str, ...] = Field(
        default=(),
        description="columns stored as PostgreSQL's text, because Parquet would change their values; "
        "'*' is every such column. Without them such a table is refused",
    )


class PartitionPolicy(Watched):
    """How one table's partitions are made ahead, kept, archived and dropped."""

    table: Annotated[str, AfterValidator(_is_table)] = Field(
        description='schema.table as SQL writes it: public.events, public."Mixed.Case"'
    )
    key: str = Field(min_length=1, description="the one column that the table is partitioned by, unquoted")
    every: Width = Field(description="width of a partition: '1 month', or key values of an integer key")
    epoch: Literal["s", "ms", "us"] | None = Field(
        default=None, description="an integer key that counts time since 1970 in this unit"
    )
    zone: Zone = Field(default="UTC", description="time zone in which days, weeks, months and years begin")
    ahead: int = Field(default=4, ge=1, le=1000, description="partitions that must exist after the current")
    keep: Width | None = Field(
        default=None, description="what stays in the table; older partitions leave. Without it, all stay"
    )
    archive: Annotated[str, AfterValidator(_is_archive)] | None = Field(
        default=None, description="s3://bucket/prefix that partitions are copied to before they are dropped"
    )
    drop: Literal["proven", "approve", "keep"] | DropAfter = Field(
        default=DropAfter(after=timedelta(days=7)),
        description="when the detached table is dropped: at once when its copy is proven, when a person "
        "approves, never, or {after: 7d}",
    )
    approve_within: Duration = Field(
        default=timedelta(days=3),
        description="with drop: approve, how long a run waits for a person; then the next run asks",
    )
    hold: tuple[Annotated[str, AfterValidator(_is_held)], ...] = Field(
        default=(),
        description="partitions under legal hold, as SQL writes their names, with or without schema; '*' is "
        "every one. While one of them names nothing, nothing leaves and nothing is dropped",
    )
    max_drops: int = Field(
        default=3,
        ge=0,
        description="so many partitions may one run take out, and so many tables may it drop; those that "
        "stand detached count for neither",
    )
    detach: Literal["auto", "concurrently", "blocking"] = Field(
        default="auto", description="auto detaches concurrently where PostgreSQL can, else by a short lock"
    )
    block: ServerWait = Field(
        default=timedelta(seconds=1),
        description="longest time that one statement may make others wait: half of it for its locks; all "
        "tries of a step together take ten times as long at most",
    )
    wait: ServerWait = Field(
        default=timedelta(minutes=5), description="how long to try for a lock before the run gives up"
    )
    verify: Literal["digest", "reload"] = Field(
        default="digest", description="reload also loads the copy back and compares row by row"
    )
    lock: ObjectLockPolicy | None = Field(default=None, description="Object Lock of what is archived")
    parquet: ParquetPolicy | None = Field(
        default=None, description="also store the rows as Parquet, beside the exact copy: {} is enough"
    )
    restored_for: Duration = Field(
        default=timedelta(days=30), description="how long a partition that was brought back is left alone"
    )
    deadline: ServerWait = Field(default=timedelta(hours=12), description="longest time of one copy")
    fresh: Duration = Field(default=timedelta(hours=26), description="older proof is stale in pgvigil status")

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.keep is not None and self.archive is None:
            raise ValueError("keep needs archive: nothing is dropped before its copy was proven")
        if self.keep is not None and isinstance(self.keep, int) != isinstance(self.every, int):
            raise ValueError("every and keep are both spans of time, or both key values")
        if self.epoch is not None and isinstance(self.every, int):
            raise ValueError("with epoch, every is a span of time")
        if isinstance(self.every, Span) and self.every.days * self.ahead > _LONGEST:
            raise ValueError(f"{self.ahead} times {self.every} ahead is more than 1000 years")
        return self

    @property
    def name(self) -> tuple[str, str]:
        """Schema and table as the catalog has them."""
        schema, table = read_name(self.table)
        return schema, table

    def holds_on(self, schema: str, name: str) -> set[str]:
        """Return the holds that a table of this name is under."""
        meant = {(name,), (schema, name)}
        return {each for each in self.hold if each == EVERY_ONE or read_name(each) in meant}

    @override
    def clocks(self) -> Iterator[Clock]:
        yield Clock(
            flow="roll_partitions",
            proof="partitions",
            detail=self.table,
            max_age=self.fresh,
            per_repository=False,
        )

    @override
    def duties(self) -> Iterator[Duty]:
        yield from super().duties()
        if self.archive:
            yield Duty(flow="restore_partition", parameters={"keep": False})  # its drill: nothing stays
