"""The monthly drill brings an archived partition back in its scratch copy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pgvigil.drill import archived
from pgvigil.drill.copy import Copy
from pgvigil.drill.state import Drill
from pgvigil.fleet import load_fleet
from pgvigil.objectstore import ObjectStore, connect
from pgvigil.reports import Verdict, conclude
from pgvigil.runs import Run
from tests.fixtures.drill import Exercise, nothing
from tests.fixtures.partitions import Shop

ARCHIVE = "s3://archive/shop/"
INDEXED = """
CREATE FUNCTION public.plain(bigint) RETURNS bigint IMMUTABLE LANGUAGE plpgsql AS $$BEGIN
    ASSERT NOT (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user), 'as a superuser';
    RETURN $1;
END$$;
SET SESSION AUTHORIZATION pgvigil;
CREATE INDEX ON public.events (public.plain(id));
"""


@pytest.fixture
def archive(exercise: Exercise) -> ObjectStore:
    """Archive one partition of the drilled database; its index calls a function that knows its caller."""
    exercise.sql(INDEXED)
    shop = Shop(exercise.sandbox)
    shop.policy()
    assert Verdict.VERIFIED == shop.roll().verdict
    exercise.pgbackrest("--type=incr", "backup")
    return connect(load_fleet().s3)


def relations(exercise: Exercise) -> list[dict[str, object]]:
    return exercise.sql("SELECT oid, relname FROM pg_class ORDER BY oid")


def objects(archive: ObjectStore, suffix: str = "") -> list[str]:
    return [item.uri for item in archive.list(ARCHIVE) if item.uri.endswith(suffix)]


@contextmanager
def damaged(archive: ObjectStore) -> Iterator[str]:
    """Turn one bit of the rows for the block; gives the folder of the copy."""
    (uri,) = objects(archive, ".copy.zst")
    whole = archive.get(uri)
    archive.put(uri, whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:])
    try:
        yield uri.rpartition("/")[0]
    finally:
        archive.put(uri, whole)


@pytest.mark.long
def test_a_drill_brings_an_archived_partition_back(exercise: Exercise, archive: ObjectStore) -> None:
    """The check names partition, rows and manifest; the source is as it was; damage refutes it.

    No function of the table's owner is called as a superuser.
    """
    before, kept = relations(exercise), objects(archive)
    again: list[Run] = []

    def prove_damaged(drill: Drill, copy: Copy) -> None:
        run = Run(drill.run.identity, drill.run.fleet, drill.run.log, drill.run.directory)
        with damaged(archive) as folder:
            archived.prove(replace(drill, run=run), copy, on_progress=nothing)
        assert folder in " ".join(finding.message for finding in run.findings)
        again.append(run)

    exercise.after_archived = prove_damaged
    report = exercise.drill()

    assert Verdict.VERIFIED == report.verdict, report.findings
    (check,) = (check for check in report.checks if check.id == "archived")
    assert Verdict.VERIFIED == check.verdict
    assert check.actual.startswith("shop: public.events_")
    assert check.actual.endswith("manifest.json")
    assert (before, kept) == (relations(exercise), objects(archive))

    (run,) = again
    assert ["archived"] == [each.id for each in run.checks]
    assert Verdict.REFUTED == conclude(run.checks)
