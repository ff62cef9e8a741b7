from tests.fixtures.backfill import Yard

CENTS = {"set": {"cents": "(amount * 100)::bigint"}, "where": "cents IS NULL"}


def payments(yard: Yard, rows: int, key: str = "id bigint PRIMARY KEY") -> None:
    yard.sql(f"CREATE TABLE payments ({key}, amount numeric(12, 2), cents bigint)")
    yard.sql(f"INSERT INTO payments SELECT n, n / 100.0 FROM generate_series(1, {rows}) AS n")
    yard.sql("ANALYZE payments")


def test_every_row_is_changed_and_proven(yard: Yard) -> None:
    """A plain backfill ends verified with no row left, and the state says done."""
    payments(yard, 5000)
    yard.define(table="public.payments", **CENTS)

    report = yard.run()

    assert report.verdict == "verified", report.model_dump_json(indent=1)
    assert yard.value("SELECT count(*) FROM payments WHERE cents = amount * 100") == 5000
