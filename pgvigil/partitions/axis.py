"""A partition key as an axis of integers, and the calendar's slots on it.

Positions are microseconds since 1970 for keys that tell time, and the values themselves for integers.
Keys without a zone (timestamp, date) are placed as if their wall clock were UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.policies.partitions import Span
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pgvigil.policies.partitions import PartitionPolicy

Kind = Literal["instant", "wall", "date", "integer", "epoch", "uuid"]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)

# Beyond every moment that the calendar can name, on either side: infinity, years BC and after 9999.
BEFORE_TIME, AFTER_TIME = -(10**30), 10**30

_KINDS: dict[str, Kind] = {
    "timestamp with time zone": "instant",
    "timestamp without time zone": "wall",
    "date": "date",
    "smallint": "integer",
    "integer": "integer",
    "bigint": "integer",
    "uuid": "uuid",
}
_EPOCH_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FAR_YEAR = re.compile(r"[0-9]{5,}-")  # after 9999, which Python's calendar does not know
_BOUND = re.compile(r"FOR VALUES FROM \((.+)\) TO \((.+)\)")


class Range(Frozen):
    """From a position up to but without another; None is without end."""

    lower: int | None
    upper: int | None

    def covers(self, position: int) -> bool:
        """Tell whether a position lies within."""
        return (self.lower is None or self.lower <= position) and (
            self.upper is None or position < self.upper
        )


class Axis(Frozen):
    """How positions of one key are written, and where its partitions begin and end."""

    kind: Kind
    zone: str
    every: Span | int
    epoch_unit: int = 1

    def parse(self, bound: str) -> Range | None:
        """Read the bound of a partition as the catalog renders it; None for a DEFAULT partition.

        Raises PreconditionFailed for what is no value of the key.
        """
        match = _BOUND.fullmatch(bound)
        if match is None:
            return None
        try:
            return Range(lower=self._decode(match[1]), upper=self._decode(match[2]))
        except ValueError as error:
            raise PreconditionFailed(
                f"the bound {bound[:200]!r} cannot be read, expected a range of one key ({self.kind})",
                hint="look at the partition in psql; out of the fleet file with its table if it must stay so",
            ) from error

    def ends(self, piece: Range, bounds: Iterable[str]) -> tuple[str, str]:
        """Write both ends of a range, as the partitions beside it have theirs where they meet.

        A UUID has bits below its millisecond, such as the version's, which a position has not.
        """
        assert piece.lower is not None and piece.upper is not None  # noqa: S101, PT018 - cut from a slot
        lower, upper = self.literal(piece.lower), self.literal(piece.upper)
        if self.kind != "uuid":
            return lower, upper
        beside = [match.groups() for bound in bounds if (match := _BOUND.fullmatch(bound))]
        before = [end.strip("'") for _, end in beside if self._decode(end) == piece.lower]
        after = [start.strip("'") for start, _ in beside if self._decode(start) == piece.upper]
        return max([lower, *before], key=UUID), min(after, key=UUID, default=upper)

    def _decode(self, text: str) -> int | None:
        value = text.strip("'")
        if value in {"MINVALUE", "MAXVALUE"}:
            return None
        if self.kind in {"integer", "epoch"}:
            return int(value) * self.epoch_unit
        if self.kind == "uuid":
            return (UUID(value).int >> 80) * 1000
        return _micros(value)

    def literal(self, position: int) -> str:
        """Write a position as a literal that no session's settings can read otherwise."""
        if self.kind in {"integer", "epoch"}:
            return str(position // self.epoch_unit)
        if self.kind == "uuid":
            return str(UUID(int=(position // 1000) << 80))
        moment = EPOCH + position * MICROSECOND
        if self.kind == "instant":
            return moment.astimezone(ZoneInfo(self.zone)).isoformat(sep=" ")
        if self.kind == "date":
            return f"{moment:%Y-%m-%d}"
        return f"{moment:%Y-%m-%d %H:%M:%S}"

    def now(self, moment: datetime) -> int:
        """Place a moment on an axis of time."""
        if self.kind in {"wall", "date"}:
            moment = moment.astimezone(ZoneInfo(self.zone)).replace(tzinfo=UTC)
        return (moment - EPOCH) // MICROSECOND

    def moment(self, position: int) -> datetime | None:
        """Return the moment at a position, None where the axis does not tell time or the calendar ends."""
        if self.kind == "integer":
            return None
        try:
            moment = EPOCH + position * MICROSECOND
            if self.kind in {"wall", "date"}:
                moment = moment.replace(tzinfo=ZoneInfo(self.zone))
            moment.astimezone(UTC)
        except OverflowError:
            return None
        return moment

    def slots(self, position: int, ahead: int) -> Iterator[Range]:
        """Give the slot that holds a position and so many after it, without gap or overlap."""
        index = self._index(position)
        for number in range(index, index + ahead + 1):
            yield Range(lower=self._start(number), upper=self._start(number + 1))

    def before(self, position: int, span: Span | int) -> int:
        """Go back from a position by a span, which on the calendar ends at the same clock time."""
        if isinstance(span, int):
            return position - span
        if span.unit == "hour":
            return position - span.count * 3_600_000_000
        local = self._local(position)
        if span.unit in {"day", "week"}:
            days = span.count * (7 if span.unit == "week" else 1)
            return self._position(local - timedelta(days=days))
        months = span.count * (12 if span.unit == "year" else 1)
        first = _month(_month_index(local) - months)
        day = min(local.day, (_month(_month_index(first) + 1) - timedelta(days=1)).day)
        return self._position(local.replace(year=first.year, month=first.month, day=day))

    def suffix(self, lower: int) -> str:
        """Name a slot by where it begins."""
        if isinstance(self.every, int):
            return str(lower)
        local = self._local(lower)
        if self.every.unit == "month" and self.every.count == 3:
            return f"{local:%Y}q{(local.month + 2) // 3}"
        return local.strftime(_SUFFIX[self.every.unit])

    def _index(self, position: int) -> int:
        if isinstance(self.every, int):
            return position // self.every
        count = self.every.count
        if self.every.unit == "hour":
            return position // (count * 3_600_000_000)
        local = self._local(position)
        if self.every.unit in {"month", "year"}:
            months = count * (12 if self.every.unit == "year" else 1)
            return _month_index(local) // months
        days = local.toordinal() - 1  # the first day of year 1 was a Monday
        return days // (count * (7 if self.every.unit == "week" else 1))

    def _start(self, index: int) -> int:
        if isinstance(self.every, int):
            return index * self.every
        count = self.every.count
        if self.every.unit == "hour":
            return index * count * 3_600_000_000
        if self.every.unit in {"month", "year"}:
            return self._position(_month(index * count * (12 if self.every.unit == "year" else 1)))
        days = index * count * (7 if self.every.unit == "week" else 1)
        return self._position(datetime.fromordinal(days + 1))

    def _local(self, position: int) -> datetime:
        moment = EPOCH + position * MICROSECOND
        zone = UTC if self._is_zoneless else ZoneInfo(self.zone)
        return moment.astimezone(zone).replace(tzinfo=None)

    def _position(self, local: datetime) -> int:
        zone = UTC if self._is_zoneless else ZoneInfo(self.zone)
        return (local.replace(tzinfo=zone) - EPOCH) // MICROSECOND

    @property
    def _is_zoneless(self) -> bool:
        return self.kind in {"wall", "date"} or (isinstance(self.every, Span) and self.every.unit == "hour")


_SUFFIX = {
    "hour": "%Y_%m_%d_%H",
    "day": "%Y_%m_%d",
    "week": "%G_w%V",
    "month": "%Y_%m",
    "year": "%Y",
}


def _month_index(local: datetime) -> int:
    return local.year * 12 + local.month - 1


def _month(index: int) -> datetime:
    return datetime(index // 12, index % 12 + 1, 1)  # noqa: DTZ001 - a wall clock's day


def _micros(value: str) -> int:
    if value == "-infinity" or value.endswith(" BC"):
        return BEFORE_TIME
    if value == "infinity" or _FAR_YEAR.match(value):
        return AFTER_TIME
    moment = datetime.fromisoformat(value)
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - EPOCH) // MICROSECOND


def make_axis(policy: PartitionPolicy, key_type: str) -> Axis:
    """Choose the axis of a key of this SQL type; raises ConfigError where type and policy do not fit."""
    kind = _KINDS.get(key_type)
    wants_time = isinstance(policy.every, Span)
    if kind is None:
        raise ConfigError(
            f"'{policy.table}' is partitioned by '{policy.key}' of type {key_type}, which cannot be rolled",
            hint=f"known types: {', '.join(_KINDS)}",
        )
    if kind == "integer" and wants_time:
        if policy.epoch is None:
            raise ConfigError(
                f"'{policy.table}': every is '{policy.every}', but '{policy.key}' is an {key_type}",
                hint="give every as a number of key values, or say in 'epoch' that the key counts time",
            )
        kind = "epoch"
    elif not wants_time and kind != "integer":
        raise ConfigError(
            f"'{policy.table}': every is {policy.every}, but '{policy.key}' is a {key_type}",
            hint="give every as a span such as '1 month'",
        )
    if kind == "date" and isinstance(policy.every, Span) and policy.every.unit == "hour":
        raise ConfigError(
            f"'{policy.table}': a date has no hours, every is '{policy.every}'",
            hint="give every in days or more",
        )
    unit = _EPOCH_UNITS[policy.epoch] if kind == "epoch" and policy.epoch else 1
    return Axis(kind=kind, zone=policy.zone, every=policy.every, epoch_unit=unit)
