import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import trustme

from pgvigil import objectstore
from pgvigil.doctor import examine
from pgvigil.errors import Busy, ConfigError, ToolFailed
from pgvigil.fleet import load_fleet
from pgvigil.postgres import connect
from pgvigil.reports import Verdict
from pgvigil.sandbox import Sandbox, down, postgres
from pgvigil.sandbox.directory import locked
from pgvigil.sandbox.model import HOST
from pgvigil.sandbox.postgres import find_programs
from tests.fixtures.sandbox import FreshSandbox, lacking, major, programs, up
from tests.fixtures.sockets import listening
from tests.fixtures.told import argv_of, owner_of

REPOSITORY = Path(__file__).resolve().parents[2]
ROLES = REPOSITORY / "infra" / "roles.sql"
UP = "import sys; from pathlib import Path; from pgvigil.sandbox import up; up(Path(sys.argv[1]), empty=True)"
DOWN = "import sys; from pathlib import Path; from pgvigil.sandbox import down; down(Path(sys.argv[1]))"
TEST = "test_sandbox"


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def python(code: str, directory: Path) -> list[str]:
    """Compose the command of another Python that works on a directory."""
    return [sys.executable, "-c", code, str(directory)]


def environment() -> dict[str, str]:
    """Return the environment in which another Python finds us."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY)}


def processes_naming(directory: Path) -> set[int]:
    """Look in /proc, not through the code under test, for whatever has to do with a directory."""
    needle = os.fsencode(directory)
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            text += os.fsencode((process / "cwd").readlink())
        except OSError:
            continue
        if needle in text and int(process.name) != os.getpid():
            found.add(int(process.name))
    return found


def pgbackrest(sandbox: Sandbox, *arguments: str) -> str:
    """Run plain pgBackRest as the servers' user."""
    argv = ["pgbackrest", f"--config={sandbox.pgbackrest_conf}", "--stanza=demo", *arguments]
    user = ["runuser", "-u", sandbox.server_user, "--"] if sandbox.server_user else []
    return subprocess.run([*user, *argv], check=True, capture_output=True, text=True, cwd="/").stdout


def value(dsn: str, query: str) -> object:
    """Return the one value of a query."""
    with connect(dsn, TEST) as session:
        row = session.execute(query.encode()).fetchone()
    assert row is not None
    return next(iter(row.values()))


def archived(sandbox: Sandbox, segment: str) -> bool:
    """Tell whether pgBackRest's repository, read through S3, has a WAL segment."""
    listing = pgbackrest(sandbox, "repo-ls", "--recurse", "archive/demo")
    return any(f"/{segment}-" in line for line in listing.splitlines())


def shared_memory() -> list[list[str]]:
    """Return key and id of every System V segment of this host."""
    return [line.split()[:2] for line in Path("/proc/sysvipc/shm").read_text().splitlines()]


def secrets_of(sandbox: Sandbox) -> list[str]:
    """Return every password and the S3 credentials."""
    passwords = [line.split(":")[-1] for line in sandbox.passfile.read_text().splitlines()]
    return [
        *passwords,
        *(sandbox.environment[f"AWS_{name}"] for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY")),
    ]


@pytest.mark.stanza
def test_a_finished_segment_arrives_in_s3(in_sandbox: Sandbox) -> None:
    """The cluster archives through pgBackRest into S3, and the role pgvigil may make it do so."""
    segment = value(
        in_sandbox.dsn(),
        "SELECT pg_walfile_name(pg_create_restore_point('proof')) FROM pg_switch_wal()",
    )

    value(in_sandbox.dsn(), "SELECT pg_switch_wal()")

    until(lambda: archived(in_sandbox, str(segment)))


@pytest.mark.stanza
def test_a_full_backup_needs_no_superuser(sandbox: Sandbox) -> None:
    """Plain pgBackRest takes a full backup as its own role, with the endpoint's certificate checked."""
    pgbackrest(sandbox, "--type=full", "backup")

    assert '"error":false' in pgbackrest(sandbox, "info", "--output=json")
    assert "verify-tls" not in sandbox.pgbackrest_conf.read_text()
    assert not value(
        sandbox.primary_admin_dsn,
        "SELECT bool_or(rolsuper) FROM pg_roles WHERE rolname IN ('pgvigil', 'pgbackrest', 'shop')",
    )


def test_a_certificate_of_another_authority_is_refused(sandbox: Sandbox, workplace: Path) -> None:
    """With another authority trusted, pgBackRest does not speak to the endpoint: the check is real."""
    other = workplace / "ca.pem"
    trustme.CA().cert_pem.write_to_path(other)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        pgbackrest(sandbox, f"--repo1-storage-ca-file={other}", "--io-timeout=1", "repo-ls")

    assert "certificate" in refused.value.stdout + refused.value.stderr


def test_half_an_upload_is_refused_as_s3_refuses_it(in_sandbox: Sandbox) -> None:
    """A body that is cut before its announced length leaves no object behind."""
    trust = ssl.create_default_context(cafile=os.fspath(in_sandbox.ca_file))
    address = (HOST, in_sandbox.s3_port)
    with socket.create_connection(address) as raw, trust.wrap_socket(raw, server_hostname=HOST) as line:
        line.sendall(b"PUT /archive/half HTTP/1.1\r\nHost: s3\r\nContent-Length: 9\r\n\r\nhalf")
        line.shutdown(socket.SHUT_WR)
        while line.recv(4096):  # until the server has answered, and closed
            pass

    assert list(objectstore.connect(load_fleet(in_sandbox.fleet_file).s3).list("s3://archive/half")) == []


def test_the_role_script_can_be_applied_again(sandbox: Sandbox) -> None:
    """Further runs of infra/roles.sql, by psql as documented, change nothing and fail nowhere."""
    psql = ["psql", "-X", "-v", "ON_ERROR_STOP=1", "-f", str(ROLES), "-d", sandbox.primary_admin_dsn]
    rights = "SELECT string_agg(oid::regprocedure::text || proacl::text, ' ' ORDER BY oid) FROM pg_proc"
    before = value(sandbox.primary_admin_dsn, rights)

    for _ in range(2):
        subprocess.run(psql, check=True, capture_output=True)

    assert value(sandbox.primary_admin_dsn, rights) == before


def test_the_monitoring_role_reads_what_checks_need(in_sandbox: Sandbox) -> None:
    """The role pgvigil sees protected settings, the archiver's directory and the control file's facts."""
    for query in (
        "SELECT setting FROM pg_settings WHERE name = 'data_directory'",
        "SELECT count(*) FROM pg_ls_archive_statusdir()",
        "SELECT timeline_id FROM pg_control_checkpoint()",
        "SELECT archived_count FROM pg_stat_archiver",
    ):
        assert value(in_sandbox.dsn(), query) is not None


def test_a_tcp_session_needs_its_password(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the password file nobody enters over TCP, on either cluster."""
    monkeypatch.setenv("PGPASSFILE", "/dev/null")
    for dsn in (sandbox.dsn(), sandbox.ops_dsn()):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(dsn)


@pytest.mark.usefixtures("in_sandbox")
def test_the_fleet_file_reaches_everything() -> None:
    """The fleet file is valid; with DIR/env, its cluster and its audit store let the role pgvigil in."""
    fleet = load_fleet()
    settings, database, _ = fleet.database("demo/shop")

    assert database == "shop"
    assert value(settings.dsn, "SELECT current_user") == "pgvigil"
    assert value(fleet.audit.dsn, "SELECT pg_has_role('pgvigil_writer', 'MEMBER')") is True


def test_the_fleet_file_holds_no_secret(sandbox: Sandbox) -> None:
    """No password and no S3 key stands in the fleet file; the files that have them are closed to others."""
    fleet = sandbox.fleet_file.read_text()

    assert len(secrets_of(sandbox)) == 6
    assert not [secret for secret in secrets_of(sandbox) if secret in fleet]
    for name in ("pgpass", "env", "pgbackrest.conf", "sandbox.json"):
        assert not stat.S_IMODE((sandbox.directory / name).stat().st_mode) & stat.S_IRWXO


def test_no_log_and_no_process_list_holds_a_secret(sandbox: Sandbox) -> None:
    """Passwords and keys appear in no log and on no command line."""
    seen = b"".join(file.read_bytes() for file in sandbox.directory.glob("**/log/*.log"))
    for pid in processes_naming(sandbox.directory):
        seen += b" ".join(argv_of(pid))

    assert b"database system is ready" in seen
    assert not [secret for secret in secrets_of(sandbox) if secret.encode() in seen]


def test_everything_listens_on_loopback_only(sandbox: Sandbox) -> None:
    """PostgreSQL, twice, and S3 take connections from 127.0.0.1 alone."""
    found = listening(processes_naming(sandbox.directory))

    assert {str(address) for _, address in found} == {"127.0.0.1"}


def test_the_sample_has_months_of_events(sandbox: Sandbox) -> None:
    """The sample database has a table partitioned by month, with data in the months behind us."""
    shop = sandbox.admin_dsn(sandbox.primary_port, "shop")

    assert value(shop, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'public.events'::regclass") == 17
    assert value(shop, "SELECT count(DISTINCT tableoid) FROM public.events") == 15
    assert value(shop, "SELECT count(*) FROM public.events") == 36_000
    assert value(shop, "SELECT tableowner FROM pg_tables WHERE tablename = 'payments'") == "shop"


def test_a_sandbox_is_read_again_from_its_directory(sandbox: Sandbox) -> None:
    """Another process gets the same sandbox from the directory, and a shell gets the same environment."""
    exported = subprocess.run(
        ["sh", "-c", '. "$1"; env', "sh", str(sandbox.env_file)], check=True, capture_output=True, text=True
    ).stdout.splitlines()

    assert Sandbox.load(sandbox.directory) == sandbox
    assert {f"{name}={text}" for name, text in sandbox.environment.items()} <= set(exported)


def test_down_leaves_no_process_and_no_file(fresh_sandbox: FreshSandbox) -> None:
    """Taking a sandbox down ends what it started, further services included, and can be repeated."""
    sandbox = fresh_sandbox()
    service = sandbox.start_service("idle", ["sh", "-c", "trap '' TERM; while :; do sleep 600; done"])
    assert service in processes_naming(sandbox.directory)

    down(sandbox.directory)
    down(sandbox.directory)

    assert not processes_naming(sandbox.directory)
    assert not sandbox.directory.exists()


@pytest.mark.long
def test_down_ends_backends_whose_postmaster_was_killed(fresh_sandbox: FreshSandbox) -> None:
    """A session that outlives its postmaster leaves no process, no file and no shared memory."""
    sandbox = fresh_sandbox()
    lines = (sandbox.data("primary") / "postmaster.pid").read_text().splitlines()
    postmaster, segment = int(lines[0]), lines[6].split()
    busy = "DO $$ BEGIN LOOP END LOOP; END $$"
    psql = subprocess.Popen(
        ["psql", "-X", "-d", sandbox.primary_admin_dsn, "-c", busy],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    busy_count = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'DO%' AND state = 'active'"
    until(lambda: value(sandbox.primary_admin_dsn, busy_count) == 1)
    os.kill(postmaster, signal.SIGKILL)
    assert segment in shared_memory()

    down(sandbox.directory)

    psql.wait(timeout=60)
    assert segment not in shared_memory()
    assert not processes_naming(sandbox.directory)
    assert not sandbox.directory.exists()


def test_a_killed_cluster_comes_back_on_its_port(fresh_sandbox: FreshSandbox) -> None:
    """After SIGKILL of the postmaster, the cluster starts again where the fleet file says it is."""
    sandbox = fresh_sandbox()
    postmaster = int((sandbox.data("primary") / "postmaster.pid").read_text().split()[0])
    os.kill(postmaster, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{postmaster}").exists())

    postgres.start(sandbox, "primary")

    assert value(sandbox.primary_admin_dsn, "SHOW port") == str(sandbox.primary_port)


@pytest.mark.long
@pytest.mark.parametrize(
    "sign", ["sandbox.json", "primary/PG_VERSION", "run/.s.PGSQL.*.lock", "pgbackrest.conf", "env"]
)
def test_a_killed_up_is_cleaned_by_down(workplace: Path, sign: str) -> None:
    """SIGKILL of `up` after its marker, in initdb, in a start, before and while filling: down ends it all."""
    directory = workplace / "killed"
    starting = subprocess.Popen(python(UP, directory), env=environment())
    until(lambda: any(directory.glob(sign)))
    starting.kill()
    starting.wait()

    down(directory)

    assert not processes_naming(directory)
    assert not directory.exists()


def test_a_killed_up_is_told_apart_from_a_sandbox(workplace: Path) -> None:
    """What was never completed is not loaded as a sandbox, and not built over."""
    (workplace / "half").mkdir()
    (workplace / "half" / "sandbox.json").touch()

    with pytest.raises(ConfigError, match="never completed"):
        Sandbox.load(workplace / "half")
    with pytest.raises(ConfigError, match="already"):
        up(workplace / "half")


@pytest.mark.long
def test_sandboxes_run_side_by_side(workplace: Path) -> None:
    """Three started at once share no port, and each archives into its own repository."""
    directories = [workplace / name for name in ("one", "two", "three")]
    starting = [subprocess.Popen(python(UP, directory), env=environment()) for directory in directories]

    assert [process.wait(timeout=300) for process in starting] == [0, 0, 0]
    sandboxes = [Sandbox.load(directory) for directory in directories]
    ports = {port for box in sandboxes for port in (box.primary_port, box.ops_port, box.s3_port)}
    assert len(ports) == 9
    for box in sandboxes:
        pgbackrest(box, "check")


def test_up_gives_its_caller_the_end_of_output(workplace: Path) -> None:
    """Whoever reads the output of `up` sees its end when `up` returns, though the servers run on."""
    directory = workplace / "quiet"

    done = subprocess.run(
        python(UP, directory), env=environment(), capture_output=True, timeout=300, check=True
    )

    assert done.stdout == b""
    assert processes_naming(directory)


@pytest.mark.stanza
def test_any_printable_name_will_do(workplace: Path) -> None:
    """Blanks, quotes and percent signs in the directory's name break no configuration file."""
    box = up(workplace / "a 'b\" %p\\c$", empty=True)

    pgbackrest(box, "check")

    assert Path(box.environment["PGVIGIL_FLEET"]).is_file()


@pytest.mark.parametrize("act", [up, down])
def test_a_foreign_directory_is_left_alone(workplace: Path, act: Callable[[Path], object]) -> None:
    """A directory with files that is not a sandbox is refused and keeps its files."""
    (workplace / "precious").write_text("data")

    with pytest.raises(ConfigError, match=str(workplace)):
        act(workplace)

    assert [entry.name for entry in workplace.iterdir()] == ["precious"]


@pytest.mark.parametrize("act", ["up", "down"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_directory_that_we_may_not_see_is_refused(workplace: Path, act: str) -> None:
    """Whose place it is, an ordinary user cannot know: one message, and no word of a sandbox that is gone."""
    closed = workplace / "closed"
    closed.mkdir(mode=0o700)
    interpreter, path = ordinary_interpreter(workplace)
    script = f"from pathlib import Path; from pgvigil.sandbox import {act}; {act}(Path('{closed}/box'))"
    env = os.environ | {"PYTHONPATH": path}

    done = subprocess.run(
        ["runuser", "-u", "nobody", "--", interpreter, "-c", script],
        env=env,
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
    )

    assert "ConfigError: cannot look into sandbox directory" in done.stderr


def test_a_running_sandbox_is_not_built_over(sandbox: Sandbox) -> None:
    """A second `up` in the same directory is refused and the first goes on."""
    with pytest.raises(ConfigError, match="sandbox down"):
        up(sandbox.directory)

    assert value(sandbox.primary_admin_dsn, "SELECT 1") == 1


def test_two_do_not_work_on_one_directory(workplace: Path) -> None:
    """While one `up` or `down` works on a directory, another is told so."""
    with locked(workplace, timedelta(0)), pytest.raises(Busy):
        up(workplace)


def test_a_name_too_long_for_sockets_is_refused_first(workplace: Path) -> None:
    """A path in which no socket fits is refused before anything is created."""
    with pytest.raises(ConfigError, match="107"):
        up(workplace / ("x" * 100))

    assert not list(workplace.iterdir())


def test_the_servers_are_those_that_were_asked_for(sandbox: Sandbox) -> None:
    """Both run the major whose programs the environment names, or else the newest of this host."""
    told = {
        value(dsn, "SHOW server_version_num") for dsn in (sandbox.primary_admin_dsn, sandbox.ops_admin_dsn)
    }

    assert {major()} == {int(str(each)) // 10_000 for each in told}


def test_a_postgresql_that_pgbackrest_does_not_know_archives_nothing(workplace: Path) -> None:
    """Programs that say they are of a later major: everything but the stanza is there, and says so."""
    newer = workplace / "bin"
    newer.mkdir()
    real = find_programs(programs())
    for program in real.iterdir():
        (newer / program.name).symlink_to(program)
    (newer / "initdb").unlink()
    (newer / "initdb").write_text(
        "#!/bin/sh\n"
        '[ "$1" = --version ] && exec echo "initdb (PostgreSQL) 18.1"\n'
        f'exec {real / "initdb"} "$@"\n'
    )
    (newer / "initdb").chmod(0o755)
    box = up(workplace / "box", empty=True, postgres_bin=newer)

    assert not box.archives
    assert "off" == value(box.primary_admin_dsn, "SHOW archive_mode")
    assert Sandbox.load(box.directory) == box


@pytest.mark.skipif("stanza" not in lacking(), reason="pgBackRest knows this PostgreSQL")
def test_the_doctor_names_a_postgresql_that_pgbackrest_does_not_know(in_sandbox: Sandbox) -> None:
    """Backups are refuted by name, and the rest of the cluster is examined nevertheless."""
    lines = {line.id: line for line in examine(load_fleet(in_sandbox.fleet_file), "demo")}

    assert lacking()["stanza"] == lines["pgbackrest.knows-server"].message
    refuted = {name for name, line in lines.items() if line.verdict is Verdict.REFUTED}
    assert {"pgbackrest.knows-server", "server.archiving"} <= refuted
    assert {"server.role", "server.databases", "audit.writable", "reports.writable", "drill.marks"} <= {
        name for name, line in lines.items() if line.verdict is Verdict.VERIFIED
    }


def test_a_failing_step_is_told_and_cleaned(workplace: Path) -> None:
    """When initdb fails, the error has its words, and no file and no process stays."""
    programs = workplace / "bin"
    programs.mkdir()
    (programs / "initdb").write_text("#!/bin/sh\necho no space for you\nexit 3\n")
    (programs / "initdb").chmod(0o755)

    with pytest.raises(ToolFailed, match=r"initdb ended with 3.*no space for you"):
        up(workplace / "box", postgres_bin=programs)

    assert not processes_naming(workplace / "box")
    assert not (workplace / "box").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="servers run as another user only when root starts them")
def test_a_directory_closed_to_the_servers_is_refused(workplace: Path) -> None:
    """Below a directory that the servers' user cannot enter, the closed one is named and nothing stays."""
    closed = workplace / "closed"
    closed.mkdir(mode=0o700)

    with pytest.raises(ConfigError, match=f"cannot enter '{closed}'"):
        up(closed / "box")

    assert not list(closed.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="the whole suite runs as an ordinary user")
def test_an_ordinary_user_needs_no_root(workplace: Path) -> None:
    """An unprivileged user gets a sandbox that archives, and takes it down again."""
    workplace.chmod(0o777)
    directory = workplace / "own"
    as_nobody = ["runuser", "-u", "nobody", "--"]
    interpreter, path = ordinary_interpreter(workplace)
    env = os.environ | {"PYTHONPATH": path}

    subprocess.run([*as_nobody, interpreter, "-c", UP, str(directory)], env=env, check=True, cwd="/")
    box = Sandbox.load(directory)
    config = f"--config={box.pgbackrest_conf}"
    subprocess.run([*as_nobody, "pgbackrest", config, "--stanza=demo", "check"], check=True, cwd="/")
    owners = {owner_of(pid) for pid in processes_naming(directory)} - {None}
    subprocess.run([*as_nobody, interpreter, "-c", DOWN, str(directory)], env=env, check=True, cwd="/")

    assert box.server_user is None
    assert owners == {65534}
    assert not processes_naming(directory)
    assert not directory.exists()


def ordinary_interpreter(workplace: Path) -> tuple[str, str]:
    """Return a Python that others may run, with the path on which it finds us and our libraries.

    Where this clone or its environment is closed to others, what is needed is copied to the workplace.
    """
    libraries = [REPOSITORY, Path(sysconfig.get_path("purelib"))]
    programs = (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}")
    for find in (lambda: libraries, lambda: copied(libraries, workplace / "libraries")):
        places = find()
        for program in programs:
            if serves_others(program, places):
                return program, ":".join(map(str, places))
    pytest.skip("no Python on this host that another user may run")


def serves_others(program: str, libraries: list[Path]) -> bool:
    probe = ["runuser", "-u", "nobody", "--", program, "-c", "import psycopg, moto, pgvigil.sandbox"]
    env = os.environ | {"PYTHONPATH": ":".join(map(str, libraries))}
    return subprocess.run(probe, env=env, check=False, capture_output=True, cwd="/").returncode == 0


def copied(libraries: list[Path], target: Path) -> list[Path]:
    repository, packages = libraries
    for name in ("pgvigil", "infra"):
        shutil.copytree(repository / name, target / "ours" / name)
    skip = shutil.ignore_patterns("prefect", "mypy", "ruff*", "sympy", "*.pth", "__editable__*")
    shutil.copytree(packages, target / "theirs", ignore=skip)
    return [target / "ours", target / "theirs"]
