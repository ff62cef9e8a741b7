from pathlib import Path
from typing import Any

import pytest

from deployments.reference import pages
from pgvigil.errors import PgvigilError
from pgvigil.fleet import Fleet, fleet_schema

HOUSE = Path(__file__).resolve().parents[2]
SCHEMA = fleet_schema()
MODELS: dict[str, dict[str, Any]] = {"Fleet": SCHEMA, **SCHEMA["$defs"]}
PAGES = pages()


@pytest.mark.parametrize("name", MODELS)
def test_every_key_of_the_fleet_file_explains_itself(name: str) -> None:
    """In the schema that editors read, and so in the reference."""
    mute = [
        key
        for key, field in MODELS[name].get("properties", {}).items()
        if "description" not in field and "$ref" not in field
    ]

    assert [] == mute


def test_a_default_stands_in_the_schema_as_the_fleet_file_would_take_it() -> None:
    """Pydantic writes durations in a way that its own pattern refuses."""
    policy = MODELS["BackupPolicy"]["properties"]

    assert ("7d", "26h") == (policy["full_every"]["default"], policy["fresh"]["default"])
    cluster = {"dsn": "postgresql://a@b/c", "pgbackrest": {"stanza": "s"}}
    defaults = {key: field["default"] for key, field in policy.items()}
    audit = {"dsn": "postgresql://a@o/ops", "reports": "s3://acme/reports"}
    given = Fleet.model_validate({"audit": audit, "clusters": {"one": cluster | {"backup": defaults}}})
    unsaid = Fleet.model_validate({"audit": audit, "clusters": {"one": cluster}})
    assert unsaid == given


def test_every_key_of_the_fleet_file_has_its_line() -> None:
    """None is left out because its model is met in an unusual way."""
    keys = {key for model in MODELS.values() for key in model.get("properties", ())}

    assert set() == {key for key in keys if f"| `{key}` |" not in PAGES["fleet.md"]}


def test_every_error_code_has_its_line() -> None:
    """Each of the library's own classes, with the words of its docstring."""

    def codes(kind: type[PgvigilError]) -> set[str]:
        own = {kind.code} if kind.__module__.startswith("pgvigil.") else set()
        return own.union(*(codes(each) for each in kind.__subclasses__()))

    assert set() == {code for code in codes(PgvigilError) if f"| `{code}` |" not in PAGES["errors.md"]}


def test_every_command_and_flow_is_told_of() -> None:
    """By the name under which it is called."""
    assert "## pgvigil audit verify" in PAGES["cli.md"]
    assert "## restore-drill" in PAGES["flows.md"]
    assert "`recovery_target`" in PAGES["flows.md"]


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_those_of_this_code(name: str) -> None:
    """Run 'make docs' when this fails."""
    assert (HOUSE / "docs" / "reference" / name).read_text(encoding="utf-8") == PAGES[name]
