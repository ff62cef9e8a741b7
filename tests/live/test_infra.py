"""Files of infra/ whose own programs say whether they are right."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import hcl2
import pytest
from moto.server import ThreadedMotoServer

INFRA = Path(__file__).parents[2] / "infra"
HAPROXY = "/usr/sbin/haproxy"
# Terraform asks its registry for the provider of AWS, unless a directory has it.
MIRRORS = [os.environ.get("PGVIGIL_TERRAFORM_MIRROR", ""), "/usr/share/terraform/plugins", "/opt/tf-plugins"]
MIRROR = next((place for place in MIRRORS if place and Path(place).is_dir()), None)


def run(*argv: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Every option that the installed pgBackRest knows, without the number of repository or cluster."""
    commands = re.findall(r"^    ([a-z-]+)  ", run("pgbackrest", "help").stdout, re.MULTILINE)
    helps = (run("pgbackrest", "help", command).stdout for command in commands)
    return {option for text in helps for option in re.findall(r"^  --([a-z0-9-]+)", text, re.MULTILINE)}


@pytest.mark.parametrize("file", sorted((INFRA / "pgbackrest").glob("*.conf")), ids=lambda file: file.name)
def test_every_option_of_pgbackrest_is_one_that_there_is(file: Path, options: set[str]) -> None:
    """What stands there, and what is offered in a comment: a misspelled option is a warning in a log."""
    named = re.findall(r"^#?([a-z][a-z0-9-]+)=", file.read_text(encoding="utf-8"), re.MULTILINE)
    known = {re.sub(r"^(repo|pg)\d+-", r"\1-", option) for option in named}

    assert len(options) > 100
    assert known - options == set()


def test_haproxy_takes_its_file() -> None:
    """As it stands, and with other places from the environment."""
    file = INFRA / "haproxy" / "haproxy.cfg"

    for places in ({}, {"FRONT": "127.0.0.1:4300", "API_1": "127.0.0.1:1", "API_2": "127.0.0.1:2"}):
        done = run(HAPROXY, "-c", "-f", file, **places)
        assert (done.returncode, re.findall("WARNING|ALERT", done.stderr)) == (0, []), done.stderr


@pytest.fixture(scope="module")
def blocks() -> dict[str, dict[str, Any]]:
    """What the Terraform files declare, by the address under which it is referred to; needs no Terraform."""
    found: dict[str, dict[str, Any]] = {}
    for file in (INFRA / "terraform").glob("*.tf"):
        document = hcl2.loads(file.read_text(encoding="utf-8"))
        for each in document.get("variable", ()):
            found |= {f"var.{_bare(name)}": body for name, body in each.items()}
        for each in document.get("locals", ()):
            found |= {f"local.{name}": {} for name in each}
        for kind, before in (("resource", ""), ("data", "data.")):
            for each in document.get(kind, ()):
                ((of, named),) = each.items()
                found |= {f"{before}{_bare(of)}.{_bare(name)}": body for name, body in named.items()}
    return found


def _bare(text: str) -> str:
    return text.strip('"')


def test_terraform_refers_to_what_there_is(blocks: dict[str, dict[str, Any]]) -> None:
    """The files are the language's, each name in them is declared, and each variable is used."""
    texts = [file.read_text(encoding="utf-8") for file in (INFRA / "terraform").glob("*.tf")]
    code = re.sub(r"#.*", "", "\n".join(texts))
    named = set(re.findall(r"\b((?:data\.)?(?:var|local|aws_\w+)\.\w+)", code))

    assert len(named) > 10
    assert named - blocks.keys() == set()
    assert {address for address in blocks if address.startswith("var.")} - named == set()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("public_access_block", {"block_public_policy": True, "restrict_public_buckets": True}),
        ("versioning", {"versioning_configuration": [{"status": '"Enabled"'}]}),
        ("server_side_encryption_configuration", {}),
        ("lifecycle_configuration", {}),
        ("policy", {}),
    ],
)
def test_no_bucket_of_terraform_is_left_open(
    blocks: dict[str, dict[str, Any]], kind: str, told: dict[str, Any]
) -> None:
    """Each of these is made for every bucket."""
    body = _plain(blocks[f"aws_s3_bucket_{kind}.this"])

    assert body["for_each"] == "${local.buckets}"
    assert {key: body[key] for key in told} == told


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not key.startswith("__")}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def terraform(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the Terraform files, initialized with the provider of a local directory."""
    copy = tmp_path_factory.mktemp("terraform")
    for folder in ("terraform", "iam"):
        shutil.copytree(INFRA / folder, copy / folder, ignore=shutil.ignore_patterns(".terraform*"))
    done = run(
        *("terraform", "init", "-backend=false", "-input=false", f"-plugin-dir={MIRROR}"),
        cwd=copy / "terraform",
        TF_CLI_CONFIG_FILE=os.devnull,
    )
    assert done.returncode == 0, done.stderr
    return copy / "terraform"


def terraform_is_here() -> bool:
    return bool(shutil.which("terraform") and MIRROR)


@pytest.mark.long
@pytest.mark.skipif(not terraform_is_here(), reason="no terraform with a provider to ask")
def test_terraform_finds_no_fault(terraform: Path) -> None:
    """Every resource, argument and reference is one that the provider has, and the files are formatted."""
    done = run("terraform", "validate", "-json", cwd=terraform, TF_CLI_CONFIG_FILE=os.devnull)

    assert json.loads(done.stdout)["diagnostics"] == []
    assert run("terraform", "fmt", "-check", "-diff", cwd=terraform).stdout == ""


@pytest.fixture(scope="module")
def amazon() -> Iterator[str]:
    """An endpoint that answers like Amazon's for buckets, keys and rights."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture(scope="module")
def applied(terraform: Path, amazon: str) -> Any:
    """A client of the buckets that Terraform has made there, all of the files applied."""
    services = ("iam", "kms", "s3", "sts")
    provider = {
        "region": "us-east-1",
        "access_key": "planted",
        "secret_key": "planted",
        **dict.fromkeys(("skip_credentials_validation", "skip_metadata_api_check"), True),
        **dict.fromkeys(("skip_requesting_account_id", "s3_use_path_style"), True),
        "endpoints": dict.fromkeys(services, amazon),
    }
    place = terraform / "provider.tf.json"
    place.write_text(json.dumps({"provider": {"aws": provider}}), encoding="utf-8")
    given = {"prefix": "acme", "archive_lock_days": 30, "trusted": {"drill": ["arn:aws:iam::1:role/host"]}}
    (terraform / "terraform.tfvars.json").write_text(json.dumps(given), encoding="utf-8")
    apply = ("terraform", "apply", "-auto-approve", "-input=false", "-no-color")
    done = run(*apply, cwd=terraform, TF_CLI_CONFIG_FILE=os.devnull)
    assert done.returncode == 0, done.stderr
    keys = {"aws_access_key_id": "planted", "aws_secret_access_key": "planted"}
    return boto3.client("s3", endpoint_url=amazon, region_name="us-east-1", **keys)


@pytest.mark.long
@pytest.mark.skipif(not terraform_is_here(), reason="no terraform with a provider to ask")
@pytest.mark.parametrize("bucket", ["acme-repository", "acme-archive", "acme-reports"])
def test_every_bucket_keeps_closes_and_clears(applied: Any, bucket: str) -> None:
    """Versions are kept, nothing is public or in clear, and unfinished uploads are dropped."""
    rules = applied.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    closed = applied.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    (sse,) = applied.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]

    assert applied.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert [rule["AbortIncompleteMultipartUpload"] for rule in rules if "upload" in rule["ID"]] == [
        {"DaysAfterInitiation": 7}
    ]
    assert set(closed.values()) == {True}
    assert sse["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "aws:kms"
    assert "SecureTransport" in applied.get_bucket_policy(Bucket=bucket)["Policy"]


@pytest.mark.long
@pytest.mark.skipif(not terraform_is_here(), reason="no terraform with a provider to ask")
def test_what_must_not_be_edited_is_locked(applied: Any) -> None:
    """Archive and reports have Object Lock; pgBackRest's repository expires by deleting, and has none."""
    for bucket in ("acme-archive", "acme-reports"):
        lock = applied.get_object_lock_configuration(Bucket=bucket)["ObjectLockConfiguration"]
        assert lock["Rule"]["DefaultRetention"].items() >= {"Mode": "GOVERNANCE", "Days": 30}.items()
    with pytest.raises(applied.exceptions.ClientError, match="ObjectLockConfigurationNotFound"):
        applied.get_object_lock_configuration(Bucket="acme-repository")
