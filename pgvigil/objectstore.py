"""The one place that opens S3 clients: a store with few verbs, whose errors are in our own words."""

from __future__ import annotations

import base64
import hashlib
import re
import uuid
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AwareDatetime, Field, model_validator
from typing_extensions import override

from pgvigil.errors import ConfigError, ObjectExists, ObjectMissing, PgvigilError, StorageFailed
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from mypy_boto3_s3 import S3Client

    from pgvigil.fleet import S3Settings

MIB = 1024 * 1024
MIN_PART = 5 * MIB
PART_SIZE = 16 * MIB
MAX_PARTS = 10_000
PARTS_PER_SIZE = 2_000
READ_SIZE = MIB

CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=60)
ATTEMPTS = 4

_URI = re.compile(r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9])(?:/(.*))?", re.DOTALL)


class S3Uri(Frozen):
    """A bucket and a key; the key is raw text: nothing in it is escaped or special."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def parse_uri(uri: str) -> S3Uri:
    """Split `s3://bucket/key`; a key may be empty, as in the prefix of a whole bucket.

    Raises ConfigError.
    """
    match = _URI.fullmatch(uri)
    if match is None:
        raise ConfigError(f"'{uri}' is no address in an object store", hint="write s3://bucket/key")
    return S3Uri(bucket=match[1], key=match[2] or "")


def join(prefix_uri: str, *names: str) -> str:
    """Append names to a prefix with one slash between each."""
    return "/".join([prefix_uri.rstrip("/"), *names])


class ObjectLock(Frozen):
    """What keeps an object version from deletion: a retention until a moment, a legal hold, or both."""

    mode: Literal["GOVERNANCE", "COMPLIANCE"] | None = None
    retain_until: AwareDatetime | None = None
    legal_hold: bool = False

    def __str__(self) -> str:
        kept = f"{self.mode} until {self.retain_until:%Y-%m-%d %H:%M:%S %Z}" if self.retain_until else ""
        return ", ".join(filter(None, [kept, "legal hold" if self.legal_hold else ""])) or "no lock"

    @model_validator(mode="after")
    def _retention_is_whole(self) -> Self:
        if (self.mode is None) != (self.retain_until is None):
            raise ValueError("a retention has both mode and retain_until")
        return self


class StoredObject(Frozen):
    """One object as the store tells of it; sizes in bytes.

    Only `head` knows everything: `put` and `upload` give size, etag and version, `list` gives size,
    etag, storage class and time. `sse` is empty where the store does not say.
    """

    uri: str
    size: int
    etag: str
    version_id: str | None = None
    modified: datetime | None = None
    content_type: str = ""
    sse: str = ""
    kms_key_id: str = ""
    storage_class: str = "STANDARD"
    lock: ObjectLock | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


class UnfinishedUpload(Frozen):
    """A multipart upload that was neither completed nor aborted: invisible, and billed."""

    uri: str
    upload_id: str
    started: datetime | None = None


class ObjectStore(Protocol):
    """Objects by `s3://bucket/key`.

    Every verb raises StorageFailed when the store refuses or does not answer, ObjectMissing when object
    or bucket is not there, ConfigError when there are no credentials or the address is no address.

    `only_if_absent` looks first and then writes under the store's own condition (`If-None-Match: *`).
    A taken key raises ObjectExists and keeps its bytes. After an answer that got lost it may be our own
    write that took the key: compare the bytes before judging. A store that ignores the condition is
    found by `probe`; there only the first look protects, and not against a second writer.
    """

    def put(  # noqa: PLR0913 - each is a header of its own
        self,
        uri: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        only_if_absent: bool = False,
        metadata: Mapping[str, str] | None = None,
        lock: ObjectLock | None = None,
    ) -> StoredObject:
        """Write one object whole; the store checks its MD5 and keeps all of it or nothing.

        Metadata is ASCII. A lock is read back; one that the store did not take raises StorageFailed.
        """
        ...

    def upload(  # noqa: PLR0913 - each is a header of its own
        self,
        uri: str,
        chunks: Iterable[bytes],
        *,
        part_size: int = PART_SIZE,
        content_type: str = "application/octet-stream",
        only_if_absent: bool = False,
        metadata: Mapping[str, str] | None = None,
        lock: ObjectLock | None = None,
    ) -> StoredObject:
        """Write a stream of unknown length, holding a few parts in memory; a short one becomes one `put`.

        Parts double in size every 2000, so a stream may have 62 000 times `part_size` (5 MiB or more).
        Whatever stops it, KeyboardInterrupt and a failing stream included, the upload is aborted, and
        the stream's own error leaves as it is.
        """
        ...

    def get(self, uri: str) -> bytes:
        """Return a whole object; for those that fit in memory."""
        ...

    def read(self, uri: str, version_id: str | None = None) -> Iterator[bytes]:
        """Return an object, or one version of it, in chunks; errors come with the chunk that has them."""
        ...

    def head(self, uri: str) -> StoredObject:
        """Return everything the store knows of an object but its bytes."""
        ...

    def list(self, prefix_uri: str) -> Iterator[StoredObject]:
        """Return the objects whose keys start with the prefix's text, in the order of their UTF-8 bytes."""
        ...

    def delete(self, uri: str) -> None:
        """Remove an object; one that is not there is no error. With versioning its bytes stay, hidden."""
        ...

    def list_uploads(self, prefix_uri: str) -> Iterator[UnfinishedUpload]:
        """Return the unfinished uploads whose keys start with the prefix's text."""
        ...

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        """Drop an unfinished upload and its parts; one that is not there any more is no error."""
        ...

    def now(self, uri: str) -> datetime | None:
        """Return the store's own time, whatever it says of the bucket; None from one that tells no time."""
        ...

    def probe(self, prefix_uri: str) -> None:
        """Prove that the prefix takes, returns, protects and drops an object; leaves nothing behind.

        In a bucket with versioning or a default retention the hidden version stays.
        """
        ...


def connect(settings: S3Settings) -> ObjectStore:
    """Open the object store; credentials come from boto3's own chain, and nothing is asked of it yet.

    Raises ConfigError for settings that cannot be.
    """
    if settings.ca_file is not None and not settings.ca_file.is_file():
        raise ConfigError(
            f"s3.ca_file '{settings.ca_file}' does not exist", hint="correct the path in the fleet file"
        )
    with _translated("open", "the object store"):
        client = boto3.Session().client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint_url,
            verify=str(settings.ca_file) if settings.ca_file else None,
            config=_config(settings),
        )
    return S3ObjectStore(client, settings)


def _config(settings: S3Settings) -> Config:
    return Config(
        connect_timeout=CONNECT_TIMEOUT.total_seconds(),
        read_timeout=READ_TIMEOUT.total_seconds(),
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        s3={"addressing_style": "path" if settings.endpoint_url else "auto"},
        # S3-compatible stores may refuse the checksums that boto3 adds by itself; every write of ours
        # carries Content-MD5, which all of them check.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


class S3ObjectStore(ObjectStore):
    """The object store on boto3; safe to share between threads."""

    def __init__(self, client: S3Client, settings: S3Settings) -> None:
        self._client = client
        self._settings = settings

    @override
    def put(
        self,
        uri: str,
        data: bytes,
        *,
        content_type: str = "application/octet-stream",
        only_if_absent: bool = False,
        metadata: Mapping[str, str] | None = None,
        lock: ObjectLock | None = None,
    ) -> StoredObject:
        if only_if_absent:
            self._refuse_taken(uri)
        dress = self._dress(content_type, metadata, lock)
        stored = self._write(uri, data, dress | _condition(only_if_absent=only_if_absent))
        self._require_lock(uri, stored.version_id, lock)
        return stored

    @override
    def upload(
        self,
        uri: str,
        chunks: Iterable[bytes],
        *,
        part_size: int = PART_SIZE,
        content_type: str = "application/octet-stream",
        only_if_absent: bool = False,
        metadata: Mapping[str, str] | None = None,
        lock: ObjectLock | None = None,
    ) -> StoredObject:
        parts = split(chunks, part_sizes(part_size))
        if only_if_absent:
            self._refuse_taken(uri)
        first = next(parts, bytearray())
        if len(first) < part_size:
            return self.put(
                uri,
                bytes(first),
                content_type=content_type,
                only_if_absent=only_if_absent,
                metadata=metadata,
                lock=lock,
            )
        parts = chain([first], parts)
        del first  # or it would be held until the last part is sent
        unfinished = self._start(uri, self._dress(content_type, metadata, lock))
        try:
            etags, size = self._send(unfinished, parts)
            sent = self._complete(unfinished, etags, size, only_if_absent=only_if_absent)
        except BaseException as error:
            self._abort_after(error, unfinished)
            raise
        return self._read_back(sent, lock)

    @override
    def get(self, uri: str) -> bytes:
        return b"".join(self.read(uri))

    @override
    def read(self, uri: str, version_id: str | None = None) -> Iterator[bytes]:
        at = parse_uri(uri)
        with _translated("read", uri):
            body = self._client.get_object(Bucket=at.bucket, Key=at.key, **_version(version_id))["Body"]
        try:
            chunks = body.iter_chunks(READ_SIZE)
            while True:
                with _translated("read", uri):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            body.close()

    @override
    def head(self, uri: str) -> StoredObject:
        return self._head(uri, None)

    @override
    def list(self, prefix_uri: str) -> Iterator[StoredObject]:
        at = parse_uri(prefix_uri)
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=at.bucket, Prefix=at.key))
        for page in _paged(pages, prefix_uri):
            for item in page.get("Contents", ()):
                yield StoredObject(
                    uri=str(S3Uri(bucket=at.bucket, key=item["Key"])),
                    size=item["Size"],
                    etag=item["ETag"].strip('"'),
                    modified=item.get("LastModified"),
                    storage_class=item.get("StorageClass", "STANDARD"),
                )

    @override
    def delete(self, uri: str) -> None:
        at = parse_uri(uri)
        with _translated("delete", uri):
            self._client.delete_object(Bucket=at.bucket, Key=at.key)

    @override
    def list_uploads(self, prefix_uri: str) -> Iterator[UnfinishedUpload]:
        at = parse_uri(prefix_uri)
        paginator = self._client.get_paginator("list_multipart_uploads")
        for page in _paged(iter(paginator.paginate(Bucket=at.bucket, Prefix=at.key)), prefix_uri):
            for item in page.get("Uploads", ()):
                yield UnfinishedUpload(
                    uri=str(S3Uri(bucket=at.bucket, key=item["Key"])),
                    upload_id=item["UploadId"],
                    started=item.get("Initiated"),
                )

    @override
    def abort_upload(self, upload: UnfinishedUpload) -> None:
        try:
            with _translated("abort the upload of", upload.uri):
                self._client.abort_multipart_upload(**_address(upload))
        except ObjectMissing as error:
            if error.context["s3_code"] == "NoSuchBucket":
                raise

    @override
    def now(self, uri: str) -> datetime | None:
        answer: Any
        with _translated("look at", uri):
            try:
                answer = self._client.head_bucket(Bucket=parse_uri(uri).bucket)
            except ClientError as error:
                answer = error.response
        told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(told) if told else None

    @override
    def probe(self, prefix_uri: str) -> None:
        uri = join(prefix_uri, f"pgvigil-probe-{uuid.uuid4()}")
        self.put(uri, uri.encode(), content_type="text/plain", only_if_absent=True)
        try:
            self._prove_read_back(uri, uri.encode())
            self._prove_condition(uri, uri.encode())
        finally:
            self.delete(uri)

    def _prove_read_back(self, uri: str, data: bytes) -> None:
        if self.get(uri) != data:
            raise StorageFailed(
                f"{uri} came back other than it was written",
                hint="look for a cache or proxy between; do not keep evidence in this store",
                **_context(uri, "ReadBackMismatch"),
            )

    def _prove_condition(self, uri: str, data: bytes) -> None:
        try:
            self._write(uri, data, _condition(only_if_absent=True))
        except ObjectExists:
            return
        raise StorageFailed(
            f"{uri} was overwritten against 'If-None-Match: *': the store ignores conditional writes",
            hint="use a store that honours them (Amazon S3, MinIO, Ceph RGW in recent releases)",
            **_context(uri, "ConditionIgnored"),
        )

    def _write(self, uri: str, data: bytes, dress: dict[str, Any]) -> StoredObject:
        at = parse_uri(uri)
        with _translated("write", uri):
            answer = self._client.put_object(
                Bucket=at.bucket, Key=at.key, Body=data, ContentMD5=_md5(data), **dress
            )
        return StoredObject(
            uri=uri, size=len(data), etag=answer["ETag"].strip('"'), version_id=_version_of(answer)
        )

    def _refuse_taken(self, uri: str) -> None:
        try:
            self.head(uri)
        except ObjectMissing:
            return
        raise _taken(uri, "PreconditionFailed")

    def _dress(
        self, content_type: str, metadata: Mapping[str, str] | None, lock: ObjectLock | None
    ) -> dict[str, Any]:
        """Return the arguments that put_object and create_multipart_upload share."""
        settings = self._settings
        wanted = {
            "ContentType": content_type,
            "Metadata": dict(metadata or {}),
            "ServerSideEncryption": settings.sse,
            "SSEKMSKeyId": settings.kms_key_id,
            "StorageClass": settings.storage_class,
            "ObjectLockMode": lock and lock.mode,
            "ObjectLockRetainUntilDate": lock and lock.retain_until,
            "ObjectLockLegalHoldStatus": "ON" if lock and lock.legal_hold else None,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def _start(self, uri: str, dress: dict[str, Any]) -> UnfinishedUpload:
        at = parse_uri(uri)
        with _translated("start the upload of", uri):
            answer = self._client.create_multipart_upload(Bucket=at.bucket, Key=at.key, **dress)
        return UnfinishedUpload(uri=uri, upload_id=answer["UploadId"])

    def _send(self, upload: UnfinishedUpload, parts: Iterable[bytearray]) -> tuple[Sequence[str], int]:
        etags: list[str] = []
        size = 0
        for part in parts:  # enumerate would hold each while the next is made
            etags.append(self._send_part(upload, len(etags) + 1, part))
            size += len(part)
            del part
        return etags, size

    def _send_part(self, upload: UnfinishedUpload, number: int, part: bytearray) -> str:
        with _translated(f"write part {number} of", upload.uri):
            answer = self._client.upload_part(
                **_address(upload),
                PartNumber=number,
                Body=part,  # type: ignore[arg-type] # botocore takes a bytearray, its stubs do not know
                ContentMD5=_md5(part),
            )
        return answer["ETag"]

    def _complete(
        self, upload: UnfinishedUpload, etags: Sequence[str], size: int, *, only_if_absent: bool
    ) -> StoredObject:
        parts = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, start=1)]
        with _translated("complete the upload of", upload.uri):
            answer = self._client.complete_multipart_upload(
                **_address(upload),
                MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
                **_condition(only_if_absent=only_if_absent),
            )
        return StoredObject(
            uri=upload.uri, size=size, etag=answer["ETag"].strip('"'), version_id=_version_of(answer)
        )

    def _abort_after(self, error: BaseException, upload: UnfinishedUpload) -> None:
        try:
            self.abort_upload(upload)
        except PgvigilError as again:
            error.add_note(f"unfinished upload {upload.upload_id} of {upload.uri} is left: {again}")

    def _read_back(self, sent: StoredObject, lock: ObjectLock | None) -> StoredObject:
        """Return the object as it was sent; what the store says of it must agree."""
        stored = self._head(sent.uri, sent.version_id)
        if (stored.size, stored.etag) != (sent.size, sent.etag):
            raise StorageFailed(
                f"{sent.uri} has {stored.size} bytes after an upload of {sent.size}; "
                f"its ETag is {stored.etag}, the upload's was {sent.etag}",
                hint="somebody else wrote the same key, or the store lost a part; upload again",
                **_context(sent.uri, "SizeMismatch"),
            )
        self._require_lock(sent.uri, sent.version_id, lock)
        return stored.model_copy(update={"version_id": sent.version_id})

    def _head(self, uri: str, version_id: str | None) -> StoredObject:
        at = parse_uri(uri)
        with _translated("look at", uri):
            answer = self._client.head_object(Bucket=at.bucket, Key=at.key, **_version(version_id))
        return StoredObject(
            uri=uri,
            size=answer["ContentLength"],
            etag=answer["ETag"].strip('"'),
            version_id=_version_of(answer),
            modified=answer.get("LastModified"),
            content_type=answer.get("ContentType", ""),
            sse=answer.get("ServerSideEncryption", ""),
            kms_key_id=answer.get("SSEKMSKeyId", ""),
            storage_class=answer.get("StorageClass", "STANDARD"),
            lock=_lock_of(answer),
            metadata=answer.get("Metadata", {}),
        )

    def _require_lock(self, uri: str, version_id: str | None, lock: ObjectLock | None) -> None:
        """Read a lock back; set it by its own call where the store took the object without it."""
        if lock is None or holds(self._head(uri, version_id).lock, lock):
            return
        self._set_lock(uri, version_id, lock)
        if not holds(self._head(uri, version_id).lock, lock):
            raise StorageFailed(
                f"{uri} was written, but the store does not show the lock that was asked for",
                hint="create the bucket with Object Lock; grant s3:GetObjectRetention, s3:GetObjectLegalHold",
                **_context(uri, "ObjectLockMissing"),
            )

    def _set_lock(self, uri: str, version_id: str | None, lock: ObjectLock) -> None:
        at = parse_uri(uri)
        where: dict[str, Any] = {"Bucket": at.bucket, "Key": at.key, **_version(version_id)}
        with _translated("lock", uri):
            if lock.mode and lock.retain_until:
                self._client.put_object_retention(
                    **where, Retention={"Mode": lock.mode, "RetainUntilDate": lock.retain_until}
                )
            if lock.legal_hold:
                self._client.put_object_legal_hold(**where, LegalHold={"Status": "ON"})


def part_sizes(part_size: int) -> Iterator[int]:
    """Give the size of each part in turn, doubling every 2000; the parts end where S3 ends them."""
    if part_size < MIN_PART:
        raise ConfigError(
            f"a part of an upload has at least {MIN_PART} bytes, got {part_size}", hint="raise part_size"
        )
    return (part_size << (number // PARTS_PER_SIZE) for number in range(MAX_PARTS))


def split(chunks: Iterable[bytes], sizes: Iterator[int]) -> Iterator[bytearray]:
    """Cut a stream into parts of the given sizes, the last one shorter; raises StorageFailed after all."""
    part, wanted = bytearray(), next(sizes)
    for chunk in chunks:
        rest = memoryview(chunk)
        while len(part) + len(rest) >= wanted:
            cut = wanted - len(part)
            part += rest[:cut]
            rest = rest[cut:]
            yield part
            part, wanted = bytearray(), _next_size(sizes, wanted)
        part += rest
    if part:
        yield part


def _next_size(sizes: Iterator[int], last: int) -> int:
    size = next(sizes, None)
    if size is None:
        raise StorageFailed(
            f"the stream does not fit into {MAX_PARTS} parts, the last of {last} bytes",
            hint="raise part_size",
        )
    return size


def holds(found: ObjectLock | None, wanted: ObjectLock) -> bool:
    """Tell whether a lock that was found protects at least as long and as hard as the wanted one."""
    if found is None or (wanted.legal_hold and not found.legal_hold):
        return False
    if wanted.retain_until is None:
        return True
    # Stores keep whole seconds or milliseconds.
    kept = found.retain_until is not None and found.retain_until >= wanted.retain_until - timedelta(seconds=1)
    return kept and found.mode in {wanted.mode, "COMPLIANCE"}


@contextmanager
def _translated(verb: str, uri: str) -> Iterator[None]:
    """Turn boto3's errors into ours, naming the object but no secret."""
    try:
        yield
    except ClientError as error:
        raise _refused(verb, uri, error) from error
    except BotoCoreError as error:
        raise _unanswered(verb, uri, error) from error


def _paged(pages: Iterator[Any], uri: str) -> Iterator[Any]:
    while True:
        with _translated("list", uri):
            page = next(pages, None)
        if page is None:
            return
        yield page


def _refused(verb: str, uri: str, error: ClientError) -> PgvigilError:
    answer = error.response.get("Error", {})
    code = str(answer.get("Code") or "Unknown")
    if code in _TAKEN:
        return _taken(uri, code)
    kind = ObjectMissing if code in _MISSING else StorageFailed
    text = answer.get("Message") or ""
    return kind(
        f"cannot {verb} {uri}: {code}" + (f" ({text})" if text and text != code else ""),
        hint=_HINTS.get(code, ""),
        **_context(uri, code),
    )


def _taken(uri: str, code: str) -> ObjectExists:
    return ObjectExists(
        f"{uri} exists already; nothing was overwritten",
        hint="compare it with what was to be written: it may be the same",
        **_context(uri, code),
    )


def _unanswered(verb: str, uri: str, error: BotoCoreError) -> PgvigilError:
    code = type(error).__name__
    text = str(error).strip().splitlines()[0]
    if code in _NO_CREDENTIALS:
        return ConfigError(f"no S3 credentials found: {text}", hint=_CREDENTIALS_HINT, **_context(uri, code))
    kind = ConfigError if code in _MISCONFIGURED else StorageFailed
    return kind(f"cannot {verb} {uri}: {text}", hint=_HINTS.get(code, ""), **_context(uri, code))


def _context(uri: str, code: str) -> dict[str, str]:
    match = _URI.fullmatch(uri)
    where = {"bucket": match[1], "key": match[2] or ""} if match else {}
    return {"s3_code": code, **where}


def _condition(*, only_if_absent: bool) -> dict[str, Any]:
    return {"IfNoneMatch": "*"} if only_if_absent else {}


def _version(version_id: str | None) -> dict[str, Any]:
    return {"VersionId": version_id} if version_id else {}


def _address(upload: UnfinishedUpload) -> dict[str, Any]:
    at = parse_uri(upload.uri)
    return {"Bucket": at.bucket, "Key": at.key, "UploadId": upload.upload_id}


def _md5(data: bytes | bytearray) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _version_of(answer: Any) -> str | None:
    """Return the version id; some stores call the only version of an unversioned object "null"."""
    version = answer.get("VersionId")
    return None if version == "null" else version


def _lock_of(answer: Any) -> ObjectLock | None:
    mode, until = answer.get("ObjectLockMode"), answer.get("ObjectLockRetainUntilDate")
    hold = answer.get("ObjectLockLegalHoldStatus") == "ON"
    if not mode and not hold:
        return None
    return ObjectLock(mode=mode, retain_until=until, legal_hold=hold)


# A HEAD has no body, so its codes are bare figures.
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion", "NoSuchUpload", "NotFound", "404"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
_MISCONFIGURED = frozenset(
    {"ProfileNotFound", "NoRegionError", "InvalidRegionError", "ConfigParseError", "ParamValidationError"}
)

_CREDENTIALS_HINT = (
    "give boto3 some: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or a role of the machine"
)
_DENIED_HINT = (
    "grant s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload, s3:ListBucket and the "
    "KMS key's use; without s3:ListBucket a missing object looks denied too"
)
_EXPIRED_HINT = "the session's credentials are over: log in again, or let a role renew them"
_WRONG_KEY_HINT = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they belong to this store"
_REGION_HINT = "the bucket lives in another region: correct s3.region in the fleet file"
_UNREACHABLE_HINT = "check s3.endpoint_url in the fleet file, the network and the proxy settings"
_CUT_HINT = "the connection ended before the object did: look at the store and the network between"
_CONDITION_HINT = (
    "the store does not know a header that was sent; conditional writes and locks need a newer one"
)

_HINTS = {
    "NoSuchBucket": "create the bucket, or correct its name in the fleet file",
    "404": "check the bucket's name and the key",
    "AccessDenied": _DENIED_HINT,
    "403": _DENIED_HINT,
    "InvalidAccessKeyId": _WRONG_KEY_HINT,
    "SignatureDoesNotMatch": _WRONG_KEY_HINT,
    "ExpiredToken": _EXPIRED_HINT,
    "ExpiredTokenException": _EXPIRED_HINT,
    "InvalidToken": _EXPIRED_HINT,
    "TokenRefreshRequired": _EXPIRED_HINT,
    "UnauthorizedSSOTokenError": _EXPIRED_HINT,
    "SSOTokenLoadError": _EXPIRED_HINT,
    "400": "a bare 400 is most often an expired token or a wrong region",
    "RequestTimeTooSkewed": "this host's clock is wrong: start NTP",
    "PermanentRedirect": _REGION_HINT,
    "301": _REGION_HINT,
    "AuthorizationHeaderMalformed": _REGION_HINT,
    "IllegalLocationConstraintException": _REGION_HINT,
    "NotImplemented": _CONDITION_HINT,
    "501": _CONDITION_HINT,
    "ConditionalRequestConflict": "another writer is at the same key; try again",
    "InvalidObjectState": "the object is in a cold storage class: restore it first",
    "KeyTooLongError": "a key has at most 1024 bytes in UTF-8",
    "ParamValidationError": "correct the name, key or metadata (metadata is ASCII)",
    "ProfileNotFound": "correct AWS_PROFILE",
    "NoRegionError": "set s3.region in the fleet file",
    "SSLError": "set s3.ca_file in the fleet file to the certificate authority of the endpoint",
    "EndpointConnectionError": _UNREACHABLE_HINT,
    "ConnectTimeoutError": _UNREACHABLE_HINT,
    "ReadTimeoutError": _UNREACHABLE_HINT,
    "ConnectionClosedError": _UNREACHABLE_HINT,
    "ProxyConnectionError": _UNREACHABLE_HINT,
    "HTTPClientError": _UNREACHABLE_HINT,
    "ResponseStreamingError": _CUT_HINT,
    "IncompleteReadError": _CUT_HINT,
}
