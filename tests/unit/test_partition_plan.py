from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pgvigil.archive.digest import LineDigest
from pgvigil.archive.place import folder
from pgvigil.errors import ConfigError
from pgvigil.partitions.axis import EPOCH, Axis, Range, make_axis
from pgvigil.partitions.facts import Entry, Member, Name, Partition, Table
from pgvigil.partitions.plan import draw, horizon
from pgvigil.policies.partitions import PartitionPolicy

ZONES = ("UTC", "Europe/Berlin", "America/Sao_Paulo", "Asia/Kathmandu", "Australia/Lord_Howe")
WIDTHS = ("1 hour", "6 hours", "1 day", "3 days", "1 week", "1 month", "1 quarter", "1 year")
TYPES = ("timestamp with time zone", "timestamp without time zone", "uuid")
moments = st.integers(10_000_000, 4_000_000_000).map(lambda seconds: EPOCH + timedelta(seconds=seconds))


def policy(**changes: object) -> PartitionPolicy:
    given = {"table": "public.t", "key": "at", "every": "1 month", "archive": "s3://a/b", **changes}
    return PartitionPolicy.model_validate(given)


def axis(every: object = "1 month", zone: str = "UTC", key: str = TYPES[0], **changes: object) -> Axis:
    return make_axis(policy(every=every, zone=zone, **changes), key)


@given(moments, st.sampled_from(ZONES), st.sampled_from(WIDTHS), st.sampled_from(TYPES))
def test_slots_are_contiguous_and_hold_the_moment(at: datetime, zone: str, every: str, key: str) -> None:
    """Across daylight saving, leap days and any zone: no gap, no overlap, none empty."""
    made = axis(every, zone, key)
    slots = list(made.slots(made.now(at), 40))

    assert slots[0].covers(made.now(at))
    assert all(one.upper == two.lower for one, two in pairwise(slots))
    assert all(slot.lower < slot.upper for slot in slots)  # type: ignore[operator]


@given(
    moments, st.sampled_from(ZONES), st.sampled_from(["1 hour", "1 day", "1 month"]), st.sampled_from(TYPES)
)
def test_a_bound_reads_back_as_it_was_written(at: datetime, zone: str, every: str, key: str) -> None:
    """What is sent as a literal and rendered by a catalog in UTC is the same position."""
    made = axis(every, zone, key)
    (slot,) = made.slots(made.now(at), 0)
    text = f"FOR VALUES FROM ('{made.literal(slot.lower)}') TO ('{made.literal(slot.upper)}')"  # type: ignore[arg-type]

    assert slot == made.parse(text)


@pytest.mark.parametrize(
    ("zone", "lower", "upper"),
    [
        ("UTC", "2025-03-01 00:00:00+00:00", "2025-04-01 00:00:00+00:00"),
        ("Europe/Berlin", "2025-03-01 00:00:00+01:00", "2025-04-01 00:00:00+02:00"),
    ],
)
def test_months_begin_at_midnight_of_their_zone(zone: str, lower: str, upper: str) -> None:
    """The offset is written out, so no session can read it otherwise."""
    made = axis(zone=zone)
    (slot,) = made.slots(made.now(datetime(2025, 3, 15, tzinfo=UTC)), 0)

    assert (lower, upper) == (made.literal(slot.lower or 0), made.literal(slot.upper or 0))


@pytest.mark.parametrize(
    ("every", "key", "more", "told"),
    [
        ("1 month", "text", {}, "cannot be rolled"),
        ("1 month", "bigint", {}, "say in 'epoch'"),
        (1000, "date", {}, "such as '1 month'"),
        ("1 hour", "date", {}, "has no hours"),
    ],
)
def test_a_width_that_does_not_fit_its_key_is_refused(
    every: object, key: str, more: dict[str, object], told: str
) -> None:
    """The message says what to write instead."""
    with pytest.raises(ConfigError) as caught:
        axis(every, key=key, **more)

    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("unit", "literal"), [("s", "1735689600"), ("ms", "1735689600000"), ("us", "1735689600000000")]
)
def test_epoch_keys_are_written_in_their_unit(unit: str, literal: str) -> None:
    """An integer that counts time is placed on the calendar."""
    made = axis(key="bigint", epoch=unit)
    (slot,) = made.slots(made.now(datetime(2025, 1, 15, tzinfo=UTC)), 0)

    assert literal == made.literal(slot.lower or 0)


# --- the plan -----------------------------------------------------------------------------------------

NOW = datetime(2025, 6, 15, 12, tzinfo=UTC)


def month(number: int, **changes: object) -> Partition:
    """A partition of 2025, or of the years around it."""
    made = axis()
    start = datetime(2025 + (number - 1) // 12, (number - 1) % 12 + 1, 1, tzinfo=UTC)
    (slot,) = made.slots(made.now(start), 0)
    given: dict[str, object] = {
        "oid": 1000 + number,
        "name": Name(schema_="public", name=f"p{number}"),
        "kind": "r",
        "bound": f"bound {number}",
        "condition": "true",
        "is_pending": False,
        "size": 1,
        "rows": 1,
        "range": slot,
    }
    return Partition.model_validate({**given, **changes})


def table(*partitions: Partition, **changes: object) -> Table:
    given: dict[str, object] = {
        "oid": 1,
        "name": Name(schema_="public", name="t"),
        "key": "at",
        "key_type": TYPES[0],
        "owner": "me",
        "default_oid": None,
        "referenced_by": (),
        "now": NOW,
        "version_num": 150000,
        "partitions": partitions,
        "entries": (),
        "taken_names": frozenset(),
        "position": (NOW - EPOCH) // timedelta(microseconds=1),
    }
    return Table.model_validate({**given, **changes})


def entry(relation: int) -> Entry:
    """A detached table whose copy is proven."""
    given = {"id": uuid4(), "state": "archived", "relation": relation, "parent": 1, "bound": "b"}
    more = {"name": Name(schema_="public", name=f"gone{relation}"), "condition": "true", "since": NOW}
    return Entry.model_validate({**given, **more})


WHOLE = tuple(month(number) for number in range(1, 9))


def actions(found: Table, **changes: object) -> list[str]:
    rules = policy(ahead=2, **changes)
    return [f"{step.action} {step.partition.name}" for step in draw(found, axis(), rules).steps()]


def test_a_converged_table_plans_nothing() -> None:
    """All of it is there, and nothing is older than what stays."""
    assert [] == actions(table(*WHOLE), keep="12 months")


def test_the_horizon_is_where_the_first_gap_begins() -> None:
    """Partitions behind a gap take no row of the time before it; a month is 30 days and a half."""
    found = horizon(table(month(5), month(6), month(7), month(9)), axis(), policy(ahead=4))

    assert found is not None
    assert datetime(2025, 8, 1, tzinfo=UTC) == found.ends_at
    assert 30 < found.partition_seconds / 86400 < 31


@pytest.mark.parametrize("partitions", [[], [8]])
def test_without_a_partition_for_now_the_horizon_is_now(partitions: list[int]) -> None:
    """Rows of this moment are refused already."""
    found = horizon(table(*map(month, partitions)), axis(), policy())

    assert found is not None
    assert NOW == found.ends_at


def test_a_key_that_tells_no_time_has_no_horizon() -> None:
    """How fast an integer grows is not known; its partitions ahead are proven by each roll."""
    assert horizon(table(), axis(1000, key="bigint"), policy(every=1000)) is None


def test_partitions_under_other_names_and_widths_are_adopted() -> None:
    """What they cover is not made again; what they leave open is, to the edge."""
    wide = month(6, range=Range(lower=month(6).range.lower, upper=month(7).range.lower + 86_400_000_000))  # type: ignore[union-attr,operator]
    (made, _) = draw(table(wide), axis(), policy(ahead=2)).creations

    assert "2025-07-02 00:00:00+00:00" == made.lower


def test_uuids_with_bits_below_the_millisecond_are_adopted() -> None:
    """What is made beside one begins or ends exactly where that does; elsewhere at the millisecond."""
    made = axis(key="uuid")
    bare = [made.literal(month(number).range.lower) for number in range(6, 10)]  # type: ignore[union-attr,arg-type]
    june, july, august, september = (f"{each[:14]}7000-8000-000000000000" for each in bare)
    bounds = {
        6: f"FOR VALUES FROM ('{june}') TO ('{july}')",
        8: f"FOR VALUES FROM ('{august}') TO ('{september}')",
    }
    partitions = [month(n, bound=bound, range=made.parse(bound)) for n, bound in bounds.items()]
    plan = draw(table(*partitions), made, policy(ahead=3))

    assert [(july, august), (september, made.literal(month(10).range.lower))] == [  # type: ignore[union-attr,arg-type]
        (each.lower, each.upper) for each in plan.creations
    ]


@pytest.mark.parametrize(
    "bound",
    [
        "('infinity') TO (MAXVALUE)",
        "('10000-01-01 00:00:00+00') TO (MAXVALUE)",
        "(MINVALUE) TO ('0044-03-15 00:00:00+00 BC')",
    ],
)
def test_a_partition_at_the_end_of_time_covers_nothing_of_ours(bound: str) -> None:
    """Moments that no calendar here can name are before or after all others, not without an end."""
    far = month(1, range=axis().parse(f"FOR VALUES FROM {bound}"))
    plan = draw(table(far), axis(), policy(ahead=2, keep="1 year"))

    assert (3, ()) == (len(plan.creations), plan.departures)


def test_a_name_that_is_taken_or_too_long_finds_another() -> None:
    """Names stay within 63 bytes, and two tables that begin alike do not meet."""
    names = [
        draw(table(name=Name(schema_="s", name="é" * 31 + tail)), axis(), policy()).creations[0].name.name
        for tail in ("a", "b")
    ]
    taken = draw(table(taken_names=frozenset({"t_2025_06"})), axis(), policy()).creations[0]

    assert 2 == len(set(names))
    assert all(len(name.encode()) <= 63 for name in names)
    assert "t_2025_06_2" == taken.name.name


def test_the_oldest_leave_first_and_no_more_than_the_cap() -> None:
    """The others are told as left for later."""
    planned = actions(table(*WHOLE), keep="2 months", max_drops=2, drop="proven")

    assert ["detach p1", "archive p1", "verify p1", "drop p1", "detach p2"] == planned[:5]
    assert ["refuse p3"] == planned[8:]


def test_a_key_beyond_every_partition_lets_nothing_leave() -> None:
    """One mistyped number must not make all others old, nor partitions far away: the key is told."""
    ranged = [month(n, range=Range(lower=1000 * n, upper=1000 * (n + 1))) for n in range(4)]
    rules = policy(every=1000, keep=1000, ahead=2)
    known = {"key_type": "bigint", "position": 1499}
    grown = draw(table(*ranged, **{**known, "position": 3500}), axis(1000, key="bigint"), rules)
    plan = draw(table(*ranged, **known, beyond=9 * 10**15), axis(1000, key="bigint"), rules)

    assert ["p0", "p1"] == [each.name.name for each in grown.departures]
    assert ["refuse t"] == [f"{step.action} {step.partition.name}" for step in plan.steps()]
    assert "its newest key, 9000000000000000, lies beyond" in plan.steps()[0].reason


@pytest.mark.parametrize("drop", ["keep", "approve", "proven", {"after": "7d"}])
def test_tables_that_stand_use_up_no_cap(drop: object) -> None:
    """Whatever they wait for: the next run takes out as many again, and drops no more than that."""
    standing = tuple(entry(relation) for relation in range(20, 25))
    rules = policy(ahead=2, keep="2 months", max_drops=2, drop=drop)
    plan = draw(table(*WHOLE, entries=standing), axis(), rules)

    assert ["p1", "p2"] == [each.name.name for each in plan.departures if each.entry is None]
    assert (2 if drop == "proven" else 0) == sum(each.drop == "now" for each in plan.departures)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_no_more_is_dropped_or_asked_about_than_the_cap(most: int) -> None:
    """What is due beyond it waits for a later run, and of an approved plan nothing is left over."""
    found = table(*WHOLE, entries=tuple(entry(relation) for relation in (20, 21, 22)))
    rules = policy(ahead=2, max_drops=most, drop="proven")
    asks = policy(ahead=2, max_drops=most, drop="approve")
    digest = draw(found, axis(), asks).digest
    plans = [draw(found, axis(), rules), draw(found, axis(), asks, {digest})]

    for plan in plans:
        assert most == sum(each.drop == "now" for each in plan.departures)
        assert {f"max_drops is {most}: a later run drops it"} == {
            each.drop_reason for each in plan.departures[most:]
        }


def test_a_run_that_goes_on_after_an_approval_has_taken_out_what_it_asked_about() -> None:
    """Else it would take out as many again and ask at once about those, and so on to the last partition."""
    found = table(*WHOLE, entries=(entry(20), entry(21)))
    rules = policy(ahead=2, keep="2 months", max_drops=2, drop="approve")
    asked = draw(found, axis(), rules)
    plan = draw(found, axis(), rules, {asked.digest})

    assert 4 == len(asked.departures)
    assert ["now", "now"] == [each.drop for each in plan.departures]
    assert "max_drops is 2: a later run takes it" in {each.reason for each in plan.refusals}


@pytest.mark.parametrize(
    ("rules", "known"),
    [
        ({"hold": ["p1"]}, {}),
        ({"hold": ["typo"]}, {}),
        ({}, {"entries": (entry(1001).model_copy(update={"state": "returned"}),)}),
        ({"keep": None}, {}),
        ({}, {"position": 0}),
    ],
    ids=["held", "hold of nothing", "brought back", "not due", "clock"],
)
def test_a_detach_that_was_begun_is_finished_though_nothing_is_to_leave(
    rules: dict[str, object], known: dict[str, object]
) -> None:
    """PostgreSQL cannot take it back, and while it is pending no other partition can leave."""
    found = table(month(1, is_pending=True), *WHOLE[1:], **known)
    plan = draw(found, axis(), policy(**{"ahead": 2, "keep": "5 months", **rules}))

    assert ["finalize p1"] == [f"{step.action} {step.partition.name}" for step in plan.steps()][:1]
    assert (["p1"], []) == ([each.name.name for each in plan.unfinished], list(plan.departures))


def test_a_detach_that_was_begun_counts_for_no_cap() -> None:
    """What is due leaves all the same; it is finished, not detached."""
    found = table(month(1, is_pending=True), *WHOLE[1:])
    plan = draw(found, axis(), policy(ahead=2, keep="2 months", max_drops=0, drop="proven"))

    assert [("p1", "later")] == [(each.name.name, each.drop) for each in plan.departures]


@pytest.mark.parametrize(
    ("member", "changes", "told"),
    [
        ({"kind": "f"}, {}, "'public.leaf' in it is a foreign table"),
        ({"is_pending": True}, {}, "the detach of 'public.leaf' from it is not finished"),
        ({}, {"hold": ["leaf"]}, "'public.leaf' in it is under legal hold"),
        (
            {"is_alike": False},
            {"detach": "concurrently"},
            "'public.leaf' below it has another order of columns",
        ),
    ],
)
def test_what_is_below_a_partition_can_keep_it(
    member: dict[str, object], changes: dict[str, object], told: str
) -> None:
    """A tree leaves as a whole or not at all, and the table in the way is named."""
    old = month(1, kind="p")
    leaf = {"name": Name(schema_="public", name="leaf"), "kind": "r", "is_pending": False, "size": 1}
    below = {old.oid: (Member.model_validate({**leaf, "is_alike": True, **member}),)}
    found = table(old, *WHOLE[5:]).model_copy(update={"below": below})
    (step,) = draw(found, axis(), policy(ahead=2, keep="2 months", **changes)).steps()

    assert "refuse" == step.action
    assert told in step.reason


@pytest.mark.parametrize(
    ("changes", "rules", "told"),
    [({"kind": "f"}, {}, "a foreign table"), ({}, {"hold": ["p1"]}, "legal hold")],
)
def test_what_must_not_leave_is_refused_with_its_reason(
    changes: dict[str, object], rules: dict[str, object], told: str
) -> None:
    """Nothing is planned with it but the refusal."""
    found = table(month(1, **changes), *WHOLE[5:])
    (step,) = draw(found, axis(), policy(ahead=2, keep="2 months", **rules)).steps()

    assert "refuse" == step.action
    assert told in step.reason


@pytest.mark.parametrize(
    ("hold", "means"),
    [
        ("held", True),
        ("HELD", True),
        ('"held"', True),
        (' Public . "held" ', True),
        ("*", True),
        ('"Held"', False),
        ("other.held", False),
        ('"public.held"', False),
    ],
)
def test_a_hold_is_written_as_sql_writes_names(hold: str, *, means: bool) -> None:
    """With or without schema, and folded unless quoted, as the table's own name is."""
    assert ({hold} if means else set()) == policy(hold=[hold]).holds_on("public", "held")


@pytest.mark.parametrize("hold", ["p1_typo", "other.p1", '"P1"', "public.t"])
def test_a_hold_that_names_nothing_keeps_everything(hold: str) -> None:
    """Somebody meant a partition by it, and nobody knows which; what is detached already stays as well."""
    archived = frozenset({Name(schema_="public", name="older")})
    rules = policy(ahead=2, keep="2 months", hold=["p1", "gone7", "older", hold], drop="proven")
    plan = draw(table(*WHOLE, entries=(entry(7), entry(8)), archived=archived), axis(), rules)

    assert ["never", "never"] == [departure.drop for departure in plan.departures]
    assert [f"no partition of it is called as hold says: '{hold}': nothing leaves"] == [
        step.reason for step in plan.refusals
    ]


@pytest.mark.parametrize(
    ("changes", "method"),
    [({}, "concurrently"), ({"default_oid": 7}, "blocking"), ({"referenced_by": ("x",)}, "blocking")],
)
def test_the_way_of_the_detach_is_chosen_from_the_catalog(changes: dict[str, object], method: str) -> None:
    """The gentle way where PostgreSQL has it, and the reason where it has not."""
    (departure,) = draw(table(month(1), *WHOLE[5:], **changes), axis(), policy(keep="2 months")).departures

    assert method == departure.method
    assert departure.method_reason


def test_what_a_table_that_stands_means_to_others_is_told() -> None:
    """Deleting a row to which its rows follow is refused while it takes no writes: the plan says so."""
    found = table(month(1), *WHOLE[5:], followed=("customers",))
    kept = draw(found, axis(), policy(ahead=2, keep="2 months", drop="approve")).steps()[-1]
    dropped = draw(found, axis(), policy(ahead=2, keep="2 months", drop="proven")).steps()[-1]

    assert "a change in customers that cascades into its rows is refused" in kept.reason
    assert "customers" not in dropped.reason


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ", partitioned like 'public.p8'"),
        ({"is_timeless": False}, "; plain, because what is below 'public.p8' is its own part of 'at'"),
        ({"is_pending": True}, "; plain, because what is below 'public.p8' is not whole"),
        ({"kind": "p"}, "; plain, because what is below 'public.p8' is not whole"),
    ],
)
def test_what_is_made_is_partitioned_like_the_newest_or_says_why_not(
    changes: dict[str, object], told: str
) -> None:
    """Bounds below that tell no time hold for the next one too; where no row finds a leaf it is plain."""
    newest = month(8, kind="p", partition_by="LIST (kind)")
    given = {"name": Name(schema_="x", name="p8_a"), "oid": 7, "parent": newest.oid, "kind": "r", "size": 1}
    member = Member.model_validate({**given, "is_pending": False, "is_alike": True, **changes})
    found = table(*WHOLE[:-1], newest, below={newest.oid: (member,)})
    (made,) = draw(found, axis(), policy(ahead=3)).creations

    assert f"within 3 ahead{told}" == made.reason
    assert ([] if changes else ["public.t_2025_09_a"]) == [str(twig.name) for twig in made.twigs]


def test_an_approval_is_for_exactly_these_copies() -> None:
    """Another copy, or a hold that was lifted, is another plan; what has no proven copy is never meant."""
    one, two = entry(71), entry(72)
    rules = policy(ahead=2, drop="approve", keep="12 months")
    digest = draw(table(*WHOLE, entries=(one,)), axis(), rules).digest
    approved = draw(table(*WHOLE, entries=(one,)), axis(), rules, {digest}).departures
    changed = draw(table(*WHOLE, entries=(one, two)), axis(), rules, {digest}).departures

    assert ["now"] == [departure.drop for departure in approved]
    held = draw(table(*WHOLE, entries=(one, two)), axis(), policy(drop="approve", hold=["gone71"]))
    lifted = draw(table(*WHOLE, entries=(one, two)), axis(), rules, {held.digest}).departures
    assert ["approve", "approve"] == [departure.drop for departure in lifted]
    older = table(month(1), *WHOLE[5:], entries=(one,))
    fresh = draw(older, axis(), policy(drop="approve", keep="2 months"), {digest}).departures
    assert ["now", "approve"] == [departure.drop for departure in fresh]
    assert ["approve", "approve"] == [departure.drop for departure in changed]


@given(st.lists(st.binary(max_size=40).map(lambda row: row.replace(b"\n", b"")), max_size=30), st.data())
def test_the_digest_depends_on_rows_and_not_on_order_or_pieces(
    rows: list[bytes], data: st.DataObject
) -> None:
    """Any order, cut anywhere, is the same; a row more is another."""

    def digest(lines: list[bytes], size: int) -> tuple[int, str]:
        made, text = LineDigest(), b"".join(line + b"\n" for line in lines)
        for start in range(0, len(text), size):
            made.feed(text[start : start + size])
        return made.result().rows, made.result().value

    shuffled = data.draw(st.permutations(rows))
    size = data.draw(st.integers(1, 50))

    assert digest(rows, 7) == digest(shuffled, size)
    assert digest(rows, 7) != digest([*rows, b"x"], 7)


@given(
    st.lists(st.text(min_size=1), min_size=2, max_size=3),
    st.lists(st.text(min_size=1), min_size=2, max_size=3),
)
def test_two_names_never_share_a_folder(one: list[str], other: list[str]) -> None:
    """Whatever stands in them: slashes, dots, percent signs."""
    assert (one == other) == (folder("s3://a", *one) == folder("s3://a", *other))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"keep": "1 year", "archive": None}, "keep needs archive"),
        ({"every": "5 fortnights"}, "a span is a number and a unit"),
        ({"zone": "Mars/Base"}, "no IANA time zone"),
        ({"archive": "/tmp/x"}, "write s3://bucket/prefix"),
        ({"keep": 5}, "both spans of time, or both key values"),
        ({"lock": {"mode": "COMPLIANCE"}}, "both mode and retain"),
        ({"drop": "tomorrow"}, "drop"),
        ({"table": "events"}, "'events' is not schema.table"),
        ({"hold": ["a b"]}, "no name as SQL writes it"),
    ],
)
def test_a_policy_without_sense_is_refused(changes: dict[str, object], told: str) -> None:
    """Each with what to write instead."""
    with pytest.raises(ValidationError, match=told):
        policy(**changes)


def test_a_policy_survives_its_own_rendering() -> None:
    """Spans, durations and choices read back as they were."""
    given = policy(
        keep="1 quarter", drop={"after": "7d"}, lock={"mode": "GOVERNANCE", "retain": "30d"}, hold=["*"]
    )

    assert given == PartitionPolicy.model_validate(given.model_dump(mode="json"))
