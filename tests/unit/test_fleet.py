from datetime import timedelta
from pathlib import Path

import pytest

from pgvigil.errors import ConfigError
from pgvigil.fleet import Fleet, load_fleet
from tests.fixtures.fleet import fleet

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


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    """The second of two equal keys would silently replace the first."""
    message = refusal(tmp_path, GOOD + "  orders-1: {dsn: service=other, pgbackrest: {stanza: other}}\n")

    assert "line 9" in message
    assert "key 'orders-1' stands there twice" in message


def test_a_table_that_stands_twice_is_refused_under_any_spelling(tmp_path: Path) -> None:
    """Two policies would each roll it by their own rules."""
    rolled = "{table: '%s', key: at, every: 1 month}"
    names = ("public.t", 'PUBLIC . "t"')
    twice = f"orders: {{partitions: [{', '.join(rolled % name for name in names)}]}}"
    message = refusal(tmp_path, GOOD.replace("orders: {}", twice))

    assert "partitions: 'public.t' and 'PUBLIC . \"t\"' are one table" in message


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    """A YAML merge is no repetition: own keys win over merged ones."""
    text = (
        GOOD
        + """  orders-2:
    <<: {dsn: service=one}
    dsn: service=two
    pgbackrest: {stanza: two}
"""
    )

    assert load_fleet(write(tmp_path, text)).cluster("orders-2").dsn == "service=two"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://pgvigil:s3cret@orders-1/postgres",
        "postgresql://orders-1/postgres?password=s3cret",
        "host=orders-1 password=s3cret",
        "host=orders-1 sslpassword=s3cret",
    ],
)
@pytest.mark.parametrize(
    "place", ["postgresql://pgvigil@ops:5432/ops", "postgresql://pgvigil@orders-1:5432/postgres"]
)
def test_a_password_in_a_dsn_is_refused_unspoken(tmp_path: Path, place: str, dsn: str) -> None:
    """The message names key and cure, and does not repeat the secret."""
    message = refusal(tmp_path, GOOD.replace(f'"{place}"', place).replace(place, f'"{dsn}"'))

    assert "dsn: it holds a password; put that into the password file" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("full_every: 7", "write '7d'"),
        ("full_every: 7.5", "write '7d'"),
        ("full_every: 0d", "at least 1ms"),
        ("full_every: 999999999999999d", "at most 36500d"),
        ("wait: 0s", "at least 1ms"),
        ("wait: 0.5ms", "at least 1ms"),
        ("wait: 13d", "at most 12d"),
    ],
)
def test_a_duration_without_sense_is_refused(tmp_path: Path, written: str, told: str) -> None:
    """Without a unit, without length (a server takes 0 for no limit at all), or beyond all calendars."""
    assert told in refusal(tmp_path, GOOD.replace("full_every: 7d", written))


def test_durations_survive_being_written_and_read(tmp_path: Path) -> None:
    """What a dump holds is a duration as people write it, also a long one."""
    fleet = load_fleet(write(tmp_path, GOOD.replace("7d", "36500d")))

    assert Fleet.model_validate(fleet.model_dump()) == fleet


@pytest.mark.parametrize(
    "scalar", ["2026-02-30", "9" * 5000, "[" * 3000, "!!int ''", "!!bool maybe", "!!timestamp soon"]
)
def test_what_yaml_stumbles_over_is_one_message(tmp_path: Path, scalar: str) -> None:
    """Values that the parser itself fails on are faults of the file like any other."""
    message = refusal(tmp_path, GOOD.replace("stanza: orders", f"stanza: {scalar}"))

    assert "fleet.yaml" in message
    assert "Error" not in message


@pytest.mark.parametrize(
    ("good", "relative"),
    [
        ("stanza: orders", "stanza: orders, config: pgbackrest.conf"),
        ("audit: {", "audit: {spool: spool, "),
        ("clusters:", "s3: {ca_file: ca.pem}\nclusters:"),
    ],
)
def test_a_relative_path_is_refused(tmp_path: Path, good: str, relative: str) -> None:
    """Nobody can say what it would be relative to, least of all on another host."""
    assert "must be an absolute path" in refusal(tmp_path, GOOD.replace(good, relative))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    """A required key that is absent is named with its path."""
    assert "clusters.orders-1.pgbackrest.stanza is missing" in refusal(
        tmp_path, GOOD.replace("stanza: orders, ", "")
    )


def test_a_wrong_type_is_named(tmp_path: Path) -> None:
    """A value of the wrong type is refused with the key's path."""
    assert "clusters.orders-1.backup.full_every" in refusal(tmp_path, GOOD.replace("7d", "soon"))


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ("stanza: orders", "stanza: 1", "clusters.orders-1.pgbackrest.stanza: must be text: quote it"),
        ("stanza: orders", "stanza: ''", "pgbackrest.stanza: a name is not empty"),
        ("stanza: orders", "stanza: ../orders", "pgbackrest.stanza: a name is not empty and has no '/'"),
        ("  orders-1:", "  orders/1:", "clusters.orders/1: a name is not empty and has no '/'"),
        ("[ssh, postgres@orders-1, pgbackrest]", "[]", "pgbackrest.command: must not be empty"),
        ("[ssh, postgres@orders-1, pgbackrest]", "['']", "pgbackrest.command.0: must not be empty"),
        ("[ssh, postgres@orders-1, pgbackrest]", "pgbackrest", "pgbackrest.command: must be a list"),
        ("{full_every: 7d}", "7d", "clusters.orders-1.backup: must be keys with values"),
        ("s3://acme-dba/reports", "/var/reports", "audit.reports: write s3://bucket/prefix"),
        ("dsn: postgresql://pgvigil@orders-1:5432/postgres", "dsn: orders 1", "dsn: libpq cannot read it"),
    ],
)
def test_a_value_that_no_run_could_use_is_refused_with_its_path(
    tmp_path: Path, good: str, bad: str, told: str
) -> None:
    """It is told when the file is read, in words of the file, and with a cure."""
    message = refusal(tmp_path, GOOD.replace(good, bad))

    assert told in message
    assert "hint:" in message


def test_a_directory_is_no_fleet_file(tmp_path: Path) -> None:
    """The message says what it is, and the hint what to name."""
    with pytest.raises(ConfigError, match=r"is a directory .*PGVIGIL_FLEET="):
        load_fleet(tmp_path)


def test_bad_yaml_names_line_and_column(tmp_path: Path) -> None:
    """A syntax error says where it is, and what was never closed where that began."""
    assert "while parsing a flow sequence, from line 2, column 8" in refusal(
        tmp_path, "audit:\n  dsn: [unclosed\n bad"
    )


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


def test_a_wrong_name_among_hundreds_is_answered_in_a_few_lines() -> None:
    """Some names are told, and how many more there are; a name that is near is told alone."""
    databases = {f"db_{number:03}": {} for number in range(500)}
    made = fleet(one={"databases": databases})
    with pytest.raises(ConfigError) as far:
        made.database("one/something")
    with pytest.raises(ConfigError) as near:
        made.database("one/db_4999")

    assert "db_019 and 480 more" in far.value.hint
    assert "did you mean 'db_499'?" == near.value.hint
