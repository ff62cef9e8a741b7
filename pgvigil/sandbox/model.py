"""What a sandbox is: where its parts are and how to reach them; readable again from its directory."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from psycopg.conninfo import make_conninfo
from pydantic import ValidationError

from pgvigil.errors import ConfigError
from pgvigil.reports import Frozen
from pgvigil.sandbox import services
from pgvigil.sandbox.directory import MARKER, write_private

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

HOST = "127.0.0.1"
REGION = "us-east-1"
STANZA = "demo"
ADMIN = "postgres"
BACKUP_ROLE = "pgbackrest"


class Site(Frozen):
    """Where a sandbox is built: its directory, the servers' programs and the user they run as.

    `server_user` is None when the servers run as the invoking user, which is so unless that is root.
    """

    directory: Path
    postgres_bin: Path
    server_user: str | None

    @property
    def sockets(self) -> Path:
        """Where both clusters have their Unix sockets."""
        return self.directory / "run"

    @property
    def ca_file(self) -> Path:
        """The certificate against which the S3 endpoint is checked."""
        return self.directory / "tls" / "ca.pem"

    @property
    def pgbackrest_conf(self) -> Path:
        """The configuration of pgBackRest, readable by the servers' user."""
        return self.directory / "pgbackrest.conf"

    @property
    def fleet_file(self) -> Path:
        """The fleet file, without any secret."""
        return self.directory / "fleet.yaml"

    @property
    def passfile(self) -> Path:
        """The libpq password file of every role that logs in over TCP."""
        return self.directory / "pgpass"

    @property
    def env_file(self) -> Path:
        """The file to source: `export NAME=value` lines, credentials included."""
        return self.directory / "env"

    def data(self, cluster: str) -> Path:
        """Return the data directory of `primary` or `ops`."""
        return self.directory / cluster

    def admin_dsn(self, port: int, database: str = "postgres") -> str:
        """Return how the superuser enters over the socket, where the kernel vouches for the OS user."""
        return make_conninfo(host=str(self.sockets), port=port, user=ADMIN, dbname=database)

    def give(self, path: Path) -> Path:
        """Make the servers' user own a path, and return it."""
        if self.server_user:
            shutil.chown(path, self.server_user)
        return path


class Sandbox(Site):
    """A running sandbox; `Sandbox.load(directory)` gives the same again.

    One that does not archive has a PostgreSQL which this host's pgBackRest does not know, and no stanza.
    """

    primary_port: int
    ops_port: int
    s3_port: int
    archives: bool = True

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the sandbox of a directory, or raise ConfigError when none was completed there."""
        file = directory.resolve() / MARKER
        try:
            return cls.model_validate_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"no sandbox in '{directory}'", hint="start one with 'pgvigil sandbox up'"
            ) from None
        except ValidationError:
            raise ConfigError(
                f"the sandbox in '{directory}' was never completed",
                hint=f"remove it with 'pgvigil sandbox down --dir {directory}'",
            ) from None

    @property
    def endpoint_url(self) -> str:
        """The S3 endpoint."""
        return f"https://{HOST}:{self.s3_port}"

    @property
    def primary_admin_dsn(self) -> str:
        """The operated cluster as superuser."""
        return self.admin_dsn(self.primary_port)

    @property
    def ops_admin_dsn(self) -> str:
        """The audit log's database as superuser."""
        return self.admin_dsn(self.ops_port, "ops")

    @property
    def environment(self) -> dict[str, str]:
        """What DIR/env exports, secrets included, as it stands now."""
        words = shlex.split(self.env_file.read_text(encoding="utf-8"))
        return dict(word.split("=", 1) for word in words if "=" in word)

    def dsn(self, database: str = "postgres", role: str = "pgvigil") -> str:
        """Return how a role enters the operated cluster over TCP; its password is in DIR/pgpass."""
        return url(role, self.primary_port, database)

    def ops_dsn(self, database: str = "ops", role: str = "pgvigil") -> str:
        """Return how a role enters the second cluster over TCP; its password is in DIR/pgpass."""
        return url(role, self.ops_port, database)

    def export(self, variables: Mapping[str, str]) -> None:
        """Add variables to DIR/env, replacing those of the same name."""
        write_env(self.env_file, self.environment | dict(variables))

    def start_service(
        self, name: str, argv: Sequence[str | Path], env: Mapping[str, str] | None = None
    ) -> int:
        """Start one more program of this sandbox as the invoking user and return its process id.

        It gets DIR/env and `env`, writes to DIR/log/NAME.log, and ends with `down`.
        """
        return services.start_service(self.directory, name, argv, env={**self.environment, **(env or {})})


def url(role: str, port: int, database: str) -> str:
    """Render a connection string as the fleet file has it."""
    return f"postgresql://{quote(role, safe='')}@{HOST}:{port}/{quote(database, safe='')}"


def write_env(file: Path, variables: Mapping[str, str]) -> None:
    """Write the file to source."""
    write_private(file, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))


def server_user() -> str | None:
    """Return the unprivileged user for the servers when we are root, else None."""
    if os.geteuid() != 0:
        return None
    return next(user for user in ("postgres", "nobody") if services.exists(user))
