import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from pgvigil.archive.copying import _is_whole
from pgvigil.archive.digest import Digest
from pgvigil.archive.manifest import Stored, StoredRows
from pgvigil.archive.place import Place, folder, require_room
from pgvigil.archive.stream import BYTES_AHEAD, ahead
from pgvigil.errors import PreconditionFailed
from pgvigil.objectstore import ObjectLock
from pgvigil.partitions.facts import Entry, Name
from pgvigil.policies.partitions import ObjectLockPolicy

NAME = Name(schema_="public", name="events_2024_01")
NOW = datetime.now(UTC)
URI = "s3://a/x.copy.zst"
RETAINED = ObjectLock(mode="GOVERNANCE", retain_until=NOW + timedelta(days=29))
HELD = ObjectLock(legal_hold=True)


def place(lock: ObjectLockPolicy | None) -> Place:
    entry = Entry(
        id=uuid4(), state="fenced", relation=1, name=NAME, parent=2, bound="", condition="", since=NOW
    )
    return Place("s3://a/", entry.id, "demo", "shop", NAME, entry, lock)


def test_names_that_are_too_long_for_the_store_are_refused_before_anything_leaves() -> None:
    """Escaped, sixty bytes that are not ASCII are a hundred and eighty; Parquet has the name once more."""
    name = "表" * 20
    where = folder("s3://abc", "demo", "shop", name, name, name, name)
    require_room(where, (name, name), parquet=False)
    with pytest.raises(PreconditionFailed, match="which takes 1024"):
        require_room(where, (name, name), parquet=True)


@pytest.mark.parametrize(
    ("found", "wanted", "is_taken"),
    [
        (None, None, True),
        (HELD, None, True),
        (RETAINED, ObjectLockPolicy(mode="GOVERNANCE", retain=timedelta(days=30)), True),
        (RETAINED, ObjectLockPolicy(mode="COMPLIANCE", retain=timedelta(days=30)), False),
        (None, ObjectLockPolicy(legal_hold=True), False),
        (HELD, ObjectLockPolicy(legal_hold=True), True),
    ],
)
def test_a_leaf_of_an_earlier_try_is_taken_under_the_lock_that_is_wanted_now(
    found: ObjectLock | None, wanted: ObjectLockPolicy | None, is_taken: bool
) -> None:
    """Where the policy asks for a lock that it was stored without, it is copied again."""
    rows = StoredRows(uri=URI, version_id=None, sha256="", size=3, text_size=9, etag="e", lock=found)
    stored = Stored(rows=rows, digest=Digest(rows=1, value="0"))

    assert is_taken == _is_whole(stored, place(wanted), {URI: 3})
    assert not _is_whole(stored, place(wanted), {URI: 2})


@pytest.mark.parametrize("size", [BYTES_AHEAD // 3, 2 * BYTES_AHEAD])
def test_what_is_made_ahead_is_bounded_by_its_bytes(size: int) -> None:
    """Whatever a chunk's size, there waits as much as was allowed, or a single one."""
    chunk, made, used, most = bytes(size), 0, 0, 0

    def make() -> Iterator[bytes]:
        nonlocal made, most
        for _ in range(20):
            made += 1
            most = max(most, made - used)
            yield chunk

    with ahead(make()) as chunks:
        for each in chunks:
            hashlib.sha256(each)
            used += 1

    assert (20, 20) == (made, used)
    assert most <= max(1, BYTES_AHEAD // size) + 2  # one is being made, and one in use


def test_an_error_comes_behind_its_chunks() -> None:
    """What was made before it is there, and the thread has ended."""

    def make() -> Iterator[bytes]:
        yield b"a"
        raise ValueError("torn")

    with ahead(make()) as chunks:
        assert b"a" == next(chunks)
        with pytest.raises(ValueError, match="torn"):
            next(chunks)
