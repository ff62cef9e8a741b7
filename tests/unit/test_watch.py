from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from pgvigil.fleet import Fleet
from pgvigil.policies.clocks import Clock, Watched, clocks_of
from pgvigil.reports import Frozen, Verdict, headline
from pgvigil.status import Claim, ProofStatus, State, assess
from pgvigil.watch.alarms import Alarm
from pgvigil.watch.proofs import exit_code, expectations
from pgvigil.watch.report import WatchReport

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
FLEET = Fleet.model_validate(
    {
        "audit": {"dsn": "service=ops", "reports": "file:///srv/reports"},
        "clusters": {"demo": {"dsn": "service=demo", "pgbackrest": {"stanza": "demo"}}},
    }
)


def run(hours_ago: int, verdict: str, *repositories: int) -> list[Claim]:
    """What a run left on record: its own verdict, and each repository as verified."""
    at, run_id = NOW - timedelta(hours=hours_ago), uuid4()
    said = {None: verdict, **{f"backup repo{number}": "verified" for number in repositories}}
    return [
        Claim(
            subject="demo",
            flow="nightly_backup",
            proof=proof,
            verdict=Verdict(word),
            at=at,
            seq=1,
            run_id=run_id,
        )
        for proof, word in said.items()
    ]


@pytest.mark.parametrize(
    ("claims", "wanted"),
    [
        ([], ["repo1"]),
        (run(1, "inconclusive"), ["repo1"]),
        (run(1, "verified", 2), ["repo2"]),
        (run(1, "inconclusive", 2), ["repo2"]),
        (run(9, "verified", 1, 2) + run(1, "verified", 2), ["repo2"]),
        (run(9, "verified", 1, 2) + run(1, "inconclusive", 1), ["repo1", "repo2"]),
        (run(9, "verified", 1) + run(1, "refuted", 1, 2), ["repo1", "repo2"]),
    ],
)
def test_the_repositories_of_the_last_whole_run_are_wanted(claims: list[Claim], wanted: list[str]) -> None:
    """A retired repository is forgotten, one that a broken run did not reach is not."""
    found = [each.proof for each in expectations(FLEET, claims) if each.flow == "nightly_backup"]
    assert [f"backup {name}" for name in wanted] == found


def drill(days_ago: float, verdict: str, *proofs: str) -> list[Claim]:
    """What a drill left on record: its own verdict, and the same of each proof that it named."""
    at, run_id = NOW - timedelta(days=days_ago), uuid4()
    return [
        Claim(
            subject="demo",
            flow="restore_drill",
            proof=proof,
            verdict=Verdict(verdict),
            at=at,
            seq=1,
            run_id=run_id,
        )
        for proof in (None, *proofs)
    ]


def statuses(claims: list[Claim]) -> dict[str, ProofStatus]:
    wanted = [each for each in expectations(FLEET, claims) if each.flow == "restore_drill"]
    return {status.proof: status for status in assess(claims, wanted, NOW)}


def test_every_target_kind_of_every_repository_has_its_own_clock() -> None:
    """A kind that was never drilled is told as such, however many drills of other kinds there were."""
    found = statuses(drill(1, "verified", "restore repo1", "restore repo1 time"))

    assert {
        "restore repo1": State.VERIFIED,
        "restore repo1 time": State.VERIFIED,
        "restore repo1 default": State.NEVER,
        "restore repo1 lsn": State.NEVER,
        "restore repo1 xid": State.NEVER,
        "restore repo1 name": State.NEVER,
    } == {proof: status.state for proof, status in found.items()}
    assert "no run of restore_drill on demo has proven 'restore repo1 lsn' yet" == (
        found["restore repo1 lsn"].reason
    )


def test_a_monthly_rotation_keeps_every_clock_fresh_and_a_missing_drill_does_not() -> None:
    """Each kind has time for the others' turns; the repository itself has not."""
    kinds = ("default", "time", "lsn", "xid", "name")
    claims = [
        claim
        for month, kind in enumerate(kinds, start=1)
        for claim in drill(30 * month, "verified", "restore repo1", f"restore repo1 {kind}")
    ]

    assert {State.VERIFIED} == {status.state for status in statuses(claims).values()}
    late = [claim.model_copy(update={"at": claim.at - timedelta(days=6)}) for claim in claims]
    assert State.STALE is statuses(late)["restore repo1"].state


def test_a_repository_that_gets_backups_wants_a_drill() -> None:
    """The second repository was never drilled; with two, each has its turn every second month."""
    claims = run(1, "verified", 1, 2) + drill(60, "verified", "restore repo1", "restore repo1 time")

    found = statuses(claims)

    assert State.VERIFIED is found["restore repo1"].state
    assert (State.NEVER, State.NEVER) == (found["restore repo2"].state, found["restore repo2 lsn"].state)


def test_a_drill_that_died_before_it_chose_is_told_everywhere() -> None:
    """It proves nothing, moves no clock, and every proof says that the last run could not tell."""
    claims = drill(2, "verified", "restore repo1", "restore repo1 time") + drill(1, "inconclusive")

    found = statuses(claims)

    assert State.VERIFIED is found["restore repo1"].state
    assert all("the last run could not tell" in status.reason for status in found.values())


def test_a_drill_of_another_kind_leaves_nothing_out() -> None:
    """Its silence about the other kinds is no failed attempt at them."""
    claims = drill(2, "verified", "restore repo1", "restore repo1 time") + drill(
        1, "refuted", "restore repo1", "restore repo1 lsn"
    )

    found = statuses(claims)

    assert (State.VERIFIED, "verified at 2025-05-30 12:00 UTC") == (
        found["restore repo1 time"].state,
        found["restore repo1 time"].reason,
    )
    assert [State.FAILING] * 2 == [found[f"restore repo1{kind}"].state for kind in ("", " lsn")]


class Partition(Watched):
    """A policy as a pipeline of databases will bring it."""

    table: str

    def clocks(self) -> Iterator[Clock]:
        """Want one proof per table."""
        yield Clock(
            flow="roll_partitions",
            proof="partitions",
            detail=self.table,
            max_age=timedelta(1),
            per_repository=False,
        )


class Database(Frozen):
    """Settings with policies in a list and by name."""

    partitions: tuple[Partition, ...]
    backfills: dict[str, Partition]
    other: str = "no policy"


def test_policies_in_lists_and_by_name_are_found() -> None:
    """A pipeline of databases needs no word in a central place, and a hostile table name stays as it is."""
    tables = ["public.events", "{repo} repo7 %s", "Ä\"b.c'; --"]
    first, *rest = (Partition(table=table) for table in tables)
    settings = Database(partitions=(first,), backfills={str(n): each for n, each in enumerate(rest)})

    assert [f"partitions {table}" for table in tables] == [clock.name() for clock in clocks_of(settings)]


@pytest.mark.parametrize(
    ("states", "code"),
    [(["verified"], 0), (["verified", "never"], 2), (["verified", "stale", "failing"], 1), ([], 0)],
)
def test_the_exit_code_is_that_of_the_worst_proof(states: list[str], code: int) -> None:
    """0 only when all are verified, 1 as soon as one is refuted."""
    found = [
        ProofStatus(subject="demo", flow="f", proof="p", state=State(state), reason="") for state in states
    ]

    assert code == exit_code(found)


@pytest.mark.parametrize(
    ("alarms", "told"),
    [
        ([], "no alarm, 9 proofs: 1 stale, 8 verified"),
        (["a is stale"], "alarm: a is stale"),
        (["a is stale", "b waits", "c waits"], "alarm: a is stale; and 2 more"),
    ],
)
def test_a_watch_that_was_kept_says_first_what_it_saw(alarms: list[str], told: str) -> None:
    """Not that it was kept: of 288 pages a day one must be able to tell which has something to read."""
    seen = [Alarm(kind="stale", subject="a", what=message, message=message, since=NOW) for message in alarms]

    report = WatchReport(
        run_id=uuid4(),
        flow="keep_watch",
        subject="fleet",
        started_at=NOW,
        ended_at=NOW,
        verdict=Verdict.VERIFIED,
        counts={State.VERIFIED: 8, State.STALE: 1},
        alarms=tuple(seen),
    )

    assert told == headline(report)
