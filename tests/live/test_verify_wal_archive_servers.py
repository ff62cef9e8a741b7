"""What servers do to an archive: no-op commands, overflown queues, delays."""

import os
import shutil

import pytest

from pgvigil.reports import Verdict
from tests.fixtures.reports import codes, healthy
from tests.fixtures.wal import Vault, fresh_vault, one_backup

pytestmark = pytest.mark.long


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


def test_an_overflown_push_queue_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pgbackrest drops its queue and tells PostgreSQL that all is well; the archive does not lie."""
    with one_backup() as vault:
        vault.enter(monkeypatch)
        conf = vault.sandbox.pgbackrest_conf
        conf.write_text(
            conf.read_text().replace("[global]", "[global]\narchive-async=y\narchive-push-queue-max=40MB")
        )
        vault.repository.chmod(0)
        vault.write(6)
        vault.wait_archived(150)  # the archiver tries again a minute after three failures
        vault.repository.chmod(0o750)
        vault.write(2)
        vault.wait_archived()

        report = vault.prove()

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


def test_an_archiver_that_fails_is_never_green_when_it_is_measured(own_vault: Vault) -> None:
    """A commit that does not arrive while the archiver fails: no proof, though nothing is lost yet."""
    own_vault.configure(archive_command="/bin/false")
    own_vault.policy(heartbeat=True, heartbeat_wait="3s")

    report = own_vault.prove()

    assert (Verdict.INCONCLUSIVE, ["archiver-fails"]) == (report.verdict, codes(report))


def test_a_server_that_does_not_archive_is_never_green(own_vault: Vault) -> None:
    """archive_mode is off and nobody writes: everything stored is whole, and nothing more will come."""
    own_vault.configure(archive_mode="off")
    own_vault.stop()
    own_vault.start()

    report = own_vault.prove()

    assert (Verdict.REFUTED, ["archiving-off"]) == (report.verdict, codes(report))


def test_a_server_that_was_set_back_is_told(own_vault: Vault) -> None:
    """The archive has another fork's WAL under the names that the server uses again."""
    data = own_vault.sandbox.data("primary")
    own_vault.stop()
    shutil.copytree(data, data.with_name("snapshot"), symlinks=True)
    own_vault.start()
    own_vault.write(4)
    own_vault.wait_archived()
    for path in own_vault.segments():
        os.utime(path, (path.stat().st_mtime - 60,) * 2)  # that was a minute ago
    own_vault.stop()
    shutil.rmtree(data)
    data.with_name("snapshot").rename(data)
    for path in [data, *data.rglob("*")]:
        own_vault.sandbox.give(path)
    own_vault.start()
    behind = own_vault.prove()
    own_vault.sql("CREATE TABLE public.other AS SELECT generate_series(1, 1000) AS a")
    own_vault.write(4)
    own_vault.wait(lambda: own_vault.sql("SELECT 1 FROM pg_stat_archiver WHERE failed_count > 0"))
    own_vault.policy(heartbeat=True, heartbeat_wait="3s")
    level = own_vault.prove()

    assert (Verdict.REFUTED, ["wal-forked"]) == (behind.verdict, codes(behind))
    assert "beyond its position" in behind.findings[0].message
    assert (Verdict.REFUTED, ["wal-forked", "archiver-fails"]) == (level.verdict, codes(level))
    assert "fails to archive" in level.findings[0].message
    assert level.repositories[0].latency_seconds is None
