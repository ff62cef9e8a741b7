"""Whether a backfill of the fleet file can work, and whether one that was begun needs somebody."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING

from pgvigil import postgres
from pgvigil.backfill import catalog, ledger, survey
from pgvigil.backfill.batch import Job
from pgvigil.backfill.facts import Progress
from pgvigil.backfill.session import Session
from pgvigil.doctor.lines import Look
from pgvigil.errors import ConfigError, PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.backfill.facts import Target
    from pgvigil.backfill.ledger import State
    from pgvigil.fleet import ClusterSettings
    from pgvigil.policies.backfills import BackfillPolicy

SESSION = "pgvigil doctor"
LONG = timedelta(minutes=15)  # a wait of that length is told


@dataclass(frozen=True)
class Backfill:
    """A backfill under examination; what was read of it once is not read again."""

    name: str
    subject: str
    policy: BackfillPolicy
    dsn: str

    @cached_property
    def session(self) -> Session:
        """The one way into its database, for whoever examines it to close."""
        return Session(self.dsn, SESSION)

    @cached_property
    def target(self) -> Target:
        """Its table as the catalog has it."""
        with self.session.transaction() as connection:
            return catalog.read_target(connection, self.policy)

    @property
    def job(self) -> Job:
        """What its statements are made of; a Python function is not called."""
        return Job(self.name, ledger.Ledger(self.name, 0), self.target, self.policy)

    @cached_property
    def state(self) -> State | None:
        """What its runs have left, None for one that was never run."""
        return ledger.read(self.session, self.name)


def backfills_of(cluster: str, settings: ClusterSettings, only: str | None) -> Iterator[Backfill]:
    """Yield every backfill of a cluster, or those of one database."""
    for database, of_database in settings.databases.items():
        if only not in {None, database}:
            continue
        for name, policy in of_database.backfills.items():
            dsn = postgres.in_database(settings.dsn, database)
            yield Backfill(name, f"{cluster}/{database} {name}", policy, dsn)


def installed(backfill: Backfill) -> str:
    """Find the tables of infra/target.sql, and our rights on them."""
    with backfill.session.transaction() as connection:
        ledger.require_installed(connection)
    return "the tables for cursor, quarantine and before-images are there and ours to write"


def writable(backfill: Backfill) -> str:
    """Let the server read the change: table, columns, expressions and rights."""
    try:
        with survey.told_as_fault():
            survey.check_statement(backfill.session, backfill.job)
    except ConfigError as error:  # what the fleet file says is not there
        raise PreconditionFailed(error.message, hint=error.hint) from error
    return f"the server accepts the change of {backfill.target.label}"


def walkable(backfill: Backfill) -> str:
    """Ask the planner how batches are found."""
    session, job = backfill.session, backfill.job
    return "; ".join(survey.require_index(session, job, leaf) for leaf in backfill.target.leaves)


def attended(backfill: Backfill) -> str:
    """Look whether a run waits for something that does not come, or has left something to people."""
    state = backfill.state
    if state is None:
        return "never run"
    if state.quarantined:
        raise PreconditionFailed(
            f"{state.quarantined} rows are in quarantine",
            hint=f"{_command('show', backfill)} names them; correct them, then run it with retry_failed",
        )
    _require_progress(backfill, state)
    if state.state == "done":
        return f"proven at {state.ended_at:%Y-%m-%d %H:%M} UTC"
    return f"begun at {state.started_at:%Y-%m-%d %H:%M} UTC" + (", is running" if state.is_held else "")


def _require_progress(backfill: Backfill, state: State) -> None:
    progress = Progress.model_validate(state.progress)
    since = progress.waiting_since
    if state.wanted != "run":
        raise PreconditionFailed(
            f"{state.wanted} since {state.wanted_at:%Y-%m-%d %H:%M} UTC, by {state.wanted_by}",
            hint=f"{_command('resume', backfill)}, then run it again unless it is running",
        )
    if state.is_held and since and datetime.now(UTC) - since > LONG:
        raise PreconditionFailed(
            f"waits since {since:%Y-%m-%d %H:%M} UTC for {progress.waiting_for}",
            hint="cure what it waits for, or raise that limit",
        )
    if not state.is_held and state.state != "done" and state.pass_ > 0:
        raise PreconditionFailed(
            f"begun at {state.started_at:%Y-%m-%d %H:%M} UTC, not finished, and nobody runs it",
            hint="run it again, it goes on where it was; "
            f"or give its cursor up with {_command('restart', backfill)}",
        )


def _command(verb: str, backfill: Backfill) -> str:
    return f"'pgvigil backfill {verb} {backfill.subject}'"


BACKFILL = (
    Look("backfill.installed", installed, needs=("server.databases",)),
    Look("backfill.table", writable, needs=("server.databases",)),
    Look("backfill.key", walkable, needs=("backfill.table",)),
    Look("backfill.attended", attended, needs=("backfill.installed",)),
)
