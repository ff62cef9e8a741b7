import itertools
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import zstandard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pgvigil.alarmtest.repository import flipped
from pgvigil.archive.manifest import Manifest, read_manifest
from pgvigil.errors import DatabaseFailed
from pgvigil.reports import Verdict
from tests.fixtures.deaths import count_calls, in_child
from tests.fixtures.partitions import Shop

EXAMPLES = 2 * int(os.environ.get("PGVIGIL_ROUNDS", "1"))
STEPS = 12
EVERY, AHEAD = 10, 2  # the key is a number: the table's clock stands where its newest row is
ANY = st.integers(0, 99)
NO_PARTITION = "23514"
TABLES = itertools.count(1)

POLICIES = st.fixed_dictionaries(
    {
        "keep": st.sampled_from([10, 20, 40]),
        "drop": st.sampled_from(["proven", "proven", "approve", "keep", {"after": "1ms"}, {"after": "30d"}]),
        "max_drops": st.sampled_from([0, 1, 3]),
        "restored_for": st.sampled_from(["1ms", "30d"]),
    }
)

Row = tuple[int, int]


class Partitions(RuleBasedStateMachine):
    """A table whose time passes, its users, its rolls and their deaths, its archive and who damages it."""

    def __init__(self, shop: Shop) -> None:
        super().__init__()
        self.shop = shop
        self.table = f"t{next(TABLES)}"
        self.numbers = itertools.count(1)
        self.rows: set[Row] = set()  # what users wrote and nobody deleted, but for what damage took away
        self.copies: dict[
            str, tuple[Manifest, frozenset[Row]]
        ] = {}  # committed, in the order of their making
        self.damaged: set[str] = set()
        self.newest = 5

    @initialize(policy=POLICIES, has_default=st.booleans())
    def begin(self, policy: dict[str, Any], *, has_default: bool) -> None:
        self.shop.sql(
            f"SET ROLE shop; CREATE TABLE {self.table} (id bigint NOT NULL, v int) PARTITION BY RANGE (id);"
            f"CREATE TABLE {self.table}_first PARTITION OF {self.table} FOR VALUES FROM (0) TO ({EVERY})"
        )
        self.has_default = has_default
        if has_default:
            self.shop.sql(f"SET ROLE shop; CREATE TABLE {self.table}_rest PARTITION OF {self.table} DEFAULT")
        self.define(policy)
        self.write(self.newest)

    def teardown(self) -> None:
        """Leave nothing that the next example could take for its own."""
        self.shop.sql(f"DROP TABLE IF EXISTS {self.table}")
        for name in self.tables():
            self.shop.sql(f"DROP TABLE {name}")
        self.shop.sql("DELETE FROM pgvigil.departure")

    # --- what there is

    def define(self, policy: dict[str, Any], ahead: int = AHEAD) -> None:
        self.policy = policy
        self.shop.policy(table=f"public.{self.table}", key="id", every=EVERY, ahead=ahead, **policy)

    def tables(self) -> list[str]:
        """Every table of rows, attached or not."""
        named = f"relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname ~ '^{self.table}_'"
        return [row["relname"] for row in self.shop.sql(f"SELECT relname FROM pg_class WHERE {named}")]

    def standing(self) -> list[tuple[str, Row]]:
        """Every row that stands in a table, and in which."""
        selects = [f"SELECT '{name}' AS place, id, v FROM ONLY {name}" for name in self.tables()]
        found = self.shop.sql(" UNION ALL ".join(selects))
        return [(row["place"], (row["id"], row["v"])) for row in found]

    def detached(self) -> list[dict[str, str]]:
        """Those that wait for their end behind a fence."""
        fenced = (
            "SELECT name, bound FROM pgvigil.departure WHERE state IN ('fenced', 'archived') ORDER BY name"
        )
        return [row for row in self.shop.sql(fenced) if row["name"] in self.tables()]

    def find_copies(self) -> None:
        """Read every committed copy of the archive once."""
        folder = f"/{self.table}/"
        for uri in self.shop.objects("manifest.json"):
            if uri in self.copies or folder not in uri:
                continue
            manifest = read_manifest(self.shop.store, uri)
            self.copies[uri] = manifest, frozenset(self.read(manifest))

    def read(self, manifest: Manifest) -> Iterator[Row]:
        for leaf in manifest.leaves:
            packed = self.shop.store.get(leaf.stored.rows.uri)
            text = zstandard.ZstdDecompressor().decompressobj().decompress(packed).decode()
            for line in text.splitlines():
                number, value = line.split("\t")
                yield int(number), int(value)

    def newest_copies(self) -> list[str]:
        """The address of the newest copy of each partition."""
        return list({manifest.name: uri for uri, (manifest, _) in self.copies.items()}.values())

    # --- users, and the time

    def write(self, number: int) -> None:
        row = number, next(self.numbers)
        try:
            self.shop.sql(f"INSERT INTO {self.table} VALUES {row}")
        except DatabaseFailed as error:
            if self.has_default or error.sqlstate != NO_PARTITION:
                raise
        else:
            self.rows.add(row)
            self.newest = max(self.newest, number)

    @rule(steps=st.integers(1, 25))
    def time_passes(self, steps: int) -> None:
        self.write(self.newest + steps)

    @rule(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=5))
    def users_write(self, numbers: list[int]) -> None:
        """Into any range that there is or was."""
        for number in numbers:
            self.write(min(number, self.newest))

    @rule(pick=ANY)
    def a_user_deletes(self, pick: int) -> None:
        """A row that is in the table, but never the one by which it tells the time."""
        found = self.shop.sql(f"SELECT id, v FROM {self.table} WHERE id < {self.newest} ORDER BY v")
        if found:
            row = found[pick % len(found)]
            self.shop.sql(f"DELETE FROM {self.table} WHERE v = {row['v']}")
            self.rows.remove((row["id"], row["v"]))

    @rule(pick=ANY)
    def somebody_breaks_a_fence(self, pick: int) -> None:
        """And writes into a table that is on its way out, where a copy of it may be proven already."""
        waiting = self.detached()
        if not waiting:
            return
        chosen = waiting[pick % len(waiting)]
        name = chosen["name"]
        row = int(chosen["bound"].split("'")[1]), next(self.numbers)
        self.shop.sql(
            f"ALTER TABLE {name} DISABLE TRIGGER USER; INSERT INTO {name} VALUES {row};"
            f"ALTER TABLE {name} ENABLE ALWAYS TRIGGER pgvigil_no_write"
        )
        self.rows.add(row)

    # --- rolls

    @rule()
    def a_roll(self) -> None:
        """Verified, unless the newest row has outgrown the partitions; then nothing leaves."""
        was_beyond = self.is_beyond()
        report = self.shop.roll()
        self.find_copies()
        if not self.damaged:
            expected = Verdict.INCONCLUSIVE if self.is_beyond() else Verdict.VERIFIED
            assert report.verdict is expected, report.model_dump_json(indent=1)
        if report.verdict is Verdict.VERIFIED:
            self.assert_ahead()
        if was_beyond:
            assert "detach" not in {outcome.action for outcome in report.outcomes}

    @precondition(lambda self: self.is_beyond())
    @rule()
    def somebody_reaches_as_far(self) -> None:
        """As the finding says: with more ahead, until partitions hold the newest row."""
        self.define(self.policy, ahead=self.newest // EVERY + 1)
        self.shop.roll()
        self.find_copies()
        assert not self.is_beyond()
        self.define(self.policy)

    @precondition(lambda self: self.policy["drop"] != {"after": "1ms"})
    @rule()
    def a_roll_after_a_roll(self) -> None:
        """Finds nothing to do, unless one run may not do it all; between these two no time passes."""
        first = self.shop.roll()
        self.find_copies()
        if first.verdict is Verdict.VERIFIED and not any(
            said in step.reason for step in first.steps for said in ("max_drops", "lies beyond")
        ):
            before = sorted(self.standing()), sorted(self.shop.objects())
            again = self.shop.roll()
            assert {outcome.action for outcome in again.outcomes} <= {"keep"}, again.outcomes
            assert before == (sorted(self.standing()), sorted(self.shop.objects()))

    @rule(call=st.integers(1, 150))
    def a_roll_dies(self, call: int) -> None:
        """Before any statement or S3 call, if it makes so many."""

        def roll() -> int:
            count_calls(call)
            self.shop.roll()
            return 0

        assert in_child(roll) in {0, -signal.SIGKILL}
        self.find_copies()

    @rule(policy=POLICIES)
    def the_policy_changes(self, policy: dict[str, Any]) -> None:
        self.define(policy)

    @precondition(lambda self: self.policy["drop"] == "approve")
    @rule(approves=st.booleans())
    def a_person_answers(self, *, approves: bool) -> None:
        """Exactly what was asked is dropped, or nothing is."""
        asked = self.shop.roll()
        self.find_copies()
        if not asked.questions:
            return
        (question,) = asked.questions
        before = set(self.tables())
        answer = {"approve" if approves else "reject": question.digest}
        report = self.shop.roll(**answer)  # type: ignore[arg-type]
        self.find_copies()
        gone = before - set(self.tables())
        assert gone == {outcome.partition for outcome in report.outcomes if outcome.action == "drop"}
        assert approves or not gone
        assert gone or not approves or self.damaged, report.model_dump_json(indent=1)

    # --- the archive

    @precondition(lambda self: self.copies)
    @rule(pick=ANY, attach=st.booleans())
    def a_partition_comes_back(self, pick: int, *, attach: bool) -> None:
        """Whole or not at all; and never beside a relation of its name."""
        uri = self.newest_copies()[pick % len(self.newest_copies())]
        manifest, rows = self.copies[uri]
        before = self.standing()
        was_there = manifest.name in self.tables()
        report = self.shop.restore(uri, attach=attach)
        if was_there or uri in self.damaged:
            assert sorted(self.standing()) == sorted(before)
        else:
            came = set(self.standing()) - set(before)
            assert came == {(manifest.name, row) for row in rows}, report.model_dump_json(indent=1)
            self.rows |= rows

    @precondition(lambda self: self.copies)
    @rule(pick=ANY)
    def a_copy_is_drilled(self, pick: int) -> None:
        """Verified if and only if nobody damaged it, and nothing stays."""
        uri = list(self.copies)[pick % len(self.copies)]
        before = self.standing()
        report = self.shop.restore(uri, keep=False)
        expected = Verdict.REFUTED if uri in self.damaged else Verdict.VERIFIED
        assert report.verdict is expected, report.model_dump_json(indent=1)
        assert sorted(self.standing()) == sorted(before)

    @precondition(lambda self: len(self.copies) > len(self.damaged))
    @rule(pick=ANY, is_lost=st.booleans())
    def a_copy_is_damaged(self, pick: int, *, is_lost: bool) -> None:
        """By another hand than ours; rows whose only place it was are gone."""
        whole = [uri for uri in self.copies if uri not in self.damaged]
        uri = whole[pick % len(whole)]
        manifest, _ = self.copies[uri]
        stored = manifest.leaves[0].stored.rows.uri
        if is_lost:
            self.shop.store.delete(stored)
        else:
            self.shop.store.put(stored, flipped(self.shop.store.get(stored)))
        self.damaged.add(uri)
        self.rows -= self.rows - self.kept()

    # --- what is always true

    def kept(self) -> set[Row]:
        """The rows that stand in a table or in a whole copy."""
        whole = (rows for uri, (_, rows) in self.copies.items() if uri not in self.damaged)
        return {row for _, row in self.standing()}.union(*whole)

    @invariant()
    def every_row_is_in_one_place(self) -> None:
        """In one table, or else in a copy that is proven; and no table has what nobody wrote."""
        rows = [row for _, row in self.standing()]
        assert len(rows) == len(set(rows))
        assert set(rows) <= self.rows
        assert self.rows <= self.kept()

    def is_beyond(self) -> bool:
        """Whether the newest row is in DEFAULT."""
        slot = f"FROM ('{self.newest // EVERY * EVERY}')"
        return not any(slot in bound for bound in self.shop.partitions(self.table).values())

    def assert_ahead(self) -> None:
        """The slot of the newest row and so many after it are there."""
        bounds = " ".join(self.shop.partitions(self.table).values())
        first = self.newest // EVERY * EVERY
        for lower in range(first, first + (AHEAD + 1) * EVERY, EVERY):
            assert f"FROM ('{lower}') TO ('{lower + EVERY}')" in bounds


@pytest.mark.rounds
def test_every_row_of_a_rolled_table_is_in_one_place(shop: Shop) -> None:
    """Whatever becomes of time, policy, archive and runs: attached, detached or proven archived, and once."""
    run_state_machine_as_test(
        partial(Partitions, shop),
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None, derandomize=True
        ),
    )
