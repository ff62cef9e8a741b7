"""The known damages as data: what is done, which flow must notice, and by which finding or check.

To add one, write the function that does it and name it here; the alarm test, its page and the suite take
it from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pgvigil.alarmtest import of_backups, of_rows, of_wal
from pgvigil.alarmtest import repository as files
from pgvigil.alarmtest.of_backups import (
    to_a_fulls_file,
    to_backup_info,
    to_both_manifests,
    to_the_newest_file,
)
from pgvigil.alarmtest.of_wal import to_a_full_segment, to_a_segment, to_the_newest_backups
from pgvigil.reports import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.alarmtest.scene import Scene

Flow = Literal[
    "verify_wal_archive", "nightly_backup", "restore_drill", "restore_partition", "roll_partitions"
]
CONTROLS: tuple[Flow, ...] = get_args(Flow)
# These write into the repository, or need rows in an object store: they never run against a user's.
SANDBOX_ONLY: tuple[Flow, ...] = ("restore_drill", "restore_partition", "roll_partitions")


@dataclass(frozen=True)
class Damage:
    """One damage: `expected` is the code of a finding, or the name of a check without its repository.

    `act` does it and returns the name of what it broke, which the finding or the check must tell.
    """

    name: str
    what: str
    flow: Flow
    expected: str
    act: Callable[[Scene], str]
    verdict: Verdict = Verdict.REFUTED
    in_sandbox: bool = False

    @property
    def needs_sandbox(self) -> bool:
        """Whether it is made to more than a copied repository."""
        return self.in_sandbox or self.flow in SANDBOX_ONLY

    def listed(self) -> dict[str, str]:
        """Tell it without the function that does it."""
        return {"name": self.name, "what": self.what, "flow": self.flow, "expected": self.expected}


_WAL: Flow = "verify_wal_archive"
_BACKUP: Flow = "nightly_backup"
_DRILL: Flow = "restore_drill"
_RETURN: Flow = "restore_partition"
_ROLL: Flow = "roll_partitions"

DAMAGES: tuple[Damage, ...] = (
    Damage("segment-missing", "a WAL segment is deleted", _WAL, "wal-missing", to_a_segment(Path.unlink)),
    Damage(
        "segment-flipped", "one bit of a WAL segment is turned", _WAL, "wal-corrupt", to_a_segment(files.flip)
    ),
    Damage("segment-truncated", "a WAL segment is cut short", _WAL, "wal-truncated", to_a_segment(files.cut)),
    Damage("segment-empty", "a WAL segment has no bytes", _WAL, "wal-empty", to_a_segment(files.empty)),
    Damage(
        "segment-longer",
        "something follows a WAL segment's end",
        _WAL,
        "wal-corrupt",
        to_a_segment(files.lengthen),
    ),
    Damage(
        "segment-misplaced",
        "a WAL segment holds the one before it, with that one's true sha1 in its name",
        _WAL,
        "wal-misplaced",
        to_a_segment(of_wal.misplace),
    ),
    Damage(
        "segments-swapped",
        "two WAL segments have each other's names",
        _WAL,
        "wal-misplaced",
        to_a_segment(of_wal.swap),
    ),
    Damage(
        "segment-foreign-content",
        "a WAL segment keeps its name and holds other WAL",
        _WAL,
        "wal-corrupt",
        to_a_segment(of_wal.exchange),
    ),
    Damage(
        "segment-twice",
        "a WAL segment is stored twice, under two sha1",
        _WAL,
        "wal-duplicate",
        to_a_segment(of_wal.double),
    ),
    Damage(
        "segment-page-lost",
        "a page of a WAL segment was lost before it was archived: its sha1 is right",
        _WAL,
        "wal-corrupt",
        to_a_full_segment(of_wal.lose_page),
        in_sandbox=True,
    ),
    Damage(
        "stop-segment-missing",
        "the segment in which a backup ends is deleted",
        _WAL,
        "wal-missing",
        of_wal.lose_stop,
    ),
    Damage("archive-emptied", "every WAL segment is deleted", _WAL, "wal-missing", of_wal.lose_all),
    Damage(
        "history-missing",
        "the history file of the server's timeline is deleted",
        _WAL,
        "history-missing",
        of_wal.lose_history,
    ),
    Damage(
        "history-garbled",
        "the history file of the server's timeline is garbage",
        _WAL,
        "history-missing",
        of_wal.garble_history,
    ),
    Damage(
        "timeline-stray",
        "a restored copy archives here on a timeline of its own",
        _WAL,
        "timeline-stray",
        of_wal.stray,
    ),
    Damage(
        "manifests-missing",
        "both manifests of a full are deleted",
        _WAL,
        "manifest-missing",
        to_both_manifests(Path.unlink),
    ),
    Damage(
        "manifests-empty",
        "both manifests of a full have no bytes",
        _WAL,
        "manifest-missing",
        to_both_manifests(files.empty),
    ),
    Damage(
        "manifests-flipped",
        "one bit of both manifests of a full is turned",
        _WAL,
        "manifest-corrupt",
        to_both_manifests(files.flip),
    ),
    Damage(
        "backup-info-missing",
        "backup.info and its copy are deleted",
        _WAL,
        "PGV-200",
        to_backup_info(Path.unlink, "missing stanza data"),
        Verdict.INCONCLUSIVE,
    ),
    Damage(
        "backup-info-flipped",
        "one bit of backup.info and its copy is turned",
        _WAL,
        "PGV-200",
        to_backup_info(files.flip, "backup.info"),
        Verdict.INCONCLUSIVE,
    ),
    Damage(
        "archive-info-missing",
        "archive.info and its copy are deleted",
        _WAL,
        "PGV-200",
        of_backups.lose_archive_info,
        Verdict.INCONCLUSIVE,
    ),
    Damage(
        "archive-info-foreign",
        "archive.info is of another system",
        _WAL,
        "PGV-200",
        of_backups.make_archive_foreign,
        Verdict.INCONCLUSIVE,
    ),
    Damage(
        "stanza-foreign",
        "the whole stanza is of another cluster",
        _WAL,
        "PGV-200",
        of_backups.make_stanza_foreign,
        Verdict.INCONCLUSIVE,
    ),
    Damage(
        "backup-file-missing",
        "a data file of the newest backup is deleted",
        _BACKUP,
        "files",
        to_the_newest_file(Path.unlink),
    ),
    Damage(
        "backup-file-truncated",
        "a data file of the newest backup is cut short",
        _BACKUP,
        "files",
        to_the_newest_file(files.halve),
    ),
    Damage(
        "manifest-differs",
        "one bit of the newest backup's manifest is turned, not of its copy",
        _BACKUP,
        "files",
        of_backups.flip_one_manifest,
    ),
    Damage(
        "parent-manifest-missing",
        "a manifest of the parent backup is deleted",
        _BACKUP,
        "chain",
        of_backups.lose_parent_manifest,
    ),
    Damage("parent-missing", "the parent backup is deleted", _BACKUP, "files", of_backups.lose_parent),
    Damage(
        "backup-wal-missing",
        "a WAL segment of the newest backup is deleted",
        _BACKUP,
        "wal",
        to_the_newest_backups(Path.unlink),
    ),
    Damage(
        "backup-wal-flipped",
        "one bit of a WAL segment of the newest backup is turned",
        _BACKUP,
        "wal",
        to_the_newest_backups(files.flip),
    ),
    Damage(
        "page-flipped",
        "a page of a table is overwritten on the server's disk, then backed up",
        _BACKUP,
        "pages",
        of_backups.flip_page,
        in_sandbox=True,
    ),
    Damage(
        "backup-file-flipped",
        "one bit of a backup's largest file is turned",
        _DRILL,
        "restore-failed",
        to_a_fulls_file(files.flip),
    ),
    Damage(
        "backup-file-lost",
        "a backup's largest file is deleted",
        _DRILL,
        "restore-failed",
        to_a_fulls_file(Path.unlink),
    ),
    Damage(
        "replay-wal-missing",
        "a WAL segment after the newest backup is deleted",
        _DRILL,
        "recovery-wal-missing",
        of_wal.lose_after_backup,
    ),
    Damage("rows-flipped", "one bit of an archived partition is turned", _RETURN, "content", of_rows.flip),
    Damage(
        "rows-truncated", "an archived partition is cut short", _RETURN, "content.sha256", of_rows.truncate
    ),
    Damage(
        "rows-replaced",
        "an archived partition lacks its last row, and is whole otherwise",
        _RETURN,
        "content.sha256",
        of_rows.drop_a_row,
    ),
    Damage(
        "rows-missing", "the object of an archived partition is deleted", _RETURN, "content", of_rows.lose
    ),
    Damage(
        "rows-manifest-altered",
        "the manifest of an archived partition tells another number of rows",
        _RETURN,
        "PGV-500",
        of_rows.edit_manifest,
        Verdict.INCONCLUSIVE,
    ),
    Damage(
        "copy-flipped",
        "one bit of a partition's copy is turned before it is read back",
        _ROLL,
        "copy.sha256",
        of_rows.flip,
    ),
    Damage(
        "copy-missing", "a partition's copy is gone before it is read back", _ROLL, "copy.there", of_rows.lose
    ),
)
