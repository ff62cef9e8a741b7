"""The form of a deployment in the Prefect UI: what a flow's signature says, made readable for an operator.

Names of the fleet file become choices, so that a name that is not there is refused before a run begins. A
default of the form is the form's alone: schedules, API and shell keep the flow's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect.utilities.callables import parameter_schema

from deployments.manifest import FormField
from pgvigil.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect import Flow

    from deployments.manifest import Kind
    from pgvigil.fleet import Fleet

Choices = dict[str, tuple[str, ...]]
_NULL = {"type": "null"}


def choices(fleet: Fleet) -> Choices:
    """Collect what a form lets one choose from, in the order of the fleet file."""
    databases = {
        f"{cluster}/{name}": database
        for cluster, settings in fleet.clusters.items()
        for name, database in settings.databases.items()
    }
    found: dict[Kind, list[str]] = {
        "clusters": list(fleet.clusters),
        "partitioned databases": [name for name, database in databases.items() if database.partitions],
        "partitioned tables": [each.table for database in databases.values() for each in database.partitions],
        "migrated databases": [name for name, database in databases.items() if database.backfills],
        "backfills": [each for database in databases.values() for each in database.backfills],
    }
    return {kind: tuple(dict.fromkeys(names)) for kind, names in found.items()}


def form(flow: Flow[..., Any], fields: Mapping[str, FormField], names: Choices) -> dict[str, Any]:
    """Make a flow's form; raises ConfigError for a field that the flow does not have."""
    schema = parameter_schema(flow).model_dump()
    _require_known(flow, fields, schema["properties"])
    shown = {
        name: _with_wishes(
            _readable(name, field),
            fields.get(name, FormField()),
            names,
            is_required=name in schema["required"],
        )
        for name, field in schema["properties"].items()
    }
    nested = {name: _nested(model) for name, model in schema.get("definitions", {}).items()}
    return {**schema, "properties": shown, "definitions": nested}


def _require_known(flow: Flow[..., Any], fields: Mapping[str, FormField], known: Mapping[str, Any]) -> None:
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"the form of '{flow.name}' has no field '{name}'", hint=f"it has: {', '.join(known)}"
            )


def _readable(name: str, field: dict[str, Any]) -> dict[str, Any]:
    shown = _without_null(field)
    told = " ".join(shown.get("description", "").split())
    return {
        **shown,
        "title": _sentence(name.replace("_", " ")),
        **({"description": _sentence(told)} if told else {}),
    }


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _without_null(field: dict[str, Any]) -> dict[str, Any]:
    """Show an optional value as a field to leave empty, not as a switch between it and nothing."""
    kinds = [kind for kind in field.get("anyOf", ()) if kind != _NULL]
    if len(kinds) != 1:
        return field
    rest = {key: value for key, value in field.items() if key not in {"anyOf", "default"}}
    return {**kinds[0], **rest}


def _with_wishes(
    field: dict[str, Any], wanted: FormField, names: Choices, *, is_required: bool
) -> dict[str, Any]:
    shown = dict(field)
    found = names.get(wanted.choose or "", ())
    if found:
        shown["enum"] = list(found)
    if len(found) == 1 and is_required:
        shown["default"] = found[0]
    if wanted.default is not None:
        shown["default"] = wanted.default
    return shown


def _nested(model: dict[str, Any]) -> dict[str, Any]:
    """Give the fields of a nested model their order, which Prefect's database does not keep."""
    fields = model.get("properties", {}).items()
    shown = {
        name: {**_readable(name, field), "position": place} for place, (name, field) in enumerate(fields)
    }
    return {**model, "properties": shown} if shown else model
