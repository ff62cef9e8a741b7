"""Running one flow from the command line: found by its name, its parameters typed by its signature."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

import flows
from deployments.server import QUIET, private_server, require_answer
from pgvigil.errors import ConfigError
from tasks import PRIVATE_SERVER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pgvigil.reports import Report

_LOCAL = {**QUIET, "PREFECT_LOGGING_TO_API_ENABLED": "false", PRIVATE_SERVER: "1"}


def known_flows() -> list[str]:
    """Name the flows there are, with dashes; nothing is imported."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(flows.__path__))


def run(  # noqa: PLR0913 - one per option
    name: str,
    subject: str,
    pairs: Sequence[str],
    *,
    tags: Sequence[str] = (),
    dry_run: bool,
    local: bool,
) -> Report:
    """Run the flow of this name and return its report, whatever the verdict.

    `pairs` are KEY=VALUE, `tags` those of the run in Prefect. It runs on the server of PREFECT_API_URL;
    without one, or with `local`, on a server of its own. Raises ConfigError for a wrong flow or parameter
    and for a server that is away.
    """
    module = _module(name)
    values = _split(pairs)
    url = os.environ.get("PREFECT_API_URL")
    if local or not url:
        return _run_alone(module, subject, values, tags, dry_run=dry_run)
    require_answer(url)
    flow = _load(module)
    return _call(flow, _arguments(flow, name, subject, values, dry_run=dry_run), tags)


def _run_alone(
    module: str, subject: str, values: dict[str, str], tags: Sequence[str], *, dry_run: bool
) -> Report:
    with private_server() as server:
        # Prefect reads its settings when it is imported, which `_load` does while the server starts.
        home = str(server.log.parent)
        os.environ.update({**_LOCAL, "PREFECT_API_URL": server.url, "PREFECT_HOME": home})
        flow = _load(module)
        arguments = _arguments(flow, module, subject, values, dry_run=dry_run)
        server.await_ready()
        return _call(flow, arguments, tags)


def _module(name: str) -> str:
    known = known_flows()
    wanted = name.replace("_", "-")
    if wanted in known:
        return wanted.replace("-", "_")
    close = difflib.get_close_matches(wanted, known, n=1)
    raise ConfigError(
        f"unknown flow '{name}'",
        hint=f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(known)}",
    )


def _load(module: str) -> Callable[..., Any]:
    flow: Callable[..., Any] = getattr(importlib.import_module(f"flows.{module}"), module)
    return flow


def _call(flow: Callable[..., Any], arguments: dict[str, Any], tags: Sequence[str]) -> Report:
    from prefect import tags as tagged  # noqa: PLC0415 - Prefect is there once the flow is loaded

    with tagged(*tags):
        report: Report = flow(**arguments)
    return report


def _split(pairs: Sequence[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"parameter '{pair}' has no value", hint="write it as -p KEY=VALUE")
        if key in values:
            raise ConfigError(f"parameter '{key}' is given twice", hint="give it once")
        values[key] = value
    return values


def _arguments(
    flow: Callable[..., Any], name: str, subject: str, values: dict[str, str], *, dry_run: bool
) -> dict[str, Any]:
    """Type the texts by the flow's signature; its first parameter is the subject."""
    signature = inspect.signature(flow.fn)  # type: ignore[attr-defined]
    first, *options = signature.parameters
    if dry_run:
        values = {**values, "dry_run": "true"}
    for key in values:
        _require_known(key, first, options, name)
    model = create_model(
        name,
        __config__=ConfigDict(extra="forbid"),
        **_fields(flow, {first, *values}),
    )
    try:
        typed = model.model_validate_strings({**values, first: subject})
    except ValidationError as error:
        raise ConfigError(*_explain(error)) from error
    return dict(typed)


def _fields(flow: Callable[..., Any], names: set[str]) -> dict[str, Any]:
    hints = get_type_hints(inspect.unwrap(flow.fn), include_extras=True)  # type: ignore[attr-defined]
    return {name: (hints[name], ...) for name in names}


def _require_known(key: str, first: str, options: list[str], name: str) -> None:
    if key in options:
        return
    if key == first:
        raise ConfigError(f"parameter '{key}' is the SUBJECT already", hint="leave out the -p")
    close = difflib.get_close_matches(key, options, n=1)
    raise ConfigError(
        f"flow '{name}' has no parameter '{key}'",
        hint=f"did you mean '{close[0]}'?" if close else f"it has: {', '.join(options) or 'none'}",
    )


def _explain(error: ValidationError) -> tuple[str]:
    faults = (
        f"parameter '{item['loc'][0]}' got '{item['input']}': {item['msg'][0].lower()}{item['msg'][1:]}"
        for item in error.errors()
    )
    return ("; ".join(faults),)
