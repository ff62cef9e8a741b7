"""Claims about the repository's listings before and after a drill: whose every change was."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.drill import untouched
from pgvigil.drill.untouched import Listing, ListingReader, Production, Stored
from pgvigil.errors import ToolFailed
from pgvigil.reports import Verdict, conclude

SIZE = 16 * 1024 * 1024
SHA = "a" * 40
FILE = Stored(10, 100)
FULL, INCR = "20260101-000000F", "20260101-000000F_20260102-000000I"


def segment(number: int, timeline: int = 1) -> str:
    return f"{timeline:08X}00000000{number:08X}"


def wal(number: int, timeline: int = 1, suffix: str = ".gz") -> str:
    name = segment(number, timeline)
    return f"15-1/{name[:16]}/{name}-{SHA}{suffix}"


def arriving(path: str) -> str:
    return f"{path}.pgbackrest.tmp"


def start(number: int) -> str:
    return f"15-1/{segment(number)[:16]}/{segment(number)}.00000028.backup"


def backup(label: str) -> list[str]:
    return [f"{label}/backup.manifest", f"{label}/backup.manifest.copy", f"{label}/bundle/1"]


ARCHIVE = ["archive.info", "archive.info.copy", *(wal(n) for n in (1, 2, 3, 4, 5, 7)), start(2), start(5)]
BACKUP = ["backup.info", "backup.info.copy", *backup(FULL), *backup(INCR)]
BEFORE = Listing(dict.fromkeys(ARCHIVE, FILE), dict.fromkeys(BACKUP, FILE))
PRODUCTION = Production(
    timelines=frozenset({1}),
    first=segment(8),
    last=segment(12),
    segment_size=SIZE,
    waiting=frozenset({segment(6)}),
)


def after(
    new: list[str] | None = None, gone: list[str] | None = None, changed: list[str] | None = None
) -> Listing:
    """Paths in a backup are told from those in the archive by their folder."""
    listing = Listing(dict(BEFORE.archive), dict(BEFORE.backup))
    for path in new or []:
        getattr(listing, path.partition("/")[0])[path.partition("/")[2]] = FILE
    for path in gone or []:
        del getattr(listing, path.partition("/")[0])[path.partition("/")[2]]
    for path in changed or []:
        getattr(listing, path.partition("/")[0])[path.partition("/")[2]] = Stored(11, 101)
    return listing


def traces(listing: Listing) -> list[str]:
    return [f"{trace.change} {trace.path}" for trace in untouched.compare(BEFORE, listing, PRODUCTION)]


@pytest.mark.parametrize(
    "listing",
    [
        after(),
        after(new=[f"archive/{wal(n)}" for n in (8, 9, 10, 12)]),
        after(new=[f"archive/{wal(6)}"]),
        after(new=[f"archive/{start(9)}", *(f"backup/{p}" for p in backup("20260103-000000F"))]),
        after(new=["backup/20260103-000000F/backup.manifest.copy"], changed=["backup/backup.info"]),
        after(changed=["backup/backup.info", "backup/backup.info.copy"]),
        after(gone=[f"backup/{p}" for p in backup(INCR)], changed=["backup/backup.info"]),
        after(gone=[f"archive/{wal(n)}" for n in (1, 2, 3, 4)] + [f"archive/{start(2)}"]),
        after(new=["backup/backup.history/2026/20260103-000000F.manifest.gz"]),
    ],
)
def test_what_production_does_leaves_no_trace(listing: Listing) -> None:
    """New and late WAL, a backup that runs or ended, an annotation and an expire are production's own."""
    assert traces(listing) == []
    assert conclude(untouched.judge(1, BEFORE, listing, PRODUCTION).checks) is Verdict.VERIFIED


@pytest.mark.parametrize(
    ("listing", "trace"),
    [
        (after(new=[f"archive/{wal(9, timeline=2)}"]), f"new archive/{wal(9, timeline=2)}"),
        (after(new=["archive/15-1/00000002.history"]), "new archive/15-1/00000002.history"),
        (after(new=[f"archive/{wal(13)}"]), f"new archive/{wal(13)}"),
        (after(new=[f"archive/{wal(3, suffix='.zst')}"]), f"new archive/{wal(3, suffix='.zst')}"),
        (after(new=["archive/15-1/odd"]), "new archive/15-1/odd"),
        (after(changed=[f"archive/{wal(3)}"]), f"changed archive/{wal(3)}"),
        (after(changed=["archive/archive.info"]), "changed archive/archive.info"),
        (after(gone=[f"archive/{wal(7)}"]), f"gone archive/{wal(7)}"),
        (after(gone=["archive/archive.info"]), "gone archive/archive.info"),
        (after(changed=[f"backup/{FULL}/bundle/1"]), f"changed backup/{FULL}/bundle/1"),
        (after(new=[f"backup/{FULL}/bundle/2"]), f"new backup/{FULL}/bundle/2"),
        (after(gone=[f"backup/{FULL}/bundle/1"]), f"gone backup/{FULL}/bundle/1"),
        (after(gone=["backup/backup.info"]), "gone backup/backup.info"),
        (after(new=["backup/odd"]), "new backup/odd"),
    ],
)
def test_anything_else_is_refuted_by_its_file(listing: Listing, trace: str) -> None:
    """A stray timeline, a rewritten file or one that is gone is named."""
    judgement = untouched.judge(1, BEFORE, listing, PRODUCTION)

    assert traces(listing) == [trace]
    assert trace.split()[1] in judgement.findings[0].message
    assert conclude(judgement.checks) is Verdict.REFUTED


PUSHED = [wal(9), wal(6), "15-1/00000001.history", start(9), "archive.info", "archive.info.copy"]


@pytest.mark.parametrize("path", PUSHED)
def test_a_push_at_work_leaves_no_trace(path: str) -> None:
    """A posix file has another name until it is whole: seen in either listing, it is production's own."""
    whole = after(new=[f"archive/{path}"] if path not in ARCHIVE else [])
    at_work = Listing({**BEFORE.archive, arriving(path): FILE}, BEFORE.backup)
    grown = Listing({**BEFORE.archive, arriving(path): Stored(11, 101)}, BEFORE.backup)

    for pair in [(BEFORE, at_work), (at_work, grown), (at_work, whole), (at_work, BEFORE)]:
        assert untouched.compare(*pair, PRODUCTION) == ()


@pytest.mark.parametrize("path", [wal(9, timeline=2), wal(13), wal(3, suffix=".zst"), "15-1/odd"])
def test_a_push_that_production_does_not_make_is_named(path: str) -> None:
    """That a file is not whole yet does not make it production's own."""
    assert traces(after(new=[f"archive/{arriving(path)}"])) == [f"new archive/{arriving(path)}"]


def test_a_backup_at_work_leaves_no_trace() -> None:
    """What it is still writing gets its name, or goes, before its manifest is there."""
    label = "20260103-000000F"
    parts = [arriving(f"{label}/bundle/1"), arriving("backup.info"), f"{label}/unfinished"]
    at_work = Listing(BEFORE.archive, {**BEFORE.backup, **dict.fromkeys(parts, FILE)})
    done = after(new=[f"backup/{path}" for path in backup(label)], changed=["backup/backup.info"])

    assert untouched.compare(BEFORE, at_work, PRODUCTION) == ()
    assert untouched.compare(at_work, done, PRODUCTION) == ()


def test_an_archive_that_expired_whole_is_no_trace() -> None:
    """After an upgrade the last backup of the old major takes its archive along."""
    before = Listing({**BEFORE.archive, "14-1/0000000100000000/x": FILE}, BEFORE.backup)

    assert untouched.compare(before, BEFORE, PRODUCTION) == ()


def test_an_empty_listing_proves_nothing() -> None:
    """A path that does not exist is listed as empty, without an error."""
    empty = Listing({}, {})

    assert conclude(untouched.judge(1, empty, empty, PRODUCTION).checks) is Verdict.INCONCLUSIVE


@given(
    names=st.dictionaries(st.text(min_size=1), st.tuples(st.integers(0, 2**40), st.integers(0, 2**40))),
    cut=st.integers(1, 50),
)
def test_a_listing_is_read_whole_however_it_is_cut(names: dict[str, tuple[int, int]], cut: int) -> None:
    """Any names in any chunks give the same files."""
    entries = {
        name: {"type": "file", "size": size, "time": time}
        for name, (size, time) in names.items()
        if name != "."
    }
    text = json.dumps({".": {"type": "path"}, **entries}).encode()
    reader = ListingReader()
    for first in range(0, len(text), cut):
        reader.feed(text[first : first + cut])

    assert reader.close() == {name: Stored(e["size"], e["time"]) for name, e in entries.items()}


def test_odd_names_are_names() -> None:
    """Bytes that are no UTF-8, control signs and braces in a name break no listing, and can be told."""
    reader = ListingReader()
    names = (b"caf\xe9.txt", b"a\x01b", b'b{\\"c}')
    reader.feed(
        b"{" + b",".join(b'"' + name + b'":{"type":"file","size":1,"time":2}' for name in names) + b"}"
    )
    archive = {**BEFORE.archive, **reader.close()}
    told = traces(Listing(archive, dict(BEFORE.backup)))

    assert ["new archive/a\\x01b", 'new archive/b{"c}', "new archive/caf\\xe9.txt"] == sorted(told)
    assert all(text.isprintable() for text in told)


def test_half_a_listing_is_an_error() -> None:
    """What did not come whole must not pass for a repository with fewer files."""
    reader = ListingReader()
    reader.feed(b'{".":{"type":"path"},"a":{"type":"file","size":1,"time":2},"b":{"ty')

    with pytest.raises(ToolFailed, match="ends or breaks"):
        reader.close()
