"""Bringing a sandbox up and taking it down; both can be killed anywhere and leave nothing unfindable."""

from __future__ import annotations

import os
import secrets
import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from psycopg import sql

from pgvigil.backup.survey import require_known_major
from pgvigil.errors import CommandNotFound, ConfigError, VersionUnsupported
from pgvigil.fleet import PgBackRestSettings
from pgvigil.pgbackrest import PgBackRest
from pgvigil.postgres import connect
from pgvigil.sandbox import directory as place
from pgvigil.sandbox import postgres, s3, services
from pgvigil.sandbox.model import (
    BACKUP_ROLE,
    HOST,
    REGION,
    STANZA,
    Sandbox,
    Site,
    server_user,
    url,
    write_env,
)
from pgvigil.sql import blocks

if TYPE_CHECKING:
    from pgvigil.postgres import Connection

INFRA = Path(__file__).resolve().parents[2] / "infra"
ROLES = INFRA / "roles.sql"
TARGET = INFRA / "target.sql"
APPLICATION = "pgvigil sandbox"
CENTS = {
    "table": "public.payments",
    "set": {"amount_cents": "(amount * 100)::bigint"},
    "where": "amount_cents IS NULL",
    "not_null": ["amount_cents"],
}
_PATIENCE = timedelta(seconds=10)


def up(directory: Path, *, empty: bool = False, postgres_bin: Path | None = None) -> Sandbox:
    """Create a sandbox in a new or empty directory and return it running.

    `empty` leaves out the sample database's tables. A PostgreSQL that this host's pgBackRest does not know
    archives nothing: then there is no stanza. Whatever fails, nothing is left behind; the error says what
    failed, with the end of its log. Raises ConfigError for a directory that will not do.
    """
    directory = directory.resolve()
    place.check_name(directory)
    place.check_vacant(directory)
    site = Site(
        directory=directory, postgres_bin=postgres.find_programs(postgres_bin), server_user=server_user()
    )
    _make_directory(directory)
    with place.locked(directory, timedelta(0)):
        place.claim(directory)
        try:
            return _build(site, empty=empty)
        except BaseException:
            _clear(directory)
            raise


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot create sandbox directory '{directory}': {error.strerror}",
            hint="its parent must exist and be yours to write",
        ) from error
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(
            f"sandbox directory '{directory}' is not yours to write", hint="choose another --dir"
        )


def down(directory: Path) -> bool:
    """End every process of a sandbox and remove its directory; tell whether there was one.

    Works on whatever a killed `up` or `down` has left. Raises ConfigError for a directory that is not a
    sandbox, and Busy while another `up` or `down` works on it.
    """
    directory = directory.resolve()
    if not _is_ours(directory):
        return False
    with place.locked(directory, _PATIENCE):
        if _is_ours(directory):
            _clear(directory)
    return True


def _is_ours(directory: Path) -> bool:
    """Tell whether a directory is there; raises ConfigError unless it has the marker and is this user's.

    One that is empty is a sandbox as well: `up` or `down` was killed before or after the marker.
    """
    found = place.entries(directory)
    if found is None:
        return False
    if found and place.MARKER not in found:
        raise ConfigError(
            f"'{directory}' is not a sandbox: it has no {place.MARKER}; nothing was removed",
            hint="name the directory that 'pgvigil sandbox up' was given",
        )
    if os.geteuid() not in {0, directory.stat().st_uid}:
        raise ConfigError(
            f"the sandbox in '{directory}' belongs to another user",
            hint="run 'pgvigil sandbox down' as the user who started it",
        )
    return True


def _clear(directory: Path) -> None:
    services.stop(directory, sorted({None, server_user()}, key=str))
    postgres.release_memory(directory)
    place.remove(directory)


def _build(site: Site, *, empty: bool) -> Sandbox:
    pgbackrest = _find_pgbackrest()
    _lay_out(site)
    archives = _is_known(postgres.read_major(site))
    archiving = postgres.archive_settings(pgbackrest, site.pgbackrest_conf) if archives else {}
    with ThreadPoolExecutor(max_workers=3) as pool:
        endpoint = pool.submit(s3.start, site.directory, site.ca_file)
        primary = pool.submit(postgres.create, site, "primary", archiving)
        ops = pool.submit(postgres.create, site, "ops", {})
        sandbox = Sandbox(
            **dict(site),
            primary_port=primary.result(),
            ops_port=ops.result(),
            s3_port=endpoint.result(),
            archives=archives,
        )
    _furnish(sandbox, pgbackrest, empty=empty)
    place.write_private(site.directory / place.MARKER, sandbox.model_dump_json(indent=2))
    return sandbox


def _find_pgbackrest() -> str:
    found = shutil.which("pgbackrest")
    if found is None:
        raise CommandNotFound("program 'pgbackrest' is not on this host", hint="install pgbackrest")
    return found


def _is_known(major: int) -> bool:
    """Tell whether this host's pgBackRest can back up such a server."""
    try:
        require_known_major(major, PgBackRest(PgBackRestSettings(stanza=STANZA)).version)
    except VersionUnsupported:
        return False
    return True


def _lay_out(site: Site) -> None:
    place.check_reachable(site.directory, site.server_user)
    place.check_reachable(site.postgres_bin / "initdb", site.server_user)
    place.make(site.directory / "log").chmod(0o755)
    place.make(site.directory / "tmp").chmod(0o1777)
    place.make(site.directory / "spool")
    place.make(site.sockets, site.server_user)
    for name in ("pgbackrest", "pgbackrest/log", "pgbackrest/lock", "pgbackrest/spool"):
        place.make(site.directory / name, site.server_user)


def _furnish(sandbox: Sandbox, pgbackrest: str, *, empty: bool) -> None:
    """Fill running servers: roles and passwords, the stanza, the audit store, the sample, the files."""
    passwords = {role: secrets.token_urlsafe(24) for role in ("pgvigil", "shop", "prefect")}
    key, secret = f"AKIA{secrets.token_hex(8).upper()}", secrets.token_urlsafe(30)
    _write_pgbackrest_conf(sandbox, key, secret)
    _write_passfile(sandbox, passwords)
    _write_fleet(sandbox, empty=empty)
    _write_env(sandbox, key, secret)
    with ThreadPoolExecutor(max_workers=1) as pool:
        store = pool.submit(_create_audit_store, sandbox, passwords)
        _create_roles(sandbox, passwords)
        if sandbox.archives:
            _create_stanza(sandbox, pgbackrest)
        _create_shop(sandbox, empty=empty)
        store.result()


def _create_roles(sandbox: Sandbox, passwords: dict[str, str]) -> None:
    with connect(sandbox.admin_dsn(sandbox.primary_port, "template1"), APPLICATION) as session:
        session.execute(ROLES.read_bytes())  # so that databases made later have what it makes in them
    with connect(sandbox.primary_admin_dsn, APPLICATION) as session:
        session.execute(ROLES.read_bytes())
        session.execute("CREATE ROLE shop LOGIN")
        session.execute("GRANT shop TO pgvigil")  # what infra/roles.sql tells owners to do
        for role in ("pgvigil", "shop"):
            _set_password(session, role, passwords[role])


def _set_password(session: Connection, role: str, password: str) -> None:
    """Give the server a verifier, never the password, so that no server log can have it."""
    verifier = session.pgconn.encrypt_password(password.encode(), role.encode(), b"scram-sha-256").decode()
    session.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(verifier)))


def _create_stanza(sandbox: Sandbox, pgbackrest: str) -> None:
    argv = [pgbackrest, f"--config={sandbox.pgbackrest_conf}", f"--stanza={STANZA}", "stanza-create"]
    services.run_tool(sandbox.directory, argv, user=sandbox.server_user)


def _create_shop(sandbox: Sandbox, *, empty: bool) -> None:
    with connect(sandbox.primary_admin_dsn, APPLICATION) as session:
        session.execute("CREATE DATABASE shop OWNER shop")
    with connect(sandbox.admin_dsn(sandbox.primary_port, "shop"), APPLICATION) as session:
        session.execute(TARGET.read_bytes())
        if empty:
            return
        session.execute("GRANT CREATE ON SCHEMA public TO shop")
        session.execute("SET ROLE shop")
        for statement in blocks("sandbox_shop").values():
            session.execute(statement)


def _create_audit_store(sandbox: Sandbox, passwords: dict[str, str]) -> None:
    from pgvigil.audit import install  # noqa: PLC0415

    with connect(sandbox.admin_dsn(sandbox.ops_port), APPLICATION) as session:
        for role, database in (("pgvigil", "ops"), ("prefect", "prefect")):
            session.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
            _set_password(session, role, passwords[role])
            session.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(database)))
        session.execute("ALTER DATABASE prefect OWNER TO prefect")
    install(sandbox.ops_admin_dsn)
    with connect(sandbox.ops_admin_dsn, APPLICATION) as session:
        session.execute("GRANT pgvigil_writer TO pgvigil")


def _write_pgbackrest_conf(sandbox: Sandbox, key: str, secret: str) -> None:
    own = sandbox.directory / "pgbackrest"
    file = sandbox.pgbackrest_conf
    text = f"""\
[global]
repo1-type=s3
repo1-path=/{STANZA}
repo1-s3-bucket=pgbackrest
repo1-s3-endpoint={HOST}
repo1-s3-region={REGION}
repo1-s3-uri-style=path
repo1-s3-key={key}
repo1-s3-key-secret={secret}
repo1-storage-host={s3.PGBACKREST_HOST}
repo1-storage-port={sandbox.s3_port}
repo1-storage-ca-file={sandbox.ca_file}
process-max=2
repo1-bundle=y
compress-type=zst
start-fast=y
archive-timeout=60
log-level-console=warn
log-level-file=info
log-path={own / "log"}
lock-path={own / "lock"}
spool-path={own / "spool"}

[{STANZA}]
pg1-path={sandbox.data("primary")}
pg1-port={sandbox.primary_port}
pg1-socket-path={sandbox.sockets}
pg1-user={BACKUP_ROLE}
pg1-database=postgres
"""
    place.write_private(file, text)
    if sandbox.server_user:
        shutil.chown(file, group=services.group_of(sandbox.server_user))
    file.chmod(0o640)


def _write_passfile(sandbox: Sandbox, passwords: dict[str, str]) -> None:
    logins = [
        (sandbox.primary_port, "pgvigil"),
        (sandbox.primary_port, "shop"),
        (sandbox.ops_port, "pgvigil"),
        (sandbox.ops_port, "prefect"),
    ]
    lines = [f"{HOST}:{port}:*:{role}:{passwords[role]}\n" for port, role in logins]
    place.write_private(sandbox.passfile, "".join(lines))


_EVENTS = {
    "table": "public.events",
    "key": "created_at",
    "every": "1 month",
    "ahead": 4,
    "keep": "12 months",
    "archive": "s3://archive/shop",
    "drop": "proven",
}


def _write_fleet(sandbox: Sandbox, *, empty: bool) -> None:
    pgbackrest = {"stanza": STANZA, "config": str(sandbox.pgbackrest_conf)}
    if sandbox.server_user:
        pgbackrest["user"] = sandbox.server_user
    fleet = {
        "audit": {
            "dsn": url("pgvigil", sandbox.ops_port, "ops"),
            "reports": "s3://reports/pgvigil",
            "spool": str(sandbox.directory / "spool"),
        },
        "s3": {
            "endpoint_url": sandbox.endpoint_url,
            "region": REGION,
            "ca_file": str(sandbox.ca_file),
        },
        "clusters": {
            "demo": {
                "dsn": sandbox.dsn(),
                "pgbackrest": pgbackrest,
                "backup": {"retention": {"fulls": 2}},
                "drill": {"scratch": str(sandbox.directory / "drill")},
                "databases": {
                    "shop": {} if empty else {"backfills": {"cents": CENTS}, "partitions": [_EVENTS]}
                },
            }
        },
    }
    sandbox.fleet_file.write_text(yaml.safe_dump(fleet, sort_keys=False), encoding="utf-8")


def _write_env(sandbox: Sandbox, key: str, secret: str) -> None:
    write_env(
        sandbox.env_file,
        {
            "PGVIGIL_FLEET": str(sandbox.fleet_file),
            "PGPASSFILE": str(sandbox.passfile),
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": REGION,
        },
    )
