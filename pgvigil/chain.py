"""Proof that nobody edited the audit log: its hash chain, recomputed outside the database."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from pydantic import Field

from pgvigil import postgres
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pgvigil.postgres import Connection

GENESIS = bytes(32)


class Link(Frozen):
    """One event's place in the chain: what `append` returns, and what is anchored elsewhere."""

    seq: int
    hash: str = Field(description="sha256 in hex")


Head = Link


class Fault(Frozen):
    """The first place where the chain is not as it was written."""

    seq: int
    what: str
    expected: str
    actual: str


class ChainReport(Frozen):
    """What verification found: how many links hold, the last of them, and the first fault if any."""

    ok: bool
    length: int
    head: Head | None
    anchors: int
    fault: Fault | None = None


def verify(source: str | Connection, heads: Iterable[Head] = ()) -> ChainReport:
    """Recompute the whole chain, row by row in constant memory, up to the first fault.

    `heads` are links that were anchored elsewhere: without them a cut tail or a rewritten chain cannot be
    told from a true one. Raises DatabaseFailed, never for a broken chain.
    """
    anchors: dict[int, set[str]] = {}
    for head in heads:
        anchors.setdefault(head.seq, set()).add(head.hash)
    if isinstance(source, str):
        with postgres.connect(source, "pgvigil audit verify") as connection:
            return _verify(connection, anchors)
    return _verify(source, anchors)


def _verify(connection: Connection, anchors: dict[int, set[str]]) -> ChainReport:
    length, last, fault = 0, GENESIS, None
    for row in _rows(connection):
        fault = _row_fault(row, length + 1, last) or _anchor_fault(row, anchors)
        if fault:
            break
        length, last = row["seq"], row["hash"]
    return ChainReport(
        ok=not (fault := fault or _missing_anchor(length, anchors)),
        length=length,
        head=Head(seq=length, hash=last.hex()) if length else None,
        anchors=sum(map(len, anchors.values())),
        fault=fault,
    )


def _rows(connection: Connection) -> Iterator[dict[str, Any]]:
    with connection.transaction(), connection.cursor(name="pgvigil_verify") as cursor:
        yield from cursor.execute(query("audit", "chain"))


def _row_fault(row: dict[str, Any], seq: int, last: bytes) -> Fault | None:
    if row["seq"] != seq:
        what = "row is missing" if row["seq"] > seq else "row was inserted"
        return Fault(seq=min(seq, row["seq"]), what=what, expected=f"seq {seq}", actual=f"seq {row['seq']}")
    if row["prev"] != last:
        return Fault(
            seq=seq,
            what="row does not follow the one before it",
            expected=f"prev {last.hex()}",
            actual=f"prev {row['prev'].hex()}",
        )
    digest = hashlib.sha256(last + row["body"].encode()).digest()
    if digest == row["hash"]:
        return _body_fault(row)
    return Fault(
        seq=seq,
        what="body was altered",
        expected=f"hash {row['hash'].hex()}",
        actual=f"hash {digest.hex()}",
    )


def _body_fault(row: dict[str, Any]) -> Fault | None:
    try:
        body = json.loads(row["body"])
        named = (body["seq"], body["event_id"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return Fault(seq=row["seq"], what="body is unreadable", expected="an event", actual=repr(error))
    expected = (row["seq"], str(row["event_id"]))
    if named == expected:
        return None
    return Fault(
        seq=row["seq"],
        what="body belongs to another row",
        expected="seq {} event_id {}".format(*expected),
        actual="seq {} event_id {}".format(*named),
    )


def _anchor_fault(row: dict[str, Any], anchors: dict[int, set[str]]) -> Fault | None:
    wrong = anchors.get(row["seq"], set()) - {row["hash"].hex()}
    if not wrong:
        return None
    return Fault(
        seq=row["seq"],
        what="row is not the one that was anchored",
        expected=f"hash {min(wrong)}",
        actual=f"hash {row['hash'].hex()}",
    )


def _missing_anchor(length: int, anchors: dict[int, set[str]]) -> Fault | None:
    beyond = sorted(seq for seq in anchors if not 1 <= seq <= length)
    if not beyond:
        return None
    return Fault(
        seq=length + 1,
        what="rows at the end are missing",
        expected=f"at least {beyond[-1]} rows, as anchored",
        actual=f"{length} rows",
    )
