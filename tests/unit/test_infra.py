"""Claims about the files in infra/ that need nothing but the files and what they configure."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_asyncio.client
import prefect_kubernetes.settings
import prefect_redis.cleanup_queue
import prefect_redis.client
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings import Settings
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration
from prefect_docker.worker import DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from pydantic import BaseModel
from pydantic_settings import BaseSettings

from deployments.cli import app
from pgvigil.fleet import load_fleet

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
PAGE = ROOT / "docs" / "infra.md"
SETTINGS: tuple[type[BaseSettings], ...] = (
    Settings,
    prefect_redis.client.RedisMessagingSettings,
    prefect_redis.cleanup_queue.RedisWorkerCleanupQueueSettings,
    prefect_kubernetes.settings.KubernetesSettings,
)
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY|_URL$|TOKEN|CIPHER|-pass$|s3-key")
REFERENCE = re.compile(r"_SECRET_(NAME|KEY)$")
NO_SECRET = {"PREFECT_API_URL", "PREFECT_SERVER_UI_API_URL", "PREFECT_UI_URL", "repo1-s3-key-type"}
SCALARS: dict[str, type | tuple[type, ...]] = {"str": (str, int), "int": int, "bool": bool}
DEFINITIONS = [*sorted((INFRA / "kubernetes").glob("*.yaml")), *sorted((INFRA / "helm").glob("*.yaml"))]
POOLS: dict[str, Any] = {
    "process": ProcessJobConfiguration,
    "docker": DockerWorkerJobConfiguration,
    "kubernetes": KubernetesWorkerJobConfiguration,
}


def files() -> list[Path]:
    return [file for file in sorted(INFRA.rglob("*")) if file.is_file() and ".terraform" not in file.parts]


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def assignments(file: Path) -> dict[str, str]:
    lines = (line.removeprefix("#") for line in text(file).splitlines())
    return dict(re.findall(r"^([A-Za-z][\w-]*)=(.*)$", "\n".join(lines), re.MULTILINE))


def documents(file: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text(file)) if document]


def compose() -> dict[str, Any]:
    (document,) = documents(INFRA / "compose" / "compose.yaml")
    return document


def pool(kind: str) -> dict[str, Any]:
    template: dict[str, Any] = json.loads(text(INFRA / "pools" / f"{kind}.json"))
    return template


def test_the_page_says_of_everything_how_it_was_looked_at() -> None:
    """Each file or folder of infra/ has its row in the page's last table."""
    told = set(re.findall(r"`([\w.-]+)(?:/[\w.-]*)?`", text(PAGE).partition("## What was run")[2]))

    assert {entry.name for entry in INFRA.iterdir()} - told == set()


def test_the_fleet_file_of_the_page_is_one(tmp_path: Path) -> None:
    """What it shows for a cluster with other backups can be read, and leaves it out of three waves."""
    (shown,) = re.findall(r"```yaml\n(.*?)```", text(PAGE), re.DOTALL)
    file = tmp_path / "fleet.yaml"
    file.write_text(shown, encoding="utf-8")
    fleet = load_fleet(file)

    left_out = [name for name in fleet.waves if fleet.wave(name).refusal("orders", ())]
    assert left_out == ["nightly-backup", "verify-wal-archive", "restore-drill"]


# --- names of others that must be right ---


def variables(model: type[BaseModel]) -> Iterator[str]:
    """Every variable from which a settings model is filled."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseSettings):
            yield from variables(kind)
        yield f"{model.model_config.get('env_prefix', '')}{name}".upper()


@pytest.mark.parametrize("file", [*files(), PAGE], ids=lambda file: file.name)
def test_every_setting_of_prefect_is_one_that_there_is(file: Path) -> None:
    """Prefect ignores a variable that it does not know: authentication misspelled is authentication off."""
    known = {name for model in SETTINGS for name in variables(model)}

    assert set(re.findall(r"\bPREFECT_[A-Z0-9_]+\b", text(file))) - known == set()


def names_unknown_to_kubernetes(value: Any, kind: str, path: str = "") -> Iterator[str]:
    """Compare a manifest with the models of the client that the worker uses; yields what they don't have."""
    if listed := re.fullmatch(r"list\[(.+)\]", kind):
        for number, item in enumerate(value):
            yield from names_unknown_to_kubernetes(item, listed[1], f"{path}[{number}]")
    elif mapped := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for name, item in value.items():
            yield from names_unknown_to_kubernetes(item, mapped[1], f"{path}.{name}")
    elif kind in SCALARS:
        if not isinstance(value, SCALARS[kind]):
            yield f"{path}: {value!r} is no {kind}"
    elif (model := getattr(kubernetes_asyncio.client, kind, None)) is not None:
        fields = {spelled: model.openapi_types[name] for name, spelled in model.attribute_map.items()}
        for name, item in value.items():
            if name in fields:
                yield from names_unknown_to_kubernetes(item, fields[name], f"{path}.{name}")
            else:
                yield f"{path}.{name} is unknown"


def test_what_kubernetes_is_told_are_names_that_it_has() -> None:
    """Each manifest of its own kinds has no field that the API does not."""
    told = documents(INFRA / "kubernetes" / "pgvigil.yaml")

    assert [each["kind"] for each in told] == [
        "ServiceAccount",
        "PersistentVolumeClaim",
        "NetworkPolicy",
        "NetworkPolicy",
    ]
    assert [fault for each in told for fault in names_unknown_to_kubernetes(each, f"V1{each['kind']}")] == []


def test_a_misspelled_name_is_found() -> None:
    """The comparison itself can fail: in a list of a nested object, and where a text stands for a number."""
    pod = {"spec": {"containers": [{"name": "run", "imagePullPolice": "Never"}], "priority": "high"}}

    assert list(names_unknown_to_kubernetes(pod, "V1Pod")) == [
        ".spec.containers[0].imagePullPolice is unknown",
        ".spec.priority: 'high' is no int",
    ]


# --- work pools ---


def prepared(kind: str) -> Any:
    """What the worker of a pool makes of its template for one run: Prefect's own code, without a server."""
    template = pool(kind)
    shown = template["variables"]["properties"].items()
    defaults = {name: variable["default"] for name, variable in shown if "default" in variable}
    filled = apply_values(template["job_configuration"], defaults)
    made = POOLS[kind](**filled)
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="a-run"))
    return made


@pytest.mark.parametrize("kind", POOLS)
def test_a_pools_template_has_a_variable_for_each_place_and_a_place_for_each(kind: str) -> None:
    """A variable without a place would be shown in the UI and do nothing."""
    template = pool(kind)
    places = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))

    assert places == set(template["variables"]["properties"])


@pytest.mark.parametrize("kind", POOLS)
def test_every_variable_of_a_pool_explains_itself(kind: str) -> None:
    """It has a title and one sentence."""
    shown = pool(kind)["variables"]["properties"].values()

    assert [each for each in shown if not each["title"] or not each["description"].endswith(".")] == []


@pytest.mark.parametrize("kind", POOLS)
def test_a_run_of_every_pool_knows_the_fleet_file(kind: str) -> None:
    """PGVIGIL_FLEET is set, whatever starts the run."""
    env = prepared(kind).env
    named = {each["name"]: each["value"] for each in env} if isinstance(env, list) else env

    assert named["PGVIGIL_FLEET"] == "/etc/pgvigil/fleet.yaml"


def test_a_job_has_scratch_that_goes_with_it_and_a_spool_that_stays() -> None:
    """A drill's copy is on a volume of the pod's own; audit events that wait are on one that outlives it."""
    job = prepared("kubernetes").job_manifest
    pod = job["spec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}

    assert list(names_unknown_to_kubernetes(job, "V1Job")) == []
    assert "volumeClaimTemplate" in volumes[mounts["/var/lib/pgvigil/drill"]]["ephemeral"]
    assert "persistentVolumeClaim" in volumes[mounts["/var/lib/pgvigil/spool"]]
    assert mounts["/etc/pgvigil"] == "fleet"
    assert job["metadata"]["labels"]["prefect.io/flow-run-name"] == "a-run"
    assert pod["containers"][0]["args"]


def test_a_container_has_scratch_spool_and_fleet_file() -> None:
    """The docker pool mounts the same places, and gives no container rights over the host."""
    made = prepared("docker")
    places = {volume.split(":")[1] for volume in made.volumes}

    assert {"/var/lib/pgvigil/drill", "/var/lib/pgvigil/spool", "/etc/pgvigil/fleet.yaml"} <= places
    assert not made.privileged


def test_a_run_in_a_container_has_only_the_secrets_of_its_work() -> None:
    """The server's own, which lie in the same directory of the host, are none of them."""
    sources = {volume.partition(":")[0] for volume in prepared("docker").volumes}

    assert {source for source in sources if "secrets" in source} == {
        "/etc/pgvigil/secrets/pgpass",
        "/etc/pgvigil/secrets/aws",
    }


# --- nothing secret, nothing open ---


@pytest.mark.parametrize("file", files(), ids=lambda file: file.name)
def test_no_file_has_a_secret(file: Path) -> None:
    """What is named like a secret has no value here: it comes by reference, or its place is left empty."""
    given = {name: value for name, value in assignments(file).items() if value}

    assert {name for name in given if SECRET.search(name)} - NO_SECRET == set()


@pytest.mark.parametrize("file", DEFINITIONS, ids=lambda file: file.name)
def test_no_definition_has_a_secret(file: Path) -> None:
    """No manifest is a Secret, and a variable that is named like one is filled from a reference."""
    for document in documents(file):
        assert document.get("kind") != "Secret"
        given = re.findall(r"name: (\w+), value: \S+", json.dumps(document).replace('"', ""))
        assert [name for name in given if SECRET.search(name) and not REFERENCE.search(name)] == []


def test_the_server_asks_for_a_password_and_answers_its_own_page_only() -> None:
    """Authentication comes from the secrets; forgery protection is on, no origin is let in by pattern."""
    server = assignments(INFRA / "prefect" / "server.env")

    assert "PREFECT_SERVER_API_AUTH_STRING" in assignments(INFRA / "prefect" / "server.secrets.env.example")
    assert server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert server["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"
    assert server["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert server["PREFECT_SERVER_API_HOST"] == "127.0.0.1"


def test_the_charts_are_told_what_the_env_file_tells() -> None:
    """Every switch that is off or on for reasons of security is so in Kubernetes as well."""
    (values,) = documents(INFRA / "helm" / "prefect-server.yaml")
    told = {each["name"]: each["value"] for each in values["global"]["prefect"]["env"]}
    server = assignments(INFRA / "prefect" / "server.env")
    shared = told.keys() & server.keys()

    assert {name: told[name] for name in shared} == {name: server[name] for name in shared}
    assert {"PREFECT_SERVER_ANALYTICS_ENABLED", "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"} <= shared
    assert values["server"]["basicAuth"] == {"enabled": True, "existingSecret": "pgvigil-api-auth"}
    assert values["service"]["type"] == "ClusterIP"


def test_compose_publishes_on_loopback_only() -> None:
    """One port, of the front; every other part is reached within."""
    published = {name: each["ports"] for name, each in compose()["services"].items() if "ports" in each}

    assert published == {"front": ["127.0.0.1:4200:4200"]}


def test_compose_is_whole() -> None:
    """Every secret, network, volume, file and service that a service names is there."""
    document = compose()
    for name, service in document["services"].items():
        secrets = {each if isinstance(each, str) else each["source"] for each in service.get("secrets", ())}
        mounted = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        named = {each for each in mounted if re.fullmatch(r"[a-z][\w-]*", each)}
        files_named = [*service.get("env_file", ()), *(each for each in mounted if each.startswith(".."))]

        assert secrets <= document["secrets"].keys(), name
        assert set(service["networks"]) <= document["networks"].keys(), name
        assert named <= document["volumes"].keys(), name
        assert set(service.get("depends_on", ())) <= document["services"].keys(), name
        assert [each for each in files_named if not (INFRA / "compose" / each).is_file()] == [], name


@pytest.mark.parametrize("part", ["api-1", "api-2", "services", "migration"])
def test_every_part_of_the_server_gets_the_same_secrets(part: str) -> None:
    """A part without the shared Redis would keep to itself what the others wait for."""
    given = {
        each if isinstance(each, str) else each["target"] for each in compose()["services"][part]["secrets"]
    }

    assert given == assignments(INFRA / "prefect" / "server.secrets.env.example").keys()


# --- the image ---


def test_the_image_has_what_it_copies() -> None:
    """Each source is in the checkout, and nothing that is copied is kept from the builder."""
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text(INFRA / "image" / "Dockerfile"), re.MULTILINE)
    sources = {source for line in copied for source in line.split()}
    sent = set(re.findall(r"^!(\S+)$", text(ROOT / ".dockerignore"), re.MULTILINE))

    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {source.partition("/")[0] for source in sources} == sent


def test_the_image_runs_as_the_user_that_charts_and_jobs_ask_for() -> None:
    """One number in all of them, and it is not root's."""
    (user,) = re.findall(r"^USER (\d+):\d+$", text(INFRA / "image" / "Dockerfile"), re.MULTILINE)
    (values,) = documents(INFRA / "helm" / "prefect-server.yaml")
    pod = prepared("kubernetes").job_manifest["spec"]["template"]["spec"]["securityContext"]

    assert int(user) == values["server"]["containerSecurityContext"]["runAsUser"] == pod["runAsUser"] > 0


def test_the_entrypoint_turns_mounted_files_into_variables(tmp_path: Path) -> None:
    """A file named like a variable is one; others are left alone; the password file is for its owner only."""
    (tmp_path / "PREFECT_API_AUTH_STRING").write_text("admin:its 'word'", encoding="utf-8")
    (tmp_path / "aws").write_text("[default]", encoding="utf-8")
    (tmp_path / "pgpass").write_text("*:*:*:*:word", encoding="utf-8")
    (tmp_path / "pgpass").chmod(0o644)
    kept = tmp_path / "kept"
    kept.mkdir()
    env = {"PATH": "/usr/bin:/bin", "SECRETS": str(tmp_path), "TMPDIR": str(kept)}

    shown = subprocess.run(
        [INFRA / "image" / "entrypoint", "env"], env=env, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert "PREFECT_API_AUTH_STRING=admin:its 'word'" in shown
    assert not [line for line in shown if line.startswith("aws")]
    assert f"PGPASSFILE={kept}/pgpass" in shown
    assert (kept / "pgpass").stat().st_mode & 0o777 == 0o600


# --- files that have a tool of their own ---


def test_every_command_of_ours_that_a_unit_runs_is_one() -> None:
    """A stop that calls what there is not would kill the runs that it should wait for."""
    units = "".join(text(unit) for unit in (INFRA / "systemd").glob("*.service"))
    named = set(re.findall(r"bin/pgvigil (\w+)", units))

    assert named == {"drain"}
    assert named <= {command.name or command.callback.__name__ for command in app.registered_commands}


@pytest.mark.parametrize("unit", sorted((INFRA / "systemd").glob("*.service")), ids=lambda unit: unit.name)
def test_systemd_understands_every_unit(unit: Path, tmp_path: Path) -> None:
    """systemd-analyze has nothing to say of it, with the installed program at its place."""
    for each in (INFRA / "systemd").glob("*.service"):
        placed = (
            text(each)
            .replace("/opt/pgvigil/.venv/bin/", "/usr/bin/")
            .replace("/usr/bin/prefect", "/bin/true")
        )
        (tmp_path / each.name).write_text(placed, encoding="utf-8")
    name = unit.name.replace("@", "@4201")

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        capture_output=True,
        text=True,
        check=False,
    )

    assert [line for line in done.stderr.splitlines() if "pgvigil" in line] == []
    assert done.returncode == 0
