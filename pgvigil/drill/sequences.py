"""Whether the copy's sequences would hand out a value twice, or have run away.

Sequences obey no transaction and no snapshot, and PostgreSQL logs them ahead of use: a recovered sequence
stands up to 32 values, and what a session may cache, beyond the last one given out. So the copy's next
value must lie between the source's as read before the mark, and the one read after it plus that reserve.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pgvigil.drill.judgement import Judgement, bounded, listed, passed, refuted, unknown
from pgvigil.errors import DatabaseFailed
from pgvigil.postgres import sql, translated
from pgvigil.reports import Check, Finding, Frozen, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pgvigil.postgres import Connection

_LOGGED_AHEAD = 32  # PostgreSQL src/backend/commands/sequence.c, SEQ_LOG_VALS
_GONE = "42P01"  # undefined table
_PASSED_BY = frozenset({_GONE, "55P03"})  # dropped meanwhile, or locked for longer than we wait
_BATCH = 200  # sequences per statement: each is locked until its end, and the lock table is shared
_EXPECTED = "no sequence behind the source, none further ahead than PostgreSQL logs ahead"

Outcome = Literal["good", "behind", "ahead", "moved"]


class SequenceState(Frozen):
    """A sequence's definition and the value that it gives out next, which may lie beyond its range.

    `next` is None for what this role may not read. `filenode` is another one after a reset by ALTER.
    """

    oid: int
    name: str
    filenode: int
    increment: int
    minimum: int
    maximum: int
    cache: int
    cycle: bool
    next: int | None


class Positions(NamedTuple):
    """One sequence at the source before the mark and after it, and in the copy."""

    before: SequenceState
    after: SequenceState
    copied: SequenceState


States = dict[int, SequenceState]


def read(connection: Connection) -> States:
    """Read every logged sequence of the session's database, by OID; works in recovery.

    One that is dropped meanwhile is left out; one that is locked is not known. Raises DatabaseFailed.
    """
    rows = connection.execute(query("drill_catalogue", "sequences")).fetchall()
    readable = [row for row in rows if row["readable"]]
    nexts: dict[int, int] = {}
    gone: set[int] = set()
    for first in range(0, len(readable), _BATCH):
        batch = readable[first : first + _BATCH]
        try:
            nexts |= _read_batch(connection, batch)
        except DatabaseFailed as error:
            if error.sqlstate not in _PASSED_BY:
                raise
            gone |= _read_singly(connection, batch, nexts)
    return {row["oid"]: _state(row, nexts.get(row["oid"])) for row in rows if row["oid"] not in gone}


def _read_batch(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    with translated(connection.info.dsn):
        found = connection.execute(_positions(rows)).fetchall()
    return {row["oid"]: row["next"] for row in found}


def _read_singly(
    connection: Connection, rows: Sequence[Mapping[str, Any]], nexts: dict[int, int]
) -> set[int]:
    """Read one by one what could not be read together; returns those that are gone."""
    gone = set()
    for row in rows:
        try:
            nexts |= _read_batch(connection, [row])
        except DatabaseFailed as error:
            if error.sqlstate not in _PASSED_BY:
                raise
            if error.sqlstate == _GONE:
                gone.add(row["oid"])
    return gone


def _positions(rows: Sequence[Mapping[str, Any]]) -> sql.Composed:
    """Compose the statement that reads where sequences stand; numeric, for the end of a bigint's range."""
    one = sql.SQL(
        "SELECT {}::bigint AS oid, last_value::numeric + CASE WHEN is_called THEN {} ELSE 0 END AS next"
        " FROM {}"
    )
    parts = [
        one.format(
            sql.Literal(row["oid"]),
            sql.Literal(row["increment"]),
            sql.Identifier(row["schema_name"], row["name"]),
        )
        for row in rows
    ]
    return sql.SQL(" UNION ALL ").join(parts)


def _state(row: Mapping[str, Any], position: int | None) -> SequenceState:
    fields = ("oid", "filenode", "increment", "minimum", "maximum", "cache", "cycle")
    return SequenceState(
        name=f"{row['schema_name']}.{row['name']}",
        next=None if position is None else int(position),
        **{field: row[field] for field in fields},
    )


def judge(subject: str, before: States, after: States, copy: States) -> Judgement:
    """Judge the sequences of one database: read at the source before the mark and after it, and in the copy.

    Those that were created or dropped meanwhile have no place to compare with; those that the copy lacks
    are the catalogue's to refute, and leave this check inconclusive.
    """
    name = f"sequences {subject}"
    lasting = sorted(before.keys() & after.keys())
    known = [
        Positions(before[oid], after[oid], copy[oid])
        for oid in lasting
        if oid in copy and None not in {before[oid].next, after[oid].next, copy[oid].next}
    ]
    bad = [each for each in known if place(each) in {"behind", "ahead"}]
    moved = [each.before.name for each in known if place(each) == "moved"]
    unread = [before[oid].name for oid in lasting if oid not in {each.before.oid for each in known}]
    checks = [_check(name, known, bad, unread)]
    if moved:
        detail = f"set anew at the source while the mark was taken: {listed(moved)}"
        checks.append(unknown(f"{name} meanwhile", _EXPECTED, detail, required=False))
    return Judgement(checks=tuple(checks), findings=bounded([_finding(subject, each) for each in bad], name))


def place(positions: Positions) -> Outcome:
    """Say where the copy's sequence stands; `moved` when the source's was set anew or went round."""
    before, after, copied = positions
    sign = 1 if before.increment > 0 else -1
    is_behind = sign * (_next(copied) - _next(before)) < 0
    is_ahead = sign * (_next(copied) - _next(after)) > _reserve(after)
    if not (is_behind or is_ahead) or _went_round(after, copied):
        return "good"
    if _was_set(before, after) or (before.cycle and before.next != after.next):
        return "moved"
    return "behind" if is_behind else "ahead"


def _was_set(before: SequenceState, after: SequenceState) -> bool:
    """Tell whether the source's sequence did anything but advance."""
    sign = 1 if before.increment > 0 else -1
    definition = {"name", "next"}
    is_same = before.model_dump(exclude=definition) == after.model_dump(exclude=definition)
    return not is_same or sign * (_next(after) - _next(before)) < 0


def _went_round(after: SequenceState, copied: SequenceState) -> bool:
    """Tell whether a cycling sequence was logged ahead over the end of its range."""
    first, last = after.minimum, after.maximum
    if after.increment < 0:
        first, last = last, first
    is_near_end = abs(last - _next(after)) <= _reserve(after)
    return after.cycle and is_near_end and abs(_next(copied) - first) <= _reserve(after)


def _reserve(state: SequenceState) -> int:
    return abs(state.increment) * (_LOGGED_AHEAD + state.cache)


def _next(state: SequenceState) -> int:
    if state.next is None:
        raise ValueError(f"the position of sequence {state.name} was not read")
    return state.next


def _check(name: str, known: Sequence[Positions], bad: Sequence[Positions], unread: Sequence[str]) -> Check:
    if bad:
        return refuted(name, _EXPECTED, [_said(each) for each in bad])
    if unread:
        return unknown(name, _EXPECTED, f"not read: {listed(unread)}")
    return passed(name, _EXPECTED, f"{len(known)} sequences")


def _said(each: Positions) -> str:
    before, after, copied = each
    return (
        f"{before.name} is {place(each)}: next {copied.next} in the copy, "
        f"{before.next} to {after.next} at the source around the mark"
    )


def _finding(subject: str, each: Positions) -> Finding:
    outcome = place(each)
    harm = "values would be given out twice" if outcome == "behind" else "values would be lost"
    return Finding(
        code=f"sequence-{outcome}",
        severity=Severity.ERROR,
        message=f"database {subject}: sequence {_said(each)}",
        hint=f"{harm}: after a restore set it with setval; find out why the backup differs",
        subject=f"{subject}: sequence {each.before.name}",
    )
