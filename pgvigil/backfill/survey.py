"""Before the first batch: whether the definition can work at all, and what it would cost."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pgvigil.backfill import catalog, statements
from pgvigil.backfill.batch import Job, Part, apply_function, next_end
from pgvigil.backfill.facts import Forecast, Plan
from pgvigil.backfill.health import read_signal
from pgvigil.backfill.remedy import Remedy, remedy
from pgvigil.errors import DatabaseFailed, PreconditionFailed
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgvigil.backfill.facts import Key, Leaf, Target
    from pgvigil.backfill.session import Session
    from pgvigil.policies.backfills import BackfillPolicy, Limits
    from pgvigil.postgres import Connection

SAMPLE_ROWS = 20_000
SAMPLE_BATCH = 1000
LEAVES_SAMPLED = 3
ALONE = 10  # rows tried one by one where a batch fails
UPDATE_EVENT, INSERT_EVENT = 16, 4
_FAULTS = {"42", "3F", "0A", "21", "22"}  # syntax, names, types, rights; values that constants cannot have
_NO_RIGHT = "42501"
_NO_SCANS = ("enable_seqscan", "enable_bitmapscan", "enable_sort", "enable_incremental_sort")
_BY_INDEX = {"Index Scan", "Index Only Scan", "Tid Range Scan"}
_SCANS = {"Seq Scan", "Sort", "Incremental Sort", "Bitmap Heap Scan"}


class Undo(Exception):
    """Ends a transaction that was only tried."""


def require_index(session: Session, job: Job, leaf: Leaf) -> str:
    """Ask the planner how the next batch is found; raises PreconditionFailed for a scan unless forced."""
    statement = statements.explain(statements.boundary(job.target, leaf, span="next"))
    with session.transaction(job.reading) as connection:
        key = _any_key(connection, job.target, leaf)
        if key is None:
            return f"{leaf.label}: no rows"
        for setting in _NO_SCANS:
            connection.execute("SELECT pg_catalog.set_config(%s, 'off', true)", (setting,))
        values: dict[str, Any] = {"skip": SAMPLE_BATCH, "most0": key[0]}
        values |= statements.parameters("after", key) | statements.parameters("to", key)
        found = set(_nodes(_plan(connection, statement, values)))
    how = leaf.index or "block ranges (ctid), as there is no usable unique index"
    if found & _SCANS and leaf.index and not job.policy.force:
        raise PreconditionFailed(
            f"the next batch of '{leaf.label}' would be found by {', '.join(sorted(found & _SCANS))}, "
            f"not by index '{leaf.index}'",
            hint="name another unique index in 'key', or set 'force: true' to scan the table for each batch",
        )
    return f"{leaf.label}: by {how}"


def _any_key(connection: Connection, target: Target, leaf: Leaf) -> Key | None:
    if leaf.index is None:
        return ("(0,0)",) if leaf.size else None
    row = connection.execute(statements.newest(target, leaf), {}).fetchone()
    return tuple(row[f"k{place}"] for place in range(len(leaf.key))) if row else None


def _plan(connection: Connection, statement: Any, values: dict[str, Any]) -> dict[str, Any]:
    row = connection.execute(statement, values).fetchone()
    assert row  # noqa: S101 - EXPLAIN always answers
    found: dict[str, Any] = row["QUERY PLAN"][0]
    return found


def _nodes(plan: dict[str, Any]) -> Iterator[str]:
    node = plan.get("Plan", plan)
    yield node["Node Type"]
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def check_statement(session: Session, job: Job) -> None:
    """Let the server read the change without doing it: syntax, names, types, rights.

    Raises PreconditionFailed for what it does not take.
    """
    with told_as_fault():
        _check_statement(session, job)


@contextmanager
def told_as_fault() -> Iterator[None]:
    """Tell what the server cannot read as it stands from a server that cannot be asked."""
    try:
        yield
    except DatabaseFailed as error:
        if error.sqlstate[:2] not in _FAULTS:
            raise
        hint = (
            "make our role a member of the table's owner: GRANT its owner TO this role"
            if error.sqlstate == _NO_RIGHT
            else "correct 'table', 'set', 'where' or 'into' in the fleet file; nothing was changed"
        )
        raise PreconditionFailed(str(error.context.get("said") or error.message), hint=hint) from error


def unread_signals(session: Session, limits: Limits) -> Iterator[str]:
    """Ask each question of people's own once, and say why one has no answer."""
    for signal in limits.signals:
        try:
            with session.transaction() as connection:
                read_signal(connection, signal.sql)
        except DatabaseFailed as error:
            yield f"signal '{signal.name}' cannot be read: {error.context.get('said') or error.message}"


def _check_statement(session: Session, job: Job) -> None:
    policy = job.policy
    for leaf in job.target.leaves:
        with session.transaction(job.reading) as connection:
            for text in (policy.where, *policy.set.values()):
                connection.execute(statements.explain(statements.closed(job.target, leaf, text)), {})
        with session.transaction(job.reading) as connection:
            key = _any_key(connection, job.target, leaf)
            connection.execute(statements.explain(statements.left(job.target, job.policy)), {})
            if key is None or job.function:
                continue
            statement = statements.change(job.target, leaf, job.policy, span="first")
            values = statements.parameters("to", key)
            connection.execute(statements.explain(statement), values)


def read_plan(session: Session, job: Job, walks: Sequence[str], forecast: Forecast) -> Plan:
    """Gather what a run would do."""
    policy, target = job.policy, job.target
    columns = {"columns": list(policy.targets)}
    with session.transaction() as connection:
        triggers, indexed = set[str](), set[str]()
        for leaf in target.leaves:
            values = {**columns, "relation": leaf.oid, "event": UPDATE_EVENT}
            if policy.into:
                into = catalog.resolve(connection, policy.into)
                values |= {"relation": into["oid"], "event": INSERT_EVENT}
            rows = connection.execute(query("backfill", "triggers"), values).fetchall()
            triggers |= {f"{row['name']} ({row['function']})" for row in rows}
            if not policy.into:
                indexed |= set(catalog.indexed(connection, policy, leaf.oid))
    return Plan(
        table=f"{target.label}, about {target.rows} rows in {len(target.leaves)} part(s)",
        writes=_writes(policy),
        where=policy.where,
        walks=tuple(walks),
        indexed=tuple(sorted(indexed)),
        triggers=tuple(sorted(triggers)),
        forecast=forecast,
    )


def _writes(policy: BackfillPolicy) -> tuple[str, ...]:
    if policy.function:
        return (f"{', '.join(policy.columns)} from {policy.function}",)
    place = f"{policy.into}." if policy.into else ""
    return tuple(f"{place}{column} = {expression}" for column, expression in policy.set.items())


# --- the forecast ---


@dataclass
class _Sample:
    """What was seen in the batches that were done and undone."""

    rows: int = 0
    changed: int = 0
    seconds: float = 0.0
    wal: int = 0
    hot: int = 0
    updated: int = 0


def forecast(session: Session, job: Job, *, is_first: bool) -> tuple[Forecast, list[str]]:
    """Change sampled rows in transactions that are rolled back, and project; second, what failed there.

    Raises PreconditionFailed when a changed row still meets `where`, and, for a backfill that was never run,
    when every sampled row fails.
    """
    share, looked = _share(session, job)
    total, faults = _Sample(), list[str]()
    for leaf in sorted(job.target.leaves, key=lambda leaf: -leaf.size)[:LEAVES_SAMPLED]:
        keys = _keys(session, job, leaf)
        found = [_sample(session, part, total) for part in _parts(session, job, leaf, keys)]
        if any(found):  # one bad row fails its whole batch
            found = [
                _sample(session, Part(job, leaf, None, key, is_one=True), total) for key in _spread(keys)
            ]
        faults += [fault for fault in found if fault]
    if faults and not total.changed and is_first:
        raise PreconditionFailed(
            f"every row that was sampled fails, one with: {faults[0]}",
            hint="correct 'set' and 'where' in the fleet file; nothing was changed",
        )
    return _project(job, total, share, looked), faults


def _share(session: Session, job: Job) -> tuple[float, int]:
    """Estimate the part of the rows that is still to change, and from how many rows."""
    rows = todo = 0
    for leaf in job.target.leaves:
        with session.transaction(job.reading) as connection:
            statement = statements.sample_share(job.target, leaf, job.policy)
            row = connection.execute(statement, {"percent": _percent(leaf)}).fetchone()
        assert row  # noqa: S101 - an aggregate always answers
        rows, todo = rows + row["rows"], todo + row["todo"]
    return (todo / rows if rows else 0.0), rows


def _percent(leaf: Leaf) -> float:
    return min(100.0, 100 * SAMPLE_ROWS / max(1, leaf.rows)) if leaf.rows > SAMPLE_ROWS else 100.0


def _keys(session: Session, job: Job, leaf: Leaf) -> list[Key]:
    with session.transaction(job.reading) as connection:
        values = {"percent": _percent(leaf)}
        rows = connection.execute(statements.sample_keys(job.target, leaf), values).fetchall()
    return [tuple(row[f"k{place}"] for place in range(len(leaf.key))) for row in rows]


def _spread(keys: Sequence[Key]) -> list[Key]:
    return [keys[len(keys) * n // ALONE] for n in range(ALONE)] if len(keys) >= ALONE else list(keys)


def _parts(session: Session, job: Job, leaf: Leaf, keys: Sequence[Key]) -> list[Part]:
    """Choose three stretches of the key, or all of a small table."""
    if not keys:
        return []
    starts = [None] if len(keys) <= 3 * SAMPLE_BATCH else [keys[len(keys) * n // 6] for n in (1, 3, 5)]
    with session.transaction(job.reading) as connection:
        rests = [Part(job, leaf, start, keys[-1]) for start in starts]
        return [replace(rest, to=next_end(connection, rest, SAMPLE_BATCH).key) for rest in rests]


def _sample(session: Session, part: Part, total: _Sample) -> str:
    """Do one batch and undo it; returns what failed, if not by a lock."""
    try:
        with session.transaction(part.job.bounds) as connection:
            _try(connection, part, total)
            raise Undo  # noqa: TRY301 - the way out of a transaction that was only tried
    except Undo:
        return ""
    except DatabaseFailed as error:
        if remedy(error) is Remedy.STOP:
            raise
        return str(error.context.get("said")) if remedy(error) is Remedy.HALVE else ""


def _try(connection: Connection, part: Part, total: _Sample) -> None:
    job = part.job
    before = part.left(connection)
    if before == 0:
        return
    then = _changed(connection, part)
    if job.function:
        began, lsn = time.monotonic(), _lsn(connection)
        apply_function(connection, part)
        total.seconds += time.monotonic() - began
        total.wal += _lsn(connection) - lsn
    else:
        statement = statements.change(job.target, part.leaf, job.policy, span=part.span)
        plan = _plan(connection, statements.explain_analyze(statement), part.parameters)
        total.seconds += plan["Execution Time"] / 1000
        total.wal += plan["Plan"]["WAL Bytes"]
    after = part.left(connection)
    if after:
        raise PreconditionFailed(
            f"{after} of {before} rows of '{part.leaf.label}' still meet 'where' after they were changed",
            hint="'where' must be false for a row that is done; nothing was changed",
        )
    total.changed += before
    now = _changed(connection, part)
    total.updated, total.hot = total.updated + now[0] - then[0], total.hot + now[1] - then[1]


def _changed(connection: Connection, part: Part) -> tuple[int, int]:
    """Return how many rows the session has updated, and how many of them heap-only."""
    row = connection.execute(query("backfill", "changed_so_far"), {"relation": part.leaf.oid}).fetchone()
    assert row  # noqa: S101 - an aggregate always answers
    return row["updated"], row["hot"]


def _lsn(connection: Connection) -> int:
    """Where the server writes WAL now; others' is in between, so what a function costs is at most that."""
    row = connection.execute(query("backfill", "lsn")).fetchone()
    assert row  # noqa: S101 - it always answers
    return int(row["lsn"])


def _project(job: Job, total: _Sample, share: float, looked: int) -> Forecast:
    rows = (
        int(share * job.target.rows)
        if looked > SAMPLE_ROWS / 2
        else int(share * max(looked, job.target.rows))
    )
    if not total.changed or not total.seconds:
        return Forecast(sampled_rows=looked, changed_rows=total.changed, rows=rows)
    width = sum(leaf.size for leaf in job.target.leaves) / max(1, job.target.rows)
    hot = total.hot / total.updated if total.updated else None
    return Forecast(
        sampled_rows=looked,
        changed_rows=total.changed,
        rows=rows,
        seconds=rows * total.seconds / total.changed,
        wal_bytes=int(rows * total.wal / total.changed),
        growth_bytes=int(rows * width * (1 - (hot or 0))),
        hot_ratio=hot,
        rows_per_second=total.changed / total.seconds,
    )
