"""Hashing content beside a bare hash scan and a bare count of the same rows, on as many sessions."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from measure import Row, paired

from pgvigil import postgres
from pgvigil.drill.digest import Limits, cut, hash_tables, pin
from pgvigil.drill.tables import list_tables
from pgvigil.sandbox import down, up

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from pgvigil.drill.tables import Listed
    from pgvigil.sandbox import Sandbox

MEGABYTES = [int(word) for word in os.environ.get("HASHING_MB", "100,1000").split(",")]
WORKERS = 2
ROW = 132  # bytes that one row of the table takes
TABLE = """
CREATE TABLE sold AS
SELECT n AS id, n % 1000 AS customer, (n * 1.37)::numeric(12, 2) AS total,
       'customer' || n || '@example.com' AS email,
       timestamptz '2026-01-01' + n * interval '1 s' AS at, md5(n::text) AS note, n % 2 = 0 AS is_paid
  FROM generate_series(1, {rows}) AS n
"""


def compare() -> list[Row]:
    """Measure both sides at each size."""
    place = Path(tempfile.mkdtemp(prefix="pgvigil-bench-", dir="/tmp"))
    place.chmod(0o755)
    try:
        return list(_compare(up(place / "box", empty=True)))
    finally:
        down(place / "box")
        shutil.rmtree(place)


def _compare(box: Sandbox) -> Iterator[Row]:
    for size in MEGABYTES:
        listed = _fill(box, size)
        hash_scan, count = "sum(hashtextextended(t::text, 0))", "count(*)"
        sides = [partial(_ours, box, listed), partial(_bare, box, hash_scan), partial(_bare, box, count)]
        ours, hashed, counted = paired(sides)
        for name, other, other_is in (
            ("hashing", hashed, f"{hash_scan}, {WORKERS} sessions with half each: 64 bits"),
            ("hashing_over_count", counted, f"{count}, {WORKERS} sessions with half each"),
        ):
            yield Row(
                name=name, size=f"{size} MB", ours=ours, other=other, other_is=other_is, unit="s", runs=3
            )


def _fill(box: Sandbox, size: int) -> Listed:
    with _session(box) as session:
        session.execute("SET statement_timeout = 0")
        session.execute("SET search_path = public, pg_catalog")
        session.execute("DROP TABLE IF EXISTS sold")
        session.execute(TABLE.format(rows=size * 2**20 // ROW).encode())
        session.execute("VACUUM ANALYZE sold")
        pin(session)
        return next(each for each in list_tables(session, "shop").tables if each.table.name == "sold")


def _ours(box: Sandbox, listed: Listed) -> None:
    limits = Limits(workers=WORKERS)
    (result,) = hash_tables(partial(_session, box), cut([listed], limits), limits)
    if result.digest is None or result.digest.ranges:
        raise SystemExit(f"not hashed: {result.reason}")


def _bare(box: Sandbox, expression: str) -> None:
    """Let each session read its half with what a user would write."""

    def read(first: int, last: int) -> None:
        with _session(box) as session:
            for setting in ("jit = off", "max_parallel_workers_per_gather = 0", "statement_timeout = 0"):
                session.execute(f"SET {setting}".encode())
            where = f"t.ctid >= '({first},0)' AND t.ctid < '({last},0)'"
            session.execute(f"SELECT {expression} FROM public.sold AS t WHERE {where}".encode())  # noqa: S608 - numbers and our own words

    with _session(box) as session:
        row = session.execute("SELECT pg_relation_size('public.sold') / 8192 AS blocks").fetchone() or {}
    half = row["blocks"] // WORKERS + 1
    with ThreadPoolExecutor(WORKERS) as pool:
        for done in [pool.submit(read, part * half, (part + 1) * half) for part in range(WORKERS)]:
            done.result()


def _session(box: Sandbox) -> AbstractContextManager[postgres.Connection]:
    return postgres.connect(box.admin_dsn(box.primary_port, "shop"), "pgvigil bench")
