"""The fleet file: which clusters there are and the policy of each, as strict models."""

from __future__ import annotations

import difflib
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import override

from pgvigil import yamlfile
from pgvigil.errors import ConfigError
from pgvigil.policies.alarms import AlarmPolicy
from pgvigil.policies.backfills import BackfillPolicy
from pgvigil.policies.backup import BackupPolicy
from pgvigil.policies.clocks import duties_of
from pgvigil.policies.drill import DrillPolicy
from pgvigil.policies.partitions import PartitionPolicy
from pgvigil.policies.schedule import Schedule
from pgvigil.policies.units import AbsolutePath, Dsn, Duration, Name, ReportStoreUri, write_duration
from pgvigil.policies.wal import WalPolicy
from pgvigil.policies.waves import WavePolicy, covers
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Item = TypeVar("Item")

DEFAULT_FILE = "./fleet.yaml"
_TOLD = 20
FLEET = "fleet"  # the subject of a run that looks at all of it


class AuditSettings(Frozen):
    """Where evidence lives: a database other than those operated on, a report store, and a spool."""

    dsn: Dsn = Field(description="libpq connection string of the audit store, without a password")
    reports: ReportStoreUri = Field(description="s3://bucket/prefix or file:///path of the report store")
    spool: AbsolutePath = Field(
        default=Path("/var/lib/pgvigil/spool"),
        description="directory that takes audit events while the audit store is away",
    )


class S3Settings(Frozen):
    """How the object store is reached; credentials come from boto3's own chain, never from here."""

    endpoint_url: str | None = Field(default=None, description="an S3-compatible store; without it, AWS")
    region: str | None = Field(default=None, description="without it, boto3's own choice")
    sse: Literal["aws:kms", "AES256"] | None = Field(
        default=None, description="server-side encryption asked for with every upload"
    )
    kms_key_id: str | None = Field(default=None, description="the key of aws:kms; without it, the bucket's")
    storage_class: str | None = Field(
        default=None, description="such as STANDARD_IA; without it, the bucket's"
    )
    ca_file: AbsolutePath | None = Field(
        default=None, description="certificates that the endpoint is checked against"
    )


class PgBackRestSettings(Frozen):
    """How pgBackRest is started for this cluster, on this host or through a command prefix."""

    stanza: Name = Field(description="the stanza of this cluster")
    config: AbsolutePath | None = Field(
        default=None, description="its pgbackrest.conf, where the command runs; without it the usual"
    )
    command: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("pgbackrest",),
        min_length=1,
        description="the program, after ssh, docker exec -i or kubectl exec -i where it runs elsewhere",
    )
    user: str | None = Field(default=None, description="user to run as when pgvigil itself runs as root")
    deadline: Duration = Field(default=timedelta(hours=24), description="longest time one command may take")
    stall: Duration = Field(
        default=timedelta(minutes=30), description="a command that neither writes nor works so long is ended"
    )


class SubjectSettings(Frozen):
    """What a cluster and a database have in common: how waves find them, or leave them out."""

    tags: tuple[str, ...] = Field(default=(), description="words that a wave may select by")
    schedules: dict[str, Schedule] = Field(
        default_factory=dict,
        description="by pipeline, a time of its own: the fleet's wave then leaves this one out",
    )

    @model_validator(mode="after")
    def _schedule_duties_only(self) -> Self:
        for pipeline in self.schedules:
            if pipeline not in duties_of(self):
                raise ValueError(f"schedules.{pipeline}: {_no_pipeline(pipeline, duties_of(self))}")
        return self


class DatabaseSettings(SubjectSettings):
    """One database of a cluster; its pipelines add their own keys here."""

    partitions: tuple[PartitionPolicy, ...] = Field(
        default=(), description="partitioned tables that roll_partitions looks after"
    )
    backfills: dict[str, BackfillPolicy] = Field(default_factory=dict, description="data migrations, by name")

    @model_validator(mode="after")
    def _no_table_twice(self) -> Self:
        """Refuse two policies for one table: each would roll it by its own rules."""
        known: dict[tuple[str, str], str] = {}
        for policy in self.partitions:
            if policy.name in known:
                raise ValueError(f"partitions: '{known[policy.name]}' and '{policy.table}' are one table")
            known[policy.name] = policy.table
        return self

    def backfill(self, name: str) -> BackfillPolicy:
        """Return a backfill, or raise ConfigError with the nearest name."""
        return _pick(self.backfills, name, "backfill")


class ClusterSettings(SubjectSettings):
    """One PostgreSQL instance with one pgBackRest stanza."""

    dsn: Dsn = Field(description="libpq connection string of the cluster, without a password")
    pgbackrest: PgBackRestSettings
    backup: BackupPolicy = BackupPolicy()
    wal: WalPolicy = WalPolicy()
    drill: DrillPolicy = DrillPolicy()
    databases: dict[str, DatabaseSettings] = Field(
        default_factory=dict, description="the databases with pipelines of their own, by name"
    )

    @property
    def drill_pgbackrest(self) -> PgBackRestSettings:
        """How drills start pgBackRest: as drill.pgbackrest says, or else like everybody."""
        own = self.drill.pgbackrest
        return self.pgbackrest.model_copy(update=own.model_dump()) if own else self.pgbackrest


class Fleet(Frozen):
    """The whole fleet file."""

    audit: AuditSettings
    s3: S3Settings = S3Settings()
    alarms: AlarmPolicy = AlarmPolicy()
    clusters: dict[Name, ClusterSettings] = Field(min_length=1, description="the clusters, by name")
    waves: dict[str, WavePolicy] = Field(
        default_factory=dict, description="by pipeline, how its scheduled run goes over the fleet"
    )

    @model_validator(mode="after")
    def _waves_mean_somebody(self) -> Self:
        """Refuse a wave whose words mean nobody: a typo there would leave a database unwatched."""
        for pipeline, policy in self.waves.items():
            subjects = [subject for subject, settings in self.subjects() if pipeline in duties_of(settings)]
            if not subjects:
                raise ValueError(f"waves.{pipeline}: {_no_pipeline(pipeline, self.pipelines())}")
            for pattern in (*policy.names, *policy.leave_out):
                if not any(covers(pattern, subject) for subject in subjects):
                    raise ValueError(f"waves.{pipeline}: '{pattern}' means none of {_some(subjects)}")
            for tag in policy.tags:
                if not any(tag in self.tags(subject) for subject in subjects):
                    raise ValueError(f"waves.{pipeline}.tags: nobody has the tag '{tag}'")
        return self

    def subjects(self) -> Iterator[tuple[str, ClusterSettings | DatabaseSettings]]:
        """Yield every cluster and every database of it, by the name that flows are given."""
        for name, cluster in self.clusters.items():
            yield name, cluster
            for database, settings in cluster.databases.items():
                yield f"{name}/{database}", settings

    def databases(self) -> Iterator[tuple[str, DatabaseSettings]]:
        """Yield every database as cluster/database."""
        for name, settings in self.subjects():
            if isinstance(settings, DatabaseSettings):
                yield name, settings

    def tags(self, subject: str) -> frozenset[str]:
        """Return a subject's tags; a database has those of its cluster as well."""
        cluster, _, database = subject.partition("/")
        settings = self.clusters[cluster]
        own = settings.databases[database].tags if database else ()
        return frozenset((*settings.tags, *own))

    def pipelines(self) -> tuple[str, ...]:
        """Name what is run unattended for anybody in the fleet."""
        return tuple(dict.fromkeys(name for _, settings in self.subjects() for name in duties_of(settings)))

    def runs(self, pipeline: str) -> bool:
        """Tell whether a pipeline is run unattended for anybody in the fleet."""
        return any(pipeline in duties_of(settings) for _, settings in self.subjects())

    def wave(self, pipeline: str) -> WavePolicy:
        """Return how a pipeline goes over the fleet, or raise ConfigError with the nearest name."""
        if not self.runs(pipeline):
            known = self.pipelines()
            raise ConfigError(_no_pipeline(pipeline, known), hint=_suggest(pipeline, known))
        return self.waves.get(pipeline, WavePolicy())

    def whole(self, subject: str) -> None:
        """Raise ConfigError unless the subject is all of it."""
        if subject != FLEET:
            raise ConfigError(f"'{subject}' is not the whole fleet", hint=f"it is called '{FLEET}'")

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


def _no_pipeline(name: str, known: Iterable[str]) -> str:
    return f"nothing here runs '{name}' unattended; known: {', '.join(known) or 'none'}"


def _databases_hint(fleet: Fleet) -> str:
    names = [f"{c}/{d}" for c, settings in fleet.clusters.items() for d in settings.databases]
    return f"the fleet file has {_some(names)}" if names else "the fleet file names no database"


def _pick(items: dict[str, Item], name: str, what: str) -> Item:
    if name in items:
        return items[name]
    raise ConfigError(f"unknown {what} '{name}'", hint=_suggest(name, items), known=sorted(items))


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"the fleet file has {_some(sorted(known)) or 'none'}"


def _some(names: Sequence[str]) -> str:
    """Name as many as a message can hold, and count the others."""
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more


class _Schema(GenerateJsonSchema):
    """Writes defaults as the file does: Pydantic's own word for a duration is one that the file refuses."""

    @override
    def encode_default(self, dft: Any) -> Any:
        return write_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def fleet_schema() -> dict[str, Any]:
    """Return the JSON Schema of the fleet file, for editors and for the reference."""
    return Fleet.model_json_schema(schema_generator=_Schema)


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
    except IsADirectoryError:
        raise ConfigError(
            f"fleet file '{file}' is a directory", hint="name the file in it: PGVIGIL_FLEET=DIR/fleet.yaml"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"cannot read fleet file '{file}': {error.strerror}", hint="check its owner and mode"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"fleet file '{file}' is not UTF-8: {error}", hint="save it as UTF-8") from error
    data = yamlfile.parse(f"fleet file '{file}'", text)
    if not isinstance(data, dict):
        raise ConfigError(
            f"fleet file '{file}' holds {type(data).__name__}, not keys and values",
            hint="it has the keys audit, s3 and clusters: see 'pgvigil fleet schema'",
        )
    try:
        return Fleet.model_validate(data)
    except ValidationError as error:
        # Without its cause, which quotes its input, and that may be a password.
        raise ConfigError(
            _explain(file, error), hint="correct it there; 'pgvigil fleet schema' has what each key takes"
        ) from None


def _explain(file: Path, error: ValidationError) -> str:
    faults = [_fault(item["loc"], item["type"], item["msg"]) for item in error.errors()]
    return f"fleet file '{file}': " + "; ".join(faults)


_SAID = {
    "string_type": "must be text: quote it",
    "model_type": "must be keys with values",
    "dict_type": "must be keys with values",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
}


def _fault(location: tuple[int | str, ...], kind: str, message: str) -> str:
    path = ".".join(str(part) for part in location if part != "[key]")
    if kind == "missing":
        return f"{path} is missing"
    if kind == "extra_forbidden":
        known = _fields_at(location[:-1])
        return f"{path} is unknown" + (f"; {_suggest(str(location[-1]), known)}" if known else "")
    told = _SAID.get(kind) or message.removeprefix("Value error, ")
    told = f"{told[0].lower()}{told[1:]}"
    return f"{path}: {told}" if path else told


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
