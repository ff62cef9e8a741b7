import pytest

from pgvigil.reports import Verdict
from tests.fixtures.faulty_s3 import (
    Fault,
    Road,
    after,
    cut,
    done_but_denied,
    failed_with_200,
    flipped,
    refused,
    shortened,
)
from tests.fixtures.partitions import Shop, run

COPY = ".copy.zst"


def oldest(shop: Shop) -> str:
    return min(shop.partitions(), key=lambda name: shop.partitions()[name])


def count(shop: Shop, table: str) -> int:
    return int(shop.sql(f"SELECT count(*) AS n FROM {table}")[0]["n"])


def told(report: object) -> str:
    findings = " / ".join(f"{f.message} ({f.hint})" for f in report.findings)  # type: ignore[attr-defined]
    checks = " / ".join(f"{c.id} {c.verdict}: {c.actual}" for c in report.checks)  # type: ignore[attr-defined]
    return f"{findings} / {checks}"


def archived(report: object) -> list[int]:
    return [manifest.digest.rows for manifest in report.manifests]  # type: ignore[attr-defined]


def test_faults_that_pass_cost_nothing(shop: Shop, road: Road) -> None:
    """Each request fails once or twice, with 500, 503 or a lost connection: verified all the same."""
    name = oldest(shop)
    rows = count(shop, name)
    road.spoil("PutObject", refused(500, "InternalError"), times=1, suffix=COPY)
    road.spoil("PutObject", refused(503, "SlowDown"), times=2, suffix="manifest.json")
    road.spoil("GetObject", refused(503, "SlowDown"), times=1, suffix=COPY)
    road.spoil("HeadObject", refused(500, "InternalError"), times=1)
    road.spoil("ListObjects", cut, times=1)
    road.spoil("ListMultipartUploads", refused(503, "ServiceUnavailable"), times=1)
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, told(report)
    assert [rows] == archived(report)
    assert 7 == len(road.repair())


PERSISTENT = [
    ("PutObject", refused(500, "InternalError"), "cannot write", "InternalError"),
    ("GetObject", refused(503, "SlowDown"), "cannot read", "SlowDown"),
    ("PutObject", refused(400, "ExpiredToken"), "ExpiredToken", "credentials are over"),
    ("ListMultipartUploads", refused(403, "AccessDenied"), "cannot list", "grant s3:"),
    (
        "PutObject",
        refused(301, "PermanentRedirect", ("x-amz-bucket-region", "eu-north-1")),
        "PermanentRedirect",
        "correct s3.region",
    ),
    (
        "GetObject",
        refused(400, "AuthorizationHeaderMalformed"),
        "AuthorizationHeaderMalformed",
        "correct s3.region",
    ),
    ("GetObject", cut, "cannot read", "the connection ended before the object did"),
]


def test_faults_that_stay_are_named_and_the_next_run_finishes(shop: Shop, road: Road) -> None:
    """Each night another fault: nothing is proven or dropped, no row lost, until the road is good."""
    name = oldest(shop)
    rows, rest = count(shop, name), count(shop, "events") - count(shop, name)
    for verb, fault, *words in PERSISTENT:
        road.spoil(verb, fault, suffix=COPY if "Object" in verb else "")
        report = shop.roll()

        assert verb in road.repair()
        assert Verdict.INCONCLUSIVE == report.verdict, words
        assert all(word in told(report) for word in words), (words, told(report))
        assert (rows, rest) == (count(shop, name), count(shop, "events"))
        assert [] == shop.objects("manifest.json")
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, told(report)
    assert ([rows], rest) == (archived(report), count(shop, "events"))
    assert 2 == len(shop.objects())


@pytest.mark.parametrize("fault", [flipped, shortened], ids=["bit", "short"])
def test_bytes_that_change_on_the_way_back_refute(shop: Shop, road: Road, fault: Fault) -> None:
    """A download that says it is whole and is not: refuted, nothing dropped; the next run finishes."""
    name = oldest(shop)
    rows = count(shop, name)
    road.spoil("GetObject", fault, suffix=COPY)
    report = shop.roll()

    assert Verdict.REFUTED == report.verdict, told(report)
    assert f"{name}.copy.sha256 refuted" in told(report)
    assert (rows, []) == (count(shop, name), shop.objects("manifest.json"))
    road.repair()
    assert [rows] == archived(shop.roll())


def test_a_slow_store_keeps_nobody_waiting(shop: Shop, road: Road) -> None:
    """While it takes its time, nobody holds the table: even the strongest lock is there at once."""
    looks: list[str] = []

    def look() -> None:
        with shop.session() as session, session.transaction():
            run(session, "LOCK TABLE events IN ACCESS EXCLUSIVE MODE NOWAIT")
        looks.append("free")

    for verb in ("PutObject", "GetObject", "HeadObject", "ListObjects"):
        road.spoil(verb, after(look))
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, told(report)
    assert len(looks) == len(road.repair())
    assert len(looks) >= 6


@pytest.mark.parametrize("fault", [failed_with_200, done_but_denied], ids=["not done", "done"])
def test_a_completion_that_failed_with_200_leaves_one_whole_copy(
    shop: Shop, road: Road, fault: Fault
) -> None:
    """Whether the store completed the upload or not: the run or the next one ends with one proven copy."""
    name = oldest(shop)
    noise = "SELECT string_agg(md5(random()::text || n), '') FROM generate_series(1, 1100) AS n WHERE id > 0"
    shop.sql(
        "ALTER TABLE events ADD COLUMN noise text;"
        f"UPDATE {name} SET noise = ({noise}) WHERE id IN (SELECT id FROM {name} ORDER BY id LIMIT 1000)"
    )
    rows = count(shop, name)
    road.spoil("CompleteMultipartUpload", fault, times=1, suffix=COPY)
    first = shop.roll()
    assert ["CompleteMultipartUpload"] == road.repair()
    last = first if first.verdict is Verdict.VERIFIED else shop.roll()

    assert Verdict.VERIFIED == last.verdict, told(last)
    assert ([rows], 2) == (archived(last), len(shop.objects()))
    assert [] == list(shop.store.list_uploads("s3://archive/"))
