import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgvigil import postgres
from pgvigil.backup import survey
from pgvigil.backup.facts import ServerFacts, Survey
from pgvigil.doctor.lines import Look, look_at, verdict
from pgvigil.errors import (
    Busy,
    ConfigError,
    DatabaseFailed,
    PgvigilError,
    PreconditionFailed,
    VersionUnsupported,
)
from pgvigil.fleet import PgBackRestSettings
from pgvigil.pgbackrest import StanzaInfo
from pgvigil.pgbackrest.info import read_info
from pgvigil.policies.backup import BackupPolicy
from pgvigil.reports import Verdict

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ARCHIVES = "pgbackrest --stanza=demo archive-push %p"


def server(**changes: Any) -> ServerFacts:
    facts = {
        "version_num": 150018,
        "now": NOW,
        "in_recovery": False,
        "system_id": 7,
        "timeline": 1,
        "lsn": "0/5000000",
        "segment_size": 16 << 20,
        "data_checksums": True,
        "archive_mode": "on",
        "archive_command": ARCHIVES,
        "archived_count": 1,
        "last_archived_wal": "000000010000000000000001",
        "last_archived_time": NOW,
        "failed_count": 0,
        "last_failed_wal": None,
        "last_failed_time": None,
        "ready": 0,
        "size": 1,
        "clock_skew": timedelta(0),
    }
    return ServerFacts.model_validate({**facts, **changes})


def stanza(*backups: dict[str, Any], code: int = 0, message: str = "ok", system: int = 7) -> StanzaInfo:
    return StanzaInfo.model_validate(
        {
            "name": "demo",
            "backup": backups,
            "db": [{"id": 1, "repo-key": 1, "system-id": system, "version": "15"}],
            "repo": [{"key": 1, "status": {"code": code, "message": message}}],
            "status": {"code": code, "message": message},
        }
    )


def backup_of(size: int, delta: int) -> dict[str, Any]:
    return {
        "label": "20260101-000000F",
        "type": "full",
        "archive": {"start": "000000010000000000000001", "stop": "000000010000000000000001"},
        "timestamp": {"start": 1, "stop": 2},
        "database": {"id": 1, "repo-key": 1},
        "info": {"size": 1, "delta": 1, "repository": {"size": size, "delta": delta}},
    }


def raising(error: Exception) -> Any:
    def look(_: None) -> str:
        raise error

    return look


def test_each_kind_of_error_has_its_verdict() -> None:
    """A broken thing is refuted; what could not be seen, or is busy, is inconclusive; all have a cure."""
    looks = [
        Look[None]("fine", lambda _: "it is so"),
        Look[None]("broken", raising(PreconditionFailed("it is not so", hint="mend it"))),
        Look[None]("unseen", raising(DatabaseFailed("it does not say"))),
        Look[None]("busy", raising(Busy("somebody is there"))),
        Look[None]("away", raising(DatabaseFailed("it is away")), refutes=PgvigilError),
        Look[None]("defect", raising(KeyError("x"))),
    ]

    lines = {line.id: line for line in look_at("demo", None, looks)}

    assert {name: line.verdict.value for name, line in lines.items()} == {
        "fine": "verified",
        "broken": "refuted",
        "unseen": "inconclusive",
        "busy": "inconclusive",
        "away": "refuted",
        "defect": "inconclusive",
    }
    assert [name for name, line in lines.items() if not line.hint] == ["fine"]


def test_what_depends_on_a_fault_is_listed_and_not_looked_at() -> None:
    """A line whose need is not verified says so, and so does what needs that line in turn."""
    looks = [
        Look[None]("a", raising(PreconditionFailed("no"))),
        Look[None]("b", raising(AssertionError("looked at")), needs=("a",)),
        Look[None]("c", raising(AssertionError("looked at")), needs=("b",)),
    ]

    _, b, c = look_at("demo", None, looks)

    assert b.message == "not looked at, because a is not verified"
    assert c.message == "not looked at, because b is not verified"
    assert b.hint == "cure a first"
    assert {b.verdict, c.verdict} == {Verdict.INCONCLUSIVE}


def test_secrets_of_an_error_are_masked() -> None:
    """A password in a message does not reach the line."""
    looks = [Look[None]("a", raising(ConfigError("postgresql://u:s3cret@h/d", hint="password=s3cret")))]

    (line,) = look_at("demo", None, looks)

    assert "s3cret" not in line.message + line.hint


def test_the_verdict_of_lines_is_that_of_a_report() -> None:
    """One refuted line refutes; an optional line that could not be looked at decides nothing."""
    fine = Look[None]("fine", lambda _: "so")
    unseen = Look[None]("unseen", raising(DatabaseFailed("silent")))
    optional = Look[None]("unseen", raising(DatabaseFailed("silent")), required=False)
    broken = Look[None]("broken", raising(PreconditionFailed("no")), required=False)

    assert verdict(tuple(look_at("demo", None, [fine, optional]))) is Verdict.VERIFIED
    assert verdict(tuple(look_at("demo", None, [fine, unseen]))) is Verdict.INCONCLUSIVE
    assert verdict(tuple(look_at("demo", None, [fine, unseen, broken]))) is Verdict.REFUTED
    assert verdict(()) is Verdict.INCONCLUSIVE


@pytest.mark.parametrize(
    ("major", "version", "is_known"),
    [
        (15, (2, 45), True),
        (16, (2, 47), False),
        (16, (2, 48), True),
        (17, (2, 52), False),
        (17, (2, 53), True),
        (18, (2, 55), True),
    ],
)
def test_a_pgbackrest_that_does_not_know_the_server_is_refused(
    major: int, version: tuple[int, int], is_known: bool
) -> None:
    """Each major is refused below the first pgBackRest that supports it, which is named."""
    if is_known:
        survey.require_known_major(major, version)
        return
    with pytest.raises(VersionUnsupported, match=f"does not know PostgreSQL {major}, expected 2"):
        survey.require_known_major(major, version)


@pytest.mark.parametrize(
    "command",
    [
        "",
        "cp %p /archive/%f",
        "pgbackrest --stanza=demo2 archive-push %p",
        "pgbackrest archive-push %p",
        "wal-g --stanza=demo wal-push %p",
        "pgbackrest --stanza='demo archive-push %p",
    ],
)
def test_a_foreign_archive_command_is_refused(command: str) -> None:
    """Another program, another stanza whose name only begins the same, or a broken line is not ours."""
    with pytest.raises(PreconditionFailed, match="archive_command is not pgbackrest's for stanza 'demo'"):
        survey.require_archiving(server(archive_command=command), "demo")


@pytest.mark.parametrize(
    "command",
    [
        ARCHIVES,
        "/usr/bin/pgbackrest --config='/etc/a b.conf' --stanza=demo archive-push %p",
        'timeout 60 pgbackrest --stanza demo archive-push "%p"',
        "pgbackrest '--stanza=demo' archive-push %p",
    ],
)
def test_an_archive_command_of_pgbackrest_is_recognised(command: str) -> None:
    """Path, quotes, a wrapper and both ways to write an option do not matter."""
    survey.require_archiving(server(archive_command=command), "demo")


def test_an_archiver_whose_last_word_was_a_failure_is_refused() -> None:
    """A failure after the last success counts, one before it does not."""
    survey.require_archiver(server(last_failed_time=NOW - timedelta(seconds=1)))
    with pytest.raises(survey.ArchiverFailing):
        survey.require_archiver(server(last_failed_time=NOW + timedelta(seconds=1)))


def test_a_backlog_and_a_skewed_clock_are_findings() -> None:
    """Beyond the policy's bounds both are told, at them neither is."""
    policy = BackupPolicy(max_ready=2, clock_skew=timedelta(seconds=5))
    at = server(ready=2, clock_skew=timedelta(seconds=-5))
    beyond = server(ready=3, clock_skew=timedelta(seconds=-6))

    assert not [*survey.check_backlog(at, policy, "demo"), *survey.check_clock(at, policy, "demo")]
    assert "3 WAL files wait" in survey.check_backlog(beyond, policy, "demo")[0].message
    assert "-6.0 s off" in survey.check_clock(beyond, policy, "demo")[0].message


def test_a_stanza_of_another_cluster_is_refused() -> None:
    """A dsn and a stanza that name two clusters are told by both system ids."""
    with pytest.raises(PreconditionFailed, match="belongs to system 8, the server is system 7"):
        survey.require_same_system(stanza(system=8), server())


@pytest.mark.parametrize("code", [1, 3])
def test_a_missing_stanza_is_cured_by_stanza_create(code: int) -> None:
    """Both statuses of a stanza that is not there name the command that creates it."""
    with pytest.raises(PreconditionFailed) as caught:
        survey.require_created(stanza(code=code, message="missing stanza path"))

    assert "stanza-create" in caught.value.hint


def test_a_stanza_that_info_does_not_list_is_missing() -> None:
    """An empty list of stanzas is no stanza."""
    with pytest.raises(PreconditionFailed, match="does not exist in any repository"):
        survey.require_created(read_info(b"[]", "demo"))


def test_a_repository_fault_is_told_in_one_line() -> None:
    """Of a quoted HTTP exchange only pgBackRest's sentence and the store's code are kept."""
    exchange = (
        "[ProtocolError] HTTP request failed with 403 (Forbidden):\n*** Request Headers ***:\nhost: x\n"
        "*** Response Content ***:\n<Error><Code>AccessDenied</Code></Error>"
    )
    with pytest.raises(PreconditionFailed) as caught:
        survey.require_repositories(stanza(code=99, message=exchange))

    assert caught.value.message.endswith(
        "[ProtocolError] HTTP request failed with 403 (Forbidden), AccessDenied"
    )
    assert "repo1-s3-key" in caught.value.hint


def posix_repository(tmp_path: Path) -> PgBackRestSettings:
    config = tmp_path / "pgbackrest.conf"
    config.write_text(f"[global]\nrepo1-path={tmp_path}\n[demo]\npg1-path=/nowhere\n")
    return PgBackRestSettings(stanza="demo", config=config)


@pytest.mark.parametrize(("size", "delta", "code"), [(1, 1, ""), (1 << 60, 1, "space-low")])
def test_a_posix_repository_is_measured(tmp_path: Path, size: int, delta: int, code: str) -> None:
    """A repository with room gives nothing; one in which a full no longer fits is told."""
    world = Survey(server=server(), stanza=stanza(backup_of(size, delta)), version=(2, 45))

    findings = survey.check_space(posix_repository(tmp_path), world)

    assert [finding.code for finding in findings] == ([code] if code else [])


def test_a_posix_repository_without_space_is_refused(tmp_path: Path) -> None:
    """A repository in which not even the last backup's size fits is refused."""
    world = Survey(server=server(), stanza=stanza(backup_of(1 << 60, 1 << 60)), version=(2, 45))

    with pytest.raises(PreconditionFailed, match=f"repository 1 at {tmp_path} has .* free"):
        survey.check_space(posix_repository(tmp_path), world)


@pytest.mark.parametrize(
    ("command", "text"),
    [(("ssh", "h", "pgbackrest"), None), (("pgbackrest",), "no section"), (("pgbackrest",), None)],
)
def test_a_configuration_out_of_sight_is_told(
    tmp_path: Path, command: tuple[str, ...], text: str | None
) -> None:
    """Another host's, a broken or a missing configuration is a ConfigError; pre-flight goes on without."""
    config = tmp_path / "pgbackrest.conf"
    if text:
        config.write_text(text)
    settings = PgBackRestSettings(stanza="demo", config=config, command=command)

    with pytest.raises(ConfigError):
        survey.read_options(settings)
    assert not survey.check_space(settings, Survey(server=server(), stanza=stanza(), version=(2, 45)))


@pytest.mark.parametrize("main", ["pgbackrest/pgbackrest.conf", "pgbackrest.conf", ""])
def test_the_hosts_configuration_may_lie_in_several_files(tmp_path: Path, main: str) -> None:
    """As pgBackRest reads them: the first of two places, and whatever is beside it in conf.d."""
    parts = {"pgbackrest/conf.d/repo.conf": "[global]\nrepo1-type=s3\n"}
    parts |= {main: "[demo]\npg1-user=me\n"} if main else {}
    for name, text in parts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    options = survey.read_options(PgBackRestSettings(stanza="demo"), tmp_path)

    assert {"repo1-type": "s3"} | ({"pg1-user": "me"} if main else {}) == options


def test_only_directories_of_this_host_are_posix_repositories(tmp_path: Path) -> None:
    """Object stores and repositories behind a repository host are not measured here."""
    options = {
        "repo1-type": "s3",
        "repo1-path": str(tmp_path),
        "repo2-path": str(tmp_path),
        "repo2-host": "far",
        "repo3-path": str(tmp_path),
    }

    assert survey.posix_repositories(options) == {3: tmp_path}


AT = 'connection failed: connection to server at "db1" (10.0.0.1), port 5432 failed: '


@pytest.mark.parametrize(
    ("text", "is_away", "cure"),
    [
        ("Connection refused", True, "server is up"),
        ("SSL SYSCALL error: EOF detected", True, "server is up"),
        ("FATAL:  the database system is starting up", True, "wait until"),
        ("FATAL:  the database system is not yet accepting connections", True, "wait until"),
        ("FATAL:  sorry, too many clients already", True, "max_connections"),
        ('FATAL:  too many connections for role "pgvigil"', True, "max_connections"),
        ("FATAL:  remaining connection slots are reserved for superusers", True, "max_connections"),
        ("fe_sendauth: no password supplied", False, "PGPASSFILE"),
        ('FATAL:  password authentication failed for user "pgvigil"', False, "PGPASSFILE"),
        ("server does not support SSL, but SSL was required", False, "sslmode"),
        ("SSL error: certificate verify failed", False, "sslrootcert"),
        ('root certificate file "/x" does not exist', False, "sslrootcert"),
        ('definition of service "nope" not found', False, "PGSERVICEFILE"),
        (
            'FATAL:  no pg_hba.conf entry for host "::1", user "u", database "d", SSL off',
            False,
            "pg_hba.conf",
        ),
        ('FATAL:  role "u" does not exist', False, "role name"),
        ('FATAL:  database "in recovery mode" does not exist', False, "check the database"),
        ('FATAL:  permission denied for database "d"', False, "GRANT CONNECT"),
    ],
)
def test_a_server_that_is_away_is_told_from_one_that_refuses(text: str, is_away: bool, cure: str) -> None:
    """Only what passes by itself is called unreachable, and every text of libpq has its own cure."""
    with pytest.raises(DatabaseFailed) as caught, postgres.translated("host=db1"):
        raise psycopg.OperationalError(AT + text)

    assert caught.value.transient is is_away
    assert cure in caught.value.hint


@pytest.mark.parametrize(
    "dsn", ["host=db1 geheim", "postgresql://u:geheim%zz@db1/d", "postgresql://u@db1/d?geheim", "port=seven"]
)
def test_a_dsn_that_cannot_be_read_is_told_without_its_words(dsn: str) -> None:
    """What libpq quotes of a broken dsn may be a password; it is never tried again."""
    with pytest.raises(DatabaseFailed) as caught, postgres.connect(dsn, "test_doctor"):
        pass

    assert not caught.value.transient
    assert "correct the dsn" in caught.value.hint
    assert "geheim" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_repository_of_another_user_is_refused(tmp_path: Path) -> None:
    """What root writes there, the server's archive-push could not change: archiving would stop."""
    repository = tmp_path / "repository"
    repository.mkdir()
    conf = tmp_path / "pgbackrest.conf"
    conf.write_text(f"[global]\nrepo1-path={repository}\n", encoding="ascii")
    settings = PgBackRestSettings(stanza="demo", config=conf)
    survey.require_owner(settings)

    shutil.chown(repository, "nobody")

    with pytest.raises(PreconditionFailed, match="run as 'root', but repository 1") as refusal:
        survey.require_owner(settings)
    assert "pgbackrest.user: nobody" in refusal.value.hint
    survey.require_owner(settings.model_copy(update={"user": "nobody"}))
