"""A drill from choosing to evidence: green by proof, red by its reason, and no trace of the copy."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pgvigil.drill.copy import Copy
from pgvigil.drill.copy import connect as connect_copy
from pgvigil.drill.copyprocesses import find
from pgvigil.drill.report import DrillReport
from pgvigil.drill.source import Cluster, read_cluster
from pgvigil.drill.state import Halt, Marked
from pgvigil.postgres import Connection
from pgvigil.reports import Finding, Verdict
from pgvigil.wal.names import parse_lsn, segment_name
from tests.fixtures.drill import Exercise
from tests.fixtures.drill_source import wait
from tests.fixtures.reports import codes, found, refuted

SHOP = "shop"


def unproven(report: DrillReport) -> list[str]:
    return [c.id for c in report.checks if c.verdict is Verdict.INCONCLUSIVE and c.required]


def left(exercise: Exercise) -> list[Path]:
    return list((exercise.sandbox.directory / "drill").iterdir())


@pytest.fixture
def leased(exercise: Exercise) -> None:
    """A role that is gone after the mark, in WAL that is archived before the copy is recovered."""

    def drop(_: Marked) -> None:
        exercise.sql("DROP ROLE leased")
        segment = exercise.sql("SELECT pg_walfile_name(pg_switch_wal()) AS name")[0]["name"]
        wait(lambda: stored(exercise, segment))

    exercise.sql("CREATE ROLE leased")
    exercise.sql("GRANT pg_monitor TO leased")
    exercise.after_mark = drop


@pytest.mark.parametrize(
    "kind",
    [
        "default",
        "time",
        pytest.param("xid", marks=pytest.mark.long),
        pytest.param("name", marks=pytest.mark.long),
    ],
)
@pytest.mark.usefixtures("leased")
def test_every_kind_of_target_is_reached_and_proven_equal(exercise: Exercise, kind: str) -> None:
    """Each stops where it was fixed, between two commits, and leaves no finding and no copy.

    A role that ends after the mark is no difference, though the default target lies behind that.
    """
    report = exercise.drill(recovery_target=kind)

    assert (Verdict.VERIFIED, ()) == (report.verdict, faults(report))
    assert [] == unproven(report)
    assert {"restore repo1", f"restore repo1 {kind}"} == {proof.name for proof in report.proofs}
    assert ["postgres", "shop", "template1"] == sorted(each.database for each in report.databases)
    assert {1.0} == {each.share for each in report.databases}
    assert report.versions.source == report.versions.copied != ""
    assert ["first query", "replay", "restore", "start"] == sorted(
        {p.name for p in report.phases} & {"restore", "replay", "start", "first query"}
    )
    assert [] == left(exercise)


def faults(report: DrillReport) -> tuple[Finding, ...]:
    """Return what was found but for how long it took, of which a busy machine may say anything."""
    return tuple(finding for finding in report.findings if finding.code != "rto-trend")


SABOTAGE = (
    "SELECT pg_promote()",
    "SET session_replication_role = replica",
    "UPDATE public.customers SET name = name || '!' WHERE id = 17",
    "DELETE FROM public.orders WHERE id = 17",
    "SELECT setval('public.orders_id_seq', 17)",
    "UPDATE pg_proc SET prosrc = 'SELECT n * 3' WHERE proname = 'doubled'",
    # as if it had been so for long: what was written around the mark may have changed at the source
    "CREATE EXTENSION pg_surgery SCHEMA public",
    "SELECT public.heap_force_freeze('pg_proc', ARRAY(SELECT ctid FROM pg_proc WHERE proname = 'doubled'))",
    "DROP EXTENSION pg_surgery",
    "DROP ROLE auditor",
)


@pytest.fixture
def doubled(exercise: Exercise) -> Iterator[None]:
    """A function and a role of the source."""
    exercise.sql("CREATE FUNCTION public.doubled(n int) RETURNS int LANGUAGE sql AS 'SELECT n * 2'")
    exercise.sql("CREATE ROLE auditor")
    yield
    exercise.sql("DROP FUNCTION public.doubled(int)")
    exercise.sql("DROP ROLE auditor")


@pytest.mark.usefixtures("doubled")
def test_what_is_not_the_sources_refutes_the_drill_by_its_name(exercise: Exercise) -> None:
    """A row changed, one missing, a sequence behind, a function's body, a role: each is told apart.

    That users change the function and the sequence after the mark, while rows are hashed, excuses nothing.
    """

    def change(_: object) -> None:
        exercise.sql("ALTER FUNCTION public.doubled(int) COST 7")
        exercise.sql("SELECT setval('public.orders_id_seq', 5999)")

    def sabotage(copy: Copy, halt: Halt) -> None:
        # On a busy machine databases may stop apart, and what is promoted recovers no further.
        if halt.is_last and SHOP in [database.name for database in halt.databases]:
            with connect_copy(copy, SHOP, "saboteur") as session:
                for statement in SABOTAGE:
                    session.execute(statement.encode())

    exercise.on_source = change
    exercise.after_mark = lambda _: exercise.sql("SELECT setval('public.orders_id_seq', 6000)")
    exercise.at_stop = sabotage
    reports = (exercise.drill(recovery_target="lsn") for _ in range(10))
    report = next(each for each in reports if each.verdict is Verdict.REFUTED)

    assert {"rows shop", "sequences shop", "catalogue shop", "catalogue cluster"} == set(refuted(report))
    rows = found(report, "rows shop")
    assert re.search(r"public\.customers has 2000 rows on both sides", rows)
    assert re.search(r"public\.orders has 5999 rows in the copy, 6000 at", rows)
    assert "orders_id_seq" in found(report, "sequences shop")
    assert "public.doubled(integer)" in found(report, "catalogue shop")
    assert "role auditor" in found(report, "catalogue cluster")
    assert 5 == len(faults(report))
    assert {Verdict.REFUTED} == {proof.verdict for proof in report.proofs}


@pytest.fixture
def shut(exercise: Exercise) -> Iterator[None]:
    """A database that lets nobody in, and one whose DROP DATABASE was broken off."""
    exercise.sql("CREATE DATABASE shut ALLOW_CONNECTIONS false")
    exercise.sql("CREATE DATABASE ruin")
    exercise.sql("UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'ruin'")
    yield
    exercise.sql("UPDATE pg_database SET datconnlimit = -1 WHERE datname = 'ruin'")
    exercise.sql("DROP DATABASE ruin")
    exercise.sql("DROP DATABASE shut")


@pytest.mark.long
@pytest.mark.usefixtures("shut")
def test_a_database_that_nobody_can_enter_is_not_called_equal(exercise: Exercise) -> None:
    """What it holds is not known, so the drill is no proof; of one half dropped there is nothing to prove."""
    report = exercise.drill(recovery_target="name")

    assert (Verdict.INCONCLUSIVE, ["rows shut"]) == (report.verdict, unproven(report))
    assert ["database-closed"] == [finding.code for finding in faults(report)]
    assert "broken off" in next(check.detail for check in report.checks if check.id == "rows ruin")


@pytest.fixture
def late(exercise: Exercise) -> Iterator[str]:
    """The name of a database that does not exist before the drill."""
    yield "late"
    exercise.sql("DROP DATABASE late")


def create(exercise: Exercise, database: str) -> None:
    exercise.sql(f"CREATE DATABASE {database}")
    exercise.sql("CREATE TABLE public.money AS SELECT n FROM generate_series(1, 1000) AS n", database)


@pytest.mark.long
def test_a_database_that_appeared_while_the_drill_began_is_compared(exercise: Exercise, late: str) -> None:
    """The list of databases is read again after the last mark: rows that the copy lacks are missed."""

    def sabotage(copy: Copy, halt: Halt) -> None:
        if halt.is_last:
            with connect_copy(copy, late, "saboteur") as session:
                session.execute("SELECT pg_promote()")
                session.execute("DELETE FROM public.money")

    exercise.after_claim = lambda _: create(exercise, late)
    exercise.at_stop = sabotage
    report = exercise.drill(recovery_target="name")

    assert Verdict.REFUTED is report.verdict
    assert "public.money has 0 rows in the copy, 1000 at the source" in found(report, "rows late")


@pytest.mark.long
def test_a_database_of_the_copy_that_no_mark_knows_leaves_the_drill_open(
    exercise: Exercise, late: str
) -> None:
    """What was created after the last mark is there, where all WAL is replayed, and nobody compared it."""

    def create_and_archive(_: Marked) -> None:
        create(exercise, late)
        archive_all(exercise)

    exercise.after_mark = create_and_archive
    report = exercise.drill(recovery_target="default")

    assert Verdict.INCONCLUSIVE is report.verdict
    assert "rows late" in unproven(report)


def make_anew(exercise: Exercise, database: str) -> None:
    """Give the name of a database to another one, in WAL that is archived."""
    exercise.sql(f"DROP DATABASE {database} WITH (FORCE)")
    exercise.sql(f"CREATE DATABASE {database}")
    exercise.sql("CREATE TABLE public.other AS SELECT 1 AS n", database)
    archive_all(exercise)


@pytest.mark.long
def test_a_database_that_was_made_anew_after_its_mark_is_marked_again(
    exercise: Exercise, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name is another's by then: what was hashed under it says nothing of what the copy has."""

    def look_after(session: Connection) -> Cluster:
        monkeypatch.setattr("pgvigil.drill.marking.read_cluster", read_cluster)
        make_anew(exercise, late)
        return read_cluster(session)

    create(exercise, late)
    monkeypatch.setattr("pgvigil.drill.marking.read_cluster", look_after)
    report = exercise.drill(recovery_target="default")

    assert Verdict.VERIFIED is report.verdict
    (compared,) = (each for each in report.databases if each.database == late)
    assert {"public.other"} == {t.relation for t in compared.tables if t.relation.startswith("public.")}


@pytest.mark.long
def test_a_database_that_was_made_anew_after_the_last_mark_leaves_the_drill_open(
    exercise: Exercise, late: str
) -> None:
    """That another one of its name was equal at its mark does not hide it."""
    create(exercise, late)
    exercise.after_mark = lambda _: make_anew(exercise, late)
    report = exercise.drill(recovery_target="default")

    assert (Verdict.INCONCLUSIVE, ["rows late meanwhile"]) == (report.verdict, unproven(report))


@pytest.mark.long
def test_a_database_that_was_dropped_after_its_mark_is_compared(exercise: Exercise) -> None:
    """The copy has it, and the source is asked for nothing but the names of what differs."""
    create(exercise, "ci")
    exercise.after_mark = lambda _: exercise.sql("DROP DATABASE ci")

    report = exercise.drill(recovery_target="name")

    assert (Verdict.VERIFIED, ()) == (report.verdict, faults(report))
    assert "ci" in {each.database for each in report.databases}


@pytest.mark.long
def test_a_database_that_cannot_be_read_in_the_copy_keeps_no_other_from_being_judged(
    exercise: Exercise,
) -> None:
    """What is not known of it is told under its name, and the drill goes on to its end."""

    def shut_out(copy: Copy, halt: Halt) -> None:
        if halt.is_last:
            with connect_copy(copy, "postgres", "saboteur") as session:
                session.execute("SELECT pg_promote()")
                session.execute("ALTER DATABASE shop ALLOW_CONNECTIONS false")

    exercise.at_stop = shut_out
    report = exercise.drill(recovery_target="name")

    assert {"rows shop", "catalogue shop", "sequences shop"} <= {*unproven(report)}
    assert {"rows postgres", "catalogue template1", "amcheck shop"} <= {
        check.id for check in report.checks if check.verdict is Verdict.VERIFIED
    }


def archive_all(exercise: Exercise) -> None:
    """Let the repository have all WAL that was written so far."""
    (row,) = exercise.sql(
        "SELECT pg_create_restore_point('all'), pg_walfile_name(pg_current_wal_lsn()) AS segment"
    )
    exercise.sql("SELECT pg_switch_wal()")
    newest = "SELECT coalesce(last_archived_wal, '') AS name FROM pg_stat_archiver"
    wait(lambda: exercise.sql(newest)[0]["name"] >= row["segment"])


@pytest.mark.long
def test_a_table_reordered_at_the_source_is_no_mismatch(exercise: Exercise) -> None:
    """Rows are compared, not where they lie: rewritten before the mark and after it, all is equal."""
    exercise.sql("CREATE INDEX by_name ON public.customers (name DESC)")
    exercise.sql("CLUSTER public.customers USING by_name")
    exercise.after_mark = lambda _: exercise.sql("CLUSTER public.customers USING customers_pkey")

    report = exercise.drill(recovery_target="name")
    exercise.sql("DROP INDEX public.by_name")

    assert (Verdict.VERIFIED, ()) == (report.verdict, faults(report))


def overwrite(copy: Copy, relation: str, offset: int) -> None:
    """Overwrite some bytes of a relation's first pages on the disk of a promoted copy."""
    with connect_copy(copy, SHOP, "saboteur") as session:
        row = session.execute("SELECT pg_relation_filepath(%s) AS path", (relation,)).fetchone() or {}
        session.execute("VACUUM (FREEZE)")  # hint bits would make the page dirty again, and win
        session.execute("CHECKPOINT")
    with (copy.place.data / row["path"]).open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * 64)


@pytest.mark.long
def test_damage_on_disk_and_a_database_without_amcheck_are_named_apart(exercise: Exercise) -> None:
    """Rows are equal, so only amcheck and checksums can tell; where amcheck cannot be had, that is told."""

    def damage(copy: Copy) -> None:
        overwrite(copy, "public.payments_order_id_idx", 8192 + 4000)
        overwrite(copy, "public.customers", 8192 + 4000)
        with connect_copy(copy, "template1", "saboteur") as session:
            session.execute("CREATE SCHEMA pgvigil_amcheck")

    exercise.after_promote = damage
    report = exercise.drill(recovery_target="lsn")

    assert ["amcheck shop", "checksum failures", "checksums"] == sorted(refuted(report))
    assert "payments_order_id_idx" in found(report, "amcheck shop")
    assert "payments_order_id_idx" in found(report, "checksums")
    assert "public.customers" in found(report, "checksums")  # amcheck met its page in memory
    assert ["amcheck template1"] == unproven(report)
    assert "amcheck-unchecked" in codes(report)


def test_wal_that_is_missing_before_the_target_refutes_the_drill(exercise: Exercise) -> None:
    """Recovery ends short of the target; the copy might have looked healthy, and is not called so."""
    taken: list[Path] = []

    def lose_a_segment(marked: Marked) -> None:
        number = parse_lsn(marked.target.lsn) // (16 << 20) - 1
        (file,) = stored(exercise, segment_name(1, number, 16 << 20))
        taken.append(file.rename(exercise.sandbox.directory / file.name))

    for _ in range(3):
        exercise.sql("SELECT pg_create_restore_point('x'), pg_switch_wal()")
    exercise.after_mark = lose_a_segment

    report = exercise.drill(recovery_target="name", backup_set="oldest")
    for file in taken:
        file.rename(archive(exercise) / file.name[:16] / file.name)

    assert 1 == len(taken)
    assert "recovered" in refuted(report)
    assert "recovery-wal-missing" in codes(report)
    assert {"rows", "amcheck", "checksums", "witnesses"} <= set(unproven(report))
    assert [] == left(exercise)


def archive(exercise: Exercise) -> Path:
    return exercise.sandbox.directory / "repo" / "archive" / "demo" / "15-1"


def stored(exercise: Exercise, segment: str) -> list[Path]:
    return list(archive(exercise).glob(f"*/{segment}-*"))


@pytest.mark.long
def test_a_timeline_that_is_not_the_sources_refutes_the_drill(exercise: Exercise) -> None:
    """A restored server that archived leads recovery astray; that is told, and so are its files."""
    left_at = exercise.sql("SELECT pg_create_restore_point('fork')::text AS lsn")[0]["lsn"]
    stray, history = archive(exercise) / "0000000200000000", archive(exercise) / "00000002.history"

    def pollute(marked: Marked) -> None:
        segment = segment_name(1, parse_lsn(marked.target.lsn) // (16 << 20), 16 << 20)
        (own,) = stored(exercise, segment)
        stray.mkdir()
        shutil.copy(own, stray / own.name.replace("00000001", "00000002", 1))
        history.write_text(f"1\t{left_at}\tno recovery target specified\n")
        for path in (stray, history, *stray.iterdir()):
            exercise.sandbox.give(path)

    exercise.after_mark = pollute
    report = exercise.drill(recovery_target="name")
    shutil.rmtree(stray)
    history.unlink()

    assert Verdict.REFUTED is report.verdict
    assert {"recovered", "repo1.untouched"} <= set(refuted(report))
    assert "recovery-timeline-stray" in codes(report)
    assert "00000002.history" in found(report, "repo1.untouched")
    assert [] == left(exercise)


def test_a_repository_of_another_cluster_is_not_drilled(exercise: Exercise) -> None:
    """Its backups are of another system: nothing is restored, and both systems are named."""
    fleet = yaml.safe_load(exercise.sandbox.fleet_file.read_text())
    fleet["clusters"]["demo"]["dsn"] = exercise.sandbox.ops_admin_dsn
    exercise.sandbox.fleet_file.write_text(yaml.safe_dump(fleet))

    report = exercise.drill()

    assert (Verdict.INCONCLUSIVE, ()) == (report.verdict, report.proofs)
    assert re.search(r"it is of system \d+, the source is \d+", report.findings[0].message)


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


@pytest.mark.long
def test_a_point_of_the_past_is_reached_but_not_called_equal(exercise: Exercise) -> None:
    """Recoverability there is proven; nobody knows what it must hold, so no clock of equality moves."""
    past = exercise.sql("SELECT pg_create_restore_point('past')::text AS lsn")[0]["lsn"]
    exercise.sql("SELECT pg_switch_wal()")

    report = exercise.drill(recovery_target=f"lsn:{past}")

    assert (Verdict.VERIFIED, ()) == (report.verdict, report.proofs)
    assert () == report.databases
    assert report.reached is not None
    assert parse_lsn(report.reached.lsn) >= parse_lsn(past)


@pytest.mark.long
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


@pytest.mark.long
def test_a_writer_that_never_ends_holds_up_no_drill(exercise: Exercise) -> None:
    """Its table gets no fence, and is proven all the same: equality needs none."""
    exercise.policy(fence_for="2s")
    with exercise.session(SHOP) as writer, writer.transaction():
        writer.execute("UPDATE public.customers SET name = name WHERE id = 1")
        report = exercise.drill(recovery_target="name")

    assert (Verdict.VERIFIED, ()) == (report.verdict, faults(report))
