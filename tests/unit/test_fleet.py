from datetime import timedelta
from pathlib import Path

import pytest

from pgvigil.errors import ConfigError
from pgvigil.fleet import Fleet, load_fleet

GOOD = """
audit: {dsn: "postgresql://pgvigil@ops:5432/ops", reports: "s3://acme-dba/reports"}
clusters:
  orders-1:
    dsn: postgresql://pgvigil@orders-1:5432/postgres
    pgbackrest: {stanza: orders, command: [ssh, postgres@orders-1, pgbackrest]}
    backup: {full_every: 7d}
    databases: {orders: {}}
"""


def write(directory: Path, text: str) -> Path:
    file = directory / "fleet.yaml"
    file.write_text(text)
    return file


def refusal(directory: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_fleet(write(directory, text))
    return str(caught.value)


def test_a_duration_is_a_number_and_a_unit(tmp_path: Path) -> None:
    """Durations are read from text as people write them."""
    fleet = load_fleet(write(tmp_path, GOOD))

    assert timedelta(days=7) == fleet.cluster("orders-1").backup.full_every


def test_an_unknown_key_is_named_with_its_path_and_nearest_name(tmp_path: Path) -> None:
    """A typo in a deep key says where it is and what was meant."""
    message = refusal(tmp_path, GOOD.replace("full_every", "full_evry"))

    assert "clusters.orders-1.backup.full_evry is unknown; did you mean 'full_every'?" in message


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """A required key that is absent is named with its path."""
    assert "clusters.orders-1.pgbackrest.stanza is missing" in refusal(
        tmp_path, GOOD.replace("stanza: orders, ", "")
    )


def test_a_wrong_type_is_named(tmp_path: Path) -> None:
    """A value of the wrong type is refused with the key's path."""
    assert "clusters.orders-1.backup.full_every" in refusal(tmp_path, GOOD.replace("7d", "soon"))


def test_bad_yaml_names_line_and_column(tmp_path: Path) -> None:
    """A syntax error says where it is."""
    assert "line 3" in refusal(tmp_path, "audit:\n  dsn: [unclosed\n bad")


@pytest.mark.parametrize("text", ["", "[]", "just text"])
def test_a_file_without_keys_is_refused(tmp_path: Path, text: str) -> None:
    """An empty or flat file is no fleet."""
    assert "keys" in refusal(tmp_path, text)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """No file gives the variable and the schema command."""
    with pytest.raises(ConfigError, match="PGVIGIL_FLEET"):
        load_fleet(tmp_path / "none.yaml")


def test_an_unknown_cluster_names_the_nearest(tmp_path: Path) -> None:
    """A mistyped cluster is answered with the one that was meant."""
    fleet = load_fleet(write(tmp_path, GOOD))

    with pytest.raises(ConfigError, match="did you mean 'orders-1'"):
        fleet.cluster("order-1")


@pytest.mark.parametrize("subject", ["orders-1", "orders-1/", "orders-1/nope", "nope/orders"])
def test_a_database_is_named_within_its_cluster(tmp_path: Path, subject: str) -> None:
    """Whatever is not a known cluster/database is refused."""
    fleet = load_fleet(write(tmp_path, GOOD))

    with pytest.raises(ConfigError):
        fleet.database(subject)


def test_the_schema_forbids_unknown_keys() -> None:
    """Editors that read the schema flag a typo as well."""
    assert Fleet.model_json_schema()["additionalProperties"] is False
