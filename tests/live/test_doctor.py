import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from pgvigil.backup import survey
from pgvigil.doctor import Diagnosis, examine, verdict
from pgvigil.errors import ConfigError
from pgvigil.fleet import Fleet, load_fleet
from pgvigil.objectstore import connect as open_store
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from pgvigil.sandbox import Sandbox
from tests.fixtures.backup import orphan

pytestmark = pytest.mark.stanza  # each claim is about one line, while all others are verified
TEST = "test_doctor"
LINES = 31


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def rows(dsn: str, query: str) -> list[dict[str, Any]]:
    with connect(dsn, TEST) as session:
        cursor = session.execute(query.encode())
        return cursor.fetchall() if cursor.description else []


def archiver(sandbox: Sandbox) -> dict[str, Any]:
    return rows(sandbox.primary_admin_dsn, "SELECT * FROM pg_stat_archiver")[0]


def switch_wal(sandbox: Sandbox) -> None:
    rows(sandbox.primary_admin_dsn, "SELECT pg_switch_wal() FROM pg_create_restore_point('doctor')")


@pytest.fixture
def fleet(in_sandbox: Sandbox) -> Fleet:
    """The shared sandbox's fleet file; its archiver has shown at least once that it works."""
    if archiver(in_sandbox)["last_archived_wal"] is None:
        switch_wal(in_sandbox)
        until(lambda: archiver(in_sandbox)["last_archived_wal"])
    return load_fleet()


def with_audit(fleet: Fleet, **changes: Any) -> Fleet:
    return fleet.model_copy(update={"audit": fleet.audit.model_copy(update=changes)})


def with_cluster(fleet: Fleet, **changes: Any) -> Fleet:
    cluster = fleet.clusters["demo"].model_copy(update=changes)
    return fleet.model_copy(update={"clusters": {"demo": cluster}})


def with_pgbackrest(fleet: Fleet, **changes: Any) -> Fleet:
    return with_cluster(fleet, pgbackrest=fleet.clusters["demo"].pgbackrest.model_copy(update=changes))


def with_configuration(fleet: Fleet, sandbox: Sandbox, place: Path, **options: str) -> Fleet:
    """Let pgBackRest read a copy of its configuration with other global options."""
    text = sandbox.pgbackrest_conf.read_text(encoding="utf-8")
    lines = [f"{name.replace('_', '-')}={value}" for name, value in options.items()]
    kept = [
        line
        for line in text.splitlines()
        if line.partition("=")[0] not in {x.partition("=")[0] for x in lines}
    ]
    file = place / "pgbackrest.conf"
    file.write_text(
        "\n".join(["[global]", *lines, *kept[kept.index("[global]") + 1 :], ""]), encoding="utf-8"
    )
    sandbox.give(file).chmod(0o600)
    return with_pgbackrest(fleet, config=file)


def refuted(lines: tuple[Diagnosis, ...]) -> list[Diagnosis]:
    return [line for line in lines if line.verdict is Verdict.REFUTED]


def the_fault(fleet: Fleet) -> Diagnosis:
    """Examine, and return the one line that is refuted; whatever is unknown must wait for it."""
    lines = examine(fleet, "demo")
    (fault,) = refuted(lines)
    unknown = [line for line in lines if line.verdict is Verdict.INCONCLUSIVE and line.required]
    assert all("not looked at" in line.message and line.hint for line in unknown)
    assert len(lines) == len(ids(lines)) == LINES
    assert verdict(lines) is Verdict.REFUTED
    assert fault.hint
    return fault


def ids(lines: tuple[Diagnosis, ...]) -> set[str]:
    return {line.id for line in lines}


# --- health -------------------------------------------------------------------------------------------


def everything(sandbox: Sandbox, fleet: Fleet) -> dict[str, Any]:
    """Read all that the doctor could have changed: objects, roles, catalogs, settings, log, files."""
    store = open_store(fleet.s3)
    buckets = ("reports", "archive", "pgbackrest")
    catalogs = [
        "SELECT oid::text, relname, relnamespace::text, relacl::text FROM pg_class ORDER BY 1",
        "SELECT oid::text, proname, proacl::text FROM pg_proc ORDER BY 1",
        "SELECT rolname, rolconfig::text FROM pg_roles ORDER BY 1",
        "SELECT roleid::text, member::text FROM pg_auth_members ORDER BY 1, 2",
        "SELECT name, setting FROM pg_settings WHERE context <> 'internal' ORDER BY 1",
        "SELECT datname, datacl::text FROM pg_database ORDER BY 1",
        "SELECT slot_name FROM pg_replication_slots",
    ]
    servers = (sandbox.primary_admin_dsn, sandbox.ops_admin_dsn)
    return {
        "objects": [(o.uri, o.etag) for b in buckets for o in store.list(f"s3://{b}/")],
        "uploads": [u.uri for b in buckets for u in store.list_uploads(f"s3://{b}/")],
        "catalogs": [rows(dsn, query) for dsn in servers for query in catalogs],
        "wal": rows(sandbox.primary_admin_dsn, "SELECT pg_walfile_name(pg_current_wal_lsn())"),
        "audit": rows(sandbox.ops_admin_dsn, "SELECT seq FROM pgvigil.audit_log ORDER BY 1"),
        "files": sorted(str(file) for file in sandbox.directory.rglob("*") if is_ours(file)),
    }


def is_ours(file: Path) -> bool:
    """Tell whether a file of the sandbox is neither a server's nor a log."""
    return not {"primary", "ops", "log"} & set(file.parts)


def test_a_healthy_sandbox_is_verified_and_left_as_it_was(in_sandbox: Sandbox, fleet: Fleet) -> None:
    """Every line is verified, without cure, and neither objects nor catalogs nor files change."""
    examine(fleet)  # the first use of a report bucket or a pgBackRest log leaves no trace in the comparison
    before = everything(in_sandbox, fleet)

    lines = examine(fleet)

    assert everything(in_sandbox, fleet) == before
    assert [(line.id, line.message) for line in lines if line.verdict is not Verdict.VERIFIED] == []
    assert {line.hint for line in lines} == {""}
    assert verdict(lines) is Verdict.VERIFIED
    assert [line.subject for line in lines] == ["audit"] * 4 + ["reports"] + ["demo"] * 22 + [
        "demo/shop cents"
    ] * 4


def test_a_database_is_examined_with_its_cluster(fleet: Fleet) -> None:
    """The subject of a partition or backfill flow is a subject of the doctor."""
    assert ids(examine(fleet, "demo/shop")) == ids(examine(fleet, "demo"))


# --- wrong entries ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "cure"), [("dmo", "'demo'"), ("demo/shpo", "'shop'"), ("demo/", "cluster/database|demo/shop")]
)
def test_an_unknown_subject_is_one_line_with_the_nearest_name(fleet: Fleet, subject: str, cure: str) -> None:
    """A mistyped subject could not be examined, which is neither good nor broken."""
    (line,) = examine(fleet, subject)

    assert (line.id, line.verdict) == ("fleet.subject", Verdict.INCONCLUSIVE)
    assert any(word in line.hint for word in cure.split("|"))


def test_no_fleet_file_is_told_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a fleet file there is nothing to examine, and the error says how to get one."""
    monkeypatch.setenv("PGVIGIL_FLEET", str(tmp_path / "none.yaml"))

    with pytest.raises(ConfigError, match="PGVIGIL_FLEET"):
        load_fleet()


def test_a_server_that_is_down_is_named(fleet: Fleet) -> None:
    """Nobody listens: one refuted line, and all that needs the server waits for it."""
    fault = the_fault(with_cluster(fleet, dsn="postgresql://pgvigil@127.0.0.1:1/postgres"))

    assert fault.id == "server.reachable"
    assert "127.0.0.1:1/postgres" in fault.message
    assert "host and port" in fault.hint


def test_a_server_that_never_answers_is_given_up(fleet: Fleet) -> None:
    """A port that takes connections and stays silent is no server, and costs seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        began = time.monotonic()
        fault = the_fault(with_cluster(fleet, dsn=f"postgresql://pgvigil@127.0.0.1:{port}/postgres"))

    assert fault.id == "server.reachable"
    assert "timeout" in fault.message
    assert time.monotonic() - began < 30


def test_a_wrong_password_is_cured_in_the_password_file(
    in_sandbox: Sandbox, fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password that the server refuses is no server that is away."""
    own, others = f"127.0.0.1:{in_sandbox.primary_port}:*:pgvigil:", in_sandbox.passfile.read_text()
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"{own}wrong\n{others}")
    passfile.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(passfile))

    fault = the_fault(fleet)

    assert fault.id == "server.reachable"
    assert "password authentication failed" in fault.message
    assert "PGPASSFILE" in fault.hint


def test_a_database_that_the_server_lacks_is_named(fleet: Fleet) -> None:
    """A database of the fleet file must be in the server."""
    cluster = fleet.clusters["demo"]
    plain = cluster.databases["shop"].model_copy(update={"backfills": {}})
    fault = the_fault(with_cluster(fleet, databases={**cluster.databases, "shpo": plain}))

    assert (fault.id, fault.message) == ("server.databases", "database 'shpo' does not exist")


def test_a_missing_program_is_named(fleet: Fleet) -> None:
    """A pgBackRest that is not on this host refutes its line and keeps the repository unseen."""
    fault = the_fault(with_pgbackrest(fleet, command=("/nowhere/pgbackrest",)))

    assert fault.id == "pgbackrest.answers"
    assert "pgbackrest" in fault.message
    assert "install" in fault.hint


def test_a_command_prefix_that_does_not_answer_is_named(fleet: Fleet) -> None:
    """A prefix that fails as ssh does is told from a pgBackRest that fails."""
    fault = the_fault(with_pgbackrest(fleet, command=("sh", "-c", "exit 255", "pgbackrest")))

    assert fault.id == "pgbackrest.answers"
    assert "command prefix failed" in fault.message
    assert "run the prefix by hand" in fault.hint


def test_what_lies_behind_a_prefix_is_told_and_decides_nothing(fleet: Fleet) -> None:
    """Another host's configuration and disks cannot be seen from here, and need not be."""
    lines = examine(with_pgbackrest(fleet, command=("env", "pgbackrest")), "demo")

    unseen = [line for line in lines if line.verdict is not Verdict.VERIFIED]
    assert [line.id for line in unseen] == ["pgbackrest.role", "repository.owner", "repository.space"]
    assert all("behind 'env'" in line.message and line.hint for line in unseen)
    assert verdict(lines) is Verdict.VERIFIED


@pytest.mark.parametrize(
    ("told", "line", "fact"),
    [
        ("2.44", "pgbackrest.answers", "too old, expected 2.45"),
        ("2.60", "pgbackrest.tested", "expected 2.45 to 2.59"),
    ],
)
def test_a_pgbackrest_out_of_range_is_named(
    fleet: Fleet, workplace: Path, told: str, line: str, fact: str
) -> None:
    """Too old is not used at all; newer than tested is told and everything else looked at."""
    program = workplace / "pgbackrest"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = version ] && exec echo pgBackRest {told}\nexec pgbackrest "$@"\n'
    )
    program.chmod(0o755)

    fault = the_fault(with_pgbackrest(fleet, command=(str(program),)))

    assert (fault.id, fact in fault.message) == (line, True)


def test_a_missing_stanza_is_named(in_sandbox: Sandbox, fleet: Fleet, workplace: Path) -> None:
    """A repository without the stanza is cured by stanza-create."""
    fault = the_fault(with_configuration(fleet, in_sandbox, workplace, repo1_path="/elsewhere"))

    assert fault.id == "stanza.created"
    assert "stanza 'demo' does not exist in repository 1" in fault.message
    assert "stanza-create" in fault.hint


def test_a_missing_bucket_is_named(in_sandbox: Sandbox, fleet: Fleet, workplace: Path) -> None:
    """A bucket of pgBackRest that is not there is told by the store's own code."""
    fault = the_fault(with_configuration(fleet, in_sandbox, workplace, repo1_s3_bucket="gone"))

    assert fault.id == "repository.reachable"
    assert fault.message.endswith("NoSuchBucket")
    assert "repo1-s3-bucket" in fault.hint


def test_a_store_that_is_down_is_named(in_sandbox: Sandbox, fleet: Fleet, workplace: Path) -> None:
    """A repository whose store does not answer is a refuted line, and the stanza in it not looked at."""
    fault = the_fault(
        with_configuration(fleet, in_sandbox, workplace, repo1_storage_port="1", io_timeout="1")
    )

    assert fault.id == "repository.reachable"
    assert "unable to connect" in fault.message
    assert "repo1-s3-endpoint" in fault.hint


def test_a_skewed_clock_is_told(fleet: Fleet) -> None:
    """Clocks further apart than the policy says refute, here with a policy that no two clocks meet."""
    policy = fleet.clusters["demo"].backup.model_copy(update={"clock_skew": timedelta(0)})

    fault = the_fault(with_cluster(fleet, backup=policy))

    assert fault.id == "server.clock"
    assert "synchronise" in fault.hint


# --- evidence -----------------------------------------------------------------------------------------


def test_an_audit_store_that_is_down_is_named(fleet: Fleet) -> None:
    """Without its store the log's schema and rights are not looked at, the rest is."""
    fault = the_fault(with_audit(fleet, dsn="postgresql://pgvigil@127.0.0.1:1/ops"))

    assert (fault.subject, fault.id) == ("audit", "audit.reachable")


def test_an_audit_store_without_its_schema_is_cured_by_init(in_sandbox: Sandbox, fleet: Fleet) -> None:
    """A database without the log is cured by installing it."""
    fault = the_fault(with_audit(fleet, dsn=in_sandbox.dsn()))

    assert (fault.id, fault.hint) == ("audit.installed", "run 'pgvigil audit init'")


@pytest.mark.parametrize(
    ("harm", "repair", "cure"),
    [
        (
            "REVOKE pgvigil_writer FROM pgvigil",
            "GRANT pgvigil_writer TO pgvigil",
            'GRANT pgvigil_writer TO "pgvigil"',
        ),
        (
            "ALTER ROLE pgvigil SET default_transaction_read_only = on",
            "ALTER ROLE pgvigil RESET default_transaction_read_only",
            "read-write",
        ),
    ],
)
def test_an_audit_store_that_takes_no_event_is_named(
    in_sandbox: Sandbox, fleet: Fleet, harm: str, repair: str, cure: str
) -> None:
    """A role that may not append, and a store that takes no writes, are told apart."""
    rows(in_sandbox.ops_admin_dsn, harm)
    try:
        fault = the_fault(fleet)
    finally:
        rows(in_sandbox.ops_admin_dsn, repair)

    assert fault.id == "audit.writable"
    assert cure in fault.hint


def test_a_spool_that_cannot_be_is_named(fleet: Fleet, tmp_path: Path) -> None:
    """A file where the spool's directory must be leaves no place for events."""
    (tmp_path / "file").touch()

    fault = the_fault(with_audit(fleet, spool=tmp_path / "file" / "spool"))

    assert fault.id == "audit.spool"
    assert "is a file, expected a directory" in fault.message
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_missing_report_bucket_is_named(fleet: Fleet) -> None:
    """Reports need their bucket."""
    fault = the_fault(with_audit(fleet, reports="s3://gone/reports"))

    assert (fault.subject, fault.id) == ("reports", "reports.writable")
    assert "NoSuchBucket" in fault.message
    assert "create the bucket" in fault.hint


def test_a_report_store_that_is_down_is_named(fleet: Fleet) -> None:
    """Nobody at the endpoint is told with the key of the fleet file that names it."""
    away = fleet.s3.model_copy(update={"endpoint_url": "https://127.0.0.1:1"})

    fault = the_fault(fleet.model_copy(update={"s3": away}))

    assert fault.id == "reports.writable"
    assert "s3.endpoint_url" in fault.hint


def test_missing_credentials_are_named(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without S3 credentials the line says where boto3 looks for them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    fault = the_fault(fleet)

    assert fault.id == "reports.writable"
    assert "AWS_ACCESS_KEY_ID" in fault.hint


def test_a_new_report_directory_is_looked_at_and_not_made(fleet: Fleet, tmp_path: Path) -> None:
    """A directory of reports that could be created stays uncreated; one that could not is told."""
    assert not refuted(examine(with_audit(fleet, reports=f"file://{tmp_path}/reports"), "demo"))
    assert not list(tmp_path.iterdir())

    fault = the_fault(with_audit(fleet, reports=f"file://{tmp_path}/none/reports"))

    assert fault.id == "reports.writable"
    assert f"'{tmp_path}/none' does not exist" in fault.message


# --- the server ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "line", "revoked"),
    [
        ("pgvigil", "server.role", "pg_monitor"),
        ("pgvigil", "server.role", "EXECUTE ON FUNCTION pg_switch_wal()"),
        ("pgvigil", "server.role", "EXECUTE ON FUNCTION pg_create_restore_point(text)"),
        ("pgbackrest", "pgbackrest.role", "pg_read_all_settings"),
        ("pgbackrest", "pgbackrest.role", "EXECUTE ON FUNCTION pg_backup_start(text,boolean)"),
    ],
)
def test_a_missing_privilege_is_named_by_the_grant_that_gives_it(
    in_sandbox: Sandbox, fleet: Fleet, role: str, line: str, revoked: str
) -> None:
    """Each right of infra/roles.sql that is revoked is found, and the cure in the line cures."""
    rows(in_sandbox.primary_admin_dsn, f"REVOKE {revoked} FROM {role}")
    try:
        (fault,) = refuted(examine(fleet, "demo"))
        assert (fault.id, f"GRANT {revoked} TO {role}" in fault.hint) == (line, True)
        rows(in_sandbox.primary_admin_dsn, fault.hint.partition(": ")[2])
        assert not refuted(examine(fleet, "demo"))
    finally:
        rows(in_sandbox.primary_admin_dsn, f"GRANT {revoked} TO {role}")


def with_drill(fleet: Fleet, **changes: Any) -> Fleet:
    return with_cluster(fleet, drill=fleet.clusters["demo"].drill.model_copy(update=changes))


def test_a_scratch_directory_that_no_drill_may_use_is_named(in_sandbox: Sandbox, fleet: Fleet) -> None:
    """Inside the source's own files is no place for a copy; nothing is made there."""
    (row,) = rows(in_sandbox.primary_admin_dsn, "SHOW data_directory")
    place = Path(row["data_directory"], "drill")

    fault = the_fault(with_drill(fleet, scratch=place))

    assert ("drill.scratch", True) == (fault.id, str(place) in fault.message)
    assert not place.exists()


def test_missing_programs_of_a_drill_are_named(fleet: Fleet, tmp_path: Path) -> None:
    """A drill needs the server of the source's major on the host where pgvigil runs."""
    fault = the_fault(with_drill(fleet, postgres_bin=tmp_path))

    assert ("drill.programs", True) == (fault.id, str(tmp_path) in fault.message)


def test_a_database_that_cannot_be_fenced_is_named(in_sandbox: Sandbox, fleet: Fleet) -> None:
    """Without the function of infra/roles.sql its tables cannot be marked: the drill would tell it late."""
    shop = in_sandbox.admin_dsn(in_sandbox.primary_port, "shop")
    rows(shop, "REVOKE EXECUTE ON FUNCTION pgvigil_drill.fence(oid[]) FROM pgvigil")
    try:
        fault = the_fault(fleet)
    finally:
        rows(shop, "GRANT EXECUTE ON FUNCTION pgvigil_drill.fence(oid[]) TO pgvigil")

    assert ("drill.marks", True) == (fault.id, "psql -d 'shop' -f infra/roles.sql" in fault.hint)


@contextmanager
def setting(sandbox: Sandbox, name: str, value: str) -> Iterator[None]:
    """Change a setting of the server for the block."""

    def wait_for(wanted: str) -> None:
        rows(sandbox.primary_admin_dsn, "SELECT pg_reload_conf()")
        until(lambda: rows(sandbox.primary_admin_dsn, f"SHOW {name}")[0][name] == wanted)

    before = rows(sandbox.primary_admin_dsn, f"SHOW {name}")[0][name]
    rows(sandbox.primary_admin_dsn, f"ALTER SYSTEM SET {name} = '{value}'")
    try:
        wait_for(value)
        yield
    finally:
        rows(sandbox.primary_admin_dsn, f"ALTER SYSTEM RESET {name}")
        wait_for(before)


def test_a_foreign_archive_command_is_named(in_sandbox: Sandbox, fleet: Fleet) -> None:
    """WAL that goes elsewhere makes no backup recoverable."""
    with setting(in_sandbox, "archive_command", "false %p"):
        fault = the_fault(fleet)

    assert fault.id == "server.archiving"
    assert "'false %p'" in fault.message
    assert "pgbackrest --stanza=demo archive-push %p" in fault.hint


def test_a_failing_archiver_is_named_until_it_works_again(in_sandbox: Sandbox, fleet: Fleet) -> None:
    """The archiver's last failure refutes its line, and its next success clears it."""
    failures = archiver(in_sandbox)["failed_count"]
    with setting(in_sandbox, "archive_command", "false pgbackrest --stanza=demo archive-push %p"):
        switch_wal(in_sandbox)
        until(lambda: archiver(in_sandbox)["failed_count"] > failures)
        fault = the_fault(fleet)
    until(lambda: archiver(in_sandbox)["last_archived_time"] > archiver(in_sandbox)["last_failed_time"], 120)

    assert fault.id == "server.archiver"
    assert "the archiver fails since" in fault.message
    assert "server log" in fault.hint
    assert not refuted(examine(fleet, "demo"))


# --- the stanza ---------------------------------------------------------------------------------------


def pgbackrest(sandbox: Sandbox, *arguments: str) -> None:
    argv = ["pgbackrest", f"--config={sandbox.pgbackrest_conf}", "--stanza=demo", *arguments]
    user = ["runuser", "-u", sandbox.server_user, "--"] if sandbox.server_user else []
    subprocess.run([*user, *argv], check=True, capture_output=True, cwd="/")


def test_a_stop_file_is_named(in_sandbox: Sandbox, fleet: Fleet) -> None:
    """A stopped stanza is told with the command that starts it."""
    pgbackrest(in_sandbox, "stop")
    try:
        fault = the_fault(fleet)
    finally:
        pgbackrest(in_sandbox, "start")

    assert fault.id == "stanza.started"
    assert "pgbackrest start" in fault.hint


def test_a_worker_that_lost_its_starter_is_named_and_left_alone(
    in_sandbox: Sandbox, fleet: Fleet, tmp_path: Path
) -> None:
    """A backup worker whose main process is gone is found, and the doctor does not end it."""
    with orphan(tmp_path, f"--config={in_sandbox.pgbackrest_conf}", "--stanza=demo") as worker:
        fault = the_fault(fleet)
        os.kill(worker, 0)

    assert fault.id == "stanza.leftovers"
    assert f"process {worker} works on a backup of stanza 'demo'" in fault.message
    assert str(worker) in fault.hint


@pytest.mark.parametrize("options", [("--stanza=demo",), ("--config=/etc/other.conf", "--stanza=demo")])
def test_another_clusters_stanza_of_the_same_name_is_no_leftover(
    fleet: Fleet, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A worker of another configuration is neither named nor, by a backup's pre-flight, ended."""
    settings = fleet.clusters["demo"].pgbackrest
    with orphan(tmp_path, *options) as worker:
        assert not refuted(examine(fleet, "demo"))
        assert not survey.end_leftovers(settings)
        os.kill(worker, 0)
