"""What `make demo` shows: every pipeline once against a sandbox, and what each proved.

python -m deployments.demo DIR
"""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table

from deployments.demo_backfill import kill_in_the_middle
from pgvigil.drill.trend import RTO_PHASES
from pgvigil.errors import PgvigilError, ToolFailed
from pgvigil.fleet import load_fleet
from pgvigil.objectstore import connect
from pgvigil.processes import Command, run
from pgvigil.reports import Frozen, Verdict
from pgvigil.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pgvigil.objectstore import ObjectStore

WIDE = 240
PATIENCE = timedelta(minutes=5)
_BEST = ".json"  # of a report's renderings, the one that the audit log's digest is of


class Run(Frozen):
    """One call of the command line; `parameters` are those of the flow."""

    flow: str
    subject: str
    parameters: tuple[str, ...] = ()

    @property
    def argv(self) -> tuple[str, ...]:
        """The command as an operator would type it."""
        options = [word for parameter in self.parameters for word in ("-p", parameter)]
        return ("run", self.flow, self.subject, *options, "--json")


class Shown(Frozen):
    """One row of the closing table."""

    pipeline: str
    subject: str
    verdict: str
    proved: str
    evidence: str


# Two lanes at a time, as two workers would: what is done to the cluster, and what to one of its databases.
CLUSTER = (
    Run(flow="nightly-backup", subject="demo", parameters=("backup_type=full",)),
    Run(flow="nightly-backup", subject="demo", parameters=("backup_type=diff",)),
    Run(flow="nightly-backup", subject="demo", parameters=("backup_type=incr",)),
    Run(flow="verify-wal-archive", subject="demo"),
    Run(flow="restore-drill", subject="demo", parameters=("recovery_target=time",)),
)
BACKFILL = Run(flow="run-backfill", subject="demo/shop", parameters=("backfill=cents",))
DATABASE = (
    Run(flow="roll-partitions", subject="demo/shop"),
    Run(flow="restore-partition", subject="demo/shop", parameters=("attach=true",)),
    BACKFILL,
)
# The same archive with a hole in it: a watch that never saw red has proven nothing about its alarm.
BROKEN = Run(flow="verify-wal-archive", subject="broken-copy")


def main(directory: Path) -> int:
    """Do all runs against a running sandbox, print the table, and return the worst exit code."""
    sandbox = Sandbox.load(directory)
    out = Console()
    drive = partial(_drive, out, sandbox)
    with ThreadPoolExecutor() as lanes:
        done = [each for lane in lanes.map(drive, (CLUSTER, DATABASE)) for each in lane]
    codes, rows = [code for code, _ in done], [row for _, row in done]
    out.print(f"$ pgvigil {' '.join(BROKEN.argv)}   # one segment less", highlight=False, soft_wrap=True)
    code, row = _do(BROKEN, {**sandbox.environment, "PGVIGIL_FLEET": str(break_copy(sandbox))})
    rows.append(row)
    if code != Verdict.REFUTED.exit_code:
        raise ToolFailed(
            f"the copy without a WAL segment ended with {code}, expected {Verdict.REFUTED.exit_code}",
            hint="the alarm does not ring: look at the report above",
        )
    # In a terminal the table folds to fit; in a file or a CI log an address stays in one piece.
    (out if out.is_terminal else Console(width=WIDE)).print(_table(rows))
    out.print(_where(sandbox), highlight=False, soft_wrap=True)
    return max(codes)


def _drive(out: Console, sandbox: Sandbox, lane: Sequence[Run]) -> list[tuple[int, Shown]]:
    """Do the runs of one lane, one after the other."""
    done = []
    for each in lane:
        out.print(f"$ pgvigil {' '.join(each.argv)}", highlight=False, soft_wrap=True)
        if each == BACKFILL:
            kill_in_the_middle(sandbox, partial(_tell, out))
            _tell(out, "the same command once more goes on where it was")
        done.append(_do(each, sandbox.environment))
    return done


def _tell(out: Console, words: str) -> None:
    out.print(f"  {words}", highlight=False, soft_wrap=True)


def break_copy(sandbox: Sandbox) -> Path:
    """Copy the repository beside itself, take one WAL segment out, and return a fleet file that names it.

    The segment is the middle one of those that the newest backup's recovery needs after the first's start.
    """
    fleet = yaml.safe_load(sandbox.fleet_file.read_text(encoding="utf-8"))
    settings = load_fleet(sandbox.fleet_file).s3.model_copy(update={"ca_file": sandbox.ca_file})
    os.environ.update({name: sandbox.environment[name] for name in _CREDENTIALS})
    store = connect(settings)
    copies = [_copy(store, item.uri) for item in list(store.list(f"{_REPOSITORY}/"))]
    segments = sorted(uri for uri in copies if _SEGMENT.search(uri))
    store.delete(segments[len(segments) // 2])
    conf = sandbox.give(_write(sandbox.directory / "broken.conf", _moved(sandbox.pgbackrest_conf)))
    cluster = fleet["clusters"].pop("demo")
    cluster["pgbackrest"]["config"] = str(conf)
    # A mark that is committed now goes to the living archive, never into the copy.
    cluster["wal"] = {"heartbeat": False}
    fleet["clusters"] = {BROKEN.subject: cluster}
    return _write(sandbox.directory / "broken.yaml", yaml.safe_dump(fleet))


_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
_REPOSITORY = "s3://pgbackrest/demo"
_SEGMENT = re.compile(r"/[0-9A-F]{24}-[0-9a-f]{40}\.\w+$")


def _copy(store: ObjectStore, uri: str) -> str:
    copy = uri.replace(_REPOSITORY, f"{_REPOSITORY}-broken", 1)
    store.put(copy, store.get(uri))
    return copy


def _moved(conf: Path) -> str:
    return conf.read_text(encoding="utf-8").replace("repo1-path=/demo", "repo1-path=/demo-broken")


def _write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    file.chmod(0o600)
    return file


def _do(each: Run, environment: dict[str, str]) -> tuple[int, Shown]:
    """Run the command in the sandbox's environment; raises ToolFailed when it printed no report."""
    program = Path(sys.executable).with_name("pgvigil")
    done = run(Command(argv=(str(program), *each.argv), env=environment, deadline=PATIENCE))
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise ToolFailed(
            f"pgvigil {' '.join(each.argv)} ended with {done.exit_code} and printed no report",
            hint="it said: " + " / ".join(done.tail[-5:]),
        ) from None
    return done.exit_code, read(each, report)


def read(each: Run, report: dict[str, object]) -> Shown:
    """Read one row off a report: its own facts when it has them, else how many checks were verified."""
    evidence, checks = _list(report, "evidence"), _list(report, "checks")
    own = [*map(_backup, _list(report, "backups")), *_drill(report)]
    best = [uri for uri in evidence if str(uri).endswith(_BEST)] or evidence
    return Shown(
        pipeline=each.flow,
        subject=each.subject,
        verdict=str(report["verdict"]),
        proved=", ".join([*own, *_missing(report), _checks(checks)]),
        evidence=str(best[0]) if best else "none",
    )


def _list(report: dict[str, object], key: str) -> list[dict[str, Any]]:
    value = report.get(key)
    return value if isinstance(value, list) else []


def _missing(report: dict[str, object]) -> list[str]:
    """Name what a refuted run found."""
    return [finding["message"] for finding in _list(report, "findings") if finding["severity"] == "error"]


def _backup(backup: dict[str, Any]) -> str:
    return f"{backup['type']} {backup['label']}"


def _drill(report: dict[str, object]) -> list[str]:
    """Tell what a drill restored, how much of it was compared, and how long a restore took."""
    phases = [each for each in _list(report, "phases") if each["name"] in RTO_PHASES]
    tables = [table for each in _list(report, "databases") for table in each["tables"]]
    if not phases:
        return []
    equal = sum(table["verdict"] == "verified" for table in tables)
    rto = sum(float(each["seconds"]) for each in phases)
    return [f"{equal} of {len(tables)} tables equal", f"RTO {rto:.1f} s"]


def _checks(checks: Sequence[dict[str, Any]]) -> str:
    verified = sum(check["verdict"] == "verified" for check in checks)
    return f"{verified} of {len(checks)} checks verified"


def _table(rows: Sequence[Shown]) -> Table:
    table = Table("pipeline", "subject", "verdict", "what it proved", "evidence", title="What was proved")
    for column in table.columns:
        column.overflow = "fold"
    for row in rows:
        table.add_row(row.pipeline, row.subject, row.verdict, row.proved, row.evidence)
    return table


def _where(sandbox: Sandbox) -> str:
    api = sandbox.environment.get("PREFECT_API_URL", "")
    return (
        f"Prefect UI: {api.removesuffix('/api') or 'not started'}\n"
        f"To work in this sandbox: . {sandbox.env_file}\n"
        "To remove it: make demo-stop"
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m deployments.demo DIR")
    try:
        sys.exit(main(Path(sys.argv[1])))
    except PgvigilError as failure:
        print(f"demo: {failure}", file=sys.stderr)  # noqa: T201 - a command's one word to its caller
        sys.exit(2)
