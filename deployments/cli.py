"""The command line. It decides nothing: it reads arguments, calls, shows, and gives the exit code.

0 proven, 1 ran and refuted, 2 could not run. Whatever is heavy is imported by the command that needs it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from uuid import UUID  # noqa: TC003 - Typer reads annotations when the program runs

import typer
from typing_extensions import override

from pgvigil import __version__
from pgvigil.errors import ConfigError, PgvigilError, interruption
from pgvigil.redaction import redactor
from pgvigil.visible import visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Buffer

    from pgvigil.backfill.steering import Action
    from pgvigil.sandbox import Sandbox

COULD_NOT_RUN = 2

app = typer.Typer(
    help="The night watch over PostgreSQL: backups, proven. Exit codes: 0 proven, 1 refuted, 2 unknown.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
sandbox_app = typer.Typer(
    help="A PostgreSQL with pgBackRest, S3 and Prefect to try things on.", no_args_is_help=True
)
audit_app = typer.Typer(
    help="Who did what to what, when, and proof that nobody edited it.", no_args_is_help=True
)
fleet_app = typer.Typer(
    help="The fleet file: which clusters there are and the policy of each.", no_args_is_help=True
)
backfill_app = typer.Typer(help="Watch and steer a backfill while it runs.", no_args_is_help=True)
app.add_typer(sandbox_app, name="sandbox")
app.add_typer(audit_app, name="audit")
app.add_typer(fleet_app, name="fleet")
app.add_typer(backfill_app, name="backfill")

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document; everything else goes to stderr.")
]
Dir = Annotated[Path | None, typer.Option(help="Its directory; without it one per user below /tmp.")]


def main() -> None:
    """Be the program: never a stack trace, always an exit code that means something."""
    signal.signal(signal.SIGTERM, _interrupt)
    output = _Output(1)
    sys.stdout, sys.stderr = output.text(), _Output(2).text()
    try:
        app()
    except SystemExit as end:
        sys.stdout.flush()
        sys.exit(_settle(end.code, output.fault))


class _Output(io.FileIO):
    """A standard stream that notes its first fault and drops the rest: a reader that left ends no run."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self.fault: OSError | None = None

    def text(self) -> io.TextIOWrapper:
        """Wrap it as Python wraps its own: encoding of the locale, terminals and errors line by line."""
        lines = self.fileno() == 2 or self.isatty()
        return io.TextIOWrapper(
            io.BufferedWriter(self), sys.stdout.encoding, "backslashreplace", line_buffering=lines
        )

    @override
    def write(self, data: Buffer, /) -> int:
        if self.fault is None:
            try:
                return super().write(data)
            except OSError as error:
                self.fault = error
        return memoryview(data).nbytes


def _settle(code: str | int | None, fault: OSError | None) -> str | int | None:
    """Keep the exit code for a reader that left early; output lost in any other way makes it 2."""
    if fault is None:
        return code
    _say(f"cannot write to standard output: {fault.strerror}", "'pgvigil audit list' shows what ran")
    return code if isinstance(fault, BrokenPipeError) else COULD_NOT_RUN


def _interrupt(_signal: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def answers(command: Callable[..., int | None]) -> Callable[..., None]:
    """Make a command end with the exit code that it returns, or with a message and exit code 2."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        raise typer.Exit(_attempt(lambda: command(*args, **kwargs) or 0))

    return guarded


def _attempt(work: Callable[[], int]) -> int:
    try:
        return work()
    except PgvigilError as error:
        _say(error.message, error.hint)
    except SystemExit:
        raise
    except BaseException as error:  # the last place where a defect can become a message
        if interruption(error):  # Ctrl-C, SIGTERM, Prefect's word for both, or what came of it
            _say(
                "interrupted; what was begun has been ended", "'pgvigil audit list' shows how the run stands"
            )
        else:
            _say(
                f"{type(error).__name__}: {error}".strip().splitlines()[0],
                f"the whole of it is in {_keep_traceback()}",
            )
    return COULD_NOT_RUN


def _say(message: str, hint: str) -> None:
    redact = redactor()
    typer.echo(f"error: {visible(redact(message))}", err=True)
    if hint:
        typer.echo(f"hint: {visible(redact(hint))}", err=True)


def _keep_traceback() -> Path:
    handle, name = tempfile.mkstemp(prefix="pgvigil-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(redactor()(traceback.format_exc()))
    return Path(name)


@contextlib.contextmanager
def _only_the_document() -> Iterator[None]:
    """Send whatever anybody prints to standard error, so that standard output is left for one document."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"pgvigil {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take what stands before the command."""


@app.command("run")
@answers
def run_flow(  # noqa: PLR0913 - one per option
    flow: Annotated[
        str, typer.Argument(metavar="FLOW", help="The flow's name with dashes, such as nightly-backup.")
    ],
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="A cluster of the fleet file, or cluster/database; for watch-fleet a pipeline.",
        ),
    ],
    parameter: Annotated[
        list[str] | None, typer.Option("-p", metavar="KEY=VALUE", help="A parameter.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="TAG", help="A tag of the run in Prefect.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look and plan; change nothing.")] = False,
    local: Annotated[bool, typer.Option("--local", help="On a Prefect server of its own.")] = False,
    json: Json = False,
) -> int:
    """Run a flow on a subject and show its report."""
    from deployments import show  # noqa: PLC0415
    from deployments.run import run  # noqa: PLC0415
    from pgvigil.reports import to_json  # noqa: PLC0415

    with _only_the_document():
        report = run(flow, subject, parameter or (), tags=tag or (), dry_run=dry_run, local=local)
    if json:
        typer.echo(to_json(report))
    else:
        show.report(report)
    return report.verdict.exit_code


@app.command()
@answers
def approve(
    run: Annotated[
        UUID | None,
        typer.Argument(metavar="RUN", help="The Prefect run that asks; without it all are listed."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Your name, for the audit log.")] = None,
    note: Annotated[str, typer.Option(help="Why, or a ticket's number.")] = "",
    reject: Annotated[bool, typer.Option("--reject", help="Say no.")] = False,
    json: Json = False,
) -> None:
    """List the runs that wait for a person, or answer one."""
    from deployments import show  # noqa: PLC0415
    from deployments.server import require_answer, required_url  # noqa: PLC0415
    from pgvigil.runs import actor  # noqa: PLC0415

    require_answer(required_url())
    from deployments import approval  # noqa: PLC0415

    if run is None:
        (show.as_json if json else show.questions)(approval.waiting())
        return
    given = approval.filled_in(approve=not reject, approver=name or actor(), note=note)
    approval.answer(run, given)
    typer.echo(f"run {run} goes on: {given.decision}")


@sandbox_app.command("up")
@answers
def sandbox_up(
    directory: Annotated[Path | None, typer.Option("--dir", help="A new or empty directory.")] = None,
    empty: Annotated[bool, typer.Option("--empty", help="Leave out the sample tables.")] = False,
    postgres_bin: Annotated[Path | None, typer.Option(help="Directory of PostgreSQL's programs.")] = None,
    prefect: Annotated[bool, typer.Option("--prefect/--no-prefect", help="With Prefect in it.")] = True,
) -> None:
    """Start a sandbox and say how to use it."""
    from deployments import sandbox  # noqa: PLC0415
    from pgvigil.sandbox import up  # noqa: PLC0415

    place = directory or sandbox.default_directory()
    made = (sandbox.up if prefect else up)(place, empty=empty, postgres_bin=postgres_bin)
    typer.echo(_describe(made))


_NO_STANZA = "  no backups: pgbackrest here does not know this PostgreSQL, see 'pgvigil doctor demo'"


def _describe(sandbox: Sandbox) -> str:
    url = sandbox.environment.get("PREFECT_API_URL")
    lines = [
        f"A sandbox runs in {sandbox.directory}",
        f"  PostgreSQL  port {sandbox.primary_port}, cluster 'demo', database 'demo/shop'",
        f"  evidence    port {sandbox.ops_port}, reports in {sandbox.endpoint_url}",
        *([f"  Prefect     {url.removesuffix('/api')}"] if url else []),
        *([] if sandbox.archives else [_NO_STANZA]),
        "",
        f"  . {sandbox.env_file}",
        "  pgvigil run nightly-backup demo",
        f"  pgvigil sandbox down --dir {sandbox.directory}",
    ]
    return "\n".join(lines)


@sandbox_app.command("down")
@answers
def sandbox_down(
    directory: Annotated[Path | None, typer.Option("--dir", help="The sandbox's directory.")] = None,
) -> None:
    """End everything of a sandbox and remove it; without one, do nothing."""
    from deployments.sandbox import default_directory  # noqa: PLC0415
    from pgvigil.sandbox import down  # noqa: PLC0415

    place = directory or default_directory()
    typer.echo(f"the sandbox in {place} is gone" if down(place) else f"there is no sandbox in {place}")


@audit_app.command("init")
@answers
def audit_init(
    dsn: Annotated[str | None, typer.Option(help="How an admin reaches the audit database.")] = None,
) -> None:
    """Create or migrate the audit log's schema and roles."""
    from pgvigil.audit import install  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415

    version = install(dsn or load_fleet().audit.dsn)
    typer.echo(f"the audit log is ready, schema version {version}")
    typer.echo("the role of audit.dsn writes once it has: GRANT pgvigil_writer TO <role>")


@audit_app.command("list")
@answers
def audit_list(
    subject: Annotated[str | None, typer.Option(help="Only runs on this subject.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="So many of the newest.")] = 50,
    json: Json = False,
) -> None:
    """List the newest runs."""
    from deployments import show  # noqa: PLC0415
    from pgvigil import audit  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415

    with audit.reader(load_fleet().audit.dsn, "pgvigil audit list") as session:
        found = audit.list_runs(session, subject, limit)
    (show.as_json if json else show.runs)(found)


@audit_app.command("show")
@answers
def audit_show(
    run_id: Annotated[UUID, typer.Argument(metavar="RUN", help="The run's id.")], json: Json = False
) -> None:
    """Show everything on record about one run."""
    from deployments import show  # noqa: PLC0415
    from pgvigil import audit  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415

    with audit.reader(load_fleet().audit.dsn, "pgvigil audit show") as session:
        found = audit.show_run(session, run_id)
    (show.as_json if json else show.run_record)(found)


@audit_app.command("verify")
@answers
def audit_verify(json: Json = False) -> int:
    """Recompute the whole chain against its anchors outside; exit 1 at a broken link, 2 without anchors."""
    from deployments import show  # noqa: PLC0415
    from pgvigil.audit import Head, reader, verify  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415
    from pgvigil.reportstore import open_report_store  # noqa: PLC0415

    fleet = load_fleet()
    anchors = open_report_store(fleet.audit.reports, fleet.s3).anchors()
    with reader(fleet.audit.dsn, "pgvigil audit verify") as session:
        found = verify(session, [Head(seq=seq, hash=digest) for seq, digest in anchors])
    (show.as_json if json else show.chain)(found)
    if not found.ok:
        return 1
    # Without an anchor a cut tail, or a log emptied and begun anew, cannot be told from a true one.
    return 0 if found.anchors else 2


@app.command()
@answers
def status(
    json: Json = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print it as metrics in Prometheus' text format.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="With --prometheus: replace this file, such as a textfile collector's."),
    ] = None,
) -> int:
    """Show how fresh each proof is, worst first."""
    from deployments import show  # noqa: PLC0415
    from pgvigil import metrics  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415
    from pgvigil.watch import proofs  # noqa: PLC0415

    _require_one_format(json=json, prometheus=prometheus, to_file=output is not None)
    found = proofs.read_status(load_fleet())
    if output:
        metrics.replace(output, metrics.exposition(found))
    elif prometheus:
        typer.echo(metrics.exposition(found), nl=False)
    else:
        (show.as_json if json else show.statuses)(found)
    return proofs.exit_code(found)


def _require_one_format(*, json: bool, prometheus: bool, to_file: bool) -> None:
    if to_file and not prometheus:
        raise ConfigError("--output takes metrics only", hint="add --prometheus, or redirect the output")
    if json and prometheus:
        raise ConfigError("--json and --prometheus exclude each other", hint="leave out one of them")


@fleet_app.command("schema")
@answers
def fleet_schema() -> None:
    """Print the fleet file's JSON Schema, for editors."""
    from deployments import show  # noqa: PLC0415
    from pgvigil.fleet import fleet_schema as schema  # noqa: PLC0415

    show.as_json(schema())


@fleet_app.command("check")
@answers
def fleet_check() -> None:
    """Read the fleet file and say what is in it, and whom each wave covers."""
    from deployments import show  # noqa: PLC0415
    from pgvigil.fleet import fleet_path, load_fleet  # noqa: PLC0415
    from pgvigil.waves.selection import select  # noqa: PLC0415

    fleet = load_fleet()
    typer.echo(f"'{fleet_path()}' is good; its clusters: {', '.join(fleet.clusters)}")
    show.waves({pipeline: select(fleet, pipeline) for pipeline in fleet.pipelines()})


Database = Annotated[str, typer.Argument(metavar="SUBJECT", help="The database as cluster/database.")]
Backfill = Annotated[str, typer.Argument(metavar="NAME", help="The backfill's name in the fleet file.")]


@backfill_app.command("show")
@answers
def backfill_show(subject: Database, name: Backfill, json: Json = False) -> None:
    """Show how far it is, how fast, and what it waits for."""
    from deployments import show  # noqa: PLC0415
    from pgvigil.backfill import steering  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415

    found = steering.show(load_fleet(), subject, name)
    (show.as_json if json else show.backfill)(found)


def _steer(subject: str, name: str, action: Action, json: bool, **limits: float | None) -> int:
    from deployments import show  # noqa: PLC0415
    from pgvigil.backfill import steering  # noqa: PLC0415
    from pgvigil.reports import to_json  # noqa: PLC0415

    with _only_the_document():
        report = steering.conduct_steering(subject, name, action, limits)
    if json:
        typer.echo(to_json(report))
    elif report.shown:
        show.backfill(report.shown)
    else:
        show.report(report)
    return report.verdict.exit_code


@backfill_app.command("pause")
@answers
def backfill_pause(subject: Database, name: Backfill, json: Json = False) -> int:
    """Hold it after the batch that is at work; the run waits."""
    return _steer(subject, name, "pause", json)


@backfill_app.command("resume")
@answers
def backfill_resume(subject: Database, name: Backfill, json: Json = False) -> int:
    """Let it go on, also after a cancel."""
    return _steer(subject, name, "resume", json)


@backfill_app.command("cancel")
@answers
def backfill_cancel(subject: Database, name: Backfill, json: Json = False) -> int:
    """End the run after the batch that is at work; the cursor stays."""
    return _steer(subject, name, "cancel", json)


@backfill_app.command("restart")
@answers
def backfill_restart(subject: Database, name: Backfill, json: Json = False) -> int:
    """Give the cursor up, so that the next run begins anew; only while nobody runs it."""
    return _steer(subject, name, "restart", json)


@backfill_app.command("undo")
@answers
def backfill_undo(subject: Database, name: Backfill, json: Json = False) -> int:
    """Give rows back what they held, where before_images were kept; only while nobody runs it."""
    return _steer(subject, name, "undo", json)


@backfill_app.command("set")
@answers
def backfill_set(  # noqa: PLR0913 - one per option
    subject: Database,
    name: Backfill,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows of the next batch.")] = None,
    most_rows: Annotated[int | None, typer.Option(min=1, help="Most rows of a batch.")] = None,
    target_ms: Annotated[int | None, typer.Option(min=1, help="Milliseconds of a batch.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=32, help="Workers.")] = None,
    archive_files: Annotated[
        int | None, typer.Option(min=1, help="WAL files that may wait for the archiver.")
    ] = None,
    replication_mb: Annotated[
        float | None, typer.Option(min=0.001, help="MB of WAL that a standby may lack.")
    ] = None,
    json: Json = False,
) -> int:
    """Change sizes and limits from the next batch on."""
    return _steer(
        subject,
        name,
        "set",
        json,
        rows=rows,
        most_rows=most_rows,
        target_ms=target_ms,
        workers=workers,
        archive_files=archive_files,
        replication_mb=replication_mb,
    )


@app.command()
@answers
def doctor(
    subject: Annotated[
        str | None, typer.Argument(metavar="SUBJECT", help="A cluster; without it the whole fleet.")
    ] = None,
    json: Json = False,
) -> int:
    """Check what flows need before they need it; exit 1 if something is broken."""
    from deployments import show  # noqa: PLC0415
    from pgvigil.doctor import examine, verdict  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415

    found = examine(load_fleet(), subject)
    (show.as_json if json else show.diagnoses)(found)
    return verdict(found).exit_code


@app.command("alarm-test")
@answers
def alarm_test(
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this damage; may be repeated.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="On a scratch copy of this cluster's repository, never on itself.")
    ] = None,
    scratch: Annotated[Path | None, typer.Option(help="With --cluster: a directory for the copy.")] = None,
    show_list: Annotated[bool, typer.Option("--list", help="List the damages; do nothing.")] = False,
    json: Json = False,
) -> int:
    """Do every known damage to a copy and see that the flows notice; exit 1 if one is missed."""
    from deployments import show  # noqa: PLC0415
    from pgvigil import alarmtest  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415

    damages = alarmtest.choose(only or ())
    if show_list:
        (show.as_json if json else show.damages)([damage.listed() for damage in damages])
        return 0
    with _only_the_document():
        stage = (
            alarmtest.borrowed_stage(load_fleet(), cluster, scratch)
            if cluster
            else alarmtest.sandbox_stage(scratch)
        )
        with stage as place:
            found = alarmtest.rehearse(place, damages, show.outcome)
    (show.as_json if json else show.rehearsal)(found)
    return found.verdict.exit_code


@app.command()
@answers
def deploy(
    file: Annotated[Path | None, typer.Option(help="Another prefect.yaml.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would change.")] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="Also what another fleet file, or audit store, had deployed.")
    ] = False,
) -> None:
    """Bring the Prefect server to what prefect.yaml and the fleet file say."""
    from deployments import manifest, show  # noqa: PLC0415
    from deployments.server import require_answer, required_url  # noqa: PLC0415
    from deployments.steps import Wanted  # noqa: PLC0415
    from pgvigil.fleet import load_fleet  # noqa: PLC0415

    fleet = load_fleet()
    wanted = Wanted(manifest.read_manifest(fleet, file), fleet)
    for peril in manifest.perils(wanted.manifest):
        typer.echo(f"warning: {peril}", err=True)
    require_answer(required_url())
    from deployments.deploy import deploy as apply  # noqa: PLC0415

    show.changes(apply(wanted, dry_run=dry_run, take_over=take_over), dry_run=dry_run)
    if not fleet.alarms.notify:
        typer.echo("note: alarms.notify names no block, so nobody is told: docs/alarms.md", err=True)


@app.command()
@answers
def drain(
    pool: Annotated[str, typer.Argument(metavar="POOL", help="The work pool, such as dba.")],
    within: Annotated[str, typer.Option(help="Wait so long at most, such as 90s, 10m or 12h.")] = "24h",
    resume: Annotated[bool, typer.Option("--resume", help="Let it take runs again.")] = False,
) -> None:
    """Empty a work pool before its worker is stopped: runs at work end, new ones wait."""
    from deployments.server import require_answer, required_url  # noqa: PLC0415
    from pgvigil.policies.units import parse_duration  # noqa: PLC0415

    longest = parse_duration(within)
    require_answer(required_url())
    from deployments import draining  # noqa: PLC0415

    if not resume:
        draining.drain(pool, longest, typer.echo)
        typer.echo(f"'{pool}' is drained: its workers may be stopped; then: pgvigil drain {pool} --resume")
    elif draining.resume(pool):
        typer.echo(f"'{pool}' takes runs again")
    else:
        typer.echo(f"'{pool}' stays paused: a person paused it, not a drain")


if __name__ == "__main__":
    main()
