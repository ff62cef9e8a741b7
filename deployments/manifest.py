"""prefect.yaml as strict models: Prefect ignores a key that it does not know, pgvigil refuses it."""

from __future__ import annotations

import difflib
import os
import re
import zoneinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from pgvigil.errors import ConfigError
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pgvigil.fleet import Fleet

FILE = Path(__file__).resolve().parents[1] / "prefect.yaml"
CLUSTER = "PGVIGIL_CLUSTER"
DATABASE = "PGVIGIL_DATABASE"
Kind = Literal["clusters", "partitioned databases", "partitioned tables", "migrated databases", "backfills"]
_PLACE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")


def _known_zone(name: str) -> str:
    if name not in zoneinfo.available_timezones():
        raise ValueError(f"'{name}' is no IANA time zone such as Europe/Berlin or Etc/UTC")
    return name


class ScheduleEntry(Frozen):
    """One schedule; its slug is its identity, and whether it is paused is the operator's alone."""

    slug: str = Field(min_length=1)
    cron: str
    timezone: Annotated[str, AfterValidator(_known_zone)]
    parameters: dict[str, Any] = Field(default_factory=dict)


class WorkPool(Frozen):
    """Where a deployment's runs go."""

    name: str


class FormField(Frozen):
    """What prefect.yaml says about one field beyond the flow's signature."""

    choose: Kind | None = None
    default: bool | int | str | None = None


class DeploymentEntry(Frozen):
    """One deployment; the entry point is a module path, never a file."""

    name: str
    entrypoint: str = Field(pattern=r"^[a-z_][\w.]*:[a-z_]\w*$")
    description: str = ""
    tags: tuple[str, ...] = ()
    parameters: dict[str, Any] = Field(default_factory=dict)
    work_pool: WorkPool
    schedules: tuple[ScheduleEntry, ...] = ()
    enforce_parameter_schema: bool = True
    form: dict[str, FormField] = Field(default_factory=dict)


class Manifest(Frozen):
    """The whole of prefect.yaml; `definitions` hold anchors only."""

    name: str
    prefect_version: str | None = Field(default=None, alias="prefect-version")
    pull: tuple[dict[str, dict[str, Any]], ...] = ()
    definitions: dict[str, Any] = Field(default_factory=dict)
    deployments: tuple[DeploymentEntry, ...]


def load_manifest(clusters: Iterable[str], file: Path = FILE, databases: Iterable[str] = ()) -> Manifest:
    """Read prefect.yaml, checked and with every place filled in; raises ConfigError naming the key.

    `databases` are written cluster/database: those whose partitions the fleet file has a policy for.
    """
    subjects = {CLUSTER: tuple(clusters), DATABASE: tuple(databases)}
    document = _read(file)
    home = os.environ.get("PGVIGIL_HOME") or str(file.resolve().parent)
    for deployment in document.get("deployments") or ():
        if isinstance(deployment, dict) and isinstance(deployment.get("schedules"), list):
            deployment["schedules"] = _per_subject(deployment["schedules"], subjects)
            _share_only_parameters(deployment)
    try:
        return Manifest.model_validate(fill(document, {**os.environ, "PGVIGIL_HOME": home}))
    except ValidationError as error:
        faults = "; ".join(_fault(item, document) for item in error.errors())
        raise ConfigError(f"'{file}': {faults}", hint="Prefect would have ignored or refused it") from error


def read_manifest(fleet: Fleet, file: Path | None = None) -> Manifest:
    """Read prefect.yaml for the clusters and databases of a fleet file."""
    rolled = [
        f"{cluster}/{database}"
        for cluster, settings in fleet.clusters.items()
        for database, own in settings.databases.items()
        if own.partitions
    ]
    return load_manifest(fleet.clusters, file or FILE, rolled)


def _read(file: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{file}': {error.strerror}", hint="name it with --file") from error
    except yaml.YAMLError as error:
        place = " ".join(str(error).split())
        raise ConfigError(f"'{file}' is not valid YAML: {place}", hint="correct it there") from error
    if not isinstance(document, dict):
        raise ConfigError(f"'{file}' holds no keys", hint="it needs name and deployments")
    return document


def _per_subject(schedules: list[Any], subjects: Mapping[str, tuple[str, ...]]) -> list[Any]:
    """Repeat each schedule that names a cluster or a database for every one of them."""
    repeated = []
    for schedule in schedules:
        place = next((place for place in subjects if place in str(schedule)), None)
        names = subjects[place] if place else ("",)
        repeated += [fill(schedule, {place or "": name}) for name in names]
    return repeated


def _share_only_parameters(deployment: dict[str, Any]) -> None:
    """Give a deployment with one schedule that schedule's parameters as well.

    They fill its form, and they stand when Prefect's server drops the schedule's own: 3.8.8 does that to
    every schedule that is paused and resumed by itself.
    """
    schedules = deployment["schedules"]
    if len(schedules) == 1 and isinstance(schedules[0], dict) and "parameters" not in deployment:
        deployment["parameters"] = dict(schedules[0].get("parameters") or {})


def fill(value: Any, names: Mapping[str, str]) -> Any:
    """Put values in place of {{ $NAME }}; a name that is not known stays, for who knows it."""
    if isinstance(value, dict):
        return {key: fill(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, names) for item in value]
    if isinstance(value, str):
        return _PLACE.sub(lambda match: names.get(match[1], match[0]), value)
    return value


def _fault(item: Any, document: dict[str, Any]) -> str:
    path = ".".join(_label(item["loc"][: n + 1], document) for n in range(len(item["loc"])))
    if item["type"] == "missing":
        return f"{path} is missing"
    if item["type"] == "extra_forbidden":
        known = _keys_at(item["loc"][:-1])
        close = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        return f"{path} is unknown; " + (
            f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
        )
    return f"{path}: {item['msg'].removeprefix('Value error, ')}"


def _label(location: tuple[int | str, ...], document: Any) -> str:
    """Call a list's entry by its name or slug, which people know, and not by its number."""
    for part in location:
        document = document[part] if not isinstance(document, dict) or part in document else {}
    if isinstance(location[-1], int) and isinstance(document, dict):
        return str(document.get("name") or document.get("slug") or location[-1])
    return str(location[-1])


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    model: type[Frozen] = Manifest
    for part in location:
        model = _NESTED.get(str(part), model)
    return sorted(field.alias or name for name, field in model.model_fields.items())


_NESTED: dict[str, type[Frozen]] = {
    "deployments": DeploymentEntry,
    "schedules": ScheduleEntry,
    "work_pool": WorkPool,
    "form": FormField,
}
