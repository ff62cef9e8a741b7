"""The first steps of a drill: hold the stanza, choose what is restored, claim a place for the copy."""

from __future__ import annotations

import platform
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgvigil import __version__, postgres
from pgvigil.drill import refusals, scratch
from pgvigil.drill.choose import Source, choose, source_of
from pgvigil.drill.finish import settle
from pgvigil.drill.history import History, read_history
from pgvigil.drill.judgement import passed, unknown
from pgvigil.drill.place import Request, read_owner
from pgvigil.drill.reaping import told
from pgvigil.drill.report import Versions
from pgvigil.drill.source import read_cluster
from pgvigil.drill.state import OWED, Drill, Plan
from pgvigil.errors import DatabaseFailed, PgvigilError, PreconditionFailed
from pgvigil.lock import hold_stanza
from pgvigil.pgbackrest import PgBackRest
from pgvigil.reports import Severity
from pgvigil.runs import finding_of
from pgvigil.wal.server import Server, read_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.drill.choose import Wanted
    from pgvigil.drill.place import Place
    from pgvigil.drill.source import Cluster
    from pgvigil.runs import Run


@contextmanager
def hold(run: Run, wanted: Wanted, *, keep: bool = False, dry_run: bool = False) -> Iterator[Drill]:
    """Keep other drills of the stanza out for the block, and tell at its end what was not proven.

    Backups go on meanwhile. Raises ConfigError for an unknown cluster, Busy for a drill that is running.
    """
    settings = run.fleet.cluster(run.identity.subject)
    stanza = settings.pgbackrest.stanza
    run.facts |= {"wanted": wanted, "keep": keep, "actor": run.identity.actor}
    with hold_stanza(settings.dsn, f"{stanza} drill", run.name, settings.drill.wait) as lock:
        drill = Drill(run, settings, PgBackRest(settings.drill_pgbackrest), lock, wanted, keep)
        try:
            yield drill
        finally:
            if not dry_run:
                settle(drill)


def plan(drill: Drill) -> Plan:
    """Look at source and repositories, and choose what is restored."""
    run = drill.run
    server = read_server(drill.settings.dsn, run.name)
    with postgres.connect(drill.settings.dsn, run.name) as session:
        cluster = read_cluster(session)
    info = drill.pgbackrest.info()
    history = _history(drill)
    choice = choose(info, _source(drill, server), history.tried, drill.wanted, run.id.int % 2**32)
    backup = next(b for b in info.backups(choice.repo) if b.label == choice.label)
    run.facts |= {"choice": choice, "versions": _versions(drill, cluster)}
    run.checks.append(passed("chosen", "a set that can be restored", f"{choice.label} in repo{choice.repo}"))
    return Plan(choice, backup, info, cluster, server, history)


def _history(drill: Drill) -> History:
    """Read earlier drills; without them the turns begin anew, which is told."""
    subject = drill.run.identity.subject
    try:
        return read_history(drill.run.fleet.audit.dsn, drill.run.name, subject)
    except DatabaseFailed as error:
        drill.run.findings.append(finding_of(error, subject, Severity.WARNING))
        return History()


def _source(drill: Drill, server: Server) -> Source:
    if server.lsn is None or server.in_recovery:
        raise PreconditionFailed(
            f"cluster '{drill.run.identity.subject}' is in recovery, expected its primary",
            hint="let the dsn of the fleet file name the primary; a standby goes to drill.standby",
        )
    return source_of(server, drill.settings.wal)


def _versions(drill: Drill, cluster: Cluster) -> Versions:
    libc = " ".join(platform.libc_ver()).strip()
    return Versions(
        source=cluster.version,
        pgbackrest=".".join(map(str, drill.pgbackrest.version)),
        pgvigil=__version__,
        system=f"{platform.platform()} {libc}".strip(),
    )


@contextmanager
def claim(drill: Drill, plan: Plan) -> Iterator[Place]:
    """Claim a place for the copy, and leave nothing of it behind, unless it is kept until its deadline."""
    request = Request(
        scratch=drill.policy.scratch,
        stanza=drill.stanza,
        run_id=drill.run.id,
        system_id=str(plan.server.system_id),
        user=drill.settings.drill_pgbackrest.user,
        room=refusals.room_needed(plan.backup, plan.wal_bytes(plan.server.lsn)),
        protected=plan.cluster.places,
    )
    with drill.run.step("claim scratch", {"directory": str(request.directory)}):
        place, reaping = scratch.claim(request, datetime.now(UTC))
    drill.run.findings += [told(gone) for gone in reaping.reaped]
    try:
        yield place
    finally:
        try:
            _keep_logs(drill, place)
        finally:
            _clean(drill, place)


def _clean(drill: Drill, place: Place) -> None:
    """Remove the copy, or note that it is kept; that this fails must not hide why the drill ended."""
    run = drill.run
    owner = read_owner(place.directory)
    if owner is not None and owner.keep_until is not None:
        until = f"kept until {owner.keep_until:%Y-%m-%d %H:%M} UTC, as was asked"
        run.checks.append(unknown("clean", OWED["clean"], until, required=False))
        return
    try:
        with run.step("remove copy", {"directory": str(place.directory)}):
            scratch.remove(place)
    except PgvigilError as error:
        run.findings.append(finding_of(error, run.identity.subject))
        run.checks.append(unknown("clean", OWED["clean"], error.message))
    else:
        run.checks.append(passed("clean", OWED["clean"], f"{place.directory} is gone"))


def _keep_logs(drill: Drill, place: Place) -> None:
    """Copy the logs to the run's evidence; that this fails must hide nothing either."""
    run = drill.run
    try:
        for file in sorted(place.log.glob("*.log")):
            (run.directory / f"copy.{file.name.replace('-', '.')}").write_bytes(file.read_bytes())
    except OSError as error:
        lost = PreconditionFailed(
            f"the logs of the copy are not all in the evidence: {error}",
            hint=f"see that '{run.directory.parent}' can be written and has room",
        )
        run.findings.append(finding_of(lost, run.identity.subject, Severity.WARNING))
