import pickle
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest
from urllib3 import HTTPSConnectionPool

from pgvigil.errors import ConfigError, ObjectExists, ObjectMissing, PgvigilError, StorageFailed, is_transient
from pgvigil.fleet import S3Settings
from pgvigil.objectstore import (
    MIN_PART,
    ObjectLock,
    ObjectStore,
    S3ObjectStore,
    UnfinishedUpload,
    connect,
    holds,
    join,
    parse_uri,
    part_sizes,
    split,
)
from pgvigil.testing import MemoryObjectStore

KEYS = ["plain", "Ä\"b.c'; --", "日本/語 🌍", "a+b %41?x=1#y&z", "tab\tkey", "dots../x..y"]


@pytest.fixture(params=["s3", "memory"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    if request.param == "memory":
        return MemoryObjectStore("plain", "locked")
    request.getfixturevalue("raw")
    return connect(request.getfixturevalue("s3_settings"))


@pytest.fixture
def s3(raw: object, s3_settings: S3Settings) -> ObjectStore:
    assert raw
    return connect(s3_settings)


@pytest.fixture
def base(request: pytest.FixtureRequest) -> str:
    return f"s3://plain/{request.node.name}"


def test_a_store_tells_its_time(store: ObjectStore) -> None:
    """Whatever it says of the bucket, one that is not there included."""
    for bucket in ("plain", "nowhere"):
        told = store.now(f"s3://{bucket}/x")

        assert told
        assert abs(told - datetime.now(UTC)) < timedelta(minutes=1)


def big(parts: float) -> bytes:
    return bytes(range(256)) * int(MIN_PART * parts / 256)


def in_chunks(data: bytes, size: int = 700_001) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def broken(data: bytes, error: BaseException) -> Iterator[bytes]:
    yield from in_chunks(data)
    raise error


def leave_upload(store: ObjectStore, raw: Any, uri: str) -> UnfinishedUpload:
    if isinstance(store, MemoryObjectStore):
        return store.start_upload(uri)
    at = parse_uri(uri)
    answer = raw.create_multipart_upload(Bucket=at.bucket, Key=at.key)
    return UnfinishedUpload(uri=uri, upload_id=answer["UploadId"])


def error_of(call: Callable[[], object]) -> PgvigilError:
    with pytest.raises(PgvigilError) as caught:
        call()
    return caught.value


@pytest.mark.parametrize("key", KEYS)
def test_a_key_may_hold_any_text(store: ObjectStore, base: str, key: str) -> None:
    """Bytes come back under the very key, and the listing tells it unchanged."""
    uri = join(base, key)
    written = store.put(uri, b"x", content_type="text/plain")

    assert store.get(uri) == b"x"
    assert [item.uri for item in store.list(uri)] == [uri] == [written.uri]


@pytest.mark.parametrize("data", [b"", b"\0\xff", "äöü".encode(), big(1.5)], ids=len)
def test_bytes_come_back_as_they_were_put(store: ObjectStore, base: str, data: bytes) -> None:
    """Empty, binary and large bodies are read equal, whole and in chunks."""
    stored = store.put(base, data, metadata={"run": "7"})
    known = store.head(base)

    assert store.get(base) == data == b"".join(store.read(base))
    assert (known.size, known.etag, known.metadata) == (len(data), stored.etag, {"run": "7"})


@pytest.mark.parametrize("size", [0, 1, MIN_PART - 1, MIN_PART, MIN_PART + 1, 2 * MIN_PART + 77])
def test_a_stream_comes_back_as_it_was_sent(store: ObjectStore, base: str, size: int) -> None:
    """Around every border of a part nothing is lost, doubled or left unfinished."""
    data = big(3)[:size]
    stored = store.upload(base, in_chunks(data), part_size=MIN_PART, only_if_absent=True)

    assert stored.size == size
    assert store.get(base) == data
    assert list(store.list_uploads(base)) == []


def test_a_taken_key_keeps_its_bytes(store: ObjectStore, base: str) -> None:
    """A conditional write is refused, by put and by upload, small and large."""
    store.put(base, b"first", only_if_absent=True)

    with pytest.raises(ObjectExists, match="exists already"):
        store.put(base, b"second", only_if_absent=True)
    for size in (0.1, 2.5):
        with pytest.raises(ObjectExists, match="exists already"):
            store.upload(base, in_chunks(big(size)), part_size=MIN_PART, only_if_absent=True)
    assert store.get(base) == b"first"
    assert list(store.list_uploads(base)) == []


def test_a_key_taken_during_an_upload_keeps_its_bytes(store: ObjectStore, base: str) -> None:
    """The condition holds at the end of the upload, not only at its start."""

    def slow() -> Iterator[bytes]:
        yield big(1.5)
        store.put(base, b"faster")

    with pytest.raises(ObjectExists):
        store.upload(base, slow(), part_size=MIN_PART, only_if_absent=True)
    assert store.get(base) == b"faster"
    assert list(store.list_uploads(base)) == []


def test_without_the_condition_a_key_is_replaced(store: ObjectStore, base: str) -> None:
    """A plain write replaces what was there."""
    store.put(base, b"first")
    store.put(base, b"second")

    assert store.get(base) == b"second"


@pytest.mark.parametrize("verb", ["get", "head", "read"])
def test_a_missing_object_is_typed(store: ObjectStore, base: str, verb: str) -> None:
    """Whatever asks for an object that is not there gets ObjectMissing with its address."""
    with pytest.raises(ObjectMissing) as caught:
        list(getattr(store, verb)(base))
    assert base in str(caught.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.put("s3://absent/k", b""),
        lambda store: store.get("s3://absent/k"),
        lambda store: store.delete("s3://absent/k"),
        lambda store: store.upload("s3://absent/k", in_chunks(big(2)), part_size=MIN_PART),
        lambda store: list(store.list("s3://absent/")),
        lambda store: list(store.list_uploads("s3://absent/")),
        lambda store: store.probe("s3://absent/"),
    ],
)
def test_a_missing_bucket_is_typed(store: ObjectStore, call: Callable[[ObjectStore], object]) -> None:
    """Every verb names the bucket that is not there and says to create it."""
    with pytest.raises(ObjectMissing, match=r"s3://absent.*NoSuchBucket.*hint: create the bucket"):
        call(store)


@pytest.mark.parametrize("uri", ["", "bucket/key", "s3://", "s3:///key", "s3://a b/key", "file:///x"])
def test_what_is_no_address_is_refused(store: ObjectStore, uri: str) -> None:
    """An address of another form never reaches the store."""
    with pytest.raises(ConfigError, match="write s3://bucket/key"):
        store.get(uri)


def test_metadata_that_is_not_ascii_is_refused(store: ObjectStore, base: str) -> None:
    """Headers carry ASCII only, so other metadata is refused before anything is written."""
    with pytest.raises(ConfigError, match="metadata"):
        store.put(base, b"", metadata={"table": "Ä"})
    assert list(store.list(base)) == []


def test_delete_is_idempotent(store: ObjectStore, base: str) -> None:
    """An object is gone after delete, and deleting it again is no error."""
    store.put(base, b"x")
    store.delete(base)
    store.delete(base)

    with pytest.raises(ObjectMissing):
        store.head(base)


def test_a_listing_has_every_page(store: ObjectStore, base: str) -> None:
    """More keys than fit on one page are all listed, in order, and no neighbour's."""
    uris = [join(base, f"{number:04}") for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: store.put(uri, b""), [*uris, base + "-neighbour"]))

    assert [item.uri for item in store.list(base + "/")] == uris


@pytest.mark.parametrize("error", [KeyError("row"), KeyboardInterrupt(), StorageFailed("source")], ids=repr)
@pytest.mark.parametrize("parts", [0.5, 2.5])
def test_a_failing_stream_leaves_nothing(
    store: ObjectStore, base: str, error: BaseException, parts: float
) -> None:
    """The stream's own error comes out, and neither object nor unfinished upload stays."""
    with pytest.raises(type(error)) as caught:
        store.upload(base, broken(big(parts), error), part_size=MIN_PART)

    assert caught.value is error
    assert list(store.list(base)) == []
    assert list(store.list_uploads(base)) == []


def test_streams_are_held_in_few_pieces(s3: ObjectStore, base: str) -> None:
    """Sending and reading twelve parts never holds three of them in memory."""
    piece = big(0.25)
    tracemalloc.start()
    try:
        s3.upload(base, (piece for _ in range(48)), part_size=MIN_PART)
        size = sum(len(chunk) for chunk in s3.read(base))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert size == 12 * MIN_PART
    assert peak < 3 * MIN_PART


def test_an_abandoned_upload_is_found_and_aborted(store: ObjectStore, raw: object, base: str) -> None:
    """What a killed run left is listed by prefix; aborting it twice is no error."""
    left = leave_upload(store, raw, join(base, "left"))
    leave_upload(store, raw, base + "-neighbour")
    found = list(store.list_uploads(base + "/"))

    assert [(upload.uri, upload.upload_id) for upload in found] == [(left.uri, left.upload_id)]
    store.abort_upload(found[0])
    store.abort_upload(found[0])
    assert list(store.list_uploads(base + "/")) == []


def test_a_part_below_the_smallest_is_refused(store: ObjectStore, base: str) -> None:
    """A part size that the store would refuse at the end is refused at the start."""
    with pytest.raises(ConfigError, match=f"at least {MIN_PART} bytes, got 1"):
        store.upload(base, [b"x"], part_size=1)


def test_a_probe_leaves_nothing(store: ObjectStore, base: str) -> None:
    """A store that works passes, and no probe object stays."""
    store.probe(base)

    assert list(store.list(base)) == []


@pytest.mark.parametrize("parts", [0.1, 2.5])
def test_a_lock_is_kept_and_told(store: ObjectStore, base: str, parts: float) -> None:
    """Retention and legal hold asked for stand on the object, written whole or in parts."""
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    lock = ObjectLock(mode="GOVERNANCE", retain_until=until, legal_hold=True)
    uri = base.replace("plain", "locked", 1)
    store.upload(uri, in_chunks(big(parts)), part_size=MIN_PART, lock=lock)

    assert store.head(uri).lock == lock


def test_an_unlocked_object_tells_no_lock(store: ObjectStore, base: str) -> None:
    """Without a lock head says so."""
    store.put(base, b"")

    assert store.head(base).lock is None


def test_a_lock_in_a_bucket_without_locks_is_an_error(s3: ObjectStore, base: str) -> None:
    """A lock that the store cannot take is never passed over in silence."""
    lock = ObjectLock(legal_hold=True)

    with pytest.raises(StorageFailed, match=r"lock|Lock"):
        s3.upload(base, in_chunks(big(1.5)), part_size=MIN_PART, lock=lock)


def test_a_locked_version_cannot_be_destroyed(s3: ObjectStore, raw: Any, base: str) -> None:
    """The lock is the store's, not ours: even a plain client cannot remove the version."""
    uri = base.replace("plain", "locked", 1)
    version = s3.put(uri, b"x", lock=ObjectLock(legal_hold=True)).version_id

    with pytest.raises(raw.exceptions.ClientError, match="AccessDenied"):
        raw.delete_object(Bucket="locked", Key=parse_uri(uri).key, VersionId=version)


@pytest.mark.parametrize("parts", [0.1, 1.5])
@pytest.mark.parametrize(
    ("sse", "key"), [("aws:kms", "1234abcd-12ab-34cd-56ef-1234567890ab"), ("AES256", "")]
)
def test_encryption_and_storage_class_come_from_the_settings(  # noqa: PLR0913 - two axes of one claim
    raw: object, s3_settings: S3Settings, base: str, sse: str, key: str, parts: float
) -> None:
    """Head tells the encryption, the key and the storage class that the fleet file asks for."""
    assert raw
    asked = {"sse": sse, "kms_key_id": key or None, "storage_class": "STANDARD_IA"}
    store = connect(s3_settings.model_copy(update=asked))
    store.upload(base, in_chunks(big(parts)), part_size=MIN_PART)
    known = store.head(base)

    assert (known.sse, known.storage_class) == (sse, "STANDARD_IA")
    assert known.kms_key_id.endswith(key)
    assert store.get(base) == big(parts)


def test_missing_credentials_name_the_cure(
    s3: ObjectStore, monkeypatch: pytest.MonkeyPatch, s3_settings: S3Settings
) -> None:
    """Without credentials the error is one of configuration and says where boto3 looks."""
    assert s3
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = error_of(lambda: connect(s3_settings).probe("s3://plain"))

    assert isinstance(error, ConfigError)
    assert "no S3 credentials found" in str(error)
    assert "AWS_ACCESS_KEY_ID" in error.hint


def test_an_unknown_profile_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile that does not exist is found when the store is opened."""
    monkeypatch.setenv("AWS_PROFILE", "nope")

    with pytest.raises(ConfigError, match="correct AWS_PROFILE"):
        connect(S3Settings())


@contextmanager
def authentication(settings: S3Settings) -> Iterator[None]:
    pool = HTTPSConnectionPool(
        "127.0.0.1", int((settings.endpoint_url or "").rsplit(":", 1)[1]), ca_certs=str(settings.ca_file)
    )
    with pool:
        pool.request("POST", "/moto-api/reset-auth", body="0")
        try:
            yield
        finally:
            pool.request("POST", "/moto-api/reset-auth", body="Infinity")


def test_wrong_credentials_name_the_cure(s3: ObjectStore, s3_settings: S3Settings) -> None:
    """Credentials that the store does not know are refused as such, and trying again is no cure."""
    with authentication(s3_settings):
        error = error_of(lambda: s3.put("s3://plain/k", b""))

    assert isinstance(error, StorageFailed)
    assert not is_transient(error)
    assert "check AWS_ACCESS_KEY_ID" in error.hint
    assert error.context["s3_code"] == "InvalidAccessKeyId"
    assert "planted" not in repr(error.context) + str(error)


def test_an_unreachable_endpoint_is_passing_and_names_the_cure() -> None:
    """A closed port gives a typed error that may be retried, after a bounded number of attempts."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    started = time.monotonic()
    error = error_of(lambda: connect(S3Settings(endpoint_url=endpoint)).head("s3://plain/k"))

    assert time.monotonic() - started < 10
    assert isinstance(error, StorageFailed)
    assert is_transient(error)
    assert endpoint in str(error)
    assert "s3.endpoint_url" in error.hint


def test_an_unknown_authority_names_the_cure(s3_settings: S3Settings) -> None:
    """A certificate that nobody vouches for is refused, and the hint names the setting."""
    store = connect(s3_settings.model_copy(update={"ca_file": None}))
    error = error_of(lambda: store.head("s3://plain/k"))

    assert "s3.ca_file" in error.hint
    assert not is_transient(error)


def test_a_missing_certificate_file_is_refused_at_once(s3_settings: S3Settings) -> None:
    """A wrong path of the certificates is a fault of the fleet file."""
    assert s3_settings.ca_file
    settings = s3_settings.model_copy(update={"ca_file": s3_settings.ca_file.with_name("no.pem")})

    with pytest.raises(ConfigError, match="does not exist"):
        connect(settings)


START = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
DONE = b"<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>"
FAILED = b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"


class LyingStore(BaseHTTPRequestHandler):
    """Speaks just enough S3 to lie: it takes everything, whatever the condition, and what it tells is set."""

    protocol_version = "HTTP/1.1"
    completion = DONE
    told_size: int | None = None
    told_bytes: bytes | None = None
    stored = b""
    aborted = False

    def answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        type(self).stored = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(200, self.completion if "uploadId" in self.path else START)

    def do_HEAD(self) -> None:
        self.answer(404) if self.told_size is None else self.answer(200, bytes(self.told_size))

    def do_GET(self) -> None:
        self.answer(200, self.stored if self.told_bytes is None else self.told_bytes)

    def do_DELETE(self) -> None:
        type(self).aborted |= "uploadId" in self.path
        self.answer(204)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@contextmanager
def lying(**lies: object) -> Iterator[tuple[ObjectStore, type[LyingStore]]]:
    liar = type("Liar", (LyingStore,), lies)
    with ThreadingHTTPServer(("127.0.0.1", 0), liar) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        store = connect(S3Settings(endpoint_url=f"http://127.0.0.1:{server.server_port}"))
        assert isinstance(store, S3ObjectStore)
        try:
            yield store, liar
        finally:
            store._client.close()
            server.shutdown()


def test_a_completion_that_failed_with_200_is_an_error() -> None:
    """An error in the body of a 200 is seen, and the upload is aborted."""
    with lying(completion=FAILED) as (store, liar):
        with pytest.raises(StorageFailed, match="complete the upload of s3://plain/k: InternalError"):
            store.upload("s3://plain/k", in_chunks(big(1.5)), part_size=MIN_PART)
        assert liar.aborted


def test_an_upload_that_lost_bytes_is_an_error() -> None:
    """The size that the store tells after an upload is compared with the bytes that were sent."""
    sent = len(big(1.5))
    with (
        lying(told_size=sent - 1) as (store, _),
        pytest.raises(StorageFailed, match=f"has {sent - 1} bytes after an upload of {sent}"),
    ):
        store.upload("s3://plain/k", in_chunks(big(1.5)), part_size=MIN_PART)


def test_a_lock_that_the_store_forgets_is_an_error() -> None:
    """A store that takes a lock's header and holds nothing is found by reading the lock back."""
    with (
        lying(told_size=1) as (store, _),
        pytest.raises(StorageFailed, match="does not show the lock that was asked for"),
    ):
        store.put("s3://plain/k", b"x", lock=ObjectLock(legal_hold=True))


def test_a_store_that_garbles_is_found_by_the_probe() -> None:
    """A probe compares what it reads with what it wrote."""
    with (
        lying(told_bytes=b"other") as (store, _),
        pytest.raises(StorageFailed, match="came back other than it was written"),
    ):
        store.probe("s3://plain/p")


def test_a_store_that_ignores_conditions_is_found_by_the_probe() -> None:
    """A store that overwrites against the condition is refused, in words."""
    with lying() as (store, _), pytest.raises(StorageFailed, match="the store ignores conditional writes"):
        store.probe("s3://plain/p")


@pytest.mark.parametrize(
    ("found", "held"),
    [
        (None, False),
        ({"legal_hold": True}, False),
        ({"mode": "GOVERNANCE", "days": 10, "legal_hold": True}, True),
        ({"mode": "COMPLIANCE", "days": 11, "legal_hold": True}, True),
        ({"mode": "GOVERNANCE", "days": 9, "legal_hold": True}, False),
        ({"mode": "GOVERNANCE", "days": 10}, False),
    ],
)
def test_a_lock_holds_if_it_is_as_long_and_as_hard(found: dict[str, Any] | None, held: bool) -> None:
    """Weaker, shorter or half a lock is not the lock that was asked for."""
    now = datetime.now(UTC)

    def lock(days: int | None = None, **facts: Any) -> ObjectLock:
        return ObjectLock(retain_until=now + timedelta(days=days) if days else None, **facts)

    wanted = lock(days=10, mode="GOVERNANCE", legal_hold=True)
    assert holds(lock(**found) if found is not None else None, wanted) is held


def test_parts_grow_so_that_a_stream_of_unknown_size_fits() -> None:
    """The parts of one upload hold 62 000 times the first, and there are never more than 10 000."""
    sizes = list(part_sizes(MIN_PART))

    assert (len(sizes), sum(sizes)) == (10_000, 62_000 * MIN_PART)
    assert sizes == sorted(sizes)


def test_a_stream_beyond_the_last_part_is_refused() -> None:
    """A stream that does not fit ends with the cure instead of a store's refusal hours later."""
    with pytest.raises(StorageFailed, match="hint: raise part_size"):
        list(split([b"abcd", b"e"], iter([2, 2])))


def test_every_error_of_the_store_survives_pickling(store: ObjectStore, base: str) -> None:
    """Errors cross process borders with message, hint and context."""
    store.put(base, b"")
    errors = [
        error_of(lambda: store.get(base + "-none")),
        error_of(lambda: store.get("s3://absent/k")),
        error_of(lambda: store.put(base, b"", only_if_absent=True)),
        error_of(lambda: store.get("nowhere")),
        error_of(lambda: store.upload(base, [], part_size=1)),
    ]
    for error in errors:
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.context) == (type(error), str(error), error.context)
