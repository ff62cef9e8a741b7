"""What servers do to an archive: outages, promotions, delays, and health that must stay silent."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgvigil.reports import Verdict
from pgvigil.sandbox import services
from pgvigil.wal.facts import WalReport
from tests.fixtures.sandbox import FreshSandbox
from tests.fixtures.wal import Vault, fresh_vault


def codes(report: WalReport) -> list[str]:
    return [finding.code for finding in report.findings]


def healthy(report: WalReport) -> tuple[Verdict, tuple[object, ...]]:
    return report.verdict, report.findings


def test_wal_that_postgresql_counts_as_archived_but_nobody_stored_is_lost(own_vault: Vault) -> None:
    """archive_command was a no-op for a while: refuted while it lasts, and one gap afterwards."""
    own_vault.configure(archive_command="/bin/true")
    own_vault.write(3)
    own_vault.wait_archived()
    during = own_vault.prove()
    own_vault.sql("ALTER SYSTEM RESET archive_command")
    own_vault.sql("SELECT pg_reload_conf()")
    own_vault.write(2)
    own_vault.wait_archived()
    after = own_vault.prove()

    assert [["wal-missing"]] * 2 == [codes(during), codes(after)]
    assert "(3 segments)" in during.findings[0].message
    assert "counts it as archived" in during.findings[0].message
    assert "(3 segments)" in after.findings[0].message


def test_an_overflown_push_queue_is_a_loss(own_vault: Vault) -> None:
    """Pgbackrest drops its queue and tells PostgreSQL that all is well; the archive does not lie."""
    conf = own_vault.sandbox.pgbackrest_conf
    conf.write_text(
        conf.read_text().replace("[global]", "[global]\narchive-async=y\narchive-push-queue-max=40MB")
    )
    own_vault.repository.chmod(0)
    own_vault.write(6)
    own_vault.wait_archived()
    own_vault.repository.chmod(0o750)
    own_vault.write(2)
    own_vault.wait_archived()

    report = own_vault.prove()

    assert (Verdict.REFUTED, ["wal-missing"]) == (report.verdict, codes(report))


def test_wal_that_waits_is_delayed_by_policy_and_never_lost(own_vault: Vault) -> None:
    """One segment behind is no alarm unless policy says so, and then nothing is called lost."""
    own_vault.configure(archive_command="/bin/false")
    own_vault.write(1)
    patient = own_vault.prove()
    own_vault.policy(max_delayed_segments=0)
    strict = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(patient)
    assert (Verdict.REFUTED, ["wal-delayed"]) == (strict.verdict, codes(strict))
    assert "1 finished segments wait" in strict.findings[0].message


def test_a_thousand_waiting_segments_are_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With segments of 1 MB: delayed, with number and age, and nothing is called lost."""
    with fresh_vault() as vault:
        vault.change_segment_size(1)
        vault.enter(monkeypatch)
        vault.policy(heartbeat=False, second_opinion=False)
        vault.pgbackrest("stanza-create")
        vault.backup()
        vault.wait_archived()
        vault.configure(archive_command="/bin/false")
        vault.write(1000)

        report = vault.prove()

    assert (Verdict.REFUTED, ["wal-delayed"]) == (report.verdict, codes(report))
    assert "1000 finished segments wait" in report.findings[0].message
    assert [()] == [archive.gaps for archive in report.repositories[0].archives]


def test_a_promotion_is_no_fault_and_its_missing_history_is(own_vault: Vault) -> None:
    """Windows go on across the switch; without the history file they end before it, in one finding."""
    own_vault.promote()
    own_vault.write(2)
    own_vault.wait_archived()
    promoted = own_vault.prove()
    (own_vault.archive / "00000002.history").unlink()
    broken = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(promoted)
    archive = promoted.repositories[0].archives[0]
    assert ["ancestor", "live"] == [t.fate for t in archive.timelines]
    assert [2] == [window.timeline for window in archive.windows]
    assert (Verdict.REFUTED, ["history-missing"]) == (broken.verdict, codes(broken))
    assert "timeline 2" in broken.findings[0].message


def test_a_commit_is_measured_into_the_repository(own_vault: Vault) -> None:
    """The report has the latency and the age of the last recoverable commit."""
    own_vault.policy(heartbeat=True)

    report = own_vault.prove()

    repository = report.repositories[0]
    assert (Verdict.VERIFIED, ()) == healthy(report)
    assert repository.latency_seconds is not None
    assert repository.last_commit_age_seconds is not None
    assert repository.latency_seconds < repository.last_commit_age_seconds + 1
    assert "repo1.rpo" in [check.id for check in report.checks if check.verdict is Verdict.VERIFIED]


def test_without_the_right_to_switch_wal_only_the_measurement_is_missing(own_vault: Vault) -> None:
    """That check is inconclusive, says what to grant, and the proof stands."""
    own_vault.policy(heartbeat=True)
    own_vault.sql("REVOKE EXECUTE ON FUNCTION pg_switch_wal() FROM pgvigil")

    report = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(report)
    check = next(check for check in report.checks if check.id == "heartbeat")
    assert (Verdict.INCONCLUSIVE, False) == (check.verdict, check.required)
    assert "roles.sql" in check.actual


def test_repositories_are_proven_each_on_its_own_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage in one leaves the other's proof standing, and the report says which has what."""
    with fresh_vault(repos=2) as vault:
        vault.enter(monkeypatch)
        vault.policy(second_opinion=False)
        vault.pgbackrest("stanza-create")
        for repo in (1, 2):
            vault.backup(repo=repo)
        vault.write(4)
        vault.wait_archived()
        both = vault.prove()
        second = vault.sandbox.directory / "repo2" / "archive" / "demo" / "15-1"
        victim = sorted(second.glob("*/*-*"))[-3]
        victim.unlink()
        report = vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(both)
    assert {"wal repo1": "verified", "wal repo2": "refuted"} == {p.name: p.verdict for p in report.proofs}
    assert ["wal-missing"] == codes(report)
    assert (
        f"repository 1 has 1 segments of stanza demo that repository 2 lacks, from {victim.name[:24]}"
        in (report.differences[0])
    )


@contextmanager
def busy_writer(vault: Vault) -> Iterator[None]:
    """Let pgbench write while the block runs."""
    box = vault.sandbox
    words = [
        str(box.postgres_bin / "pgbench"),
        "-h",
        str(box.sockets),
        "-p",
        str(box.primary_port),
        "-U",
        "postgres",
    ]
    services.run_tool(box.directory, [*words, "-i", "-q", "shop"], user=box.server_user)
    load = subprocess.Popen(
        [*words, "-n", "-c", "2", "-R", "200", "-T", "600", "shop"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        user=box.server_user,
        cwd="/",
    )
    try:
        yield
    finally:
        load.kill()
        load.wait()


def names(directory: Path, pattern: str) -> list[str]:
    return [path.name for path in directory.glob(pattern)]


def test_a_healthy_archive_gives_no_finding_in_twenty_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three timelines, 64 MB segments, .partial and .backup files, idle and under load: silence."""
    with fresh_vault() as vault:
        vault.change_segment_size(64)
        vault.enter(monkeypatch)
        vault.pgbackrest("stanza-create")
        vault.backup()
        for _ in range(2):
            vault.write(2)
            vault.sql(
                "CREATE TABLE IF NOT EXISTS public.t (n int)"
            )  # so that the timeline ends inside a segment
            vault.promote()
            vault.write()
            vault.backup("incr")
        vault.wait_archived()
        assert names(vault.archive, "*/*.partial-*")
        assert names(vault.archive, "*/*.backup")
        reports = [vault.prove() for _ in range(10)]
        with busy_writer(vault):
            reports += [vault.prove() for _ in range(10)]

    assert [(Verdict.VERIFIED, ())] * 20 == [healthy(report) for report in reports]
    archive = reports[-1].repositories[0].archives[0]
    assert ["ancestor", "ancestor", "live"] == [t.fate for t in archive.timelines]
    assert [3] == [span.timeline for span in archive.spans]


def test_an_encrypted_repository_in_s3_is_read_through_pgbackrest_and_told_when_away(
    fresh_sandbox: FreshSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file can be opened there; every segment is proven all the same. Unreachable: inconclusive."""
    box = fresh_sandbox()
    conf = box.pgbackrest_conf
    secret = "[global]\nio-timeout=1\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=planted-secret"
    conf.write_text(
        conf.read_text().replace("[global]", secret).replace("repo1-path=/demo", "repo1-path=/enc")
    )
    vault = Vault(box, box.directory, box.fleet_file)
    vault.enter(monkeypatch)
    vault.pgbackrest("stanza-create")
    vault.backup()
    vault.write(3)
    vault.wait_archived()
    reports = [vault.prove(), vault.prove()]
    conf.write_text(conf.read_text().replace(f"repo1-storage-port={box.s3_port}", "repo1-storage-port=9"))
    away = vault.prove()

    assert [(Verdict.VERIFIED, ())] * 2 == [healthy(report) for report in reports]
    segments = reports[0].repositories[0].archives[0].classes["segment"]
    assert [segments, 1] == [report.repositories[0].read_now for report in reports]
    assert (Verdict.INCONCLUSIVE, 1) == (away.verdict, len(away.findings))
    assert away.findings[0].hint
