"""The reference pages of docs/, written from the code: python -m deployments.reference DIR."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from prefect.utilities.callables import parameter_schema

import pgvigil
from deployments.cli import app
from deployments.deploy import load_flow
from deployments.run import known_flows
from pgvigil.audit import Event, Kind
from pgvigil.errors import PgvigilError
from pgvigil.fleet import fleet_schema
from pgvigil.reports import Report, Verdict
from pgvigil.sql import blocks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Schema = dict[str, Any]

HOUSE = Path(__file__).resolve().parents[1]
WRITTEN = "<!-- Written by 'make docs' from the code; edit that, not this. -->"


def pages() -> dict[str, str]:
    """Write every page, by file name."""
    written = {
        "fleet.md": _fleet(),
        "cli.md": _commands(),
        "flows.md": _flows(),
        "errors.md": _errors(),
        "audit.md": _audit(),
    }
    return {name: "\n\n".join((WRITTEN, *parts)) + "\n" for name, parts in written.items()}


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", r"\|")


def _first(text: str | None) -> str:
    """Take the first paragraph of a docstring."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


# --- models -------------------------------------------------------------------------------------------


def _fleet() -> Iterator[str]:
    schema = fleet_schema()
    yield "# The fleet file"
    yield (
        "One YAML file, named by `PGVIGIL_FLEET` (default `./fleet.yaml`). A key that is not known is "
        "refused. Durations are a number and `ms`, `s`, `min`, `h`, `d` or `w`. No secret stands in it. "
        "`pgvigil fleet schema` prints its JSON Schema, `pgvigil fleet check` reads it."
    )
    yield from _model(schema, schema, "The whole file")
    for name in _in_order(schema):
        yield from _model(schema, schema["$defs"][name], name)


def _in_order(schema: Schema) -> list[str]:
    """Name the models as a reader of the file meets them."""
    met: list[str] = []
    waiting = [schema]
    while waiting:
        for field in waiting.pop(0).get("properties", {}).values():
            for name in _references(field):
                if name not in met:
                    met.append(name)
                    waiting.append(schema["$defs"][name])
    return met


def _references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield str(node["$ref"]).rpartition("/")[2]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _model(schema: Schema, model: Schema, title: str) -> Iterator[str]:
    if "properties" not in model:
        return
    required = set(model.get("required", ()))
    yield f"## {title}"
    yield _first(model.get("description"))
    rows = [
        (f"`{key}`", _kind(field), _default(field, is_required=key in required), _meaning(schema, field))
        for key, field in model["properties"].items()
    ]
    yield _table(("key", "type", "default", "meaning"), rows)


def _kind(field: Schema) -> str:
    if "$ref" in field:
        return f"[{_name(field)}](#{_name(field).lower()})"
    for several in ("anyOf", "oneOf", "allOf"):
        if several in field:
            kinds = [_kind(each) for each in field[several] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{each}`" for each in field.get("enum", [field.get("const")]))
    return _container(field) or _scalar(field)


def _container(field: Schema) -> str:
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items') or {})}"
    of = field.get("additionalProperties")
    return f"{_kind(of)} by name" if isinstance(of, dict) else ""


def _scalar(field: Schema) -> str:
    if "7d" in field.get("examples", ()):
        return "duration"
    kind = field.get("format") or field.get("type", "anything")
    name = " or ".join(kind) if isinstance(kind, list) else str(kind)
    low, high = field.get("minimum"), field.get("maximum")
    span = [f"≥ {low}" if low is not None else "", f"≤ {high}" if high is not None else ""]
    return " ".join([name, *filter(None, span)])


def _name(field: Schema) -> str:
    return str(field["$ref"]).rpartition("/")[2]


def _default(field: Schema, *, is_required: bool) -> str:
    if is_required:
        return "required"
    value = field.get("default")
    if value in (None, [], {}, "") or isinstance(value, dict):
        return "" if not isinstance(value, dict) or not value else "as below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _meaning(schema: Schema, field: Schema) -> str:
    """Give the field's own words, or else those of its model."""
    if "description" in field:
        return str(field["description"])
    found = next(_references(field), "")
    return _first(schema["$defs"][found].get("description")) if found else ""


# --- commands and flows -------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield "# The command line"
    yield (
        f"`--json` prints exactly one JSON document on standard output; everything else goes to standard "
        f"error. Exit codes: {', '.join(f'{each.exit_code} {each}' for each in Verdict)}."
    )
    yield from _group(typer.main.get_command(app), "pgvigil")


def _group(command: Any, path: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield f"## {path}"
        yield _first(command.help)
        rows = [_option(each) for each in command.params if each.name != "help"]
        if rows:
            yield _table(("argument", "default", "meaning"), rows)
        return
    for name, each in inner.items():
        yield from _group(each, f"{path} {name}")


def _option(parameter: Any) -> tuple[str, str, str]:
    is_option = parameter.param_type_name == "option"
    names = (
        [*parameter.opts, *parameter.secondary_opts] if is_option else [parameter.metavar or parameter.name]
    )
    default = parameter.default
    is_told = default not in (None, False, True, "") and not callable(default)
    return (
        f"`{', '.join(names)}`",
        "required" if parameter.required else f"`{default}`" if is_told else "",
        parameter.help or "",
    )


def _flows() -> Iterator[str]:
    yield "# Flows and their reports"
    yield (
        "Each flow is `flows.NAME:NAME`, and `pgvigil run NAME SUBJECT` with dashes. It returns its report, "
        "whatever the verdict; in Prefect, `Refuted` and `Inconclusive` are failed states."
    )
    yield "## What every report has"
    yield _fields(Report.model_json_schema(mode="serialization"), known=set())
    for name in known_flows():
        module = name.replace("-", "_")
        yield from _flow(module, name)


def _flow(module: str, name: str) -> Iterator[str]:
    flow = load_flow(f"flows.{module}:{module}")
    form = parameter_schema(flow).model_dump()
    yield f"## {name}"
    yield _first(inspect.getdoc(flow.fn))
    rows = [
        (f"`{key}`", _kind(field), _default(field, is_required=key in form["required"]), _told(field))
        for key, field in form["properties"].items()
    ]
    yield _table(("parameter", "type", "default", "meaning"), rows)
    kind = get_type_hints(flow.fn)["return"]
    own = _fields(kind.model_json_schema(mode="serialization"), known=set(Report.model_fields))
    yield f"Its report, `{kind.__name__}`, adds:"
    yield own


def _told(field: Schema) -> str:
    return str(field.get("description") or "")


def _fields(schema: Schema, known: set[str]) -> str:
    shown = {key: field for key, field in schema["properties"].items() if key not in known}
    defined = schema.get("$defs", {})
    rows = [(f"`{key}`", _plain(field), _meaning({"$defs": defined}, field)) for key, field in shown.items()]
    return _table(("field", "type", "meaning"), rows)


def _plain(field: Schema) -> str:
    """Name a type without a link: what a report holds is not a page of its own."""
    kind = _kind(field)
    for name in _references(field):
        kind = kind.replace(f"[{name}](#{name.lower()})", f"`{name}`")
    return kind


# --- errors and the audit log -------------------------------------------------------------------------


def _errors() -> Iterator[str]:
    for module in pkgutil.walk_packages(pgvigil.__path__, "pgvigil."):
        if not module.name.endswith("keeper"):
            importlib.import_module(module.name)
    yield "# Errors"
    yield (
        "Every error has a stable code, a fact, and a hint that says what to do. In a report it stands as a "
        "finding under its code. *Transient* ones are tried again within the run, bounded."
    )
    kinds = sorted(_kinds(PgvigilError), key=lambda kind: (kind.code, kind.__name__))
    rows = [(f"`{kind.code}`", f"`{kind.__name__}`", _first(kind.__doc__), _again(kind)) for kind in kinds]
    yield _table(("code", "class", "meaning", "transient"), rows)


def _kinds(kind: type[PgvigilError]) -> Iterator[type[PgvigilError]]:
    if kind.__module__.startswith(("pgvigil.", "tasks.")):
        yield kind
    for each in kind.__subclasses__():
        yield from _kinds(each)


def _again(kind: type[PgvigilError]) -> str:
    return "by its code" if isinstance(kind.transient, property) else ("yes" if kind.transient else "no")


def _audit() -> Iterator[str]:
    sql = blocks("audit_schema")
    yield "# The audit log"
    yield (
        "In the database of `audit.dsn`, schema `pgvigil`, made by `pgvigil audit init`. Read the view "
        "`pgvigil.audit`; `pgvigil audit verify` recomputes the chain and compares it with the anchors in "
        "the report store."
    )
    yield "## Events"
    yield _first(Kind.__doc__)
    yield "Kinds: " + ", ".join(f"`{kind}`" for kind in Kind) + "."
    yield _fields(Event.model_json_schema(mode="serialization"), known=set())
    yield "## Schema"
    yield f"```sql\n{sql['chain']}\n```"
    yield "## What a writer may do"
    yield f"```sql\n{sql['grants']}\n```"


def main(directory: Path) -> None:
    """Write the pages into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (directory / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HOUSE / "docs" / "reference")
