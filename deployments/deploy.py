"""Bringing a Prefect server to what prefect.yaml and the fleet file say, and nothing more."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from deployments.automations import plan_automations
from deployments.forms import choices, form
from deployments.steps import Step
from pgvigil.errors import ConfigError
from tasks.watch import FLEET, fleet_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

    from deployments.manifest import DeploymentEntry, ScheduleEntry
    from deployments.steps import Planner, Wanted
    from pgvigil.fleet import Fleet


MADE = "deploy:"  # begins the tag of what a deploy made; the name in prefect.yaml follows


def deploy(wanted: Wanted, *, dry_run: bool = False, take_over: bool = False) -> tuple[str, ...]:
    """Make the server as it is wanted and return what was changed, or with `dry_run` would be.

    Idempotent: a second call changes nothing and returns nothing. Never touches whether a schedule or a
    deployment is paused, nor what people made: deployments without its tag, schedules without a slug.
    Raises ConfigError where another fleet is deployed, unless `take_over`.
    """
    with get_client(sync_client=True) as client:
        if not take_over:
            _require_own(client, wanted.fleet)
        steps = [step for plan in PLANNERS for step in plan(client, wanted)]
        if not dry_run:
            for step in steps:
                step.apply()
    return tuple(step.text for step in steps)


def _require_own(client: SyncPrefectClient, fleet: Fleet) -> None:
    """Refuse a server on which another fleet is deployed: each deploy would undo the other's."""
    own = fleet_tag(fleet)
    for found in _pages(lambda offset: client.read_deployments(offset=offset)):
        for other in (tag for tag in found.tags if tag.startswith(FLEET) and tag != own):
            raise ConfigError(
                f"another fleet is deployed on this Prefect server: the evidence of '{found.name}' is in "
                f"{other.removeprefix(FLEET)}, that of this fleet file in {own.removeprefix(FLEET)}",
                hint="give each fleet file a Prefect server of its own; "
                "if the audit store moved, add --take-over",
            )


def plan_pools(client: SyncPrefectClient, wanted: Wanted) -> Iterator[Step]:
    """Plan the work pools that deployments name and the server lacks."""
    for pool in sorted({entry.work_pool.name for entry in wanted.manifest.deployments}):
        yield from _plan_pool(client, pool)


def plan_deployments(client: SyncPrefectClient, wanted: Wanted) -> Iterator[Step]:
    """Plan deployments and their schedules, and the end of those that prefect.yaml no longer has."""
    names = choices(wanted.fleet)
    mark = MADE + wanted.manifest.name
    marks = [mark, fleet_tag(wanted.fleet)]
    for entry in wanted.manifest.deployments:
        flow = load_flow(entry.entrypoint)
        fields = _wanted(entry, list(wanted.manifest.pull), marks) | {
            "parameter_openapi_schema": form(flow, entry.form, names)
        }
        yield from _plan_deployment(client, entry, flow, fields)
    yield from _plan_removals(client, mark, {entry.name for entry in wanted.manifest.deployments})


# In the order in which their steps are applied: each may rest on what those before it make.
PLANNERS: tuple[Planner, ...] = (plan_pools, plan_deployments, plan_automations)


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """Import the flow of a `module:name`; raises ConfigError when there is none."""
    module, _, name = entrypoint.partition(":")
    try:
        flow = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"entrypoint '{entrypoint}': {error}", hint="it is 'flows.NAME:NAME', see the files in flows/"
        ) from error
    if not isinstance(flow, Flow):
        raise ConfigError(f"entrypoint '{entrypoint}' is no flow", hint="it is 'flows.NAME:NAME'")
    return flow


def _plan_pool(client: SyncPrefectClient, name: str) -> Iterator[Step]:
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        wanted = WorkPoolCreate(name=name, type="process", description="Runs on a host with pgBackRest.")
        yield Step(f"create work pool '{name}' of type process", lambda: client.create_work_pool(wanted))


def _plan_removals(client: SyncPrefectClient, mark: str, names: set[str]) -> Iterator[Step]:
    """Plan the end of deployments that a deploy of this manifest made; what people made has no such tag."""
    made = DeploymentFilter(tags=DeploymentFilterTags(all_=[mark]))
    for found in _pages(lambda offset: client.read_deployments(deployment_filter=made, offset=offset)):
        if found.name not in names:
            yield Step(
                f"delete deployment '{found.name}', which prefect.yaml no longer has",
                lambda gone=found.id: client.delete_deployment(gone),  # type: ignore[misc]
            )


def _pages(read: Callable[[int], list[DeploymentResponse]]) -> list[DeploymentResponse]:
    found: list[DeploymentResponse] = []
    while page := read(len(found)):
        found += page
    return found


def _wanted(entry: DeploymentEntry, pull: list[dict[str, Any]], marks: list[str]) -> dict[str, Any]:
    return {
        "description": entry.description,
        "tags": [*entry.tags, *marks],
        "parameters": entry.parameters,
        "work_pool_name": entry.work_pool.name,
        "entrypoint": entry.entrypoint,
        "pull_steps": pull,
        "enforce_parameter_schema": entry.enforce_parameter_schema,
    }


def _plan_deployment(
    client: SyncPrefectClient, entry: DeploymentEntry, flow: Flow[..., Any], wanted: dict[str, Any]
) -> Iterator[Step]:
    try:
        found = client.read_deployment_by_name(f"{flow.name}/{entry.name}")
    except ObjectNotFound:
        yield _creation(client, entry, flow, wanted)
        return
    changed = sorted(key for key, value in wanted.items() if getattr(found, key) != value)
    if changed:
        update = DeploymentUpdate(**{key: wanted[key] for key in changed}, **_kept(found, wanted))
        yield Step(
            f"update deployment '{entry.name}': {', '.join(changed)}",
            lambda: client.update_deployment(found.id, update),
        )
    yield from _plan_schedules(client, entry, found)


def _kept(found: DeploymentResponse, wanted: dict[str, Any]) -> dict[str, Any]:
    """Name what the API would otherwise reset to its default."""
    return {} if found.tags != wanted["tags"] else {"tags": wanted["tags"]}


def _creation(
    client: SyncPrefectClient, entry: DeploymentEntry, flow: Flow[..., Any], wanted: dict[str, Any]
) -> Step:
    def create() -> None:
        schedules = [_schedule(schedule) for schedule in entry.schedules]
        client.create_deployment(client.create_flow(flow), entry.name, schedules=schedules, **wanted)

    when = "; ".join(_when(schedule) for schedule in entry.schedules) or "no schedule"
    return Step(f"create deployment '{entry.name}' of {entry.entrypoint}, {when}", create)


def _when(schedule: ScheduleEntry, deployment: str = "") -> str:
    of = f" of '{deployment}'" if deployment else ""
    return f"schedule '{schedule.slug}'{of} at '{schedule.cron}' {schedule.timezone}"


def _schedule(entry: ScheduleEntry) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(
        schedule=_cron(entry), parameters=entry.parameters, slug=entry.slug, active=True
    )


def _cron(entry: ScheduleEntry) -> CronSchedule:
    try:
        return CronSchedule(cron=entry.cron, timezone=entry.timezone)
    except ValueError as error:
        raise ConfigError(
            f"schedule '{entry.slug}': '{entry.cron}' is no cron expression", hint="such as '30 3 * * *'"
        ) from error


def _plan_schedules(
    client: SyncPrefectClient, entry: DeploymentEntry, found: DeploymentResponse
) -> Iterator[Step]:
    known = {schedule.slug: schedule for schedule in found.schedules if schedule.slug}
    for wanted in entry.schedules:
        yield from _plan_schedule(client, found, known.pop(wanted.slug, None), wanted)
    for slug, gone in known.items():
        yield Step(
            f"delete schedule '{slug}' of '{entry.name}', which nothing asks for any more",
            lambda gone=gone: client.delete_deployment_schedule(found.id, gone.id),  # type: ignore[misc]
        )


def _plan_schedule(
    client: SyncPrefectClient,
    deployment: DeploymentResponse,
    known: DeploymentSchedule | None,
    wanted: ScheduleEntry,
) -> Iterator[Step]:
    cron = _cron(wanted)
    if known is None:
        yield Step(
            f"create {_when(wanted, deployment.name)}",
            lambda: client.create_deployment_schedules(deployment.id, [_schedule(wanted)]),
        )
    elif (known.schedule, known.parameters) != (cron, wanted.parameters):
        yield Step(
            f"update {_when(wanted, deployment.name)}",
            lambda: client.update_deployment_schedule(
                deployment.id, known.id, schedule=cron, parameters=wanted.parameters
            ),
        )
