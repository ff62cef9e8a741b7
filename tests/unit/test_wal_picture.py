"""The drawing of what can be restored: a row for every way through the timelines."""

from datetime import UTC, datetime, timedelta

from pgvigil.wal.facts import ArchiveFacts, BackupMark, Gap, RepositoryFacts, TimelineFacts, Window
from pgvigil.wal.picture import draw

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


def at(hours: int) -> datetime:
    return BEGAN + timedelta(hours=hours)


def test_a_line_that_was_given_up_has_a_row_of_its_own() -> None:
    """Its windows must not look as if the server's present could be restored."""
    archive = ArchiveFacts(
        archive_id="15-1",
        is_current=True,
        timelines=(
            TimelineFacts(id=1, fate="ancestor", stored_from=at(0)),
            TimelineFacts(id=2, fate="abandoned", parent=1, stored_from=at(4)),
            TimelineFacts(id=3, fate="live", parent=1, stored_from=at(6)),
        ),
        backups=(
            BackupMark(label="of-three", type="full", at=at(1), is_usable=True, line=3),
            BackupMark(label="of-two", type="full", at=at(5), is_usable=True, line=2),
        ),
        spans=(
            Window(
                label="of-three", timeline=3, from_lsn="0/1", to_lsn="0/2", from_time=at(1), archived_at=at(7)
            ),
            Window(
                label="of-two", timeline=2, from_lsn="0/1", to_lsn="0/2", from_time=at(5), archived_at=at(8)
            ),
        ),
        gaps=(
            Gap(
                code="wal-missing",
                first="A",
                last="A",
                segments=1,
                from_lsn="0/2",
                to_lsn="0/3",
                from_time=at(7),
                to_time=at(8),
                line=3,
            ),
        ),
    )

    live, given_up = (
        draw((RepositoryFacts(repo=1, archives=(archive,)),))
        .split("timeline 3 live")[1]
        .split("timeline 2 abandoned")
    )

    assert [True, True, True] == [word in live for word in ("of-three", "#d33b3b", ">T3<")]
    assert [True, False, True] == [word in given_up for word in ("of-two", "#d33b3b", ">T2<")]
