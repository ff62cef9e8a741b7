"""The alarm test: it finds what is damaged, hears what stays silent, and never touches the original."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli import app
from pgvigil.alarmtest import DAMAGES, Stage, State, borrowed_stage, choose, rehearse, sandbox_stage
from pgvigil.alarmtest.repository import Repository
from pgvigil.alarmtest.stage import STILL
from pgvigil.errors import ConfigError, PgvigilError, PreconditionFailed
from pgvigil.fleet import load_fleet
from pgvigil.reports import Verdict
from pgvigil.wal import examine
from tests.fixtures.wal import Vault

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PLACES = Path("/tmp")


@pytest.fixture
def stage(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage on the module's healthy repository, without a sandbox of its own."""
    vault.enter(monkeypatch)
    fleet = yaml.safe_load(vault.fleet_file.read_text())
    fleet["clusters"]["demo"]["wal"] = STILL
    conf = vault.repository.with_name("pgbackrest.conf").read_text().splitlines(keepends=True)
    return Stage(
        box=vault.sandbox,
        healthy=Repository(vault.repository, "demo"),
        subject="demo",
        fleet=fleet,
        configuration="".join(line for line in conf if not line.startswith("repo1-path=")),
        is_users=True,
    )


SOME = (
    "segment-missing",
    "segment-misplaced",
    "manifests-flipped",
    "archive-info-foreign",
    "backup-file-missing",
)


def test_damages_are_found_and_the_controls_are_silent(stage: Stage) -> None:
    """Each is told by its own finding with its name; what has no damage tells nothing; no copy is left."""
    found = rehearse(stage, choose(SOME))

    assert Verdict.VERIFIED is found.verdict, found
    assert [State.SILENT] * 2 + [State.FOUND] * len(SOME) == [outcome.state for outcome in found.outcomes]
    assert all(outcome.broke for outcome in found.outcomes[2:])
    assert not stage.cases.exists()


def test_a_check_that_is_disabled_misses_its_damage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The damage that it should find refutes, the other one is found all the same."""
    monkeypatch.setattr(examine._Examination, "_missing", lambda *_: None)

    found = rehearse(stage, choose(["segment-missing", "segment-flipped"]))

    assert [State.SILENT, State.MISSED, State.FOUND] == [outcome.state for outcome in found.outcomes]
    assert (Verdict.REFUTED, 1) == (found.verdict, found.verdict.exit_code)


def test_a_control_that_is_not_silent_refutes(stage: Stage) -> None:
    """Where the copy is damaged already, an alarm proves nothing of the damage that was made."""
    stage.healthy.segments()[-2].unlink()

    found = rehearse(stage, choose(["segment-flipped"]))

    assert (State.ALARMED, Verdict.REFUTED) == (found.outcomes[0].state, found.verdict)


def test_a_flow_that_cannot_run_has_missed_nothing(stage: Stage) -> None:
    """Nobody knows whether it would have noticed: inconclusive, exit code 2."""
    stage.fleet["clusters"]["demo"]["dsn"] = "postgresql://pgvigil@127.0.0.1:1/postgres"

    found = rehearse(stage, choose(["segment-missing", "rows-flipped"]))

    assert [State.UNKNOWN] * 2 + [State.LEFT_OUT] == [outcome.state for outcome in found.outcomes]
    assert 2 == found.verdict.exit_code


@pytest.fixture
def scratch(vault: Vault) -> Path:
    """A directory for copies."""
    place = vault.repository.with_name("scratch")
    place.mkdir()
    place.chmod(0o755)
    return place


def into_the_repository(vault: Vault, scratch: Path) -> None:
    scratch.rmdir()
    scratch.symlink_to(vault.repository / "archive")


def more_than_the_disk_has(vault: Vault, _: Path) -> None:
    with (vault.archive / "huge").open("wb") as file:
        file.truncate(8 << 40)


def a_link_that_leads_out(vault: Vault, scratch: Path) -> None:
    segment = vault.segments()[-1]
    aside = segment.rename(scratch / segment.name)
    segment.symlink_to(aside)


def behind_a_prefix(vault: Vault, _: Path) -> None:
    data = yaml.safe_load(vault.fleet_file.read_text())
    data["clusters"]["demo"]["pgbackrest"]["command"] = ["ssh", "elsewhere", "pgbackrest"]
    vault.fleet_file.write_text(yaml.safe_dump(data))


def encrypted(vault: Vault, _: Path) -> None:
    conf = vault.repository.with_name("pgbackrest.conf")
    conf.write_text(conf.read_text().replace("[global]", "[global]\nrepo1-cipher-type=aes-256-cbc"))


def no_directory(_: Vault, scratch: Path) -> None:
    scratch.rmdir()


@pytest.mark.parametrize(
    ("hinder", "told"),
    [
        (into_the_repository, "lies in the repository"),
        (more_than_the_disk_has, "bytes free; the copy takes 8796"),
        (behind_a_prefix, "not on this host"),
        (encrypted, "unencrypted directory"),
        (no_directory, "no directory that can be written to"),
    ],
)
def test_what_cannot_be_copied_apart_is_refused_and_left_as_it_was(
    vault: Vault, scratch: Path, hinder: object, told: str
) -> None:
    """Each is refused before anything is copied, with what to do."""
    hinder(vault, scratch)  # type: ignore[operator]
    before = fingerprint(vault.repository)

    with pytest.raises(PgvigilError, match=told) as caught, borrowed_stage(load_fleet(), "demo", scratch):
        pass

    assert isinstance(caught.value, ConfigError | PreconditionFailed)
    assert caught.value.hint
    assert before == fingerprint(vault.repository)
    assert not list(scratch.glob("pgvigil-alarm-*"))


def fingerprint(root: Path) -> dict[str, tuple[int, int, str]]:
    """Tell every file of a directory by size, time and content."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns, sha1(path))
        for path in root.rglob("*")
        if path.is_file()
    }


def sha1(path: Path) -> str:
    if path.stat().st_size > 1 << 40:
        return ""
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_a_copy_of_ones_own_repository_is_tried_and_the_original_is_not_touched(
    vault: Vault, scratch: Path
) -> None:
    """Everything that can be done to a copy is found, while the server goes on archiving elsewhere."""
    before = fingerprint(vault.repository)

    with borrowed_stage(load_fleet(), "demo", scratch) as stage:
        vault.write(2)
        vault.wait_archived()
        found = rehearse(stage, DAMAGES)

    states = {outcome.state for outcome in found.outcomes}
    assert Verdict.VERIFIED is found.verdict, [o for o in found.outcomes if o.state is not State.FOUND]
    assert {State.FOUND, State.SILENT, State.LEFT_OUT} == states
    assert 20 < sum(outcome.state is State.FOUND for outcome in found.outcomes)
    assert before == fingerprint(vault.repository)
    assert not list(scratch.iterdir())


def test_a_link_out_of_the_repository_is_never_followed_into_it(vault: Vault, scratch: Path) -> None:
    """The copy of a link would be the original: refused, after the copying, which only read."""
    a_link_that_leads_out(vault, scratch)

    with (
        pytest.raises(PreconditionFailed, match="would be the original's"),
        borrowed_stage(load_fleet(), "demo", scratch),
    ):
        pass


@pytest.fixture(scope="module")
def built() -> Iterator[Stage]:
    """A stage in a sandbox of its own, as the command builds it."""
    with sandbox_stage() as made:
        yield made


def test_every_damage_is_found_and_every_control_is_silent(built: Stage) -> None:
    """The whole corpus, each flow's own proof, in one sandbox."""
    found = rehearse(built, DAMAGES)

    assert [] == [outcome for outcome in found.outcomes if not outcome.is_good]
    assert len(DAMAGES) + 5 == len(found.outcomes)
    assert Verdict.VERIFIED is found.verdict


def test_the_command_ends_with_one_when_a_damage_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is disabled: the table names what was missed; nothing is left behind."""
    monkeypatch.setattr(examine._Examination, "_missing", lambda *_: None)
    left = sorted(PLACES.glob("pgvigil-alarm-*"))

    done = CliRunner().invoke(app, ["alarm-test", "--only", "segment-missing", "--json"])

    outcomes = json.loads(done.stdout)["outcomes"]
    assert (1, [("control", "silent"), ("segment-missing", "missed")]) == (
        done.exit_code,
        [(outcome["name"], outcome["state"]) for outcome in outcomes],
    )
    assert left == sorted(PLACES.glob("pgvigil-alarm-*"))


def test_the_damages_are_listed_and_an_unknown_one_is_refused() -> None:
    """Listing starts nothing; a name that is not there ends with 2 and says how to see them."""
    program = [sys.executable, "-m", "deployments", "alarm-test"]
    listed = subprocess.run([*program, "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    unknown = subprocess.run(
        [*program, "--only", "nope"], cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ
    )

    assert all(damage.name in listed.stdout for damage in DAMAGES)
    assert 2 == unknown.returncode
    assert "alarm-test --list" in unknown.stderr
