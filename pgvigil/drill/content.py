"""The content of a marked database: hashed on the source under the mark's snapshot, and again on the copy."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pgvigil.drill.digest import (
    STRANGER,
    Limits,
    TableResult,
    column_changes,
    cut,
    cut_again,
    hash_tables,
    pin,
)
from pgvigil.drill.facts import Content, Digest, Unproven
from pgvigil.drill.mark import Marked, mark
from pgvigil.drill.tables import Doubt, Inventory, find_strangers, list_tables, read_types
from pgvigil.errors import DatabaseFailed, PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from pgvigil.drill.around import Around
    from pgvigil.drill.digest import Connect, Progress
    from pgvigil.drill.facts import Table
    from pgvigil.policies.drill import DrillPolicy

_REWRITTEN = "rewritten since the mark, as by TRUNCATE or ALTER TABLE: an older snapshot may see it empty"
_COLUMNS = "its columns were changed since the mark"
_TYPES = "an enum or composite type was changed since the mark"


class SourceContent(Content):
    """Content of the source, and for which tables a difference in the copy would prove nothing."""

    doubts: tuple[Doubt, ...] = ()


def hash_database(  # noqa: PLR0913 - which databases, how, and who hears of it
    dsn: str,
    policy: DrillPolicy,
    run_name: str,
    *,
    beside: Sequence[str] = (),
    around: Around | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None],
) -> tuple[SourceContent, ...]:
    """Mark a database and hash it: one content, or one more for each set of tables that cannot share a mark.

    Of the databases `beside` it, by dsn, those that share its mark are hashed, too. What is beside rows
    is read `around` the first mark. Tables that get no mark of their own are told beside the others.
    Raises PreconditionFailed if it cannot be marked, and DatabaseFailed when the server is away.
    """
    hashed = partial(hash_source, policy=policy, seed=seed, on_progress=on_progress)
    with mark(dsn, policy, run_name, beside=beside, around=around) as marked:
        contents = [hashed(each) for each in _in_turn((marked, *marked.beside))]
    while left := marked.contended:
        try:
            with mark(dsn, policy, run_name, only=left) as marked:
                contents.append(hashed(marked))
        except (PreconditionFailed, DatabaseFailed) as error:
            if error.context.get("unreachable"):
                raise
            return tuple(_with_unmarked(contents, marked.mark.database, left, error.message))
    return tuple(contents)


def _with_unmarked(
    contents: Sequence[SourceContent], database: str, left: Sequence[Table], why: str
) -> Iterator[SourceContent]:
    """Tell of the tables that have no mark at the first one of their database."""
    reason = f"it could not share a mark with the other tables, nor have its own: {why}"
    told = [Unproven(database=database, relation=str(each), reason=reason, oid=each.oid) for each in left]
    for each in contents:
        if each.mark.database == database:
            yield each.model_copy(update={"unproven": (*each.unproven, *told)})
            told = []
        else:
            yield each


def _in_turn(databases: Sequence[Marked]) -> Iterator[Marked]:
    """Give the smallest first, each with its share of the time that those before it left."""
    by_size = sorted(databases, key=lambda each: sum(listed.size for listed in each.inventory.tables))
    for count, each in enumerate(by_size):
        now = time.monotonic()
        yield replace(each, until=now + (each.until - now) / (len(by_size) - count))


def hash_source(
    marked: Marked, policy: DrillPolicy, *, seed: int = 0, on_progress: Callable[[Progress], None]
) -> SourceContent:
    """Hash every table of the marked database, or, until hash_for is over, a seeded sample of each.

    Raises DatabaseFailed when the server is away.
    """
    began = time.monotonic()
    limits = Limits(
        workers=policy.hash_workers,
        rate=policy.hash_rate and policy.hash_rate * 10**6,
        until=marked.until,
        seed=seed,
    )
    pieces = cut(marked.inventory.tables, limits)
    hashed = hash_tables(marked.connect, pieces, limits, snapshot=marked.snapshot, on_progress=on_progress)
    results = [_of_the_mark(each) for each in _unmet(marked, hashed)]
    database = marked.mark.database
    read = [(each.table, each.digest) for each in results if each.digest]
    unread = [each.unproven(database) for each in results if not each.digest]
    return SourceContent(
        mark=marked.mark,
        tables=tuple(read),
        unproven=(*marked.inventory.unproven, *unread),
        seconds=time.monotonic() - began,
        bytes_read=_bytes_read(results),
        doubts=(*marked.doubts, *_doubts(marked, results)),
    )


def _unmet(marked: Marked, results: Sequence[TableResult]) -> Iterator[TableResult]:
    """Keep no digest of a table that a stranger's function has joined while it was read by plan."""
    planned = [each.table.oid for each in results if not each.listed.is_guarded]
    with marked.connect() as connection:
        found = find_strangers(connection, planned)
    for each in results:
        stranger = found.get(each.table.oid)
        if stranger and each.digest:
            yield TableResult(listed=each.listed, reason=STRANGER.format(stranger=stranger))
        else:
            yield each


def _of_the_mark(result: TableResult) -> TableResult:
    """Keep a digest of the file alone that the table had at the mark: in another it may look empty."""
    if result.digest and result.filenodes != {result.table.filenode}:
        return TableResult(listed=result.listed, reason=_REWRITTEN)
    return result


def _doubts(marked: Marked, results: Sequence[TableResult]) -> tuple[Doubt, ...]:
    """Name the tables that users changed, other than by writing rows, after the mark."""
    hashed = [each for each in results if each.digest]
    with marked.connect() as connection:
        changed = column_changes(connection, [each.listed for each in hashed])
        types = read_types(connection)
    doubts = []
    for each in hashed:
        reasons = [
            reason
            for reason, holds in (
                (_COLUMNS, each.table.oid in changed),
                (_TYPES, types != marked.inventory.types),
            )
            if holds
        ]
        if reasons:
            doubts.append(Doubt(oid=each.table.oid, relation=str(each.table), reason="; ".join(reasons)))
    return tuple(doubts)


def _bytes_read(results: Iterable[TableResult]) -> int:
    return sum(
        each.listed.size * each.digest.blocks_read // max(each.digest.blocks, 1)
        for each in results
        if each.digest
    )


def hash_copy(
    connect: Connect, content: Content, limits: Limits, *, on_progress: Callable[[Progress], None]
) -> Content:
    """Hash in the copy the same tables, and of each the same blocks, as were hashed on the source.

    Nothing may write to the copy meanwhile. A table that is there and was not wholly read is told as
    unproven; one that is not there is not told at all. Raises DatabaseFailed when the copy is away.
    """
    began = time.monotonic()
    with connect() as connection:
        pin(connection)
        there = list_tables(connection, content.mark.database, skip_locked=True)
    wanted = {table.oid: digest for table, digest in content.tables}
    listed = {
        each.table.oid: each.model_copy(update={"is_guarded": wanted[each.table.oid].is_copied})
        for each in there.tables
        if each.table.oid in wanted
    }
    pieces = [
        piece
        for oid, digest in wanted.items()
        if oid in listed
        for piece in cut_again(listed[oid], digest, limits)
    ]
    results = hash_tables(connect, pieces, limits, on_progress=on_progress)
    complete = [_as_asked(each, wanted[each.table.oid]) for each in results]
    unread = [each.unproven(content.mark.database) for each in complete if not each.digest]
    return Content(
        mark=content.mark,
        tables=tuple((each.table, each.digest) for each in complete if each.digest),
        unproven=(*unread, *_unreadable(content, there)),
        seconds=time.monotonic() - began,
        bytes_read=_bytes_read(results),
    )


def _as_asked(result: TableResult, digest: Digest) -> TableResult:
    """Give a digest the ranges that were asked for; one of fewer pieces than asked is no digest."""
    if result.digest is None:
        return result
    if result.digest.ranges:
        return TableResult(listed=result.listed, reason="no time was left to read all of it in the copy")
    return result.model_copy(update={"digest": result.digest.model_copy(update={"ranges": digest.ranges})})


def _unreadable(content: Content, there: Inventory) -> list[Unproven]:
    """Tell what is in the copy, and cannot be read there."""
    wanted = {str(table) for table, _ in content.tables}
    return [
        told.model_copy(update={"reason": f"in the copy: {told.reason}"})
        for told in there.unproven
        if told.relation in wanted
    ]
