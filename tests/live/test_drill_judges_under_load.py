"""Claims about the judges while the source is altered and written to without pause."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pgvigil.drill import catalogue, sequences
from pgvigil.errors import DatabaseFailed
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from tests.fixtures.drill_judges import DATABASE, SCOPES, Bench, at_bench, back_up, bench

__all__ = ["at_bench", "bench"]

ROUNDS = int(os.environ.get("PGVIGIL_ROUNDS", "1"))

# Everything here comes, changes and goes, so that the mark falls into the middle of each.
STORM = """
CREATE TABLE shop.storm (id serial PRIMARY KEY, t text DEFAULT 'a');
CREATE TEMP TABLE passing (id int);
ALTER TABLE shop.storm ALTER t SET DEFAULT 'b', ADD u int;
COMMENT ON TABLE shop.lines IS 'storm'; COMMENT ON TABLE shop.lines IS NULL;
GRANT DELETE ON shop.lines TO reader; REVOKE DELETE ON shop.lines FROM reader;
CREATE OR REPLACE FUNCTION shop.total(integer) RETURNS integer LANGUAGE sql AS 'SELECT $1 * 9';
CREATE OR REPLACE FUNCTION shop.total(integer) RETURNS integer LANGUAGE sql AS 'SELECT $1 * 2';
CREATE ROLE storm; GRANT reader TO storm; DROP ROLE storm;
ALTER ROLE app SET work_mem = '9MB'; ALTER ROLE app RESET work_mem;
INSERT INTO shop.items (name) SELECT 'storm' FROM generate_series(1, 50);
TRUNCATE shop.lines RESTART IDENTITY; VACUUM shop.items; REINDEX INDEX shop.items_name;
SELECT nextval('shop.tickets'), nextval('shop.down'), nextval('shop.ring') FROM generate_series(1, 20);
DROP TABLE shop.storm, passing;
"""


@contextmanager
def storm(bench: Bench, script: str = STORM) -> Iterator[None]:
    """Alter the source from another session until the block ends."""
    over = threading.Event()
    failures: list[DatabaseFailed] = []
    thread = threading.Thread(target=_blow, args=(bench, script, over, failures))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    assert failures == []


def _blow(bench: Bench, script: str, over: threading.Event, failures: list[DatabaseFailed]) -> None:
    statements = [line.strip() for line in script.split(";") if line.strip()]
    box = bench.sandbox
    try:
        with connect(box.admin_dsn(box.primary_port, DATABASE), "storm") as session:
            while not over.is_set():
                for statement in statements:
                    session.execute(statement.encode())
    except DatabaseFailed as error:
        failures.append(error)


def test_ddl_and_sequences_around_the_mark_give_no_false_mismatch(at_bench: Bench) -> None:
    """A copy of any moment of the storm is refuted by nothing, neither its catalogue nor its sequences."""
    box = at_bench.sandbox
    for number in range(ROUNDS):
        with storm(at_bench), connect(box.dsn(DATABASE), "test") as source:
            before = {scope: catalogue.read(source, scope) for scope in SCOPES}
            stood = sequences.read(source)
            template = back_up(box, f"template-{number}")
            after = {s: catalogue.read(source, s, since=before[s].window) for s in SCOPES}
            stands = sequences.read(source)
        copy = at_bench.copy(f"storm-{number}", template)
        with connect(copy.access.database(DATABASE), "test") as copied:
            until = catalogue.read_window(copied).next
            for s in SCOPES:
                theirs = catalogue.read(copied, s, since=before[s].window, until=until)
                differences = catalogue.compare(before[s], after[s], theirs)
                assert {each.outcome for each in differences} <= {"moved"}
            judgement = sequences.prove(DATABASE, (stood, stands), copied)
        copy.stop()

        assert judgement.findings == ()
        assert judgement.checks[0].verdict is Verdict.VERIFIED


def test_large_objects_that_users_make_all_the_time_are_compared_one_by_one(at_bench: Bench) -> None:
    """A copy of any moment has each as it was before or after: equal, and not only not refuted."""
    box = at_bench.sandbox
    with connect(box.dsn(DATABASE), "test") as source:
        with storm(at_bench, "SELECT lo_from_bytea(0, 'x')"):
            before = catalogue.read(source, "database")
            template = back_up(box, "template-large")
            after = catalogue.reread(source, before)
        copy = at_bench.copy("large", template)
        with connect(copy.access.database(DATABASE), "test") as copied:
            until = catalogue.read_window(copied).next
            theirs = catalogue.read(copied, "database", since=before.window, until=until)
            differences = catalogue.compare(before, after, theirs)
        copy.stop()

    assert len(before.items) < len(theirs.items) < len(after.items)
    assert differences == ()
