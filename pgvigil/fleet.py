"""The fleet file: which clusters there are and the policy of each, as strict models."""

from __future__ import annotations

import difflib
import os
import re
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from typing_extensions import override

from pgvigil.errors import ConfigError
from pgvigil.postgres import has_password
from pgvigil.reports import Frozen

Item = TypeVar("Item")

DEFAULT_FILE = "./fleet.yaml"

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


def _write_duration(value: timedelta) -> str:
    return f"{value.total_seconds():.6f}".rstrip("0").rstrip(".") + "s"


Duration = Annotated[
    timedelta,
    BeforeValidator(_read_duration),
    AfterValidator(_require_bounds),
    PlainSerializer(_write_duration),
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
    return value


AbsolutePath = Annotated[Path, AfterValidator(_require_absolute)]
Dsn = Annotated[str, AfterValidator(_refuse_password)]


class AuditSettings(Frozen):
    """Where evidence lives: a database other than those operated on, a report store, and a spool."""

    dsn: Dsn = Field(description="libpq connection string of the audit store, without a password")
    reports: str = Field(description="s3://bucket/prefix or file:///path of the report store")
    spool: AbsolutePath = Field(
        default=Path("/var/lib/pgvigil/spool"),
        description="directory that takes audit events while the audit store is away",
    )


class S3Settings(Frozen):
    """How the object store is reached; credentials come from boto3's own chain, never from here."""

    endpoint_url: str | None = None
    region: str | None = None
    sse: Literal["aws:kms", "AES256"] | None = None
    kms_key_id: str | None = None
    storage_class: str | None = None
    ca_file: AbsolutePath | None = Field(
        default=None, description="certificates that the endpoint is checked against"
    )


class PgBackRestSettings(Frozen):
    """How pgBackRest is started for this cluster, on this host or through a command prefix."""

    stanza: str
    config: AbsolutePath | None = None
    command: tuple[str, ...] = Field(
        default=("pgbackrest",),
        min_length=1,
        description="the program, after ssh, docker exec -i or kubectl exec -i where it runs elsewhere",
    )
    user: str | None = Field(default=None, description="user to run as when pgvigil itself runs as root")
    deadline: Duration = Field(default=timedelta(hours=24), description="longest time one command may take")
    stall: Duration = Field(
        default=timedelta(minutes=30), description="a command that neither writes nor works so long is ended"
    )


class Retention(Frozen):
    """What is kept at least: so many proven full backups, and every full younger than `days`."""

    fulls: int = Field(default=2, ge=1)
    days: int = Field(default=0, ge=0)


class BackupPolicy(Frozen):
    """When which backup type is taken, and what a proof is worth."""

    full_every: Duration = timedelta(days=7)
    diff_every: Duration | None = None
    max_chain: int = Field(default=14, ge=1, description="backups that may depend on one full")
    wal_ratio: float = Field(
        default=1.0,
        gt=0,
        description="WAL since the last full, in sizes of that full, that calls for a new one",
    )
    retention: Retention | None = Field(default=None, description="without it pgvigil expires nothing")
    fresh: Duration = Field(default=timedelta(hours=26), description="older proof is stale in pgvigil status")
    wait: Annotated[Duration, AfterValidator(_require_server_timeout)] = Field(
        default=timedelta(minutes=1), description="how long to wait for a busy stanza"
    )
    max_ready: int = Field(
        default=64, ge=0, description="WAL files waiting for the archiver that call for a warning"
    )
    clock_skew: Duration = timedelta(seconds=5)


class KnownLoss(Frozen):
    """WAL that is known to be lost: told in the report until a day, but no alarm."""

    timeline: int = Field(ge=1)
    first: str = Field(pattern=r"^[0-9A-F]{24}$", description="name of the first lost segment, in quotes")
    last: str = Field(pattern=r"^[0-9A-F]{24}$", description="name of the last lost segment, in quotes")
    reason: str = Field(min_length=1)
    until: date = Field(description="from the day after on it is an alarm again")
    repo: int | None = Field(default=None, description="the repository that lacks it; all, if not given")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        if {int(self.first[:8], 16), int(self.last[:8], 16)} != {self.timeline} or self.first > self.last:
            raise ValueError(f"first and last must be ascending segment names of timeline {self.timeline}")
        return self


class WalPolicy(Frozen):
    """What the WAL archive must hold, and how often its content is proven again."""

    max_delay: Duration = Field(
        default=timedelta(minutes=15), description="longest time that finished WAL may wait for the archiver"
    )
    max_delayed_segments: int = Field(default=64, ge=0, description="segments that may wait at once")
    prove_every: Duration = Field(
        default=timedelta(days=30),
        description="every segment's content is read again within this time; new and changed ones at once",
    )
    prove_for: Duration = Field(
        default=timedelta(hours=6), description="longest time that one run reads content; the next goes on"
    )
    readers: int = Field(default=2, ge=1, le=32, description="segments that are read at the same time")
    continuous_fulls: int | None = Field(
        default=None,
        ge=1,
        description="so many newest fulls can be restored to any later point (repo-retention-archive); "
        "older backups need their own WAL only. Without it, all of them",
    )
    heartbeat: bool = Field(
        default=True, description="commit a mark, switch WAL and measure until it is stored"
    )
    heartbeat_wait: Duration = Field(default=timedelta(minutes=1), description="how long to wait for it")
    second_opinion: bool = Field(
        default=True, description="run 'pgbackrest verify' once per prove_every and compare"
    )
    known_losses: tuple[KnownLoss, ...] = ()
    fresh: Duration = Field(default=timedelta(hours=26), description="older proof is stale in pgvigil status")


class DatabaseSettings(Frozen):
    """One database of a cluster; its pipelines add their own keys here."""


class ClusterSettings(Frozen):
    """One PostgreSQL instance with one pgBackRest stanza."""

    dsn: Dsn
    pgbackrest: PgBackRestSettings
    backup: BackupPolicy = BackupPolicy()
    wal: WalPolicy = WalPolicy()
    databases: dict[str, DatabaseSettings] = Field(default_factory=dict)


class Fleet(Frozen):
    """The whole fleet file."""

    audit: AuditSettings
    s3: S3Settings = S3Settings()
    clusters: dict[str, ClusterSettings] = Field(min_length=1)

    def cluster(self, name: str) -> ClusterSettings:
        """Return a cluster, or raise ConfigError with the nearest name."""
        return _pick(self.clusters, name, "cluster")

    def database(self, subject: str) -> tuple[ClusterSettings, str, DatabaseSettings]:
        """Split `cluster/database` and return both settings, or raise ConfigError."""
        cluster, slash, database = subject.partition("/")
        if not slash or not database:
            raise ConfigError(
                f"a database is named cluster/database, got '{subject}'", hint=_databases_hint(self)
            )
        settings = self.cluster(cluster)
        return settings, database, _pick(settings.databases, database, f"database of cluster '{cluster}'")


def _databases_hint(fleet: Fleet) -> str:
    names = [f"{c}/{d}" for c, settings in fleet.clusters.items() for d in settings.databases]
    return f"the fleet file has {', '.join(names)}" if names else "the fleet file names no database"


def _pick(items: dict[str, Item], name: str, what: str) -> Item:
    if name in items:
        return items[name]
    raise ConfigError(f"unknown {what} '{name}'", hint=_suggest(name, items), known=sorted(items))


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"the fleet file has {', '.join(sorted(known)) or 'none'}"


def fleet_path() -> Path:
    """Return the fleet file's path: PGVIGIL_FLEET, else ./fleet.yaml."""
    return Path(os.environ.get("PGVIGIL_FLEET") or DEFAULT_FILE)


def load_fleet(path: Path | None = None) -> Fleet:
    """Read and check the fleet file; every fault leaves as one ConfigError that names key and cure."""
    file = path or fleet_path()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"no fleet file at '{file}'", hint="set PGVIGIL_FLEET, or write one: see 'pgvigil fleet schema'"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read fleet file '{file}': {error}", hint="check its owner, mode and encoding (UTF-8)"
        ) from error
    data = _parse(file, text)
    if not isinstance(data, dict):
        raise ConfigError(
            f"fleet file '{file}' holds {type(data).__name__}, not keys and values",
            hint="it has the keys audit, s3 and clusters: see 'pgvigil fleet schema'",
        )
    try:
        return Fleet.model_validate(data)
    except ValidationError as error:
        raise ConfigError(*_explain(file, error)) from None  # it quotes its input, which may be a password


class _Loader(yaml.SafeLoader):
    """Reads YAML like its base, and refuses what that would guess at or stumble over."""

    @override
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' stands there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return node

    @override
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError):  # PyYAML's own, for a bad scalar
            raise yaml.MarkedYAMLError(
                problem=f"cannot read '{str(node.value)[:40]}': quote it if it is text",
                problem_mark=node.start_mark,
            ) from None


def _parse(file: Path, text: str) -> object:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"fleet file '{file}'{place}: {problem}", hint="it must be valid YAML") from error
    except RecursionError:
        raise ConfigError(
            f"fleet file '{file}' is nested too deeply", hint="look for brackets that are not closed"
        ) from None


def _explain(file: Path, error: ValidationError) -> tuple[str]:
    faults = [_fault(item["loc"], item["type"], item["msg"]) for item in error.errors()]
    return (f"fleet file '{file}': " + "; ".join(faults),)


def _fault(location: tuple[int | str, ...], kind: str, message: str) -> str:
    path = ".".join(str(part) for part in location)
    if kind == "missing":
        return f"{path} is missing"
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        return f"{path} is unknown" + (f"; {_suggest(str(location[-1]), known)}" if known else "")
    told = message.removeprefix("Value error, ")
    return f"{path}: {told[0].lower()}{told[1:]}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the model at a location, walking the schema as the file is nested."""
    schema: dict[str, Any] = Fleet.model_json_schema()
    node = schema
    for part in location:
        node = _resolve(schema, node)
        child = node.get("properties", {}).get(part) or node.get("additionalProperties")
        if not isinstance(child, dict):
            return []
        node = child
    return sorted(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    for option in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
        if "$ref" in option:
            found: dict[str, Any] = schema["$defs"][option["$ref"].rsplit("/", 1)[1]]
            return found
    return node
