"""What is known of a partitioned table, what is to be done with it, and the report of a roll."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from pydantic import Field
from typing_extensions import override

from pgvigil.approval import Question
from pgvigil.archive.manifest import Manifest, Stored
from pgvigil.pages import cell, table
from pgvigil.partitions.axis import Range
from pgvigil.reports import Frozen, Report

if TYPE_CHECKING:
    from collections.abc import Iterator

State = Literal["leaving", "fenced", "archived", "returning", "returned"]
Action = Literal[
    "finalize", "create", "attach", "detach", "archive", "verify", "drop", "keep", "refuse", "release"
]


class Name(Frozen):
    """A relation's name within its schema, as raw text."""

    schema_: str
    name: str

    def __str__(self) -> str:
        return f"{self.schema_}.{self.name}"


class Partition(Frozen):
    """One partition as the catalog has it."""

    oid: int
    name: Name
    kind: str
    bound: str
    condition: str | None
    is_pending: bool
    size: int
    rows: int
    range: Range | None = None
    partition_by: str = ""
    is_timeless: bool = Field(default=True, description="no bound below it depends on the table's own key")


class Member(Frozen):
    """A table somewhere below a partition that is partitioned itself; `parent` is an OID."""

    name: Name
    oid: int = 0
    parent: int = 0
    bound: str = ""
    partition_by: str = ""
    is_timeless: bool = True
    kind: str
    is_pending: bool
    size: int
    is_alike: bool = Field(description="its columns have the same numbers as those of the uppermost table")


class Entry(Frozen):
    """A row of the work state: a partition on its way out, or back in."""

    id: UUID
    state: State
    relation: int
    name: Name
    parent: int
    bound: str
    condition: str
    since: datetime
    detached_at: datetime | None = None
    fence: dict[str, Any] | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None
    leaves: dict[int, Stored] = Field(default_factory=dict)

    @property
    def seal(self) -> str:
        """The hash of the fence, by which a manifest names the one that its copy was made behind."""
        told = json.dumps(self.fence, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest() if self.fence else ""


class Table(Frozen):
    """A partitioned table with its partitions, read in one transaction."""

    oid: int
    name: Name
    key: str
    key_type: str
    owner: str
    default_oid: int | None
    referenced_by: tuple[str, ...]
    followed: tuple[str, ...] = Field(default=(), description="tables whose changes cascade into this one")
    now: datetime
    version_num: int
    partitions: tuple[Partition, ...]
    entries: tuple[Entry, ...]
    taken_names: frozenset[str]
    position: int | None = None
    beyond: int | None = Field(
        default=None, description="the newest key of all, where it lies in no range that has an end"
    )
    archived: frozenset[Name] = Field(
        default=frozenset(), description="partitions in the archive; looked for where a hold names no other"
    )
    below: dict[int, tuple[Member, ...]] = Field(default_factory=dict)

    def partition(self, oid: int) -> Partition | None:
        """Find an attached or pending partition."""
        return next((each for each in self.partitions if each.oid == oid), None)

    def names(self) -> Iterator[Name]:
        """Give every name that a hold may mean, also of what departed or is in the archive."""
        yield from (each.name for each in self.partitions)
        yield from (each.name for each in self.entries)
        yield from (each.name for members in self.below.values() for each in members)
        yield from self.archived


class Step(Frozen):
    """One thing to do, why, and the facts that must still hold when it is done."""

    action: Action
    partition: Name
    reason: str
    oid: int | None = None
    bound: str = ""
    size: int | None = None
    method: str = ""


class Twig(Frozen):
    """A table to be made below a new partition, like one below another: below that partition, or a twig."""

    name: Name
    below: Name
    bound: str
    partition_by: str
    like: int


class Creation(Frozen):
    """A partition to be made, plain or with others below it."""

    name: Name
    range: Range
    lower: str
    upper: str
    reason: str
    partition_by: str = ""
    twigs: tuple[Twig, ...] = ()

    @property
    def bound(self) -> str:
        """The bound as SQL has it."""
        return f"FOR VALUES FROM ('{self.lower}') TO ('{self.upper}')"


class Departure(Frozen):
    """A partition that is to leave, or already on its way."""

    relation: int
    name: Name
    parent: int
    bound: str
    condition: str
    size: int
    entry: Entry | None
    is_attached: bool
    is_pending: bool
    method: Literal["concurrently", "blocking"]
    method_reason: str
    reason: str
    drop: Literal["now", "approve", "later", "never"]
    drop_reason: str
    followed: tuple[str, ...] = ()

    @property
    def is_archived(self) -> bool:
        """Whether a proven copy of it is on record."""
        return self.entry is not None and self.entry.state == "archived"

    @property
    def is_waiting(self) -> bool:
        """Whether it is proven and only a person's yes is missing."""
        return self.is_archived and self.drop == "approve"

    @property
    def kept(self) -> str:
        """Why its table stands, and what that means to writers elsewhere."""
        if not self.followed:
            return self.drop_reason
        tables = ", ".join(self.followed)
        return f"{self.drop_reason}; meanwhile a change in {tables} that cascades into its rows is refused"

    def steps(self) -> Iterator[Step]:
        """Say what is left to do, in order."""
        if self.is_pending:
            yield self._step("finalize", "an earlier detach was interrupted")
        elif self.is_attached:
            yield self._step("detach", self.reason, f"{self.method}: {self.method_reason}")
        if not self.is_archived:
            yield self._step("archive", "detached, and no copy of it is proven")
        yield self._step("verify", "nothing is dropped before its copy was read back")
        yield self._step("drop", self.drop_reason) if self.drop == "now" else self._step("keep", self.kept)

    def _step(self, action: Action, reason: str, method: str = "") -> Step:
        return Step(
            action=action,
            partition=self.name,
            reason=reason,
            oid=self.relation,
            bound=self.bound,
            size=self.size,
            method=method,
        )


class Plan(Frozen):
    """What one run does with one table; made from facts alone, printed by a dry run.

    The digest stands for the drops that wait for a person; empty when none does.
    """

    table: Name
    oid: int
    made_at: datetime
    unfinished: tuple[Departure, ...] = ()
    releases: tuple[Entry, ...] = ()
    creations: tuple[Creation, ...] = ()
    departures: tuple[Departure, ...] = ()
    refusals: tuple[Step, ...] = ()
    digest: str = ""

    def steps(self) -> tuple[Step, ...]:
        """Give every step in the order of its doing."""
        steps = [next(each.steps()) for each in self.unfinished]
        steps += [
            Step(
                action="release",
                partition=e.name,
                reason="it is a partition again, so its fence comes down",
                oid=e.relation,
                bound=e.bound,
            )
            for e in self.releases
        ]
        steps += [
            Step(action="create", partition=c.name, reason=c.reason, bound=c.bound) for c in self.creations
        ]
        steps += [step for departure in self.departures for step in departure.steps()]
        return (*steps, *self.refusals)

    def text(self) -> str:
        """Render the plan for people, one line a step."""
        if not self.steps():
            return f"{self.table}: nothing to do"
        lines = [
            f"{s.action} {s.partition}: {s.reason}" + (f" ({s.method})" if s.method else "")
            for s in self.steps()
        ]
        return "\n".join([f"{self.table}:", *(f"  {line}" for line in lines)])


class Outcome(Frozen):
    """What became of one partition in this run."""

    table: str
    partition: str
    action: Action
    bound: str = ""
    rows: int | None = None
    bytes: int | None = None
    manifest: str = ""
    seconds: float | None = None
    detail: str = ""


class Horizon(Frozen):
    """How far a table's partitions reach without a gap, and how long one of them is on the average."""

    table: str
    ends_at: datetime
    partition_seconds: float


class RollReport(Report):
    """What `roll_partitions` returns."""

    plans: tuple[Plan, ...] = ()
    steps: tuple[Step, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    manifests: tuple[Manifest, ...] = ()
    questions: tuple[Question, ...] = ()
    horizons: tuple[Horizon, ...] = ()

    @override
    def remembered(self) -> dict[str, Any]:
        return {"horizons": list(self.horizons)} if self.horizons else {}

    def section(self) -> str:
        """Render the plans and what was done."""
        parts = []
        if self.steps:
            rows = ((s.action, s.partition, s.bound, s.reason, s.method) for s in self.steps)
            parts.append("## Plan\n\n" + table(("step", "partition", "bound", "why", "how"), rows))
        elif self.plans:
            parts.append("## Plan\n\nNothing to do.")
        if self.outcomes:
            done = ((o.action, o.partition, o.rows, o.bytes, o.manifest, o.detail) for o in self.outcomes)
            head = ("done", "partition", "rows", "bytes in S3", "manifest", "detail")
            parts.append("## Done\n\n" + table(head, done))
        return "\n\n".join(parts)


class RestoreReport(Report):
    """What `restore_partition` returns."""

    partition: str = ""
    manifest: str = ""
    exported_at: datetime | None = None
    rows: int | None = None
    bound: str = ""
    became: str = ""
    adapted: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    other_copies: tuple[str, ...] = ()

    def section(self) -> str:
        """Render what came back, and how it was made to fit."""
        facts_ = (
            ("partition", self.partition),
            ("bound", self.bound),
            ("rows", self.rows),
            ("archived", self.exported_at),
            ("manifest", self.manifest),
            ("is now", self.became or "not brought back"),
        )
        parts = ["## What came back\n\n" + table(("what", "value"), facts_)]
        parts += ["## Steps\n\n" + "\n".join(f"- {cell(step)}" for step in self.steps)] if self.steps else []
        if self.other_copies:
            parts.append("## Older copies\n\n" + "\n".join(f"- {cell(line)}" for line in self.other_copies))
        if self.adapted:
            parts.append("## Adapted\n\n" + "\n".join(f"- {cell(line)}" for line in self.adapted))
        return "\n\n".join(parts)
