import logging
from threading import Event
from typing import Any
from uuid import UUID, uuid4

import pytest

from pgvigil.backfill.facts import Progress
from tasks import progress
from tasks.progress import ProgressBar

HALF = Progress(rows_seen=50, rows_total=100)
WHOLE = Progress(ranges_left=0)


class Server:
    """What stands for Prefect's: it answers when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers = Event()
        self.shown: list[float] = []
        self.artifact = uuid4()
        monkeypatch.setattr(progress, "get_run_logger", lambda: logging.getLogger("test"))
        monkeypatch.setattr(progress, "create_progress_artifact", self.create)
        monkeypatch.setattr(progress, "update_progress_artifact", self.update)

    def create(self, percent: float, **_: Any) -> UUID:
        assert self.answers.wait(60)
        self.shown.append(percent)
        return self.artifact

    def update(self, artifact: UUID, percent: float, **_: Any) -> None:
        assert (self.answers.wait(60), artifact) == (True, self.artifact)
        self.shown.append(percent)


def test_a_server_that_does_not_answer_holds_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is dropped while the last word is on its way; who works never waits for it."""
    server = Server(monkeypatch)
    bar = ProgressBar("backup", clock=iter(range(0, 100, 10)).__next__)

    bar.show(HALF)
    bar.show(HALF)

    assert [] == server.shown
    server.answers.set()
    bar.sender.join()
    assert [50] == server.shown


def test_the_end_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also right after something else was, in the same artifact."""
    server = Server(monkeypatch)
    server.answers.set()
    bar = ProgressBar("backup", clock=lambda: 0)

    bar.show(HALF)
    bar.show(HALF)
    bar.show(WHOLE)
    bar.sender.join()

    assert [50, 100] == server.shown


def test_a_failure_only_warns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The next word tries again."""
    server = Server(monkeypatch)
    server.answers.set()
    bar = ProgressBar("backup", clock=iter(range(0, 100, 10)).__next__)
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_, **__: 1 / 0)
    bar.show(HALF)
    bar.sender.join()
    monkeypatch.setattr(progress, "create_progress_artifact", server.create)
    bar.show(HALF)
    bar.sender.join()

    assert "progress could not be shown: division by zero" in caplog.text
    assert [50] == server.shown
