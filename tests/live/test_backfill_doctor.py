import json
from typing import Any

import pytest

from pgvigil.backfill import steering
from pgvigil.doctor import Diagnosis, examine
from pgvigil.fleet import load_fleet
from pgvigil.reports import Verdict
from pgvigil.watch.proofs import read_status
from tests.fixtures.backfill import Yard

CENTS: dict[str, Any] = {"set": {"cents": "(100 / (amount - 7))::bigint"}, "where": "cents IS NULL"}


def payments(yard: Yard, rows: int) -> None:
    yard.sql("CREATE TABLE payments (id bigint PRIMARY KEY, amount int, cents bigint)")
    yard.sql(f"INSERT INTO payments SELECT n, n FROM generate_series(1, {rows}) AS n; ANALYZE payments")


def lines() -> dict[str, Diagnosis]:
    return {line.id: line for line in examine(load_fleet(), "demo/shop") if line.id.startswith("backfill")}


def verdicts() -> list[Verdict]:
    return [line.verdict for line in lines().values()]


def test_a_backfill_is_examined_before_it_is_needed(yard: Yard) -> None:
    """Tables, rights, key and state are each a line; a healthy one has no cure."""
    payments(yard, 5)
    yard.define(table="public.payments", **CENTS)

    assert [Verdict.VERIFIED] * 4 == verdicts()
    assert lines()["backfill.attended"].message == "never run"
    assert yard.run().verdict == "verified"
    assert lines()["backfill.attended"].message.startswith("proven at")


@pytest.mark.parametrize(
    ("fault", "line", "cure"),
    [
        ("ALTER TABLE payments RENAME TO other", "backfill.table", "write it as schema.table"),
        ("ALTER TABLE payments DROP COLUMN amount", "backfill.table", "correct 'table', 'set'"),
        ("ALTER TABLE payments OWNER TO postgres", "backfill.table", "GRANT its owner"),
        ("ALTER SCHEMA pgvigil RENAME TO away", "backfill.installed", "run infra/target.sql"),
    ],
)
def test_what_a_backfill_lacks_is_named(yard: Yard, fault: str, line: str, cure: str) -> None:
    """One line is refuted, and says what to do."""
    payments(yard, 5)
    yard.define(table="public.payments", **CENTS)
    yard.sql(fault, None)
    try:
        (found,) = [each for each in lines().values() if each.verdict is Verdict.REFUTED]
    finally:
        if "RENAME TO away" in fault:
            yard.sql("ALTER SCHEMA away RENAME TO pgvigil", None)

    assert found.id == line
    assert cure in found.hint


def test_rows_in_quarantine_are_somebodys_work(yard: Yard) -> None:
    """They refute the doctor's line and the status, until they are good."""
    payments(yard, 20)
    yard.define(table="public.payments", **CENTS)
    yard.run()

    assert "1 rows are in quarantine" in lines()["backfill.attended"].message
    assert status()["state"] == "failing"
    yard.sql("UPDATE payments SET amount = 8 WHERE id = 7")
    yard.run(retry_failed=True)
    assert lines()["backfill.attended"].verdict is Verdict.VERIFIED
    assert status()["state"] == "verified"


def status() -> dict[str, Any]:
    found = read_status(load_fleet())
    return next(line.model_dump() for line in found if line.proof == "backfill work")


def test_a_backfill_that_was_never_begun_is_no_failure(yard: Yard) -> None:
    """People start it when they want: the status asks for it from its first run on."""
    payments(yard, 5)
    yard.define("other", table="public.payments", **CENTS)

    assert not [line for line in read_status(load_fleet()) if line.proof == "backfill other"]


WAITING = json.dumps({"waiting_for": "slot x: holds WAL", "waiting_since": "2026-01-01T00:00:00Z"})
HELD = f"""
    state = 'walking', leased_until = now() + interval '1 min', progress = '{WAITING}',
    (runner_pid, runner_started) = (SELECT pid, backend_start FROM pg_stat_activity
                                     WHERE backend_type = 'walwriter')
"""


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ("pass = 1, state = 'walking'", "nobody runs it"),
        ("wanted = 'cancel', wanted_by = 'ann', wanted_at = now()", "by ann"),
        (HELD, "for slot x: holds WAL"),
    ],
)
def test_a_backfill_that_needs_somebody_is_named(yard: Yard, left: str, told: str) -> None:
    """Half done with nobody at work, cancelled, or waiting for long: the line says so."""
    payments(yard, 5)
    yard.define(table="public.payments", **CENTS)
    yard.run()
    yard.sql(f"UPDATE pgvigil.backfill SET {left}", None)

    found = lines()["backfill.attended"]
    assert found.verdict is Verdict.REFUTED
    assert told in found.message
    assert found.hint


def test_an_undone_backfill_is_as_new(yard: Yard) -> None:
    """What was undone is not half done, and no longer proven until it is run again."""
    payments(yard, 5)
    yard.define(table="public.payments", **CENTS, before_images="1d")
    yard.run()
    steering.conduct_steering("demo/shop", "work", "undo", {})

    assert lines()["backfill.attended"].message == "never run"
    assert status()["state"] == "unproven"
    assert status()["reason"].startswith("undone at")
    yard.run()
    assert status()["state"] == "verified"
