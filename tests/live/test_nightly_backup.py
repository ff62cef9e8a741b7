import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from pgvigil.backup import operation
from pgvigil.backup.facts import PROOF_NOTE, RUN_NOTE, BackupReport
from pgvigil.lock import hold_stanza
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from pgvigil.sandbox import postgres as sandbox_postgres
from pgvigil.sandbox import services
from tests.fixtures.backup import Night, main_process, processes_of


def codes(report: BackupReport) -> list[str]:
    return [finding.code for finding in report.findings]


def refuted(report: BackupReport) -> list[str]:
    return [check.id for check in report.checks if check.verdict is Verdict.REFUTED]


def found(report: BackupReport, check: str) -> str:
    return next(c.actual for c in report.checks if c.id == check)


def test_full_diff_and_incr_are_taken_proven_and_listed(night: Night) -> None:
    """Each type is taken when it is due or asked for, proven, marked so, and shown by info."""
    reports = [night.backup("auto"), night.backup("diff"), night.backup("auto")]

    assert [Verdict.VERIFIED] * 3 == [report.verdict for report in reports]
    assert ["full", "diff", "incr"] == [report.backups[0].type for report in reports]
    assert [()] * 3 == [report.findings for report in reports]
    listed = yaml.safe_load(night.pgbackrest("info", "--output=json"))[0]["backup"]
    assert [report.backups[0].label for report in reports] == [backup["label"] for backup in listed]
    assert [str(report.run_id) for report in reports] == [b["annotation"][RUN_NOTE] for b in listed]
    assert [str(report.run_id) for report in reports] == [b["annotation"][PROOF_NOTE] for b in listed]
    assert "no full backup exists" == reports[0].plan[0].reason


def write_wal(night: Night, segments: int = 3) -> Callable[[str], None]:
    """Switch WAL a few times when the backup has begun, so that its range has a middle."""

    def on_line(line: str) -> None:
        if "backup start archive" in line:
            for _ in range(segments):
                night.sql("SELECT pg_create_restore_point('x'), pg_switch_wal()")

    return on_line


def middle_segment(night: Night, taken: operation.Taken) -> str:
    start, stop = taken.backup.archive.start, taken.backup.archive.stop
    segment = f"{start[:16]}{int(start[16:], 16) + 1:08X}"
    assert start < segment < stop
    (uri,) = [uri for uri in night.find("/archive/") if re.search(rf"/{segment}-[0-9a-f]{{40}}", uri)]
    return uri


def delete(night: Night, uri: str) -> None:
    night.store.delete(uri)


def flip(night: Night, uri: str) -> None:
    data = bytearray(night.store.get(uri))
    data[len(data) // 2] ^= 0x10
    night.store.put(uri, bytes(data))


def truncate(night: Night, uri: str) -> None:
    night.store.put(uri, night.store.get(uri)[:-20])


def empty(night: Night, uri: str) -> None:
    night.store.put(uri, b"")


def double(night: Night, uri: str) -> None:
    night.store.put(re.sub(r"-[0-9a-f]{40}", "-" + "0" * 40, uri), night.store.get(uri))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (delete, "missing"),
        (flip, "sha1|decompressed"),
        (truncate, "bytes, expected|decompressed"),
        (empty, "0 bytes, expected 16777216"),
        (double, "2 times"),
    ],
)
def test_damage_to_a_middle_segment_refutes_the_backup(
    night: Night, damage: Callable[[Night, str], None], told: str
) -> None:
    """A segment of the backup's range that is missing or not itself is named; nothing else is red."""
    night.on_line = write_wal(night)
    night.after_take = lambda taken: damage(night, middle_segment(night, taken))

    report = night.backup()

    assert Verdict.REFUTED is report.verdict
    assert ["repo1.wal"] == refuted(report)
    assert re.search(told, found(report, "repo1.wal"))
    assert PROOF_NOTE not in night.pgbackrest("info", "--output=json")


@pytest.mark.parametrize("name", ["backup.manifest", "backup.manifest.copy"])
def test_a_removed_manifest_refutes_the_backup(night: Night, name: str) -> None:
    """A backup without one of its manifests cannot be trusted, though info lists it as good."""
    night.after_take = lambda taken: night.store.delete(
        next(uri for uri in night.find(taken.backup.label, "/" + name) if uri.endswith(name))
    )

    report = night.backup()

    assert "repo1.chain" in refuted(report)
    assert name in found(report, "repo1.chain")


def test_a_removed_manifest_of_the_parent_refutes_the_child(night: Night) -> None:
    """An incremental backup stands on its parents' manifests."""
    full = night.backup().backups[0].label
    night.after_take = lambda _: night.store.delete(
        next(uri for uri in night.find(f"/{full}/backup.manifest") if uri.endswith("manifest"))
    )

    report = night.backup("incr")

    assert ["repo1.chain"] == refuted(report)
    assert full in found(report, "repo1.chain")


def test_a_broken_parent_calls_for_a_full(night: Night) -> None:
    """Nothing is built on a chain that cannot be restored, and the loss is told."""
    full = night.backup().backups[0].label
    for uri in night.find(f"/{full}/backup.manifest"):
        night.store.delete(uri)

    report = night.backup()

    assert Verdict.VERIFIED is report.verdict
    assert ("full", ["parent-broken"]) == (report.backups[0].type, codes(report))
    assert full in report.plan[0].reason


@pytest.mark.parametrize("damage", [delete, truncate])
def test_a_damaged_data_file_in_the_repository_refutes_the_backup(
    night: Night, damage: Callable[[Night, str], None]
) -> None:
    """Every file that the manifest names must be there with its size."""
    night.after_take = lambda taken: damage(night, night.find(taken.backup.label, "bundle/1")[0])

    report = night.backup()

    assert ["repo1.files"] == refuted(report)
    assert "bundle/1" in found(report, "repo1.files")


def test_a_corrupt_page_in_the_source_refutes_the_backup(night: Night) -> None:
    """Page checksum errors come with exit code 0; the file is named."""
    night.sql("CREATE TABLE public.sick AS SELECT generate_series(1, 10000) AS n")
    night.sql("CHECKPOINT")
    path = night.sql("SELECT pg_relation_filepath('public.sick') AS path")[0]["path"]
    with (night.sandbox.data("primary") / path).open("r+b") as file:
        file.seek(8192 + 2000)
        file.write(b"\xff" * 64)

    report = night.backup()

    assert ["repo1.pages"] == refuted(report)
    assert path in found(report, "repo1.pages")


def test_a_main_process_killed_alone_leaves_no_worker_and_no_half_backup(night: Night) -> None:
    """Killed in mid-file, the run is inconclusive; the next one begins anew and its backup restores."""
    night.sql(
        "CREATE TABLE public.big AS SELECT n, repeat(md5(n::text), 10) AS t FROM generate_series(1, 60000) n"
    )
    killed: list[int] = []

    def kill_once(_: object) -> None:
        if not killed:
            killed.append(main_process(night.sandbox))
            os.kill(killed[0], signal.SIGKILL)

    night.on_progress = kill_once
    first = night.backup()
    alive = processes_of(night.sandbox)
    night.sql("UPDATE public.big SET t = t || 'x'")
    second = night.backup()

    assert (Verdict.INCONCLUSIVE, []) == (first.verdict, alive)
    assert "SIGKILL" in first.findings[0].message
    assert Verdict.VERIFIED is second.verdict
    assert "status: ok" in night.pgbackrest("verify", "--output=text", "--verbose", "--log-level-console=off")


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
    assert {str(first.run_id), str(second.run_id)} == ended_runs(night)


def ended_runs(night: Night) -> set[str]:
    with connect(night.sandbox.ops_dsn(), "test") as session:
        rows = session.execute("SELECT run_id FROM pgvigil.audit WHERE kind = 'run_ended'").fetchall()
    return {str(row["run_id"]) for row in rows}


def test_nothing_is_changed_when_no_evidence_can_be_kept(night: Night) -> None:
    """Audit store down and spool unusable: the run refuses before it begins."""
    spool = night.sandbox.directory / "spool"
    shutil.rmtree(spool)
    spool.write_text("not a directory")
    with ops_down(night):
        report = night.backup()

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


def test_every_repository_is_backed_up_and_proven_on_its_own(night: Night) -> None:
    """Two repositories: a proof each, and damage in one leaves the other's proof standing."""
    second = night.sandbox.directory / "repo2"
    second.mkdir()
    night.sandbox.give(second)
    conf = night.sandbox.pgbackrest_conf
    conf.write_text(conf.read_text().replace("[global]", f"[global]\nrepo2-path={second}"))
    night.pgbackrest("stanza-create")
    night.sql("SELECT pg_switch_wal()")

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


def test_a_healthy_system_under_load_gives_no_finding_in_ten_runs(night: Night) -> None:
    """Pgbench writes all the time; ten backups in a row are proven without one finding."""
    port, user = str(night.sandbox.primary_port), night.sandbox.server_user
    bench = [
        str(night.sandbox.postgres_bin / "pgbench"),
        "-h",
        str(night.sandbox.sockets),
        "-p",
        port,
        "-U",
        "postgres",
    ]
    services.run_tool(night.sandbox.directory, [*bench, "-i", "-q", "-s", "5", "shop"], user=user)
    load = subprocess.Popen(
        [*bench, "-n", "-c", "2", "-R", "100", "-T", "600", "shop"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=user,
        cwd="/",
    )
    try:
        reports = [night.backup() for _ in range(10)]
    finally:
        load.kill()
        load.wait()

    assert [(Verdict.VERIFIED, ())] * 10 == [(report.verdict, report.findings) for report in reports]


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


def bucket_gone(night: Night) -> None:
    for item in list(night.store.list("s3://pgbackrest/")):
        night.store.delete(item.uri)


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
        (bucket_gone, "missing stanza|stanza 'demo'"),
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
        text = re.sub(r"(?m)^repo1-(?!retention).*\n", "", conf.read_text())
        conf.write_text(text.replace("[global]", f"[global]\nrepo1-path={small}/repo"))
        night.pgbackrest("stanza-create")
        report = night.backup()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
        small.rmdir()

    assert Verdict.INCONCLUSIVE is report.verdict
    assert re.search("space|write", report.findings[0].message)
    assert report.findings[0].hint
