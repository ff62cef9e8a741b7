"""What a backup run proves of its own backup, and what damage it finds."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pgvigil.alarmtest.of_wal import double
from pgvigil.alarmtest.repository import cut, empty, flip
from pgvigil.backup import operation
from pgvigil.backup.facts import PROOF_NOTE, RUN_NOTE
from pgvigil.processes import TOKEN
from pgvigil.reports import Verdict
from tests.fixtures.backup import Night, main_process, orphan, processes_of
from tests.fixtures.reports import codes, found, refuted


def test_full_diff_and_incr_are_taken_proven_and_listed(own_night: Night) -> None:
    """Each type is taken when it is due or asked for, proven, marked so, and shown by info."""
    night = own_night
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


def middle_segment(night: Night, taken: operation.Taken) -> Path:
    start, stop = taken.backup.archive.start, taken.backup.archive.stop
    segment = f"{start[:16]}{int(start[16:], 16) + 1:08X}"
    assert start < segment < stop
    (path,) = [
        path for path in night.find("/archive/") if re.fullmatch(rf"{segment}-[0-9a-f]{{40}}.*", path.name)
    ]
    return path


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (Path.unlink, "missing"),
        (flip, "sha1|decompressed"),
        (cut, "cut off"),
        (empty, "no content"),
        (double, "2 times"),
    ],
)
def test_damage_to_a_middle_segment_refutes_the_backup(
    night: Night, damage: Callable[[Path], None], told: str
) -> None:
    """A segment of the backup's range that is missing or not itself is named; nothing else is red."""
    night.on_line = write_wal(night)
    night.after_take = lambda taken: damage(middle_segment(night, taken))

    report = night.backup()

    assert Verdict.REFUTED is report.verdict
    assert ["repo1.wal"] == refuted(report)
    assert re.search(told, found(report, "repo1.wal"))
    assert PROOF_NOTE not in night.pgbackrest("info", "--output=json")


def manifest_of(night: Night, label: str, name: str = "backup.manifest") -> Path:
    (path,) = [path for path in night.find(f"/backup/demo/{label}/") if path.name == name]
    return path


@pytest.mark.parametrize("name", ["backup.manifest", "backup.manifest.copy"])
def test_a_removed_manifest_refutes_the_backup(night: Night, name: str) -> None:
    """A backup without one of its manifests cannot be trusted, though info lists it as good."""
    night.after_take = lambda taken: manifest_of(night, taken.backup.label, name).unlink()

    report = night.backup()

    assert "repo1.chain" in refuted(report)
    assert name in found(report, "repo1.chain")


def test_a_removed_manifest_of_the_parent_refutes_the_child(night: Night) -> None:
    """An incremental backup stands on its parents' manifests."""
    full = night.backup().backups[0].label
    night.after_take = lambda _: manifest_of(night, full).unlink()

    report = night.backup("incr")

    assert ["repo1.chain"] == refuted(report)
    assert full in found(report, "repo1.chain")


@pytest.mark.long
def test_a_broken_parent_calls_for_a_full(night: Night) -> None:
    """Nothing is built on a chain that cannot be restored, and the loss is told."""
    full = night.backup().backups[0].label
    for path in night.find(f"/{full}/backup.manifest"):
        path.unlink()

    report = night.backup()

    assert Verdict.VERIFIED is report.verdict
    assert ("full", ["parent-broken"]) == (report.backups[0].type, codes(report))
    assert full in report.plan[0].reason


@pytest.mark.parametrize("damage", [Path.unlink, cut])
def test_a_damaged_data_file_in_the_repository_refutes_the_backup(
    night: Night, damage: Callable[[Path], None]
) -> None:
    """Every file that the manifest names must be there with its size."""
    night.after_take = lambda taken: damage(night.find(taken.backup.label, "bundle/1")[0])

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


@pytest.mark.long
def test_damage_is_told_until_a_full_has_replaced_it_and_no_night_longer(night: Night) -> None:
    """Who asks for an incr upon it is told to take a full; what is out of the newest chain is history."""
    first = night.backup().backups[0].label
    for path in night.find(f"/{first}/backup.manifest"):
        path.unlink()

    asked = night.backup("incr")
    night.backup("full")
    after = night.backup()

    assert "parent-broken" in codes(asked)
    assert "-p backup_type=full" in asked.findings[0].hint
    assert (Verdict.VERIFIED, "incr", []) == (after.verdict, after.backups[0].type, codes(after))


@pytest.mark.long
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


def test_an_incr_that_became_a_full_is_named(night: Night) -> None:
    """Without a parent pgBackRest takes a full and ends well; the report says what was asked for."""
    report = night.backup("incr")

    assert (Verdict.VERIFIED, ["backup-promoted"]) == (report.verdict, codes(report))
    assert ("incr", "full") == (report.backups[0].requested, report.backups[0].type)


@pytest.mark.long
def test_a_backup_that_left_the_list_is_refuted(night: Night) -> None:
    """What somebody expires behind our back is not listed, whatever pgBackRest said when it was taken."""
    night.backup()
    night.after_take = lambda taken: night.pgbackrest(
        f"--set={taken.backup.label}", "--repo1-retention-full=9", "expire"
    )

    report = night.backup("incr")

    assert {"repo1.listed", "repo1.chain", "repo1.files"} <= set(refuted(report))
    assert "it is not listed" in found(report, "repo1.listed")


def test_a_manifest_that_differs_from_its_copy_refutes_the_backup(night: Night) -> None:
    """Both are there and can be read, and one of them is wrong: also about the range of WAL."""

    def alter(taken: operation.Taken) -> None:
        path = manifest_of(night, taken.backup.label)
        start = taken.backup.archive.start or ""
        path.write_text(path.read_text().replace(f'"{start}"', '"000000010000000000000001"'))

    night.after_take = alter

    report = night.backup()

    assert {"repo1.files", "repo1.wal"} <= set(refuted(report))
    assert "differs from its copy" in found(report, "repo1.files")
    assert "the manifest 000000010000000000000001" in found(report, "repo1.wal")


def stand_in(night: Night, workplace: Path, script: str) -> None:
    """Put a shell script before pgBackRest; what it does not end goes on to the program."""
    program = workplace / "pgbackrest"
    program.write_text(f'#!/bin/sh\n{script}\nexec pgbackrest "$@"\n')
    program.chmod(0o755)
    data = yaml.safe_load(night.sandbox.fleet_file.read_text())
    data["clusters"]["demo"]["pgbackrest"]["command"] = [str(program)]
    night.sandbox.fleet_file.write_text(yaml.safe_dump(data))


def test_a_success_without_a_backup_is_not_believed(night: Night, workplace: Path) -> None:
    """Exit code 0, and the repository lists nothing of this run."""
    stand_in(night, workplace, 'case "$*" in *" backup") exit 0;; esac')

    report = night.backup()

    assert Verdict.INCONCLUSIVE is report.verdict
    assert "lists no backup of this run" in report.findings[0].message


def test_a_failure_after_the_backup_was_listed_costs_no_second_one(night: Night, workplace: Path) -> None:
    """The repository decides, not the exit code: what is there is proven and kept."""
    stand_in(night, workplace, 'case "$*" in *" backup") pgbackrest "$@"; exit 56;; esac')

    report = night.backup()

    assert Verdict.VERIFIED is report.verdict
    assert 1 == len(yaml.safe_load(night.pgbackrest("info", "--output=json"))[0]["backup"])


def test_another_pgbackrest_at_work_is_waited_for_and_left_alone(night: Night, workplace: Path) -> None:
    """Its lock on the stanza stands after the bounded wait: could not run, and nothing was begun."""
    stand_in(
        night,
        workplace,
        'case "$*" in *" info") pgbackrest "$@" | sed "s/\\"held\\":false/\\"held\\":true/"; exit;; esac',
    )
    night.edit_fleet(wait="1s")

    report = night.backup()

    assert (Verdict.INCONCLUSIVE, ["PGV-201"]) == (report.verdict, codes(report))
    assert "another pgbackrest works on stanza 'demo' for more than 1 s" in report.findings[0].message
    assert [] == night.find("backup.manifest")


def test_what_a_killed_run_left_at_work_is_ended_and_told(night: Night, workplace: Path) -> None:
    """A worker that carries a run's mark, under the stanza's lock, is of a run that died."""
    options = (f"--config={night.sandbox.pgbackrest_conf}", "--stanza=demo")
    with orphan(workplace, *options, env={TOKEN: "of a run that died"}) as worker:
        report = night.backup()

        assert not Path(f"/proc/{worker}").exists()

    assert (Verdict.VERIFIED, ["leftover-ended"]) == (report.verdict, codes(report))
    assert f"process {worker}" in report.findings[0].message


def test_what_somebody_else_left_at_work_forbids_a_backup(night: Night, workplace: Path) -> None:
    """A worker without a run's mark and without a starter is named, and not ours to end."""
    options = (f"--config={night.sandbox.pgbackrest_conf}", "--stanza=demo")
    with orphan(workplace, *options) as worker:
        report = night.backup()

        assert Path(f"/proc/{worker}").exists()

    assert (Verdict.INCONCLUSIVE, ["PGV-201"]) == (report.verdict, codes(report))
    assert f"ps -fp {worker}" in report.findings[0].hint
