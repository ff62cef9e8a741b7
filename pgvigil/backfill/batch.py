"""One batch: claim the range, find the next rows, change them, move the cursor; one transaction."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgvigil.backfill import statements
from pgvigil.backfill.ledger import Overrides
from pgvigil.backfill.session import Bounds
from pgvigil.errors import ConfigError, DatabaseFailed, PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.backfill.facts import Key, Leaf, Target
    from pgvigil.backfill.ledger import Claimed, Lease, Ledger, Wanted
    from pgvigil.backfill.session import Session
    from pgvigil.policies.backfills import BackfillPolicy
    from pgvigil.postgres import Connection

EXTERNAL_ROUTINE = "38000"


@dataclass(frozen=True)
class Job:
    """What every batch of a backfill needs: the token, the table, the policy, and the function if any."""

    name: str
    ledger: Ledger
    target: Target
    policy: BackfillPolicy
    function: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None

    @property
    def bounds(self) -> Bounds:
        """The bounds of a batch: nobody waits for it longer than `longest`."""
        batch = self.policy.batch
        return Bounds(
            statement=batch.longest,
            lock=batch.lock_wait,
            search_path=self.policy.search_path,
            is_durable=False,
        )

    @property
    def reading(self) -> Bounds:
        """The bounds of what only looks."""
        return Bounds(search_path=self.policy.search_path)

    def leaf(self, oid: int) -> Leaf | None:
        """Return the part of the table with this OID."""
        return next((leaf for leaf in self.target.leaves if leaf.oid == oid), None)


@dataclass(frozen=True)
class Outcome:
    """What a batch did: rows seen and done, seconds, bytes of WAL of the whole server meanwhile."""

    wanted: Wanted
    overrides: Overrides
    seen: int = 0
    done: int = 0
    seconds: float = 0.0
    wal: int = 0
    is_over: bool = False


def load_function(name: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Import `module:function`; raises ConfigError."""
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"function '{name}' cannot be imported: {error}", hint="check PYTHONPATH and the name"
        ) from error
    return found


def run_batch(session: Session, job: Job, lease: Lease, rows: int, *, skip_locked: bool = False) -> Outcome:
    """Change the next rows of a range and commit them with the cursor.

    With `skip_locked`, rows that others hold are noted for a sweep instead of waited for. Raises
    DatabaseFailed, Fenced; then nothing has happened.
    """
    leaf = job.leaf(lease.relation)
    assert leaf  # noqa: S101 - the worker looked
    with session.transaction(job.bounds) as connection:
        began = time.monotonic()
        claimed = job.ledger.claim(connection, lease, leaf)
        if claimed is None:
            job.ledger.abandon(connection, lease)
            return Outcome("run", Overrides(), is_over=True)
        if claimed.wanted != "run":
            return Outcome(claimed.wanted, claimed.overrides)
        to, seen = next_end(connection, job, leaf, claimed, rows)
        part = Part(job, leaf, claimed.reached, to)
        done = change(connection, part, skip_locked=skip_locked)
        if skip_locked and part.left(connection):
            job.ledger.add_sweep(connection, lease, claimed, to)
        row = job.ledger.advance(connection, lease, to, seen or done, done)
        spent, wal = time.monotonic() - began, int(row["lsn"]) - claimed.lsn
    return Outcome("run", claimed.overrides, seen or done, done, spent, wal, row["is_done"])


def quarantine_next(session: Session, job: Job, lease: Lease, error: DatabaseFailed) -> Outcome | None:
    """Put the next row of a range aside and step over it; None when people want something else.

    Raises PreconditionFailed, and puts nothing aside, when there are as many as the policy allows.
    """
    leaf = job.leaf(lease.relation)
    assert leaf  # noqa: S101 - the worker looked
    with session.transaction(job.bounds) as connection:
        claimed = job.ledger.claim(connection, lease, leaf)
        if claimed is None or claimed.wanted != "run":
            return None
        to, seen = next_end(connection, job, leaf, claimed, 1)
        if not seen:  # somebody has deleted it
            return None
        said = str(error.context.get("said") or error.message)
        aside = job.ledger.quarantine(connection, leaf.oid, to, error.sqlstate, said)
        _require_few(aside, job.policy.quarantine, f"{error.sqlstate}: {said}")
        row = job.ledger.advance(connection, lease, to, 1, 0)
    return Outcome("run", claimed.overrides, 1, 0, is_over=row["is_done"])


def _require_few(aside: int, most: int, last: str) -> None:
    if aside > most:
        raise PreconditionFailed(
            f"more than {most} rows cannot be changed, the last with {last}",
            hint="correct 'set' and 'where', or the rows, or raise 'quarantine'; then run it again",
        )


def next_end(connection: Connection, job: Job, leaf: Leaf, claimed: Claimed, rows: int) -> tuple[Key, int]:
    """Find the key up to which the next batch goes, and how many rows that are if it is known."""
    statement = statements.boundary(job.target, leaf, span="first" if claimed.reached is None else "next")
    values: dict[str, Any] = {"skip": rows - 1}
    values |= statements.parameters("after", claimed.reached) | statements.parameters("to", claimed.through)
    near = None
    if leaf.index is None:
        near = _near(leaf, claimed, rows)
        values["most0"] = near
    row = connection.execute(statement, values).fetchone()
    if row:
        return tuple(row[f"k{place}"] for place in range(len(leaf.key))), rows
    if near is not None and _block(near) < _block(claimed.through[0]):
        return (near,), 0
    return claimed.through, 0


def _near(leaf: Leaf, claimed: Claimed, rows: int) -> str:
    """Bound the search for a ctid, which has no index, to about twice the blocks that so many rows need."""
    start = _block(claimed.reached[0]) if claimed.reached else 0
    end = start + 1 + int(2 * rows * leaf.blocks_per)
    return f"({min(end, _block(claimed.through[0]))},{statements.LAST_IN_BLOCK})"


def _block(ctid: str) -> int:
    return int(ctid.strip("()").partition(",")[0])


@dataclass(frozen=True)
class Part:
    """An interval of one table's key, `after` not included; or the one row of key `to`."""

    job: Job
    leaf: Leaf
    after: Key | None
    to: Key
    is_one: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the interval's statements."""
        return statements.parameters("after", self.after) | statements.parameters("to", self.to)

    @property
    def span(self) -> statements.Span:
        """How the interval is written."""
        if self.is_one:
            return "one"
        return "first" if self.after is None else "next"

    def left(self, connection: Connection) -> int:
        """Count the rows of the interval that are still to change."""
        job = self.job
        statement = statements.left_in(job.target, self.leaf, job.policy, span=self.span)
        row = connection.execute(statement, self.parameters).fetchone()
        return int(row["left"]) if row else 0


def change(connection: Connection, part: Part, *, skip_locked: bool = False) -> int:
    """Change the rows of an interval and return how many they were."""
    job = part.job
    if job.function:
        return apply_function(connection, part, skip_locked=skip_locked)
    if skip_locked or job.policy.before_images:
        return _change_unlocked(connection, part, wait=not skip_locked)
    statement = statements.change(job.target, part.leaf, job.policy, span=part.span)
    return connection.execute(statement, part.parameters).rowcount


def _change_unlocked(connection: Connection, part: Part, *, wait: bool) -> int:
    job, policy = part.job, part.job.policy
    statement = statements.change_unlocked(job.target, part.leaf, policy, span=part.span, wait=wait)
    values = part.parameters | _image(part)
    cursor = connection.execute(statement, values)
    if policy.into:
        return cursor.rowcount
    row = cursor.fetchone()
    return int(row["done"]) if row else 0


def _image(part: Part) -> dict[str, Any]:
    """Return the parameters by which what rows held is kept, none if nobody wants that."""
    policy = part.job.policy
    if not policy.before_images:
        return {}
    return {
        "name": part.job.name,
        "relation": part.leaf.oid,
        "key_columns": [column.name for column in part.leaf.key],
        "columns": list(policy.targets),
        "expires": datetime.now(UTC) + policy.before_images,
    }


def apply_function(connection: Connection, part: Part, *, skip_locked: bool = False) -> int:
    """Read and hold the rows, let the function work, and write what it gave for each."""
    job, policy = part.job, part.job.policy
    read = statements.lock_rows(job.target, part.leaf, policy, span=part.span, wait=not skip_locked)
    rows = connection.execute(read, part.parameters).fetchall()
    if not rows:
        return 0
    keys = [row.pop(statements.ROW_KEY) for row in rows]
    write = statements.write_row(job.target, part.leaf, policy)
    given, image = zip(keys, _ask(job, rows), strict=True), _image(part)
    values = [
        image | statements.parameters("key", key) | {f"new{n}": new[c] for n, c in enumerate(policy.columns)}
        for key, new in given
    ]
    with connection.cursor() as cursor:
        cursor.executemany(write, values)
    return len(values)


def _ask(job: Job, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Call the function; whatever it raises, or gives amiss, counts as a failure of these rows."""
    assert job.function  # noqa: S101 - the caller looked
    try:
        given = job.function(rows)
    except Exception as error:  # a person's code may raise anything
        raise _failed(f"{type(error).__name__}: {error}", job) from error
    if not isinstance(given, list) or not all(isinstance(new, dict) for new in given):
        raise _failed("it gave no list of dicts", job)
    wanted = set(job.policy.columns)
    if len(given) != len(rows) or any(set(new) != wanted for new in given):
        raise _failed(
            f"it gave {len(given)} rows for {len(rows)}, each must have {', '.join(job.policy.columns)}", job
        )
    return given


def _failed(what: str, job: Job) -> DatabaseFailed:
    return DatabaseFailed(
        f"function '{job.policy.function}': {what}",
        hint="correct the function, then run it again with retry_failed",
        sqlstate=EXTERNAL_ROUTINE,
        said=what,
    )
