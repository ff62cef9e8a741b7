"""What is remembered of a WAL proof, what pgBackRest says of it, and the policy that asks for it."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.errors import EvidenceError, StorageFailed
from pgvigil.fleet import S3Settings
from pgvigil.policies.wal import KnownLoss, WalPolicy
from pgvigil.reportstore import open_report_store
from pgvigil.wal.inventory import Inventory, ListingReader
from pgvigil.wal.ledger import Ledger, LedgerBook
from pgvigil.wal.names import segment_name
from pgvigil.wal.opinion import read_opinion

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PERIOD = timedelta(days=30)
MB = 2**20


def archive(*files: tuple[int, int, int]) -> Inventory:
    """An inventory of number, size and time."""
    reader = ListingReader(16 * MB)
    names = [segment_name(1, number, 16 * MB) for number, _, _ in files]
    entries = {
        f"15-1/{name[:16]}/{name}-{number:040x}.zst": {"type": "file", "size": size, "time": time}
        for name, (number, size, time) in zip(names, files, strict=True)
    }
    reader.feed(json.dumps({".": {"type": "path"}} | entries, separators=(",", ":")).encode())
    return reader.close()["15-1"]


def due(ledger: Ledger, *files: tuple[int, int, int], at: datetime = NOW) -> list[int]:
    return [file.number for _, file in ledger.due(archive(*files), at, PERIOD)]


def remembered(place: Path, *files: tuple[int, int, int], at: datetime = NOW) -> LedgerBook:
    place.mkdir(exist_ok=True)
    book = LedgerBook(open_report_store(place.as_uri(), S3Settings()), "Ä/1", 1, "15-1", "/here")
    book.write(f"run-{at:%d}", [mark for mark, _ in Ledger().due(archive(*files), at, PERIOD)], at)
    return book


def test_what_was_proven_is_not_due_and_what_changed_is(tmp_path: Path) -> None:
    """New name, other size or other time: read again; the same: not."""
    book = remembered(tmp_path / "store", (1, 10, 5), (2, 10, 5), (3, 10, 5))

    ledger = book.read(NOW + timedelta(hours=1), PERIOD)

    assert [2, 3, 4] == due(ledger, (1, 10, 5), (2, 11, 5), (3, 10, 6), (4, 10, 5))


@given(st.integers(0, 60))
def test_everything_is_due_again_within_the_period_and_nothing_in_its_first_half(days: int) -> None:
    """A rolling pass: proofs fall due between half of the period and its end."""
    files = [(number, 10, 5) for number in range(200)]
    marks = [mark for mark, _ in Ledger().due(archive(*files), NOW, PERIOD)]
    ledger = Ledger(proven=dict.fromkeys(marks, int(NOW.timestamp())))

    found = len(due(ledger, *files, at=NOW + timedelta(days=days)))

    assert found == 0 if days <= 15 else found == 200 if days > 30 else 0 <= found <= 200


def test_notes_older_than_the_period_prove_nothing(tmp_path: Path) -> None:
    """They are not even read."""
    book = remembered(tmp_path / "store", (1, 10, 5), at=NOW - timedelta(days=31))

    assert {} == book.read(NOW, PERIOD).proven


def test_notes_from_the_future_prove_nothing(tmp_path: Path) -> None:
    """A clock that was set back must not keep a proof alive for ever."""
    book = remembered(tmp_path / "store", (1, 10, 5), at=NOW + timedelta(days=1))

    assert {} == book.read(NOW, PERIOD).proven


def test_notes_of_one_place_say_nothing_of_another(tmp_path: Path) -> None:
    """A repository that was moved, or a copy of it, is read anew."""
    remembered(tmp_path / "store", (1, 10, 5))
    store = open_report_store((tmp_path / "store").as_uri(), S3Settings())

    assert {} == LedgerBook(store, "Ä/1", 1, "15-1", "/elsewhere").read(NOW, PERIOD).proven


def test_what_lies_behind_a_link_is_always_due() -> None:
    """The listing tells neither size nor time of it."""
    name = segment_name(1, 1, 16 * MB)
    reader = ListingReader(16 * MB)
    entry = {f"15-1/{name[:16]}/{name}-{1:040x}.zst": {"type": "link", "destination": "/x{}"}}
    reader.feed(json.dumps({".": {"type": "path"}} | entry, separators=(",", ":")).encode())
    inventory = reader.close()["15-1"]
    marks = [mark for mark, _ in Ledger().due(inventory, NOW, PERIOD)]

    again = Ledger(proven=dict.fromkeys(marks, int(NOW.timestamp()))).due(inventory, NOW, PERIOD)

    assert [1] == [file.number for _, file in again]


def test_every_archive_has_segments_of_its_own_size() -> None:
    """Number 0 of the second log: after 256 segments of 16 MB, after 64 of 64 MB."""
    reader = ListingReader(16 * MB, {"14-1": 64 * MB})
    name = "000000010000000100000000"
    entries = {
        f"{folder}/{name[:16]}/{name}-{1:040x}": {"type": "file", "size": 1, "time": 1}
        for folder in ("14-1", "15-2")
    }
    reader.feed(json.dumps(entries, separators=(",", ":")).encode())

    numbers = {key: archive.tracks[1].ranges() for key, archive in reader.close().items()}

    assert {"14-1": [(64, 64)], "15-2": [(256, 256)]} == numbers


# What a file system may hold; pgBackRest escapes quotes, backslashes and \b \f \n \r \t, nothing else.
ESCAPED = {0x22: b'\\"', 0x5C: b"\\\\", 8: b"\\b", 12: b"\\f", 10: b"\\n", 13: b"\\r", 9: b"\\t"}
NAMES = st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 0x2F} & set(name))


@given(st.sets(NAMES, max_size=5), NAMES, st.integers(1, 90))
def test_no_name_in_the_archive_ends_the_listing(names: set[bytes], target: bytes, cut: int) -> None:
    """Any bytes in names and in the targets of links are counted, whatever the chunks, and told printably."""

    def quoted(name: bytes) -> bytes:
        return b'"' + b"".join(ESCAPED.get(byte, bytes([byte])) for byte in name) + b'"'

    entries = [quoted(b"15-1/x" + name) + b':{"type":"file","size":1,"time":1}' for name in sorted(names)]
    link = quoted(b"15-1/link") + b':{"type":"link","destination":' + quoted(target) + b"}"
    text = b"{" + b",".join([b'".":{"type":"path"}', *entries, link]) + b"}\n"
    reader = ListingReader(16 * MB)
    for start in range(0, len(text), cut):
        reader.feed(text[start : start + cut])

    archive = reader.close()["15-1"]

    assert len(names) + 1 == archive.classes["foreign"]
    assert all(name.isprintable() for name in archive.foreign)


def test_a_garbled_note_is_named(tmp_path: Path) -> None:
    """Evidence that cannot be read is an error that says which, not a proof."""
    book = remembered(tmp_path / "store", (1, 10, 5))
    note = next((tmp_path / "store").rglob("*run-01.json"))
    note.write_text("{}")

    with pytest.raises(EvidenceError, match=r"run-01\.json"):
        book.read(NOW, PERIOD)


def test_a_report_store_that_is_away_is_told(tmp_path: Path) -> None:
    """No proof is taken for remembered that could not be written."""
    book = LedgerBook(
        open_report_store((tmp_path / "no" / "store").as_uri(), S3Settings()), "c", 1, "15-1", "/here"
    )

    with pytest.raises(StorageFailed):
        book.write("run", [1], NOW)


VERIFY = """stanza: demo
status: {status}
  archiveId: 15-1, total WAL checked: {checked}, total valid WAL: {valid}
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
  backup: 20261122-172532F, status: {backup}, total files checked: 1263, total valid files: 1263
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
"""


def test_verify_is_believed_by_its_numbers() -> None:
    """More checked than valid is bad though every counter is 0, as for a duplicate."""
    good = read_opinion(VERIFY.format(status="ok", checked=17, valid=17, backup="valid"))
    bad = read_opinion(VERIFY.format(status="error", checked=18, valid=17, backup="manifest missing"))

    assert (True, {}, {}, 17 + 1263) == (good.is_told, good.bad_wal, good.bad_backups, good.checked)
    assert {"15-1": 1} == bad.bad_wal
    assert {"20261122-172532F": "manifest missing"} == bad.bad_backups


def test_silence_of_verify_is_no_approval() -> None:
    """No text, or nothing checked, told nothing."""
    assert [False, False] == [read_opinion(text).is_told for text in ("", "stanza: demo\nstatus: ok\n")]


def test_a_known_loss_names_segments_of_its_timeline() -> None:
    """A slip in the fleet file must not mute more than was meant."""
    facts = {"timeline": 1, "reason": "x", "until": "2027-01-01", "first": "0" * 7 + "1" + "0" * 16}

    KnownLoss.model_validate(facts | {"last": "0" * 7 + "1" + "0" * 15 + "1"})
    with pytest.raises(ValueError, match="ascending segment names of timeline 1"):
        KnownLoss.model_validate(facts | {"last": "0" * 7 + "2" + "0" * 15 + "1"})


def test_what_verify_tells_only_once_is_not_believed() -> None:
    """A backup or an expire beside it makes it err; damage is there again at the second asking."""
    first = read_opinion(VERIFY.format(status="error", checked=18, valid=17, backup="invalid"))
    again = read_opinion(VERIFY.format(status="error", checked=17, valid=17, backup="invalid"))

    assert ({}, {"20261122-172532F": "invalid"}) == (
        first.confirmed_by(again).bad_wal,
        first.confirmed_by(again).bad_backups,
    )


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        ({}, 0),
        ({"continuous_fulls": 1}, 3),
        ({"continuous_fulls": 2}, 0),
        ({"continuous": {"backups": 1, "type": "diff"}}, 4),
        ({"continuous": {"backups": 2, "type": "diff"}}, 3),
        ({"continuous": {"backups": 1, "type": "incr"}}, 5),
        ({"continuous": {"backups": 9, "type": "incr"}}, 0),
    ],
)
def test_wal_is_asked_for_as_pgbackrest_keeps_it(policy: dict[str, object], first: int) -> None:
    """repo-retention-archive counts backups of a type and of those above it."""
    types = ["full", "diff", "incr", "full", "diff", "incr"]

    assert first == WalPolicy.model_validate(policy).first_continuous(types)


def test_the_two_ways_to_count_backups_exclude_each_other() -> None:
    """Which of them would count is not to be guessed."""
    with pytest.raises(ValueError, match="give one of them"):
        WalPolicy.model_validate({"continuous_fulls": 1, "continuous": {"backups": 1, "type": "diff"}})
