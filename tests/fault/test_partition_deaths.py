import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pgvigil.reports import Verdict
from pgvigil.sandbox import operate
from pgvigil.sandbox import postgres as servers
from tests.fixtures.deaths import count_calls, die, die_at, in_child
from tests.fixtures.partitions import Shop, make_deep, run

CALLS_OF_A_ROLL = 190  # a few fewer than there are: a kill behind the end is none, and fails the claim
WIDE_ROWS, MD5S_OF_A_ROW = 40, 32_000  # 41 MB that zstd halves: an upload of two parts
ROUNDS = int(os.environ.get("PGVIGIL_ROUNDS", "2"))
STEPS = ("archiving", "drop", "prove", "detach", "create")[:ROUNDS]


@contextmanager
def writer(shop: Shop) -> Iterator[list[int]]:
    """Write into the present month through the table all the while; gives how many rows were taken."""
    taken = [0]
    is_over = threading.Event()

    def write() -> None:
        with shop.session() as session:
            while not is_over.wait(0.01):
                run(session, "INSERT INTO events (customer_id, kind, payload) VALUES (1, 'now', '{}')")
                taken[0] += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield taken
    finally:
        is_over.set()
        thread.join()


class Story:
    """What must be true of a roll at every instant, and at its end."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.name = min(shop.partitions(), key=lambda name: shop.partitions()[name])
        self.old = self.count(self.name)
        self.others = self.count("events") - self.old

    def count(self, table: str) -> int:
        return int(self.shop.sql(f"SELECT count(*) AS n FROM {table}")[0]["n"])

    def is_there(self) -> bool:
        return self.shop.sql(f"SELECT to_regclass('{self.name}') AS r")[0]["r"] is not None

    def assert_no_row_lost(self) -> None:
        """The old rows are in their table, attached or not, or else in a committed copy."""
        if self.is_there():
            assert self.old == self.count(self.name)
        else:
            assert 1 == len(self.shop.objects("manifest.json"))

    def assert_done(self, written: int) -> None:
        """One manifest, one object, no table, no work state; and the copy comes back whole."""
        assert not self.is_there()
        assert (1, 2) == (len(self.shop.objects("manifest.json")), len(self.shop.objects()))
        assert [] == list(self.shop.store.list_uploads(f"s3://archive/{self.shop.database}/"))
        assert 0 == self.count("pgvigil.departure")
        assert self.others + written == self.count("events")
        back = self.shop.restore(self.name, keep=False)
        assert (Verdict.VERIFIED, self.old) == (back.verdict, back.rows)


def finish(story: Story) -> None:
    report = story.shop.roll()
    assert Verdict.VERIFIED == report.verdict, report.findings


@pytest.mark.parametrize("step", STEPS)
def test_a_roll_killed_at_a_step_is_finished_by_the_next(shop: Shop, step: str) -> None:
    """SIGKILL while others write: no row is lost at that instant, and the next run ends as if none died."""
    story = Story(shop)
    with writer(shop) as written:
        shop.before = lambda at: die() if at == step else None
        assert -signal.SIGKILL == in_child(lambda: bool(shop.roll()))
        story.assert_no_row_lost()
        shop.before = lambda _: None
        finish(story)
    story.assert_done(written[0])


@pytest.mark.long
@pytest.mark.parametrize("finished", [1, 2, 3][:ROUNDS])
def test_an_archive_of_a_tree_killed_between_leaves_goes_on_with_what_is_left(
    shop: Shop, finished: int
) -> None:
    """SIGKILL after so many leaves: the next run keeps their objects and copies the others alone."""
    make_deep(shop)

    def die_between(step: str) -> None:
        if step == "archiving" and len(shop.objects(".copy.zst")) == finished:
            die()

    shop.before = die_between
    assert -signal.SIGKILL == in_child(lambda: bool(shop.roll()))
    before = set(shop.objects(".copy.zst"))
    shop.before = lambda _: None
    report = shop.roll()

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert (finished, finished) == (len(before), len(before & set(shop.objects(".copy.zst"))))
    assert (4, 1) == (len(shop.objects(".copy.zst")), len(shop.objects("manifest.json")))
    assert [] == shop.sql("SELECT FROM pg_class WHERE relname LIKE 'deep_99%'")
    back = shop.restore("public.Deep 99", keep=False)
    assert (Verdict.VERIFIED, 400) == (back.verdict, back.rows)


@pytest.mark.long
@pytest.mark.parametrize("call", ["UploadPart", "CompleteMultipartUpload"])
def test_an_upload_killed_in_its_middle_is_aborted_by_the_next(shop: Shop, call: str) -> None:
    """SIGKILL before the second part of a copy, or between its last part and its completion."""
    shop.sql(
        "INSERT INTO events (created_at, customer_id, kind, payload)"
        " SELECT (SELECT min(created_at) FROM events), 1, string_agg(md5(n::text || m), ''), '{}'"
        f" FROM generate_series(1, {WIDE_ROWS}) AS n, generate_series(1, {MD5S_OF_A_ROW}) AS m GROUP BY n"
    )
    story = Story(shop)

    def roll() -> int:
        die_at(call, 2 if call == "UploadPart" else 1)
        shop.roll()
        return 0

    assert -signal.SIGKILL == in_child(roll)
    assert 1 == len(list(shop.store.list_uploads(f"s3://archive/{shop.database}/")))
    story.assert_no_row_lost()
    finish(story)
    story.assert_done(0)


@pytest.mark.long
@pytest.mark.parametrize("share", [(n + 0.5) / ROUNDS for n in range(ROUNDS)])
def test_a_roll_killed_at_any_call_is_finished_by_the_next(shop: Shop, share: float) -> None:
    """SIGKILL before the n-th statement or S3 call, wherever that is."""
    story = Story(shop)
    limit = int(CALLS_OF_A_ROLL * share) + 1

    def roll() -> int:
        count_calls(limit)
        shop.roll()
        return 0

    died = in_child(roll)
    story.assert_no_row_lost()
    finish(story)

    assert -signal.SIGKILL == died
    story.assert_done(0)


@pytest.mark.long
def test_a_roll_whose_server_dies_is_finished_by_the_next(shop: Shop) -> None:
    """An immediate stop in the middle of a copy: no row is lost, and the next run finishes."""
    story = Story(shop)
    due = ["archiving"]

    def crash(step: str) -> None:
        if step in due:
            due.remove(step)
            operate.stop(shop.sandbox, "immediate")
            servers.start(shop.sandbox, "primary")

    shop.before = crash
    assert Verdict.INCONCLUSIVE == shop.roll().verdict
    story.assert_no_row_lost()
    shop.before = lambda _: None
    finish(story)

    assert [] == due
    story.assert_done(0)


@pytest.mark.long
@pytest.mark.parametrize("step", ["rebuilding", "settle", "refer"][:ROUNDS])
def test_a_restore_killed_at_a_step_is_finished_by_the_next(shop: Shop, step: str) -> None:
    """SIGKILL: the table is there whole or not at all, and the next run ends with one partition more."""
    story = Story(shop)
    finish(story)
    shop.before = lambda at: die() if at == step else None
    assert -signal.SIGKILL == in_child(lambda: bool(shop.restore(story.name, attach=True)))
    assert (step != "rebuilding") == story.is_there()
    shop.before = lambda _: None
    report = shop.restore(story.name, attach=True)

    assert Verdict.VERIFIED == report.verdict, report.findings
    assert story.others + story.old == story.count("events")
    assert story.name in shop.partitions()
