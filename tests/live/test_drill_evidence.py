"""What a drill leaves behind, on live servers: documents, digests, memory, and clocks that follow it."""

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml

from pgvigil import postgres
from pgvigil.audit import Kind, show_run
from pgvigil.backup.survey import read_server
from pgvigil.drill.choose import Choice, Source, Wanted, choose, source_of
from pgvigil.drill.history import History, read_history
from pgvigil.drill.report import DrillReport
from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.fleet import Fleet, load_fleet
from pgvigil.pgbackrest import PgBackRest, StanzaInfo
from pgvigil.reports import Check, Proof, Verdict
from pgvigil.runs import Run, conduct
from pgvigil.sandbox import Sandbox
from pgvigil.status import State
from pgvigil.watch.proofs import read_status
from tests.fixtures.drill_report import drill_report
from tests.fixtures.wal import Vault, fresh_vault

ROUNDS = int(os.environ.get("PGVIGIL_ROUNDS", "1"))
CLUSTER = "Ä\"b.c'; --"


@pytest.fixture
def fleet(in_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    """A fleet file of the test's own: its cluster has no past, its reports are files."""
    data = yaml.safe_load(in_sandbox.fleet_file.read_text())
    (tmp_path / "reports").mkdir()
    cluster = f"{CLUSTER} {tmp_path.name}"
    data["clusters"] = {cluster: data["clusters"]["demo"] | {"databases": {}}}
    data["audit"]["reports"] = (tmp_path / "reports").as_uri()
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.setenv("PGVIGIL_FLEET", str(tmp_path / "fleet.yaml"))
    return load_fleet()


def subject(fleet: Fleet) -> str:
    return next(iter(fleet.clusters))


def drill(fleet: Fleet, kind: str = "time", verdict: Verdict = Verdict.VERIFIED) -> DrillReport:
    """Conduct a run whose steps put a drill's facts into the ledger, as its operation does."""
    made = drill_report(subject=subject(fleet), history=history(fleet).drills)
    assert made.choice
    choice = made.choice.model_copy(update={"target_kind": kind})

    def steps(run: Run) -> None:
        run.checks += [*made.checks, Check(id="more", verdict=verdict, expected="x", actual="y")]
        run.proofs += [Proof(name=f"restore repo1{each}", verdict=verdict) for each in ("", f" {kind}")]
        kept = ("databases", "phases", "trend", "restored", "wal", "target", "reached", "rpo", "versions")
        run.facts |= {name: getattr(made, name) for name in kept} | {"choice": choice}
        (run.directory / "recovery.log").write_text("replayed")

    return conduct(DrillReport, "restore_drill", subject(fleet), steps)


def history(fleet: Fleet) -> History:
    return read_history(fleet.audit.dsn, "test", subject(fleet))


def ended(fleet: Fleet, run_id: UUID) -> dict[str, Any]:
    """What the audit log says of a run's end."""
    with postgres.connect(fleet.audit.dsn, "test") as session:
        events = show_run(session, run_id).events
    return next(event.detail for event in events if event.kind is Kind.RUN_ENDED)


def test_everything_that_is_stored_has_its_digest_in_the_audit_log(fleet: Fleet) -> None:
    """JSON, Markdown, HTML, picture and log: the bytes in the store are those that the log knows."""
    report = drill(fleet)

    detail = ended(fleet, report.run_id)
    known = {"json": detail["digest"], **detail["digests"]}
    stored = {Path(uri.removeprefix("file://")).name.partition(".")[2]: uri for uri in report.evidence}
    assert {"json", "md", "html", "rto.svg", "recovery.log"} == set(known) == set(stored)
    for suffix, uri in stored.items():
        path = next(Path(os.environ["PGVIGIL_FLEET"]).parent.rglob(Path(uri).name))
        assert known[suffix] == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        if suffix == "html":
            assert known["json"].removeprefix("sha256:") in path.read_text()


def test_later_drills_know_what_earlier_ones_proved_and_measured(fleet: Fleet) -> None:
    """Kinds, verdicts and phases come back oldest first, and the fourth drill is set beside three."""
    reports = [drill(fleet, kind) for kind in ("time", "lsn", "xid", "name")]

    found = history(fleet)

    assert [report.run_id for report in reports] == [each.run_id for each in found.drills]
    assert [("time", True), ("lsn", True), ("xid", True), ("name", True)] == [
        (each.target_kind, each.proven) for each in found.tried
    ]
    assert reports[0].phases == found.drills[0].memory.phases
    assert reports[2].trend
    assert reports[3].trend
    assert (0, 4) == (len(reports[2].trend.foretold), len(reports[3].trend.foretold))


def test_a_drill_that_could_not_prove_is_remembered_as_such(fleet: Fleet) -> None:
    """Refuted and inconclusive ones had their turn and proved nothing; one that chose nothing is counted."""
    drill(fleet, "lsn", Verdict.REFUTED)
    drill(fleet, "xid", Verdict.INCONCLUSIVE)
    conduct(DrillReport, "restore_drill", subject(fleet), lambda _: None)
    conduct(DrillReport, "restore_drill", subject(fleet), lambda _: None, dry_run=True)

    found = history(fleet)

    assert [("lsn", False), ("xid", False)] == [(each.target_kind, each.proven) for each in found.tried]
    assert 1 == found.untold


def test_status_follows_each_target_kind(fleet: Fleet) -> None:
    """What was drilled is verified or failing, what never was is never."""
    drill(fleet, "time")
    drill(fleet, "lsn", Verdict.REFUTED)

    states = {each.proof: each.state for each in read_status(fleet) if each.flow == "restore_drill"}

    assert {
        "restore repo1": State.FAILING,
        "restore repo1 lsn": State.FAILING,
        "restore repo1 time": State.VERIFIED,
        "restore repo1 default": State.NEVER,
        "restore repo1 xid": State.NEVER,
        "restore repo1 name": State.NEVER,
    } == states


@pytest.fixture(scope="module")
def two_repositories() -> Iterator[Vault]:
    """Two posix repositories of one cluster: three backups in the first, one in the second."""
    with fresh_vault(repos=2) as vault:
        vault.pgbackrest("stanza-create")
        for repo, kind in ((1, "full"), (1, "incr"), (2, "full"), (1, "full")):
            vault.pgbackrest(f"--repo={repo}", f"--type={kind}", "backup")
            vault.write(1)
        vault.wait_archived()
        yield vault


@pytest.fixture
def info(two_repositories: Vault, monkeypatch: pytest.MonkeyPatch) -> StanzaInfo:
    """What pgBackRest itself says of them, in their environment."""
    two_repositories.enter(monkeypatch)
    return PgBackRest(load_fleet().cluster("demo").pgbackrest).info()


def source() -> Source:
    """What the server itself says."""
    cluster = load_fleet().cluster("demo")
    return source_of(read_server(cluster.dsn, "test"), cluster.wal)


def chosen(info: StanzaInfo, seed: int = 1, **wanted: Any) -> Choice:
    return choose(info, source(), [], Wanted(**wanted), seed)


@pytest.mark.stanza
def test_a_healthy_stanza_offers_all_its_backups(info: StanzaInfo) -> None:
    """Both repositories, every set, none passed over; over some draws each of them is chosen."""
    found = [chosen(info, seed) for seed in range(8 * ROUNDS)]

    assert 4 == len(found[0].candidates)
    assert not [each.refused for each in found[0].candidates if each.refused]
    assert {1, 2} == {each.repo for each in found}


@pytest.mark.stanza
def test_a_past_time_takes_the_sets_that_end_before_it(info: StanzaInfo) -> None:
    """By pgBackRest's own stop times; a moment before the first of all is outside the window."""
    first, second = info.backups(1)[:2]
    before_second = second.timestamp.stop - timedelta(milliseconds=500)

    found = chosen(info, recovery_target=f"time:{before_second.isoformat()}", repo=1)

    assert first.label == found.label
    assert [False, True, True] == [bool(each.refused) for each in found.candidates]
    with pytest.raises(ConfigError, match="outside what can be restored"):
        chosen(info, recovery_target=f"time:{first.timestamp.start.isoformat()}")


@pytest.mark.stanza
def test_the_servers_clock_decides_what_is_future(info: StanzaInfo) -> None:
    """A moment ahead of it is refused, and its current LSN is not."""
    ahead = datetime.now(tz=UTC) + timedelta(minutes=5)

    with pytest.raises(ConfigError, match="in the future"):
        chosen(info, recovery_target=f"time:{ahead.isoformat()}")
    now = source().lsn
    assert now == chosen(info, recovery_target=f"lsn:{now}").target_value


@pytest.mark.stanza
def test_a_wrong_source_is_refused_before_anything_is_restored(info: StanzaInfo) -> None:
    """Fleet file and repository that name different clusters."""
    other = source().model_copy(update={"system_id": 42})

    with pytest.raises(PreconditionFailed, match="the source is 42"):
        choose(info, other, [], Wanted(), 1)
