"""Which ranges a walk is made of: fixed at its start, split so that several workers have something to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pgvigil.backfill import statements
from pgvigil.backfill.batch import Part, change

if TYPE_CHECKING:
    from pgvigil.backfill.batch import Job
    from pgvigil.backfill.facts import Key, Leaf
    from pgvigil.backfill.session import Session
    from pgvigil.postgres import Connection

SPLIT_ROWS = 50_000  # a table with fewer rows is one range
PART_ROWS = 250_000
LEAST_PARTS, MOST_PARTS = 4, 16
_SAMPLE = 20_000


def begin(session: Session, job: Job) -> dict[str, int]:
    """Fix the upper bounds and write the ranges of a new pass; raises Fenced."""
    found = [(leaf, ends) for leaf in job.target.leaves if (ends := _ends(session, job, leaf))]
    rows = sum(leaf.rows for leaf in job.target.leaves)
    with session.transaction() as connection:
        number = job.ledger.begin_pass(connection, rows)
        for leaf, ends in found:
            job.ledger.add_ranges(connection, number, leaf, ends)
    return {"pass": number, "rows": rows, "ranges": sum(len(ends) for _, ends in found)}


def _ends(session: Session, job: Job, leaf: Leaf) -> list[Key]:
    """Return the ends of a table's ranges in order, the last row of now at last; none for an empty one."""
    if leaf.index is None:
        return _block_ends(job, leaf)
    with session.transaction(job.reading) as connection:
        splits = _splits(connection, job, leaf)
        row = connection.execute(statements.newest(job.target, leaf), {}).fetchone()
    if row is None:
        return []
    last = _key(row, leaf)
    return [*(split for split in splits if split != last), last]


def _key(row: dict[str, Any], leaf: Leaf) -> Key:
    return tuple(row[f"k{place}"] for place in range(len(leaf.key)))


def _splits(connection: Connection, job: Job, leaf: Leaf) -> list[Key]:
    """Choose keys that part a large table into ranges of about the same number of rows."""
    if leaf.rows < SPLIT_ROWS:
        return []
    values = {"percent": min(100.0, 100 * _SAMPLE / leaf.rows)}
    rows = connection.execute(statements.sample_keys(job.target, leaf), values).fetchall()
    parts = min(_parts(job, leaf), len(rows))
    chosen = [_key(rows[len(rows) * n // parts], leaf) for n in range(1, parts)]
    return list(dict.fromkeys(chosen))


def _parts(job: Job, leaf: Leaf) -> int:
    """Return into how many ranges a table is parted: few, so that stretches are long."""
    if leaf.rows < SPLIT_ROWS:
        return 1
    return max(LEAST_PARTS, 2 * job.policy.workers, min(MOST_PARTS, leaf.rows // PART_ROWS))


def _block_ends(job: Job, leaf: Leaf) -> list[Key]:
    """Part a heap by its blocks; what is appended later is beyond the bound."""
    blocks = leaf.size // leaf.block_size
    if blocks == 0:
        return []
    parts = _parts(job, leaf)
    ends = sorted({blocks * n // parts for n in range(1, parts + 1)} - {0})
    return [(f"({end - 1},{statements.LAST_IN_BLOCK})",) for end in ends]


def change_one(connection: Connection, job: Job, leaf: Leaf, key: Key) -> None:
    """Change the row of one key, if it still needs it."""
    change(connection, Part(job, leaf, None, key, is_one=True))
