import json
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pgvigil.alarmtest.of_rows import without_last_row
from pgvigil.alarmtest.repository import flipped, shortened
from pgvigil.archive.shape import Shape, read_shape
from pgvigil.partitions import managing, returning
from pgvigil.partitions.facts import RestoreReport
from pgvigil.reports import Verdict
from pgvigil.runs import Run, conduct
from tests.fixtures.partitions import EVENTS, INHERITED_IDENTITY, Shop, make_awkward, make_deep, quote, run
from tests.fixtures.reports import refuted
from tests.fixtures.sandbox import major, since

NAMES = ['Mixed.Case "quoted"; --', "表" * 20, ".."]


def archived(shop: Shop) -> str:
    """Archive and drop the oldest partition of events and return its name."""
    (name,) = {o.partition for o in shop.roll().outcomes if o.action == "drop"}
    return name


def shape(shop: Shop, name: str) -> Shape:
    with shop.session() as session:
        (row,) = run(session, f"SELECT '{name}'::regclass::oid::bigint AS oid")
        session.execute("SET search_path = pg_catalog")
        return read_shape(session, row["oid"])


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_every_awkward_value_and_name_comes_back_bit_for_bit(shop: Shop, name: str) -> None:
    """A witness copy and the restored table differ in no row either way, and in nothing of their DDL."""
    make_awkward(shop, name)
    old = quote(f"{name}_99")
    shop.sql(f"CREATE TABLE witness AS TABLE {old}")
    report = shop.roll()
    assert Verdict.VERIFIED == report.verdict, report.findings
    (manifest,) = report.manifests
    back = shop.restore(f"public.{name}_99")

    assert Verdict.VERIFIED == back.verdict, back.findings
    assert manifest.shape == shape(shop, old)
    assert [{"n": 2}] == shop.sql(f"SELECT count(*) AS n FROM {old}")
    rows = "(SELECT t::text FROM {} t EXCEPT ALL SELECT t::text FROM {} t)"
    assert [] == shop.sql(rows.format(old, "witness") + " UNION ALL " + rows.format("witness", old))


def test_an_attach_whose_answer_was_lost_is_not_done_twice(shop: Shop) -> None:
    """Done once more, it finds the partition where it belongs and touches nothing."""
    name = archived(shop)

    def steps(run: Run) -> None:
        found = returning.find(run, name)
        with managing.hold_table(found.managed):
            returning.plan(found, attach=True, keep=True)
            returning.rebuild(found, keep=True, on_progress=lambda _: None)
            broken = returning.refer(found)
            returning.settle(found, broken, attach=True)
            returning.settle(found, broken, attach=True)

    report = conduct(RestoreReport, "restore_partition", f"demo/{shop.database}", steps)

    assert (Verdict.VERIFIED, "a partition of public.events") == (report.verdict, report.became)
    assert name.rpartition(".")[2] in shop.partitions()


# Types that PostgreSQL keeps for itself: it takes no value of them from outside.
INTERNAL = {
    "gtsvector",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_ndistinct",
    "pg_node_tree",
}


def test_the_awkward_table_has_every_built_in_type(shop: Shop) -> None:
    """A type that a new server brings is missing here, so that the claim about every value stays true."""
    make_awkward(shop, "all_types")
    missing = shop.sql(
        "SELECT format_type(oid, NULL) AS type FROM pg_type WHERE typtype IN ('b', 'r', 'm')"
        " AND typnamespace = 'pg_catalog'::regnamespace AND (typcategory <> 'A' OR typname LIKE '%vector')"
        " AND typelem NOT IN (SELECT oid FROM pg_type WHERE typname LIKE '%vector')"
        " EXCEPT SELECT format_type(atttypid, NULL) FROM pg_attribute WHERE attrelid = 'all_types'::regclass"
    )
    assert INTERNAL == {row["type"] for row in missing}


@pytest.mark.skipif(
    major() >= INHERITED_IDENTITY, reason="this PostgreSQL has no identity of a partition's own"
)
def test_an_identity_goes_on_after_its_greatest_value(shop: Shop) -> None:
    """COPY does not move the sequence behind it, so a rebuilt table would give numbers twice; by its step."""
    make_awkward(shop, "counted")
    assert Verdict.VERIFIED == shop.roll().verdict
    shop.restore("counted_99")
    (row,) = shop.sql("INSERT INTO counted_99 (at) VALUES ('1999-07-01+00') RETURNING idn")

    assert 44 == row["idn"]


def test_rows_come_back_without_what_leaned_on_something_that_is_gone(shop: Shop) -> None:
    """A role and a function dropped since: each grant, policy and trigger that is missing is told."""
    make_awkward(shop, "lonely")
    role = f"{shop.database}_analyst"
    shop.sql(f"CREATE ROLE {role}; GRANT SELECT ON lonely_99 TO {role}")
    shop.sql(f"CREATE POLICY theirs ON lonely_99 TO {role} USING (false)")
    assert Verdict.VERIFIED == shop.roll().verdict
    shop.sql(f"DROP ROLE {role}; DROP FUNCTION keep() CASCADE")
    drill, report = shop.restore("lonely_99", keep=False), shop.restore("lonely_99")

    assert (Verdict.VERIFIED, Verdict.VERIFIED) == (drill.verdict, report.verdict), report.findings
    told = [finding.message for finding in report.findings if finding.code == "not-rebuilt"]
    assert told == [finding.message for finding in drill.findings if finding.code == "not-rebuilt"]
    for what in (f"grant of SELECT to {role}", "policy theirs", 'trigger T "r %'):
        assert any(f"'public.lonely_99' comes back without its {what}: " in message for message in told)
    assert [{"n": 2}] == shop.sql("SELECT count(*) AS n FROM lonely_99")


@pytest.mark.long
def test_two_tables_of_one_name_never_meet(shop: Shop) -> None:
    """In two schemas, or where a dot shifts the border of schema and table: each gets its own rows back."""
    year = datetime.now(tz=UTC).year
    names = [("one", "log"), ("two", "log"), ("a.b", "c"), ("a", "b.c")]
    for schema, table in names:
        shop.sql(
            f'CREATE SCHEMA IF NOT EXISTS "{schema}" AUTHORIZATION shop; SET ROLE shop;'
            f'CREATE TABLE "{schema}"."{table}" (at date, whose text) PARTITION BY RANGE (at);'
            f'CREATE TABLE "{schema}"."{table}_99" PARTITION OF "{schema}"."{table}"'
            f" FOR VALUES FROM ('1999-01-01') TO ('2000-01-01');"
            f'CREATE TABLE "{schema}"."{table}_now" PARTITION OF "{schema}"."{table}"'
            f" FOR VALUES FROM ('{year}-01-01') TO ('{year + 2}-01-01');"
            f"INSERT INTO \"{schema}\".\"{table}\" VALUES ('1999-05-05', '{schema}/{table}')"
        )
    shop.policies = [
        {
            **shop.policies[0],
            "table": f'"{schema}"."{table}"',
            "key": "at",
            "every": "1 year",
            "keep": "2 years",
            "ahead": 1,
        }
        for schema, table in names
    ]
    shop._write()
    report = shop.roll()
    manifests = {manifest.origin.parent_schema: manifest for manifest in report.manifests}
    unclear = shop.restore("log_99")
    for schema in ("one", "two"):
        assert Verdict.VERIFIED == shop.restore(f"{schema}.log_99").verdict

    assert {schema for schema, _ in names} == manifests.keys(), report.findings
    assert 4 == len({uri.rpartition("/")[0] for uri in shop.objects("manifest.json")})
    assert "may be one.log_99, two.log_99" in unclear.findings[0].message
    assert [{"whose": "one/log"}, {"whose": "two/log"}] == shop.sql(
        "SELECT whose FROM one.log_99 UNION ALL SELECT whose FROM two.log_99 ORDER BY 1"
    )


def test_a_partition_comes_back_attached_without_a_scan_and_stays(shop: Shop) -> None:
    """It is a partition again with its bound and no constraint more; the next run leaves it alone."""
    before = shop.partitions()
    rows = shop.sql("SELECT count(*) AS n FROM events")
    name = archived(shop)
    report = shop.restore(name, attach=True)
    again = shop.roll()

    assert (Verdict.VERIFIED, Verdict.VERIFIED) == (report.verdict, again.verdict), report.findings
    assert before[name] == shop.partitions()[name]
    assert rows == shop.sql("SELECT count(*) AS n FROM events")
    assert [] == shop.sql(
        f"SELECT conname FROM pg_constraint WHERE conrelid = '{name}'::regclass AND contype = 'c'"
    )
    assert "left-alone" in {finding.code for finding in again.findings}


def test_a_range_is_never_doubled(shop: Shop) -> None:
    """While a partition holds the range, or a table has the name, nothing is brought back."""
    bound = shop.partitions()[name := min(shop.partitions(), key=lambda n: shop.partitions()[n])]
    assert name == archived(shop)
    shop.sql(f"CREATE TABLE other PARTITION OF events {bound}")
    held = shop.restore(name, attach=True)
    shop.restore(name)
    named = shop.restore(name)

    assert [Verdict.INCONCLUSIVE] * 2 == [held.verdict, named.verdict]
    assert "is held by partition 'public.other' already" in held.findings[0].message
    assert "there is a relation" in named.findings[0].message


def test_a_table_that_changed_since_is_adapted_to_and_says_so(shop: Shop) -> None:
    """A column that was dropped goes, one that was added takes its default; keys and CHECKs are passed."""
    name = archived(shop)
    shop.sql("CREATE INDEX by_kind ON events (kind); ALTER TABLE events ADD UNIQUE (created_at, kind, id)")
    shop.sql("ALTER TABLE events ADD CONSTRAINT whose FOREIGN KEY (customer_id) REFERENCES customers")
    shop.sql("ALTER TABLE events DROP COLUMN payload")
    shop.sql("ALTER TABLE events ADD COLUMN source text NOT NULL DEFAULT 'web'")
    shop.sql("ALTER TABLE events ADD CONSTRAINT known CHECK (kind <> '')")
    report = shop.restore(name, attach=True)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert 6 == len(report.adapted), report.adapted
    assert [{"n": 1}] == shop.sql(
        f"SELECT count(*) AS n FROM pg_constraint WHERE conrelid = '{name}'::regclass AND contype = 'f'"
        " AND convalidated AND conparentid <> 0"
    )
    assert [{"source": "web"}] == shop.sql(f"SELECT DISTINCT source FROM {name}")


def test_a_check_that_older_rows_may_break_is_added_as_such(shop: Shop) -> None:
    """The table gained it NOT VALID, and the rows that come back break it: they come back."""
    name = archived(shop)
    shop.sql("ALTER TABLE events ADD CONSTRAINT none CHECK (id < 0) NOT VALID")
    report = shop.restore(name, attach=True)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert ["constraint 'none' was added since: older rows may break it"] == list(report.adapted)
    assert [{"convalidated": False}] == shop.sql(
        f"SELECT convalidated FROM pg_constraint WHERE conrelid = '{name}'::regclass AND conname = 'none'"
    )


@since(18, "virtual columns, NOT NULL … NOT VALID and NOT ENFORCED")
def test_promises_that_rows_break_and_columns_without_rows_come_back(shop: Shop) -> None:
    """What looks at no row when it is added looks at none when it comes back, and is as it was."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    shop.sql("ALTER TABLE events ADD COLUMN twice bigint GENERATED ALWAYS AS (customer_id * 2) VIRTUAL")
    shop.sql("ALTER TABLE events ADD COLUMN note text, ADD COLUMN other int")
    shop.sql(
        f"ALTER TABLE {name} ADD NOT NULL note NOT VALID,"
        " ADD CONSTRAINT small CHECK (id < 0) NOT ENFORCED,"
        " ADD CONSTRAINT whose FOREIGN KEY (other) REFERENCES customers NOT ENFORCED"
    )
    rows = shop.sql(f"SELECT id, twice FROM {name} ORDER BY id")
    (manifest,) = shop.roll().manifests
    report = shop.restore(name)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert manifest.shape == shape(shop, name)
    assert ["note"] == [each.name for each in manifest.shape.columns if each.not_null_unproven]
    assert {"small", "whose"} <= {each.name for each in manifest.shape.constraints if each.is_unproven}
    assert rows == shop.sql(f"SELECT id, twice FROM {name} ORDER BY id")


@since(18, "NOT NULL … NOT VALID")
def test_a_not_null_that_older_rows_may_break_does_not_keep_them_out(shop: Shop) -> None:
    """The partitioned table gained it NOT VALID: old rows come back attached, with the same promise."""
    shop.sql("ALTER TABLE events ADD COLUMN note text")
    name = archived(shop)
    shop.sql("ALTER TABLE events ADD NOT NULL note NOT VALID")
    report = shop.restore(name, attach=True)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [{"n": True}] == shop.sql(f"SELECT count(*) > 0 AS n FROM {name} WHERE note IS NULL")


def test_a_drill_proves_and_leaves_nothing(shop: Shop) -> None:
    """Without a name it takes any copy; afterwards every relation and object is as it was before."""
    archived(shop)
    listed = "SELECT oid FROM pg_class ORDER BY 1"
    before, objects = shop.sql(listed), shop.objects()
    report = shop.restore("", keep=False)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert "table.digest" in {check.id for check in report.checks}
    assert (before, objects) == (shop.sql(listed), shop.objects())


@pytest.mark.parametrize("damage", [flipped, shortened])
def test_a_copy_whose_bytes_changed_is_refuted(shop: Shop, damage: Callable[[bytes], bytes]) -> None:
    """One bit in the stored object, or its end is missing within a row: refuted, and nothing comes back."""
    name = archived(shop)
    (uri,) = shop.objects(".copy.zst")
    shop.store.put(uri, damage(shop.store.get(uri)))
    report = shop.restore(name)

    assert Verdict.REFUTED == report.verdict
    assert [{"r": None}] == shop.sql(f"SELECT to_regclass('{name}')::text AS r")


def test_a_copy_with_other_rows_is_refuted(shop: Shop) -> None:
    """It is whole and loads well, only a row is missing: the table is undone, and the digests are told."""
    name = archived(shop)
    (uri,) = shop.objects(".copy.zst")
    shop.store.put(uri, without_last_row(shop.store.get(uri)))
    report = shop.restore(name)

    assert Verdict.REFUTED == report.verdict
    assert {"content.sha256", "content.digest", "content.rows", "table.digest"} == set(refuted(report))
    assert [{"r": None}] == shop.sql(f"SELECT to_regclass('{name}')::text AS r")


def test_a_manifest_that_was_edited_is_not_believed(shop: Shop) -> None:
    """It is well formed and tells one row more; its own checksum tells."""
    name = archived(shop)
    (uri,) = shop.objects("manifest.json")
    told = shop.store.get(uri)
    rows = json.loads(told)["manifest"]["digest"]["rows"]
    shop.store.put(uri, told.replace(b'"rows": %d' % rows, b'"rows": %d' % (rows + 1)))
    report = shop.restore(name)

    assert Verdict.INCONCLUSIVE == report.verdict
    assert "cannot be trusted: its content has checksum" in report.findings[0].message


def test_rows_that_refer_to_what_is_gone_are_told(shop: Shop) -> None:
    """The table stands with its key unproven, and is not attached."""
    shop.sql("ALTER TABLE events ADD FOREIGN KEY (customer_id) REFERENCES customers")
    name = archived(shop)
    shop.sql("ALTER TABLE events DROP CONSTRAINT events_customer_id_fkey")
    shop.sql("ALTER TABLE orders DROP CONSTRAINT orders_customer_id_fkey")
    shop.sql("DELETE FROM customers")
    report = shop.restore(name, attach=True)

    assert Verdict.INCONCLUSIVE == report.verdict
    assert {"reference-lost"} <= {finding.code for finding in report.findings}
    assert [{"n": True}] == shop.sql(f"SELECT count(*) > 0 AS n FROM {name}")


def test_the_newest_copy_is_what_the_manifests_call_so(shop: Shop) -> None:
    """A job of the bucket writes the older manifest anew, as it is: the newer rows come back all the same."""
    name = archived(shop)
    (older,) = shop.objects("manifest.json")
    shop.restore(name, attach=True)
    shop.sql(f"UPDATE {name} SET kind = 'corrected'")
    shop.policy(restored_for="1ms")
    assert name == archived(shop)
    shop.store.put(older, shop.store.get(older))
    report = shop.restore(name)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [{"kind": "corrected"}] == shop.sql(f"SELECT DISTINCT kind FROM {name}")
    assert [older] == [each.partition(",")[0] for each in report.other_copies]


def test_an_address_finds_a_copy_whatever_has_been_renamed_or_moved_since(shop: Shop) -> None:
    """The table has another name and the policy another archive: its partition comes back to it."""
    name = archived(shop)
    (uri,) = shop.objects("manifest.json")
    shop.sql("ALTER TABLE events RENAME TO happenings")
    make_awkward(shop, "another")
    shop.policies += [{**shop.policies[0], **EVENTS, "table": "public.happenings"}]
    shop.policies[-1]["archive"] = f"s3://archive/{shop.database}/elsewhere"
    shop._write()
    unknown, report = shop.restore(name), shop.restore(uri, attach=True)

    assert "the address of its manifest" in unknown.findings[0].hint
    assert Verdict.VERIFIED == report.verdict, report.findings
    assert name in shop.partitions("happenings")


def test_what_others_changed_in_a_rebuilt_table_is_never_attached(shop: Shop) -> None:
    """Its attach failed, rows were changed and rows taken: the next run refutes it and leaves it standing."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    at = shop.sql(f"SELECT min(created_at) AS at FROM {name}")[0]["at"]
    shop.sql("CREATE TABLE events_rest PARTITION OF events DEFAULT")
    assert name == archived(shop)
    shop.sql(f"INSERT INTO events (created_at, customer_id, kind, payload) VALUES ('{at}', 1, 'new', '{{}}')")
    first = shop.restore(name, attach=True)
    shop.sql(f"DELETE FROM {name} WHERE id % 2 = 0; DELETE FROM events_rest")
    again = shop.restore(name, attach=True)

    assert (Verdict.INCONCLUSIVE, Verdict.REFUTED) == (first.verdict, again.verdict), again.findings
    assert {"table.unchanged"} == set(refuted(again))
    assert [Verdict.REFUTED] == [proof.verdict for proof in again.proofs]
    assert name not in shop.partitions()


def test_what_others_write_before_the_attach_is_noticed(shop: Shop) -> None:
    """The table stands open between the transaction that builds it and the attach: other rows refute it."""
    name = archived(shop)

    def write(step: str) -> None:
        if step == "settle":
            shop.sql(f"UPDATE {name} SET kind = 'other' WHERE id % 100 = 0")

    shop.before = write
    report = shop.restore(name, attach=True)

    assert Verdict.REFUTED == report.verdict, report.findings
    assert {"table.unchanged"} == set(refuted(report))
    assert name not in shop.partitions()


def test_a_rebuilt_table_whose_attach_failed_is_proven_again_and_attached(shop: Shop) -> None:
    """It was fitted to columns added and dropped since, and the next run finds all that was archived."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    at = shop.sql(f"SELECT min(created_at) AS at FROM {name}")[0]["at"]
    shop.sql("CREATE TABLE events_rest PARTITION OF events DEFAULT")
    assert name == archived(shop)
    shop.sql("ALTER TABLE events DROP COLUMN payload; ALTER TABLE events ADD COLUMN more int DEFAULT 7")
    shop.sql(f"INSERT INTO events (created_at, customer_id, kind) VALUES ('{at}', 1, 'new')")
    first = shop.restore(name, attach=True)
    shop.sql("DELETE FROM events_rest")
    again = shop.restore(name, attach=True)

    assert (Verdict.INCONCLUSIVE, Verdict.VERIFIED) == (first.verdict, again.verdict), again.findings
    assert name in shop.partitions()


def test_a_table_that_people_attach_by_hand_is_left_alone_as_well(shop: Shop) -> None:
    """It came back to stand for itself, and was attached: the next run does not take it out again."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    bound = shop.partitions()[name]
    assert name == archived(shop)
    shop.restore(name)
    shop.sql(f"ALTER TABLE events ATTACH PARTITION {name} {bound}")
    report = shop.roll()

    assert name in shop.partitions()
    assert "left-alone" in {finding.code for finding in report.findings}


@pytest.mark.parametrize("attach", [False, True])
def test_what_people_gave_a_partition_comes_back_and_nothing_more(shop: Shop, attach: bool) -> None:
    """Rule, publication, marks, targets, comments, rights of its owner, and a CHECK like its bound."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    _, lower, _, upper, _ = shop.partitions()[name].split("'")
    shop.sql(
        f"SET ROLE shop; ALTER TABLE {name} ADD CONSTRAINT own_range CHECK (created_at IS NOT NULL"
        f" AND created_at >= '{lower}'::timestamptz AND created_at < '{upper}'::timestamptz);"
        f"ALTER TABLE {name} ADD CONSTRAINT whose FOREIGN KEY (customer_id) REFERENCES customers;"
        f"COMMENT ON CONSTRAINT whose ON {name} IS 'why'; CREATE INDEX by_kind ON {name} (lower(kind));"
        f"ALTER INDEX by_kind ALTER COLUMN 1 SET STATISTICS 321; CLUSTER {name} USING by_kind;"
        f"CREATE RULE safe AS ON DELETE TO {name} WHERE old.id < 0 DO INSTEAD NOTHING;"
        f"REVOKE TRUNCATE, DELETE ON {name} FROM shop"
    )
    shop.sql(
        f"GRANT CREATE ON DATABASE {shop.database} TO shop; SET ROLE shop;"
        f"CREATE PUBLICATION told FOR TABLE {name} (id, created_at) WHERE (id > 5)"
    )
    shop.sql("RESET ROLE")
    (manifest,) = shop.roll().manifests
    shop.sql("ALTER DEFAULT PRIVILEGES FOR ROLE shop GRANT SELECT ON TABLES TO PUBLIC")
    report = shop.restore(name, attach=attach)

    assert Verdict.VERIFIED == report.verdict, report.findings
    back = shape(shop, name)
    given = {"rules", "publications", "cluster_index", "grants", "owner_lacks"}
    assert manifest.shape.model_dump(include=given) == back.model_dump(include=given)
    assert all(getattr(manifest.shape, each) for each in given - {"grants"})
    assert {1: 321} == next(each.statistics for each in back.indexes if each.name == "by_kind")
    assert {"own_range", "whose"} <= {each.name for each in back.constraints}
    assert "why" == next(each.comment for each in back.constraints if each.name == "whose")


@pytest.mark.parametrize(("table", "key"), [("events", "created_at"), ("deep", "at")])
def test_a_check_that_people_made_like_the_bound_stays_without_a_name_too(
    shop: Shop, table: str, key: str
) -> None:
    """PostgreSQL names it like the one of a detach, and then makes none: it is theirs, in a tree too."""
    if table == "deep":
        make_deep(shop)
    name = min(shop.partitions(table), key=lambda each: shop.partitions(table)[each])
    _, lower, _, upper, _ = shop.partitions(table)[name].split("'")
    shop.sql(
        f"ALTER TABLE {quote(name)} ADD CHECK ({key} IS NOT NULL"
        f" AND {key} >= '{lower}'::timestamptz AND {key} < '{upper}'::timestamptz)"
    )
    asked = f"SELECT conname FROM pg_constraint WHERE conrelid = '{quote(name)}'::regclass AND contype = 'c'"
    asked += " AND conname <> 'short'"
    before = shop.sql(asked)
    assert name == archived(shop)
    report = shop.restore(name, attach=True)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert name in shop.partitions(table)
    assert [{"conname": f"{name}_{key}_check"}] == before == shop.sql(asked)


def test_values_follow_their_column_or_are_counted(shop: Shop) -> None:
    """Renamed, it keeps its values; dropped, they are counted; one that only has the name is told."""
    shop.sql("ALTER TABLE events ADD COLUMN note text DEFAULT 'n', ADD COLUMN gone text DEFAULT 'g'")
    shop.sql("ALTER TABLE events ADD COLUMN again text DEFAULT 'a'")
    name = archived(shop)
    shop.sql("ALTER TABLE events RENAME note TO remark; ALTER TABLE events DROP gone")
    shop.sql("ALTER TABLE events DROP again; ALTER TABLE events ADD again text")
    report = shop.restore(name, attach=True)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert [{"n": report.rows}] == shop.sql(f"SELECT count(*) AS n FROM {name} WHERE remark = 'n'")
    told = {finding.code: finding.message for finding in report.findings}
    assert f"{report.rows} values of column 'gone'" in told["values-left-out"]
    assert "column 'again' was dropped since" in told["column-anew"]


LABELS = "ENUM ('a', 'b')"
GONE = "DELETE FROM pg_enum WHERE enumlabel = 'x'"
ANEW = "ALTER TYPE k ADD VALUE 'a' BEFORE 'b'"
TAKEN = "ALTER TABLE events ALTER extra TYPE k[] USING extra::text[]::k[]"
TYPES = {
    "renamed": (LABELS, "'a'", "RENAME VALUE 'a' TO 'alpha'", False),
    "added": (LABELS, "'a'", "ADD VALUE 'c' BEFORE 'b'", True),
    "replaced": ("(x int, y numeric)", "(1, 2)", "DROP ATTRIBUTE y, ADD ATTRIBUTE z numeric", False),
    "called": ("(x int, y numeric)", "(1, 2)", "RENAME ATTRIBUTE y TO z", True),
    "namesake": (LABELS, "'a'", f"RENAME VALUE 'a' TO 'x'; {ANEW}", False),
    "remade label": (LABELS, "'a'", f"RENAME VALUE 'a' TO 'x'; {GONE}; {ANEW}", False),
    "remade enum": (LABELS, "'a'", f"RENAME TO old; CREATE TYPE k AS {LABELS}; {TAKEN}", True),
    "remade attribute": ("(x int, y numeric)", "(1, 2)", "DROP ATTRIBUTE y, ADD ATTRIBUTE y numeric", True),
}


@pytest.mark.parametrize("case", TYPES)
def test_values_of_a_type_that_means_something_else_do_not_come_back(shop: Shop, case: str) -> None:
    """What only adds to the type, or calls a part of it otherwise, is told; else the restore is refused."""
    made, value, change, is_same = TYPES[case]
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    shop.sql(f"CREATE TYPE k AS {made}; ALTER TABLE events ADD extra k[]")
    shop.sql(f"UPDATE {name} SET extra = ARRAY[{value}]::k[]")
    assert name == archived(shop)
    shop.sql(f"ALTER TYPE k {change}")
    report = shop.restore(name)

    assert (Verdict.VERIFIED if is_same else Verdict.INCONCLUSIVE) == report.verdict, report.findings
    assert "type 'public.k' was (" in report.findings[0].message


@pytest.mark.parametrize(
    ("rule", "told"),
    [("CONSTRAINT one CHECK (length(value) < 2)", "constraint 'one'"), ("NOT NULL", "NOT NULL")],
)
def test_a_domain_that_refuses_an_archived_value_is_named(shop: Shop, rule: str, told: str) -> None:
    """With its constraint and the cure, by which the partition comes back."""
    name = min(shop.partitions(), key=lambda each: shop.partitions()[each])
    shop.sql("CREATE DOMAIN word AS text; ALTER TABLE events ADD extra word DEFAULT 'x'")
    shop.sql(f"UPDATE {name} SET extra = nullif('two', CASE id % 2 WHEN 0 THEN 'two' END)")
    assert name == archived(shop)
    shop.sql(f"DROP DOMAIN word CASCADE; CREATE DOMAIN word AS text {rule}")
    refused = shop.restore(name)
    shop.sql("DROP DOMAIN word; CREATE DOMAIN word AS text")
    report = shop.restore(name)

    (finding,) = (each for each in refused.findings if each.code == "PGV-200")
    assert f"refused by {told} of domain 'public.word'" in finding.message
    assert "ALTER DOMAIN" in finding.hint
    assert Verdict.VERIFIED == report.verdict, report.findings


def test_generated_values_are_proven_too(shop: Shop) -> None:
    """The function that they come from computes otherwise since: refuted, and the columns are named."""
    price = "FUNCTION price(bigint) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT $1 * {}'"
    shop.sql(f"CREATE {price.format(100)}")
    shop.sql("ALTER TABLE events ADD total bigint GENERATED ALWAYS AS (price(customer_id)) STORED")
    name = archived(shop)
    same = shop.restore(name, keep=False)
    shop.sql(f"CREATE OR REPLACE {price.format(119)}")
    report = shop.restore(name)

    assert (Verdict.VERIFIED, Verdict.REFUTED) == (same.verdict, report.verdict), report.findings
    assert {"table.generated"} == set(refuted(report))


def test_a_function_that_finds_nothing_without_a_path_is_told_with_the_cure(shop: Shop) -> None:
    """A CHECK calls one that calls another without its schema."""
    shop.sql("CREATE FUNCTION fine(text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true'")
    body = "'BEGIN RETURN fine($1); END'"
    shop.sql(f"CREATE FUNCTION ok(text) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS {body}")
    shop.sql("ALTER TABLE events ADD CONSTRAINT ok CHECK (ok(kind))")
    report = shop.restore(archived(shop))

    assert "SET search_path" in report.findings[0].hint
