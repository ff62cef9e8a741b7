"""Automations as data, and the steps that bring a Prefect server's to it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from pydantic import Field, ValidationError, model_validator

from deployments.manifest import read_yaml
from deployments.steps import Step
from pgvigil.errors import ConfigError
from pgvigil.policies.units import Duration
from pgvigil.reports import Frozen
from tasks.watch import TAG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

    from deployments.steps import Wanted

FILE = Path(__file__).with_name("automations.yaml")
OWNER = "pgvigil"  # what Prefect knows our automations by, whatever they are called


class AutomationEntry(Frozen):
    """One automation: which events, or which absence of events, sends which message."""

    name: str = Field(min_length=1)
    description: str = Field(min_length=1)
    runs: bool = False
    only: str | None = None
    but: str | None = Field(default=None, alias="except")
    posture: Literal["Reactive", "Proactive"] = "Reactive"
    after: tuple[str, ...] = ()
    expect: tuple[str, ...] = Field(min_length=1)
    for_each: tuple[str, ...] = ()
    within: Duration = timedelta(seconds=0)
    subject: str = Field(min_length=1)
    body: str = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if not self.runs and (self.only or self.but):
            raise ValueError("'only' and 'except' choose among runs: add 'runs: true'")
        if (self.posture == "Proactive") != bool(self.after and self.within):
            raise ValueError("a proactive one has 'after' and 'within', a reactive one neither")
        return self

    def trigger(self) -> EventTrigger:
        """Return it as Prefect's trigger."""
        return EventTrigger(
            posture=Posture(self.posture),
            match={"prefect.resource.id": "prefect.flow-run.*" if self.runs else "pgvigil.alarm.*"},
            match_related=list(self._related()),
            after=set(self.after),
            expect=set(self.expect),
            for_each=set(self.for_each),
            within=self.within,
        )

    def _related(self) -> Iterator[dict[str, str | list[str]]]:
        if self.runs:
            yield {"prefect.resource.id": f"prefect.tag.{TAG}"}
        name = self.only or (f"!{self.but}" if self.but else None)
        if name:
            yield {"prefect.resource.role": "flow", "prefect.resource.name": name}


class Automations(Frozen):
    """The whole of automations.yaml."""

    automations: tuple[AutomationEntry, ...]

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [entry.name for entry in self.automations]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"a name is an identity, and stands there twice: {', '.join(sorted(twice))}")
        return self


def load_automations(file: Path = FILE) -> tuple[AutomationEntry, ...]:
    """Read automations.yaml, checked; raises ConfigError naming the key."""
    try:
        return Automations.model_validate(read_yaml(file)).automations
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"'{file}': {faults}", hint="the file's head says what may stand there") from error


def plan_automations(client: SyncPrefectClient, wanted: Wanted) -> Iterator[Step]:
    """Plan the automations: those of the file where alarms.notify names a block, and else none.

    Of the server's, only those that pgvigil has made are changed or removed; whether one is enabled stays.
    """
    return plan(client, load_automations(), wanted.fleet.alarms.notify)


def plan(
    client: SyncPrefectClient, entries: Iterable[AutomationEntry], notify: Iterable[str]
) -> Iterator[Step]:
    """Plan these entries, sending through these blocks; raises ConfigError for a block that is not there."""
    blocks = [_find_block(client, name) for name in notify]
    known = {each.name: each for each in client.read_resource_related_automations(OWNER)}
    for entry in entries if blocks else ():
        yield from _plan_automation(client, _automation(entry, blocks), known.pop(entry.name, None))
    for name, gone in known.items():
        why = "which nothing asks for any more" if blocks else "as alarms.notify names no block"
        yield Step(
            f"delete automation '{name}', {why}",
            lambda gone=gone: client.delete_automation(gone.id),  # type: ignore[misc]
        )


def _find_block(client: SyncPrefectClient, name: str) -> UUID:
    kind, _, own = name.partition("/")
    try:
        found = client.read_block_document_by_name(own, kind, include_secrets=False)
    except ObjectNotFound as error:
        raise ConfigError(
            f"alarms.notify names the block '{name}', which the Prefect server does not have",
            hint="make it in the UI under Blocks; 'slack-webhook/dba' is a Slack Webhook called dba",
        ) from error
    if "notify" not in (found.block_schema.capabilities if found.block_schema else ()):
        raise ConfigError(
            f"alarms.notify names the block '{name}', which cannot notify",
            hint="take a notification block: Slack Webhook, Email, Pager Duty Webhook, Custom Webhook, …",
        )
    return found.id


def _automation(entry: AutomationEntry, blocks: Iterable[UUID]) -> AutomationCore:
    return AutomationCore(
        name=entry.name,
        description=entry.description,
        tags=[TAG],
        trigger=entry.trigger(),
        actions=[
            SendNotification(block_document_id=block, subject=entry.subject, body=entry.body)
            for block in blocks
        ],
        owner_resource=OWNER,
    )


def _plan_automation(
    client: SyncPrefectClient, wanted: AutomationCore, found: Automation | None
) -> Iterator[Step]:
    if found is None:
        yield Step(f"create automation '{wanted.name}'", lambda: client.create_automation(wanted))
        return
    changed = [field for field in _FIELDS if _plain(wanted, field) != _plain(found, field)]
    if changed:
        # An update replaces the whole automation, its being enabled included; its owner it must not name.
        update = AutomationCore(
            enabled=found.enabled, **wanted.model_dump(exclude={"enabled", "owner_resource"})
        )
        yield Step(
            f"update automation '{wanted.name}': {', '.join(changed)}",
            lambda: client.update_automation(found.id, update),
        )


_FIELDS = ("description", "tags", "trigger", "actions")


def _plain(automation: AutomationCore, field: str) -> object:
    """Give a field as data without order where it has none."""
    value: object = automation.model_dump(mode="json", include={field})[field]
    if isinstance(value, dict):
        return {k: sorted(v) if k in {"after", "expect", "for_each"} else v for k, v in value.items()}
    return value
