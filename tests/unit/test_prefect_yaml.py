import pkgutil
from pathlib import Path

import pytest

import flows
from deployments.manifest import FILE, DeploymentEntry, load_manifest, perils, read_manifest
from pgvigil.errors import ConfigError
from pgvigil.fleet import Fleet
from tests.fixtures.fleet import fleet

GOOD = FILE.read_text(encoding="utf-8")


def refusal(directory: Path, text: str) -> str:
    file = directory / "prefect.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_manifest(file)
    return caught.value.message


def entry(fleet: Fleet, name: str) -> DeploymentEntry:
    return next(each for each in read_manifest(fleet).deployments if each.name == name)


def test_every_pipeline_that_runs_unattended_has_its_wave() -> None:
    """One scheduled deployment each, and none for a pipeline that nobody has."""
    waves = [each for each in read_manifest(fleet()).deployments if each.wave]

    assert sorted(fleet().pipelines()) == sorted(each.wave for each in waves)
    assert {f"fleet-{each.wave}" for each in waves} == {each.name for each in waves}
    assert {1} == {len(each.schedules) for each in waves}


def test_a_pipeline_has_a_schedule_only_for_who_has_a_time_of_its_own() -> None:
    """With what the wave would give its run; whoever is in the wave has none."""
    own = {"cron": "0 22 * * *", "timezone": "Europe/Berlin"}
    given = fleet(shop={"schedules": {"restore-partition": own}})

    (schedule,) = entry(given, "restore-partition").schedules
    assert ("own-one/shop", "0 22 * * *", "Europe/Berlin") == (
        schedule.slug,
        schedule.cron,
        schedule.timezone,
    )
    assert {"database": "one/shop", "keep": False} == schedule.parameters
    assert () == entry(given, "roll-partitions").schedules


def test_a_wave_without_a_member_has_no_schedule() -> None:
    """Its run could only end Inconclusive: nobody has partitions, or everybody a time of their own."""
    own = {"cron": "0 22 * * *", "timezone": "Etc/UTC"}

    assert () == entry(fleet(shop={"partitions": []}), "fleet-roll-partitions").schedules
    assert () == entry(fleet(shop={"schedules": {"roll-partitions": own}}), "fleet-roll-partitions").schedules


def test_the_fleet_file_may_give_a_wave_another_time() -> None:
    """The slug stays, so that an operator's pause does."""
    policy = {"schedule": {"cron": "10 4 * * *", "timezone": "Asia/Tokyo"}}

    (schedule,) = entry(fleet(waves={"nightly-backup": policy}), "fleet-nightly-backup").schedules

    assert ("wave", "10 4 * * *", "Asia/Tokyo") == (schedule.slug, schedule.cron, schedule.timezone)


def test_a_schedule_that_daylight_saving_would_bend_is_told() -> None:
    """By its deployment and subject; prefect.yaml itself has none."""
    own = {"cron": "30 2 * * *", "timezone": "Europe/Berlin"}
    given = read_manifest(fleet(two={"schedules": {"nightly-backup": own}}))

    assert () == perils(read_manifest(fleet()))
    (told,) = perils(given)
    assert told.startswith("nightly-backup: schedule 'own-two' at '30 2 * * *': the clock of Europe/Berlin")


def test_entry_points_are_module_paths() -> None:
    """Every flow is deployed, by its module; a file entry point would put flows/ in front of sys.path."""
    assert {f"flows.{name}:{name}" for name in flow_names()} == {
        deployment.entrypoint for deployment in load_manifest().deployments
    }


def flow_names() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(flows.__path__)]


def test_runs_start_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """PGVIGIL_HOME is the worker's checkout."""
    monkeypatch.setenv("PGVIGIL_HOME", "/opt/pgvigil")

    assert load_manifest().pull == (
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
        ('"30 3 * * *"', '"30 3 * *"', "is no cron expression of five fields"),
        ("timezone: Etc/UTC", "timezone: Etc/UTC, active: true", "active is unknown"),
        ("slug:", "slugg:", "did you mean 'slug'?"),
        ("    work_pool: *pool\n", "", "deployments.nightly-backup.work_pool is missing"),
        ("flows.nightly_backup:", "flows/nightly_backup.py:", "deployments.nightly-backup.entrypoint"),
        ("dry_run: {default: true}", "dry_run: {default: 1.5}", "default"),
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
