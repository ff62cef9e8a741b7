from contextlib import nullcontext
from typing import Any

import pytest
from prefect.utilities.schema_tools import validate

from deployments.approval import filled_in
from deployments.deploy import load_flow
from deployments.forms import choices, form
from deployments.manifest import FormField, load_manifest
from pgvigil.errors import ConfigError
from pgvigil.fleet import Fleet
from tasks.approval import Answer

DATABASE = {
    "partitions": [{"table": "public.events", "key": "at", "every": "1 month"}],
    "backfills": {"cents": {"table": "public.payments", "set": {"a": "1"}, "where": "a IS NULL"}},
}
CLUSTER = {"dsn": "postgresql://pgvigil@host:5432/postgres", "pgbackrest": {"stanza": "main"}}
FLEET = Fleet.model_validate(
    {
        "audit": {"dsn": "postgresql://pgvigil@ops:5432/ops", "reports": "s3://acme/reports"},
        "clusters": {"one": CLUSTER | {"databases": {"shop": DATABASE, "bare": {}}}, "two": CLUSTER},
    }
)
DEPLOYED = {
    entry.name: form(load_flow(entry.entrypoint), entry.form, choices(FLEET))
    for entry in load_manifest().deployments
}


def fields(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DEPLOYED[name]["properties"]
    return found


@pytest.mark.parametrize("name", DEPLOYED)
def test_every_field_has_a_title_a_place_and_one_line_about_it(name: str) -> None:
    """Of nested models as well; and nothing is a switch between a value and 'None'."""
    nested = [
        model["properties"] for model in DEPLOYED[name]["definitions"].values() if "properties" in model
    ]

    for shown in (fields(name), *nested):
        assert list(range(len(shown))) == sorted(field["position"] for field in shown.values())
        for key, field in shown.items():
            assert field["title"].lower() == key.replace("_", " ")
            assert field["description"]
            assert "\n" not in field["description"]
            assert "anyOf" not in field


def test_names_of_the_fleet_file_are_choices() -> None:
    """Clusters, databases that the flow has work in, tables, backfills."""
    assert ["one", "two"] == fields("nightly-backup")["cluster"]["enum"]
    assert ["one/shop"] == fields("roll-partitions")["database"]["enum"]
    assert ["public.events"] == fields("roll-partitions")["table"]["enum"]
    assert ["one/shop"] == fields("run-backfill")["database"]["enum"]
    assert ["cents"] == fields("run-backfill")["backfill"]["enum"]


def test_the_only_choice_of_a_field_that_must_be_filled_is_made() -> None:
    """With two, or where empty means all, the person chooses."""
    assert "one/shop" == fields("roll-partitions")["database"]["default"]
    assert "default" not in fields("roll-partitions")["table"]
    assert "default" not in fields("nightly-backup")["cluster"]


def test_without_a_name_to_choose_any_text_goes() -> None:
    """An empty list of choices would refuse everything."""
    flow = load_flow("flows.run_backfill:run_backfill")

    assert "enum" not in form(flow, {"backfill": FormField(choose="backfills")}, {})["properties"]["backfill"]


@pytest.mark.parametrize(
    "name", ["roll-partitions", "restore-partition", "run-backfill", "reap-drills", "fleet-roll-partitions"]
)
def test_what_changes_data_is_a_dry_run_in_the_form_alone(name: str) -> None:
    """The form has it on; the flow itself, and so every schedule, has it off."""
    entry = next(each for each in load_manifest().deployments if each.name == name)

    assert fields(name)["dry_run"]["default"] is True
    assert load_flow(entry.entrypoint).parameters.properties["dry_run"]["default"] is False
    assert "dry_run" not in entry.parameters


def test_a_wish_for_a_field_that_is_not_there_is_refused() -> None:
    """A typo in prefect.yaml is named with the fields there are."""
    flow = load_flow("flows.nightly_backup:nightly_backup")

    with pytest.raises(ConfigError, match="has no field 'clutser'"):
        form(flow, {"clutser": FormField(choose="clusters")}, {})


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("Ada L.", True), ("Li", True), ("", False), ("A", False), ("   ", False), ("\t\t", False)],
)
def test_a_decision_needs_a_name_that_can_be_read(name: str, is_one: bool) -> None:
    """By the check that Prefect's server makes of an answer, and by the shell's."""
    answer = {"decision": "approve", "approver": name}

    assert is_one == (validate(answer, Answer.model_json_schema()) == [])
    with nullcontext() if is_one else pytest.raises(ConfigError, match="approver"):
        filled_in(approve=True, approver=name, note="")
