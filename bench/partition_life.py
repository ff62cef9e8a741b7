"""The whole life of a partition: out of its table, into S3, proven, dropped, and back as a partition."""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

import yaml
from measure import TURNS, Row, call, paired
from partition_export import opened

from pgvigil.partitions import leaving, operation, returning
from pgvigil.partitions.facts import RestoreReport, RollReport
from pgvigil.partitions.managing import hold_table, tables
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from pgvigil.runs import conduct

if TYPE_CHECKING:
    from pgvigil.archive.stream import Progress
    from pgvigil.runs import Run
    from pgvigil.sandbox import Sandbox

MEGABYTES = int(os.environ.get("PARTITION_LIFE_MB", "100"))
ROW = 86
OTHER = "psql: DETACH, COPY | zstd | boto3, DROP; boto3 | zstd | COPY, keys, ATTACH, with no digest"
TABLE = """
CREATE TABLE public.life (
    id bigint, at timestamptz, customer int, kind text, payload jsonb, amount numeric, PRIMARY KEY (id, at)
) PARTITION BY RANGE (at);
CREATE INDEX ON public.life (customer);
CREATE TABLE public.life_old PARTITION OF public.life FOR VALUES FROM ('2001-01-01+00') TO ('2002-01-01+00');
CREATE TABLE public.life_rest PARTITION OF public.life FOR VALUES FROM ('2002-01-01+00') TO (MAXVALUE);
INSERT INTO public.life
SELECT n, '2001-01-01+00'::timestamptz + n % 30000000 * interval '1 s', n % 2000, 'view',
       jsonb_build_object('page', n % 97, 'referrer', 'r' || n % 13), (n % 100000)::numeric / 100
  FROM generate_series(1, {rows}) AS n;
VACUUM ANALYZE public.life
"""
CLIENT = (
    "import boto3, os, sys;"
    " s3 = boto3.client('s3', endpoint_url=os.environ['ENDPOINT'], verify=os.environ['CA']);"
)
BY_HAND = r"""
set -o pipefail
psql() { command psql -X -q -v ON_ERROR_STOP=1 -d "$DSN" "$@"; }
year="FROM ('2001-01-01+00') TO ('2002-01-01+00')"
psql -c 'ALTER TABLE public.life DETACH PARTITION public.life_old CONCURRENTLY'
psql -c 'COPY public.life_old TO STDOUT' | zstd -3 -c | "$PYTHON" -c "$SEND"
psql -c 'DROP TABLE public.life_old' -c 'CREATE TABLE public.life_old (LIKE public.life)'
"$PYTHON" -c "$FETCH" | zstd -d -c | psql -c 'COPY public.life_old FROM STDIN'
psql -c 'ALTER TABLE public.life_old ADD PRIMARY KEY (id, at)' \
  -c 'CREATE INDEX ON public.life_old (customer)' \
  -c "ALTER TABLE public.life_old ADD CONSTRAINT b CHECK (at >= '2001-01-01+00' AND at < '2002-01-01+00')" \
  -c "ALTER TABLE public.life ATTACH PARTITION public.life_old FOR VALUES $year" \
  -c 'ALTER TABLE public.life_old DROP CONSTRAINT b'
"""


def compare() -> list[Row]:
    """Measure both ways round, with the same partition there at the end of each turn."""
    with opened() as box:
        _fill(box)
        ours, other = paired([_ours, partial(_by_hand, box)])
    size = f"{MEGABYTES} MB of text"
    return [
        Row(
            name="partition_life",
            size=size,
            ours=ours,
            other=other,
            other_is=OTHER,
            unit="s",
            runs=TURNS,
        )
    ]


def _fill(box: Sandbox) -> None:
    with connect(box.dsn("shop", "shop"), "bench") as session:
        session.execute("SET statement_timeout = 0")
        for statement in TABLE.format(rows=MEGABYTES * 1_000_000 // ROW).split(";"):
            session.execute(statement.encode())
    fleet = yaml.safe_load(box.fleet_file.read_text())
    policy = {"table": "public.life", "key": "at", "every": "1 year", "keep": "10 years", "ahead": 1}
    more = {"archive": "s3://archive/life", "drop": "proven", "restored_for": "1s"}
    fleet["clusters"]["demo"]["databases"] = {"shop": {"partitions": [policy | more]}}
    box.fleet_file.write_text(yaml.safe_dump(fleet))


def _ours() -> None:
    rolled = conduct(RollReport, "roll_partitions", "demo/shop", _roll)
    back = conduct(RestoreReport, "restore_partition", "demo/shop", _bring_back)
    if {rolled.verdict, back.verdict} != {Verdict.VERIFIED} or not back.rows:
        sys.exit(f"a partition whose life was not proven cannot be compared: {rolled} {back}")


def _roll(run: Run) -> None:
    for managed in tables(run, None):
        with hold_table(managed) as held:
            made = operation.plan(held)
            for departure in made.departures:
                detached = leaving.detach(held, made, departure)
                assert detached  # noqa: S101 - nobody else is here
                copy = leaving.archive(held, made, detached, on_progress=_unheard)
                leaving.prove(held, detached, copy, on_progress=_unheard)
                leaving.drop(held, detached, made)
            operation.conclude_table(held, made)


def _bring_back(run: Run) -> None:
    found = returning.find(run, "life_old")
    with hold_table(found.managed):
        returning.plan(found, attach=True, keep=True)
        returning.rebuild(found, keep=True, on_progress=_unheard)
        returning.settle(found, returning.refer(found), attach=True)


def _unheard(_: Progress) -> None:
    """Tell nobody."""


def _by_hand(box: Sandbox) -> None:
    call(
        ["bash", "-e", "-c", BY_HAND],
        {
            **box.environment,
            "DSN": box.dsn("shop", "shop"),
            "PYTHON": sys.executable,
            "ENDPOINT": box.endpoint_url,
            "CA": str(box.ca_file),
            "SEND": CLIENT + "s3.upload_fileobj(sys.stdin.buffer, 'archive', 'life-by-hand')",
            "FETCH": CLIENT + "s3.download_fileobj('archive', 'life-by-hand', sys.stdout.buffer)",
        },
    )
