"""What recovery of a restored copy proves, and how it fails, on live servers."""

from pgvigil.drill.recover import Outcome, recover
from tests.fixtures.drill_copy import Drill


def test_recovery_stops_at_one_mark_after_the_other(drill: Drill) -> None:
    """Before the record at an LSN, then at a name, then on: each has its beats and not the next."""
    copy = drill.restored()
    seen = []
    for stop in (drill.lsn_stop("two"), drill.stop("three"), drill.lsn_stop("four")):
        with recover(copy, stop, drill.watch) as recovery:
            assert recovery.reached, recovery.model_dump_json(indent=1)
            seen.append((recovery.outcome, recovery.promoted, drill.beats(copy)))

    assert seen == [
        (Outcome.REACHED, False, ["one", "two"]),
        (Outcome.REACHED, False, ["one", "two", "three"]),
        (Outcome.REACHED, False, ["one", "two", "three", "four"]),
    ]
