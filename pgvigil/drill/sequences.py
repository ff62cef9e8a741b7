"""Whether the copy's sequences would hand out a value twice, or have run away.

Sequences obey no transaction and no snapshot, and PostgreSQL logs them ahead of use: a recovered sequence
stands up to 32 values, and what a session may cache, beyond the last one given out. So the copy's next
value must lie between the source's as read before the mark, and the one read after it plus that reserve.
Of one that moved in between, the column that owns it tells more: its last value must have been given out.
One that was made in between has only its place after the mark, and that column.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pgvigil.drill.judgement import AGAIN, Judgement, bounded, listed, passed, refuted, unknown
from pgvigil.drill.tables import find_strangers
from pgvigil.errors import DatabaseFailed
from pgvigil.lock import LOCK_NOT_AVAILABLE
from pgvigil.postgres import sql, translated
from pgvigil.reports import Check, Finding, Frozen, Severity
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pgvigil.postgres import Connection

_LOGGED_AHEAD = 32  # PostgreSQL src/backend/commands/sequence.c, SEQ_LOG_VALS
# No relation of that name any more, or another: without such columns, or a view, which must not be read.
_ELSEWHERE = frozenset({"42P01", "42703", "42804", "42846", "55000"})
_PASSED_BY = _ELSEWHERE | {LOCK_NOT_AVAILABLE}
_LOOKS = 5  # for what gets another name while it is read
_BATCH = 200  # sequences per statement: each is locked until its end, and the lock table is shared
_PREPARE = sql.SQL("PREPARE pgvigil_sequences AS ")
_EXECUTE = sql.SQL("EXECUTE pgvigil_sequences")
_DEALLOCATE = sql.SQL("DEALLOCATE pgvigil_sequences")
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
    """One sequence at the source before the mark and after it, and in the copy, whose column has `used`."""

    before: SequenceState
    after: SequenceState
    copied: SequenceState
    used: int | None = None


States = dict[int, SequenceState]
Rows = dict[int, dict[str, Any]]
Used = dict[int, int | None]


def read(connection: Connection) -> States:
    """Read every logged sequence of the session's database, by OID; works in recovery.

    One that is dropped meanwhile is left out; one that is locked is not known, nor one that gets another
    name each time it is looked for. Raises DatabaseFailed.
    """
    left = found = _list(connection)
    nexts: dict[int, int] = {}
    for _ in range(_LOOKS):
        moved = _read_named(connection, [row for row in left.values() if row["readable"]], nexts)
        if not moved:
            break
        left = {oid: row for oid, row in _list(connection).items() if oid in moved}
        found = {oid: row for oid, row in found.items() if oid not in moved} | left
    return {oid: _state(row, nexts.get(oid)) for oid, row in found.items()}


def _list(connection: Connection) -> Rows:
    rows = connection.execute(query("drill_catalogue", "sequences")).fetchall()
    return {row["oid"]: row for row in rows}


def _read_named(connection: Connection, rows: Sequence[Mapping[str, Any]], nexts: dict[int, int]) -> set[int]:
    """Read sequences by their names; returns those that have another name now, or are gone."""
    moved: set[int] = set()
    for first in range(0, len(rows), _BATCH):
        batch = rows[first : first + _BATCH]
        try:
            moved |= _read_batch(connection, batch, nexts)
        except DatabaseFailed as error:
            if error.sqlstate not in _PASSED_BY:
                raise
            moved |= _read_singly(connection, batch, nexts)
    return moved


def _read_batch(connection: Connection, rows: Sequence[Mapping[str, Any]], nexts: dict[int, int]) -> set[int]:
    """Lock what has the names, and plan for nothing but sequences: a table would run code of its owner."""
    oids = {row["oid"] for row in rows}
    with translated(connection.info.dsn), connection.transaction():
        connection.execute(_PREPARE + _positions(rows))
        locked = connection.execute(query("drill_catalogue", "locked"), {"oids": list(oids)}).fetchall()
        is_named_so = {row["oid"] for row in locked} == oids
        found = connection.execute(_EXECUTE).fetchall() if is_named_so else []
        connection.execute(_DEALLOCATE)
    nexts |= {row["oid"]: row["next"] for row in found}
    return oids - nexts.keys()


def _read_singly(
    connection: Connection, rows: Sequence[Mapping[str, Any]], nexts: dict[int, int]
) -> set[int]:
    """Read one by one what could not be read together."""
    moved: set[int] = set()
    for row in rows:
        try:
            moved |= _read_batch(connection, [row], nexts)
        except DatabaseFailed as error:
            if error.sqlstate not in _PASSED_BY:
                raise
            if error.sqlstate != LOCK_NOT_AVAILABLE:
                moved.add(row["oid"])
    return moved


def _positions(rows: Sequence[Mapping[str, Any]]) -> sql.Composed:
    """Compose the statement that reads where sequences stand; numeric, for the end of a bigint's range."""
    one = sql.SQL(
        "SELECT tableoid::bigint AS oid, last_value::numeric + CASE WHEN is_called THEN {} ELSE 0 END AS next"
        " FROM {} WHERE tableoid = {}"
    )
    parts = [
        one.format(
            sql.Literal(row["increment"]),
            sql.Identifier(row["schema_name"], row["name"]),
            sql.Literal(row["oid"]),
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


def read_used(connection: Connection, states: Iterable[SequenceState]) -> Used:
    """Read the last values before these, by OID, that are committed in the columns that own the sequences.

    That of a column that holds none is None; that of a column without an index is not looked for, nor that
    of a table that is locked, or for which nothing may be planned.
    """
    nexts = {state.oid: _next(state) for state in states}
    owners = connection.execute(query("drill_catalogue", "owners"), {"oids": list(nexts)}).fetchall()
    strangers = find_strangers(connection, [oid for owner in owners for oid in owner["planned"]])
    used: Used = {}
    for owner in owners:
        if not strangers.keys().isdisjoint(owner["planned"]):
            continue
        with suppress(DatabaseFailed), translated(connection.info.dsn):
            row = connection.execute(_last(owner, nexts[owner["oid"]])).fetchone() or {"last": None}
            used[owner["oid"]] = row["last"]
    return used


def _last(owner: Mapping[str, Any], following: int) -> sql.Composed:
    column = sql.Identifier(owner["column_name"])
    last, before = ("max", "<") if owner["is_ascending"] else ("min", ">")
    return sql.SQL("SELECT {}({}) AS last FROM {} {} WHERE {} {} {}").format(
        sql.SQL(last),
        column,
        sql.SQL("" if owner["is_partitioned"] else "ONLY"),
        sql.Identifier(owner["schema_name"], owner["table_name"]),
        column,
        sql.SQL(before),
        sql.Literal(following),
    )


def prove(subject: str, readings: tuple[States, States], copy: Connection) -> Judgement:
    """Compare the copy's sequences with the source's, read before the mark and after it, and judge."""
    before, after = readings
    busy = [
        state
        for oid, state in after.items()
        if state.next is not None and not state.cycle and state.next != _seen(before, oid)
    ]
    return judge(subject, before, after, read(copy), read_used(copy, busy))


def _seen(states: States, oid: int) -> int | None:
    return states[oid].next if oid in states else None


def judge(
    subject: str,
    before: States,
    after: States,
    copy: States,
    used: Mapping[int, int | None] | None = None,
) -> Judgement:
    """Judge the sequences of one database: read at the source before the mark and after it, and in the copy.

    `used` are values that the source had given out and that are committed in the columns of the copy.

    Of those that were not read before the mark, the place after it and the column tell; those that the
    source has no more are told. Those that the copy lacks are the catalogue's to refute, and leave this
    check inconclusive if they were there before.
    """
    name, used = f"sequences {subject}", used or {}
    here = {oid for oid in after.keys() & copy.keys() if None not in {after[oid].next, copy[oid].next}}
    old = sorted(oid for oid in here if _seen(before, oid) is not None)
    new = sorted(here.difference(old))
    known = [Positions(before[oid], after[oid], copy[oid], used.get(oid)) for oid in old]
    bad = [each for each in known if place(each) in {"behind", "ahead"}]
    moved = [each.before.name for each in known if place(each) == "moved"]
    moved += [after[oid].name for oid in new if not _is_held(after[oid], copy[oid], used)]
    unread = [after[oid].name for oid in sorted(after.keys() & (before.keys() | copy.keys()) - here)]
    checks = [_check(name, len(here), bad, unread)]
    if moved:
        detail = f"made, set or their column filled in the moment of the mark: {listed(moved)}; {AGAIN}"
        checks.append(unknown(f"{name} meanwhile", _EXPECTED, detail))
    if gone := [copy[oid].name for oid in sorted(copy.keys() - after.keys())]:
        detail = f"gone at the source right after the mark, so not compared: {listed(gone)}"
        checks.append(unknown(f"{name} gone", _EXPECTED, detail, required=False))
    return Judgement(checks=tuple(checks), findings=bounded([_finding(subject, each) for each in bad], name))


def _is_held(after: SequenceState, copied: SequenceState, used: Mapping[int, int | None]) -> bool:
    """Tell whether a sequence is good though its place before the mark is not known.

    It is where the source stands after it, or short of that and beyond all that its own column holds.
    """
    ahead = _sign(after) * (_next(copied) - _next(after))
    if 0 <= ahead <= _reserve(after):
        return True
    last = used.get(after.oid, _next(copied))
    return ahead < 0 and (last is None or _sign(after) * (_next(copied) - last) > 0)


def place(positions: Positions) -> Outcome:
    """Say where the copy's sequence stands; `moved` when the source's was set anew or went round.

    Behind its own column it may be in truth: rows were loaded, and the source's was set to fit only then.
    """
    before, after, copied, used = positions
    if 0 <= _steps(before, copied) <= _steps(before, after) + _reserve(after):
        is_overtaken = used is not None and _sign(after) * (_next(copied) - used) <= 0
        return "moved" if is_overtaken else "good"
    if _was_set(before, after) or (before.cycle and before.next != after.next):
        return "moved"
    return "behind" if _sign(before) * (_next(copied) - _next(before)) < 0 else "ahead"


def _steps(start: SequenceState, end: SequenceState) -> int:
    """How far one is beyond the other; a cycling sequence gets there over the end of its range."""
    ahead = _sign(start) * (_next(end) - _next(start))
    if ahead < 0 and start.cycle:
        return ahead + start.maximum - start.minimum + abs(start.increment)
    return ahead


def _sign(state: SequenceState) -> int:
    return 1 if state.increment > 0 else -1


def _was_set(before: SequenceState, after: SequenceState) -> bool:
    """Tell whether the source's sequence did anything but advance."""
    definition = {"name", "next"}
    is_same = before.model_dump(exclude=definition) == after.model_dump(exclude=definition)
    return not is_same or _sign(before) * (_next(after) - _next(before)) < 0


def _reserve(state: SequenceState) -> int:
    return abs(state.increment) * (_LOGGED_AHEAD + state.cache)


def _next(state: SequenceState) -> int:
    if state.next is None:
        raise ValueError(f"the position of sequence {state.name} was not read")
    return state.next


def _check(name: str, known: int, bad: Sequence[Positions], unread: Sequence[str]) -> Check:
    if bad:
        return refuted(name, _EXPECTED, [_said(each) for each in bad])
    if unread:
        return unknown(name, _EXPECTED, f"not read: {listed(unread)}")
    return passed(name, _EXPECTED, f"{known} sequences")


def _said(each: Positions) -> str:
    before, after, copied, _ = each
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
