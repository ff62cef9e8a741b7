import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from threading import Thread

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from pgvigil.processes import marked_processes
from pgvigil.sandbox import Sandbox
from tests.acceptance.conftest import Pgvigil

Done = subprocess.CompletedProcess[str]
NOBODY = "http://127.0.0.1:9/api"


def test_a_verified_run_prints_its_report_and_nothing_else(proven: Done) -> None:
    """With --json standard output is one JSON document; the log is elsewhere; the exit code is 0."""
    report = json.loads(proven.stdout)
    assert (report["verdict"], report["flow"], report["subject"]) == ("verified", "nightly_backup", "demo")
    assert "Beginning flow run" in proven.stderr
    assert proven.returncode == 0


def test_a_run_that_could_not_is_told_as_a_report_as_well(pgvigil: Pgvigil) -> None:
    """An unknown cluster: exit code 2, a report that names it and the ones there are; nothing on record."""
    done = pgvigil("run", "nightly-backup", "dmeo", "--json")

    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["message"] == "unknown cluster 'dmeo'"
    assert "demo" in finding["hint"]
    assert done.returncode == 2
    assert json.loads(pgvigil("audit", "list", "--subject", "dmeo", "--json").stdout) == []


def test_a_report_is_shown_as_a_page(pgvigil: Pgvigil) -> None:
    """Without --json people see verdict, plan and checks."""
    done = pgvigil("run", "nightly-backup", "demo", "--dry-run")

    assert "VERIFIED: nightly_backup on demo" in done.stdout
    assert "preflight.archiver" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nightly-bakup", "demo"], "did you mean 'nightly-backup'?"),
        (["drop-everything", "demo"], "there are: keep-watch, nightly-backup"),
        (["nightly-backup", "demo", "-p", "backup_typ=full"], "did you mean 'backup_type'?"),
        (["nightly-backup", "demo", "-p", "backup_type=huge"], "parameter 'backup_type' got 'huge'"),
        (["nightly-backup", "demo", "-p", "dry_run=perhaps"], "parameter 'dry_run' got 'perhaps'"),
        (["nightly-backup", "demo", "-p", "dry_run"], "write it as -p KEY=VALUE"),
        (["nightly-backup", "demo", "-p", "cluster=demo"], "is the SUBJECT already"),
        (["nightly-backup"], "SUBJECT"),
    ],
)
def test_a_wrong_argument_is_named_with_its_cure(pgvigil: Pgvigil, arguments: list[str], told: str) -> None:
    """Exit code 2, one message, no stack trace, nothing on standard output."""
    done = pgvigil("run", *arguments)

    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


def test_a_server_that_is_away_is_told_at_once(pgvigil: Pgvigil) -> None:
    """The message names the way out, and nothing ran."""
    done = pgvigil("run", "nightly-backup", "demo", "--json", PREFECT_API_URL=NOBODY)

    assert "does not answer" in done.stderr
    assert "--local" in done.stderr
    assert (done.returncode, done.stdout) == (2, "")


def test_another_server_is_not_taken_for_prefect(pgvigil: Pgvigil, tmp_path: Path) -> None:
    """Whatever answers with something else than Prefect's word of health is told like a server away."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/api"
        done = pgvigil("run", "nightly-backup", "demo", PREFECT_API_URL=url)
        server.shutdown()

    assert "no Prefect server (HTTP 404)" in done.stderr
    assert "--local" in done.stderr
    assert done.returncode == 2


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, as `python -m http.server` does, without its log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("arguments", [["fleet", "schema"], ["audit", "list"]])
def test_a_reader_that_left_changes_no_exit_code(
    command: list[str], environment: dict[str, str], proven: Done, arguments: list[str]
) -> None:
    """A closed pipe is one message, and what the command found still stands."""
    assert proven.returncode == 0
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*command, *arguments],
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)

    assert "error: cannot write to standard output: Broken pipe" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.returncode == 0


def test_output_that_was_lost_is_exit_code_2(command: list[str], environment: dict[str, str]) -> None:
    """A full disk is one message, and no answer."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "fleet", "schema"],
            env=environment,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.stderr.startswith("error: cannot write to standard output: No space left on device\nhint:")
    assert done.returncode == 2


def test_an_interrupt_while_loading_is_one_message(environment: dict[str, str], tmp_path: Path) -> None:
    """SIGINT before any command was read: exit code 2 and no stack trace."""
    (tmp_path / "typer.py").write_text("import signal; print('loading', flush=True); signal.pause()")
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "from deployments.__main__ import main; main()"
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as loading:
        assert loading.stdout is not None
        assert loading.stdout.readline() == "loading\n"
        loading.send_signal(signal.SIGINT)
        _, said = loading.communicate(timeout=10)

    assert (loading.returncode, said) == (2, "error: interrupted; nothing was begun\n")


@pytest.mark.long
def test_the_same_run_goes_without_the_server(pgvigil: Pgvigil) -> None:
    """With --local it runs on a server of its own, and the audit log has it like any other."""
    done = pgvigil("run", "nightly-backup", "demo", "--dry-run", "--json", "--local", PREFECT_API_URL=NOBODY)

    run_id = json.loads(done.stdout)["run_id"]
    assert json.loads(pgvigil("audit", "show", run_id, "--json").stdout)["run"]["verdict"] == "verified"
    assert done.returncode == 0


@pytest.mark.long
def test_a_fault_that_passes_while_planning_is_tried_again(
    pgvigil: Pgvigil, prefect_sandbox: Sandbox, proven: Done, workplace: Path
) -> None:
    """The repository's host is away once: the step is repeated, and the run is none the worse for it."""
    assert proven.returncode == 0
    program, gone = workplace / "pgbackrest", workplace / "gone"
    fail_once = f'case "$*" in *repo-ls*) mkdir {gone} 2>/dev/null && exit 49;; esac'
    program.write_text(f'#!/bin/sh\n{fail_once}\nexec pgbackrest "$@"\n')
    program.chmod(0o755)
    workplace.chmod(0o777)
    fleet = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
    fleet["clusters"]["demo"]["pgbackrest"]["command"] = [str(program)]
    file = workplace / "fleet.yaml"
    file.write_text(yaml.safe_dump(fleet), encoding="utf-8")

    done = pgvigil("run", "nightly-backup", "demo", "--dry-run", "--json", PGVIGIL_FLEET=str(file))

    report = json.loads(done.stdout)
    assert gone.is_dir()
    assert (report["verdict"], report["findings"]) == ("verified", [])
    assert [check["id"] for check in report["checks"]].count("repo1.usable") == 1


def test_a_killed_local_run_leaves_no_server(
    command: list[str], environment: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL: the private server ends and its home is gone, though nobody was left to ask for it."""
    marked = {**environment, "TMPDIR": str(tmp_path)}
    run = subprocess.Popen(
        [*command, "run", "nightly-backup", "demo", "--local"],
        env=marked,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _await(lambda: any(tmp_path.glob("pgvigil-run-*/url")))
    run.kill()
    run.wait()

    _await(lambda: not marked_processes(f"TMPDIR={tmp_path}"))
    assert list(tmp_path.glob("pgvigil-run-*")) == []


@pytest.mark.long
def test_a_private_server_that_cannot_start_forgets_what_it_began_with(
    pgvigil: Pgvigil, tmp_path: Path
) -> None:
    """A spoiled database in the cache costs one run, with a message, and never a second one."""
    template = tmp_path / "pgvigil" / f"prefect-{version('prefect')}.db"
    template.parent.mkdir()
    template.write_text("spoiled")

    done = pgvigil("run", "nightly-backup", "demo", "--local", XDG_CACHE_HOME=str(tmp_path))

    assert "the Prefect server did not start" in done.stderr
    assert done.returncode == 2
    assert not template.exists()


def test_a_sandbox_comes_up_and_leaves_nothing(pgvigil: Pgvigil, workplace: Path) -> None:
    """It says how to use it; down removes it; a second down has nothing to do."""
    directory = workplace / "mine"

    up = pgvigil("sandbox", "up", "--dir", str(directory), "--empty", "--no-prefect")
    assert f". {directory}/env" in up.stdout
    assert "is gone" in pgvigil("sandbox", "down", "--dir", str(directory)).stdout
    assert not directory.exists()
    assert "there is no sandbox" in pgvigil("sandbox", "down", "--dir", str(directory)).stdout


@pytest.mark.long
def test_a_terminated_run_ends_properly(
    command: list[str], environment: dict[str, str], pgvigil: Pgvigil
) -> None:
    """SIGTERM in mid-run: exit code 2, one message, and the run is closed in the audit log."""
    run = subprocess.Popen(
        [*command, "run", "nightly-backup", "demo", "-p", "backup_type=full"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None
    for line in run.stderr:
        if "backup command begin" in line:
            run.send_signal(signal.SIGTERM)
            break
    _, said = run.communicate(timeout=60)

    assert "error: interrupted" in said
    assert "Traceback" not in said
    assert run.returncode == 2
    newest = json.loads(pgvigil("audit", "list", "--limit", "1", "--json").stdout)[0]
    assert (newest["state"], newest["verdict"]) == ("ended", "inconclusive")


# The signal comes where Prefect has the next task but not its run yet: it fails in handling that.
BETWEEN_TASKS = """
import signal, prefect.task_engine
prefect.task_engine._create_task_run_locally = lambda **_: signal.raise_signal(signal.SIGTERM)
from deployments import cli
cli.main()
"""


@pytest.mark.long
def test_a_run_terminated_between_two_tasks_is_told_as_interrupted(
    environment: dict[str, str], pgvigil: Pgvigil
) -> None:
    """SIGTERM is no defect, whatever Prefect makes of it: no stack trace is kept, in no file either."""
    run = subprocess.run(
        [sys.executable, "-c", BETWEEN_TASKS, "run", "nightly-backup", "demo"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert "error: interrupted" in run.stderr
    assert "the whole of it is in" not in run.stderr
    assert run.returncode == 2
    newest = json.loads(pgvigil("audit", "list", "--limit", "1", "--json").stdout)[0]
    assert (newest["state"], newest["verdict"]) == ("ended", "inconclusive")
    assert newest["headline"].startswith("ended by TerminationSignal")


@pytest.mark.long
def test_status_follows_the_proofs(pgvigil: Pgvigil, unwritten: Path) -> None:
    """A proof that never ran is told with exit code 2, whatever else is verified; here no drill ever ran."""
    run = partial(pgvigil, PGVIGIL_FLEET=str(unwritten))
    assert run("run", "nightly-backup", "demo").returncode == 0
    before = run("status", "--json")
    assert run("run", "verify-wal-archive", "demo").returncode == 0
    assert run("run", "roll-partitions", "demo/shop").returncode == 0

    after = run("status", "--json")

    states = [{s["proof"]: s["state"] for s in json.loads(done.stdout)} for done in (before, after)]
    drills = {name: states[0].pop(name) for name in list(states[0]) if name.startswith("restore repo1")}
    events = "partitions public.events"
    assert states[0] == {"backup repo1": "verified", "wal repo1": "never", events: "never"}
    assert states[1] == states[0] | drills | {"wal repo1": "verified", events: "verified"}
    assert set(drills.values()) == {"never"}
    assert (before.returncode, after.returncode) == (2, 2)


def test_alert_rules_and_dashboard_ask_for_what_the_metrics_have(
    pgvigil: Pgvigil, proven: Done, tmp_path: Path
) -> None:
    """Every metric and label that infra/ names stands in the real output, and every metric is used."""
    assert proven.returncode == 0
    file = tmp_path / "pgvigil.prom"
    done = pgvigil("status", "--prometheus", "--output", str(file))
    families = list(text_string_to_metric_families(file.read_text(encoding="utf-8")))
    given = {family.name: {label for s in family.samples for label in s.labels} for family in families}

    asked = [named(query) for query in queries()]

    assert (2, "") == (done.returncode, done.stdout)
    assert all(family.samples for family in families)
    assert set(given) - {"pgvigil_proof_age_seconds", "pgvigil_last_run_timestamp_seconds"} == (
        set().union(*(metrics for metrics, _ in asked))
    )
    for metrics, labels in asked:
        assert labels <= set().union(*(given[metric] for metric in metrics)), (metrics, labels)


def queries() -> list[str]:
    """Return every query of the alert rules and the dashboard, with the labels that its words name."""
    infra = Path(__file__).parents[2] / "infra"
    groups = yaml.safe_load((infra / "prometheus" / "pgvigil.rules.yaml").read_text(encoding="utf-8"))[
        "groups"
    ]
    rules = [rule for group in groups for rule in group["rules"]]
    told = [rule["expr"] + " ".join(rule["annotations"].values()) for rule in rules]
    board = json.loads((infra / "grafana" / "pgvigil.json").read_text(encoding="utf-8"))
    drawn = [t["expr"] + " " + t["legendFormat"] for panel in board["panels"] for t in panel["targets"]]
    chosen = [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    return told + drawn + chosen


def named(query: str) -> tuple[set[str], set[str]]:
    """Find the metrics and the labels that a query names."""
    matched = [re.findall(r"(\w+)\s*[=!]~?\s*\"", inner) for inner in re.findall(r"\{([^{}]*)\}", query)]
    grouped = [re.split(r"\W+", inner) for inner in re.findall(r"(?:by|on)\s*\(([^)]*)\)", query)]
    said = re.findall(r"\$labels\.(\w+)", query) + re.findall(r"\{\{(\w+)\}\}", query)
    listed = re.findall(r"label_values\(\w+, (\w+)\)", query)
    return set(re.findall(r"\bpgvigil_\w+", query)), {*chain(*matched, *grouped), *said, *listed}


def test_the_audit_log_is_verified_against_its_anchors(pgvigil: Pgvigil) -> None:
    """A whole chain: exit code 0 and the number of anchors outside."""
    done = pgvigil("audit", "verify")

    assert "verified" in done.stdout
    assert done.returncode == 0


def test_a_chain_without_anchors_is_not_called_verified(
    pgvigil: Pgvigil, prefect_sandbox: Sandbox, tmp_path: Path
) -> None:
    """A cut tail cannot be seen without anchors, so a wrong report store is exit code 2, not 0."""
    fleet = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
    fleet["audit"]["reports"] = f"file://{tmp_path}/elsewhere"
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(fleet), encoding="utf-8")

    done = pgvigil("audit", "verify", PGVIGIL_FLEET=str(file))

    assert "no anchor" in done.stdout
    assert done.returncode == 2


def test_an_edited_audit_log_is_named(pgvigil: Pgvigil, edited: Path) -> None:
    """One altered row: exit code 1 and its number."""
    done = pgvigil("audit", "verify", PGVIGIL_FLEET=str(edited))

    assert "broken at 1" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [["status"], ["audit", "list"], ["fleet", "check"], ["deploy"]])
def test_a_missing_fleet_file_is_one_message(pgvigil: Pgvigil, arguments: list[str]) -> None:
    """Every command that needs the fleet file says which one it looked for."""
    done = pgvigil(*arguments, PGVIGIL_FLEET="/nowhere/fleet.yaml")

    assert "error: no fleet file at '/nowhere/fleet.yaml'" in done.stderr
    assert done.returncode == 2


def test_help_is_quick_because_nothing_heavy_is_imported(
    command: list[str], environment: dict[str, str]
) -> None:
    """Prefect, boto3 and psycopg stay out of a call that does not need them."""
    done = subprocess.run(
        [command[0], "-X", "importtime", *command[1:], "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not imported & {"prefect", "boto3", "psycopg", "moto"}


def _await(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.1)
