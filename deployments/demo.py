"""What `make demo` shows: every pipeline once against a sandbox, and what each proved.

python -m deployments.demo DIR
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pgvigil.errors import PgvigilError, ToolFailed
from pgvigil.processes import Command, run
from pgvigil.reports import Frozen
from pgvigil.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Sequence

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


RUNS = (
    Run(flow="nightly-backup", subject="demo", parameters=("backup_type=full",)),
    Run(flow="nightly-backup", subject="demo", parameters=("backup_type=diff",)),
    Run(flow="nightly-backup", subject="demo", parameters=("backup_type=incr",)),
    Run(flow="verify-wal-archive", subject="demo"),
)


def main(directory: Path) -> int:
    """Do all runs against a running sandbox, print the table, and return the worst exit code."""
    sandbox = Sandbox.load(directory)
    out = Console()
    codes, rows = [], []
    for each in RUNS:
        out.print(f"$ pgvigil {' '.join(each.argv)}", highlight=False, soft_wrap=True)
        code, row = _do(each, sandbox.environment)
        codes.append(code)
        rows.append(row)
    # In a terminal the table folds to fit; in a file or a CI log an address stays in one piece.
    (out if out.is_terminal else Console(width=WIDE)).print(_table(rows))
    out.print(_where(sandbox), highlight=False, soft_wrap=True)
    return max(codes)


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
    backups, evidence = _list(report, "backups"), _list(report, "evidence")
    best = [uri for uri in evidence if str(uri).endswith(_BEST)] or evidence
    return Shown(
        pipeline=each.flow,
        subject=each.subject,
        verdict=str(report["verdict"]),
        proved=", ".join([*map(_backup, backups), _checks(_list(report, "checks"))]),
        evidence=str(best[0]) if best else "none",
    )


def _list(report: dict[str, object], key: str) -> list[dict[str, str]]:
    value = report.get(key)
    return value if isinstance(value, list) else []


def _backup(backup: dict[str, str]) -> str:
    return f"{backup['type']} {backup['label']}"


def _checks(checks: Sequence[dict[str, str]]) -> str:
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
