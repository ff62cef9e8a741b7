"""Steps of a wave over the fleet: each one call into the library, and the crews that do its work."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling
from prefect.utilities.urls import url_for

import pgvigil
from pgvigil.errors import ConfigError
from pgvigil.reports import Verdict
from pgvigil.waves import operation
from pgvigil.waves.crew import Children, Sight
from tasks.pipeline import WAVE
from tasks.policy import READ

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

    from pgvigil.runs import Run
    from pgvigil.waves.crew import Crew
    from pgvigil.waves.operation import Wave
    from pgvigil.waves.selection import Member
    from tasks.progress import ProgressBar

alone = operation.alone
conclude = operation.conclude

_VERDICTS = {"Completed": Verdict.VERIFIED, "Refuted": Verdict.REFUTED}
_CONCLUDED = {*_VERDICTS, "Inconclusive"}


@task(name="plan", **READ)
def plan(run: Run, slot: datetime | None, *, anew: bool) -> Wave:
    """Select the members, and find out which wave this is and who of it has ended already."""
    wave = operation.plan(run, slot, anew=anew)
    get_run_logger().info(
        "wave %s: %s to begin, %s at once", wave.identity.id, len(wave.waiting), wave.selection.at_once
    )
    return wave


@contextmanager
def crew(wave: Wave) -> Iterator[Crew]:
    """Give the wave who runs its members: Prefect's workers; where nothing is deployed, children."""
    with operation.under_way(wave), get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"{wave.flow}/{wave.pipeline}").id
        except ObjectNotFound:
            get_run_logger().info("%s is not deployed here: its runs are children of this one", wave.flow)
            directory, deadline = wave.run.directory, wave.policy.deadline
            with Children(
                lambda member: _argv(wave, member), _environment(), directory, deadline
            ) as children:
                yield children
        else:
            yield Workers(client, deployment, wave)


def start(wave: Wave, hands: Crew) -> None:
    """Begin as many members as may be at work at once."""
    for subject in operation.start(wave, hands):
        get_run_logger().info("%s: begun, %s", subject, wave.at_work[subject])


def watch(wave: Wave, hands: Crew, bar: ProgressBar) -> None:
    """Look once at everybody who is at work, and tell who came out."""
    for outcome in operation.watch(wave, hands):
        get_run_logger().info("%s: %s, %s", outcome.subject, outcome.verdict, outcome.said)
    bar.show(wave.progress)


class Workers:
    """A crew of Prefect's workers: each member is a run of the pipeline's own deployment.

    A run has the wave for a tag, by which the UI lists them and the audit log knows them.
    """

    patience = timedelta(seconds=3)

    def __init__(self, client: SyncPrefectClient, deployment: UUID, wave: Wave) -> None:
        self.client = client
        self.deployment = deployment
        self.pipeline = wave.pipeline
        self.wave = wave.identity.id
        self._runs: dict[str, UUID] = {}

    def start(self, member: Member) -> str | None:
        """Create the member's run, or find it; the next one if it ended without having come to an end."""
        try:
            run = next(run for run in self._attempts(member) if not _came_to_nothing(run))
        except (PrefectHTTPStatusError, ObjectNotFound) as error:
            if isinstance(error, PrefectHTTPStatusError) and error.response.is_server_error:
                _tell_away(error)
                return None
            raise ConfigError(
                f"the Prefect server refuses a run of it: {error}",
                hint="run 'pgvigil deploy': then it has the deployment, and its form the fleet file's names",
            ) from error
        except Exception as error:  # whatever the client's transport raises while the server is away
            _tell_away(error)
            return None
        self._runs[member.subject] = run.id
        return url_for("flow-run", run.id) or f"Prefect run {run.id}"

    def look(self, subjects: Iterable[str]) -> dict[str, Sight]:
        """Read the runs' states in one request."""
        wanted = {self._runs[subject]: subject for subject in subjects}
        if not wanted:
            return {}
        ids = FlowRunFilter(id=FlowRunFilterId(any_=list(wanted)))
        try:
            found = {run.id: run for run in self.client.read_flow_runs(flow_run_filter=ids)}
        except Exception as error:  # as above
            _tell_away(error)
            return {}
        return {subject: _sight(found.get(run)) for run, subject in wanted.items()}

    def recall(self, subject: str) -> None:
        """Cancel the run, so that no worker takes it later."""
        try:
            self.client.set_flow_run_state(self._runs[subject], Cancelling())
        except Exception as error:  # as above
            _tell_away(error)

    def _attempts(self, member: Member) -> Iterator[FlowRun]:
        for attempt in count(1):
            yield self.client.create_flow_run_from_deployment(
                self.deployment,
                parameters=member.arguments,
                name=f"{self.pipeline} of {member.subject}",
                tags=[f"{WAVE}{self.wave}"],
                idempotency_key=f"{self.wave} {member.subject} {attempt}",
            )


def _came_to_nothing(run: FlowRun) -> bool:
    return bool(run.state and run.state.is_final() and run.state.name not in _CONCLUDED)


def _sight(run: FlowRun | None) -> Sight:
    if run is None or run.state is None:
        return Sight(state="over", said="its run was deleted in Prefect")
    said = f"{run.state.name}: {run.state.message or 'no reason given'}"
    if run.state.is_final():
        return Sight(
            state="over", verdict=_VERDICTS.get(str(run.state.name), Verdict.INCONCLUSIVE), said=said
        )
    if run.state.is_paused():
        return Sight(state="over", asks=True, said=said)
    begun = run.state.is_running() or run.state.is_cancelling()
    return Sight(state="running" if begun else "waiting", said=said)


def _tell_away(error: Exception) -> None:
    get_run_logger().warning("the Prefect server could not be asked, it is tried again: %s", error)


def _argv(wave: Wave, member: Member) -> tuple[str, ...]:
    """Run a member as an operator would: report, exit code and audit log are the same."""
    given = (word for key, value in member.parameters.items() for word in ("-p", f"{key}={value}"))
    command = (sys.executable, "-m", "deployments", "run", wave.pipeline, member.subject)
    return (*command, *given, "--tag", f"{WAVE}{wave.identity.id}")


def _environment() -> dict[str, str]:
    """Give children this run's Prefect server, but not its identity, and this checkout."""
    own = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    house = str(Path(pgvigil.__file__).parents[1])
    path = os.pathsep.join(filter(None, [house, os.environ.get("PYTHONPATH")]))
    return {name: value for name, value in own.items() if not name.startswith("PREFECT__")} | {
        "PYTHONPATH": path
    }
