import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import pytest

from pgvigil.errors import ConfigError, EvidenceError, ObjectExists, ObjectMissing, StorageFailed
from pgvigil.fleet import S3Settings
from pgvigil.reports import Report, Verdict, to_json
from pgvigil.reportstore import DirectoryShelf, ObjectShelf, ReportStore, digest, open_report_store
from pgvigil.testing import MemoryObjectStore

RUN = UUID("12345678-1234-4234-8234-123456789abc")
HEAD = "ab" * 32
PLACE = "nightly-backup/demo__shop/2026/03/20260301T233000Z-12345678-1234-4234-8234-123456789abc"


def report(**changes: object) -> Report:
    facts: dict[str, object] = {
        "run_id": RUN,
        "flow": "nightly-backup",
        "subject": "demo/shop",
        "started_at": datetime(2026, 3, 2, 1, 30, tzinfo=timezone(timedelta(hours=2))),
        "ended_at": datetime(2026, 3, 2, tzinfo=UTC),
        "verdict": Verdict.VERIFIED,
    }
    return Report.model_validate(facts | changes)


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ReportStore, str]:
    if request.param == "s3":
        return ReportStore(ObjectShelf(MemoryObjectStore("acme"), "s3://acme/reports/")), "s3://acme/reports"
    root = tmp_path / "re ports"
    return open_report_store(root.as_uri(), S3Settings()), root.as_uri()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "reports"


@pytest.fixture
def files(root: Path) -> ReportStore:
    return open_report_store(root.as_uri(), S3Settings())


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a file system of 64 KiB, which only root can mount."""
    directory = tmp_path / "tiny"
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=0750", "tmpfs", directory], check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a full disk needs root; the file size limit's test covers the same path")
    yield directory
    subprocess.run(["umount", directory], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def an_ordinary_user() -> Iterator[None]:
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def stored(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def refusal(store: ReportStore, **changes: object) -> str:
    with pytest.raises(StorageFailed) as caught:
        store.save(report(**changes), {})
    return str(caught.value)


def test_a_report_stands_by_flow_subject_and_month_in_utc(place: tuple[ReportStore, str]) -> None:
    """The uris name flow, subject, month, start and run, the JSON first."""
    store, base = place
    uris = store.save(report(), {"md": b"# ok", ".svg": b"<svg/>"})

    assert uris == tuple(f"{base}/{PLACE}.{suffix}" for suffix in ("json", "md", "svg"))


def test_saving_the_same_again_is_no_error(place: tuple[ReportStore, str]) -> None:
    """A retry gives the same uris, and adds a rendering that the first try did not reach."""
    store, _ = place
    first = store.save(report(), {})

    assert store.save(report(), {"md": b"# ok"})[:1] == first
    assert len(store.save(report(), {"md": b"# ok"})) == 2


@pytest.mark.parametrize(
    ("changes", "renderings"), [({"verdict": Verdict.REFUTED}, {"md": b"# ok"}), ({}, {"md": b"# edited"})]
)
def test_another_content_for_the_same_run_is_refused(
    place: tuple[ReportStore, str], changes: dict[str, object], renderings: dict[str, bytes]
) -> None:
    """Neither the report nor a rendering is replaced, and the refusal names both contents."""
    store, base = place
    store.save(report(), {"md": b"# ok"})

    with pytest.raises(ObjectExists, match=rf"{base}.*expected sha256:\w+, found sha256:\w+"):
        store.save(report(**changes), renderings)
    assert len(store.save(report(), {"md": b"# ok"})) == 2


def test_what_is_stored_is_the_report(files: ReportStore, root: Path) -> None:
    """The file has exactly the JSON that is printed and digested, readable by owner and group alone."""
    files.save(report(), {"html": b"<p>"})
    file = root / f"{PLACE}.json"

    assert file.read_text() == to_json(report())
    assert file.stat().st_mode & 0o777 == 0o640
    assert stored(root) == [f"{PLACE}.html", f"{PLACE}.json"]


def test_the_store_knows_what_a_rendering_is() -> None:
    """Content types let a browser open what the uri points to."""
    objects = MemoryObjectStore("acme")
    uris = ReportStore(ObjectShelf(objects, "s3://acme")).save(report(), {"html": b"", "svg": b"", "md": b""})

    assert [objects.head(uri).content_type for uri in uris] == [
        "application/json",
        "text/html",
        "image/svg+xml",
        "text/markdown",
    ]


@pytest.mark.parametrize("subject", ["..", ".", "../../etc", "a\\b", "a\0b\nc", "Ä\"b.c'; --", "c/日本/x"])
def test_no_subject_leaves_its_directory(files: ReportStore, root: Path, subject: str) -> None:
    """Names are data: whatever a database is called, its reports stand four levels below the root."""
    files.save(report(subject=subject), {})

    assert [len(Path(name).parts) for name in stored(root)] == [5]
    assert stored(root)[0].startswith("nightly-backup/")


@pytest.mark.parametrize("suffix", ["json", "../x", "", "MD", "a..b"])
def test_a_rendering_has_a_plain_suffix(place: tuple[ReportStore, str], suffix: str) -> None:
    """A suffix that is none, or the report's own, is refused before anything is stored."""
    with pytest.raises(ConfigError, match="suffix"):
        place[0].save(report(), {suffix: b""})


def test_anchors_come_back_by_number(place: tuple[ReportStore, str]) -> None:
    """Every anchor is listed by number, once, with its bare digest."""
    store, base = place
    later = store.anchor(1_000, f"sha256:{HEAD}")
    store.anchor(9, HEAD)
    store.anchor(9, HEAD)

    assert later == f"{base}/audit-heads/000000001000-{HEAD}"
    assert list(store.anchors()) == [(9, HEAD), (1_000, HEAD)]


def test_two_histories_are_both_kept(place: tuple[ReportStore, str]) -> None:
    """A second digest for the same number stands beside the first, where an audit sees it."""
    store, _ = place
    store.anchor(9, HEAD)
    store.anchor(9, "cd" * 32)

    assert list(store.anchors()) == [(9, HEAD), (9, "cd" * 32)]


def test_without_anchors_there_are_none(place: tuple[ReportStore, str]) -> None:
    """A new store lists nothing and is no error."""
    assert list(place[0].anchors()) == []


@pytest.mark.parametrize(("seq", "head"), [(1, "abc"), (1, HEAD.upper()), (-1, HEAD)])
def test_a_broken_anchor_is_refused(place: tuple[ReportStore, str], seq: int, head: str) -> None:
    """What is no digest would prove nothing."""
    with pytest.raises(EvidenceError, match="no anchor can be made"):
        place[0].anchor(seq, head)


def test_a_probe_leaves_nothing(files: ReportStore, root: Path) -> None:
    """A store that works passes its probe, and no file stays."""
    files.probe()

    assert stored(root) == []


def test_a_probe_of_a_missing_bucket_is_red() -> None:
    """A place that cannot take evidence is found before it is needed."""
    with pytest.raises(ObjectMissing, match="create the bucket"):
        ReportStore(ObjectShelf(MemoryObjectStore("acme"), "s3://other/reports")).probe()


@pytest.mark.parametrize("uri", ["", "reports", "/srv/reports", "file://host/reports", "http://x/y", "s3://"])
def test_an_address_of_another_kind_is_refused(uri: str) -> None:
    """Only s3 and local files can be opened, and the message shows how to write them."""
    with pytest.raises(ConfigError, match="write s3://bucket/"):
        open_report_store(uri, S3Settings())


def test_a_missing_parent_is_named_with_its_cure(tmp_path: Path) -> None:
    """A mistyped path is not silently created."""
    store = ReportStore(DirectoryShelf(tmp_path / "typo" / "reports"))

    assert "create its parent directory" in refusal(store)
    assert not (tmp_path / "typo").exists()
    with pytest.raises(StorageFailed, match="create its parent directory"):
        store.probe()


def test_a_file_in_the_way_is_named_with_its_cure(root: Path, files: ReportStore) -> None:
    """A file where the directory should be is told as such."""
    root.write_text("")

    assert f"cannot keep evidence at '{root}" in refusal(files)
    assert "a file stands where a directory is needed" in refusal(files)


def test_a_directory_without_rights_is_named_with_its_cure() -> None:
    """A user who may not write there is told so, by the probe as well, and nothing is left."""
    with TemporaryDirectory(dir="/tmp") as name:
        root = Path(name)
        root.chmod(0o555)
        with an_ordinary_user():
            assert "give the user that runs pgvigil write access" in refusal(
                ReportStore(DirectoryShelf(root))
            )
            with pytest.raises(StorageFailed, match="permission denied"):
                ReportStore(DirectoryShelf(root)).probe()
        assert stored(root) == []


def test_a_full_disk_leaves_no_partial_file(tiny_disk: Path) -> None:
    """Out of space names the cure, keeps what was complete, and can go on once there is room."""
    store = ReportStore(DirectoryShelf(tiny_disk))
    store.anchor(1, HEAD)
    with pytest.raises(StorageFailed, match=r"no space left on device.*hint: free space"):
        store.save(report(), {"html": os.urandom(100_000)})

    assert stored(tiny_disk) == [f"audit-heads/000000000001-{HEAD}", f"{PLACE}.json"]
    assert len(store.save(report(), {"html": b"smaller"})) == 2


def test_a_file_size_limit_leaves_no_partial_file(files: ReportStore, root: Path) -> None:
    """A write that breaks off in its middle leaves neither the file nor a draft of it."""
    with largest_file(4096), pytest.raises(StorageFailed, match=r"file too large.*hint: free space"):
        files.save(report(), {"html": bytes(100_000)})

    assert stored(root) == [f"{PLACE}.json"]


def test_an_abandoned_draft_is_removed_a_day_later(files: ReportStore, root: Path) -> None:
    """What a killed run left goes with the next write, a draft that may still be written stays."""
    files.probe()
    for name, age in (("old", timedelta(days=2)), ("young", timedelta(hours=1))):
        draft = root / ".incoming" / name
        draft.write_text("half")
        os.utime(draft, times=(0, time.time() - age.total_seconds()))
    files.save(report(), {})

    assert stored(root) == [".incoming/young", f"{PLACE}.json"]


def test_a_report_is_named_by_its_content() -> None:
    """The digest is SHA-256 under its name."""
    assert digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
