"""Durations, names, paths and addresses as the fleet file writes them."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from pgvigil.errors import ConfigError
from pgvigil.postgres import has_password, is_readable

_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*$")
_UNITS = {"ms": 0.001, "s": 1, "min": 60, "m": 60, "h": 3600, "d": 86400, "w": 604800}

_SHORTEST = timedelta(milliseconds=1)  # less would reach the server as 0, which it takes for no limit at all
_LONGEST = timedelta(days=36500)
_LONGEST_WAIT = timedelta(days=12)  # twice that is a statement timeout, milliseconds in 31 bits


def _read_duration(value: object) -> object:
    if isinstance(value, timedelta):
        return value
    if not isinstance(value, str):
        raise ValueError("a duration is text with a unit: write '7d'")  # noqa: TRY004 - pydantic collects these
    match = _DURATION.match(value.lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"a duration is a number and one of {', '.join(_UNITS)}, as in '7d' or '90s'")
    try:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        return timedelta.max


def _require_bounds(value: timedelta) -> timedelta:
    if not _SHORTEST <= value <= _LONGEST:
        raise ValueError(f"a duration is at least 1ms and at most {_LONGEST.days}d")
    return value


def parse_duration(text: str) -> timedelta:
    """Read a duration that stands elsewhere than in the fleet file; raises ConfigError."""
    try:
        return TypeAdapter(Duration).validate_python(text)
    except ValidationError as error:
        told = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"'{text}' is no duration", hint=told) from error


def write_duration(value: timedelta) -> str:
    """Write a duration as the fleet file does, in the largest unit that leaves no fraction: `26h`, `7d`."""
    microseconds = value // timedelta(microseconds=1)
    for unit in ("d", "h", "min", "s", "ms"):
        size = round(_UNITS[unit] * 1_000_000)
        if microseconds >= size and microseconds % size == 0:
            return f"{microseconds // size}{unit}"
    return f"{microseconds / 1000:.3f}".rstrip("0").rstrip(".") + "ms"


Duration = Annotated[
    timedelta,
    BeforeValidator(_read_duration),
    AfterValidator(_require_bounds),
    PlainSerializer(write_duration),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|min|h|d|w)$", "examples": ["7d"]}),
]


def _require_server_timeout(value: timedelta) -> timedelta:
    if value > _LONGEST_WAIT:
        raise ValueError(f"a wait is at most {_LONGEST_WAIT.days}d for a lock")
    return value


def _require_absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f"'{value}' must be an absolute path: it is read elsewhere than this file")
    return value


def _refuse_password(value: str) -> str:
    if has_password(value):
        raise ValueError("it holds a password; put that into the password file (PGPASSFILE) or service file")
    if not is_readable(value):  # unspoken: what libpq cannot read may hold a password as well
        raise ValueError("libpq cannot read it; write postgresql://role@host:port/database")
    return value


def _require_name(value: str) -> str:
    if not value.strip() or "/" in value:
        raise ValueError("a name is not empty and has no '/'")
    return value


def _require_report_store(value: str) -> str:
    if not value.startswith(("s3://", "file:///")):
        raise ValueError("write s3://bucket/prefix or file:///directory")
    return value


AbsolutePath = Annotated[Path, AfterValidator(_require_absolute)]
Dsn = Annotated[str, AfterValidator(_refuse_password)]
Name = Annotated[str, AfterValidator(_require_name)]
ReportStoreUri = Annotated[str, AfterValidator(_require_report_store)]
ServerWait = Annotated[Duration, AfterValidator(_require_server_timeout)]
