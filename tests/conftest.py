"""Fixtures that every suite may use, and the demand that live tests are not passed over."""

import os
from collections import Counter
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.fixtures.backfill import backfill_sandbox, yard
from tests.fixtures.backup import night, night_sandbox, own_night
from tests.fixtures.drill import drilled_sandbox, exercise
from tests.fixtures.drill_copy import drill, marked, scratch_directory, template
from tests.fixtures.drill_source import field_with_standby
from tests.fixtures.partitions import road, shop, shop_sandbox
from tests.fixtures.sandbox import fresh_sandbox, in_sandbox, lacking, sandbox, workplace
from tests.fixtures.ssh import ssh_prefix
from tests.fixtures.wal import healthy_vault, kept_vault, own_vault, vault

__all__ = [
    "backfill_sandbox",
    "drill",
    "drilled_sandbox",
    "exercise",
    "field_with_standby",
    "fresh_sandbox",
    "healthy_vault",
    "in_sandbox",
    "kept_vault",
    "marked",
    "night",
    "night_sandbox",
    "own_night",
    "own_vault",
    "road",
    "sandbox",
    "scratch_directory",
    "shop",
    "shop_sandbox",
    "ssh_prefix",
    "template",
    "vault",
    "workplace",
    "yard",
]

# No test times anything: on a busy machine an example may take as long as it likes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A worker takes whole files in this order: what takes minutes first, so that no worker ends alone with it.
LONGEST = (
    "acceptance/test_fleet",
    "acceptance/test_prefect_deaths",
    "acceptance/test_alarms",
    "fault/test_nightly_backup_deaths",
    "live/test_restore_drill",
    "acceptance/test_cli",
    "live/test_verify_wal_archive_lines",
    "acceptance/test_approval",
    "acceptance/test_browser",
    "acceptance/test_scale",
    "fault/test_restore_drill_deaths",
    "live/test_nightly_backup_world",
    "live/test_verify_wal_archive_servers",
    "live/test_roll_partitions_faults",
)

DEMAND = "PGVIGIL_DEMAND_LIVE"
LIVE = {"acceptance", "contract", "fault", "live"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest in front; pass over, by name, what this PostgreSQL cannot have."""
    items.sort(key=_rank)
    for marker, reason in lacking().items():
        for item in items:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _rank(item: pytest.Item) -> int:
    name = str(item.path.relative_to(item.config.rootpath / "tests").with_suffix(""))
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a live test that skips itself while running, where everything that it may miss is demanded.

    A `skipif` mark stays a skip: it says for which user the claim is made, not what was missing.
    """
    report = yield
    if report.skipped and _is_demanded(item):
        report.outcome = "failed"
        report.longrepr = f"{DEMAND} is set, but this test skipped itself: {report.longreprtext}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in red which claims nobody looked at, and why: what is missing must not look like what is well."""
    places = [report.longrepr for report in terminalreporter.stats.get("skipped", ())]
    reasons = Counter(place[2] for place in places if isinstance(place, tuple))
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(
            f"NOT LOOKED AT, {count} claims: {reason.removeprefix('Skipped: ')}", red=True, bold=True
        )


def _is_demanded(item: pytest.Item) -> bool:
    suite = item.path.relative_to(item.config.rootpath / "tests").parts[0]
    declared = item.get_closest_marker("skipif") or item.get_closest_marker("skip")
    return bool(os.environ.get(DEMAND)) and suite in LIVE and not declared
