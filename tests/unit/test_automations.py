import re
from pathlib import Path

import pytest

from deployments.automations import FILE, load_automations
from pgvigil.errors import ConfigError
from pgvigil.watch import alarms

GOOD = FILE.read_text(encoding="utf-8")
PAGE = (Path(__file__).parents[2] / "docs" / "alarms.md").read_text(encoding="utf-8")
SECTION = re.compile(r"docs/alarms\.md, '([^']+)'")


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("within: 15m", "withn: 15m", "withn: Extra inputs are not permitted"),
        ("within: 15m", "within: 15", "a duration is text with a unit"),
        ("    posture: Proactive\n", "", "a proactive one has 'after' and 'within', a reactive one neither"),
        ("    runs: true\n    except: keep_watch\n", "    except: keep_watch\n", "add 'runs: true'"),
        ('"pgvigil: crashed"', '"pgvigil: refuted"', "stands there twice: pgvigil: refuted"),
        ("    expect: [prefect.flow-run.Refuted]\n", "", "expect: Field required"),
    ],
)
def test_a_wrong_key_or_value_is_refused(tmp_path: Path, right: str, wrong: str, told: str) -> None:
    """Prefect would take it, and the alarm would never sound."""
    assert right in GOOD
    file = tmp_path / "automations.yaml"
    file.write_text(GOOD.replace(right, wrong), encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_automations(file)

    assert told in caught.value.message


def test_every_alarm_leads_to_its_section() -> None:
    """The message names a heading of the page; what the watch finds has one as well."""
    headings = set(re.findall(r"^### (.+)$", PAGE, re.MULTILINE))
    rules = (FILE.parents[1] / "infra" / "prometheus" / "pgvigil.rules.yaml").read_text(encoding="utf-8")
    named = set(SECTION.findall(GOOD + rules + " ".join(alarms._HINTS.values())))
    names = {entry.name.removeprefix("pgvigil: ") for entry in load_automations()}

    assert named | names <= headings
    assert names | {"silence"} == headings


def test_every_alarm_of_the_watch_has_an_automation() -> None:
    """What it tells as an event is heard by one, and the end of all of them by another."""
    heard = [event for entry in load_automations() if not entry.runs for event in entry.expect]

    assert sorted(f"pgvigil.alarm.{kind}" for kind in (*alarms._HINTS, "over")) == sorted(heard)


@pytest.mark.parametrize("state", ["Refuted", "Inconclusive", "Failed", "Crashed", "TimedOut"])
def test_no_pipelines_bad_end_is_passed_over(state: str) -> None:
    """Only the watch's own, which another alarm waits for; of a wave's, somebody may have had no turn."""
    hearing = [entry for entry in load_automations() if f"prefect.flow-run.{state}" in entry.expect]
    reactive = [entry for entry in hearing if entry.posture == "Reactive"]

    assert 1 == len(reactive)
    assert reactive[0].but in {None, "keep_watch"}
