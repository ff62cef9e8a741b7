"""Doubles for tests, each held to the same contract suite as the real thing."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from typing_extensions import override

from pgvigil.errors import ConfigError, ObjectExists, ObjectMissing
from pgvigil.objectstore import (
    PART_SIZE,
    READ_SIZE,
    ObjectLock,
    ObjectStore,
    StoredObject,
    UnfinishedUpload,
    join,
    parse_uri,
    part_sizes,
    split,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping


class MemoryObjectStore(ObjectStore):
    """An object store in this process's memory, with the buckets that it was made with.

    Locks are kept and told, but hold nobody off, as in a bucket with versioning.
    """

    def __init__(self, *buckets: str) -> None:
        self._buckets = frozenset(buckets)
        self._objects: dict[str, tuple[StoredObject, bytes]] = {}
        self._uploads: dict[str, UnfinishedUpload] = {}

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
        self._require_bucket(uri)
        if only_if_absent:
            self._refuse_taken(uri)
        stored = StoredObject(
            uri=uri,
            size=len(data),
            etag=hashlib.md5(data, usedforsecurity=False).hexdigest(),
            modified=datetime.now(UTC),
            content_type=content_type,
            lock=lock,
            metadata=_ascii(metadata or {}),
        )
        self._objects[uri] = stored, bytes(data)
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
        unfinished = self.start_upload(uri)
        try:
            data = b"".join(parts)
        finally:
            self.abort_upload(unfinished)
        return self.put(
            uri,
            data,
            content_type=content_type,
            only_if_absent=only_if_absent,
            metadata=metadata,
            lock=lock,
        )

    @override
    def get(self, uri: str) -> bytes:
        return self._find(uri)[1]

    @override
    def read(self, uri: str, version_id: str | None = None) -> Iterator[bytes]:
        data = self._find(uri)[1]
        for start in range(0, len(data), READ_SIZE):
            yield data[start : start + READ_SIZE]

    @override
    def head(self, uri: str) -> StoredObject:
        return self._find(uri)[0]

    @override
    def list(self, prefix_uri: str) -> Iterator[StoredObject]:
        self._require_bucket(prefix_uri)
        prefix = str(parse_uri(prefix_uri))
        yield from [self._objects[uri][0] for uri in sorted(self._objects) if uri.startswith(prefix)]

    @override
    def delete(self, uri: str) -> None:
        self._require_bucket(uri)
        self._objects.pop(uri, None)

    @override
    def list_uploads(self, prefix_uri: str) -> Iterator[UnfinishedUpload]:
        self._require_bucket(prefix_uri)
        prefix = str(parse_uri(prefix_uri))
        yield from [upload for upload in self._uploads.values() if upload.uri.startswith(prefix)]

    @override
    def abort_upload(self, upload: UnfinishedUpload) -> None:
        self._require_bucket(upload.uri)
        self._uploads.pop(upload.upload_id, None)

    @override
    def now(self, uri: str) -> datetime:
        return datetime.now(UTC)

    @override
    def probe(self, prefix_uri: str) -> None:
        uri = join(prefix_uri, f"pgvigil-probe-{uuid.uuid4()}")
        self.put(uri, b"", only_if_absent=True)
        self.delete(uri)

    def start_upload(self, uri: str) -> UnfinishedUpload:
        """Leave an unfinished upload behind, as a killed run does."""
        self._require_bucket(uri)
        upload = UnfinishedUpload(uri=uri, upload_id=str(uuid.uuid4()), started=datetime.now(UTC))
        self._uploads[upload.upload_id] = upload
        return upload

    def _find(self, uri: str) -> tuple[StoredObject, bytes]:
        self._require_bucket(uri)
        if uri not in self._objects:
            raise ObjectMissing(f"cannot look at {uri}: NoSuchKey", s3_code="NoSuchKey")
        return self._objects[uri]

    def _refuse_taken(self, uri: str) -> None:
        if uri in self._objects:
            raise ObjectExists(f"{uri} exists already; nothing was overwritten", s3_code="PreconditionFailed")

    def _require_bucket(self, uri: str) -> None:
        bucket = parse_uri(uri).bucket
        if bucket not in self._buckets:
            raise ObjectMissing(
                f"cannot look at {uri}: NoSuchBucket", hint="create the bucket", s3_code="NoSuchBucket"
            )


def _ascii(metadata: Mapping[str, str]) -> dict[str, str]:
    if not all((key + value).isascii() for key, value in metadata.items()):
        raise ConfigError(f"metadata {dict(metadata)} is not ASCII", hint="correct the metadata")
    return dict(metadata)
