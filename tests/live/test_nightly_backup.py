"""What a backup run proves of its own backup, and what damage it finds."""

import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pgvigil.backup import operation
from pgvigil.backup.facts import PROOF_NOTE, RUN_NOTE
from pgvigil.reports import Verdict
from tests.fixtures.backup import Night, main_process, processes_of
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


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def double(path: Path) -> None:
    shutil.copy(path, path.with_name(re.sub(r"-[0-9a-f]{40}", "-" + "0" * 40, path.name)))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (Path.unlink, "missing"),
        (flip, "sha1|decompressed"),
        (truncate, "cut off"),
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


def test_a_broken_parent_calls_for_a_full(night: Night) -> None:
    """Nothing is built on a chain that cannot be restored, and the loss is told."""
    full = night.backup().backups[0].label
    for path in night.find(f"/{full}/backup.manifest"):
        path.unlink()

    report = night.backup()

    assert Verdict.VERIFIED is report.verdict
    assert ("full", ["parent-broken"]) == (report.backups[0].type, codes(report))
    assert full in report.plan[0].reason


@pytest.mark.parametrize("damage", [Path.unlink, truncate])
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
