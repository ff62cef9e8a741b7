import json

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.settings import PREFECT_API_URL, temporary_settings

from pgvigil.sandbox import Sandbox
from tests.acceptance.conftest import Pgvigil

pytestmark = pytest.mark.long

RUN = ("run", "run-backfill", "demo/shop", "-p", "backfill=cents", "--json")


def test_a_backfill_is_forecast_run_and_shown(pgvigil: Pgvigil, prefect_sandbox: Sandbox) -> None:
    """A dry run changes nothing; the run is proven; steering is on record; Prefect has few tasks."""
    forecast = json.loads(pgvigil(*RUN, "--dry-run").stdout)
    assert "6000" in forecast["plan"]["table"]
    assert pgvigil("backfill", "show", "demo/shop", "cents").stdout.count("never run") == 1

    done = pgvigil(*RUN)
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (0, "verified"), done.stderr
    assert (report["rows_left"], report["not_null"]) == (0, ["amount_cents"])
    assert json.loads(pgvigil("backfill", "show", "demo/shop", "cents", "--json").stdout)["state"] == "proven"

    with (
        temporary_settings({PREFECT_API_URL: prefect_sandbox.environment["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        runs = client.read_task_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["run_backfill"])))
    assert {"look", "walk", "count", "conclude"} <= {run.name.rpartition("-")[0] for run in runs}
    assert len(runs) < 10

    paused = pgvigil("backfill", "pause", "demo/shop", "cents")
    assert pgvigil("backfill", "resume", "demo/shop", "cents").returncode == paused.returncode == 0
    listed = json.loads(pgvigil("audit", "list", "--subject", "demo/shop", "--json").stdout)
    assert ["steer_backfill", "steer_backfill", "run_backfill"] == [run["flow"] for run in listed[:3]]


def test_a_wrong_name_is_answered_with_the_nearest(pgvigil: Pgvigil) -> None:
    """Steering what is not in the fleet file is exit code 2 and a suggestion."""
    done = pgvigil("backfill", "show", "demo/shop", "cent")

    assert done.returncode == 2
    assert "did you mean 'cents'?" in done.stderr
