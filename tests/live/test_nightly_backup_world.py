"""A backup run among others: locks, evidence, retention, repositories, and what forbids it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from pgvigil.backup import operation
from pgvigil.backup.facts import PROOF_NOTE
from pgvigil.errors import ToolFailed
from pgvigil.lock import hold_stanza
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from pgvigil.sandbox import postgres as sandbox_postgres
from pgvigil.sandbox import services
from tests.fixtures.backup import Night
from tests.fixtures.reports import codes, found, refuted

pytestmark = pytest.mark.long


def test_a_stanza_in_use_is_left_alone_and_its_owner_named(night: Night) -> None:
    """The second run waits its bounded time, then leaves with the name of the first."""
    night.edit_fleet(wait="1s")
    with hold_stanza(night.sandbox.dsn(), "demo", "pgvigil restore_drill 4711", wait=timedelta(seconds=5)):
        report = night.backup()

    assert (Verdict.INCONCLUSIVE, ["PGV-201"]) == (report.verdict, codes(report))
    assert "pgvigil restore_drill 4711" in report.findings[0].message


def test_a_dead_owners_lock_does_not_outlive_it(night: Night) -> None:
    """SIGKILL of the holder frees the stanza for the next run."""
    script = (
        "import sys, time; from datetime import timedelta; from pgvigil.lock import hold_stanza\n"
        f"with hold_stanza({night.sandbox.dsn()!r}, 'demo', 'dead', timedelta(seconds=5)):\n"
        "    print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert b"held\n" == holder.stdout.readline()
    holder.kill()
    holder.wait()
    holder.stdout.close()

    assert Verdict.VERIFIED is night.backup().verdict


def test_a_lost_lock_stops_the_run_before_it_changes_anything(night: Night) -> None:
    """A server restart in between frees the lock; the run notices before the next step."""
    night.after_look = lambda _: night.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'pgvigil nightly%'"
    )

    report = night.backup()

    assert (Verdict.INCONCLUSIVE, ["PGV-201"]) == (report.verdict, codes(report))
    assert [] == night.find("backup.manifest")


def test_a_lock_that_was_let_go_stops_the_run(night: Night) -> None:
    """The session lives on without it, as a pooler between us may arrange; nothing is changed any more."""
    night.after_look = lambda stanza: stanza.lock.connection.execute("SELECT pg_advisory_unlock_all()")

    report = night.backup()

    assert (Verdict.INCONCLUSIVE, ["PGV-201"]) == (report.verdict, codes(report))
    assert [] == night.find("backup.manifest")


@contextmanager
def ops_down(night: Night) -> Iterator[None]:
    """Stop the audit store, and start it again."""
    stop_cluster(night, "ops")
    yield
    sandbox_postgres.start(night.sandbox, "ops")


def stop_cluster(night: Night, cluster: str) -> None:
    command = [
        str(night.sandbox.postgres_bin / "pg_ctl"),
        "-D",
        str(night.sandbox.data(cluster)),
        "-m",
        "fast",
        "-w",
        "stop",
    ]
    services.run_tool(night.sandbox.directory, command, user=night.sandbox.server_user)


def test_an_audit_store_that_is_down_costs_no_backup_and_no_event(night: Night) -> None:
    """The events wait in the spool, and the next run sends them in their order."""
    with ops_down(night):
        first = night.backup()
    second = night.backup()

    assert (Verdict.VERIFIED, ["PGV-601"]) == (first.verdict, codes(first))
    assert Verdict.VERIFIED is second.verdict
    assert [] == list(night.sandbox.directory.glob("spool/*.json"))
    assert {str(first.run_id), str(second.run_id)} <= ended_runs(night)


def ended_runs(night: Night) -> set[str]:
    with connect(night.sandbox.ops_dsn(), "test") as session:
        rows = session.execute("SELECT run_id FROM pgvigil.audit WHERE kind = 'run_ended'").fetchall()
    return {str(row["run_id"]) for row in rows}


def test_nothing_is_changed_when_no_evidence_can_be_kept(night: Night) -> None:
    """Audit store down and spool unusable: the run refuses before it begins."""
    spool = night.sandbox.directory / "spool"
    kept = spool.rename(spool.with_name("kept-spool"))
    spool.write_text("not a directory")
    with ops_down(night):
        report = night.backup()
    spool.unlink()
    kept.rename(spool)

    assert (Verdict.INCONCLUSIVE, ["PGV-600"]) == (report.verdict, codes(report))
    assert [] == night.find("backup.manifest")


def test_a_report_store_that_is_away_costs_no_backup(night: Night) -> None:
    """The report then stands in the audit log itself, and a finding says so."""
    data = yaml.safe_load(night.sandbox.fleet_file.read_text())
    data["audit"]["reports"] = "s3://no-such-bucket/reports"
    night.sandbox.fleet_file.write_text(yaml.safe_dump(data))

    report = night.backup()

    assert (Verdict.VERIFIED, ["PGV-501"]) == (report.verdict, codes(report))
    assert () == report.evidence


def test_retention_keeps_proven_fulls_only_by_count(night: Night) -> None:
    """The oldest full goes when enough proven ones are newer; its dependants and WAL go with it."""
    night.backup("full")
    incr = night.backup("incr")
    night.backup("full")
    third = night.backup("full")

    listed = yaml.safe_load(night.pgbackrest("info", "--output=json"))[0]
    assert 2 == len(third.expired)
    assert incr.backups[0].label in third.expired
    assert ["full", "full"] == [backup["type"] for backup in listed["backup"]]
    assert listed["archive"][0]["min"] >= listed["backup"][0]["archive"]["start"]


def test_an_unproven_full_pushes_no_proven_one_out(night: Night) -> None:
    """Backups that nobody proved do not count for retention."""
    first = night.backup("full")
    for _ in range(2):
        night.pgbackrest("--type=full", "--no-expire-auto", "--log-level-console=off", "backup")
    last = night.backup("full")
    labels = [b["label"] for b in yaml.safe_load(night.pgbackrest("info", "--output=json"))[0]["backup"]]

    assert () == last.expired
    assert first.backups[0].label in labels
    assert 4 == len(labels)


def add_second_repository(night: Night) -> Path:
    second = night.sandbox.directory / "repo2"
    second.mkdir()
    night.sandbox.give(second)
    conf = night.sandbox.pgbackrest_conf
    conf.write_text(conf.read_text().replace("[global]", f"[global]\nrepo2-path={second}"))
    night.pgbackrest("stanza-create")
    night.sql("SELECT pg_switch_wal()")
    return second


def test_every_repository_is_backed_up_and_proven_on_its_own(night: Night) -> None:
    """Two repositories: a proof each, and damage in one leaves the other's proof standing."""
    second = add_second_repository(night)

    def damage(taken: operation.Taken) -> None:
        if taken.backup.repo == 2:
            next(second.glob(f"backup/demo/{taken.backup.label}/pg_data/base/1/1259.zst")).unlink()

    night.after_take = damage

    report = night.backup()

    assert {"backup repo1": "verified", "backup repo2": "refuted"} == {
        p.name: p.verdict for p in report.proofs
    }
    assert ["repo2.files"] == refuted(report)
    assert "base/1/1259 is missing" in found(report, "repo2.files")


def test_a_repository_that_fails_leaves_the_others_alone(night: Night) -> None:
    """The first repository's failure is its own inconclusive proof; the second is proven all the same."""
    add_second_repository(night)

    def fail(taken: operation.Taken) -> None:
        if taken.backup.repo == 1:
            raise ToolFailed("the first repository is away", hint="bring it back")

    night.after_take = fail

    report = night.backup()

    assert Verdict.INCONCLUSIVE is report.verdict
    assert {"backup repo1": "inconclusive", "backup repo2": "verified"} == {
        proof.name: proof.verdict for proof in report.proofs
    }


def test_pages_that_were_not_looked_at_prove_nothing(night: Night) -> None:
    """With checksum-page=n in pgbackrest.conf, `error: false` says nothing: we do not know."""
    conf = night.sandbox.pgbackrest_conf
    conf.write_text(conf.read_text().replace("[global]", "[global]\nchecksum-page=n", 1))

    report = night.backup()

    assert Verdict.INCONCLUSIVE is report.verdict
    assert "were not looked at" in found(report, "repo1.pages")
    assert PROOF_NOTE not in night.pgbackrest("info", "--output=json")


def test_a_backup_taken_offline_is_no_parent_and_no_obstacle(night: Night) -> None:
    """A backup without WAL in the list is told, and a full is taken instead of building on it."""
    night.pgbackrest("--no-online", "--force", "--type=full", "--log-level-console=off", "backup")

    report = night.backup()

    assert (Verdict.VERIFIED, ["parent-broken"]) == (report.verdict, codes(report))
    assert ("full", True) == (report.backups[0].type, "offline" in report.plan[0].reason)


def test_odd_file_names_in_the_data_directory_are_names(night: Night) -> None:
    """Bytes that are no UTF-8, and signs that the manifest uses itself, refute nothing."""
    data = os.fsencode(night.sandbox.data("primary"))
    odd = [Path(os.fsdecode(data + b"/" + n)) for n in (b"caf\xe9", b"a={b", "line\u2028end".encode())]
    for path in odd:
        path.write_bytes(b"something")
        night.sandbox.give(path)

    report = night.backup()
    for path in odd:
        path.unlink()

    assert Verdict.VERIFIED is report.verdict


def test_an_answer_without_repositories_proves_nothing(night: Night, workplace: Path) -> None:
    """A pgBackRest that says ok and names no repository is not believed."""
    fake = workplace / "pgbackrest"
    fake.write_text(
        '#!/bin/sh\nfor word; do [ "$word" = info ] && '
        """echo '[{"name":"demo","status":{"code":0,"message":"ok"}}]' && exit 0; done\n"""
        'exec pgbackrest "$@"\n'
    )
    fake.chmod(0o755)
    data = yaml.safe_load(night.sandbox.fleet_file.read_text())
    data["clusters"]["demo"]["pgbackrest"]["command"] = [str(fake)]
    night.sandbox.fleet_file.write_text(yaml.safe_dump(data))

    report = night.backup()

    assert Verdict.INCONCLUSIVE is report.verdict
    assert () == report.backups


def test_a_failing_expire_is_not_a_failed_backup(night: Night, workplace: Path) -> None:
    """The backup stands and is proven; that nothing could be expired is a warning."""
    fake = workplace / "pgbackrest"
    fake.write_text('#!/bin/sh\ncase "$*" in *--set=*expire*) exit 50;; esac\nexec pgbackrest "$@"\n')
    fake.chmod(0o755)
    data = yaml.safe_load(night.sandbox.fleet_file.read_text())
    data["clusters"]["demo"]["pgbackrest"]["command"] = [str(fake)]
    data["clusters"]["demo"]["backup"]["retention"] = {"fulls": 1}
    night.sandbox.fleet_file.write_text(yaml.safe_dump(data))
    night.backup("full")

    report = night.backup("full")

    assert (Verdict.VERIFIED, ["expire-failed"]) == (report.verdict, codes(report))


def broken_archive_command(night: Night) -> None:
    night.sql("ALTER SYSTEM SET archive_command = '/bin/true'")
    night.sql("SELECT pg_reload_conf()")


def missing_stanza(night: Night) -> None:
    data = yaml.safe_load(night.sandbox.fleet_file.read_text())
    data["clusters"]["demo"]["pgbackrest"]["stanza"] = "nope"
    night.sandbox.fleet_file.write_text(yaml.safe_dump(data))


def stop_file(night: Night) -> None:
    night.pgbackrest("stop")


def server_down(night: Night) -> None:
    stop_cluster(night, "primary")


def repository_gone(night: Night) -> None:
    for path in night.repository.iterdir():
        shutil.rmtree(path)


def missing_binary(night: Night) -> None:
    data = yaml.safe_load(night.sandbox.fleet_file.read_text())
    data["clusters"]["demo"]["pgbackrest"]["command"] = ["no-such-pgbackrest"]
    night.sandbox.fleet_file.write_text(yaml.safe_dump(data))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (broken_archive_command, "archive_command is not pgbackrest's"),
        (missing_stanza, "stanza 'nope' does not exist"),
        (stop_file, "stop file"),
        (server_down, "127.0.0.1"),
        (repository_gone, "missing stanza|stanza 'demo'"),
        (missing_binary, "no-such-pgbackrest"),
    ],
)
def test_what_forbids_a_backup_is_told_with_its_cure(
    night: Night, fault: Callable[[Night], None], told: str
) -> None:
    """Could not run: one finding with a hint, exit code 2, and no backup was begun."""
    fault(night)

    report = night.backup()

    assert Verdict.INCONCLUSIVE is report.verdict
    assert 1 == len(report.findings)
    assert re.search(told, report.findings[0].message)
    assert report.findings[0].hint
    assert () == report.backups
    assert [] == night.find("backup.manifest")


def test_a_full_disk_is_told_as_such(night: Night, workplace: Path) -> None:
    """A repository on a full file system: could not run, with pgBackRest's reason and the cure."""
    small = workplace / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=777", "tmpfs", str(small)], check=True)
    try:
        conf = night.sandbox.pgbackrest_conf
        text = re.sub(r"(?m)^repo1-path=.*\n", "", conf.read_text())
        conf.write_text(text.replace("[global]", f"[global]\nrepo1-path={small}/repo"))
        night.pgbackrest("stanza-create")
        report = night.backup()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
        small.rmdir()

    assert Verdict.INCONCLUSIVE is report.verdict
    assert re.search("space|write", report.findings[0].message)
    assert report.findings[0].hint
