"""What an archived partition costs: export and upload with the digest, beside COPY, zstd and an upload.

`partition_export_memory` is the peak of the process that does all of ours, and of the other's largest.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from measure import PGVIGIL, TURNS, Row, call, paired

from pgvigil.archive import copying, proving
from pgvigil.archive.place import Place
from pgvigil.fleet import load_fleet
from pgvigil.objectstore import ObjectStore, connect
from pgvigil.partitions.facts import Entry, Name
from pgvigil.postgres import connect as connect_postgres
from pgvigil.reports import Verdict, conclude
from pgvigil.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

MEGABYTES = [int(word) for word in os.environ.get("PARTITION_MB", "100,1000").split(",")]
LONG = 2000
ROW = 86
OTHER = "psql COPY | zstd | boto3 upload_fileobj"
TABLE = Name(schema_="public", name="big")
_UPLOAD = (
    "import boto3, os, resource, sys; boto3.client('s3', endpoint_url=os.environ['ENDPOINT'],"
    " verify=os.environ['CA']).upload_fileobj(sys.stdin.buffer, 'archive', 'other');"
    " print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
)


def compare() -> list[Row]:
    """Measure the copy alone, and the copy with its proof, at each size."""
    with opened() as box:
        return [row for megabytes in MEGABYTES for row in _compare(box, megabytes)]


def _compare(box: Sandbox, megabytes: int) -> Iterator[Row]:
    _fill(box, megabytes)
    seconds: list[float] = []
    memory: list[float] = []
    warm = megabytes < LONG
    turns = TURNS if warm else 1  # minutes each
    _forget_peak()
    proven, other = paired([partial(_ours, box, seconds), partial(_other, box, memory)], turns, warm=warm)
    copied = round(statistics.median(seconds[1 if warm else 0 :]), 3)  # of the turns that count
    rates = ", ".join(
        f"{name} {megabytes / side:.1f} MB/s, {megabytes * 1_000_000 // ROW / side:,.0f} rows/s"
        for name, side in (("export", copied), ("with proof", proven), ("other", other))
    )
    print(f"{megabytes} MB: {rates}", flush=True)
    row = partial(Row, size=f"{megabytes} MB of text", other_is=OTHER, runs=turns)
    yield row(name="partition_export", ours=copied, other=other, unit="s")
    yield row(name="partition_export_proven", ours=proven, other=other, unit="s")
    yield row(name="partition_export_memory", ours=_peak(), other=round(max(memory), 1), unit="MB")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak() -> float:
    """Return the most memory that this process had since `_forget_peak`, in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


@contextmanager
def opened() -> Iterator[Sandbox]:
    """Bring a sandbox up for the block, its environment set."""
    parent = Path(tempfile.mkdtemp(prefix="pgvigil-bench-", dir="/tmp"))
    parent.chmod(0o755)
    try:
        call([PGVIGIL, "sandbox", "up", "--dir", parent / "box", "--no-prefect"])
        box = Sandbox.load(parent / "box")
        os.environ.update(box.environment)
        yield box
    finally:
        call([PGVIGIL, "sandbox", "down", "--dir", parent / "box"])
        shutil.rmtree(parent)


def _fill(box: Sandbox, megabytes: int) -> None:
    statement = (
        "CREATE TABLE public.big AS SELECT n AS id, now() + n * interval '1 s' AS at, n % 2000 AS customer,"
        " 'view' AS kind, jsonb_build_object('page', n % 97, 'referrer', 'r' || n % 13) AS payload,"
        " (n % 100000)::numeric / 100 AS amount"
        " FROM generate_series(1, current_setting('bench.rows')::int) AS n"
    )
    with connect_postgres(box.dsn("shop", "shop"), "bench") as session:
        session.execute("SET statement_timeout = 0")
        session.execute("DROP TABLE IF EXISTS public.big")
        session.execute("SELECT set_config('bench.rows', %s, false)", (str(megabytes * 1_000_000 // ROW),))
        session.execute(statement.encode())
        session.execute("VACUUM ANALYZE public.big")


def _ours(box: Sandbox, seconds: list[float]) -> None:
    """Copy and prove, and note how long the copy took."""
    store = connect(load_fleet().s3)
    began = time.perf_counter()
    copy = _copy(box, store)
    seconds.append(time.perf_counter() - began)
    proven = proving.prove(store, copy, load_fleet().s3, lambda _: None)
    checks = [check for each in proven for check in each.checks]
    if conclude(checks) is not Verdict.VERIFIED:
        sys.exit(f"a copy that was not proven cannot be compared: {checks}")
    for leaf in copy.manifest.leaves:
        store.delete(leaf.stored.rows.uri)


def _copy(box: Sandbox, store: ObjectStore) -> copying.Copy:
    dsn = box.dsn("shop", "shop")
    with connect_postgres(dsn, "bench") as session, connect_postgres(dsn, "bench") as second:
        for each in (session, second):
            each.execute("SET statement_timeout = 0")
        (row,) = session.execute("SELECT 'public.big'::regclass::oid::bigint AS oid").fetchall()
        place = Place("s3://archive/bench/", uuid4(), "demo", "shop", TABLE, _entry(row), None)
        return copying.make(copying.Sessions(session, second, dsn), store, place, uuid4(), lambda _: None)


def _entry(row: dict[str, Any]) -> Entry:
    now = datetime.now(UTC)
    return Entry(
        id=uuid4(),
        state="fenced",
        relation=row["oid"],
        name=TABLE,
        parent=0,
        bound="",
        condition="",
        since=now,
    )


def _other(box: Sandbox, memory: list[float]) -> None:
    copy = f"psql -X -d '{box.dsn('shop', 'shop')}' -c 'COPY public.big TO STDOUT' | zstd -3 -c"
    environment = {**box.environment, "ENDPOINT": box.endpoint_url, "CA": str(box.ca_file), "CODE": _UPLOAD}
    pipeline = f'{copy} | "{sys.executable}" -c "$CODE"'
    memory.append(float(call(["bash", "-o", "pipefail", "-c", pipeline], environment)))
