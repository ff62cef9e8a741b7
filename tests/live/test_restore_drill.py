"""A drill from choosing to evidence: green by proof, red by its reason, and no trace of the copy."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pgvigil.drill.copy import Copy
from pgvigil.drill.copy import connect as connect_copy
from pgvigil.drill.copyprocesses import find
from pgvigil.drill.report import DrillReport
from pgvigil.drill.state import Halt, Marked
from pgvigil.fleet import load_fleet
from pgvigil.objectstore import connect as connect_store
from pgvigil.reports import Verdict
from pgvigil.wal.names import parse_lsn, segment_name
from tests.fixtures.drill import Exercise
from tests.fixtures.reports import codes, found, refuted

SHOP = "shop"


def unproven(report: DrillReport) -> list[str]:
    return [c.id for c in report.checks if c.verdict is Verdict.INCONCLUSIVE and c.required]


def left(exercise: Exercise) -> list[Path]:
    return list((exercise.sandbox.directory / "drill").iterdir())


@pytest.mark.parametrize("kind", ["default", "time", "xid", "name"])
def test_every_kind_of_target_is_reached_and_proven_equal(exercise: Exercise, kind: str) -> None:
    """Each stops where it was fixed, between two commits, and leaves no finding and no copy."""
    report = exercise.drill(recovery_target=kind)

    assert (Verdict.VERIFIED, ()) == (report.verdict, report.findings)
    assert [] == unproven(report)
    assert {"restore repo1", f"restore repo1 {kind}"} == {proof.name for proof in report.proofs}
    assert ["postgres", "shop", "template1"] == sorted(each.database for each in report.databases)
    assert {1.0} == {each.share for each in report.databases}
    assert ["first query", "replay", "restore", "start"] == sorted(
        {p.name for p in report.phases} & {"restore", "replay", "start", "first query"}
    )
    assert [] == left(exercise)


def change_on_promoted_copy(statement: str) -> Callable[[Copy, Halt], None]:
    """Do something to the copy when it has come to the stop where shop is compared."""

    def change(copy: Copy, halt: Halt) -> None:
        if SHOP in [database.name for database in halt.databases]:
            with connect_copy(copy, SHOP, "saboteur") as session:
                session.execute("SELECT pg_promote()")
                session.execute(statement.encode())

    return change


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        (
            "UPDATE public.customers SET name = name || '!' WHERE id = 17",
            r"public\.customers has 2000 rows on",
        ),
        ("DELETE FROM public.orders WHERE id = 17", r"public\.orders has 5999 rows in the copy, 6000 at"),
    ],
)
def test_a_row_that_is_not_the_sources_refutes_the_drill(
    exercise: Exercise, statement: str, told: str
) -> None:
    """One row changed, one missing: the table is named, and no other check is red."""
    exercise.at_stop = change_on_promoted_copy(f"SET session_replication_role = replica; {statement}")

    report = exercise.drill(recovery_target="lsn")

    assert (Verdict.REFUTED, ["rows shop"]) == (report.verdict, refuted(report))
    assert ["rows-differs"] == codes(report)
    assert re.search(told, found(report, "rows shop"))


def test_a_sequence_behind_refutes_the_drill(exercise: Exercise) -> None:
    """It would give out numbers twice; it is named with both values."""
    exercise.at_stop = change_on_promoted_copy("SELECT setval('public.orders_id_seq', 17)")

    report = exercise.drill(recovery_target="lsn")

    assert ["sequences shop"] == refuted(report)
    assert "orders_id_seq" in found(report, "sequences shop")


def overwrite(relation: str, offset: int) -> Callable[[Copy], None]:
    """Overwrite some bytes of a relation's first pages on the disk of a promoted copy."""

    def damage(copy: Copy) -> None:
        with connect_copy(copy, SHOP, "saboteur") as session:
            row = session.execute("SELECT pg_relation_filepath(%s) AS path", (relation,)).fetchone() or {}
        with (copy.place.data / row["path"]).open("r+b") as file:
            file.seek(offset)
            file.write(b"\xa5" * 64)

    return damage


def test_a_damaged_index_refutes_the_drill(exercise: Exercise) -> None:
    """Rows are equal, so only amcheck and the checksums can tell; both name the index."""
    exercise.after_promote = overwrite("public.payments_order_id_idx", 8192 + 4000)

    report = exercise.drill(recovery_target="lsn")

    assert ["amcheck shop", "checksum failures", "checksums"] == sorted(refuted(report))
    assert "payments_order_id_idx" in found(report, "amcheck shop")
    assert "payments_order_id_idx" in found(report, "checksums")


def test_wal_that_is_missing_before_the_target_refutes_the_drill(exercise: Exercise) -> None:
    """Recovery ends short of the target; the copy might have looked healthy, and is not called so."""
    store = connect_store(load_fleet().s3)
    taken: dict[str, bytes] = {}

    def lose_a_segment(marked: Marked) -> None:
        size = 16 << 20
        number = parse_lsn(marked.target.lsn) // size - 1
        wanted = segment_name(1, number, size)
        for item in list(store.list("s3://pgbackrest/demo/archive/")):
            if f"/{wanted}-" in item.uri:
                taken[item.uri] = store.get(item.uri)
                store.delete(item.uri)

    for _ in range(3):
        exercise.sql("SELECT pg_create_restore_point('x'), pg_switch_wal()")
    exercise.after_mark = lose_a_segment

    try:
        report = exercise.drill(recovery_target="name", backup_set="oldest")
    finally:
        for uri, data in taken.items():
            store.put(uri, data)

    assert 1 == len(taken)
    assert "recovered" in refuted(report)
    assert "recovery-wal-missing" in codes(report)
    assert {"rows", "amcheck", "checksums", "witnesses"} <= set(unproven(report))
    assert [] == left(exercise)


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"recovery_target": "time:2020-01-01T00:00:00+00:00"}, "outside what can be restored"),
        ({"recovery_target": "time:2020-01-01T00:00:00"}, "no offset"),
        ({"recovery_target": "yesterday"}, "no recovery target"),
        ({"repo": 4}, "no repository 4"),
        ({"backup_set": "20200101-000000F"}, "no backup set"),
    ],
)
def test_what_cannot_be_drilled_is_told_with_its_cure(
    exercise: Exercise, wanted: dict[str, object], told: str
) -> None:
    """Could not run: one finding with a hint, nothing was restored, and no clock is set."""
    report = exercise.drill(**wanted)

    assert Verdict.INCONCLUSIVE is report.verdict
    assert told in report.findings[0].message
    assert report.findings[0].hint
    assert () == report.proofs


def test_a_point_of_the_past_is_reached_but_not_called_equal(exercise: Exercise) -> None:
    """Recoverability there is proven; nobody knows what it must hold, so no clock of equality moves."""
    past = exercise.sql("SELECT pg_create_restore_point('past')::text AS lsn")[0]["lsn"]
    exercise.sql("SELECT pg_switch_wal()")

    report = exercise.drill(recovery_target=f"lsn:{past}")

    assert (Verdict.VERIFIED, ()) == (report.verdict, report.proofs)
    assert () == report.databases
    assert report.reached is not None
    assert parse_lsn(report.reached.lsn) >= parse_lsn(past)


def test_a_kept_copy_runs_until_it_is_reaped(exercise: Exercise) -> None:
    """`keep` leaves the copy to a person, says how to enter it, and the next drill lets it live."""
    report = exercise.drill(keep=True, recovery_target="name")
    (copy,) = left(exercise)
    again = exercise.drill(recovery_target="name")

    try:
        assert (Verdict.VERIFIED, ["copy-kept"]) == (report.verdict, codes(report))
        assert re.search(r"psql -h \S+ -U postgres", report.findings[0].message)
        assert Verdict.VERIFIED is again.verdict
        assert [copy] == left(exercise)
        assert find(copy, copy / "data")
    finally:
        exercise.expire(copy)
    assert Verdict.VERIFIED is exercise.drill(recovery_target="name").verdict
    assert [] == left(exercise)


def test_a_writer_that_never_ends_holds_up_no_drill(exercise: Exercise) -> None:
    """Its table gets no fence, and is proven all the same: equality needs none."""
    exercise.policy(fence_for="2s")
    with exercise.session(SHOP) as writer, writer.transaction():
        writer.execute("UPDATE public.customers SET name = name WHERE id = 1")
        report = exercise.drill(recovery_target="name")

    assert (Verdict.VERIFIED, ()) == (report.verdict, report.findings)
