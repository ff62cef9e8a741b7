"""Each fault of a WAL archive alone and exactly, and none where there is none, on live servers."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pgvigil.alarmtest.of_wal import double, exchange
from pgvigil.alarmtest.repository import cut, empty, flip
from pgvigil.reports import Verdict
from tests.fixtures.reports import codes
from tests.fixtures.wal import Vault


def between_backups(vault: Vault) -> Path:
    """A segment after the first full's end and before the incr's start."""
    info = yaml.safe_load(vault.pgbackrest("info", "--output=json"))[0]["backup"]
    stop, start = info[0]["archive"]["stop"], info[1]["archive"]["start"]
    inside = [path for path in vault.segments() if stop < path.name[:24] < start]
    return inside[len(inside) // 2]


def of_a_backup(vault: Vault) -> Path:
    """The first segment of the incr."""
    info = yaml.safe_load(vault.pgbackrest("info", "--output=json"))[0]["backup"]
    return next(path for path in vault.segments() if path.name.startswith(info[1]["archive"]["start"]))


def first(vault: Vault) -> Path:
    return vault.segments()[0]


@pytest.mark.parametrize("where", [between_backups, of_a_backup])
@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (Path.unlink, "wal-missing"),
        (flip, "wal-corrupt"),
        (empty, "wal-empty"),
        (cut, "wal-truncated"),
        (double, "wal-duplicate"),
    ],
)
def test_damage_to_one_segment_is_one_finding_with_its_cost(
    vault: Vault, where: Callable[[Vault], Path], damage: Callable[[Path], None], code: str
) -> None:
    """Between backups or inside one: refuted, the segment named, with what is lost and what survives."""
    path = where(vault)
    damage(path)

    report = vault.prove()

    assert (Verdict.REFUTED, [code]) == (report.verdict, codes(report))
    assert path.name[:24] in report.findings[0].message
    assert "these survive: LSN" in report.findings[0].message
    labels = vault.labels()
    lost = "cannot be restored" in report.findings[0].message
    assert lost == (where is of_a_backup)
    archive = report.repositories[0].archives[0]
    usable = [label for label in labels if label != labels[1] or not lost]
    assert usable == [mark.label for mark in archive.backups if mark.is_usable]
    assert 2 == len(archive.spans)


def test_an_unreadable_first_segment_ends_nothing(vault: Vault) -> None:
    """Pgbackrest's own verify gives up there; here the other segments are all read."""
    empty(first(vault))
    vault.policy(second_opinion=True)

    report = vault.prove()

    assert (Verdict.REFUTED, ["wal-empty"]) == (report.verdict, codes(report)), report.findings
    assert len(vault.segments()) == report.repositories[0].read_now


def test_a_segment_that_holds_other_wal_is_corrupt(vault: Vault) -> None:
    """It is whole, and of this cluster; only the sha1 in its name tells."""
    path = between_backups(vault)
    exchange(path)

    report = vault.prove()

    assert (Verdict.REFUTED, ["wal-corrupt"]) == (report.verdict, codes(report))
    assert f"its name says {path.name[25:65]}" in report.findings[0].message


def test_several_lost_segments_in_a_row_are_one_finding(vault: Vault) -> None:
    """One contiguous range is one fault."""
    victims = [path for path in vault.segments() if path.name[:24] >= between_backups(vault).name[:24]][:2]
    for path in victims:
        path.unlink()

    report = vault.prove()

    assert ["wal-missing"] == codes(report)
    assert "(2 segments)" in report.findings[0].message


def test_removed_manifests_of_a_full_refute_though_info_lists_it(vault: Vault) -> None:
    """The full and its dependant are named as lost."""
    labels = vault.labels()
    for name in ("backup.manifest", "backup.manifest.copy"):
        (vault.repository / "backup" / "demo" / labels[0] / name).unlink()

    report = vault.prove()

    assert (Verdict.REFUTED, ["manifest-missing"]) == (report.verdict, codes(report))
    assert f"{labels[0]}, {labels[1]} cannot be restored" in report.findings[0].message
    assert [labels[2]] == [w.label for w in report.repositories[0].archives[0].windows]


def test_a_stray_timeline_is_told(vault: Vault) -> None:
    """History and WAL of a timeline that the server has never been on: a default restore would follow it."""
    own = vault.segments()[-1]
    stray = own.parent.with_name("00000002" + own.parent.name[8:])
    stray.mkdir()
    (stray / ("00000002" + own.name[8:])).write_bytes(own.read_bytes())
    switch = f"{int(own.name[8:16], 16):X}/{int(own.name[16:24], 16) * 2**24 + 0x28:X}"  # in this segment
    (vault.archive / "00000002.history").write_text(f"1\t{switch}\tno recovery target specified\n")

    report = vault.prove()

    assert (Verdict.REFUTED, ["timeline-stray"]) == (report.verdict, codes(report))
    assert "--target-timeline=1" in report.findings[0].hint


def test_an_acknowledged_loss_is_told_without_alarm_and_hides_no_other(vault: Vault) -> None:
    """One old gap, known until a day, does not mute the next one."""
    old, new = between_backups(vault), of_a_backup(vault)
    old.unlink()
    name = old.name[:24]
    known = {"timeline": 1, "first": name, "last": name, "reason": "disk swap", "until": "2999-01-01"}
    vault.policy(known_losses=[known])
    quiet = vault.prove()
    new.unlink()
    loud = vault.prove()
    vault.policy(known_losses=[known | {"until": "2001-01-01"}])
    expired = vault.prove()

    assert (Verdict.VERIFIED, []) == (quiet.verdict, codes(quiet))
    assert ["disk swap"] == [gap.acknowledged for gap in quiet.repositories[0].archives[0].gaps]
    assert ["wal-missing"] == codes(loud)
    assert new.name[:24] in loud.findings[0].message
    assert ["wal-missing", "wal-missing"] == codes(expired)


def test_a_known_loss_does_not_bring_back_what_it_lost(vault: Vault) -> None:
    """Nothing leads to the present any more: acknowledged or not, that is never green."""
    last = vault.segments()[-2]
    last.unlink()
    name = last.name[:24]
    known = {"timeline": 1, "first": name, "last": name, "reason": "x", "until": "2999-01-01"}
    vault.policy(known_losses=[known])

    report = vault.prove()

    assert (Verdict.REFUTED, ["no-window"]) == (report.verdict, codes(report))
    assert "take a full backup" in report.findings[0].hint


def test_a_second_run_reads_only_what_is_new_or_changed(vault: Vault) -> None:
    """What was proven is remembered in the report store; a changed file is read at once."""
    reports = [vault.prove(), vault.prove()]
    flip(changed := between_backups(vault))
    os.utime(changed)  # what a disk does unseen is found when it is read again
    reports += [vault.prove(), vault.prove()]

    assert [len(vault.segments()), 0, 1, 1] == [r.repositories[0].read_now for r in reports]
    assert [[], [], ["wal-corrupt"], ["wal-corrupt"]] == [codes(r) for r in reports]


def test_what_a_run_has_no_time_to_read_is_not_called_proven(vault: Vault) -> None:
    """A run whose time is over is inconclusive, and says how much is left."""
    vault.policy(prove_for="1ms")

    report = vault.prove()

    left = len(vault.segments()) - report.repositories[0].read_now
    assert (Verdict.INCONCLUSIVE, []) == (report.verdict, codes(report))
    assert left > 0
    assert f"{left} not yet read" in next(c.actual for c in report.checks if c.id == "repo1.content")


def test_the_second_opinion_is_read_not_trusted_by_exit_code(vault: Vault) -> None:
    """Healthy: both agree. A damaged data file, which only verify reads, is told though it exits with 0."""
    vault.policy(second_opinion=True)
    healthy = vault.prove()
    label = vault.labels()[-1]
    flip(next((vault.repository / "backup" / "demo" / label / "bundle").iterdir()))
    vault.policy(prove_every="1ms")
    report = vault.prove()

    assert (Verdict.VERIFIED, []) == (healthy.verdict, codes(healthy))
    assert "repo1.second-opinion" in [c.id for c in healthy.checks if c.verdict is Verdict.VERIFIED]
    assert ["second-opinion"] == codes(report)
    assert label in report.findings[0].message


def test_an_empty_archive_is_never_healthy(vault: Vault) -> None:
    """All WAL gone though backups are listed: every restore point is lost, in one finding."""
    for path in vault.segments():
        path.unlink()

    report = vault.prove()

    assert (Verdict.REFUTED, ["wal-missing"]) == (report.verdict, codes(report))
    assert "these survive: none" in report.findings[0].message


def test_the_picture_shows_windows_gap_and_backups(vault: Vault) -> None:
    """The drawing is in the report and beside it; red where WAL is lost."""
    healthy = vault.prove()
    between_backups(vault).unlink()
    broken = vault.prove()

    assert "#d33b3b" not in healthy.picture
    assert "#d33b3b" in broken.picture
    assert all(label in broken.picture for label in vault.labels())
    assert any(uri.endswith("windows.svg") for uri in broken.evidence)
    assert "data:image/svg+xml;base64," in broken.section()


def test_a_copied_repository_shows_its_gap_where_it_was(vault: Vault) -> None:
    """File times of a copy are those of the copying; the gap lies between the backups that it parts."""
    between_backups(vault).unlink()
    for segment in vault.segments():
        os.utime(segment)

    archive = vault.prove().repositories[0].archives[0]

    (gap,) = archive.gaps
    newest = max(mark.at for mark in archive.backups)
    assert gap.from_time is not None
    assert gap.to_time is not None
    assert gap.from_time < gap.to_time <= newest


def unknown_stanza(vault: Vault) -> None:
    data = yaml.safe_load(vault.fleet_file.read_text())
    data["clusters"]["demo"]["pgbackrest"]["stanza"] = "nope"
    vault.fleet_file.write_text(yaml.safe_dump(data))


def repository_gone(vault: Vault) -> None:
    vault.repository.rename(vault.repository.with_name("away"))
    (vault.repository).write_text("not a directory")


@pytest.mark.parametrize(("fault", "told"), [(unknown_stanza, "stanza 'nope'"), (repository_gone, "demo")])
def test_what_cannot_be_looked_at_is_inconclusive(
    vault: Vault, fault: Callable[[Vault], None], told: str
) -> None:
    """Could not look: one finding with a hint, exit code 2, and no proof."""
    fault(vault)

    report = vault.prove()

    assert (Verdict.INCONCLUSIVE, 1) == (report.verdict, len(report.findings))
    assert told in report.findings[0].message
    assert report.findings[0].hint
    assert not [proof for proof in report.proofs if proof.verdict is Verdict.VERIFIED]
