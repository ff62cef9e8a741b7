"""prefect.yaml as strict models: Prefect ignores a key that it does not know, pgvigil refuses it."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from pgvigil import yamlfile
from pgvigil.errors import ConfigError
from pgvigil.policies.clocks import duties_of
from pgvigil.policies.schedule import Schedule
from pgvigil.reports import Frozen
from pgvigil.waves.selection import Member, select

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pgvigil.fleet import Fleet

FILE = Path(__file__).resolve().parents[1] / "prefect.yaml"
Kind = Literal["clusters", "partitioned databases", "partitioned tables", "migrated databases", "backfills"]
_PLACE = re.compile(r"\{\{\s*\$(\w+)\s*\}\}")
_WAVE = "flows.watch_fleet:watch_fleet"


class ScheduleEntry(Schedule):
    """One schedule; its slug is its identity, and whether it is paused is the operator's alone."""

    slug: str = Field(min_length=1)
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

    @property
    def wave(self) -> str:
        """The pipeline that it takes over the fleet; empty for every other deployment."""
        return str(self.parameters.get("pipeline", "")) if self.entrypoint == _WAVE else ""


class Manifest(Frozen):
    """The whole of prefect.yaml; `definitions` hold anchors only."""

    name: str
    prefect_version: str | None = Field(default=None, alias="prefect-version")
    pull: tuple[dict[str, dict[str, Any]], ...] = ()
    definitions: dict[str, Any] = Field(default_factory=dict)
    deployments: tuple[DeploymentEntry, ...]


def load_manifest(file: Path = FILE) -> Manifest:
    """Read prefect.yaml, checked and with every place filled in; raises ConfigError naming the key."""
    document = read_yaml(file)
    home = os.environ.get("PGVIGIL_HOME") or str(file.resolve().parent)
    try:
        return Manifest.model_validate(fill(document, {**os.environ, "PGVIGIL_HOME": home}))
    except ValidationError as error:
        faults = "; ".join(_fault(item, document) for item in error.errors())
        raise ConfigError(f"'{file}': {faults}", hint="Prefect would have ignored or refused it") from error


def read_manifest(fleet: Fleet, file: Path | None = None) -> Manifest:
    """Read prefect.yaml and give its deployments the schedules that the fleet file asks for.

    A wave has a schedule as long as it has members: its own of the fleet file, or that of prefect.yaml. A
    pipeline has one for every subject with a time of its own.
    """
    found = load_manifest(file or FILE)
    deployments = tuple(_scheduled(entry, fleet) for entry in found.deployments)
    return found.model_copy(update={"deployments": deployments})


def perils(manifest: Manifest) -> tuple[str, ...]:
    """Say which schedules daylight saving would skip or double."""
    return tuple(
        f"{entry.name}: schedule '{schedule.slug}' at '{schedule.cron}': {schedule.peril}; "
        "choose another hour, or Etc/UTC"
        for entry in manifest.deployments
        for schedule in entry.schedules
        if schedule.peril
    )


def _scheduled(entry: DeploymentEntry, fleet: Fleet) -> DeploymentEntry:
    if entry.wave:
        schedules = _wave_schedules(entry, fleet) if entry.wave in fleet.pipelines() else ()
    else:
        schedules = (*entry.schedules, *_own_schedules(entry.name, fleet))
    return _share_only_parameters(entry.model_copy(update={"schedules": schedules}))


def _wave_schedules(entry: DeploymentEntry, fleet: Fleet) -> tuple[ScheduleEntry, ...]:
    if not select(fleet, entry.wave).members:
        return ()
    wanted = fleet.wave(entry.wave).schedule
    return tuple(each.model_copy(update=dict(wanted or {})) for each in entry.schedules)


def _own_schedules(pipeline: str, fleet: Fleet) -> Iterator[ScheduleEntry]:
    for subject, settings in fleet.subjects():
        own = settings.schedules.get(pipeline)
        if own:
            duty = duties_of(settings)[pipeline]
            given = Member(subject=subject, parameters=duty.parameters).arguments
            yield ScheduleEntry(slug=f"own-{subject}", parameters=given, **dict(own))


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of keys; raises ConfigError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read '{file}': {error.strerror}", hint="name it with --file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{file}' is not UTF-8: {error}", hint="save it as UTF-8") from error
    document = yamlfile.parse(f"'{file}'", text)
    if not isinstance(document, dict):
        raise ConfigError(f"'{file}' holds no keys", hint="see the one in the repository")
    return document


def _share_only_parameters(entry: DeploymentEntry) -> DeploymentEntry:
    """Give a deployment with one schedule that schedule's parameters as well.

    They fill its form, and they stand when Prefect's server drops the schedule's own: 3.8.8 does that to
    every schedule that is paused and resumed by itself.
    """
    if len(entry.schedules) != 1 or entry.parameters:
        return entry
    return entry.model_copy(update={"parameters": dict(entry.schedules[0].parameters)})


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
        try:
            document = document[part]
        except (LookupError, TypeError):  # the last parts may name a type that was expected, and no place
            document = None
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
