"""What lies in a repository, file by file: read as pgBackRest reads it, and nothing odd ends the proof."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pgvigil.alarmtest.of_wal import lose_page, misplace
from pgvigil.alarmtest.repository import cut, flip, lengthen
from pgvigil.reports import Severity, Verdict
from pgvigil.sandbox import postgres as servers
from pgvigil.sandbox import services
from pgvigil.sandbox.model import ADMIN
from tests.fixtures.reports import codes, healthy
from tests.fixtures.wal import Vault

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root could read what pgBackRest may not")
REPOSITORY = Path(__file__).resolve().parents[2]


def lock_up(path: Path) -> None:
    os.chown(path, 0, 0)
    path.chmod(0)


def read_behind_a_prefix(vault: Vault) -> None:
    """Let every file be read through pgBackRest, as from another host."""
    data = yaml.safe_load(vault.fleet_file.read_text())
    settings = data["clusters"]["demo"]["pgbackrest"]
    prefix = ["runuser", "-u", settings.pop("user"), "--"] if os.geteuid() == 0 else ["env"]
    settings["command"] = [*prefix, "pgbackrest"]
    vault.fleet_file.write_text(yaml.safe_dump(data))


def cut_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (cut_a_byte, "wal-truncated"),
        (lengthen, "wal-corrupt"),
        (misplace, "wal-misplaced"),
    ],
)
def test_a_segment_at_which_a_restore_would_stop_is_never_proven(
    vault: Vault, damage: Callable[[Path], None], code: str
) -> None:
    """Though all content is there, or the sha1 of the name is that of the content."""
    path = vault.segments()[-2]
    damage(path)

    report = vault.prove()

    assert (Verdict.REFUTED, [code]) == (report.verdict, codes(report))
    assert path.name[:24] in report.findings[0].message


@pytest.mark.parametrize(
    "name", [b"caf\xe9.txt", b"a\x01b", b'a\tb\n{"}.txt', b"\\x", b"0000000100000000/odd\xff-name"]
)
def test_an_odd_name_is_foreign_and_ends_nothing(vault: Vault, name: bytes) -> None:
    """Names are bytes, and pgBackRest lists them as they are."""
    (vault.archive / os.fsdecode(name)).write_text("x")

    report = vault.prove()

    assert (Verdict.VERIFIED, ["foreign-file"]) == (report.verdict, codes(report))
    assert report.findings[0].severity is Severity.INFO
    assert report.model_dump_json()


def test_what_lies_beside_the_archives_is_foreign(vault: Vault) -> None:
    """A link with braces in its target, a folder that is no archive: told, and not taken for one."""
    (vault.archive / "link").symlink_to('/x{"y}')
    other = vault.archive.parent / "lost+found" / "0000000100000000"
    other.mkdir(parents=True)
    shutil.copy(vault.segments()[0], other)

    report = vault.prove()

    assert (Verdict.VERIFIED, ["foreign-file"]) == (report.verdict, codes(report))
    assert "2 files" in report.findings[0].message
    assert ["15-1"] == [archive.archive_id for archive in report.repositories[0].archives]


def test_a_linked_segment_is_read_at_every_run(vault: Vault) -> None:
    """Pgbackrest follows it; the listing does not tell when the target changes."""
    path, target = vault.segments()[1], vault.repository.parent / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    reports = [vault.prove(), vault.prove()]
    flip(target)
    broken = vault.prove()

    assert [(Verdict.VERIFIED, ())] * 2 == [healthy(report) for report in reports]
    assert 1 == reports[1].repositories[0].read_now
    assert ["wal-corrupt"] == codes(broken)


@needs_root
def test_what_only_root_may_read_is_unreadable_to_a_restore(vault: Vault) -> None:
    """Pgvigil as root must not see more than pgBackRest's user; the rest of the proof goes on."""
    locked, lost = vault.segments()[0], vault.segments()[-2]
    lock_up(locked)
    lost.unlink()

    report = vault.prove()

    assert (Verdict.REFUTED, ["wal-missing", "wal-unreadable"]) == (report.verdict, sorted(codes(report)))
    assert len(vault.segments()) == report.repositories[0].read_now


@needs_root
def test_one_unreadable_file_does_not_end_the_proof_behind_a_prefix(vault: Vault) -> None:
    """Where every file is read through pgBackRest: its refusal of one is a finding, the others are read."""
    read_behind_a_prefix(vault)
    lock_up(vault.segments()[0])
    flip(vault.segments()[-2])

    report = vault.prove()

    assert (Verdict.REFUTED, ["wal-corrupt", "wal-unreadable"]) == (report.verdict, sorted(codes(report)))


def test_a_prefix_that_fails_is_no_damage(vault: Vault) -> None:
    """The host is lost while segments are read: we do not know, and nothing is called lost."""
    script = vault.repository.parent / "fails-at-segments"
    script.write_text('#!/bin/sh\ncase "$*" in *repo-get*archive/demo/15-1/0*) exit 255;; esac\nexec "$@"\n')
    script.chmod(0o755)
    read_behind_a_prefix(vault)
    data = yaml.safe_load(vault.fleet_file.read_text())
    settings = data["clusters"]["demo"]["pgbackrest"]
    settings["command"] = [str(script), *settings["command"]]
    vault.fleet_file.write_text(yaml.safe_dump(data))

    report = vault.prove()

    assert (Verdict.INCONCLUSIVE, ["PGV-300"]) == (report.verdict, codes(report))


@needs_root
def test_an_unreadable_history_file_is_a_finding(own_vault: Vault) -> None:
    """One timeline's ancestry is unknown; everything else is judged all the same."""
    own_vault.promote()
    own_vault.write(2)
    own_vault.wait_archived()
    lock_up(own_vault.archive / "00000002.history")

    report = own_vault.prove()

    assert (Verdict.REFUTED, "history-missing") == (report.verdict, codes(report)[0])
    assert "could not read" in report.findings[0].message
    assert report.repositories[0].read_now


def test_empty_manifests_are_missing_ones(vault: Vault) -> None:
    """A full whose manifests have no content cannot be restored, nor what builds on it."""
    labels = vault.labels()
    for name in ("backup.manifest", "backup.manifest.copy"):
        (vault.repository / "backup" / "demo" / labels[0] / name).write_bytes(b"")

    report = vault.prove()

    assert (Verdict.REFUTED, ["manifest-missing"]) == (report.verdict, codes(report))
    assert f"{labels[0]}, {labels[1]} cannot be restored" in report.findings[0].message
    assert "it is empty" in report.findings[0].message


def lock_folder(path: Path) -> None:
    lock_up(path.parent)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (flip, "manifest-corrupt"),
        (cut, "manifest-corrupt"),
        pytest.param(lock_up, "manifest-unreadable", marks=needs_root),
        pytest.param(lock_folder, "manifest-unreadable", marks=needs_root),
    ],
)
def test_manifests_by_which_nothing_can_be_restored_refute(
    vault: Vault, damage: Callable[[Path], None], code: str
) -> None:
    """Listed, not empty, and of no use to pgBackRest: the backup and its dependant are lost, no other."""
    labels = vault.labels()
    for name in ("backup.manifest", "backup.manifest.copy"):
        damage(vault.repository / "backup" / "demo" / labels[0] / name)

    report = vault.prove()

    assert (Verdict.REFUTED, [code]) == (report.verdict, codes(report))
    assert f"{labels[0]}, {labels[1]} cannot be restored" in report.findings[0].message
    assert [labels[2]] == [window.label for window in report.repositories[0].archives[0].windows]


def test_one_damaged_manifest_is_a_warning(vault: Vault) -> None:
    """Pgbackrest restores by the copy; a manifest that was proven is read again when it changed."""
    whole = vault.prove()
    cut(vault.repository / "backup" / "demo" / vault.labels()[0] / "backup.manifest")

    report = vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(whole)
    assert (Verdict.VERIFIED, ["manifest-corrupt"]) == (report.verdict, codes(report))
    assert report.findings[0].severity is Severity.WARNING


def test_any_name_in_a_manifest_counts_for_its_checksum(own_vault: Vault) -> None:
    """The checksum is computed as pgBackRest does, whatever the files of the cluster are called."""
    for name in ('we"ird={"a":1}=', "\\b=\x08[c]", "[d]", "é\x7f"):
        path = own_vault.sandbox.data("primary") / "base" / name
        path.write_text("x")
        own_vault.sandbox.give(path)
    own_vault.backup("incr")

    assert (Verdict.VERIFIED, ()) == healthy(own_vault.prove())


def test_a_page_that_the_server_lost_before_it_archived_is_damage(vault: Vault) -> None:
    """Hash and name agree, and pgbackrest verify is content; recovery would stop there."""
    path = of_many_pages(vault)
    lose_page(path)

    report = vault.prove()

    assert (Verdict.REFUTED, ["wal-corrupt"]) == (report.verdict, codes(report))
    assert "its sha1 is right" in report.findings[0].message


def of_many_pages(vault: Vault) -> Path:
    """The stored segment that compresses least has more than two pages of WAL."""
    return max(vault.segments(), key=lambda path: path.stat().st_size)


def test_a_second_opinion_that_is_bad_is_told_again(vault: Vault) -> None:
    """It is asked at the next run too, not only after a whole period."""
    vault.policy(second_opinion=True)
    flip(next((vault.repository / "backup" / "demo" / vault.labels()[-1] / "bundle").iterdir()))

    reports = [vault.prove(), vault.prove()]

    assert [["second-opinion"]] * 2 == [codes(report) for report in reports]


def test_a_copy_elsewhere_is_read_anew(vault: Vault) -> None:
    """What was proven of one place says nothing of another, though names, sizes and times are the same."""
    vault.prove()
    other = vault.repository.with_name("other")
    shutil.copytree(vault.repository, other)
    for path in (other, *other.rglob("*")):
        vault.sandbox.give(path)
    conf = vault.repository.with_name("pgbackrest.conf")
    conf.write_text(conf.read_text().replace(str(vault.repository), str(other)))
    moved = Vault(vault.sandbox, other, vault.fleet_file)
    flip(moved.segments()[-2])

    report = moved.prove()

    assert (Verdict.REFUTED, ["wal-corrupt"]) == (report.verdict, codes(report))
    assert len(moved.segments()) == report.repositories[0].read_now


def upgrade(vault: Vault, megabytes: int) -> None:
    """Put another cluster with other segments into the server's place, as pg_upgrade does."""
    box, data = vault.sandbox, vault.sandbox.data("primary")
    roles = vault.sql("SELECT rolname, rolpassword FROM pg_authid WHERE rolname IN ('pgvigil', 'pgbackrest')")
    vault.stop()
    old = data.rename(data.with_name("old-primary"))
    data.mkdir(mode=0o700)
    box.give(data)
    words = ["initdb", f"--username={ADMIN}", "--auth=peer", f"--wal-segsize={megabytes}", "-D", str(data)]
    words[0] = str(box.postgres_bin / words[0])
    services.run_tool(box.directory, words, user=box.server_user)
    for name in ("pg_hba.conf", "pg_ident.conf", "sandbox.conf", "postgresql.conf"):
        shutil.copyfile(old / name, data / name)
        box.give(data / name)
    with (data / "postgresql.conf").open("a") as file:
        file.write("archive_command = '/bin/false'\nmin_wal_size = 128MB\nmax_wal_size = 1GB\n")
    servers.start(box, "primary")
    (box.directory / "roles.sql").write_text((REPOSITORY / "infra" / "roles.sql").read_text())
    place = ["-X", "-h", str(box.sockets), "-p", str(box.primary_port), "-U", ADMIN]
    words = [str(box.postgres_bin / "psql"), *place, "-f", str(box.directory / "roles.sql"), "postgres"]
    services.run_tool(box.directory, words, user=box.server_user)
    for role in roles:
        if role["rolpassword"]:
            vault.sql(f"ALTER ROLE {role['rolname']} LOGIN PASSWORD '{role['rolpassword']}'")
    vault.pgbackrest("stanza-upgrade")
    conf = (data / "postgresql.conf").read_text()
    (data / "postgresql.conf").write_text(re.sub(r"archive_command = '/bin/false'\n", "", conf))
    vault.sql("SELECT pg_reload_conf()")


@pytest.mark.long
def test_an_upgrade_to_other_segments_leaves_the_old_archive_whole(own_vault: Vault) -> None:
    """Its WAL tells of its own size; a lost segment in it is found, its neighbours are not damaged."""
    upgrade(own_vault, 64)
    own_vault.backup()
    own_vault.write(2)
    own_vault.wait_archived()
    whole = own_vault.prove()
    own_vault.segments()[-2].unlink()
    report = own_vault.prove()

    assert (Verdict.VERIFIED, ()) == healthy(whole)
    assert ["15-1", "15-2"] == [archive.archive_id for archive in whole.repositories[0].archives]
    assert (Verdict.REFUTED, ["wal-missing"]) == (report.verdict, codes(report))
    assert "repository 1: WAL 0000000100000000000000" in report.findings[0].message
