"""Health is silent: a system that nothing ails gives not one finding, however often it is looked at.

PGVIGIL_ROUNDS says how often, PGVIGIL_IDLE for how many seconds nobody writes; `make soak` asks for thirty
rounds and a whole idle hour.
"""

import time
from pathlib import Path

import pytest

from pgvigil.reports import Verdict
from tests.fixtures.backup import Night
from tests.fixtures.load import IDLE_SECONDS, ROUNDS, busy_writer
from tests.fixtures.wal import fresh_vault

pytestmark = [pytest.mark.long, pytest.mark.rounds]


def names(directory: Path, pattern: str) -> list[str]:
    return [path.name for path in directory.glob(pattern)]


def test_a_healthy_system_under_load_is_backed_up_without_a_finding(night: Night) -> None:
    """Pgbench writes all the time; backup after backup is proven without one finding."""
    with busy_writer(night.sandbox, scale=5, rate=100):
        reports = [night.backup() for _ in range(ROUNDS)]

    assert [(Verdict.VERIFIED, ())] * ROUNDS == [(report.verdict, report.findings) for report in reports]


def test_a_healthy_archive_gives_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three timelines, 64 MB segments, .partial and .backup files, at rest, idle and under load: silence."""
    with fresh_vault() as vault:
        vault.change_segment_size(64)
        vault.enter(monkeypatch)
        vault.pgbackrest("stanza-create")
        vault.backup()
        for _ in range(2):
            vault.write(2)
            vault.sql(
                "CREATE TABLE IF NOT EXISTS public.t (n int)"
            )  # so that the timeline ends inside a segment
            vault.promote()
            vault.write()
            vault.backup("incr")
        vault.wait_archived()
        assert names(vault.archive, "*/*.partial-*")
        assert names(vault.archive, "*/*.backup")
        reports = [vault.prove() for _ in range(ROUNDS)]
        time.sleep(IDLE_SECONDS)  # nothing is waited for: nobody writes, and that must be no fault
        reports.append(vault.prove())
        with busy_writer(vault.sandbox):
            reports += [vault.prove() for _ in range(ROUNDS)]

    assert {(Verdict.VERIFIED, ())} == {(report.verdict, report.findings) for report in reports}
    archive = reports[-1].repositories[0].archives[0]
    assert ["ancestor", "ancestor", "live"] == [t.fate for t in archive.timelines]
    assert [3] == [span.timeline for span in archive.spans]
