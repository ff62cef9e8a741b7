import shutil
from collections.abc import Iterator

import pytest

from pgvigil.sandbox import down, operate
from tests.fixtures.faulty_s3 import bad_road, refused
from tests.fixtures.planted import CIPHER, HOLDERS, INLINE, REFUSAL, SAID, Planted, forms
from tests.fixtures.receiver import receiving
from tests.fixtures.sandbox import reachable_directory

pytestmark = pytest.mark.long

NOWHERE = "postgresql://pgvigil@127.0.0.1:1/postgres"
FLOWS = {
    "nightly-backup": ("demo",),
    "verify-wal-archive": ("demo",),
    "restore-drill": ("demo",),
    "roll-partitions": ("demo/shop",),
    "restore-partition": ("demo/shop", "-p", "keep=false"),
    "run-backfill": ("demo/shop", "-p", "backfill=cents"),
    "steer-backfill": ("demo/shop", "-p", "backfill=cents", "-p", "action=restart"),
    "reap-drills": ("demo",),
    "watch-fleet": ("roll-partitions",),
    "keep-watch": ("fleet",),
}
PIPELINES = tuple(FLOWS)[:6]
OF_PGBACKREST = PIPELINES[:3]
READ = ("process list", "dump of prefect", "dump of ops", "s3://reports/", "waiting/", "log/", "home/")
TOLD = ("missing '=' in key/value", "token *** was refused", "password=***", "SignatureDoesNotMatch")


@pytest.fixture(scope="module")
def planted(monkeypatch_module: pytest.MonkeyPatch) -> Iterator[Planted]:
    """A sandbox with Prefect in which every flow has run well once, and has failed in every way."""
    directory = reachable_directory()
    with receiving() as receiver:
        made = Planted(directory / "box", receiver.url)
        try:
            for name, value in made.box.environment.items():
                monkeypatch_module.setenv(name, value)
            with made.watched_processes():
                run_well(made)
                run_ill(made)
            yield made
        finally:
            down(directory / "box")
            shutil.rmtree(directory)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    """What a module's fixture may change."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def run_well(planted: Planted) -> None:
    for flow, words in FLOWS.items():
        assert planted.pgvigil("run", flow, *words) == 0, planted.last
    for words in (("doctor",), ("status",), ("audit", "list", "--json"), ("deploy",), ("fleet", "schema")):
        planted.pgvigil(*words)
    planted.pgvigil("status", "--prometheus")
    assert planted.pgvigil("run", "nightly-backup", "demo", "--local") == 0, planted.last


def run_ill(planted: Planted) -> None:
    """Every error whose text has something of a secret near it."""
    fail(planted, PIPELINES, planted.changed(lambda data: data["clusters"]["demo"].update(dsn=NOWHERE)))
    fail(planted, PIPELINES, str(planted.box.fleet_file), PGPASSFILE=str(planted.place / "pgpass"))
    refuse_in_s3(planted)
    refuse_in_pgbackrest(planted)
    refuse_in_the_database(planted)
    refuse_the_fleet_file(planted)
    lose_the_audit_store(planted)


def fail(planted: Planted, flows: tuple[str, ...], fleet: str, **variables: str) -> None:
    for flow in flows:
        code = planted.pgvigil("run", flow, *FLOWS[flow], PGVIGIL_FLEET=fleet, **variables)
        assert code in {1, 2}, planted.last
    planted.pgvigil("doctor", PGVIGIL_FLEET=fleet, **variables)


def refuse_in_s3(planted: Planted) -> None:
    with bad_road(planted.box.s3_port, planted.box.ca_file) as road:
        for verb in ("PutObject", "GetObject", "HeadObject", "ListObjects", "CreateMultipartUpload"):
            road.spoil(verb, refused(403, "SignatureDoesNotMatch"))
        fleet = planted.changed(lambda data: data["s3"].update(endpoint_url=road.url))
        fail(planted, ("restore-partition",), fleet)
        planted.pgvigil("run", "nightly-backup", "demo", PGVIGIL_FLEET=fleet)


def refuse_in_pgbackrest(planted: Planted) -> None:
    """It quotes a line of its configuration, and the command before it what it was given."""
    quoted = str(planted.place / "quoted.conf")
    fleet = planted.changed(lambda data: data["clusters"]["demo"]["pgbackrest"].update(config=quoted))
    fail(planted, OF_PGBACKREST, fleet)
    (planted.place / "refuses").touch()
    fail(planted, OF_PGBACKREST, str(planted.box.fleet_file))
    (planted.place / "refuses").unlink()


def refuse_in_the_database(planted: Planted) -> None:
    """A function of the user's has a password in its error; a backfill and a roll meet it."""
    said = {
        "table": "public.payments",
        "set": {"amount_cents": "planted.say(amount)"},
        "where": "amount_cents > 0",
    }

    def ask(data: dict[str, object]) -> None:
        shop = data["clusters"]["demo"]["databases"]["shop"]  # type: ignore[index]
        shop["backfills"]["cents"] = said
        shop["partitions"][0]["ahead"] = 9

    operate.sql(planted.box, REFUSAL, "shop")
    fail(planted, ("roll-partitions", "run-backfill"), planted.changed(ask))
    operate.sql(planted.box, "DROP EVENT TRIGGER refuse", "shop")


def refuse_the_fleet_file(planted: Planted) -> None:
    """A password in it, or a line that is no YAML with a password in it."""
    inline = NOWHERE.replace("pgvigil@", f"pgvigil:{INLINE}@")
    fleet = planted.changed(lambda data: data["clusters"]["demo"].update(dsn=inline))
    fail(planted, ("nightly-backup",), fleet)
    broken = planted.place / "broken.yaml"
    broken.write_text(f"clusters: {{demo: {{dsn: {inline}, : [}}\n")
    fail(planted, ("nightly-backup",), str(broken))


def lose_the_audit_store(planted: Planted) -> None:
    """What was done waits in the spool, to be read there."""
    spool = planted.box.directory / "waiting"
    away = {"dsn": NOWHERE, "spool": str(spool)}
    planted.pgvigil(
        *("run", "nightly-backup", "demo"),
        PGVIGIL_FLEET=planted.changed(lambda data: data["audit"].update(away)),
    )
    assert list(spool.glob("*.json"))


def test_no_secret_is_anywhere_but_where_it_belongs(planted: Planted) -> None:
    """After flows that ended well, and each kind of error: in nothing that anybody could read."""
    seen = planted.read_all()
    places = [name for name in seen if not name.startswith("output")]
    for kind in READ:
        assert [name for name in places if name.startswith(kind)], kind

    leaks = {
        (place, what)
        for place, text in seen.items()
        for what, secret in planted.secrets.items()
        for form in forms(secret)
        if form in text
    }

    assert leaks <= {("log/primary.log", "password in an error")}, sorted(leaks)


def test_the_scan_finds_what_it_looks_for(planted: Planted) -> None:
    """Every secret stands where it belongs, and the errors were those that have one in them."""
    files = [planted.box.directory / name for name in (*HOLDERS, "log/primary.log") if not name.endswith("/")]
    held = [file.read_text() for file in (*files, *planted.place.iterdir())]
    for what, secret in planted.secrets.items():
        assert any(secret in text for text in held), what
    told = b"".join(text for name, text in planted.seen.items() if name.startswith("output")).decode()
    for words in TOLD:
        assert words in told, words
    assert CIPHER not in told
    assert SAID not in told
