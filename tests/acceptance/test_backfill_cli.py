import json
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import PREFECT_API_URL, temporary_settings

from pgvigil.postgres import connect
from pgvigil.sandbox import Sandbox
from pgvigil.sandbox.lifecycle import CENTS, TARGET
from tests.acceptance.conftest import Pgvigil

pytestmark = pytest.mark.long

RUN = ("run", "run-backfill", "demo/till", "-p", "backfill=cents", "--json")
PAYMENTS = (
    "CREATE TABLE public.payments (id bigint PRIMARY KEY, amount numeric NOT NULL, amount_cents bigint);"
    "INSERT INTO public.payments SELECT g, g / 100.0 FROM generate_series(1, 6000) g;"
    "ANALYZE public.payments"
)


@pytest.fixture
def till(prefect_sandbox: Sandbox, pgvigil: Pgvigil, tmp_path: Path) -> Pgvigil:
    """The program with a fleet file whose one database has a backfill that was never run."""
    with connect(prefect_sandbox.primary_admin_dsn, "test") as session:
        session.execute("CREATE DATABASE till OWNER shop")
    with connect(prefect_sandbox.admin_dsn(prefect_sandbox.primary_port, "till"), "test") as session:
        session.execute("SET ROLE shop")
        session.execute(PAYMENTS)
        session.execute("RESET ROLE")
        session.execute(TARGET.read_text(encoding="utf-8").encode())
    fleet = yaml.safe_load(prefect_sandbox.fleet_file.read_text(encoding="utf-8"))
    fleet["clusters"]["demo"]["databases"] = {"till": {"backfills": {"cents": CENTS}}}
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(fleet), encoding="utf-8")
    return partial(pgvigil, PGVIGIL_FLEET=str(file))


def test_a_backfill_is_forecast_run_and_shown(till: Pgvigil, prefect_sandbox: Sandbox) -> None:
    """A dry run changes nothing; the run is proven; steering is on record; Prefect has few tasks."""
    forecast = json.loads(till(*RUN, "--dry-run").stdout)
    assert "6000" in forecast["plan"]["table"]
    assert till("backfill", "show", "demo/till", "cents").stdout.count("never run") == 1

    done = till(*RUN)
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (0, "verified"), done.stderr
    assert (report["rows_left"], report["not_null"]) == (0, ["amount_cents"])
    assert json.loads(till("backfill", "show", "demo/till", "cents", "--json").stdout)["state"] == "proven"

    begun, *_ = json.loads(till("audit", "show", report["run_id"], "--json").stdout)["events"]
    flow_run = UUID(begun["detail"]["prefect_flow_run"])
    with (
        temporary_settings({PREFECT_API_URL: prefect_sandbox.environment["PREFECT_API_URL"]}),
        get_client(sync_client=True) as client,
    ):
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
    assert {"look", "walk", "count", "conclude"} <= {run.name.rpartition("-")[0] for run in runs}
    assert len(runs) < 10

    paused = till("backfill", "pause", "demo/till", "cents")
    assert till("backfill", "resume", "demo/till", "cents").returncode == paused.returncode == 0
    listed = json.loads(till("audit", "list", "--subject", "demo/till", "--json").stdout)
    assert ["steer_backfill", "steer_backfill", "run_backfill"] == [run["flow"] for run in listed[:3]]


def test_a_wrong_name_is_answered_with_the_nearest(pgvigil: Pgvigil) -> None:
    """Steering what is not in the fleet file is exit code 2 and a suggestion."""
    done = pgvigil("backfill", "show", "demo/shop", "cent")

    assert done.returncode == 2
    assert "did you mean 'cents'?" in done.stderr
