from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import pytest
import yaml
from psycopg.rows import dict_row
from typer.testing import CliRunner

from deployments.cli import app
from pgvigil import audit, postgres
from pgvigil.audit import AuditLog, Event, Head, Kind, RunIdentity, step, sweep, verify
from pgvigil.errors import AuditUnreachable, ConfigError, DatabaseFailed, EvidenceError, VersionUnsupported
from pgvigil.fleet import AuditSettings, S3Settings
from pgvigil.reports import Report
from pgvigil.reportstore import open_report_store
from pgvigil.runs import conduct
from pgvigil.sql import query
from pgvigil.status import Claim, Expectation, State, assess
from tests.fixtures.tampering import REWRITE, cut, delete, edit, insert, rehash, reorder, replace

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.live.audit_cluster import AuditStore, Cluster

pytest_plugins = ["tests.live.audit_cluster"]

ROOT = Path(__file__).parents[2]
PASSWORD = "hunter2-planted"
NOTHING_LISTENS = "postgresql://writer@127.0.0.1:1/none"


def identity(**changes: Any) -> RunIdentity:
    facts = {"run_id": uuid4(), "flow": "nightly-backup", "subject": "demo", "actor": "tester"}
    return RunIdentity(**facts | changes)


def opened(store: AuditStore, **changes: Any) -> AuditLog:
    return AuditLog(store.settings.model_copy(update=changes), "test audit")


def rows(store: AuditStore, text: str = "SELECT * FROM pgvigil.audit ORDER BY seq") -> list[dict[str, Any]]:
    with psycopg.connect(store.admin, row_factory=dict_row) as connection:
        return connection.execute(text).fetchall()


def steps(store: AuditStore) -> list[str]:
    return [row["step"] for row in rows(store)]


def fill(store: AuditStore, count: int = 5) -> list[Head]:
    run = identity()
    with opened(store) as log:
        links = [log.append(run.event(Kind.INTENT, f"step {number}")) for number in range(1, count + 1)]
    return [link for link in links if link]


def tamper(store: AuditStore, *statements: str) -> None:
    with psycopg.connect(store.admin) as connection:
        connection.execute("ALTER TABLE pgvigil.audit_log DISABLE TRIGGER ALL")
        for statement in statements:
            connection.execute(statement)


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def spawn(settings: AuditSettings, code: str) -> subprocess.Popen[str]:
    head = (
        "import sys, uuid\n"
        "from pgvigil.audit import *\n"
        "from pgvigil.fleet import AuditSettings\n"
        "log = AuditLog(AuditSettings.model_validate_json(sys.argv[1]), 'test child')\n"
        "run = RunIdentity(run_id=uuid.uuid4(), flow='nightly-backup', subject='demo', actor='child')\n"
    )
    argv = [sys.executable, "-c", head + code, settings.model_dump_json()]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


# --- intent and outcome


def test_an_intent_is_committed_before_the_body_runs(store: AuditStore) -> None:
    """While the body works, every other session can read what it is about to do."""
    with opened(store) as log, step(log, identity(), "expire", {"fulls": 2}):
        seen = rows(store)

    assert [(r["kind"], r["step"], r["detail"]) for r in seen] == [("intent", "expire", {"fulls": 2})]


def test_an_outcome_carries_the_facts_of_the_body(store: AuditStore) -> None:
    """What the body found out stands in the outcome, which names its intent."""
    with opened(store) as log, step(log, identity(), "backup") as facts:
        facts["label"] = "20250101-000000F"

    intent, outcome = rows(store)
    expected = {"intent": str(intent["event_id"]), "result": "ok", "facts": {"label": "20250101-000000F"}}
    assert expected == outcome["detail"]


@pytest.mark.parametrize(
    ("error", "result", "code"),
    [
        (ConfigError("no such stanza"), "failed", "PGV-100"),
        (ValueError("odd"), "failed", "ValueError"),
        (KeyboardInterrupt("stop"), "cancelled", "KeyboardInterrupt"),
    ],
)
def test_a_failed_body_leaves_intent_and_outcome(
    store: AuditStore, error: BaseException, result: str, code: str
) -> None:
    """The body's error is on record with its code, and goes on to the caller."""
    with opened(store) as log, pytest.raises(type(error)), step(log, identity(), "backup"):
        raise error

    intent, outcome = rows(store)
    assert (intent["kind"], outcome["kind"]) == ("intent", "outcome")
    assert (result, code, str(error)) == tuple(
        outcome["detail"][key] for key in ("result", "code", "message")
    )


def test_an_outcome_that_cannot_be_kept_is_an_error_chained_to_that_of_the_body(store: AuditStore) -> None:
    """Lost evidence is told even when the body has failed by itself, and hides nothing."""

    def body(log: AuditLog) -> None:
        with step(log, identity(), "backup"):
            tamper(store, "REVOKE pgvigil_writer FROM writer")
            raise ValueError("the body's own")

    with opened(store) as log, pytest.raises(EvidenceError) as caught:
        body(log)

    assert "the body's own" in str(caught.value.__cause__)


def test_an_event_is_stored_with_what_jsonb_cannot_hold_made_harmless(store: AuditStore) -> None:
    """NUL, broken characters, NaN and foreign types never cost an event."""
    odd = {
        "nul": "a\0b",
        "half": "\udcff",
        "nan": float("nan"),
        "path": Path("/x"),
        "when": timedelta(1),
        "keys": {3: {1}},
    }
    with opened(store) as log:
        log.append(identity().event(Kind.INTENT, "odd", odd))

    assert set(rows(store)[0]["detail"]) == {"nul", "half", "nan", "path", "when", "keys"}
    assert verify(store.admin).ok


def test_a_planted_password_appears_neither_in_table_nor_spool(store: AuditStore) -> None:
    """Connection strings, assignments, options and secret keys lose their value wherever they stand."""
    detail = {
        "dsn": f"postgresql://me:{PASSWORD}@host/db",
        "argv": ["psql", f"host=x password={PASSWORD}", f"--repo1-cipher-pass={PASSWORD}"],
        "password": PASSWORD,
        "nested": [{"aws_secret_access_key": PASSWORD}],
        "error": f"PGPASSWORD='{PASSWORD} and more' was refused",
    }
    with opened(store, dsn=NOTHING_LISTENS) as log:
        log.append(identity().event(Kind.INTENT, "spooled", detail))
    spooled = "".join(file.read_text() for file in store.settings.spool.iterdir())
    with opened(store) as log, pytest.raises(ValueError, match="planted"), step(log, identity(), "x", detail):
        raise ValueError(detail["dsn"])

    stored = "".join(row["body"] for row in rows(store, "SELECT body FROM pgvigil.audit_log"))
    assert "spooled" in spooled
    assert len(rows(store)) == 3
    assert PASSWORD not in spooled + stored


# --- append-only


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE pgvigil.audit_log SET body = '{}'",
        "DELETE FROM pgvigil.audit_log",
        "TRUNCATE pgvigil.audit_log",
        "INSERT INTO pgvigil.audit_log VALUES (99, gen_random_uuid(), '{}', '', '')",
        "INSERT INTO pgvigil.audit (seq) VALUES (99)",
        "DELETE FROM pgvigil.presence",
        "DROP TABLE pgvigil.audit_log",
        "ALTER TABLE pgvigil.audit_log DISABLE TRIGGER ALL",
    ],
)
def test_a_writer_can_only_append(store: AuditStore, statement: str) -> None:
    """Grants leave the writer no other way in."""
    fill(store)

    with psycopg.connect(store.settings.dsn) as connection, pytest.raises(psycopg.Error):
        connection.execute(statement)

    assert verify(store.admin).length == 5


@pytest.mark.parametrize("role", ["pgvigil_owner", "admin"])
@pytest.mark.parametrize(
    "statement",
    ["UPDATE pgvigil.audit_log SET seq = seq", "DELETE FROM pgvigil.audit_log", "TRUNCATE pgvigil.audit_log"],
)
def test_the_trigger_refuses_changes_even_by_owner_and_superuser(
    store: AuditStore, role: str, statement: str
) -> None:
    """Who may do everything is stopped by the trigger, on a session that claims to be a replica as well."""
    fill(store)

    with psycopg.connect(store.admin) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(f"SET ROLE {role}")
        with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
            connection.execute(statement)


def test_a_stranger_cannot_even_read(store: AuditStore) -> None:
    """A role outside the group gets nothing."""
    with psycopg.connect(store.cluster.dsn(store.database, "stranger")) as connection:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM pgvigil.audit")
        connection.rollback()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT pgvigil.append('{}')")


def test_the_server_says_when_and_who(store: AuditStore) -> None:
    """Server time, place and database role cannot be chosen by the writer."""
    forged = {
        "seq": 77,
        "at": "1999-01-01",
        "db_user": "king",
        "event_id": str(uuid4()),
        "run_id": str(uuid4()),
    }
    with psycopg.connect(store.settings.dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pgvigil.append(%s)", (json.dumps(forged | {"kind": "intent", "detail": {}}),)
        )

    (row,) = rows(store)
    assert (row["seq"], row["db_user"]) == (1, "writer")
    assert datetime.now(UTC) - row["at"] < timedelta(minutes=5)


def test_a_malformed_event_is_refused(store: AuditStore) -> None:
    """What the view could not read never becomes a row."""
    good = {"event_id": str(uuid4()), "run_id": str(uuid4()), "kind": "intent", "detail": {}}
    bad = [{}, [], good | {"run_id": "x"}, good | {"pid": "x"}, good | {"detail": 1}, good | {"kind": None}]
    with psycopg.connect(store.settings.dsn, autocommit=True) as connection:
        for event in bad:
            with pytest.raises(psycopg.errors.DataError):
                connection.execute("SELECT pgvigil.append(%s)", (json.dumps(event),))

    assert rows(store) == []


# --- the chain


def test_an_untouched_chain_is_verified_with_its_heads(store: AuditStore) -> None:
    """A healthy log has no fault, and its head is the last link."""
    heads = fill(store)

    report = verify(store.admin, heads)

    assert (True, 5, heads[-1], 5, None) == (
        report.ok,
        report.length,
        report.head,
        report.anchors,
        report.fault,
    )


def test_an_empty_log_without_heads_has_no_fault(store: AuditStore) -> None:
    """Nothing was written, so nothing is missing; the length says so."""
    assert (verify(store.admin).ok, verify(store.admin).length) == (True, 0)


@pytest.mark.parametrize(
    ("statements", "seq", "what"),
    [
        (edit(3), 3, "body was altered"),
        (replace(3), 4, "row does not follow the one before it"),
        (delete(2), 2, "row is missing"),
        (delete(1), 1, "row is missing"),
        (insert(3), 3, "row does not follow the one before it"),
        (
            ("INSERT INTO pgvigil.audit_log VALUES (0, gen_random_uuid(), '{}', '', '')",),
            0,
            "row was inserted",
        ),
        (reorder(2), 2, "row does not follow the one before it"),
        (("UPDATE pgvigil.audit_log SET event_id = gen_random_uuid() WHERE seq = 4",), 4, "another row"),
        (("UPDATE pgvigil.audit_log SET body = '[]' WHERE seq = 5", *rehash(5)), 5, "unreadable"),
        (("UPDATE pgvigil.audit_log SET prev = '' WHERE seq = 1",), 1, "row does not follow"),
    ],
)
def test_a_change_within_the_chain_is_found_and_named(
    store: AuditStore, statements: tuple[str, ...], seq: int, what: str
) -> None:
    """Edit, delete, insert and reorder each break the chain at their own row."""
    fill(store)

    tamper(store, *statements)

    fault = verify(store.admin).fault
    assert fault is not None
    assert fault.seq == seq
    assert what in fault.what
    assert fault.expected != fault.actual


@pytest.mark.parametrize(
    ("statements", "seq", "what"),
    [
        (cut(4), 4, "rows at the end are missing"),
        (cut(1), 1, "rows at the end are missing"),
        (replace(5), 5, "not the one that was anchored"),
        ((REWRITE,), 5, "not the one that was anchored"),
    ],
)
def test_a_change_that_keeps_the_chain_whole_is_found_through_a_head(
    store: AuditStore, statements: tuple[str, ...], seq: int, what: str
) -> None:
    """A cut tail, a replaced end and a rewritten log are consistent in themselves; the anchor tells."""
    heads = fill(store)

    tamper(store, *statements)

    assert verify(store.admin).ok
    fault = verify(store.admin, [heads[-1]]).fault
    assert fault is not None
    assert seq == fault.seq
    assert what in fault.what


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (edit(3), "broken at 3: body was altered"),
        (delete(2), "broken at 2: row is missing"),
        (insert(3), "broken at 3: row does not follow the one before it"),
        (reorder(2), "broken at 2: row does not follow the one before it"),
        (cut(4), "broken at 4: rows at the end are missing"),
        (replace(5), "broken at 5: row is not the one that was anchored"),
    ],
    ids=["edit", "delete", "insert", "reorder", "truncate", "replace the last"],
)
def test_the_command_finds_and_names_each_tampering(
    store: AuditStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statements: tuple[str, ...], told: str
) -> None:
    """`pgvigil audit verify` ends with 0 on the log as it was written, and with 1 at the broken link."""
    write_fleet(store, tmp_path, monkeypatch)
    head = fill(store)[-1]
    open_report_store(store.settings.reports, S3Settings()).anchor(head.seq, head.hash)
    whole = CliRunner().invoke(app, ["audit", "verify"])
    tamper(store, *statements)

    broken = CliRunner().invoke(app, ["audit", "verify"])

    assert (0, 1) == (whole.exit_code, broken.exit_code), whole.output
    assert told in broken.output


def test_two_hundred_writers_make_one_gapless_chain(store: AuditStore) -> None:
    """Concurrent sessions take their turn, all at once, and none forks the chain."""
    start = threading.Barrier(200)

    def write(number: int) -> list[Head | None]:
        with opened(store) as log:
            first = log.append(identity().event(Kind.INTENT, f"{number}.0"))
            start.wait()  # every session is open now
            return [first, log.append(identity().event(Kind.INTENT, f"{number}.1"))]

    with ThreadPoolExecutor(200) as pool:
        links = [link for links in pool.map(write, range(200)) for link in links if link]

    report = verify(store.admin, links)
    assert (report.ok, report.length, report.anchors) == (True, 400, 400)
    assert {f"{number}.{turn}" for number in range(200) for turn in range(2)} == set(steps(store))


def test_one_log_may_be_shared_by_threads(store: AuditStore) -> None:
    """Tasks of one run append through the same session."""
    run = identity()
    with opened(store) as log, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: log.append(run.event(Kind.INTENT, str(number))), range(40)))

    assert (verify(store.admin).ok, len(set(steps(store)))) == (True, 40)


MANY_LARGE_EVENTS = """
SELECT pgvigil.append(jsonb_build_object(
    'event_id', gen_random_uuid(), 'run_id', gen_random_uuid(), 'kind', 'intent',
    'detail', jsonb_build_object('pad', repeat('x', 20000))
))
FROM generate_series(1, 4000)
"""


@pytest.mark.long
def test_verification_takes_constant_memory(store: AuditStore) -> None:
    """A log of 80 MB is read in far less."""
    with psycopg.connect(store.admin, autocommit=True) as connection:
        connection.execute(MANY_LARGE_EVENTS)
    code = (
        "import resource\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert not sweep(log)\n"
        "before = peak()\n"
        "report = verify(log.settings.dsn)\n"
        "print(report.ok, report.length, peak() - before)\n"
    )

    out, _ = spawn(store.settings, code).communicate()

    ok, length, kilobytes = out.split()
    assert (ok, length) == ("True", "4000")
    assert int(kilobytes) < 20_000


# --- store away


def test_events_wait_in_the_spool_and_arrive_in_order_once(store: AuditStore) -> None:
    """A store that dies within a run costs no event, no order and no duplicate."""
    run = identity()
    with opened(store) as log:
        log.append(run.event(Kind.INTENT, "1"))
        store.cluster.stop()
        try:
            away = [log.append(run.event(Kind.INTENT, str(number))) for number in range(2, 13)]
        finally:
            store.cluster.start()
    with opened(store) as log:
        link = log.append(run.event(Kind.INTENT, "13"))

    assert away == [None] * 11
    assert link is not None
    assert steps(store) == [str(number) for number in range(1, 14)]
    assert [row["spooled"] for row in rows(store)] == [False, *[True] * 11, False]
    assert verify(store.admin).ok


CUT = """
SELECT pg_terminate_backend(pid, 5000)
FROM pg_stat_activity
WHERE application_name = 'test audit' AND datname = current_database()
"""


def test_a_session_that_was_cut_is_opened_again(store: AuditStore) -> None:
    """A server that is up takes the event, whatever happened to the session before."""
    with opened(store) as log:
        log.append(identity().event(Kind.INTENT, "1"))
        rows(store, CUT)
        link = log.append(identity().event(Kind.INTENT, "2"))

    assert link is not None
    assert list(store.settings.spool.parent.glob("spool/*.json")) == []


def test_spooled_files_are_private(store: AuditStore) -> None:
    """Nobody else reads what waits on the disk."""
    with opened(store, dsn=NOTHING_LISTENS) as log:
        log.append(identity().event(Kind.INTENT, "1"))

    modes = {stat.S_IMODE(file.stat().st_mode) for file in store.settings.spool.iterdir()}
    assert (0o700, {0o600}) == (stat.S_IMODE(store.settings.spool.stat().st_mode), modes)


def test_a_run_without_store_and_spool_changes_nothing(store: AuditStore, tmp_path: Path) -> None:
    """Where no intent can be kept, the body never runs."""
    (tmp_path / "file").touch()
    ran = False

    with (
        opened(store, dsn=NOTHING_LISTENS, spool=tmp_path / "file" / "spool") as log,
        pytest.raises(EvidenceError, match="nothing was changed"),
        step(log, identity(), "expire"),
    ):
        ran = True

    assert not ran


@pytest.mark.parametrize("database_exists", [True, False])
def test_a_store_that_says_no_is_not_a_store_that_is_away(
    store: AuditStore, *, database_exists: bool
) -> None:
    """A missing grant or database is told with its cure instead of filling the spool for ever."""
    dsn = store.cluster.dsn(store.database if database_exists else "none", "stranger")

    with opened(store, dsn=dsn) as log, pytest.raises(EvidenceError) as caught:
        log.append(identity().event(Kind.INTENT, "1"))

    assert not isinstance(caught.value, AuditUnreachable)
    assert caught.value.hint
    assert not store.settings.spool.exists()


def test_a_store_that_was_never_installed_says_how(
    audit_cluster: Cluster, empty_database: str, tmp_path: Path
) -> None:
    """The cure of a missing schema is the command that makes it."""
    dsn = audit_cluster.dsn(empty_database)
    settings = AuditSettings(dsn=dsn, reports="file:///x", spool=tmp_path / "spool")

    with AuditLog(settings, "test") as log, pytest.raises(EvidenceError, match="pgvigil audit init"):
        log.append(identity().event(Kind.INTENT, "1"))


def test_an_unreachable_store_is_waited_for_once(store: AuditStore) -> None:
    """After one refusal the next events go to the spool without knocking again."""
    with opened(store, dsn=NOTHING_LISTENS) as log:
        log.append(identity().event(Kind.INTENT, "1"))
        with pytest.raises(AuditUnreachable, match="tried again within 30 seconds"):
            log.read(query("audit", "open_runs"), {"quiet": timedelta()})


def test_a_resent_event_keeps_its_link(store: AuditStore) -> None:
    """An event that was committed while its answer got lost is found, not doubled."""
    event = identity().event(Kind.INTENT, "1")
    with opened(store, dsn=NOTHING_LISTENS) as log:
        log.append(event)
    waiting = store.settings.spool.rename(store.settings.spool.with_name("aside"))
    with opened(store) as log:
        first = log.append(event)
        log.append(identity().event(Kind.INTENT, "2"))
        waiting.rename(store.settings.spool)
        again = log.append(event)

    assert first == again
    assert steps(store) == ["1", "2"]
    assert list(store.settings.spool.glob("*.json")) == []


def test_a_drainer_killed_in_mid_work_loses_and_doubles_nothing(store: AuditStore) -> None:
    """SIGKILL while one event is on its way: the next drainer finishes in order."""
    expected = [str(number) for number in range(60)]
    with opened(store, dsn=NOTHING_LISTENS) as log:
        for number in expected:
            log.append(identity().event(Kind.INTENT, number))
    with psycopg.connect(store.admin) as gate:
        child = spawn(store.settings, "log.drain()")
        until(lambda: len(rows(store)) >= 10)
        gate.execute("SELECT pg_advisory_xact_lock(hashtextextended('pgvigil.audit_log', 0))")
        kill(child)
        done = len(rows(store))

    assert 10 <= done < 60
    with opened(store) as log:
        log.drain()
    assert steps(store) == expected
    assert verify(store.admin).ok


@pytest.mark.parametrize("data", [b"{", b"\xff", b'{"event_id": 1}'])
def test_a_file_that_cannot_be_sent_is_named_and_kept(store: AuditStore, data: bytes) -> None:
    """Every event waits behind it, so the message says which file it is and what becomes of it."""
    store.settings.spool.mkdir()
    foreign = store.settings.spool / "000000000001-foreign.json"
    foreign.write_bytes(data)

    with opened(store) as log:
        with pytest.raises(EvidenceError, match=r"000000000001-foreign\.json.*keep it elsewhere"):
            log.append(identity().event(Kind.INTENT, "1"))
        foreign.rename(store.settings.spool.with_name("elsewhere"))
        log.append(identity().event(Kind.INTENT, "2"))

    assert steps(store) == ["2"]


def test_who_may_not_read_is_told_which_role_to_have(store: AuditStore) -> None:
    """The cure is that of the audit store, and not of an operated cluster."""
    stranger = store.cluster.dsn(store.database, "stranger")

    with (
        pytest.raises(EvidenceError, match="GRANT pgvigil_writer"),
        audit.reader(stranger, "test") as session,
    ):
        audit.list_runs(session)


def test_two_drainers_share_one_spool(store: AuditStore) -> None:
    """Drainers that meet neither double nor reorder."""
    expected = [str(number) for number in range(40)]
    with opened(store, dsn=NOTHING_LISTENS) as log:
        for number in expected:
            log.append(identity().event(Kind.INTENT, number))

    def drain(_: int) -> int:
        with opened(store) as log:
            return log.drain()

    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(drain, range(4)))

    assert sum(counts) == 40
    assert steps(store) == expected


def test_what_append_returned_from_survives_a_kill(store: AuditStore) -> None:
    """A process killed while it fills the spool leaves every acknowledged event whole, and no torn one."""
    away = store.settings.model_copy(update={"dsn": NOTHING_LISTENS})
    code = (
        "number = 0\n"
        "while True:\n"
        "    log.append(run.event(Kind.INTENT, str(number)))\n"
        "    print(number, flush=True)\n"
        "    number += 1\n"
    )
    child = spawn(away, code)
    assert child.stdout is not None
    acknowledged = [child.stdout.readline().strip() for _ in range(25)]
    child.send_signal(signal.SIGKILL)
    acknowledged += child.communicate()[0].split()

    (store.settings.spool / "incoming").write_text('{"event_id": "torn')
    with opened(store, dsn=NOTHING_LISTENS) as log:
        log.append(identity().event(Kind.INTENT, "after"))
    with opened(store) as log:
        log.drain()

    stored = steps(store)
    assert acknowledged == stored[: len(acknowledged)]
    assert len(stored) - len(acknowledged) in {1, 2}
    assert stored[-1] == "after"


# --- runs that died

START = "log.append(run.event(Kind.RUN_STARTED))\nlog.append(run.event(Kind.INTENT, 'backup'))\n"
HANG = "import signal\nprint(run.run_id, flush=True)\nsignal.pause()\n"


def started_elsewhere(run: RunIdentity) -> Event:
    return run.event(Kind.RUN_STARTED).model_copy(update={"host": "far", "pid": 7, "pid_space": "other boot"})


def test_a_live_run_is_never_swept_and_a_killed_one_is(store: AuditStore) -> None:
    """The process decides, and what it was doing when it died is named."""
    child = spawn(store.settings, START + HANG)
    assert child.stdout is not None
    run_id = UUID(child.stdout.readline().strip())
    with opened(store) as log:
        alive = sweep(log, timedelta())
        kill(child)
        dead = sweep(log)
        again = sweep(log)

    assert (alive, again) == ((), ())
    assert [(run_id, "backup", child.pid)] == [(run.run_id, run.open_step, run.pid) for run in dead]
    last = rows(store)[-1]
    assert ("run_lost", "backup", child.pid) == (last["kind"], last["step"], last["detail"]["pid"])
    with postgres.connect(store.settings.dsn, "test") as connection:
        assert audit.show_run(connection, run_id).run.state == "lost"


def test_a_process_that_took_over_the_pid_does_not_keep_a_run_alive(store: AuditStore) -> None:
    """A pid without its start time proves nothing."""
    run = identity()
    event = run.event(Kind.RUN_STARTED).model_copy(update={"pid": os.getpid(), "process_started": 1})
    with opened(store) as log:
        log.append(event)

        assert [run.run_id] == [lost.run_id for lost in sweep(log)]


def test_an_ended_run_is_not_swept(store: AuditStore) -> None:
    """A run that recorded its end is closed, though its process is gone."""
    child = spawn(store.settings, START + "log.append(run.event(Kind.RUN_ENDED))\n")
    child.communicate()

    with opened(store) as log:
        assert sweep(log, timedelta()) == ()


def test_an_end_that_waits_in_the_spool_is_drained_before_a_run_is_judged(store: AuditStore) -> None:
    """A run that ended while the store was away is no lost run."""
    code = (
        START
        + f"log.close()\nlog = AuditLog(log.settings.model_copy(update=dict(dsn='{NOTHING_LISTENS}')), 'x')\n"
    )
    child = spawn(store.settings, code + "log.append(run.event(Kind.RUN_ENDED))\n")
    child.communicate()

    with opened(store) as log:
        assert sweep(log) == ()
    assert [row["kind"] for row in rows(store)] == ["run_started", "intent", "run_ended"]


def test_a_run_elsewhere_is_judged_by_its_silence(store: AuditStore) -> None:
    """On another host a recent event or sign of life keeps a run; silence closes it."""
    run = identity()
    with opened(store) as log:
        log.append(started_elsewhere(run))

        assert sweep(log) == ()
        assert [run.run_id] == [lost.run_id for lost in sweep(log, timedelta())]


def test_a_sign_of_life_keeps_a_run_elsewhere_through_a_long_step(store: AuditStore) -> None:
    """A step that records nothing for hours is not silence while its process gives signs of life."""
    with opened(store) as far, opened(store) as log:
        far.append(started_elsewhere(identity()))
        until(
            lambda: rows(store, "SELECT clock_timestamp() - max(at) > '1s' AS old FROM pgvigil.audit")[0][
                "old"
            ]
        )
        far.beat()

        assert sweep(log, timedelta(seconds=1)) == ()


def test_a_run_given_up_that_ends_after_all_counts_as_ended(store: AuditStore) -> None:
    """A host that was cut off and comes back is believed."""
    run = identity()
    with opened(store) as log:
        log.append(started_elsewhere(run))
        sweep(log, timedelta())
        log.append(run.event(Kind.RUN_ENDED, detail={"verdict": "verified", "headline": "fine"}))

    with postgres.connect(store.settings.dsn, "test") as connection:
        (summary,) = audit.list_runs(connection)
    assert (run.run_id, "ended", "verified", "fine") == (
        summary.run_id,
        summary.state,
        summary.verdict,
        summary.headline,
    )


def test_a_lost_run_is_told_by_the_next_of_its_kind_whoever_closed_it(
    store: AuditStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, with the step that it was in; and not by another flow, or for another subject."""
    write_fleet(store, tmp_path, monkeypatch)
    died = identity(flow="nightly_backup")
    gone = {"pid": os.getpid(), "process_started": 1}
    with opened(store) as log:
        for event in (died.event(Kind.RUN_STARTED), died.event(Kind.INTENT, "backup")):
            log.append(event.model_copy(update=gone))
        assert len(sweep(log)) == 1

    def told(flow: str, subject: str) -> list[str]:
        report = conduct(Report, flow, subject, lambda _: None)
        return [finding.message for finding in report.findings if finding.code == "run-lost"]

    assert [] == told("verify_wal_archive", "demo") + told("nightly_backup", "demo/shop")
    (message,) = told("nightly_backup", "demo")
    assert f"({died.run_id}, " in message
    assert "its step 'backup' without outcome" in message
    assert [] == told("nightly_backup", "demo")


def write_fleet(store: AuditStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name this audit store, and one cluster that nobody asks."""
    fleet = {
        "audit": store.settings.model_dump(mode="json"),
        "clusters": {"demo": {"dsn": NOTHING_LISTENS, "pgbackrest": {"stanza": "demo"}}},
    }
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(fleet))
    monkeypatch.setenv("PGVIGIL_FLEET", str(tmp_path / "fleet.yaml"))


# --- reading


def ended(run: RunIdentity, verdict: str, **detail: Any) -> Event:
    proofs = [{"name": "backup repo1", "verdict": verdict}]
    return run.event(
        Kind.RUN_ENDED, detail={"verdict": verdict, "proofs": proofs, "headline": verdict} | detail
    )


def test_runs_are_listed_newest_first_and_by_subject(store: AuditStore) -> None:
    """The list is one line per run, open ones included."""
    first, second = identity(), identity(subject="other")
    with opened(store) as log:
        for run in (first, second):
            log.append(run.event(Kind.RUN_STARTED))

    with postgres.connect(store.settings.dsn, "test") as connection:
        assert [second.run_id, first.run_id] == [run.run_id for run in audit.list_runs(connection)]
        assert [(r.subject, r.state) for r in audit.list_runs(connection, "demo")] == [("demo", "open")]
        assert len(audit.list_runs(connection, limit=1)) == 1


def test_a_run_is_shown_with_all_its_events(store: AuditStore) -> None:
    """Nothing of a run is left out, and an unknown one is refused with the way to find it."""
    run = identity()
    with opened(store) as log:
        log.append(run.event(Kind.RUN_STARTED))
        with step(log, run, "backup"):
            pass
        log.append(ended(run, "refuted"))

    with postgres.connect(store.settings.dsn, "test") as connection:
        record = audit.show_run(connection, run.run_id)
        with pytest.raises(ConfigError, match="pgvigil audit list"):
            audit.show_run(connection, uuid4())
    assert [str(event.kind) for event in record.events] == ["run_started", "intent", "outcome", "run_ended"]
    assert (record.run.state, record.run.verdict) == ("ended", "refuted")
    assert {"writer"} == {event.db_user for event in record.events}


def test_status_reads_the_newest_claim_of_each_verdict(store: AuditStore) -> None:
    """Dry runs are no evidence, and a run that could not tell moves no clock."""
    verified, unable, dry = identity(), identity(), identity()
    with opened(store) as log:
        log.append(ended(identity(), "verified"))
        log.append(ended(verified, "verified"))
        log.append(ended(unable, "inconclusive"))
        log.append(ended(dry, "refuted", dry_run=True))

    with postgres.connect(store.settings.dsn, "test") as connection:
        claims = audit.last_claims(connection)
    wanted = Expectation(
        subject="demo", flow="nightly-backup", proof="backup repo1", max_age=timedelta(hours=1)
    )
    (status,) = assess(claims, [wanted], datetime.now(UTC))
    expected = {
        ("backup repo1", "verified", verified.run_id),
        ("backup repo1", "inconclusive", unable.run_id),
    }
    assert expected == {(c.proof, str(c.verdict), c.run_id) for c in claims if c.proof}
    assert (State.VERIFIED, "inconclusive", unable.run_id) == (
        status.state,
        status.last_verdict,
        status.run_id,
    )


def test_a_spooled_proof_is_as_old_as_it_was_when_it_was_made(store: AuditStore) -> None:
    """Draining late makes no proof fresher, and does not put it in front of a newer one."""
    old = ended(identity(), "verified").model_copy(
        update={"recorded_at": datetime.now(UTC) - timedelta(days=2)}
    )
    with opened(store, dsn=NOTHING_LISTENS) as log:
        log.append(old)
    waiting = store.settings.spool.rename(store.settings.spool.with_name("aside"))
    with opened(store) as log:
        log.append(ended(identity(), "refuted"))
        waiting.rename(store.settings.spool)
        log.drain()

    with postgres.connect(store.settings.dsn, "test") as connection:
        claims = audit.last_claims(connection)
    newest: Claim = max((claim for claim in claims if claim.proof), key=lambda claim: claim.at)
    assert newest.verdict == "refuted"
    assert old.recorded_at in {claim.at for claim in claims}


# --- installation


def test_installing_again_changes_nothing(store: AuditStore) -> None:
    """The command may run at every deployment."""
    heads = fill(store)

    assert audit.install(store.admin) == 1
    assert verify(store.admin, heads).ok


def test_who_may_not_install_is_told_to_name_an_admin(store: AuditStore) -> None:
    """The role that writes the log cannot make it, and no grant of the operated cluster would help."""
    with pytest.raises(DatabaseFailed, match="--dsn"):
        audit.install(store.settings.dsn)


def test_a_schema_of_a_newer_release_is_left_alone(store: AuditStore) -> None:
    """An old pgvigil does not guess what a newer one made."""
    tamper(store, "INSERT INTO pgvigil.schema_version VALUES (99)")

    with pytest.raises(VersionUnsupported, match="version 99"):
        audit.install(store.admin)


def test_an_admin_without_superuser_installs_and_keeps_no_hold(
    audit_cluster: Cluster, empty_database: str
) -> None:
    """CREATEROLE and CREATE on the database are enough, and the owner role is given back.

    From PostgreSQL 16 on, who made the roles has ADMIN OPTION on them, and nobody else may grant them.
    """
    name = f"dba_{uuid4().hex}"
    audit.install(audit_cluster.dsn(empty_database))  # so that the roles are there, whichever test is first
    with psycopg.connect(audit_cluster.dsn(empty_database), autocommit=True) as connection:
        connection.execute("DROP SCHEMA pgvigil CASCADE")
        connection.execute(f"CREATE ROLE {name} LOGIN CREATEROLE")
        connection.execute(f"GRANT CREATE ON DATABASE {empty_database} TO {name}")
        if connection.info.server_version >= 160_000:
            admin = "WITH ADMIN TRUE, INHERIT FALSE, SET FALSE"
            connection.execute(f"GRANT pgvigil_owner, pgvigil_writer TO {name} {admin}")

    assert audit.install(audit_cluster.dsn(empty_database, name)) == 1
    assert audit.install(audit_cluster.dsn(empty_database, name)) == 1

    with (
        psycopg.connect(audit_cluster.dsn(empty_database, name)) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute("SET ROLE pgvigil_owner")
