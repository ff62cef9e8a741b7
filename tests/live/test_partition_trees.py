import json
import threading
from datetime import UTC, datetime

import pytest

from pgvigil.archive.tree import Branch, read_tree
from pgvigil.reports import Verdict
from tests.fixtures.partitions import Shop, make_deep, wait_for

OLD = '"Deep 99"'
LEAVES = {"public.deep_99_ab", "public.deep_99_rest", "public.deep_99_x_0", "Other.Deep 99"}


@pytest.fixture
def deep(shop: Shop) -> Shop:
    """A table whose old partition has three levels, four leaves and 400 rows."""
    make_deep(shop)
    return shop


def tree(shop: Shop) -> list[Branch]:
    """What the old partition is, without what a rebuilt one has otherwise: its OIDs."""
    with shop.session() as session:
        session.execute("SET search_path = pg_catalog")
        row = session.execute("SELECT 'public.\"Deep 99\"'::regclass::oid::bigint AS oid").fetchone()
        assert row
        found = read_tree(session, row["oid"])
    return sorted((branch.model_copy(update={"relation": 0}) for branch in found), key=lambda each: each.name)


def rows(shop: Shop, table: str) -> list[dict[str, object]]:
    return shop.sql(f"SELECT tableoid::regclass::text AS t, * FROM {table} ORDER BY id")


def test_a_partition_with_partitions_goes_and_comes_back_as_one(deep: Shop) -> None:
    """One manifest, one object and digest per leaf; rebuilt, each table, row and definition is as it was."""
    deep.policy(**{**deep.policies[0], "verify": "reload"})
    before = rows(deep, OLD)
    report = deep.roll()
    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [] == deep.sql("SELECT FROM pg_class WHERE relname LIKE 'deep_99%' OR relname = 'Deep 99'")
    (manifest,) = report.manifests
    assert (LEAVES, 400) == ({leaf.name for leaf in manifest.leaves}, manifest.digest.rows)
    assert (1, 5) == (len(deep.objects("manifest.json")), len(deep.objects()))

    back = deep.restore("public.Deep 99")

    assert Verdict.VERIFIED == back.verdict, back.findings
    assert before == rows(deep, OLD)
    wanted = {(node.name, node.bound, node.shape.model_dump_json()) for node in manifest.tree}
    assert wanted == {(each.name, each.bound, each.shape.model_dump_json()) for each in tree(deep)}


def test_a_tree_comes_back_as_a_partition(deep: Shop) -> None:
    """Its leaves answer through the table again, defined as they were; the next run leaves them alone."""
    before, definitions = rows(deep, "deep"), tree(deep)
    deep.roll()
    report = deep.restore("public.Deep 99", attach=True)
    again = deep.roll()

    assert (Verdict.VERIFIED, Verdict.VERIFIED) == (report.verdict, again.verdict), report.findings
    assert before == rows(deep, "deep")
    assert [each.shape for each in definitions] == [each.shape for each in tree(deep)]
    assert "left-alone" in {finding.code for finding in again.findings}


def test_a_drill_of_a_tree_leaves_nothing(deep: Shop) -> None:
    """It is built whole, leaf by leaf, and undone."""
    deep.roll()
    listed = "SELECT oid FROM pg_class ORDER BY 1"
    before = deep.sql(listed)
    report = deep.restore("", keep=False)

    assert before == deep.sql(listed)
    assert Verdict.VERIFIED == report.verdict, report.findings
    assert "4 of 4 leaves equal" in {check.actual for check in report.checks}


def test_what_is_made_ahead_is_partitioned_like_the_newest(deep: Shop) -> None:
    """Level by level, with their settings; rows find their leaves, and the next run has nothing to do."""
    year = datetime.now(tz=UTC).year
    deep.sql(
        "SET ROLE shop; DROP TABLE deep_now; GRANT SELECT ON deep TO PUBLIC;"
        "CREATE TABLE deep_now PARTITION OF deep"
        f" FOR VALUES FROM ('{year}-01-01+00') TO ('{year}-12-31+00') PARTITION BY LIST (kind);"
        "CREATE TABLE deep_now_ab PARTITION OF deep_now FOR VALUES IN ('a', 'b') WITH (fillfactor = 71);"
        "CREATE TABLE deep_now_x PARTITION OF deep_now DEFAULT PARTITION BY HASH (id);"
        'CREATE TABLE "odd leaf" PARTITION OF deep_now_x FOR VALUES WITH (modulus 1, remainder 0)'
    )
    deep.policy(**{**deep.policies[0], "keep": None})
    report, again = deep.roll(), deep.roll()
    deep.sql(
        "INSERT INTO deep (at, kind, id)"
        f" SELECT '{year + 1}-02-02+00', kind, -1 FROM kinds WHERE kind IN ('a', 'y')"
    )

    assert (Verdict.VERIFIED, ()) == (report.verdict, again.steps), (report.findings, again.findings)
    assert [{"t": f"deep_{year + 1}_3"}, {"t": f"deep_{year + 1}_ab"}] == deep.sql(
        "SELECT tableoid::regclass::text AS t FROM deep WHERE id = -1 ORDER BY 1"
    )
    assert [{"o": ["fillfactor=71"], "may": True}] == deep.sql(
        "SELECT reloptions AS o, relacl::text LIKE '%,=r/shop%' AS may FROM pg_class"
        f" WHERE relname = 'deep_{year + 1}_ab'"
    )


def test_a_tree_that_gained_a_table_after_its_copy_is_not_dropped(deep: Shop) -> None:
    """What somebody adds below the fence is no part of the copy: the tree stays, and is copied anew."""
    added = "SET ROLE shop; CREATE TABLE late PARTITION OF \"Deep 99\" FOR VALUES IN ('z')"
    deep.before = lambda step: step == "drop" and deep.sql(added)
    report = deep.roll()
    assert Verdict.INCONCLUSIVE == report.verdict
    assert "PGV-210" in {finding.code for finding in report.findings}
    deep.before = lambda _: None

    again = deep.roll()

    assert Verdict.VERIFIED == again.verdict, again.findings
    assert "public.late" in {leaf.name for manifest in again.manifests for leaf in manifest.leaves}


def test_a_leaf_that_is_attached_while_the_fence_waits_is_fenced(deep: Shop) -> None:
    """A writer holds up the fence and adds a table below it meanwhile: that one is fenced too."""
    deep.policy(**{**deep.policies[0], "drop": "keep", "wait": "30s"})
    deep.sql(f"DROP TABLE deep_99_rest; SET ROLE shop; CREATE TABLE late (LIKE {OLD} INCLUDING ALL)")
    deep.roll()
    deep.recover("deep_99_ab", "deep_99_x_0", '"Other"."Deep 99"')
    waits = "SELECT pid FROM pg_locks WHERE NOT granted AND relation = 'deep_99_ab'::regclass"

    def attach() -> None:
        with deep.session() as session, session.transaction():
            session.execute("SET lock_timeout = '20s'; SET search_path = public")
            session.execute("LOCK TABLE deep_99_ab IN ROW EXCLUSIVE MODE")
            is_held.set()
            wait_for(lambda: deep.sql(waits))
            session.execute(f"ALTER TABLE {OLD} ATTACH PARTITION late FOR VALUES IN ('y')".encode())

    is_held = threading.Event()
    other = threading.Thread(target=attach)
    other.start()
    assert is_held.wait(20)
    report = deep.roll()
    other.join()

    assert Verdict.VERIFIED == report.verdict, report.findings
    with pytest.raises(Exception, match="is being archived and takes no writes"):
        deep.sql("INSERT INTO late (at, kind, id) VALUES ('1999-06-01+00', 'y', -1)")


def test_a_leaf_that_is_renamed_while_others_are_copied_is_not_lost(deep: Shop) -> None:
    """An empty table has its name now: that is not what is copied, and the next run copies the right one."""
    renamed: list[object] = []

    def rename(step: str) -> None:
        if step == "archiving" and not renamed:
            renamed.append(step)
            deep.sql(
                "SET ROLE shop; ALTER TABLE deep_99_rest RENAME TO moved;"
                "CREATE TABLE deep_99_rest (LIKE moved INCLUDING ALL)"
            )

    deep.before = rename
    report = deep.roll()
    assert Verdict.INCONCLUSIVE == report.verdict, report.findings
    assert "is not the table with OID" in " ".join(finding.message for finding in report.findings)

    last = deep.roll()

    assert Verdict.VERIFIED == last.verdict, last.findings
    assert [400] == [manifest.digest.rows for manifest in last.manifests]


def test_no_leaf_of_a_departing_tree_takes_writes(deep: Shop) -> None:
    """Through any level of it, and to each leaf itself."""
    deep.policy(**{**deep.policies[0], "drop": "keep"})
    deep.roll()
    for table in (OLD, "deep_99_x", "deep_99_ab", '"Other"."Deep 99"'):
        with pytest.raises(Exception, match="is being archived and takes no writes"):
            deep.sql(f"UPDATE {table} SET note = 'late'")


def test_a_leaf_that_is_taken_out_of_a_departing_tree_takes_writes_again(deep: Shop) -> None:
    """It is no part of the departure any more, so the next run takes its fence down."""
    deep.policy(**{**deep.policies[0], "drop": "keep"})
    deep.roll()
    deep.sql(f"ALTER TABLE {OLD} DETACH PARTITION deep_99_rest")
    report = deep.roll()
    deep.sql("INSERT INTO deep_99_rest (at, kind, id) VALUES ('1999-06-01+00', 'y', -1)")

    assert Verdict.VERIFIED == report.verdict, report.findings


def test_one_damaged_leaf_refutes_and_is_made_again_alone(deep: Shop) -> None:
    """The tree stays; the next run copies that leaf anew and keeps the others' objects."""

    def hurt(step: str) -> None:
        if step == "prove":
            uri = deep.objects(".copy.zst")[0]
            deep.store.put(uri, deep.store.get(uri)[:-3])

    deep.before = hurt
    report = deep.roll()
    before = set(deep.objects(".copy.zst"))
    assert Verdict.REFUTED == report.verdict
    deep.before = lambda _: None

    assert Verdict.VERIFIED == deep.roll().verdict
    assert 3 == len(before & set(deep.objects(".copy.zst")))


@pytest.mark.long
def test_a_leaf_that_was_replaced_after_the_proof_lets_all_be_copied_anew(deep: Shop) -> None:
    """Nothing is dropped for it; the next run names that leaf alone, the one after has a proven copy."""
    bad: list[str] = []

    def replace(step: str) -> None:
        if step == "drop":
            bad.append(deep.objects(".copy.zst")[-1])
            deep.store.put(bad[0], bytes(deep.store.head(bad[0]).size))

    deep.before = replace
    first = deep.roll()
    deep.before = lambda _: None
    second = deep.roll()

    assert (Verdict.INCONCLUSIVE, Verdict.REFUTED) == (first.verdict, second.verdict)
    (finding,) = (each for each in second.findings if each.code == "copy-damaged")
    assert bad == [leaf for leaf in deep.objects(".copy.zst") if leaf in finding.message]
    last = deep.roll()
    assert Verdict.VERIFIED == last.verdict, last.findings
    assert (LEAVES, 400) == ({leaf.name for leaf in last.manifests[0].leaves}, last.manifests[0].digest.rows)


def test_the_audit_log_has_a_tree_without_its_blocks(deep: Shop) -> None:
    """How many rows each block has is in the manifest alone, for each leaf."""
    (manifest,) = deep.roll().manifests

    assert all(leaf.stored.digest.blocks for leaf in manifest.leaves)
    assert "blocks" not in json.dumps(manifest.outline())
    assert LEAVES == set(manifest.outline()["leaves"])


@pytest.mark.parametrize("hold", ["deep_99_x_0", '"Other"."Deep 99"'])
def test_a_legal_hold_of_a_leaf_holds_the_tree(deep: Shop, hold: str) -> None:
    """The whole stays attached, and the report says which leaf holds it."""
    deep.policy(**{**deep.policies[0], "hold": [hold]})
    report = deep.roll()

    assert any("in it is under legal hold" in step.reason for step in report.steps)
    assert "detach" not in {outcome.action for outcome in report.outcomes}
