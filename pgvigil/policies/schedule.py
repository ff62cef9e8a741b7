"""When something runs: a cron expression and the time zone in which it is read."""

from __future__ import annotations

import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Annotated

from pydantic import AfterValidator, Field

from pgvigil.reports import Frozen

_LOOK_AHEAD = timedelta(days=366)
_STEP = timedelta(minutes=30)  # no zone changes its clock between these
_PART = re.compile(r"^(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,2}))?$")


def _known_zone(name: str) -> str:
    if name not in zoneinfo.available_timezones():
        raise ValueError(f"'{name}' is no IANA time zone such as Europe/Berlin or Etc/UTC")
    return name


Zone = Annotated[str, AfterValidator(_known_zone)]


def _five_fields(cron: str) -> str:
    fields = cron.split()
    if len(fields) != 5 or not hours_of(cron):
        raise ValueError(f"'{cron}' is no cron expression of five fields such as '30 3 * * *'")
    return " ".join(fields)


class Schedule(Frozen):
    """A time that comes again; the zone is always said, because the server's own is nobody's choice."""

    cron: Annotated[str, AfterValidator(_five_fields)] = Field(
        description="minute, hour, day of the month, month, day of the week"
    )
    timezone: Zone = Field(description="such as Europe/Berlin")

    @property
    def peril(self) -> str:
        """Say what daylight saving does to this schedule; empty where it does nothing."""
        hours = sorted(hours_of(self.cron) & bent_hours(self.timezone, datetime.now(UTC)))
        if not hours:
            return ""
        spans = ", ".join(f"{hour:02d}:00-{hour + 1:02d}:00" for hour in hours)
        return f"the clock of {self.timezone} skips or repeats {spans} when daylight saving begins or ends"


def hours_of(cron: str) -> frozenset[int]:
    """Return the hours of the day at which a cron expression may be due; none if it cannot be read."""
    fields = cron.split()
    found: set[int] = set()
    for part in fields[1].split(",") if len(fields) > 1 else ():
        match = _PART.match(part)
        if match is None:
            return frozenset()
        first, last, step = match.groups()
        begin = int(first or 0)
        # '8' is one hour, '8/2' begins there, '*' and '*/2' are the whole day.
        end = int(last) if last else (23 if step or not first else begin)
        found.update(range(begin, end + 1, int(step or 1) or 24))
    return frozenset(found) if found <= set(range(24)) else frozenset()


def bent_hours(zone: str, since: datetime) -> frozenset[int]:
    """Return the hours of the day that a zone's clock skips or repeats within a year."""
    place = zoneinfo.ZoneInfo(zone)
    bent: set[int] = set()
    moment = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    before = moment.astimezone(place).utcoffset()
    for _ in range(_LOOK_AHEAD // _STEP):
        moment += _STEP
        after = moment.astimezone(place).utcoffset()
        if before != after and before is not None and after is not None:
            first, last = sorted((moment + before, moment + after))
            bent |= {(first + _STEP * n).hour for n in range((last - first) // _STEP)}
        before = after
    return frozenset(bent)
