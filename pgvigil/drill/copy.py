"""The copy's server: cut off from the world, started under a keeper, entered through its socket only.

Nothing of the source's configuration is read: its files are set aside, and every setting that could
reach out (archiving, replication, network, libraries, jobs) stands on the command line, which outranks
files.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pgvigil import postgres
from pgvigil.drill.place import Place
from pgvigil.drill.restore import environment
from pgvigil.errors import (
    DeadlineExceeded,
    PreconditionFailed,
    ToolFailed,
    VersionUnsupported,
)
from pgvigil.processes import Command, Held, hold, launch, run
from pgvigil.reports import Frozen
from pgvigil.sql import query

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pgvigil.drill.place import Owner

OLDEST_MAJOR = 15
NEWEST_MAJOR = 18
LAST_GRACE = timedelta(seconds=30)  # for the orderly end of a copy, whose run may have died
_POLL = 0.1
_SHORT_POLL = 0.01  # for what is part of the measured time
_HOMES = ("/usr/lib/postgresql/{major}/bin", "/usr/pgsql-{major}/bin")  # Debian, PGDG on Red Hat
_AUTO_CONF = "postgresql.auto.conf"


class Control(Frozen):
    """What pg_controldata says of a data directory; LSNs are text, sizes bytes."""

    system_id: str
    state: str
    timeline: int
    checkpoint: str
    segment_size: int
    checksums: bool
    required: dict[str, int] = Field(description="settings that recovery needs at least")


class Copy(Frozen):
    """A restored cluster and how to run it.

    Of the source's roles `superuser` is one, and `role` is that by which pgvigil enters the source: whatever
    may run the users' own code does so as the latter.
    """

    place: Place
    programs: Path
    major: int
    superuser: str
    role: str
    restore_command: str
    shared_buffers_mb: int = 128
    preload: tuple[str, ...] = ()


def read_major(place: Place) -> int:
    """Return the major version of a restored data directory; raises VersionUnsupported outside 15 to 18."""
    text = (place.data / "PG_VERSION").read_text(encoding="ascii").strip()
    if not text.isdigit() or not OLDEST_MAJOR <= int(text) <= NEWEST_MAJOR:
        raise VersionUnsupported(
            f"the copy is of PostgreSQL {text}, expected {OLDEST_MAJOR} to {NEWEST_MAJOR}",
            hint="drill it with a pgvigil that supports it",
        )
    return int(text)


def find_programs(major: int, given: Path | None = None) -> Path:
    """Find the directory of PostgreSQL's programs of a major version; raises VersionUnsupported."""
    homes = [given] if given else [*(Path(home.format(major=major)) for home in _HOMES), *_on_path()]
    for home in homes:
        if _major_of(home / "postgres") == major:
            return home
    raise VersionUnsupported(
        f"no PostgreSQL {major} on this host: looked in {', '.join(map(str, homes))}",
        hint=f"install the server of major version {major}, the source's, on the host of the drill",
    )


def _on_path() -> list[Path]:
    found = shutil.which("postgres")
    return [Path(found).resolve().parent] if found else []


def _major_of(program: Path) -> int | None:
    if not os.access(program, os.X_OK):
        return None
    told = run(Command(argv=(str(program), "--version"))).stdout.decode(errors="replace")
    match = re.search(r" (\d+)", told)
    return int(match[1]) if match else None


# --- control data -----------------------------------------------------------------------------------

_REQUIRED = (
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_xacts",
    "max_locks_per_xact",
)
_SETTING = {
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}


def read_control(copy: Copy) -> Control:
    """Read the control file; replay brings it up to date with what the source's settings were by then."""
    words = (str(copy.programs / "pg_controldata"), "-D", str(copy.place.data))
    done = run(Command(argv=words, env={**copy.place.environment, "LC_ALL": "C"}, user=copy.place.user))
    told = dict(_control_line(line) for line in done.stdout.decode(errors="replace").splitlines())
    try:
        return Control(
            system_id=told["Database system identifier"],
            state=told["Database cluster state"],
            timeline=int(told["Latest checkpoint's TimeLineID"]),
            checkpoint=told["Latest checkpoint location"],
            segment_size=int(told["Bytes per WAL segment"]),
            checksums=told["Data page checksum version"] != "0",
            required={_SETTING.get(name, name): int(told[f"{name} setting"]) for name in _REQUIRED},
        )
    except (KeyError, ValueError) as error:
        raise ToolFailed(
            f"pg_controldata of '{copy.place.data}' lacks {error}: it ended with {done.exit_code}",
            hint="the copy's global/pg_control is missing or damaged: look at the restore's log",
            tail=list(done.tail),
        ) from error


def _control_line(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


# --- configuration ----------------------------------------------------------------------------------


def settings(copy: Copy, control: Control, recovery: Mapping[str, str]) -> dict[str, str]:
    """Return every setting that the copy is started with, `recovery` among them."""
    return {
        **_places(copy.place),
        **_isolation(copy),
        **_logging(),
        **_sizes(copy, control),
        "restore_command": copy.restore_command,
        "recovery_target_timeline": "latest",
        "recovery_target_action": "pause",
        **recovery,  # one target at most: the server refuses a second one even when it is empty
    }


def _places(place: Place) -> dict[str, str]:
    return {
        "config_file": str(place.conf / "postgresql.conf"),
        "hba_file": str(place.conf / "pg_hba.conf"),
        "ident_file": str(place.conf / "pg_ident.conf"),
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_directories": str(place.sockets),
        "unix_socket_permissions": "0700",
        "cluster_name": f"pgvigil drill {place.directory.name}"[:63],
    }


def _isolation(copy: Copy) -> dict[str, str]:
    """Nothing goes out, nothing comes in, and nothing works on its own."""
    isolated = {
        "archive_mode": "off",
        "archive_command": "/bin/false",
        "archive_library": "",
        "archive_cleanup_command": "",
        "recovery_end_command": "",
        "primary_conninfo": "",
        "primary_slot_name": "",
        "synchronous_standby_names": "",
        "max_logical_replication_workers": "0",
        "shared_preload_libraries": ",".join(copy.preload),
        "session_preload_libraries": "",
        "local_preload_libraries": "",
        "session_replication_role": "replica",
        "cron.launch_active_jobs": "off",
        "autovacuum": "off",
        "autovacuum_freeze_max_age": "2000000000",
        "ssl": "off",
        "jit": "off",
        "restart_after_crash": "off",
        "ignore_checksum_failure": "off",
        "zero_damaged_pages": "off",
        "ignore_invalid_pages": "off",
        "default_transaction_read_only": "off",
    }
    if copy.major >= 17:
        isolated |= {"event_triggers": "off", "summarize_wal": "off", "sync_replication_slots": "off"}
    return isolated


def _logging() -> dict[str, str]:
    """One file in English that is read while it grows; no statement of anybody's in it."""
    return {
        "log_destination": "stderr",
        "logging_collector": "off",
        "log_line_prefix": "%m [%p] ",
        "log_min_messages": "warning",
        "log_min_error_statement": "panic",
        "log_statement": "none",
        "log_min_duration_statement": "-1",
        "log_startup_progress_interval": "5s",
        "log_timezone": "UTC",
        "lc_messages": "C",
    }


def _sizes(copy: Copy, control: Control) -> dict[str, str]:
    """What recovery requires comes from the control file; memory fits the host of the drill."""
    return {
        **{name: str(value) for name, value in control.required.items()},
        "shared_buffers": f"{copy.shared_buffers_mb}MB",
        "huge_pages": "off",
        "dynamic_shared_memory_type": "mmap",  # in the data directory, so that a kill leaves none in the host
        "min_dynamic_shared_memory": "0",
        "max_replication_slots": "64",  # replay of a subscriber's WAL keeps its origins in them
        "max_standby_archive_delay": "-1",
        "hot_standby": "on",
        "wal_level": "replica",
    }


def configure(copy: Copy) -> None:
    """Write our own configuration files and set the source's aside; idempotent."""
    conf = copy.place.conf
    (conf / "postgresql.conf").write_text("# everything stands on the command line\n", encoding="ascii")
    (conf / "pg_hba.conf").write_text("local all all trust\n", encoding="ascii")
    (conf / "pg_ident.conf").write_text("", encoding="ascii")
    for file in conf.iterdir():
        file.chmod(0o644)
    _set_aside(copy.place.data / _AUTO_CONF)


def _set_aside(auto_conf: Path) -> None:
    """Keep what ALTER SYSTEM had set at the source, but where the server does not read it."""
    aside = auto_conf.with_name(f"{_AUTO_CONF}.source")
    if not aside.exists():
        shutil.copy2(auto_conf, aside)
    os.truncate(auto_conf, 0)


def command(copy: Copy, control: Control, recovery: Mapping[str, str]) -> Command:
    """Return how the copy's server is started, to recover as said or, without, to go on as it is."""
    words = [str(copy.programs / "postgres"), "-D", str(copy.place.data)]
    for name, value in settings(copy, control, recovery).items():
        words += ["-c", f"{name}={value}"]
    return Command(
        argv=tuple(words),
        env={**environment(copy.place), "LC_ALL": "C"},
        user=copy.place.user,
        ask="SIGINT",
        grace=LAST_GRACE,
    )


# --- running ----------------------------------------------------------------------------------------


class Server:
    """A started copy: from which control data, whether it runs, and what it has said since."""

    def __init__(self, copy: Copy, control: Control, held: Held, log: Path) -> None:
        self.copy = copy
        self.control = control
        self.held = held
        self.log = log
        self.started = time.monotonic()

    def is_running(self) -> bool:
        """Tell whether the server has not ended."""
        return self.held.is_running()

    def lines(self) -> list[str]:
        """Return what the server has said since this start."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


@contextmanager
def running(copy: Copy, recovery: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run the copy's server for the block, which ends it in order; the death of this process ends it too.

    It may still be starting when the block begins: see `recover.recover` and `wait_ready`.
    """
    configure(copy)
    log = copy.place.log / f"server-{len(list(copy.place.log.glob('server-*.log'))) + 1}.log"
    control = read_control(copy)
    with hold(command(copy, control, recovery or {}), log) as held:
        yield Server(copy, control, held, log)


def start_kept(copy: Copy, recovery: Mapping[str, str] | None = None) -> int:
    """Start the copy so that it outlives this process, and return its process id.

    `scratch.keep` must have recorded the deadline before: from then on a reaper ends it.
    """
    configure(copy)
    return launch(command(copy, read_control(copy), recovery or {}), copy.place.log / "server-kept.log")


def state(place: Place, pid: int) -> str:
    """Return what the server says of itself in postmaster.pid: starting, standby, ready, stopping, or ''."""
    try:
        lines = (place.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return lines[7].strip() if len(lines) > 7 and lines[0] == str(pid) else ""


def wait_ready(server: Server, deadline: timedelta) -> float:
    """Wait until a copy that recovers no more takes sessions; return the seconds.

    Raises ToolFailed when it ended, and DeadlineExceeded.
    """
    begun = time.monotonic()
    while state(server.copy.place, server.held.pid) != "ready":
        if not server.is_running():
            last = (server.lines() or ["it said nothing"])[-1]
            raise ToolFailed(f"the copy's server ended: {last}", hint=f"see {server.log}")
        if time.monotonic() - begun > deadline.total_seconds():
            raise DeadlineExceeded(
                f"the copy took no session within {deadline.total_seconds():g} s",
                hint=f"see {server.log}, or raise drill.deadline",
            )
        time.sleep(_POLL)
    return time.monotonic() - begun


# What users may have set for the role or the database; the isolation is refused by a server in recovery.
_OUTRANKING = {
    "local_preload_libraries": "",
    "default_transaction_isolation": r"read\ committed",
    "role": "none",
    "statement_timeout": "0",  # sessions of ours set their own bounds; a tool has a deadline
    "lock_timeout": "0",
}
_FOR_SUPERUSERS = {
    "session_preload_libraries": "",
    "session_replication_role": "replica",
    "lc_messages": "C",  # what tools say is read in English
}
# libpq reads the variable PGOPTIONS only where a connection string has no options, so all must be here.
ROLE_OPTIONS = " ".join(f"-c {name}={value}" for name, value in _OUTRANKING.items())
OPTIONS = " ".join(f"-c {name}={value}" for name, value in (_OUTRANKING | _FOR_SUPERUSERS).items())


def dsn(copy: Copy, database: str = "postgres", *, role: str = "") -> str:
    """Return how to enter the copy by its socket, past most that role or database are set to.

    Without `role` as superuser: only for what runs no code of the users.
    """
    return postgres.conninfo(
        host=str(copy.place.sockets),
        hostaddr="",
        port=5432,
        user=role or copy.superuser,
        dbname=database,
        sslmode="disable",
        options=ROLE_OPTIONS if role else OPTIONS,
    )


@contextmanager
def connect(
    copy: Copy,
    database: str,
    application_name: str,
    statement_timeout: timedelta = postgres.STATEMENT_TIMEOUT,
    *,
    role: str = "",
) -> Iterator[postgres.Connection]:
    """Open a session as `dsn` says, and prove that it is the copy: raises PreconditionFailed otherwise."""
    with postgres.connect(
        dsn(copy, database, role=role), application_name, statement_timeout=statement_timeout
    ) as connection:
        row = connection.execute(query("drill_copy", "data_directory")).fetchone() or {}
        if row.get("data_directory") != str(copy.place.data):
            raise PreconditionFailed(
                f"the session leads to '{row.get('data_directory')}', expected '{copy.place.data}'",
                hint="unset PGHOSTADDR and PGSERVICE",
            )
        postgres.read_bytes(connection)
        yield connection


def promote(copy: Copy, deadline: timedelta) -> float:
    """Let a copy that is paused at its target take writes, and return the seconds; a promoted one does."""
    begun = time.monotonic()
    with connect(copy, "postgres", "pgvigil drill promote") as connection:
        connection.execute(query("drill_copy", "promote"))
        while (connection.execute(query("drill_copy", "in_recovery")).fetchone() or {})["in_recovery"]:
            if time.monotonic() - begun > deadline.total_seconds():
                raise DeadlineExceeded(
                    f"the copy was not promoted within {deadline.total_seconds():g} s", hint="see its log"
                )
            time.sleep(_SHORT_POLL)
    return time.monotonic() - begun


def first_query(copy: Copy, database: str) -> float:
    """Connect to a database and read its catalogue; return the seconds until the answer."""
    begun = time.monotonic()
    with connect(copy, database, "pgvigil drill first query") as connection:
        connection.execute(query("drill_copy", "first_query")).fetchone()
    return time.monotonic() - begun


def connection_hint(copy: Copy, owner: Owner) -> str:
    """Tell a person how to enter a kept copy, and until when."""
    until = f" until {owner.keep_until:%F %T} UTC" if owner.keep_until else ""
    return f"psql -h {copy.place.sockets} -U {copy.superuser} postgres{until}"
