"""One batch: claim the range, find the next rows, change them, move the cursor; one transaction."""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgvigil import postgres
from pgvigil.backfill import statements
from pgvigil.backfill.ledger import Overrides, Step
from pgvigil.backfill.remedy import Remedy, remedy
from pgvigil.backfill.session import Bounds
from pgvigil.backfill.turns import STRETCHES, Blocks, Course, End
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
            by_index=True,
        )

    @property
    def reading(self) -> Bounds:
        """The bounds of what only looks."""
        return Bounds(search_path=self.policy.search_path)

    def leaf(self, oid: int) -> Leaf | None:
        """Return the part of the table with this OID."""
        return next((leaf for leaf in self.target.leaves if leaf.oid == oid), None)


@dataclass(frozen=True)
class Order:
    """How the next rows are taken: so many, in turns or not, waiting for those that others hold or not.

    With `course`, on the course that an earlier batch began. With `aside`, a row that fails goes into
    quarantine.
    """

    rows: int
    turns: int = 1
    course: Course | None = None
    skip_locked: bool = False
    aside: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a batch did: rows seen and done, and those of them that stayed in their page.

    Seconds, and bytes of WAL of the whole server meanwhile. `course` is where it was in which course.
    """

    wanted: Wanted
    overrides: Overrides
    course: Course | None = None
    seen: int = 0
    done: int = 0
    hot: int = 0
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


def run_batch(session: Session, job: Job, lease: Lease, order: Order) -> Outcome:
    """Change the next rows of a range and commit them with the cursor.

    With `skip_locked`, rows that others hold are noted for a sweep instead of waited for. Raises
    DatabaseFailed, Fenced; then nothing has happened. Raises PreconditionFailed, and puts nothing aside,
    when as many are as the policy allows.
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
        course = _course(connection, job, leaf, claimed, order)
        part = Part(job, leaf, course.after, course.end.key, course, is_one=order.aside)
        if order.aside:
            done = change_or_quarantine(connection, part)
        else:
            done = change(connection, part, skip_locked=order.skip_locked)
        if order.skip_locked and part.left(connection):
            job.ledger.add_sweep(connection, lease, leaf, claimed, course.end.key)
        step = _step(course, done)
        row = job.ledger.advance(connection, lease, step)
        spent, wal = time.monotonic() - began, int(row["lsn"]) - claimed.lsn
    hot = int(row["hot"]) - claimed.hot
    return Outcome("run", claimed.overrides, course, step.seen, done, hot, spent, wal, row["is_done"])


def _course(connection: Connection, job: Job, leaf: Leaf, claimed: Claimed, order: Order) -> Course:
    """Go on with a course, unless the cursor tells that its last batch was committed or undone after all."""
    if order.course and order.course.cursor == claimed.reached:
        return order.course
    ends = _neighbours(connection, job, leaf, claimed, order) if order.turns > 1 else ()
    if ends:
        return Course(claimed.reached, ends, order.turns)
    end = next_end(connection, Part(job, leaf, claimed.reached, claimed.limit), order.rows)
    return Course(claimed.reached, (end,), is_scattered=order.turns > 1)


def _neighbours(
    connection: Connection, job: Job, leaf: Leaf, claimed: Claimed, order: Order
) -> tuple[End, ...]:
    """Find the next stretches of rows that are neighbours in the table; none if they are not."""
    rows = order.rows * order.turns
    parts = _stretches(connection, Part(job, leaf, claimed.reached, claimed.limit), rows)
    ends: list[End] = []
    for part, end in parts:
        blocks = _blocks(connection, part, rows)
        if blocks is None:
            break
        ends.append(replace(end, blocks=blocks))
    return tuple(ends)


def _stretches(connection: Connection, rest: Part, rows: int) -> list[tuple[Part, End]]:
    """Cut stretches of so many rows off; where fewer are left, of half of them."""
    found = _cut(connection, rest, rows)
    if found and found[-1][1].rows:
        return found
    statement = statements.rows_in(rest.job.target, rest.leaf, span=rest.span)
    row = connection.execute(statement, rest.parameters).fetchone()
    half = -(-int(row["rows"]) // STRETCHES) if row else 0
    return _cut(connection, rest, half) if half else []


def _cut(connection: Connection, rest: Part, rows: int) -> list[tuple[Part, End]]:
    found: list[tuple[Part, End]] = []
    while len(found) < STRETCHES and rest.after != rest.to:
        end = next_end(connection, rest, rows)
        found.append((replace(rest, to=end.key), end))
        rest = replace(rest, after=end.key)
    return found


def _blocks(connection: Connection, part: Part, rows: int) -> Blocks | None:
    """Find where an interval of so many rows lies; None if that is too far apart to be read through."""
    leaf = part.leaf
    row = connection.execute(
        statements.edges(part.job.target, leaf, span=part.span), part.parameters
    ).fetchone()
    if not row or row["low"] is None:
        return None
    first, last = _block(row["low"]), _block(row["high"])
    most = 2 + int(2 * rows * leaf.blocks_per)
    return (f"({first},0)", f"({last},{statements.LAST_IN_BLOCK})") if last - first <= most else None


def _step(course: Course, done: int) -> Step:
    """Tell the ledger of a batch: the last turn moves the cursor, each has seen its part of the rows."""
    is_last, (share, rest) = course.turn is None, divmod(course.end.rows, course.turns)
    seen = share + (rest if is_last else 0) if course.end.rows else done
    return Step(to=course.end.key if is_last else None, ahead=course.ahead, seen=seen, done=done)


def change_or_quarantine(connection: Connection, part: Part) -> int:
    """Change the one row of an interval, or put it aside with what the server says of it."""
    ledger, policy = part.job.ledger, part.job.policy
    try:
        with postgres.savepoint(connection):
            return change(connection, part)
    except DatabaseFailed as error:
        if remedy(error) is not Remedy.HALVE:
            raise
        said = str(error.context.get("said") or error.message)
        aside = ledger.quarantine(connection, part.leaf.oid, part.to, error.sqlstate, said)
        _require_few(aside, policy.quarantine, f"{error.sqlstate}: {said}")
        return 0


def _require_few(aside: int, most: int, last: str) -> None:
    if aside > most:
        raise PreconditionFailed(
            f"more than {most} rows cannot be changed, the last with {last}",
            hint="correct 'set' and 'where', or the rows, or raise 'quarantine'; then run it again",
        )


def next_end(connection: Connection, rest: Part, rows: int) -> End:
    """Find the key up to which the first so many rows of an interval go."""
    leaf, near = rest.leaf, None
    statement = statements.boundary(rest.job.target, leaf, span=rest.span)
    values = rest.parameters | {"skip": rows - 1}
    if leaf.index is None:
        near = _near(rest, rows)
        values["most0"] = near
    row = connection.execute(statement, values).fetchone()
    if row:
        return End(tuple(row[f"k{place}"] for place in range(len(leaf.key))), rows)
    if near is not None and _block(near) < _block(rest.to[0]):
        return End((near,))
    return End(rest.to)


def _near(rest: Part, rows: int) -> str:
    """Bound the search for a ctid, which has no index, to about twice the blocks that so many rows need."""
    start = _block(rest.after[0]) if rest.after else 0
    end = start + 1 + int(2 * rows * rest.leaf.blocks_per)
    return f"({min(end, _block(rest.to[0]))},{statements.LAST_IN_BLOCK})"


def _block(ctid: str) -> int:
    return int(ctid.strip("()").partition(",")[0])


@dataclass(frozen=True)
class Part:
    """An interval of one table's key, `after` not included, or a turn's part of it; or the row of `to`."""

    job: Job
    leaf: Leaf
    after: Key | None
    to: Key
    course: Course | None = None
    is_one: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the interval's statements."""
        values: dict[str, Any] = {}
        if self.is_turn and self.course and self.course.end.blocks:
            low, high = self.course.end.blocks
            values = {"low": low, "high": high, "turn": self.course.turn, "most": self.course.turns - 1}
        return values | statements.parameters("after", self.after) | statements.parameters("to", self.to)

    @property
    def is_turn(self) -> bool:
        """Whether only one turn's part of the rows is meant."""
        return self.course is not None and self.course.turn is not None

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
    statement = statements.change(job.target, part.leaf, job.policy, span=part.span, turn=part.is_turn)
    return connection.execute(statement, part.parameters).rowcount


def _change_unlocked(connection: Connection, part: Part, *, wait: bool) -> int:
    job, policy = part.job, part.job.policy
    statement = statements.change_unlocked(
        job.target, part.leaf, policy, span=part.span, wait=wait, turn=part.is_turn
    )
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
    wait = not skip_locked
    read = statements.lock_rows(job.target, part.leaf, policy, span=part.span, wait=wait, turn=part.is_turn)
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
