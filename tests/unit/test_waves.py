import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from prefect.server.schemas.schedules import CronSchedule
from pydantic import ValidationError

from pgvigil.errors import ConfigError
from pgvigil.policies.schedule import Schedule, bent_hours, hours_of
from pgvigil.reports import Verdict
from pgvigil.waves.report import Outcome, counted, named, worst_first
from pgvigil.waves.selection import select
from tests.fixtures.fleet import fleet

OWN = {"cron": "0 22 * * *", "timezone": "Europe/Berlin"}


def selected(pipeline: str, **parts: Any) -> list[str]:
    return [each.subject for each in select(fleet(**parts), pipeline).members]


def test_a_wave_covers_everybody_who_has_the_pipeline() -> None:
    """Clusters or databases; a database without the policy is not one of them."""
    assert ["one", "two"] == selected("nightly-backup")
    assert ["one", "two"] == selected("reap-drills")
    assert ["one/shop"] == selected("roll-partitions")


def test_the_run_of_an_archived_partition_in_a_wave_is_its_drill() -> None:
    """Nothing of it stays; and where nothing is archived there is nothing to drill."""
    (member,) = select(fleet(), "restore-partition").members
    plain = {"table": "public.events", "key": "at", "every": "1 month"}

    assert {"database": "one/shop", "keep": False} == member.arguments
    assert "restore-partition" not in fleet(shop={"partitions": [plain]}).pipelines()


def test_a_drill_fills_a_disk_so_one_at_once_is_enough() -> None:
    """Until the fleet file says another number; other pipelines bear four."""
    more = fleet(waves={"restore-drill": {"at_once": 3}})

    assert (1, 3, 4) == (
        select(fleet(), "restore-drill").at_once,
        select(more, "restore-drill").at_once,
        select(more, "nightly-backup").at_once,
    )


@pytest.mark.parametrize(
    ("policy", "members"),
    [
        ({"tags": ["prod"]}, ["one"]),
        ({"names": ["t*"]}, ["two"]),
        ({"leave_out": ["one"]}, ["two"]),
        ({"names": ["one", "two"], "leave_out": ["two"]}, ["one"]),
    ],
)
def test_a_policy_selects_by_tags_and_names(policy: dict[str, Any], members: list[str]) -> None:
    """Whoever it leaves out is told with the reason."""
    given = fleet(one={"tags": ["prod", "eu"]}, waves={"nightly-backup": policy})
    found = select(given, "nightly-backup")

    assert members == [each.subject for each in found.members]
    assert {"one", "two"} == {*members, *(each.subject for each in found.left_out)}
    assert all(each.reason for each in found.left_out)


def test_a_cluster_speaks_for_its_databases() -> None:
    """By its name and by its tags."""
    assert ["one/shop"] == selected("roll-partitions", waves={"roll-partitions": {"names": ["one"]}})
    assert ["one/shop"] == selected(
        "roll-partitions", one={"tags": ["eu"]}, waves={"roll-partitions": {"tags": ["eu"]}}
    )


def test_who_has_a_time_of_its_own_is_not_in_the_wave() -> None:
    """And only for that pipeline."""
    given = fleet(two={"schedules": {"nightly-backup": OWN}})

    found = select(given, "nightly-backup")

    assert (["one"], ["two"]) == (
        [each.subject for each in found.members],
        [each.subject for each in found.left_out],
    )
    assert "has its own schedule: '0 22 * * *' Europe/Berlin" == found.left_out[0].reason
    assert 2 == len(select(given, "restore-drill").members)


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"waves": {"nightly-backup": {"names": ["tow"]}}}, "'tow' means none of one, two"),
        ({"waves": {"nightly-backup": {"leave_out": ["three"]}}}, "'three' means none of one, two"),
        ({"waves": {"nightly-backup": {"tags": ["prod"]}}}, "nobody has the tag 'prod'"),
        ({"waves": {"nightly-backups": {}}}, "waves.nightly-backups: nothing here runs 'nightly-backups'"),
        ({"two": {"schedules": {"roll-partitions": OWN}}}, "nothing here runs 'roll-partitions' unattended"),
        ({"two": {"schedules": {"run-backfill": OWN}}}, "nothing here runs 'run-backfill' unattended"),
    ],
)
def test_words_that_mean_nobody_are_refused(parts: dict[str, Any], told: str) -> None:
    """A typo there would leave a database unwatched, and nobody would know."""
    with pytest.raises(ValidationError, match=told.replace("'", ".")):
        fleet(**parts)


def test_a_pipeline_that_nobody_has_is_refused_with_the_nearest_name() -> None:
    """As any other name of the fleet file."""
    with pytest.raises(ConfigError) as caught:
        fleet().wave("nightly-backups")
    assert "did you mean 'nightly-backup'?" == caught.value.hint


def test_the_worst_comes_first_and_what_did_not_begin_is_no_verdict() -> None:
    """Unknown stands between refuted and verified."""
    outcomes = [
        Outcome(subject="c", verdict=Verdict.VERIFIED),
        Outcome(subject="d", state="left"),
        Outcome(subject="b"),
        Outcome(subject="a", verdict=Verdict.REFUTED),
    ]

    assert ["a", "b", "d", "c"] == [each.subject for each in worst_first(outcomes)]
    assert "1 refuted, 1 inconclusive, 1 left, 1 verified" == counted(outcomes)


def test_of_very_many_the_first_are_named() -> None:
    """A line in a terminal or a notification stays one."""
    assert "a, b" == named(["a", "b"])
    assert named([f"db{number}" for number in range(500)]).endswith("db19 and 480 more")


@pytest.mark.parametrize(
    ("cron", "hours"),
    [
        ("30 3 * * *", {3}),
        ("0 */8 * * *", {0, 8, 16}),
        ("0 1-3,22 * * *", {1, 2, 3, 22}),
        ("0 20/2 * * *", {20, 22}),
        ("15 * * * *", set(range(24))),
    ],
)
def test_the_hours_of_a_cron_expression(cron: str, hours: set[int]) -> None:
    """Lists, ranges and steps."""
    assert hours == hours_of(cron)


@pytest.mark.parametrize("cron", ["", "30 3 * *", "30 25 * * *", "@daily", "30 x * * *", "30 3 * * * *"])
def test_what_is_no_cron_expression_is_refused(cron: str) -> None:
    """Five fields, with hours that the day has."""
    with pytest.raises(ValidationError, match="no cron expression of five fields"):
        Schedule(cron=cron, timezone="Etc/UTC")


@pytest.mark.parametrize(
    ("zone", "hours"),
    [
        ("Europe/Berlin", {2}),
        ("America/New_York", {1, 2}),
        ("Europe/London", {1}),
        ("America/Havana", {0}),
        ("Australia/Lord_Howe", {1, 2}),
        ("Etc/UTC", set()),
        ("Asia/Tokyo", set()),
    ],
)
def test_the_hours_that_daylight_saving_bends(zone: str, hours: set[int]) -> None:
    """Those that are skipped in spring or come twice in autumn, as each zone has it."""
    assert hours == bent_hours(zone, datetime(2026, 11, 26, tzinfo=UTC))


@pytest.mark.parametrize(
    ("cron", "zone", "perilous"),
    [
        ("30 2 * * *", "Europe/Berlin", True),
        ("30 3 * * *", "Europe/Berlin", False),
        ("30 2 * * *", "Etc/UTC", False),
        ("15 * * * *", "America/New_York", True),
    ],
)
def test_a_time_that_daylight_saving_skips_or_repeats_is_told(cron: str, zone: str, perilous: bool) -> None:
    """Nothing else is."""
    assert perilous == bool(Schedule(cron=cron, timezone=zone).peril)


ZONES = ("Europe/Berlin", "America/New_York", "Europe/London", "America/Havana")


@pytest.mark.parametrize(
    ("zone", "hour"),
    [
        (zone, hour)
        for zone in ZONES
        for hour in set(range(6)) - bent_hours(zone, datetime(2027, 1, 1, tzinfo=UTC))
    ],
)
def test_a_time_without_a_warning_is_due_once_each_day(zone: str, hour: int) -> None:
    """By Prefect's own scheduler, through both changes of the clock in a year."""
    cron = CronSchedule(cron=f"30 {hour} * * *", timezone=zone)
    begin = datetime(2027, 1, 1, 12, tzinfo=UTC)

    due = [each.astimezone(ZoneInfo(zone)) for each in asyncio.run(cron.get_dates(365, start=begin))]

    assert {hour} == {each.hour for each in due}
    assert 365 == len({each.date() for each in due})
    assert 364 == (due[-1].date() - due[0].date()).days


CHANGES = {
    "Europe/Berlin": ("2027-03-28", "2027-10-31"),
    "Europe/London": ("2027-03-28", "2027-10-31"),
    "America/New_York": ("2027-03-14", "2027-11-07"),
    "America/Havana": ("2027-03-14", "2027-11-07"),
}


@pytest.mark.parametrize(("zone", "day"), [(zone, day) for zone, days in CHANGES.items() for day in days])
def test_a_nightly_run_in_a_bent_hour_comes_once_a_night_all_the_same(zone: str, day: str) -> None:
    """As a server plans that looks ahead again and again: an hour early at most, none left out or doubled."""
    begin = datetime.fromisoformat(f"{day}T12:00+00:00") - timedelta(days=2)
    for hour in bent_hours(zone, begin):
        cron = CronSchedule(cron=f"30 {hour} * * *", timezone=zone)
        looks = (begin + timedelta(minutes=20 * look) for look in range(3 * 24 * 3))

        due = sorted({each for look in looks for each in asyncio.run(cron.get_dates(2, start=look))})

        nights = {after - before for before, after in itertools.pairwise(due)}
        assert timedelta(hours=23) <= min(nights) <= max(nights) <= timedelta(hours=25)
