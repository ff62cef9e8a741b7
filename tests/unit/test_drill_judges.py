"""Claims about the pure parts of the judges: what is compared, what is refuted, what is only told."""

from datetime import UTC, datetime

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pgvigil.drill import amcheck, catalogue, checksums, compare, sequences
from pgvigil.drill.amcheck import Damage, Outcome, Relation
from pgvigil.drill.catalogue import Address, Catalogue, Item, Window
from pgvigil.drill.checksums import Scan
from pgvigil.drill.facts import Content, Digest, Mark, Table, Unproven
from pgvigil.drill.sequences import Positions, SequenceState
from pgvigil.reports import Verdict, conclude

WINDOW = Window(100, 200)

items = st.dictionaries(
    st.builds(Address, st.just(1), st.integers(1, 6)),
    st.builds(Item, st.integers(0, 2), st.sampled_from([False])),
)


def read(found: dict[Address, Item]) -> Catalogue:
    return Catalogue("database", WINDOW, found)


# --- catalogue --------------------------------------------------------------------------------------


@given(before=items, after=items, choices=st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_copy_of_any_moment_between_the_readings_is_equal(
    before: dict[Address, Item], after: dict[Address, Item], choices: list[bool]
) -> None:
    """Each object as it was before or after the mark: concurrent DDL gives no false mismatch."""
    there = before.keys() | after.keys()
    chosen = {address: (before if choices[address.objid - 1] else after).get(address) for address in there}
    copied = {address: item for address, item in chosen.items() if item}

    assert catalogue.compare(read(before), read(after), read(copied)) == ()


@given(source=items, copied=items)
def test_without_changes_at_the_source_every_difference_is_refuted(
    source: dict[Address, Item], copied: dict[Address, Item]
) -> None:
    """When both readings agree and nothing was touched, exactly what differs is told, never as moved."""
    differences = catalogue.compare(read(source), read(source), read(copied))
    expected = {a for a in source.keys() | copied.keys() if source.get(a) != copied.get(a)}

    assert {each.address for each in differences} == expected
    assert "moved" not in {each.outcome for each in differences}


@pytest.mark.parametrize(
    ("before", "after", "copied", "outcome"),
    [
        (Item(1, touched=False), Item(1, touched=True), Item(2, touched=False), "moved"),
        (Item(1, touched=False), Item(1, touched=False), Item(2, touched=True), "moved"),
        (Item(1, touched=False), Item(3, touched=False), Item(2, touched=False), "moved"),
        (None, None, Item(2, touched=True), "moved"),
        (Item(1, touched=False), Item(1, touched=True), None, "moved"),
        (Item(1, touched=False), Item(1, touched=False), None, "missing"),
        (None, None, Item(2, touched=False), "extra"),
        (Item(1, touched=False), Item(1, touched=False), Item(2, touched=False), "differs"),
    ],
)
def test_what_changed_and_changed_back_is_moved(
    before: Item | None, after: Item | None, copied: Item | None, outcome: str
) -> None:
    """A row that was written within the window excuses a difference; nothing else does."""
    address = Address(1, 1)
    readings = [read({address: item} if item else {}) for item in (before, after, copied)]

    (difference,) = catalogue.compare(*readings)
    assert difference.outcome == outcome


def test_a_catalogue_of_nothing_proves_nothing() -> None:
    """No object compared is inconclusive."""
    assert conclude(catalogue.judge("shop", 0, (), ()).checks) is Verdict.INCONCLUSIVE


# --- sequences --------------------------------------------------------------------------------------


def state(position: int | None, **fields: int) -> SequenceState:
    shape = {"oid": 1, "filenode": 1, "increment": 1, "minimum": 1, "maximum": 10**6, "cache": 1} | fields
    return SequenceState(name="public.s", cycle=bool(shape.pop("cycle", 0)), next=position, **shape)


@given(
    before=st.integers(-5000, 5000),
    used=st.integers(0, 100),
    more=st.integers(0, 100),
    increment=st.integers(-7, 7).filter(bool),
    cache=st.integers(1, 20),
    ahead=st.integers(0, 52),
)
def test_what_postgresql_logs_ahead_is_good(  # noqa: PLR0913 - a sequence and its history
    before: int, used: int, more: int, increment: int, cache: int, ahead: int
) -> None:
    """From the value before the mark to the one after it and its reserve, counting up or down."""
    assume(ahead <= 32 + cache)
    positions = Positions(
        state(before, increment=increment, cache=cache),
        state(before + (used + more) * increment, increment=increment, cache=cache),
        state(before + (used + ahead) * increment, increment=increment, cache=cache),
    )

    assert sequences.place(positions) == "good"


@given(before=st.integers(), gap=st.integers(1), increment=st.integers(-7, 7).filter(bool))
def test_a_sequence_behind_is_never_good(before: int, gap: int, increment: int) -> None:
    """One step behind the value before the mark is already a value given out twice."""
    source, copied = state(before, increment=increment), state(before - gap * increment, increment=increment)

    assert sequences.place(Positions(source, source, copied)) == "behind"


@pytest.mark.parametrize(
    ("before", "after", "copied", "outcome"),
    [
        (state(100), state(100), state(134), "ahead"),
        (state(100), state(100), state(133), "good"),
        (state(900), state(20), state(1), "moved"),
        (state(900), state(950, filenode=2), state(1), "moved"),
        (state(90, maximum=100, cycle=1), state(90, maximum=100, cycle=1), state(12, cycle=1), "good"),
        (state(900, maximum=999, cycle=1), state(100, maximum=999, cycle=1), state(50, cycle=1), "good"),
        (state(900, maximum=999, cycle=1), state(100, maximum=999, cycle=1), state(500, cycle=1), "moved"),
        (state(500, maximum=999, cycle=1), state(500, maximum=999, cycle=1), state(9, cycle=1), "behind"),
        (state(500, maximum=999, cycle=1), state(700, maximum=999, cycle=1), state(9, cycle=1), "moved"),
    ],
)
def test_a_reset_or_a_round_trip_excuses_a_sequence(
    before: SequenceState, after: SequenceState, copied: SequenceState, outcome: str
) -> None:
    """Only a sequence that did nothing but advance can be refuted."""
    assert sequences.place(Positions(before, after, copied)) == outcome


def test_a_sequence_that_may_not_be_read_is_inconclusive() -> None:
    """What was not read is named and never passed."""
    judgement = sequences.judge("shop", {1: state(None)}, {1: state(None)}, {1: state(5)})

    assert conclude(judgement.checks) is Verdict.INCONCLUSIVE
    assert "public.s" in judgement.checks[0].detail


@pytest.mark.parametrize(
    ("position", "used", "verdict"),
    [
        (5001, {}, Verdict.VERIFIED),
        (5034, {}, Verdict.VERIFIED),
        (5035, {}, Verdict.INCONCLUSIVE),
        (1, {}, Verdict.INCONCLUSIVE),
        (1, {1: None}, Verdict.VERIFIED),
        (500, {1: 499}, Verdict.VERIFIED),
        (500, {1: 500}, Verdict.INCONCLUSIVE),
        (None, {}, Verdict.INCONCLUSIVE),
    ],
)
@pytest.mark.parametrize("before", [{}, {1: state(None)}])
def test_a_sequence_first_seen_after_the_mark_is_held_to_that_place_and_to_its_column(
    before: sequences.States, position: int | None, used: dict[int, int | None], verdict: Verdict
) -> None:
    """It stands there, or short of it and beyond the values in the column; else it is told, and no fault."""
    judgement = sequences.judge("shop", before, {1: state(5001)}, {1: state(position)}, used)

    assert judgement.findings == ()
    assert conclude(judgement.checks) is verdict
    assert ("public.s" in "".join(check.detail for check in judgement.checks)) is (
        verdict is Verdict.INCONCLUSIVE
    )


@pytest.mark.parametrize("before", [{}, {2: state(5, oid=2)}])
def test_a_sequence_that_is_gone_after_the_mark_is_told_and_decides_nothing(
    before: sequences.States,
) -> None:
    """Where sequences come and go all the time nobody could drill otherwise."""
    lasting = {1: state(5)}
    judgement = sequences.judge("shop", lasting | before, lasting, lasting | {2: state(9, oid=2)})
    compared, gone = judgement.checks

    assert conclude(judgement.checks) is Verdict.VERIFIED
    assert compared.actual == "1 sequences"
    assert "gone at the source" in gone.detail


# --- rows -------------------------------------------------------------------------------------------

ORDERS = Table(oid=1, schema_name="public", name="orders", blocks=10)
EVENTS = Table(oid=2, schema_name="public", name="events", blocks=30)


def digest(rows: int, text: str, read: int = 10, blocks: int = 10) -> Digest:
    ranges = ((0, read),) if read < blocks else ()
    return Digest(rows=rows, hash=text * 32, blocks_read=read, blocks=blocks, ranges=ranges)


def content(*tables: tuple[Table, Digest], unproven: tuple[Unproven, ...] = ()) -> Content:
    mark = Mark(database="shop", method="fence", lsn="0/1", timeline=1, at=datetime.now(tz=UTC))
    return Content(mark=mark, tables=tables, unproven=unproven)


SOURCE = content((ORDERS, digest(5, "a")), (EVENTS, digest(7, "b", 15, 30)))


def test_equal_digests_prove_the_bytes_that_were_read() -> None:
    """A sample proves its share and no more."""
    comparison = compare.compare(SOURCE, SOURCE, doubts={}, block_size=8192)
    judgement = compare.judge(comparison)

    assert (comparison.proven, comparison.size) == (25 * 8192, 40 * 8192)
    assert comparison.share == 0.625
    assert judgement.findings == ()
    assert conclude(judgement.checks) is Verdict.VERIFIED


@pytest.mark.parametrize(
    ("copied", "code", "said"),
    [
        (digest(4, "a"), "rows-differs", "public.orders has 4 rows in the copy, 5 at the source"),
        (digest(5, "c"), "rows-differs", "public.orders has 5 rows on both sides, but other content"),
        (None, "rows-missing", "public.orders is not in the copy, 5 rows at the source"),
    ],
)
def test_other_rows_are_refuted_with_the_table_and_both_counts(
    copied: Digest | None, code: str, said: str
) -> None:
    """One table that differs or is missing is one finding, whatever else is equal."""
    tables = [(EVENTS, digest(7, "b", 15, 30)), *([(ORDERS, copied)] if copied else [])]
    judgement = compare.judge(compare.compare(SOURCE, content(*tables), doubts={}))

    assert [finding.code for finding in judgement.findings] == [code]
    assert said in judgement.findings[0].message
    assert conclude(judgement.checks) is Verdict.REFUTED


@pytest.mark.parametrize(
    ("copied", "doubts"),
    [
        (content((ORDERS, digest(4, "a")), (EVENTS, digest(7, "b", 15, 30))), {1: "rewritten"}),
        (content((ORDERS, digest(5, "a", 3)), (EVENTS, digest(7, "b", 15, 30))), {}),
        (
            content(
                (EVENTS, digest(7, "b", 15, 30)),
                unproven=(Unproven(database="shop", relation="public.orders", reason="unreadable"),),
            ),
            {},
        ),
    ],
)
def test_what_cannot_be_compared_is_inconclusive(copied: Content, doubts: dict[int, str]) -> None:
    """A table rewritten meanwhile, read elsewhere, or not read at all is neither equal nor different."""
    judgement = compare.judge(compare.compare(SOURCE, copied, doubts=doubts))

    assert judgement.findings == ()
    assert conclude(judgement.checks) is Verdict.INCONCLUSIVE
    assert "public.orders" in judgement.checks[0].detail


def test_a_doubted_table_that_is_equal_is_equal() -> None:
    """A rewrite excuses a difference; it takes nothing from equality."""
    assert (
        conclude(compare.judge(compare.compare(SOURCE, SOURCE, doubts={1: "x"})).checks) is Verdict.VERIFIED
    )


def test_only_what_no_restore_brings_back_may_stay_unproven() -> None:
    """Unlogged tables are told; a table that could not be hashed makes the whole inconclusive."""
    comparison = compare.compare(SOURCE, SOURCE, doubts={})
    fleeting = Unproven(database="shop", relation="public.u", reason="unlogged", by_design=True)
    hidden = Unproven(database="shop", relation="public.h", reason="no SELECT")

    assert conclude(compare.judge(comparison, [fleeting]).checks) is Verdict.VERIFIED
    assert conclude(compare.judge(comparison, [fleeting, hidden]).checks) is Verdict.INCONCLUSIVE


# --- amcheck and checksums --------------------------------------------------------------------------

RELATIONS = (
    Relation(oid=1, name="public.t", checked_as="heap table", kind="heap"),
    Relation(oid=2, name="public.i", checked_as="btree index", kind="btree index"),
    Relation(oid=3, name="public.g", checked_as=None, kind="gist index"),
)
ALL = frozenset({"public.t", "public.i"})


@pytest.mark.parametrize(
    ("outcome", "verdict"),
    [
        (Outcome(exit_code=0, checked=ALL), Verdict.VERIFIED),
        (Outcome(exit_code=0, checked=frozenset({"public.t"})), Verdict.INCONCLUSIVE),
        (Outcome(exit_code=0), Verdict.INCONCLUSIVE),
        (Outcome(exit_code=1, checked=ALL, tail=("lost",)), Verdict.INCONCLUSIVE),
        (Outcome(exit_code=2, checked=ALL, tail=("odd",)), Verdict.INCONCLUSIVE),
        (
            Outcome(exit_code=0, checked=ALL, damages=(Damage(relation="public.t", words="bad"),)),
            Verdict.REFUTED,
        ),
        (
            Outcome(exit_code=2, damages=(Damage(relation="public.i", words="ERROR:  x", sqlstate="XX002"),)),
            Verdict.REFUTED,
        ),
        (
            Outcome(exit_code=2, damages=(Damage(relation="public.i", words="ERROR:  x", sqlstate="P0001"),)),
            Verdict.INCONCLUSIVE,
        ),
    ],
)
def test_amcheck_is_believed_by_its_words_and_its_coverage(outcome: Outcome, verdict: Verdict) -> None:
    """No exit code passes what was not looked at, and none hides what was said."""
    judgement = amcheck.judge("shop", RELATIONS, outcome)

    assert conclude(judgement.checks) is verdict
    assert "public.g (gist index)" in judgement.checks[1].detail


QUOTED = ("public.a", 'public.a"\nb', 'public.a"\nb":\nc', "public.d")


@pytest.mark.parametrize("checked", [QUOTED, QUOTED[::-1], *((each,) for each in QUOTED), QUOTED[1:]])
@pytest.mark.parametrize("damaged", QUOTED)
def test_a_name_with_a_quote_before_a_line_break_is_read_to_its_end(
    checked: tuple[str, ...], damaged: str
) -> None:
    """Another table has all that comes before it for a name: neither counts for the other."""
    reader = amcheck._Reader("shop", QUOTED, lambda _: None)
    said = [
        f'heap table "shop.{damaged}", block 3:',
        "    bad",
        f'btree index "shop.{damaged}":',
        "    ERROR",
    ]
    for text in (*(f'pg_amcheck: checking heap table "shop.{each}"' for each in checked), *said):
        for line in text.split("\n"):
            reader.take(line)
    reader.end()

    assert reader.checked == set(checked)
    assert reader.damages == {damaged: "bad"}


@pytest.mark.parametrize(
    ("scan", "verdict"),
    [
        (Scan(exit_code=0, counts={"Blocks scanned": 9, "Bad checksums": 0}), Verdict.VERIFIED),
        (Scan(exit_code=0), Verdict.INCONCLUSIVE),
        (Scan(exit_code=1, tail=("cluster must be shut down",)), Verdict.INCONCLUSIVE),
        (Scan(exit_code=0, counts={"Blocks scanned": 9, "Bad checksums": 1}), Verdict.INCONCLUSIVE),
        (Scan(exit_code=1, bad_pages=(("base/5/1259.1", 3),)), Verdict.REFUTED),
        (
            Scan(exit_code=0, unreadable=("base/5/7",), counts={"Blocks scanned": 9, "Bad checksums": 0}),
            Verdict.INCONCLUSIVE,
        ),
    ],
)
def test_checksums_are_believed_by_words_and_counts(scan: Scan, verdict: Verdict) -> None:
    """Exit code 1 is both bad pages and a scan that did not happen; no page scanned is no proof."""
    assert conclude(checksums.judge(scan, {"base/5/1259": "shop: pg_class"}).checks) is verdict


def test_a_segment_or_fork_of_a_file_has_its_relations_name() -> None:
    """The second gigabyte and the visibility map belong to the relation of the first file."""
    scan = Scan(exit_code=1, bad_pages=(("base/5/1259.1", 3), ("base/5/1259_vm", 0), ("base/5/9", 1)))
    judgement = checksums.judge(scan, {"base/5/1259": "shop: pg_class"})

    assert [finding.subject for finding in judgement.findings] == [
        "shop: pg_class (base/5/1259.1)",
        "shop: pg_class (base/5/1259_vm)",
        "base/5/9",
    ]
