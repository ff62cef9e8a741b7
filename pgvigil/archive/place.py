"""Where a table's copy lies in the store: names as they are, each in a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote
from uuid import UUID

from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.objectstore import ObjectLock, join, parse_uri

if TYPE_CHECKING:
    from pgvigil.partitions.facts import Entry, Name
    from pgvigil.policies.partitions import ObjectLockPolicy, ParquetPolicy, PartitionPolicy

MANIFEST = "manifest.json"
MOST_KEY_BYTES = 1024
HIVE_KEY = "pgvigil_partition"  # a column of this name appears in queries of the files


def folder(prefix: str, *names: str) -> str:
    """Return the folder of names below a prefix, such as cluster, database, schema, table, partition.

    Every name is escaped for itself, so `a/b` and `a`, `b` never meet, and ends with a slash.
    """
    return join(prefix, *map(_escape, names)) + "/"


def _escape(name: str) -> str:
    escaped = quote(name, safe="")
    # Some proxies resolve these as directories.
    return escaped.replace(".", "%2E") if escaped in {".", ".."} else escaped


def partition_of(folder: str, uri: str) -> tuple[str, str] | None:
    """Return schema and name of the partition whose manifest this is in its table's folder, else None."""
    parts = uri.removeprefix(folder).split("/")
    return (unquote(parts[0]), unquote(parts[1])) if len(parts) == 4 and parts[3] == MANIFEST else None


def manifest_uri(place: str, copy: UUID) -> str:
    """Return the address of a copy's manifest in its partition's folder."""
    return f"{place}{copy}/{MANIFEST}"


def data_uri(place: str, copy: UUID, attempt: UUID, relation: int | None = None) -> str:
    """Return the address of the rows as one attempt writes them; the manifest names the one that counts.

    In a tree each leaf has its own, told apart by its OID, since two of its names might make a key too long.
    """
    leaf = "" if relation is None else f"-{relation}"
    return f"{place}{copy}/{attempt}{leaf}.copy.zst"


def parquet_uri(place: str, copy: UUID, attempt: UUID, leaf: tuple[str, str], number: int) -> str:
    """Return the address of a Parquet file, in the hive layout: the folder tells the partition."""
    partition = quote(".".join(leaf), safe="")
    return f"{place}{copy}/parquet/{HIVE_KEY}={partition}/{attempt}-{number:05}.parquet"


def view_uri(place: str, copy: UUID, attempt: UUID) -> str:
    """Return the address of the statement that makes a view of a copy's Parquet files."""
    return f"{place}{copy}/parquet/{attempt}-view.sql"


def require_room(where: str, leaf: tuple[str, str], *, parquet: bool) -> None:
    """Raise PreconditionFailed when a partition's names are too long for the keys of its copy."""
    some = UUID(int=0)
    uris = [data_uri(where, some, some, 2**32 - 1)]
    uris += [parquet_uri(where, some, some, leaf, 99_999)] if parquet else []
    longest = max(len(parse_uri(uri).key.encode()) for uri in uris)
    if longest > MOST_KEY_BYTES:
        raise PreconditionFailed(
            f"the copy of '{'.'.join(leaf)}' would have a key of {longest} bytes in the store, "
            f"which takes {MOST_KEY_BYTES}",
            hint="shorten the prefix in 'archive'; a letter that is not ASCII takes six bytes or more",
        )


@dataclass(frozen=True)
class Place:
    """Where one departure's copy belongs, and what it is a copy of."""

    folder: str
    id: UUID
    cluster: str
    database: str
    parent: Name
    entry: Entry
    lock: ObjectLockPolicy | None
    parquet: ParquetPolicy | None = None

    @property
    def manifest(self) -> str:
        """The address of the manifest: the commit point of the copy, wherever it was when that was made."""
        return self.entry.manifest or manifest_uri(self.folder, self.id)

    @property
    def object_lock(self) -> ObjectLock | None:
        """The lock of what is written here at this moment: a retention counts from then on."""
        if self.lock is None:
            return None
        until = datetime.now(tz=UTC) + self.lock.retain if self.lock.retain else None
        return ObjectLock(mode=self.lock.mode, retain_until=until, legal_hold=self.lock.legal_hold)

    @classmethod
    def of(cls, policy: PartitionPolicy, cluster: str, database: str, parent: Name, entry: Entry) -> Place:
        """Find the place of an entry; raises ConfigError without an archive."""
        here = partition_folder(policy, cluster, database, parent, entry.name)
        return cls(here, entry.id, cluster, database, parent, entry, policy.lock, policy.parquet)


def table_folder(policy: PartitionPolicy, cluster: str, database: str, parent: Name) -> str:
    """Return the folder of all copies of a table's partitions; raises ConfigError without an archive."""
    if policy.archive is None:
        raise ConfigError(
            f"'{policy.table}' has no archive", hint="set archive: s3://bucket/prefix in the fleet file"
        )
    return folder(policy.archive, cluster, database, parent.schema_, parent.name)


def partition_folder(policy: PartitionPolicy, cluster: str, database: str, parent: Name, own: Name) -> str:
    """Return the folder of all copies of one partition; raises ConfigError without an archive."""
    return folder(table_folder(policy, cluster, database, parent), own.schema_, own.name)
