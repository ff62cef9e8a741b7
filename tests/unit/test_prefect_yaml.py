import pkgutil
from pathlib import Path

import pytest

import flows
from deployments.manifest import FILE, load_manifest
from pgvigil.errors import ConfigError

GOOD = FILE.read_text(encoding="utf-8")


def refusal(directory: Path, text: str) -> str:
    file = directory / "prefect.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_manifest(["demo"], file)
    return caught.value.message


def test_a_schedule_that_names_the_cluster_is_made_for_each_cluster() -> None:
    """Every cluster has its own slug and its own parameters."""
    scheduled = [each for each in load_manifest(["orders", "billing"]).deployments if each.schedules]
    assert len(scheduled) > 2
    for deployment in scheduled:
        (first, second) = deployment.schedules
        assert ({"cluster": "orders"}, {"cluster": "billing"}) == (first.parameters, second.parameters)
        assert first.slug.removesuffix("-orders") == second.slug.removesuffix("-billing")


def test_a_schedule_that_names_the_database_is_made_for_each_with_partitions() -> None:
    """Without any, the deployment is there and its schedule is not."""
    (rolled,) = [
        d for d in load_manifest(["demo"], databases=["demo/shop"]).deployments if d.name == "roll-partitions"
    ]

    assert [("partitions-demo/shop", {"database": "demo/shop"})] == [
        (s.slug, s.parameters) for s in rolled.schedules
    ]
    assert () == next(d.schedules for d in load_manifest(["demo"]).deployments if d.name == rolled.name)


def test_entry_points_are_module_paths() -> None:
    """Every flow is deployed, by its module; a file entry point would put flows/ in front of sys.path."""
    assert sorted(f"flows.{name}:{name}" for name in flow_names()) == sorted(
        deployment.entrypoint for deployment in load_manifest(["demo"]).deployments
    )


def flow_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(flows.__path__)]


def test_runs_start_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGVIGIL_HOME is the worker's checkout."""
    monkeypatch.setenv("PGVIGIL_HOME", "/opt/pgvigil")

    assert load_manifest(["demo"]).pull == (
        {"prefect.deployments.steps.set_working_directory": {"directory": "/opt/pgvigil"}},
    )


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (
            "enforce_parameter_schema",
            "enforce_schema",
            "deployments.nightly-backup.enforce_schema is unknown",
        ),
        ("entrypoint:", "entry_point:", "did you mean 'entrypoint'?"),
        ("timezone: Etc/UTC", "timezone: Etc/UTX", "'Etc/UTX' is no IANA time zone"),
        ("timezone: Etc/UTC", "timezone: Etc/UTC\n        active: true", "active is unknown"),
        ("slug:", "slugg:", "did you mean 'slug'?"),
        ("    work_pool: *pool\n", "", "deployments.nightly-backup.work_pool is missing"),
        ("flows.nightly_backup:", "flows/nightly_backup.py:", "deployments.nightly-backup.entrypoint"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, right: str, wrong: str, told: str) -> None:
    """What Prefect would ignore is refused with its path and the nearest name."""
    assert right in GOOD
    assert told in refusal(tmp_path, GOOD.replace(right, wrong))


@pytest.mark.parametrize("text", ["", "- a", "name: [", "name: x"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    """Nothing, a list, bad YAML, and no deployments each give one message."""
    assert refusal(tmp_path, text)
