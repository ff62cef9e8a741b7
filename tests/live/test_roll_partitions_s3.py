import hashlib
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
import zstandard

from pgvigil.archive.blocks import digest_of
from pgvigil.archive.manifest import to_bytes
from pgvigil.errors import StorageFailed
from pgvigil.reports import Verdict
from tests.fixtures.faulty_s3 import (
    Fault,
    Road,
    after,
    at,
    cut,
    done_but_denied,
    failed_with_200,
    flipped,
    refused,
    shortened,
    without,
)
from tests.fixtures.partitions import Shop, make_deep, nothing, run

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


def old(shop: Shop, many: int) -> list[str]:
    """Let that many partitions leave in the next run, and name them."""
    names = sorted(shop.partitions(), key=lambda name: shop.partitions()[name])[:many]
    shop.policy(**leaving(many))
    return names


def leaving(many: int) -> dict[str, object]:
    """The policy under which that many of the fifteen months leave."""
    return {"keep": f"{15 - many} months", "max_drops": many}


@pytest.mark.long
def test_faults_that_stay_are_named_and_the_next_run_finishes(shop: Shop, road: Road) -> None:
    """Each partition meets another fault: none is proven or dropped, no row lost, until the road is good."""
    faults = dict(zip(old(shop, len(PERSISTENT)), PERSISTENT, strict=True))
    rows = {name: count(shop, name) for name in faults}
    rest = count(shop, "events") - sum(rows.values())
    for name, (verb, fault, *_) in faults.items():
        road.spoil(verb, fault, suffix=COPY if "Object" in verb else "", within=name)
    report = shop.roll()

    assert {verb for verb, *_ in PERSISTENT} == set(road.repair())
    assert Verdict.INCONCLUSIVE == report.verdict
    for name, (_, _, *words) in faults.items():
        (finding,) = (each for each in report.findings if each.subject == f"public.{name}")
        assert all(word in f"{finding.message} ({finding.hint})" for word in words), (words, finding)
    assert (rows, rest) == ({name: count(shop, name) for name in faults}, count(shop, "events"))
    assert [] == shop.objects("manifest.json")
    last = shop.roll()

    assert Verdict.VERIFIED == last.verdict, told(last)
    assert (sorted(rows.values()), rest) == (sorted(archived(last)), count(shop, "events"))
    assert 2 * len(faults) == len(shop.objects())


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


@pytest.mark.parametrize("step", ["", "drop"])
def test_a_clock_that_the_store_contradicts_lets_nothing_go(shop: Shop, road: Road, step: str) -> None:
    """Server and worker may share a clock that has jumped: nothing is detached, and nothing is dropped."""
    name = oldest(shop)
    rows = count(shop, name)
    then = datetime.now(UTC) - timedelta(days=60)
    shop.before = lambda now: road.spoil("HeadObject", at(then)) if now == step else None
    if not step:
        road.spoil("HeadObject", at(then))
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    assert "the store's clock and this host's differ by 60 days" in told(report)
    assert (rows, bool(step)) == (count(shop, name), name not in shop.partitions())


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


@pytest.mark.long
@pytest.mark.parametrize("fault", [failed_with_200, done_but_denied], ids=["not done", "done"])
def test_a_completion_that_failed_with_200_leaves_one_whole_copy(
    shop: Shop, road: Road, fault: Fault
) -> None:
    """Whether the store completed the upload or not: the run or the next one ends with one proven copy."""
    name = oldest(shop)
    noise = (
        "SELECT encode(string_agg(sha512((random()::text || n)::bytea), ''), 'base64')"
        " FROM generate_series(1, 275) AS n WHERE id > 0"
    )
    shop.sql(
        f"ALTER TABLE events ADD COLUMN noise text; ALTER TABLE {name} ALTER noise SET STORAGE EXTERNAL;"
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


KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"
LOCK = {"mode": "GOVERNANCE", "retain": "30d", "legal_hold": True}


@pytest.fixture
def vault(shop: Shop) -> Iterator[Any]:
    """A plain client, and a bucket that locks its objects."""
    client = boto3.client(
        "s3",
        endpoint_url=shop.sandbox.endpoint_url,
        region_name="us-east-1",
        verify=str(shop.sandbox.ca_file),
    )
    client.create_bucket(Bucket=bucket(shop), ObjectLockEnabledForBucket=True)
    yield client
    client.close()


def bucket(shop: Shop) -> str:
    return shop.database.replace("_", "-")


def locked(shop: Shop) -> None:
    """Archive into that bucket, under encryption, storage class and locks."""
    shop.s3 |= {"sse": "aws:kms", "kms_key_id": KEY, "storage_class": "STANDARD_IA"}
    shop.policy(**{**shop.policies[0], "archive": f"s3://{bucket(shop)}/x", "lock": LOCK})


def test_encryption_class_and_locks_are_kept_and_shown(shop: Shop, vault: Any) -> None:
    """Each leaf and the manifest have them by HEAD, the report tells; not even their owner destroys them."""
    make_deep(shop)
    locked(shop)
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, told(report)
    for leaf in report.manifests[0].leaves:
        mine = [check for check in report.checks if f".{leaf.name}.copy." in check.id]
        checks = {check.id.rpartition(".")[2]: check.actual for check in mine}
        assert f"aws:kms {KEY}" in checks["encryption"].replace("arn:aws:kms:us-east-1:123456789012:key/", "")
        assert ("STANDARD_IA", True) == (checks["class"], "legal hold" in checks["lock"])
    stored = list(shop.store.list(f"s3://{bucket(shop)}/"))
    assert 5 == len(stored)
    for item in stored:
        head = shop.store.head(item.uri)
        assert ("aws:kms", "STANDARD_IA") == (head.sse, head.storage_class)
        assert head.lock
        assert (True, "GOVERNANCE") == (head.lock.legal_hold, head.lock.mode)
        key = item.uri.removeprefix(f"s3://{bucket(shop)}/")
        with pytest.raises(vault.exceptions.ClientError, match="AccessDenied"):
            vault.delete_object(Bucket=bucket(shop), Key=key, VersionId=head.version_id)


@pytest.mark.usefixtures("vault")
@pytest.mark.parametrize("change", ["opened", "attached"])
def test_what_is_left_of_a_copy_that_was_given_up_is_named(shop: Shop, change: str) -> None:
    """Nothing proves it nobody's, and a lock may hold it: it stays, and the run says where and how much."""
    locked(shop)
    name = oldest(shop)
    bound = shop.partitions()[name]

    def stop(step: str) -> None:
        if step == "prove":
            raise StorageFailed("away")

    shop.before = stop
    shop.roll()
    shop.before = nothing
    (left,) = shop.store.list(f"s3://{bucket(shop)}/")
    if change == "opened":
        shop.sql(f"ALTER TABLE {name} DISABLE TRIGGER ALL")
    else:
        shop.sql(f"ALTER TABLE events ATTACH PARTITION {name} {bound}")
        shop.policy(**{**shop.policies[0], "keep": None})
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, told(report)
    (finding,) = (each for each in report.findings if each.code == "copy-remains")
    assert f"{left.uri.rpartition('/')[0]}/ has 1 objects of {left.size} bytes" in finding.message
    assert left.uri in {item.uri for item in shop.store.list(f"s3://{bucket(shop)}/")}


def test_a_head_that_says_otherwise_refutes(shop: Shop, road: Road, vault: Any) -> None:
    """A store that took the object and not what was asked for it: nothing is proven, nothing dropped."""
    assert vault
    name = oldest(shop)
    locked(shop)
    missing = {
        "encryption": "x-amz-server-side-encryption-aws-kms-key-id",
        "class": "x-amz-storage-class",
        "lock": "x-amz-object-lock-legal-hold",
    }
    for check, header in missing.items():
        told_of = without(header)
        shop.before = lambda step, fault=told_of: (
            road.spoil("HeadObject", fault, suffix=COPY) if step == "prove" else None
        )
        report = shop.roll()
        road.repair()

        assert Verdict.REFUTED == report.verdict, (check, told(report))
        assert f"{name}.copy.{check} refuted" in told(report)
        assert count(shop, name) > 0
    shop.before = lambda _: None
    assert Verdict.VERIFIED == shop.roll().verdict


def test_an_object_that_was_replaced_is_not_dropped_for(shop: Shop) -> None:
    """Another object of the same size, after the proof: the table stays and a new copy is made."""
    name = oldest(shop)
    rows = count(shop, name)

    def replace(step: str) -> None:
        if step == "drop":
            (uri,) = shop.objects(COPY)
            shop.store.put(uri, bytes(shop.store.head(uri).size))

    shop.before = replace
    first = shop.roll()
    shop.before = lambda _: None
    second = shop.roll()

    assert (Verdict.INCONCLUSIVE, Verdict.REFUTED) == (first.verdict, second.verdict)
    assert "its manifest says" in told(first)
    assert "copy-damaged" in {finding.code for finding in second.findings}
    assert rows == count(shop, name)
    last = shop.roll()
    assert (Verdict.VERIFIED, [rows]) == (last.verdict, archived(last)), told(last)


@pytest.mark.parametrize("has_versions", [False, True])
def test_an_object_that_is_replaced_while_it_is_proven_refutes(
    shop: Shop, vault: Any, has_versions: bool
) -> None:
    """Good bytes came down, then others of the same size took their place: it is not what was sent."""
    name, before = oldest(shop), []
    if has_versions:
        shop.policy(archive=f"s3://{bucket(shop)}/x")
    assert vault

    def replace(step: str) -> None:
        if step == "proving" and not before:
            where = shop.policies[0]["archive"]
            (uri,) = (each.uri for each in shop.store.list(where) if each.uri.endswith(COPY))
            before.append(shop.store.get(uri))
            shop.store.put(uri, bytes(len(before[0])))

    shop.before = replace
    report = shop.roll()

    assert Verdict.REFUTED == report.verdict, told(report)
    assert f"{name}.copy.stored refuted" in told(report)
    assert count(shop, name) > 0
    assert Verdict.VERIFIED == shop.roll().verdict


def test_a_manifest_that_was_replaced_with_its_rows_is_not_believed(shop: Shop) -> None:
    """Who writes to the bucket can make an empty copy that agrees with itself, but not with the database."""
    shop.policy(drop="keep")
    name = oldest(shop)
    rows = count(shop, name)
    (known,) = shop.roll().manifests
    empty = zstandard.ZstdCompressor().compress(b"")
    put = shop.store.put(known.rows.uri, empty)
    marks = {"size": put.size, "etag": put.etag, "version_id": put.version_id, "text_size": 0}
    forged = known.rows.model_copy(update={**marks, "sha256": hashlib.sha256(empty).hexdigest()})
    (uri,) = shop.objects("manifest.json")
    shop.store.put(uri, to_bytes(known.model_copy(update={"rows": forged, "digest": digest_of([], ())})))
    shop.policy()
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict, told(report)
    assert "on record" in told(report)
    assert rows == count(shop, name)
    last = shop.roll()
    assert (Verdict.VERIFIED, [rows]) == (last.verdict, archived(last)), told(last)


def test_a_key_that_is_taken_keeps_its_bytes(shop: Shop) -> None:
    """Somebody's object at the manifest's address is not written over, and nothing is dropped."""
    name = oldest(shop)
    taken: list[str] = []

    def take(step: str) -> None:
        if step == "prove":
            taken.append(shop.objects(COPY)[0].rpartition("/")[0] + "/manifest.json")
            shop.store.put(taken[0], b"somebody's")

    shop.before = take
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    assert "exists already; nothing was overwritten" in told(report)
    assert (b"somebody's", True) == (shop.store.get(taken[0]), count(shop, name) > 0)


@pytest.mark.long
def test_a_legal_hold_beats_each_drop_policy(shop: Shop) -> None:
    """Detached tables with proven copies stay while they are held, and the one that is not goes."""
    policies: list[object] = ["proven", {"after": "1s"}, "approve"]
    held = old(shop, 1 + len(policies))
    leave = leaving(len(held))
    shop.policy(drop="keep", **leave)
    shop.roll()
    shop.sql("UPDATE pgvigil.departure SET detached_at = detached_at - interval '1 hour'")
    for drop in policies:
        freed, *held = held
        shop.policy(drop=drop, hold=held, **leave)
        report = shop.roll(approve=approval(shop.roll(dry_run=True)) if drop == "approve" else "")
        actions = {outcome.partition: outcome.action for outcome in report.outcomes}

        assert {freed: "drop"} | dict.fromkeys(held, "keep") == actions, drop
        assert all(count(shop, name) > 0 for name in held)


def approval(report: Any) -> str:
    return next((plan.digest for plan in report.plans), "")


def test_who_writes_into_the_very_partition_loses_no_row(shop: Shop) -> None:
    """By its name, all the while: each write that was accepted is in the archive, later ones are refused."""
    name = oldest(shop)
    moment = shop.sql(f"SELECT min(created_at)::text AS at FROM {name}")[0]["at"]
    before = count(shop, name)
    is_over, written, refusals = threading.Event(), [], []

    def write() -> None:
        with shop.session() as session:
            while not is_over.is_set() and not refusals:
                row = f"(-{len(written) + 1}, '{moment}', 1, 'late', '{{}}')"
                try:
                    run(
                        session,
                        f"INSERT INTO {name} (id, created_at, customer_id, kind, payload)"
                        f" OVERRIDING SYSTEM VALUE VALUES {row}",
                    )
                    written.append(1)
                except Exception as error:
                    refusals.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        report = shop.roll()
    finally:
        is_over.set()
        writer.join()

    assert Verdict.VERIFIED == report.verdict, told(report)
    assert [before + len(written)] == archived(report)
    assert "is being archived and takes no writes" in refusals[0]
