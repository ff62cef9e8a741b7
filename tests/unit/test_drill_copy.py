from pathlib import Path

import pytest

from pgvigil.drill.copy import find_programs, read_major
from pgvigil.drill.facts import Mark
from pgvigil.drill.place import Place
from pgvigil.drill.recovery import Stop
from pgvigil.drill.refusals import room_needed
from pgvigil.drill.restore import read_progress
from pgvigil.errors import VersionUnsupported
from pgvigil.pgbackrest import Backup, argv

TARGET = argv.Target(stanza="demo", config=Path("/etc/pgbackrest.conf"))
DESTINATION = argv.Destination(data=Path("/s/data"), tablespaces=Path("/s/ts"), tools=Path("/s/tools"))
MARK = Mark.model_validate(
    {"database": "shop", "method": "slot", "lsn": "1/2", "timeline": 3, "at": "2027-01-01T00:00:00Z"}
)


def test_a_restore_never_touches_what_is_there_and_never_archives() -> None:
    """No delta, no force, no link to an old place, every tablespace into ours, archiving off."""
    words = argv.restore(TARGET, 2, "L", DESTINATION)

    assert {"--no-delta", "--no-link-all", "--archive-mode=off", "--tablespace-map-all=/s/ts"} <= set(words)
    assert {"--repo=2", "--set=L", "--type=default", "--pg1-path=/s/data", "--reset-pg1-host"} <= set(words)
    assert {"--lock-path=/s/tools/lock", "--log-path=/s/tools/log"} <= set(words)
    assert "--reset-tablespace-map" in words
    assert not {"--delta", "--force"} & set(words)


def test_tablespaces_are_placed_by_oid() -> None:
    """A name may be a path that leads anywhere, and what production says of places does not count."""
    words = argv.restore(TARGET, 2, "L", DESTINATION, (16384, 16999))

    assert {"--tablespace-map=16384=/s/ts/16384", "--tablespace-map=16999=/s/ts/16999"} <= set(words)
    assert "--reset-tablespace-map" not in words  # pgBackRest refuses it beside the others, which replace all


@pytest.mark.parametrize(
    ("line", "percent"),
    [
        ("P01 DETAIL: restore file /s/data/base/1/1259 (112KB, 33.12%) checksum ab", 33.12),
        ("P02 DETAIL: restore file /s/data/a (b)/5 (bundle 2/44, 40KB, 0.16%) checksum ab", 0.16),
        ("P00   INFO: restore size = 38.3MB, file total = 1387", None),
        ("P00 DETAIL: create path '/s/data/base'", None),
    ],
)
def test_progress_is_read_from_pgbackrests_lines(line: str, percent: float | None) -> None:
    """Each file's line has the percent so far."""
    progress = read_progress(line)

    assert percent == (progress.percent if progress else None)


def test_a_copy_needs_room_for_the_set_its_wal_and_a_tenth() -> None:
    """Bytes as the database was, not as the repository packs them."""
    backup = Backup.model_validate(
        {
            "label": "20270101-000000F",
            "type": "full",
            "archive": {},
            "timestamp": {"start": 0, "stop": 1},
            "database": {"id": 1, "repo-key": 1},
            "info": {"size": 900, "delta": 900, "repository": {"size": 9, "delta": 9}},
        }
    )

    assert 1100 == room_needed(backup, 100)


def test_a_mark_is_stopped_at_before_its_lsn_or_at_its_name() -> None:
    """The record that begins at the mark's LSN is not replayed; a restore point is what it is."""
    named = MARK.model_copy(update={"name": "here"})

    assert Stop.at_mark(MARK).settings() == {
        "recovery_target_lsn": "1/2",
        "recovery_target_inclusive": "off",
    }
    assert Stop.at_mark(named).settings()["recovery_target_name"] == "here"
    assert (1, 3) == (len({Stop.at_mark(m).lsn for m in (MARK, named)}), Stop.at_mark(MARK).timeline)


@pytest.mark.parametrize("version", ["14", "19", "9.6"])
def test_a_copy_of_an_untested_postgresql_is_refused(tmp_path: Path, version: str) -> None:
    """Settings that isolate the copy differ between majors."""
    place = Place(directory=tmp_path, sockets=tmp_path)
    place.data.mkdir()
    (place.data / "PG_VERSION").write_text(f"{version}\n")

    with pytest.raises(VersionUnsupported, match=f"PostgreSQL {version}"):
        read_major(place)


def test_missing_programs_are_told_with_their_major(tmp_path: Path) -> None:
    """The cure names what to install."""
    with pytest.raises(VersionUnsupported) as missing:
        find_programs(15, tmp_path)

    assert "15" in missing.value.hint
