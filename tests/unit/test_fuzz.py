"""Whatever comes from outside is read, or refused with an error of ours; nothing else leaves."""

import copy
import json
import pickle
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deployments.automations import load_automations
from deployments.manifest import load_manifest
from deployments.run import _arguments, _split
from flows.nightly_backup import nightly_backup
from flows.restore_drill import restore_drill
from flows.roll_partitions import roll_partitions
from pgvigil.archive.blocks import BlockDigest
from pgvigil.archive.manifest import read_manifest as read_archive
from pgvigil.drill.untouched import ListingReader as RepositoryReader
from pgvigil.errors import ConfigError, PgvigilError, PreconditionFailed, ToolFailed
from pgvigil.fleet import load_fleet
from pgvigil.partitions.axis import Axis
from pgvigil.pgbackrest.failures import failure
from pgvigil.pgbackrest.info import read_info, read_listing, read_page_errors, read_tablespaces
from pgvigil.pgbackrest.manifest import read_header, read_manifest, stored_objects
from pgvigil.policies.partitions import Span
from pgvigil.policies.units import parse_duration
from pgvigil.processes import Completed
from pgvigil.reportstore import DirectoryShelf, ReportStore
from pgvigil.spool import Spool
from pgvigil.wal.headers import PageWalk
from pgvigil.wal.inventory import ListingReader as ArchiveReader
from pgvigil.wal.ledger import LedgerBook
from pgvigil.wal.manifests import ManifestSum
from pgvigil.wal.names import lsn_text, parse_lsn
from pgvigil.wal.opinion import read_opinion
from pgvigil.wal.timelines import Branch, Tree, read_history
from pgvigil.watch.signal import read_url

FEW = settings(max_examples=50)
DEEP = 3000  # deeper than Python's own stack
NESTED = "[" * DEEP + "]" * DEEP
LONG = "9" * 5000  # more digits than Python reads

ODD: list[Any] = [None, True, -1, 0, 1.5, 10**30, 1e300, float("nan"), float("inf"), "", "x", "\0", "\ud800"]
ODD += [LONG, "2026-03-01T00:00:00", "\u202e", [], {}, [[]], {"a": {}}, ["x"]]
SCRAPS = ['"', "{", "}", "[", "]", ":", ",", "=", "={", "\n", "\r", "\0", "\\", "\\ud800", "\x85", "\u2028"]
SCRAPS += [
    "-1",
    "NaN",
    "Infinity",
    "null",
    "1e999",
    LONG,
    "[" * DEEP,
    '{"a":' * DEEP,
    "'",
    "#",
    "&a ",
    "*a",
    "- ",
]

SEGMENT = "0000000100000000000000"
INFO: list[Any] = [
    {
        "name": "demo",
        "status": {"code": 0, "message": "ok", "lock": {"backup": {"held": False}}},
        "archive": [{"id": "15-1", "database": {"id": 1, "repo-key": 1}, "min": SEGMENT + "01", "max": None}],
        "db": [{"id": 1, "repo-key": 1, "system-id": 7441122334455667788, "version": "15"}],
        "repo": [{"key": 1, "cipher": "none", "status": {"code": 0, "message": "ok"}}],
        "backup": [
            {
                "label": label,
                "type": "full",
                "archive": {"start": SEGMENT + "01", "stop": SEGMENT + "02"},
                "lsn": {"start": "0/1", "stop": "0/2"},
                "timestamp": {"start": 1772323200, "stop": 1772323260},
                "database": {"id": 1, "repo-key": 1},
                "info": {"size": 1, "delta": 1, "repository": {"size": 1, "delta": 1}},
                "error-list": ["pg_data/base/1/2", {"name": "x"}],
                "tablespace": [{"oid": 16384}],
                "annotation": {"key": "value"},
            }
            for label in ("20260301-000000F", "20260302-000000F")
        ],
    }
]
LISTING = {
    ".": {"type": "path"},
    "15-1/0000000100000000/" + SEGMENT + "01-" + "a" * 40 + ".gz": {"type": "file", "size": 5, "time": 1},
    "15-1/0000000100000000/" + SEGMENT + "02-" + "b" * 40: {"type": "link", "size": 5, "time": 2},
    "15-1/00000002.history": {"type": "file", "size": 5, "time": 3},
    "stray": {"type": "file"},
}
MANIFEST = """[backup]
backup-label="20260301-000000F"
option-checksum-page=true
[target:file]
pg_data/a={"size":10,"repo-size":7}
pg_data/b=c={"bni":1,"bno":100,"size":10,"reference":"20260228-000000F"}
[target:file:default]
user="postgres"
[backrest]
backrest-checksum="x"
"""
VERIFY = """stanza: demo
status: error
  archiveId: 15-1, total WAL checked: 18, total valid WAL: 17
    missing: 0, checksum invalid: 1, size invalid: 0, other: 0
  backup: 20260301-000000F, status: invalid, total files checked: 1263, total valid files: 1262
    missing: 1, checksum invalid: 0, size invalid: 0, other: 0
"""
HISTORY = '1\t0/3000000\tno recovery target specified\n2\t0/5000000\tafter LSN 0/5000000\n# "x"\n'
FLEET = """
audit: {dsn: "postgresql://pgvigil@ops:5432/ops", reports: "s3://acme/reports", spool: /var/spool}
s3: {endpoint_url: "https://s3", region: eu, sse: AES256}
alarms: {notify: [slack-webhook/dba], remind: 1d}
waves: {nightly-backup: {names: ["one*"], at_once: 2, schedule: {cron: "30 3 * * *", timezone: Etc/UTC}}}
clusters:
  one:
    dsn: postgresql://pgvigil@one:5432/postgres
    tags: [big]
    pgbackrest: {stanza: one, config: /etc/pgbackrest.conf, command: [ssh, one, pgbackrest], deadline: 2h}
    backup: {full_every: 7d, retention: {fulls: 2}, wal_ratio: 1.5}
    databases:
      shop:
        partitions:
          - {table: public.events, key: at, every: 1 month, ahead: 4, keep: 12 months, archive: "s3://acme/a"}
        backfills:
          cents: {table: public.payments, set: {cents: "amount * 100"}, where: cents IS NULL}
"""
PREFECT = Path("prefect.yaml").read_text(encoding="utf-8")
AUTOMATIONS = Path("deployments/automations.yaml").read_text(encoding="utf-8")


def answer(read: Callable[[], Any]) -> Any:
    """Return what was read; a refusal must be ours, say something, and survive pickling."""
    try:
        return read()
    except PgvigilError as error:
        refusal = error
    assert refusal.message
    assert str(refusal) == str(pickle.loads(pickle.dumps(refusal)))
    return None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Name every place inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def bent(draw: st.DrawFn, document: Any) -> Any:
    """A valid document in which one to three values were dropped, doubled, or are something else."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        known = list(places(found))
        if not known:
            return found
        *way, last = draw(st.sampled_from(known))
        place = found
        for key in way:
            place = place[key]
        how = draw(st.sampled_from(["drop", "odd", "odd", "wrap", "more"]))
        if how == "drop":
            del place[last]
        elif how == "odd":
            place[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif how == "wrap":
            place[last] = [place[last]]
        elif isinstance(place, list):
            place.append(copy.deepcopy(place[last]))
        else:
            place["\u00e4\ud800" if draw(st.booleans()) else "x"] = place[last]
    return found


@st.composite
def broken(draw: st.DrawFn, text: str) -> str:
    """A valid text that was cut off, lost a piece, or got another in."""
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        how = draw(st.sampled_from(["cut", "lose", "put", "put", "double"]))
        if how == "cut":
            text = text[:end]
        elif how == "lose":
            text = text[:start] + text[end:][-2000:]
        elif how == "put":
            text = text[:start] + draw(st.sampled_from(SCRAPS) | st.text(max_size=5)) + text[start:]
        else:
            text = text[:end] + text[start:]
    return text


def as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def foreign(document: Any) -> st.SearchStrategy[bytes]:
    """JSON from outside: another document, or another text than it was."""
    whole = json.dumps(document)
    return (bent(document).map(json.dumps) | broken(whole)).map(as_bytes) | st.binary(max_size=50)


# --- pgBackRest -----------------------------------------------------------------------------------------


@given(foreign(INFO))
@example(NESTED.encode())
@example(json.dumps(INFO).replace("1772323260", '"2026-03-01T00:00:00"', 1).encode())
def test_any_info_is_backups_or_a_typed_error(text: bytes) -> None:
    """Also what is asked of it later: order, archive, timeline."""

    def read() -> None:
        found = read_info(text, "demo")
        for backup in found.backups(1):
            assert found.archive_id(backup)
            assert backup.timeline >= 0

    answer(read)
    answer(lambda: read_page_errors(text, "demo", "20260301-000000F"))
    answer(lambda: read_tablespaces(text, "demo", "20260301-000000F"))


@given(foreign(LISTING), st.integers(1, 60))
@example(f'{{"x":{{"type":"file","size":{LONG}}}}}'.encode(), 60)
@example(b'{"x":{"type":"file","size":null}}', 60)
@example(b'{"15-1/\\ud800":{"type":"file"}}', 60)
@example(json.dumps(LISTING).replace(" ", "").replace('"size":5', '"size":' + "9" * 30).encode(), 60)
def test_any_listing_is_files_or_a_typed_error(text: bytes, size: int) -> None:
    """Whole, or in chunks of any size; every name in it can be told."""
    answer(lambda: read_listing(text))
    for reader in (ArchiveReader(1 << 24), RepositoryReader()):

        def read(reader: Any = reader) -> Any:
            for start in range(0, len(text), size * 100):
                reader.feed(text[start : start + size * 100])
            return reader.close()

        for inventory in (answer(read) or {}).values():
            assert repr(inventory).encode()
    # What it names reaches reports, which are UTF-8.
    archive = ArchiveReader(1 << 24)
    if answer(lambda: (archive.feed(text), archive.close())):
        told = (*archive.strays, *(name for each in archive.archives.values() for name in each.foreign))
        assert "".join(told).encode().isascii() or all(name.isprintable() for name in told)


@given(broken(MANIFEST))
@example("backup-label=x\n")
@example("backup-label=7\n")
@example(f'[target:file]\na={{"x":{"[" * DEEP}')
@example(f"option-x={NESTED}\n[backrest]\na={NESTED}=1\n")
def test_any_manifest_is_files_or_a_typed_error(text: str) -> None:
    """What a restore needs of it, its facts, and its checksum."""
    needed = answer(lambda: stored_objects(read_manifest(text)))
    assert needed is None or all(isinstance(label, str) for label in needed)
    assert isinstance(read_header(text), dict)
    content = ManifestSum()
    content.feed(as_bytes(text))
    assert content.fault


@pytest.mark.parametrize("label", ["x", "7", "[" * DEEP, "null"])
def test_a_manifest_that_does_not_name_its_backup_is_told_with_its_cure(label: str) -> None:
    """The label decides where files are looked for: nothing may be guessed."""
    with pytest.raises(ToolFailed, match=r"a manifest calls its backup .*take a new full"):
        list(read_manifest(f'backup-label={label}\n[target:file]\na={{"size":1}}'))


@given(broken(VERIFY))
@example(VERIFY.replace("18", LONG))
def test_any_opinion_is_a_value(text: str) -> None:
    """What cannot be read is never an approval of what stood there."""
    found = read_opinion(text)

    assert found.checked >= 0
    assert not found.is_good or (not found.bad_wal and not found.bad_backups and found.is_told)


def test_a_number_without_end_is_no_approval() -> None:
    """A count that nobody can read was not checked."""
    found = read_opinion(VERIFY.replace("18", LONG).replace("17", LONG).replace("error", "ok"))

    assert "15-1" not in found.bad_wal
    assert 1263 == found.checked
    assert not found.is_good


@given(st.integers(-1, 300), st.lists(st.text(max_size=30), max_size=4))
@example(26, ["ERROR: [026]: \ud800\0"])
def test_any_end_of_pgbackrest_is_an_error_with_a_cure(code: int, tail: list[str]) -> None:
    """Known code or not, whatever it printed."""
    error = failure("take a backup", Completed(argv=("x",), exit_code=code, tail=tuple(tail), seconds=1.0))

    assert error.message
    assert error.hint


# --- WAL ------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.integers(1, 5), broken(HISTORY), max_size=3))
@example({3: f"{LONG} 0/1\n"})
@example({3: f"1 0/{'F' * 9000}\n"})
@example({3: "\x85"})
def test_any_history_is_branches_or_the_reason_why_not(files: dict[int, str]) -> None:
    """An unreadable one is told; of the others every line has an end."""
    tree = Tree.read(files)

    assert set(files) == set(tree.ancestry) | set(tree.unreadable)
    assert all(tree.unreadable.values())
    for timeline in files:
        assert tree.line(timeline, 1 << 24)
    assert all(branch.lsn < 2**64 for each in tree.ancestry.values() for branch in each)


@pytest.mark.parametrize("sign", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"])
def test_a_restore_points_name_ends_no_line_of_a_history(sign: str) -> None:
    """PostgreSQL writes the name as it is and ends lines with a line feed alone."""
    text = f'1\t0/3000000\tat restore point "a{sign}b"\n2\t0/5000000\tbefore 2026\n'

    assert (Branch(1, 0x3000000), Branch(2, 0x5000000)) == read_history(text)


HEADER = b"\x10\xd1\x02\x00" + (1).to_bytes(4, "little") + (0x3000000).to_bytes(8, "little") + bytes(8)
HEADER += (7).to_bytes(8, "little") + (1 << 24).to_bytes(4, "little") + (8192).to_bytes(4, "little")


@given(
    st.lists(st.binary(max_size=60) | st.just(HEADER) | st.just(bytes(9000)), max_size=5),
    st.integers(0, 39),
    st.integers(0, 255),
)
def test_any_segment_is_walked_to_its_end(chunks: list[bytes], place: int, value: int) -> None:
    """A header with any wrong byte, and anything after it."""
    walk = PageWalk()
    walk.take(HEADER[:place] + bytes([value]) + HEADER[place + 1 :])
    for chunk in chunks:
        walk.take(chunk)

    assert isinstance(walk.fault, str)


@given(st.integers(0, 2**64 - 1))
def test_a_position_reads_back(position: int) -> None:
    """Every LSN that there can be."""
    assert position == parse_lsn(lsn_text(position))


@given(
    foreign({"schema_version": 1, "page": "x", "at": 1772323200, "opinion": True, "proven": "eJwDAAAAAAE="})
)
@example(b'{"at": Infinity, "proven": "eJwDAAAAAAE="}')
@example(b'{"at": -1e17, "proven": "eJwDAAAAAAE="}')
@example(NESTED.encode())
@FEW
def test_any_note_of_proofs_is_read_or_named(text: bytes) -> None:
    """Such a note comes from the report store, where others may write."""

    class Notes:
        def notes(self, _: object) -> list[str]:
            return ["20990101T000000Z-x.json"]

        def read_note(self, _: object, __: str) -> bytes:
            return text

    book = LedgerBook(Notes(), "demo", 1, "15-1", "here")  # type: ignore[arg-type]
    ledger = answer(lambda: book.read(datetime(2026, 3, 2, tzinfo=UTC), timedelta(days=7)))
    assert ledger is None or ledger.oldest() is None or ledger.oldest().tzinfo is UTC


# --- the archive of partitions --------------------------------------------------------------------------


@given(foreign({"sha256": "x", "manifest": {"shape": {}, "rows": None, "tree": []}}))
@example(b'{"sha256": "x", "manifest": "\\ud800"}')
@example(NESTED.encode())
@example(b'{"sha256": "x", "manifest": ' + NESTED.encode() + b"}")
@FEW
def test_any_object_in_a_manifests_place_is_refused(text: bytes) -> None:
    """Nothing in the store is believed because it stands where a manifest should."""

    class Store:
        def get(self, _: str) -> bytes:
            return text

    assert answer(lambda: read_archive(Store(), "s3://a/b")) is None  # type: ignore[arg-type]


@given(st.lists(st.integers(0, 4), max_size=4), st.lists(st.binary(max_size=20), max_size=5))
def test_any_bytes_have_a_digest_by_any_blocks(blocks: list[int], chunks: list[bytes]) -> None:
    """Blocks come from a manifest: also none, or of no rows."""
    digest = BlockDigest([count for count in blocks if count])
    for chunk in chunks:
        digest.feed(chunk)

    assert b"".join(chunks).count(b"\n") <= digest.result().rows


KINDS = ["instant", "wall", "date", "integer", "epoch", "uuid"]
BOUNDS = [
    "FOR VALUES FROM ('2026-01-01 00:00:00+00') TO ('2026-02-01 00:00:00+00')",
    "FOR VALUES FROM (MINVALUE) TO ('9999-12-31 23:59:59')",
    "FOR VALUES FROM ('0044-03-15 BC') TO ('infinity')",
    "FOR VALUES FROM ('12') TO (MAXVALUE)",
    "FOR VALUES FROM ('01890a5d-ac96-774b-bcce-b302099a8057') TO ('294276-12-31')",
]


@given(
    st.sampled_from(KINDS),
    st.sampled_from(["UTC", "America/New_York", "Pacific/Kiritimati"]),
    st.sampled_from(BOUNDS).flatmap(lambda bound: st.just(bound) | broken(bound)),
)
@example("integer", "UTC", f"FOR VALUES FROM ('{LONG}') TO ('1')")
@example("wall", "America/New_York", "FOR VALUES FROM ('2026-01-01') TO ('9999-12-31 23:59:59')")
@settings(max_examples=150)
def test_any_bound_is_a_range_or_a_typed_error(kind: Any, zone: str, bound: str) -> None:
    """Where it is a range, its ends are moments or beyond the calendar."""
    axis = Axis(kind=kind, zone=zone, every=Span(count=1, unit="month"))
    found = answer(lambda: axis.parse(bound))
    for position in (found.lower, found.upper) if found else ():
        moment = position is not None and axis.moment(position)
        assert not moment or moment.astimezone(UTC)


@pytest.mark.parametrize("bound", ["('2026-01-01', 'b') TO ('2026-02-01', 'c')", "('soon') TO ('later')"])
def test_what_is_no_moment_is_not_the_end_of_time(bound: str) -> None:
    """Taken for infinity, such a partition would count as one that rows still come into."""
    axis = Axis(kind="instant", zone="UTC", every=Span(count=1, unit="month"))

    with pytest.raises(PreconditionFailed, match="cannot be read"):
        axis.parse(f"FOR VALUES FROM {bound}")


# --- what people write ----------------------------------------------------------------------------------


def written(document: str) -> st.SearchStrategy[bytes]:
    """YAML from outside: bent values, broken text, or anything."""
    values = bent(yaml.safe_load(document)).map(lambda each: yaml.dump(each, allow_unicode=False))
    return (values | broken(document)).map(as_bytes) | st.text(max_size=30).map(as_bytes)


STUMBLES = [
    b"\xff",
    b"[" * 1000,
    b"a: &a [*a]",
    b"a: 2026-99-99",
    b"a: " + LONG.encode(),
    b'"\\ud800": 1',
    b'"\\0"',
]


def read_written(place: Path, text: bytes, read: Callable[[Path], Any]) -> Any:
    file = place / "file.yaml"
    file.write_bytes(text)
    return answer(lambda: read(file))


@given(written(FLEET))
@FEW
def test_any_fleet_file_is_a_fleet_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    """What is read can be written as JSON: no half sign and no NUL got through."""
    found = read_written(tmp_path_factory.getbasetemp(), text, load_fleet)
    assert found is None or "\\u0000" not in found.model_dump_json()


@pytest.mark.parametrize(
    ("document", "read"), [(PREFECT[:3000], load_manifest), (AUTOMATIONS[:2000], load_automations)]
)
@given(data=st.data())
@settings(max_examples=30)
def test_any_file_beside_the_code_is_read_or_one_message(
    tmp_path_factory: pytest.TempPathFactory, document: str, read: Callable[[Path], Any], data: st.DataObject
) -> None:
    """As for the fleet file."""
    read_written(tmp_path_factory.getbasetemp(), data.draw(written(document)), read)


@pytest.mark.parametrize("read", [load_fleet, load_manifest, load_automations])
@pytest.mark.parametrize("text", STUMBLES)
def test_every_file_of_ours_is_read_by_the_same_rules(
    tmp_path: Path, text: bytes, read: Callable[[Path], Any]
) -> None:
    """No UTF-8, no end, no date, a document within itself, and signs that no server takes."""
    file = tmp_path / "file.yaml"
    file.write_bytes(text)

    with pytest.raises(ConfigError, match=r"file\.yaml"):
        read(file)


def test_what_no_server_takes_is_refused_unspoken(tmp_path: Path) -> None:
    """It may stand in a password."""
    file = tmp_path / "fleet.yaml"
    file.write_text(FLEET.replace("pgvigil@ops", "pgvigil:sesame\\0@ops"), encoding="utf-8")

    with pytest.raises(ConfigError, match="line 2, column 14") as caught:
        load_fleet(file)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [
        ("every: 1 month", "every: 1001 years", "every: a span is at most 1000 years"),
        ("keep: 12 months", "keep: 9999999 days", "keep: a span is at most 1000 years"),
        ("every: 1 month, ahead: 4", "every: 100 years, ahead: 40", "40 times 100 years ahead is more"),
        ('"30 3 * * *"', '"30 0-99999999999 * * *"', "is no cron expression"),
    ],
)
def test_a_span_beyond_the_calendar_is_refused(tmp_path: Path, good: str, bad: str, told: str) -> None:
    """No plan could be made of it, and reckoning with it would end the run."""
    file = tmp_path / "fleet.yaml"
    assert good in FLEET
    file.write_text(FLEET.replace(good, bad), encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_fleet(file)
    assert told in caught.value.message


@given(st.text(max_size=12) | broken("7.5 min"))
def test_any_duration_is_one_or_a_typed_error(text: str) -> None:
    """Whatever a parameter holds."""
    found = answer(lambda: parse_duration(text))
    assert found is None or found > timedelta()


@pytest.mark.parametrize("flow", [restore_drill, roll_partitions, nightly_backup])
@given(
    st.sampled_from(["recovery_target", "keep", "table", "dry_run", "backup_type", "x", ""]),
    st.text(max_size=8) | st.sampled_from([*SCRAPS, "true", "full"]),
)
def test_any_parameter_is_typed_or_refused(flow: Any, key: str, value: str) -> None:
    """As KEY=VALUE in a shell, the subject too."""
    found = answer(lambda: _arguments(flow, "flow", value, _split([f"{key}={value}"]), dry_run=False))
    assert found is None or key in found


URLS = [
    "",
    "x",
    "ftp://h",
    "http://[x",
    "http://h:99999999/",
    "http://h:x/",
    "http://a..b/",
    "http://\udcff/",
]


@pytest.mark.parametrize("url", URLS)
def test_what_is_no_url_for_the_signal_is_refused_unspoken(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told by the variable's name, for it holds a secret."""
    monkeypatch.setenv("PGVIGIL_SIGNAL", url)

    with pytest.raises(ConfigError, match="'PGVIGIL_SIGNAL' holds no URL"):
        read_url("PGVIGIL_SIGNAL")


# --- the spool ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stranger", ["notes.json", "-.json", "٣-x.json", "1e9-x.json"])
def test_a_stranger_in_the_spool_keeps_no_event_out(tmp_path: Path, stranger: str) -> None:
    """The store is away already; the event is kept behind those of ours that wait."""
    spool = Spool(tmp_path)
    spool.write("a", "{}")
    (tmp_path / stranger).touch()

    spool.write("b", "{}")

    ours = [file.name for file in spool.pending() if file.name.startswith("0000")]
    assert ours[0].endswith("-a.json")
    assert ours[-1].endswith("-b.json")


# --- the report store -----------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=30), max_size=4))
@FEW
def test_whatever_lies_among_the_anchors_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    """Only what is named as an anchor is one."""
    store = ReportStore(DirectoryShelf(tmp_path_factory.getbasetemp() / "store"))
    store._shelf.names = lambda _: iter([*names, f"{7:012}-{'ab' * 32}"])  # type: ignore[method-assign]

    assert [(7, "ab" * 32)] == list(store.anchors())
