"""Timelines, repositories and rights, as servers have them."""

import os
import shutil
import time

import pytest

from pgvigil.reports import Verdict
from tests.fixtures.reports import codes, found, healthy
from tests.fixtures.sandbox import FreshSandbox
from tests.fixtures.wal import Vault, fresh_vault

pytestmark = pytest.mark.long


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


def test_a_history_file_that_waits_at_the_server_is_delayed_not_missing(own_vault: Vault) -> None:
    """Until it is archived nobody knows which backups lead to the present: no proof, and no loss."""
    command = own_vault.sql("SHOW archive_command")[0]["archive_command"]
    own_vault.configure(archive_command=f"case %f in *.history) exit 1;; esac; {command}")
    own_vault.promote()
    patient = own_vault.prove()
    own_vault.policy(max_delay="1ms")
    strict = own_vault.prove()
    own_vault.sql("ALTER SYSTEM RESET archive_command")
    own_vault.sql("SELECT pg_reload_conf()")
    own_vault.write(1)
    own_vault.wait_archived(150)
    arrived = own_vault.prove()

    assert (Verdict.INCONCLUSIVE, []) == (patient.verdict, codes(patient))
    assert "history file waits" in found(patient, "repo1.continuity")
    assert (Verdict.REFUTED, ["wal-delayed"]) == (strict.verdict, codes(strict))
    assert "00000002.history wait" in strict.findings[0].message
    assert (Verdict.VERIFIED, ()) == healthy(arrived)


def test_wal_that_is_lost_across_a_switch_is_named_on_both_timelines(own_vault: Vault) -> None:
    """The names are those of the files that are missing, as known_losses takes them."""
    own_vault.promote()
    own_vault.write(3)
    own_vault.wait_archived()
    lost = [own_vault.segments(1)[-1], own_vault.segments(2)[0]]
    for path in lost:
        path.unlink()

    report = own_vault.prove()

    assert (Verdict.REFUTED, ["wal-missing"] * 2) == (report.verdict, codes(report))
    assert [path.name[:24] for path in lost] == [finding.subject for finding in report.findings]


def test_a_stanza_without_any_backup_is_refuted(own_vault: Vault) -> None:
    """Its WAL is whole, and known to be of no use."""
    shutil.rmtree(own_vault.repository / "backup")
    shutil.rmtree(own_vault.repository / "archive")
    own_vault.pgbackrest("stanza-create")
    own_vault.write(2)
    own_vault.wait_archived()

    report = own_vault.prove()

    assert (Verdict.REFUTED, ["no-backup"]) == (report.verdict, codes(report))
    assert "take a full backup" in report.findings[0].hint


def test_wal_after_a_restore_to_the_end_of_a_backup_is_judged(own_vault: Vault) -> None:
    """The new timeline begins in the backup's last segment, and the backup is its base all the same."""
    own_vault.restore("--type=immediate", "--target-action=promote")
    own_vault.write(4)
    own_vault.wait_archived()
    restored = own_vault.prove()
    own_vault.segments(2)[2].unlink()
    broken = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(restored)
    assert [2] == [window.timeline for window in restored.repositories[0].archives[0].windows]
    assert (Verdict.REFUTED, ["wal-missing"]) == (broken.verdict, codes(broken))


def test_a_server_whose_line_has_no_backup_is_never_green(own_vault: Vault) -> None:
    """After a restore to before the newest backup, the only one left is on the timeline that was given up."""
    old = own_vault.labels()[-1]
    own_vault.write(2)
    own_vault.sql("SELECT pg_create_restore_point('here')")
    own_vault.write(2)
    own_vault.backup("full")
    own_vault.write(2)
    own_vault.wait_archived()
    own_vault.restore(f"--set={old}", "--type=name", "--target=here", "--target-action=promote")
    own_vault.write(3)
    own_vault.wait_archived()
    restored = own_vault.prove()
    own_vault.pgbackrest(f"--set={old}", "--repo1-retention-full=1", "--log-level-console=off", "expire")
    bare = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(restored)
    assert (Verdict.REFUTED, ["no-window"]) == (bare.verdict, codes(bare))
    assert "timeline 2, the server's" in bare.findings[0].message


def test_the_rest_of_a_timeline_that_was_given_up_is_told_as_not_judged(own_vault: Vault) -> None:
    """No backup can be restored along it, so a gap in it is none; and nobody may archive there any more."""
    own_vault.sql("SELECT pg_create_restore_point('here')")
    own_vault.write(5)
    own_vault.wait_archived()
    own_vault.restore("--type=name", "--target=here", "--target-action=promote")
    own_vault.write(2)
    own_vault.wait_archived()
    own_vault.segments(1)[-3].unlink()

    report = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(report)
    timelines = report.repositories[0].archives[0].timelines
    assert [True, False] == [timeline.unjudged > 0 for timeline in timelines]


def test_an_old_clusters_backups_prove_nothing_for_the_new_one(own_vault: Vault) -> None:
    """After an upgrade only a backup of the upgraded cluster makes the proof green."""
    own_vault.upgrade()
    own_vault.write(3)
    own_vault.wait_archived()
    bare = own_vault.prove()
    own_vault.backup("full")
    own_vault.write(2)
    own_vault.wait_archived()
    backed = own_vault.prove()

    assert (Verdict.REFUTED, ["no-backup"]) == (bare.verdict, codes(bare))
    assert "15-2" in bare.findings[0].message
    assert (Verdict.VERIFIED, ()) == healthy(backed)


def test_what_happens_during_a_listing_is_no_fault(own_vault: Vault) -> None:
    """A promotion, or a new full with the expire of the old one: the listing is taken again."""

    def rotate() -> None:
        own_vault.backup("full")
        own_vault.pgbackrest("--repo1-retention-full=1", "--log-level-console=off", "expire")

    with own_vault.meanwhile(own_vault.promote):
        promoted = own_vault.prove()
    with own_vault.meanwhile(rotate):
        rotated = own_vault.prove()

    assert [(Verdict.VERIFIED, ())] * 2 == [healthy(promoted), healthy(rotated)]
    assert own_vault.labels() == [mark.label for mark in rotated.repositories[0].archives[0].backups]


def test_a_standby_proves_the_archive_too_and_follows_its_primary(own_vault: Vault) -> None:
    """It knows from what it receives what should have come, also on a timeline that just began."""
    with own_vault.standby() as port:
        own_vault.look_at(port)
        own_vault.write(2)
        own_vault.wait_archived()
        first = own_vault.prove()
        own_vault.promote()
        own_vault.write(2)
        own_vault.wait_archived()
        own_vault.wait(lambda: own_vault.sql("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"))
        second = own_vault.prove()
        own_vault.configure(archive_command="/bin/false")
        own_vault.write(3)
        own_vault.policy(max_delayed_segments=1)
        caught_up = "SELECT 1 FROM pg_stat_replication WHERE flush_lsn = pg_current_wal_lsn()"
        own_vault.wait(lambda: own_vault.sql(caught_up))
        third = own_vault.prove()

    assert [(Verdict.VERIFIED, ())] * 2 == [healthy(first), healthy(second)]
    assert (Verdict.REFUTED, ["wal-delayed"]) == (third.verdict, codes(third))


def test_a_timeline_that_was_given_up_and_still_gets_wal_is_a_stray(own_vault: Vault) -> None:
    """Its number is lower than the server's; that it goes on after the server began its own tells."""
    own_vault.sql("SELECT pg_create_restore_point('here')")
    own_vault.write(2)
    own_vault.wait_archived()
    for _ in range(2):
        target = ["--type=name", "--target=here", "--target-action=promote", "--target-timeline=1"]
        own_vault.restore(*target)
        own_vault.write(2)
        own_vault.wait_archived()
    given_up = own_vault.prove()
    later = time.time() + 3600
    os.utime(own_vault.segments(2)[-1], (later, later))
    going_on = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(given_up)
    fates = [timeline.fate for timeline in given_up.repositories[0].archives[0].timelines]
    assert ["ancestor", "abandoned", "live"] == fates
    assert (Verdict.REFUTED, ["timeline-stray"]) == (going_on.verdict, codes(going_on))
    assert "timeline 2" in going_on.findings[0].message


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
