"""The state of a backfill in its own database: who runs it, which ranges are open, what people want.

A batch touches its range only, first and last, in the transaction of its rows. So after a kill at any
instant the cursor stands where the rows do. Every write of a runner names its fencing token; one that
another runner has outdated changes no row here, and its batch is undone.
"""

from __future__ import annotations

import hashlib
import json
import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import ConfigDict, Field

from pgvigil.backfill.session import Bounds, Session
from pgvigil.errors import Busy, ConfigError, Fenced, PreconditionFailed
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.backfill.facts import Key, Leaf, Target
    from pgvigil.policies.backfills import BackfillPolicy
    from pgvigil.postgres import Connection

LEASE = timedelta(seconds=30)
PATIENCE = 5.0  # seconds until the sessions of a killed runner are gone
_POLL = 0.2

Wanted = Literal["run", "pause", "cancel"]


class Overrides(Frozen):
    """What people changed of the policy while it runs; None is as the policy says."""

    rows: int | None = Field(default=None, ge=1, description="rows of the next batch")
    most_rows: int | None = Field(default=None, ge=1, description="most rows of a batch")
    workers: int | None = Field(default=None, ge=1, le=32, description="batches at work at a time")
    target_ms: int | None = Field(default=None, ge=1, description="milliseconds that a batch should take")
    archive_files: int | None = Field(
        default=None, ge=1, description="WAL files that may wait for the archiver"
    )
    replication_mb: float | None = Field(default=None, gt=0, description="MB of WAL that a standby may lack")


class State(Frozen):
    """One row of pgvigil.backfill."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    relation: int
    fingerprint: str
    state: Literal["walking", "done"]
    pass_: int = 0
    fence: int
    runner: str | None
    leased_until: datetime | None
    wanted: Wanted
    wanted_by: str | None
    wanted_at: datetime | None
    overrides: Overrides
    rows_total: int
    progress: dict[str, Any]
    started_at: datetime
    ended_at: datetime | None
    is_held: bool
    quarantined: int


class Claimed(Frozen):
    """Where a batch goes on: the last key done, the end of the range, and what people want."""

    reached: tuple[str, ...] | None
    ahead: tuple[str, ...] | None
    through: tuple[str, ...]
    attempts: int
    is_sweep: bool
    pass_: int
    wanted: Wanted
    overrides: Overrides
    hot: int
    lsn: int

    @property
    def limit(self) -> tuple[str, ...]:
        """Up to where a batch may go: rows that an unfinished course has begun with come first."""
        return self.ahead or self.through


class Step(Frozen):
    """What a batch did: where the cursor goes, None if it stays; up to which key more is done; rows."""

    to: tuple[str, ...] | None
    ahead: tuple[str, ...] | None = None
    seen: int
    done: int


class Lease(Frozen):
    """A range that one worker has."""

    id: int
    pass_: int
    relation: int
    is_sweep: bool
    worker: int


def fingerprint(target: Target, policy: BackfillPolicy) -> str:
    """Digest what a walk must not change under way: table, key, expressions and predicate."""
    parts = (target.oid, policy.where, policy.set, policy.into, policy.function, policy.columns, policy.key)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def require_installed(connection: Connection) -> None:
    """Raise PreconditionFailed unless infra/target.sql was run here."""
    row = connection.execute(query("backfill", "installed")).fetchone()
    if not row or not row["is_installed"]:
        raise PreconditionFailed(
            "the tables that keep a backfill's cursor are not in this database, or not ours to write, "
            "or of an earlier version",
            hint="run infra/target.sql here, as superuser or owner of the database",
        )
    if row["in_recovery"]:
        raise PreconditionFailed("the server is a standby: it changes nothing", hint="name the primary")


def require_same(relation: Leaf | Target, there: int | None) -> None:
    """Raise PreconditionFailed when another table has taken the name."""
    if there != relation.oid:
        raise PreconditionFailed(
            f"'{relation.label}' is no longer the table that it was when the walk began",
            hint="look who replaced it; then 'pgvigil backfill restart' and run it again",
        )


def read(session: Session, name: str) -> State | None:
    """Read the state of a backfill, None for one that was never run here."""
    with session.transaction() as connection:
        return _state(connection, "read", name)


def _state(connection: Connection, block: str, name: str) -> State | None:
    row = connection.execute(query("backfill", block), {"name": name}).fetchone()
    return State.model_validate({**row, "pass_": row["pass"]}) if row else None


class Ledger:
    """The open state of one backfill under one fencing token."""

    def __init__(self, name: str, fence: int) -> None:
        self.name = name
        self.fence = fence

    def renew(self, connection: Connection, progress: str) -> dict[str, Any]:
        """Give the sign of life and read what people want; raises Fenced."""
        values = {"name": self.name, "fence": self.fence, "lease": LEASE, "progress": progress}
        row = connection.execute(query("backfill", "renew"), values).fetchone()
        return row or self._fenced()

    def let_go(self, connection: Connection, progress: str) -> None:
        """End the lease, so that the next runner need not wait."""
        values = {"name": self.name, "fence": self.fence, "progress": progress}
        connection.execute(query("backfill", "let_go"), values)

    def begin_pass(self, connection: Connection, rows: int) -> int:
        """Count a new walk and drop the ranges of those before; raises Fenced."""
        values = {"name": self.name, "fence": self.fence, "rows": rows}
        row = connection.execute(query("backfill", "begin_pass"), values).fetchone() or self._fenced()
        connection.execute(query("backfill", "forget_ranges"), {"name": self.name, "pass": row["pass"]})
        return int(row["pass"])

    def add_ranges(self, connection: Connection, number: int, leaf: Leaf, ends: Sequence[Key]) -> None:
        """Cover a table from before its first row to the last of `ends`, without a hole."""
        after: Key | None = None
        for end in ends:
            values = self._range(number, leaf, after, end)
            connection.execute(query("backfill", "add_range"), values)
            after = end

    def _range(self, number: int, leaf: Leaf, after: Key | None, through: Key) -> dict[str, Any]:
        return {
            "name": self.name,
            "pass": number,
            "relation": leaf.oid,
            "key": leaf.walk,
            "after": list(after) if after is not None else None,
            "through": list(through),
            "fence": self.fence,
        }

    def lease(self, connection: Connection, worker: int, workers: int) -> Lease | None:
        """Take the next range that is due, None when there is none; `workers` is how many there are."""
        values = {"name": self.name, "fence": self.fence, "worker": worker, "workers": workers}
        row = connection.execute(query("backfill", "lease_range"), values).fetchone()
        return (
            Lease(
                id=row["id"],
                pass_=row["pass"],
                relation=row["relation"],
                is_sweep=row["is_sweep"],
                worker=worker,
            )
            if row
            else None
        )

    def release(self, connection: Connection, lease: Lease) -> None:
        """Give back a range that is not finished."""
        values = {"id": lease.id, "fence": self.fence, "worker": lease.worker}
        connection.execute(query("backfill", "release_range"), values)

    def claim(self, connection: Connection, lease: Lease, leaf: Leaf) -> Claimed | None:
        """Begin a batch: read and hold the range; None where its table or its key is no longer there.

        Raises Fenced, and PreconditionFailed when another table has taken the name.
        """
        values = {"id": lease.id, "fence": self.fence, "table": leaf.quoted}
        row = connection.execute(query("backfill", "claim"), values).fetchone() or self._fenced()
        if row["is_partition"] is None or row["is_partition"] != leaf.is_partition:
            return None
        if row["key"] != leaf.walk:
            return None
        require_same(leaf, row["there"])
        reached = row["reached"] if row["reached"] is not None else row["after"]
        return Claimed(
            reached=tuple(reached) if reached is not None else None,
            ahead=tuple(row["ahead"]) if row["ahead"] is not None else None,
            through=tuple(row["through"]),
            attempts=row["attempts"],
            is_sweep=row["is_sweep"],
            pass_=row["pass"],
            wanted=row["wanted"],
            overrides=Overrides.model_validate(row["overrides"]),
            hot=row["hot"],
            lsn=int(row["lsn"]),
        )

    def advance(self, connection: Connection, lease: Lease, step: Step) -> dict[str, Any]:
        """End a batch: move the cursor and count; raises Fenced, by which the batch is undone."""
        values: dict[str, Any] = {"id": lease.id, "fence": self.fence, "seen": step.seen, "done": step.done}
        values |= {name: key and list(key) for name, key in (("to", step.to), ("ahead", step.ahead))}
        return connection.execute(query("backfill", "advance"), values).fetchone() or self._fenced()

    def add_sweep(self, connection: Connection, lease: Lease, leaf: Leaf, claimed: Claimed, to: Key) -> None:
        """Note an interval of which others held rows, to come back to it."""
        values = self._range(lease.pass_, leaf, claimed.reached, to)
        attempts = claimed.attempts + 1 if claimed.is_sweep else 1
        connection.execute(query("backfill", "add_sweep"), {**values, "attempts": attempts})

    def abandon(self, connection: Connection, lease: Lease) -> None:
        """Close a range whose table has left the walk."""
        connection.execute(query("backfill", "abandon"), {"id": lease.id, "fence": self.fence})

    def quarantine(self, connection: Connection, relation: int, key: Key, sqlstate: str, message: str) -> int:
        """Put a row aside with the reason, and return how many are."""
        values = {"name": self.name, "relation": relation, "key": list(key)}
        values |= {"sqlstate": sqlstate or "unknown", "message": message[:2000]}
        connection.execute(query("backfill", "quarantine"), values)
        return int(self.totals(connection)["quarantined"])

    def totals(self, connection: Connection) -> dict[str, Any]:
        """Read how far the walk is."""
        row = connection.execute(query("backfill", "totals"), {"name": self.name}).fetchone()
        return cast("dict[str, Any]", row)

    def holes(self, connection: Connection, number: int) -> int:
        """Count what the ranges of a walk do not cover, or have not finished."""
        row = connection.execute(query("backfill", "holes"), {"name": self.name, "pass": number}).fetchone()
        return int(row["holes"]) if row else 1

    def finish(self, connection: Connection) -> None:
        """Note that the end was proven."""
        connection.execute(query("backfill", "finish"), {"name": self.name, "fence": self.fence})

    def _fenced(self) -> Any:
        raise Fenced(
            f"our token {self.fence} of backfill '{self.name}' is not valid any more: "
            "another runner has taken over, or a failover has lost it",
            hint="'pgvigil backfill show' tells whether another run goes on; if none does, run it again",
        )


def take_over(session: Session, policy: BackfillPolicy, target: Target, name: str) -> tuple[Ledger, State]:
    """Take the token of a backfill and return the state that was found.

    Waits some seconds for the sessions of a runner that was just killed. Raises Busy while another runs it,
    ConfigError when it was begun with another definition.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return _take_over(session, policy, target, name)
        except Busy:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL)


def _take_over(session: Session, policy: BackfillPolicy, target: Target, name: str) -> tuple[Ledger, State]:
    bounds = Bounds(statement=policy.batch.longest * 2, lock=policy.batch.longest * 2)
    definition = {
        "name": name,
        "relation": target.oid,
        "fingerprint": fingerprint(target, policy),
        "definition": policy.model_dump_json(),
    }
    with session.transaction(bounds) as connection:
        connection.execute(query("backfill", "register"), definition)
        state = _state(connection, "read_for_update", name)
        assert state  # noqa: S101 - registered just now
        _require_free(state)
        if state.fingerprint != definition["fingerprint"]:
            _require_nothing_open(state)
            connection.execute(query("backfill", "redefine"), definition)
        return _seize(connection, name, session.name), state


def seize(session: Session, name: str) -> Ledger:
    """Take the token of a backfill that is on record, whatever its definition; raises Busy."""
    with session.transaction() as connection:
        state = _state(connection, "read_for_update", name)
        assert state  # noqa: S101 - the caller read it
        _require_free(state)
        return _seize(connection, name, session.name)


def _seize(connection: Connection, name: str, runner: str) -> Ledger:
    values = {"name": name, "runner": runner, "lease": LEASE}
    row = connection.execute(query("backfill", "take_over"), values).fetchone()
    assert row  # noqa: S101 - it was locked by us
    return Ledger(name, row["fence"])


def _require_free(state: State) -> None:
    if state.is_held:
        raise Busy(
            f"backfill '{state.name}' is run by '{state.runner}'",
            hint="steer it with 'pgvigil backfill', or end that run; its lease goes with it",
        )


def _require_nothing_open(state: State) -> None:
    if state.state != "done" and state.pass_ > 0:
        raise ConfigError(
            f"backfill '{state.name}' was begun with another definition of table, set, where or key",
            hint="restore that and finish it, or give its cursor up with 'pgvigil backfill restart'",
        )
