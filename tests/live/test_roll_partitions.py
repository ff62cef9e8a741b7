import re
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from pgvigil.reports import Verdict
from pgvigil.sandbox.lifecycle import TARGET
from tests.fixtures.partitions import Shop, run


def codes(report: object) -> list[str]:
    return [finding.code for finding in report.findings]  # type: ignore[attr-defined]


def months(shop: Shop) -> list[str]:
    return [bound.split("'")[1][:7] for bound in shop.partitions().values()]


def test_partitions_are_made_to_the_horizon_and_a_converged_table_plans_nothing(shop: Shop) -> None:
    """The second run finds nothing to do and is verified for having looked."""
    shop.policy(keep=None, archive=None, ahead=5)
    first = shop.roll()
    again = shop.roll()

    assert (Verdict.VERIFIED, ["create"] * 4) == (first.verdict, [o.action for o in first.outcomes])
    assert (Verdict.VERIFIED, (), ()) == (again.verdict, again.steps, again.outcomes)
    assert months(shop) == sorted(months(shop))


def test_a_dry_run_changes_nothing_and_says_why(shop: Shop) -> None:
    """The plan has each step with its reason; no work state, no object, no partition appears."""
    before = shop.partitions()
    report = shop.roll(dry_run=True)

    assert before == shop.partitions()
    assert [] == shop.objects()
    assert [{"n": 0}] == shop.sql("SELECT count(*) AS n FROM pgvigil.departure")
    assert {"create", "detach", "archive", "verify", "drop"} == {step.action for step in report.steps}
    assert all(step.reason for step in report.steps)


def test_an_old_partition_goes_to_the_archive_whole(shop: Shop) -> None:
    """Its rows are gone from the table and counted in the manifest; the others are untouched."""
    oldest, name = min((bound, name) for name, bound in shop.partitions().items())
    rows = shop.sql(f"SELECT (SELECT count(*) FROM events) AS all, (SELECT count(*) FROM {name}) AS old")[0]
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert name not in shop.partitions()
    archived = sum(m.digest.rows for m in report.manifests)
    assert rows["all"] - archived == shop.sql("SELECT count(*) AS n FROM events")[0]["n"]
    assert rows["old"] == next(m for m in report.manifests if m.shape.name == name).digest.rows
    assert [{"n": 0}] == shop.sql("SELECT count(*) AS n FROM pgvigil.departure")
    assert oldest == next(m.origin.bound for m in report.manifests if m.shape.name == name)


def test_one_run_lets_no_more_go_than_the_cap(shop: Shop) -> None:
    """The rest is named and goes with a later run."""
    shop.policy(keep="10 months", max_drops=2)
    report = shop.roll()

    assert 2 == sum(outcome.action == "drop" for outcome in report.outcomes)
    assert "max_drops is 2: a later run takes it" in {step.reason for step in report.steps}


def test_a_clock_that_jumped_drops_nothing(shop: Shop) -> None:
    """No partition holds the present time, so nothing leaves, while the missing ones are made."""
    this_month = f"FOR VALUES FROM ('{datetime.now(tz=UTC):%Y-%m}"
    for name in [name for name, bound in shop.partitions().items() if bound >= this_month]:
        shop.sql(f"DROP TABLE {name}")
    report = shop.roll()

    assert {"create"} == {outcome.action for outcome in report.outcomes}
    assert any("no partition holds the present time" in step.reason for step in report.steps)


@pytest.mark.parametrize("drop", ["keep", {"after": "7d"}])
def test_a_detached_table_is_kept_as_the_policy_says(shop: Shop, drop: object) -> None:
    """Its copy is proven; the table stands, takes no writes, and stays when the run is repeated."""
    shop.policy(drop=drop)
    first = shop.roll()
    again = shop.roll()
    (name,) = {o.partition for o in first.outcomes if o.action == "archive"}

    assert (Verdict.VERIFIED, Verdict.VERIFIED) == (first.verdict, again.verdict)
    assert [{"n": True}] == shop.sql(f"SELECT count(*) > 0 AS n FROM {name}")
    assert ["keep"] == [o.action for o in again.outcomes]
    assert 1 == len(shop.objects("manifest.json"))


def test_the_grace_time_ends(shop: Shop) -> None:
    """Once the table has been detached for long enough, the next run drops it."""
    shop.policy(drop={"after": "7d"})
    shop.roll()
    shop.sql("UPDATE pgvigil.departure SET detached_at = detached_at - interval '8 days'")

    assert ["drop"] == [o.action for o in shop.roll().outcomes]


def test_a_drop_waits_for_the_approval_of_exactly_this_plan(shop: Shop) -> None:
    """A wrong digest drops nothing; the one that the report names does."""
    shop.policy(drop="approve")
    (waits,) = [f for f in shop.roll().findings if f.code == "waits-for-approval"]
    digest = waits.hint.rpartition("approve=")[2]

    wrong = shop.roll(approve="0" * 12)
    assert (Verdict.INCONCLUSIVE, ["keep"]) == (wrong.verdict, [o.action for o in wrong.outcomes])
    assert ["drop"] == [o.action for o in shop.roll(approve=digest).outcomes]


def test_an_approval_is_not_for_a_copy_that_is_made_after_it(shop: Shop) -> None:
    """A fence that was opened after the plan leads to another copy, and that one waits for another yes."""
    shop.policy(drop="approve")
    first = shop.roll()
    (name,) = {o.partition for o in first.outcomes if o.action == "archive"}

    def open_fence(step: str) -> None:
        if step == "detach":
            shop.sql(f"ALTER TABLE {name} DISABLE TRIGGER pgvigil_no_write")

    shop.before = open_fence
    again = shop.roll(approve=first.questions[0].digest)

    assert ["detach", "archive", "keep"] == [o.action for o in again.outcomes]
    assert first.questions[0].digest != again.questions[0].digest


def test_a_legal_hold_beats_every_policy(shop: Shop) -> None:
    """A held partition stays attached, and a held table that is detached already is not dropped."""
    shop.policy(drop="keep")
    (name,) = {o.partition for o in shop.roll().outcomes if o.action == "archive"}
    shop.policy(drop="proven", hold=[name])
    report = shop.roll()
    shop.policy(keep="12 months", hold=["*"])
    held = shop.roll()

    assert "it is under legal hold" in {o.detail for o in report.outcomes}
    assert {"drop", "detach"} & {o.action for o in held.outcomes} == set()


@pytest.mark.parametrize("spelling", ['public."{}"', "PUBLIC.{}"])
def test_a_hold_is_spelled_as_the_table_is(shop: Shop, spelling: str) -> None:
    """Also when what it names is in the archive alone."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    shop.policy(hold=[spelling.format(name)])
    held = shop.roll()
    shop.policy()
    shop.roll()
    shop.policy(keep="13 months", hold=[spelling.format(name)])
    report = shop.roll()

    assert [f"'public.{name}' stays: it is under legal hold"] == [f.message for f in held.findings]
    assert (Verdict.VERIFIED, Verdict.VERIFIED) == (held.verdict, report.verdict), report.findings
    assert "drop" in {o.action for o in report.outcomes}


def test_a_hold_that_names_nothing_stops_every_drop(shop: Shop) -> None:
    """A typo is told with the names that would match, in a dry run too; partitions ahead are made."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    shop.policy(hold=[f"{name}_typo"])
    reports = [shop.roll(dry_run=True), shop.roll()]

    assert [Verdict.INCONCLUSIVE] * 2 == [report.verdict for report in reports]
    assert {"create"} == {o.action for o in reports[1].outcomes}
    assert all(
        f"public.{name}" in finding.hint
        for report in reports
        for finding in report.findings
        if finding.code == "hold-unknown"
    )
    assert "hold-unknown" in codes(reports[0])


def test_a_hold_that_is_set_while_the_run_copies_stops_the_drop(shop: Shop) -> None:
    """The fleet file is read once more under the drop's own lock."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    shop.before = lambda step: shop.policy(hold=[name]) if step == "drop" else None
    report = shop.roll()

    assert (Verdict.INCONCLUSIVE, False) == (report.verdict, "drop" in {o.action for o in report.outcomes})
    assert any("hold of 'public.events' was changed" in finding.message for finding in report.findings)
    assert [{"n": True}] == shop.sql(f"SELECT count(*) > 0 AS n FROM {name}")


def test_nobody_can_write_to_a_table_that_is_being_archived(shop: Shop) -> None:
    """Insert, delete, truncate and a replica's write are refused with a hint."""
    shop.policy(drop="keep")
    (name,) = {o.partition for o in shop.roll().outcomes if o.action == "archive"}
    with shop.session() as session:
        session.execute("SET session_replication_role = replica")
        told = []
        for statement in (f"DELETE FROM {name}", f"TRUNCATE {name}", f"INSERT INTO {name} TABLE {name}"):
            try:
                run(session, statement)
            except Exception as error:
                told.append(str(error).splitlines()[0])

    assert [f"table public.{name} is being archived and takes no writes"] * 3 == told


def test_a_fence_that_was_opened_lets_nothing_be_dropped(shop: Shop) -> None:
    """A row written behind an opened fence is copied by the next run before its table goes."""
    shop.policy(drop={"after": "7d"})
    (name,) = {o.partition for o in shop.roll().outcomes if o.action == "archive"}
    before = shop.sql(f"SELECT count(*) AS n FROM {name}")[0]["n"]
    shop.sql(
        f"ALTER TABLE {name} DISABLE TRIGGER ALL; INSERT INTO {name} SELECT * FROM {name} LIMIT 0;"
        f"UPDATE {name} SET kind = 'late' WHERE id = (SELECT min(id) FROM {name});"
        f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER pgvigil_no_write;"
        f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER pgvigil_no_truncate;"
        "UPDATE pgvigil.departure SET detached_at = detached_at - interval '8 days'"
    )
    shop.policy(drop="proven")
    report = shop.roll()

    assert "fence-opened" in codes(report)
    assert Verdict.VERIFIED == report.verdict
    assert shop.restore(name).verdict is Verdict.VERIFIED
    assert [{"n": before, "late": 1}] == shop.sql(
        f"SELECT count(*) AS n, count(*) FILTER (WHERE kind = 'late') AS late FROM {name}"
    )


@pytest.mark.parametrize(
    "change", ["DISABLE TRIGGER ALL", "ALTER kind TYPE text USING ''late''", "ADD CHECK (id > 0)"]
)
def test_a_fence_that_was_opened_after_the_proof_stops_the_drop(shop: Shop, change: str) -> None:
    """Under the drop's own lock the table is found to have been open, or rewritten or altered: it stays."""

    def open_fence(step: str) -> None:
        if step == "drop":
            shop.sql(
                f"DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE %I {change}', name)"
                " FROM pgvigil.departure); END $$"
            )

    shop.before = open_fence
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == report.verdict
    assert "PGV-210" in codes(report)
    assert "drop" not in {o.action for o in report.outcomes}


def test_what_a_table_gained_while_it_waited_for_its_drop_comes_back(shop: Shop) -> None:
    """An index and a comment are no part of the copy that was made before: it is copied anew, with them."""
    shop.policy(drop="keep")
    (name,) = {o.partition for o in shop.roll().outcomes if o.action == "archive"}
    shop.sql(f"CREATE INDEX late ON {name} (kind); COMMENT ON TABLE {name} IS 'case 17'")
    shop.policy()
    report = shop.roll()

    assert "definition-changed" in codes(report)
    assert (Verdict.VERIFIED, Verdict.VERIFIED) == (report.verdict, shop.restore(name).verdict)
    told = f"SELECT obj_description('{name}'::regclass) AS told, to_regclass('late') IS NOT NULL AS is_there"
    assert [{"told": "case 17", "is_there": True}] == shop.sql(told)


def test_the_work_state_of_an_older_release_is_brought_up_to_date(shop: Shop) -> None:
    """A run says what is to be run; then what that release copied is copied anew before it is dropped."""
    shop.policy(drop="keep")
    (name,) = {o.partition for o in shop.roll().outcomes if o.action == "archive"}
    shop.sql(
        "ALTER TABLE pgvigil.departure DROP COLUMN manifest_sha256;"
        "UPDATE pgvigil.departure SET fence = fence - 'kind' - 'schema' - 'name'"
    )
    shop.policy()
    refused = shop.roll()
    shop.sql(TARGET.read_text())
    report = shop.roll()

    assert Verdict.INCONCLUSIVE == refused.verdict
    assert ["run infra/target.sql"] == [finding.hint[:20] for finding in refused.findings]
    assert (Verdict.VERIFIED, 2) == (report.verdict, len(shop.objects("manifest.json"))), report.findings
    assert Verdict.VERIFIED == shop.restore(name).verdict


KEYS = [
    ("bigint", {"every": 1000, "keep": 2500}, "3700"),
    (
        "bigint",
        {"every": "1 month", "epoch": "ms", "keep": None, "archive": None},
        "extract(epoch FROM now()) * 1000",
    ),
    ("date", {"every": "1 week", "keep": None, "archive": None}, "now() AT TIME ZONE 'Europe/Berlin'"),
    ("timestamp", {"every": "6 hours", "keep": None, "archive": None}, "now() AT TIME ZONE 'Europe/Berlin'"),
    (
        "uuid",
        {"every": "1 day", "keep": None, "archive": None},
        "(lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || repeat('7', 20))::uuid",
    ),
]


@pytest.mark.parametrize(("key", "rules", "now"), KEYS, ids=["integer", "epoch", "date", "timestamp", "uuid"])
def test_every_kind_of_key_is_made_ahead(shop: Shop, key: str, rules: dict[str, object], now: str) -> None:
    """After the first run the present finds its partition, and the second run has nothing to do."""
    shop.policy(table="public.keyed", key="at", zone="Europe/Berlin", **rules)
    shop.sql(f"SET ROLE shop; CREATE TABLE keyed (at {key} PRIMARY KEY) PARTITION BY RANGE (at)")
    first = shop.roll()
    if key == "bigint" and "epoch" not in rules:
        shop.sql("INSERT INTO keyed VALUES (2999)")
        assert {"create"} == {outcome.action for outcome in shop.roll().outcomes}
    shop.sql(f"INSERT INTO keyed VALUES ({now})")
    settled = [shop.roll(), shop.roll()][1]

    assert Verdict.VERIFIED == first.verdict, first.findings
    assert (Verdict.VERIFIED, ()) == (settled.verdict, settled.outcomes), settled.findings


def test_a_type_of_the_next_name_leads_to_another_name(shop: Shop) -> None:
    """A table makes a type of its own name, so a type is in its way as a table would be."""
    shop.policy(keep=None, archive=None, ahead=3)
    first, second = (step.partition.name for step in shop.roll(dry_run=True).steps)
    shop.sql(f"CREATE TYPE {first} AS ENUM ('a')")
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [f"{first}_2", second] == [outcome.partition for outcome in report.outcomes]


def test_the_lock_is_the_tables_under_every_spelling(shop: Shop) -> None:
    """A roll that names the table in other words waits, names the owner and changes nothing."""
    others = []

    def roll_too(_: str) -> None:
        shop.before = lambda _: None
        shop.policy(table='"public" . EVENTS', wait="500ms")
        others.append(shop.roll())

    shop.before = roll_too
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [()] == [each.outcomes for each in others]
    assert "EVENTS' is held by 'pgvigil roll_partitions" in others[0].findings[0].message


@pytest.mark.parametrize("place", ["DEFAULT", "FOR VALUES FROM (5000) TO (MAXVALUE)"])
def test_one_mistyped_key_makes_nothing_leave(shop: Shop, place: str) -> None:
    """The newest key in a partition with an end counts; the other is told until it is gone."""
    shop.sql(
        "SET ROLE shop; CREATE TABLE keyed (at bigint) PARTITION BY RANGE (at);"
        "CREATE TABLE keyed_0 PARTITION OF keyed FOR VALUES FROM (0) TO (1000);"
        "CREATE TABLE keyed_1 PARTITION OF keyed FOR VALUES FROM (1000) TO (2000);"
        f"CREATE TABLE keyed_rest PARTITION OF keyed {place};"
        "INSERT INTO keyed VALUES (1), (1500), (9000000000000000)"
    )
    shop.policy(table="public.keyed", key="at", every=1000, keep=1000, ahead=2)
    reports = [shop.roll(), shop.roll()]
    shop.sql("DELETE FROM keyed WHERE at > 2000; INSERT INTO keyed VALUES (2500)")
    settled = shop.roll()

    assert [["create", "create"], []] == [[o.action for o in report.outcomes] for report in reports]
    assert [Verdict.INCONCLUSIVE] * 2 == [report.verdict for report in reports]
    assert ["key-beyond"] == [code for code in codes(reports[1]) if code != "left-alone"]
    assert "keyed_0" in {outcome.partition for outcome in settled.outcomes if outcome.action == "drop"}
    assert Verdict.VERIFIED == settled.verdict, settled.findings


def test_bounds_mean_the_same_in_every_session(shop: Shop) -> None:
    """Months of Berlin are contiguous across its clock changes, whatever zone the role has."""
    shop.sql("SET ROLE shop; CREATE TABLE keyed (at timestamptz) PARTITION BY RANGE (at)")
    shop.sql(f"ALTER ROLE pgvigil IN DATABASE {shop.database} SET timezone = 'America/New_York'")
    rules = {"key": "at", "zone": "Europe/Berlin", "ahead": 13, "keep": None, "archive": None}
    shop.policy(table="public.keyed", **rules)
    report = shop.roll()
    bounds = [re.findall(r"'([^']+)'", bound) for bound in shop.partitions("keyed").values()]

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert all(one[1] == two[0] for one, two in pairwise(sorted(bounds)))
    assert {"22:00:00+00", "23:00:00+00"} == {bound[0][11:] for bound in bounds}


def test_without_a_place_for_the_work_state_nothing_leaves(shop: Shop) -> None:
    """The cure is named, and partitions ahead are made; to install it twice changes no fence."""
    install = (Path(__file__).parents[2] / "infra" / "target.sql").read_text(encoding="utf-8")
    shop.sql("DROP TABLE pgvigil.departure")
    report = shop.roll()

    assert {"create"} == {outcome.action for outcome in report.outcomes}
    assert any("infra/target.sql" in finding.hint for finding in report.findings)
    shop.sql(install)
    fence = "SELECT xmin::text AS x FROM pg_proc WHERE oid = 'pgvigil.refuse_write()'::regprocedure"
    before = shop.sql(fence)
    shop.sql(install)
    assert before == shop.sql(fence)
    assert Verdict.VERIFIED == shop.roll().verdict
