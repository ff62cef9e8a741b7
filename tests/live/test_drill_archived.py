"""The monthly drill brings an archived partition back in its scratch copy."""

import pytest

from pgvigil.fleet import load_fleet
from pgvigil.objectstore import ObjectStore, connect
from pgvigil.reports import Verdict
from tests.fixtures.drill import Exercise
from tests.fixtures.partitions import Shop

ARCHIVE = "s3://archive/shop/"


@pytest.fixture
def archive(exercise: Exercise) -> ObjectStore:
    """Archive one partition of the drilled database, if none is yet."""
    store = connect(load_fleet().s3)
    if not list(store.list(ARCHIVE)):
        shop = Shop(exercise.sandbox)
        shop.policy()
        assert Verdict.VERIFIED == shop.roll().verdict
        exercise.pgbackrest("--type=incr", "backup")
    return store


def relations(exercise: Exercise) -> list[dict[str, object]]:
    return exercise.sql("SELECT oid, relname FROM pg_class ORDER BY oid")


def test_a_drill_brings_an_archived_partition_back(exercise: Exercise, archive: ObjectStore) -> None:
    """In the copy: the check names partition, rows and manifest, and the source has nothing more or less."""
    before, objects = relations(exercise), [item.uri for item in archive.list(ARCHIVE)]
    report = exercise.drill()

    assert Verdict.VERIFIED == report.verdict, report.findings
    (check,) = (check for check in report.checks if check.id == "archived")
    assert Verdict.VERIFIED == check.verdict
    assert check.actual.startswith("shop: public.events_")
    assert check.actual.endswith("manifest.json")
    assert (before, objects) == (relations(exercise), [item.uri for item in archive.list(ARCHIVE)])


def flip(data: bytes) -> bytes:
    return data[:-30] + bytes([data[-30] ^ 1]) + data[-29:]


def test_a_damaged_archive_refutes_the_drill(exercise: Exercise, archive: ObjectStore) -> None:
    """The database itself came back whole, and the report says that the archive did not."""
    (uri,) = (item.uri for item in archive.list(ARCHIVE) if item.uri.endswith(".copy.zst"))
    whole = archive.get(uri)
    archive.put(uri, flip(whole))
    try:
        report = exercise.drill()
    finally:
        archive.put(uri, whole)

    assert Verdict.REFUTED == report.verdict
    assert ["archived"] == [check.id for check in report.checks if check.verdict is Verdict.REFUTED]
    assert uri.rpartition("/")[0] in " ".join(finding.message for finding in report.findings)
