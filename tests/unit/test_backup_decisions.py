from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvigil.backup.decide import decide
from pgvigil.backup.expire import plan_expire
from pgvigil.backup.facts import PROOF_NOTE, ServerFacts, Survey
from pgvigil.backup.take import ProgressMeter
from pgvigil.pgbackrest.info import Backup, StanzaInfo
from pgvigil.policies.backup import BackupPolicy, Retention

NOW = datetime(2027, 3, 1, 3, 30, tzinfo=UTC)
POLICY = BackupPolicy(full_every="7d", max_chain=3)


def backup(age: float, kind: str = "full", **changes: Any) -> Backup:
    stop = NOW - timedelta(days=age)
    label = f"{stop:%Y%m%d-%H%M%S}F" if kind == "full" else changes.pop("label")
    return Backup.model_validate(
        {
            "label": label,
            "type": kind,
            "archive": {"start": "000000010000000000000002", "stop": "000000010000000000000002"},
            "lsn": {"start": "0/2000000", "stop": "0/2000100"},
            "timestamp": {"start": stop, "stop": stop},
            "database": {"id": 1, "repo-key": 1},
            "info": {"size": 10**9, "delta": 10**9},
            "error": False,
            **changes,
        }
    )


def world(*backups: Backup, **server: Any) -> Survey:
    stanza = StanzaInfo.model_validate(
        {
            "name": "demo",
            "backup": [b.model_dump(by_alias=True) for b in backups],
            "db": [{"id": 1, "repo-key": 1, "system-id": 7, "version": "15"}],
            "repo": [{"key": 1, "status": {"code": 0, "message": "ok"}}],
            "status": {"code": 0, "message": "ok"},
        }
    )
    facts = {
        "version_num": 150020,
        "now": NOW,
        "in_recovery": False,
        "system_id": 7,
        "timeline": 1,
        "lsn": "0/3000000",
        "segment_size": 16 * 2**20,
        "data_checksums": True,
        "archive_mode": "on",
        "archive_command": "",
        "archived_count": 1,
        "last_archived_wal": None,
        "last_archived_time": None,
        "failed_count": 0,
        "last_failed_wal": None,
        "last_failed_time": None,
        "ready": 0,
        "size": 1,
        "clock_skew": timedelta(0),
    }
    return Survey(server=ServerFacts.model_validate(facts | server), stanza=stanza, version=(2, 45))


FULL = backup(2)


def child(number: int) -> Backup:
    return backup(1, "incr", label=f"{FULL.label}_2027022{number}-000000I", reference=(FULL.label,))


@pytest.mark.parametrize(
    ("survey", "broken", "kind", "reason"),
    [
        (world(), {}, "full", "no full backup exists"),
        (world(FULL), {}, "incr", "its chain is whole"),
        (world(backup(8)), {}, "full", "8.0 days old, policy says 7.0 days"),
        (world(FULL, system_id=8), {}, "full", "system id changed from 7 to 8"),
        (world(FULL, timeline=2), {}, "full", "timeline changed from 1 to 2"),
        (
            world(FULL, *map(child, (1, 2, 3))),
            {},
            "full",
            "3 backups depend on the last full, policy says at most 3",
        ),
        (world(FULL, *map(child, (1, 2))), {}, "incr", "its chain is whole"),
        (world(FULL, lsn="2/0"), {}, "full", "of WAL since the last full"),
        (
            world(FULL),
            {FULL.label: "its manifest is missing"},
            "full",
            "is no parent: its manifest is missing",
        ),
        (world(FULL, child(1)), {FULL.label: "gone"}, "full", "is no parent: gone"),
    ],
)
def test_the_type_follows_from_the_state_and_the_reason_says_how(
    survey: Survey, broken: dict[str, str], kind: str, reason: str
) -> None:
    """Each rule gives its type and names what it saw."""
    line = decide(survey, 1, POLICY, "auto", broken)

    assert kind == line.type
    assert reason in line.reason


def test_a_diff_is_due_by_its_own_period() -> None:
    """With `diff_every`, increments gather into a diff."""
    policy = BackupPolicy(full_every="7d", diff_every="1d")

    line = decide(world(FULL), 1, policy, "auto", {})

    assert ("diff", FULL.label) == (line.type, line.base)


def test_a_parameter_overrides_the_policy() -> None:
    """What a person asks for is taken, and the report says that they did."""
    assert "asked for by parameter" == decide(world(), 1, POLICY, "incr", {}).reason


@given(
    ages=st.lists(st.integers(0, 9000).map(lambda hours: hours / 24), max_size=12, unique=True),
    proven=st.lists(st.booleans(), min_size=12, max_size=12),
    fulls=st.integers(1, 4),
    days=st.integers(0, 60),
)
def test_expiry_never_takes_the_proof_away(
    ages: list[float], proven: list[bool], fulls: int, days: int
) -> None:
    """Whatever the ages: the newest proven fulls stay, and one from which each moment of `days` comes."""
    backups = [
        backup(age, annotation={PROOF_NOTE: "x"} if good else None)
        for age, good in zip(ages, proven, strict=False)
    ]
    plan = plan_expire(backups, 1, Retention(fulls=fulls, days=days), NOW)
    by_label = {b.label: b for b in backups}
    kept_proven = [label for label in plan.keep if by_label[label].note(PROOF_NOTE)]

    assert set(by_label) == set(plan.expire) | set(plan.keep)
    assert not set(plan.expire) & set(plan.keep)
    if plan.expire:
        assert len(kept_proven) >= fulls
        oldest = sorted(by_label[label].timestamp.stop for label in kept_proven)[-fulls]
        assert all(by_label[label].timestamp.stop < oldest for label in plan.expire)
        assert any(NOW - by_label[label].timestamp.stop >= timedelta(days=days) for label in kept_proven)


def test_the_full_that_the_first_day_is_restored_from_stays() -> None:
    """With weekly fulls and 10 days, the one of 12 days is needed for the moments before the next one."""
    fulls = [backup(age, annotation={PROOF_NOTE: "x"}) for age in (19, 12, 5)]

    assert (fulls[0].label,) == plan_expire(fulls, 1, Retention(fulls=1, days=10), NOW).expire


def test_a_full_with_page_errors_is_no_proof_for_expiry() -> None:
    """An annotation alone does not make a damaged backup count."""
    good, bad = backup(9, annotation={PROOF_NOTE: "x"}), backup(1, annotation={PROOF_NOTE: "x"}, error=True)

    assert () == plan_expire([good, bad], 1, Retention(fulls=1), NOW).expire


def test_progress_is_reckoned_from_the_tools_own_lines() -> None:
    """Bytes done, total, rate and time to go follow from size and percent; bundles count as well."""
    ticks = iter([0.0, 10.0, 20.0])
    meter = ProgressMeter(lambda: next(ticks))

    meter.read("P01 DETAIL: backup file /pg/base/1/1 (24MB, 25.00%) checksum ab")
    progress = meter.read("P02 DETAIL: backup file /pg/base/1/2 (bundle 1/0, 24MB, 50.00%) checksum cd")

    assert progress is not None
    assert (48 * 2**20, 96 * 2**20, 20.0) == (progress.done, progress.total, progress.eta_seconds)
    assert "48.0 MB of 96.0 MB (50.0 %), 2.4 MB/s, 20 s to go" == str(progress)


@pytest.mark.parametrize(
    "line", ["P00   INFO: backup begin", "P01 DETAIL: backup file /pg/PG_VERSION (3B, 0.00%) checksum ab"]
)
def test_other_lines_tell_no_progress(line: str) -> None:
    """What is no file line, or says 0 %, of which no total follows."""
    assert ProgressMeter().read(line) is None
