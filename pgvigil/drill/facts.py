"""What the parts of a restore drill tell each other: marks, digests, stops and timings, as plain data."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from pgvigil.reports import Frozen

TargetKind = Literal["default", "time", "lsn", "xid", "name"]
SetKind = Literal["latest", "oldest", "random"]
MarkMethod = Literal["standby", "slot", "fence"]
RtoPhase = Literal["restore", "replay", "start", "first query"]
PhaseName = RtoPhase | Literal["hash source", "hash copy", "prove"]


class Table(Frozen):
    """A relation whose rows are compared; OIDs and block layout of a physical copy are the source's."""

    oid: int
    schema_name: str
    name: str
    filenode: int | None = None
    blocks: int = 0
    has_large_objects: bool = Field(default=False, description="pg_largeobject, which holds them for all")

    def __str__(self) -> str:
        """Name it for people."""
        return f"{self.schema_name}.{self.name}"


class Digest(Frozen):
    """Row count and order-independent hash of the blocks that were read, of so many that there are."""

    rows: int
    hash: str = Field(description="32 hexadecimal digits")
    blocks_read: int
    blocks: int
    ranges: tuple[tuple[int, int], ...] = Field(
        default=(), description="for a sample: the block ranges read, first to before last; empty for all"
    )
    is_copied: bool = Field(default=False, description="whether COPY gave the rows: another hash of the same")


class Unproven(Frozen):
    """A relation that is not compared, or cannot be, and why."""

    database: str
    relation: str
    reason: str
    oid: int | None = None
    by_design: bool = Field(default=False, description="such as unlogged: no restore can bring it back")


class Mark(Frozen):
    """A point in the WAL at which the content of a database is known exactly.

    `lsn`: every commit whose record begins before it is in the marked content, none from it on; recovery
    stops there with `recovery_target_lsn` and `recovery_target_inclusive = off`, or at the restore point
    `name`.
    """

    database: str
    method: MarkMethod
    lsn: str
    name: str | None = None
    timeline: int
    at: datetime
    writers_waited_ms: float = Field(default=0.0, description="upper bound of what the mark cost writers")
    attempts: int = 1
    server: str = Field(default="", description="on which the rows were read; empty in older reports")


class Content(Frozen):
    """What a marked database holds: a digest per table, and what could not be hashed."""

    mark: Mark
    tables: tuple[tuple[Table, Digest], ...]
    unproven: tuple[Unproven, ...] = ()
    seconds: float = 0.0
    bytes_read: int = 0


class Heartbeat(Frozen):
    """A commit that was made to be looked for in the copy."""

    mark: str
    xid: int
    lsn: str
    committed_at: datetime


class Target(Frozen):
    """Where recovery is to end, and what must and must not be there."""

    kind: TargetKind
    value: str = Field(default="", description="as recovery_target_… takes it; empty for default")
    inclusive: bool = True
    lsn: str = Field(description="replay must reach at least this")
    timeline: int | None = Field(default=None, description="the source's, where the drill made the target")
    present: Heartbeat | None = Field(default=None, description="committed before the target")
    absent: Heartbeat | None = Field(default=None, description="committed after the target; None for default")


class Phase(Frozen):
    """How long one phase of the drill took."""

    name: PhaseName
    seconds: float
    bytes: int = 0
