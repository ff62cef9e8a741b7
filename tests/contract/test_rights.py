import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from string import Template
from typing import Any

import boto3
import pytest
from urllib3 import HTTPSConnectionPool

from pgvigil import objectstore
from pgvigil.errors import StorageFailed
from pgvigil.fleet import S3Settings
from pgvigil.objectstore import MIN_PART, ObjectLock, ObjectStore, UnfinishedUpload, connect

IAM = Path(__file__).parents[2] / "infra" / "iam"
NAMES = {"repository": "repository", "archive": "locked", "reports": "plain", "key": "*"}
FOREVER = "inf"

# What S3 asks for an operation where the right is not called like it, and for what an operation brings along.
RIGHTS = {
    "ListObjectsV2": {"s3:ListBucket"},
    "ListMultipartUploads": {"s3:ListBucketMultipartUploads"},
    "HeadBucket": {"s3:ListBucket"},
    "HeadObject": {"s3:GetObject"},
    "CreateMultipartUpload": {"s3:PutObject"},
    "UploadPart": {"s3:PutObject"},
    "CompleteMultipartUpload": {"s3:PutObject"},
}
BROUGHT = {
    ("HeadObject", "VersionId"): {"s3:GetObjectVersion"},
    # A lock is read back by HEAD, which tells of it to who may know.
    ("PutObject", "ObjectLockMode"): {"s3:PutObjectRetention", "s3:GetObjectRetention"},
    ("PutObject", "ObjectLockLegalHoldStatus"): {"s3:PutObjectLegalHold", "s3:GetObjectLegalHold"},
    ("PutObject", "SSEKMSKeyId"): {"kms:GenerateDataKey"},
    # Parts are read again when they are put together, and an object when it is fetched.
    ("CreateMultipartUpload", "SSEKMSKeyId"): {"kms:GenerateDataKey", "kms:Decrypt"},
}
# pgBackRest's own four, of its manual: it lists with the same right, and uploads its parts with PutObject.
PGBACKREST = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject"}


def policy(name: str) -> dict[str, Any]:
    text = (IAM / f"{name}.json").read_text(encoding="utf-8")
    rights: dict[str, Any] = json.loads(Template(text).substitute(NAMES))
    return rights


def actions(name: str) -> set[str]:
    asked = [statement["Action"] for statement in policy(name)["Statement"]]
    return {action for each in asked for action in ([each] if isinstance(each, str) else each)}


def work(store: ObjectStore, lock: ObjectLock) -> None:
    """Do everything that pgvigil asks of an object store."""
    big = iter([bytes(MIN_PART), bytes(MIN_PART)])
    store.upload("s3://locked/rights/big", big, part_size=MIN_PART, lock=lock)
    store.put("s3://locked/rights/small", b"small", lock=lock)
    store.put("s3://plain/rights/report", b"{}", only_if_absent=True)
    assert store.get("s3://plain/rights/report") == b"{}"
    assert store.head("s3://locked/rights/small").lock is not None
    assert len(list(store.list("s3://locked/rights/"))) == 2
    for left in store.list_uploads("s3://locked/rights/"):
        store.abort_upload(left)
    store.abort_upload(UnfinishedUpload(uri="s3://locked/rights/gone", upload_id="gone"))
    store.probe("s3://plain/rights")
    assert store.now("s3://locked/rights/small") is not None
    store.delete("s3://plain/rights/report")


@pytest.fixture
def lock() -> ObjectLock:
    until = datetime.now(UTC) + timedelta(days=1)
    return ObjectLock(mode="GOVERNANCE", retain_until=until, legal_hold=True)


@pytest.fixture
def asked(raw: object, s3_settings: S3Settings, lock: ObjectLock) -> set[str]:
    """The rights of all that pgvigil asked of S3, each verb of the store done once."""
    assert raw
    made: set[str] = set()
    store = connect(s3_settings.model_copy(update={"sse": "aws:kms", "kms_key_id": "a-key"}))

    def note(params: dict[str, Any], model: Any, **_: object) -> None:
        made.update(RIGHTS.get(model.name, {f"s3:{model.name}"}))
        for name in params:
            made.update(BROUGHT.get((model.name, name), set()))

    store._client.meta.events.register("provide-client-params.s3", note)  # type: ignore[attr-defined]
    work(store, lock)
    store._set_lock("s3://locked/rights/small", None, lock)  # type: ignore[attr-defined]
    return made


def test_the_archive_may_do_what_pgvigil_does_and_no_more(asked: set[str]) -> None:
    """The policy allows exactly the rights of the calls that were seen."""
    assert actions("archive") == asked


def test_no_verb_of_the_store_was_left_out(asked: set[str]) -> None:
    """Every call that stands in the store's source is among those that the policy was compared with."""
    source = inspect.getsource(objectstore.S3ObjectStore)
    called = re.findall(r"_client\.(?!get_paginator)(\w+)\(", source)
    called += re.findall(r'paginator\("(\w+)"', source)
    client = boto3.client("s3", region_name="us-east-1")
    operations = {client.meta.method_to_api_mapping[name] for name in called}

    assert len(operations) == 13
    assert {right for each in operations for right in RIGHTS.get(each, {f"s3:{each}"})} <= asked


def test_a_drill_reads_what_a_backup_writes_and_can_change_nothing() -> None:
    """Its rights are those of the backup without the two that write, and without closing anything anew."""
    assert actions("backup") == PGBACKREST | {"kms:GenerateDataKey", "kms:Decrypt"}
    assert actions("drill") == {"s3:ListBucket", "s3:GetObject", "kms:Decrypt"}


@pytest.mark.parametrize("name", ["backup", "archive", "drill"])
def test_every_right_is_one_that_there_is(name: str) -> None:
    """Its name is an operation of the service as boto3 knows it, or belongs to one that is listed here."""
    known = {right for rights in [*RIGHTS.values(), *BROUGHT.values()] for right in rights}
    for service in ("s3", "kms"):
        client = boto3.client(service, region_name="us-east-1")
        known |= {f"{service}:{operation}" for operation in client.meta.service_model.operation_names}

    assert actions(name) - known == set()


@pytest.mark.parametrize("name", ["backup", "archive", "drill"])
def test_no_right_reaches_beyond_the_named_buckets(name: str) -> None:
    """Nothing is allowed on every bucket or every key, and no action is a pattern."""
    text = (IAM / f"{name}.json").read_text(encoding="utf-8")
    resources = [statement["Resource"] for statement in json.loads(text)["Statement"]]
    named = [
        each for resource in resources for each in ([resource] if isinstance(resource, str) else resource)
    ]

    assert all(re.fullmatch(r"arn:aws:s3:::\$\{\w+\}(/\*)?|\$\{key\}", each) for each in named)
    assert not [action for action in actions(name) if "*" in action]


@contextmanager
def as_user(settings: S3Settings, name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """Be somebody with one of the policies, at an endpoint that from here on asks for rights."""
    iam = boto3.client(
        "iam",
        endpoint_url=settings.endpoint_url,
        region_name=settings.region,
        verify=str(settings.ca_file),
    )
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName=name, PolicyDocument=json.dumps(policy(name)))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
    _ask_for_rights(settings, "0")
    try:
        yield connect(settings)
    finally:
        _ask_for_rights(settings, FOREVER)


def _ask_for_rights(settings: S3Settings, after: str) -> None:
    port = int(str(settings.endpoint_url).rpartition(":")[2])
    with HTTPSConnectionPool("127.0.0.1", port, ca_certs=str(settings.ca_file)) as pool:
        assert pool.request("POST", "/moto-api/reset-auth", body=after).status == 200


def test_with_the_archives_rights_everything_works(
    raw: Any, s3_settings: S3Settings, lock: ObjectLock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint that asks for rights lets pgvigil work, and keeps it from pgBackRest's repository."""
    raw.create_bucket(Bucket="repository")
    with as_user(s3_settings, "archive", monkeypatch) as store:
        work(store, lock)
        with pytest.raises(StorageFailed, match="AccessDenied"):
            store.put("s3://repository/orders/backup.info", b"")


def test_with_the_drills_rights_nothing_can_be_changed(
    raw: Any, s3_settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repository can be read; a write and a removal are refused, and the object is still there."""
    raw.create_bucket(Bucket="repository")
    raw.put_object(Bucket="repository", Key="orders/backup.info", Body=b"info")
    with as_user(s3_settings, "drill", monkeypatch) as store:
        assert store.get("s3://repository/orders/backup.info") == b"info"
        for change in (store.delete, lambda uri: store.put(uri, b"")):
            with pytest.raises(StorageFailed, match="AccessDenied"):
                change("s3://repository/orders/backup.info")
        assert [each.size for each in store.list("s3://repository/orders/")] == [4]
