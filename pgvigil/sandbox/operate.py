"""What a DBA does to a sandbox's cluster by hand: SQL, pgBackRest, WAL switches, a promotion."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pgvigil.errors import DeadlineExceeded
from pgvigil.postgres import connect
from pgvigil.sandbox import postgres, services
from pgvigil.sandbox.model import STANZA

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pgvigil.sandbox.model import Sandbox

APPLICATION = "pgvigil sandbox"
PATIENCE = 60.0
_POLL_SECONDS = 0.05


def use_directory_repository(box: Sandbox, *, repos: int = 1) -> None:
    """Exchange the S3 repository for empty directories DIR/repo, DIR/repo2, …; the stanza is not in them yet.

    Files in a directory can be broken by hand, and are restored without the cost of TLS.
    """
    conf = box.pgbackrest_conf
    lines = [line for line in conf.read_text(encoding="utf-8").splitlines() if not line.startswith("repo1-")]
    for repo in range(1, repos + 1):
        path = box.directory / ("repo" if repo == 1 else f"repo{repo}")
        path.mkdir()
        box.give(path)
        lines.insert(1, f"repo{repo}-path={path}")
    conf.write_text("\n".join([lines[0], "repo1-bundle=y", *lines[1:]]) + "\n", encoding="utf-8")


def sql(box: Sandbox, statement: str, database: str = "postgres") -> list[dict[str, Any]]:
    """Run statements as superuser of the operated cluster and return the rows of the last one."""
    with connect(box.admin_dsn(box.primary_port, database), APPLICATION) as session:
        cursor = session.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def pgbackrest(box: Sandbox, *words: str, config: Path | None = None) -> str:
    """Run plain pgBackRest as the servers' user and return what it says."""
    command = ["pgbackrest", f"--config={config or box.pgbackrest_conf}", f"--stanza={STANZA}", *words]
    return services.run_tool(box.directory, command, user=box.server_user)


def write_wal(box: Sandbox, segments: int = 1) -> None:
    """Fill so many segments with a little, one after the other."""
    end = "SELECT pg_create_restore_point('x'), pg_switch_wal() FROM generate_series(1, {})"
    sql(box, end.format(segments))


def await_archived(box: Sandbox, seconds: float = PATIENCE) -> None:
    """Wait until nothing waits for the archiver any more; raises DeadlineExceeded."""
    waits = "SELECT name FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
    await_condition(lambda: not sql(box, waits), "WAL is archived", seconds)


def await_condition(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Poll for a condition; raises DeadlineExceeded."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"waited {seconds:g} s in vain until {what}", hint="see DIR/log")
        time.sleep(_POLL_SECONDS)


def configure(box: Sandbox, **settings: str) -> None:
    """Change settings of the operated cluster."""
    for name, value in settings.items():
        sql(box, f"ALTER SYSTEM SET {name} = '{value.replace(chr(39), 2 * chr(39))}'")
    sql(box, "SELECT pg_reload_conf()")


def stop(box: Sandbox, mode: str = "fast") -> None:
    """Stop the operated cluster."""
    words = [str(box.postgres_bin / "pg_ctl"), "-D", str(box.data("primary")), "-m", mode, "-w", "stop"]
    services.run_tool(box.directory, words, user=box.server_user)


def promote(box: Sandbox) -> None:
    """Restart the server through archive recovery, so that it comes up on the next timeline."""
    configure(box, restore_command="/bin/false")
    stop(box)
    signal = box.data("primary") / "recovery.signal"
    signal.touch()
    box.give(signal)
    postgres.start(box, "primary")
    await_condition(lambda: not sql(box, "SELECT pg_is_in_recovery() AS r")[0]["r"], "it is promoted")
    sql(box, "CHECKPOINT")
