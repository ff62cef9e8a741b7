"""What a drill restores: whose turn it is, what the operator may ask for, and what is refused."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgvigil.drill.choose import SETS, TARGETS, Choice, Source, Tried, Wanted, choose
from pgvigil.drill.history import read_rows
from pgvigil.errors import ConfigError, PreconditionFailed
from pgvigil.pgbackrest import StanzaInfo
from pgvigil.policies.wal import WalPolicy

NOW = datetime(2026, 11, 22, 3, tzinfo=UTC)
SYSTEM = 7441122334455667788
SOURCE = Source(system_id=SYSTEM, timeline=1, lsn="0/50000000", segment_size=16 * 2**20, now=NOW)
ALWAYS = st.integers(0, 2**32)


def backup(repo: int, days_ago: int, **more: Any) -> dict[str, Any]:
    """A full as `pgbackrest info` tells it, that ended so many days ago."""
    stop = NOW - timedelta(days=days_ago)
    lsn = 0x50000000 - 0x1000000 * days_ago
    segment = f"0000000100000000{lsn >> 24:08X}"
    return {
        "label": f"{stop:%Y%m%d-%H%M%S}F",
        "type": "full",
        "archive": {"start": segment, "stop": segment},
        "lsn": {"start": f"0/{lsn:X}", "stop": f"0/{lsn + 0x100:X}"},
        "timestamp": {"start": int(stop.timestamp()) - 60, "stop": int(stop.timestamp())},
        "database": {"id": 1, "repo-key": repo},
        "info": {"size": 1000, "delta": 1000},
        "error": False,
    } | more


def stanza(repos: int = 1, days: tuple[int, ...] = (9, 6, 3, 1), **more: Any) -> StanzaInfo:
    """A healthy stanza with a backup in each repository so many days ago, but for what is given."""
    keys = range(1, repos + 1)
    return StanzaInfo.model_validate(
        {
            "name": "demo",
            "archive": [
                {
                    "id": "15-1",
                    "database": {"id": 1, "repo-key": key},
                    "min": "0" * 24,
                    "max": "00000001000000000000004F",
                }
                for key in keys
            ],
            "backup": [backup(key, ago) for key in keys for ago in days],
            "db": [{"id": 1, "repo-key": key, "system-id": SYSTEM, "version": "15"} for key in keys],
            "repo": [{"key": key, "status": {"code": 0, "message": "ok"}} for key in keys],
            "status": {"code": 0, "message": "ok"},
        }
        | more
    )


def drills(
    info: StanzaInfo,
    tried: list[Tried],
    count: int,
    is_proven: Callable[[Choice], bool] = lambda _: True,
    seed: int = 1,
) -> list[Tried]:
    """Do so many monthly drills after what was tried before, and return these."""
    done: list[Tried] = []
    for month in range(count):
        chosen = choose(info, SOURCE, [*tried, *done], Wanted(), seed + month)
        done.append(
            Tried(
                repo=chosen.repo,
                set_kind=chosen.set_kind,
                target_kind=chosen.target_kind,
                at=NOW + timedelta(days=30 * month),
                proven=is_proven(chosen),
            )
        )
    return done


@st.composite
def histories(draw: st.DrawFn, repos: int) -> list[Tried]:
    """Anything that may have been drilled before, in any order and with any end."""
    return draw(
        st.lists(
            st.builds(
                Tried,
                repo=st.integers(1, repos),
                set_kind=st.sampled_from(SETS),
                target_kind=st.sampled_from(TARGETS),
                at=st.datetimes(
                    min_value=datetime(2020, 1, 1),  # noqa: DTZ001 - hypothesis gives the zone
                    max_value=datetime(2026, 1, 1),  # noqa: DTZ001 - as above
                    timezones=st.just(UTC),
                ),
                proven=st.booleans(),
            ),
            max_size=20,
        )
    )


@st.composite
def situations(draw: st.DrawFn) -> tuple[int, list[Tried], int]:
    """Repositories, a history and a seed."""
    repos = draw(st.integers(1, 3))
    return repos, draw(histories(repos)), draw(ALWAYS)


@given(situations())
@settings(max_examples=40, deadline=None)
def test_every_kind_is_proven_in_every_repository_after_one_round(
    situation: tuple[int, list[Tried], int],
) -> None:
    """Whatever was drilled before, so many drills as there are pairs leave no pair unproven, and one more."""
    repos, tried, seed = situation
    # One that had failed before the first drill of ours may let another go first.
    done = drills(stanza(repos), tried, len(TARGETS) * repos + repos, seed=seed)

    assert {(each.repo, each.target_kind) for each in done} == {
        (repo, kind) for repo in range(1, repos + 1) for kind in TARGETS
    }
    assert {(each.repo, each.set_kind) for each in done} == {
        (repo, kind) for repo in range(1, repos + 1) for kind in SETS
    }


@given(st.integers(1, 2), ALWAYS, st.data())
@settings(max_examples=40, deadline=None)
def test_a_year_of_monthly_drills_proves_every_kind_of_each_dimension(
    repos: int, seed: int, data: st.DataObject
) -> None:
    """Twelve drills after any history."""
    done = drills(stanza(repos), data.draw(histories(repos)), 12, seed=seed)

    assert set(range(1, repos + 1)) == {each.repo for each in done}
    assert set(SETS) == {each.set_kind for each in done}
    assert set(TARGETS) == {each.target_kind for each in done}


BROKEN = [
    *(("target_kind", kind) for kind in TARGETS),
    *(("set_kind", kind) for kind in SETS),
    ("repo", 1),
]


@given(situations(), st.sampled_from(BROKEN))
@settings(max_examples=40, deadline=None)
def test_what_is_broken_holds_up_nothing_else(
    situation: tuple[int, list[Tried], int], broken: tuple[str, Any]
) -> None:
    """One kind, set or repository that always fails is tried again and again, and all others are proven."""
    repos, tried, seed = situation
    dimension, option = broken
    count = 12 * len(TARGETS) * repos
    done = drills(stanza(repos), tried, count, lambda chosen: getattr(chosen, dimension) != option, seed=seed)
    proven = [each for each in done if each.proven]

    assert sum(not each.proven for each in done) >= len(done) // 5
    others = {"repo": set(range(1, repos + 1)), "set_kind": set(SETS), "target_kind": set(TARGETS)}
    others[dimension] -= {option}
    if all(others.values()):
        for name, wanted in others.items():
            assert wanted == {getattr(each, name) for each in proven}
        assert len(others["repo"]) * len(others["target_kind"]) == len(
            {(each.repo, each.target_kind) for each in proven}
        )


def test_the_same_facts_give_the_same_choice_and_the_draw_depends_on_the_seed() -> None:
    """A drill can be done again as it was; where nothing was drilled yet, the seed decides."""
    choices = [choose(stanza(), SOURCE, [], Wanted(), seed) for seed in range(40)]

    assert choices == [choose(stanza(), SOURCE, [], Wanted(), seed) for seed in range(40)]
    assert set(TARGETS) == {each.target_kind for each in choices}
    assert set(SETS) == {each.set_kind for each in choices}


def test_set_kinds_are_what_they_say() -> None:
    """The latest and the oldest that can be restored; random is one between them."""
    labels = [backup(1, ago)["label"] for ago in (9, 6, 3, 1)]
    found = {
        kind: {choose(stanza(), SOURCE, [], Wanted(backup_set=kind), seed).label for seed in range(30)}
        for kind in SETS
    }

    assert {"latest": {labels[3]}, "oldest": {labels[0]}, "random": set(labels[1:3])} == found


def test_parameters_win_and_are_told() -> None:
    """Repository, set and kind as asked for, whoever's turn it was."""
    label = backup(1, 6)["label"]
    asked = Wanted(repo=2, backup_set=label, recovery_target="xid")

    chosen = choose(stanza(2), SOURCE, [], asked, 1)

    assert (2, label, "xid", None) == (
        chosen.repo,
        chosen.label,
        chosen.target_kind,
        chosen.target_value,
    )
    assert chosen.reason.startswith("asked for: repository, backup set, target;")
    assert chosen.proves_equality


def test_a_named_set_is_found_in_whichever_repository_has_it() -> None:
    """Without a repository, the set alone says where."""
    only = stanza(2, backup=[backup(1, 3), backup(2, 5)])

    chosen = choose(only, SOURCE, [], Wanted(backup_set=backup(2, 5)["label"]), 1)

    assert 2 == chosen.repo


@pytest.mark.parametrize(
    ("asked", "kind", "value"),
    [
        ("time:2026-11-20T05:00:00+02:00", "time", "2026-11-20 03:00:00.000000+00:00"),
        ("time:2026-11-20 03:00:00.25Z", "time", "2026-11-20 03:00:00.250000+00:00"),
        ("lsn:0/4e000000", "lsn", "0/4E000000"),
        ("xid:0801", "xid", "801"),
        ("name:before: release", "name", "before: release"),
    ],
)
def test_a_point_of_the_past_proves_that_it_can_be_reached_and_no_more(
    asked: str, kind: str, value: str
) -> None:
    """The choice says that content is not compared, and how the server takes the value."""
    chosen = choose(stanza(), SOURCE, [], Wanted(recovery_target=asked), 1)

    assert (kind, value) == (chosen.target_kind, chosen.target_value)
    assert not chosen.proves_equality
    assert "that it can be reached is proven, not what it holds" in chosen.reason


@pytest.mark.parametrize(
    ("asked", "said", "cure"),
    [
        ("time:2026-11-20T03:00:00", "has no offset", "2026-11-20T03:00:00+00:00"),
        ("time:2026-11-23T03:00:00+00:00", "in the future: the source's clock says 2026-11-22", "passed"),
        ("time:yesterday", "no time", "with its offset"),
        ("time:0001-01-01T00:00:00+23:59", "before the year 1 in UTC", "backups reach back to"),
        ("lsn:0/60000000", "the source has written up to 0/50000000", "passed"),
        ("lsn:xyz", "no LSN", "16/B374D848"),
        ("xid:2", "no transaction id", "from 3"),
        ("xid:" + "3" * 5000, "no transaction id", "from 3"),
        ("xid:\u0663\u0663", "no transaction id", "from 3"),
        ("name:" + "ä" * 32, "64 bytes", "63 bytes"),
        ("name:", "no recovery target", "auto, default"),
        ("default:now", "no recovery target", "auto, default"),
        ("immediate", "no recovery target", "auto, default"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_its_cure(asked: str, said: str, cure: str) -> None:
    """Naive, future and unreadable targets."""
    with pytest.raises(ConfigError) as caught:
        choose(stanza(), SOURCE, [], Wanted(recovery_target=asked), 1)

    assert said in caught.value.message
    assert cure in caught.value.hint


@pytest.mark.parametrize("asked", ["time:2026-11-01T00:00:00+00:00", "lsn:0/1000"])
def test_a_target_before_every_backup_is_refused_with_the_window(asked: str) -> None:
    """The message says which backup ends when, the hint how far back they reach."""
    with pytest.raises(ConfigError) as caught:
        choose(stanza(), SOURCE, [], Wanted(recovery_target=asked), 1)

    assert "is outside what can be restored" in caught.value.message
    assert "2026-11-13 03:00:00 UTC, LSN 0/47000100" in caught.value.hint


def test_a_set_newer_than_the_target_is_passed_over() -> None:
    """Of the sets, those that end before the target remain, and the others are told with their ends."""
    asked = Wanted(recovery_target="time:2026-11-17T00:00:00+00:00", backup_set="latest")

    chosen = choose(stanza(), SOURCE, [], asked, 1)

    assert backup(1, 6)["label"] == chosen.label
    assert ["", "", "it ends at 2026-11-19 03:00:00 UTC", "it ends at 2026-11-21 03:00:00 UTC"] == [
        each.refused.partition(",")[0] for each in chosen.candidates
    ]


def test_a_transaction_of_unknown_time_is_looked_for_from_the_oldest_set() -> None:
    """Only the oldest was surely before it."""
    chosen = choose(stanza(), SOURCE, [], Wanted(recovery_target="xid:1234"), 1)

    assert ("oldest", backup(1, 9)["label"]) == (chosen.set_kind, chosen.label)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"backup": [backup(1, 1, error=True)]}, "pages failed their checksum"),
        ({"backup": [backup(1, 1, archive={}, lsn=None)]}, "taken offline"),
        ({"backup": [backup(1, 1, database={"id": 2, "repo-key": 1})]}, "not in the repository's history"),
        ({"db": [{"id": 1, "repo-key": 1, "system-id": 5, "version": "15"}]}, "it is of system 5"),
        ({"archive": []}, "the archive ends at nothing"),
        (
            {"repo": [{"key": 1, "status": {"code": 99, "message": "other:\n [28] bad"}}]},
            "pgBackRest says of repository 1: other: [28] bad",
        ),
        ({"backup": []}, "there is none"),
    ],
)
def test_no_usable_backup_is_a_refusal_that_says_why(fault: dict[str, Any], said: str) -> None:
    """Nothing is restored from what cannot be, and each reason is named."""
    with pytest.raises(PreconditionFailed, match="has no backup that can be restored") as caught:
        choose(stanza(**fault), SOURCE, [], Wanted(), 1)

    assert said in caught.value.message


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"timeline": 2}, "the archive ends on timeline 1, the source is on 2"),
        ({"lsn": "1/0"}, "the archive ends at 00000001000000000000004F, 177 segments behind the target"),
        ({"system_id": 9}, f"it is of system {SYSTEM}, the source is 9"),
    ],
)
def test_an_archive_that_does_not_reach_the_source_is_told(source: dict[str, Any], said: str) -> None:
    """A mark that is made now could never arrive there."""
    with pytest.raises(PreconditionFailed) as caught:
        choose(stanza(), SOURCE.model_copy(update=source), [], Wanted(), 1)

    assert said in caught.value.message


def test_a_lagging_repository_leaves_the_turn_to_the_other() -> None:
    """The one that can be drilled is, though it was drilled last."""
    behind = stanza(2).model_copy(
        update={"archive": tuple(a for a in stanza(2).archive if a.database.repo_key == 2)}
    )
    tried = [Tried(repo=2, set_kind="latest", target_kind="lsn", at=NOW, proven=True)]

    chosen = choose(behind, SOURCE, tried, Wanted(), 1)

    assert 2 == chosen.repo
    assert {1} == {each.repo for each in chosen.candidates if each.refused}


@pytest.mark.parametrize(
    ("kinds", "policy", "oldest"),
    [
        (("full", "full", "full", "full"), {"continuous_fulls": 2}, 3),
        (("full", "diff", "diff", "incr"), {"continuous": {"backups": 1, "type": "diff"}}, 3),
        (("full", "diff", "full", "incr"), {"continuous": {"backups": 2, "type": "incr"}}, 3),
        (("full", "diff", "incr", "incr"), {"continuous": {"backups": 3, "type": "full"}}, 9),
    ],
)
def test_sets_after_which_wal_is_not_kept_are_not_brought_to_the_present(
    kinds: tuple[str, ...], policy: dict[str, Any], oldest: int
) -> None:
    """The WAL policy's own rule says from which backup on; older ones are passed over, and that is told."""
    days = (9, 6, 3, 1)
    told = [backup(1, ago, type=kind) for ago, kind in zip(days, kinds, strict=True)]
    source = SOURCE.model_copy(update={"policy": WalPolicy.model_validate(policy)})

    chosen = choose(stanza(backup=told), source, [], Wanted(backup_set="oldest"), 1)

    assert backup(1, oldest)["label"] == chosen.label
    assert days.index(oldest) == sum("wal.continuous" in each.refused for each in chosen.candidates)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Wanted(repo=7), "has no repository 7"),
        (Wanted(backup_set="20200101-000000F"), "has no backup set '20200101-000000F'"),
    ],
)
def test_what_is_not_there_is_named(asked: Wanted, said: str) -> None:
    """With what there is."""
    with pytest.raises(ConfigError, match=said) as caught:
        choose(stanza(), SOURCE, [], asked, 1)

    assert caught.value.hint


def test_an_odd_entry_of_the_log_is_counted_and_forbids_nothing() -> None:
    """Runs that ended before choosing, or were written by something unknown, are no drills."""
    memory = {"repo": 1, "label": "x", "set_kind": "latest", "target_kind": "lsn", "proven": True, "new": 1}
    row = {"run_id": "0d1e1e66-7a6d-4f0c-9c5b-1f7a1d6a2f11", "at": NOW, "verdict": "verified"}
    past = memory | {"target_value": "0/1"}

    found = read_rows(
        row | {"remembered": each} for each in (memory, past, None, {"repo": "x"}, memory | {"repo": 2})
    )

    assert (3, 2) == (len(found.drills), found.untold)
    assert [2, 1] == [each.repo for each in found.tried]
