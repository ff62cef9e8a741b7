import logging

import pytest

from pgvigil.errors import PgBackRestFailed
from tasks.pipeline import speak_plainly


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
@pytest.mark.parametrize(
    ("error", "has_stack"),
    [
        (PgBackRestFailed("the host is away", hint="bring it back", exit_code=49), False),
        (KeyError("x"), True),
    ],
)
def test_an_expected_error_is_logged_without_its_stack(name: str, error: Exception, has_stack: bool) -> None:
    """When the last try failed Prefect logs the exception: ours says all in its message, a defect not."""
    speak_plainly()
    log = logging.getLogger(name)
    record = log.makeRecord(name, logging.ERROR, __file__, 1, "tried in vain", (), (type(error), error, None))

    assert log.filter(record)
    assert bool(record.exc_info) is has_stack


@pytest.mark.parametrize("name", ["prefect.flow_runs", "prefect.task_runs"])
def test_neither_a_line_nor_the_stack_of_a_defect_has_a_secret(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no error of ours has masked is masked on its way into Prefect's log."""
    monkeypatch.setenv("SOME_TOKEN", "planted-secret")
    speak_plainly()
    log = logging.getLogger(name)
    error = KeyError("planted-secret")
    record = log.makeRecord(
        name, logging.ERROR, __file__, 1, "met %s", ("planted-secret",), (KeyError, error, None)
    )

    log.filter(record)
    line = logging.Formatter().format(record)

    assert "planted-secret" not in line
    assert "met ***" in line
    assert "KeyError" in line
