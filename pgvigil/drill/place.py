"""The directory of one drill: where its parts lie, and whose it is."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from pydantic import Field, ValidationError

from pgvigil import liveness
from pgvigil.drill import copyprocesses
from pgvigil.reports import Frozen

OWNER = "owner.json"
SOCKET = ".s.PGSQL.5432"


class Place(Frozen):
    """Where the parts of one copy lie; `user` is the server's, None for the user we are."""

    directory: Path
    sockets: Path
    user: str | None = None

    @property
    def data(self) -> Path:
        """The copy's data directory."""
        return self.directory / "data"

    @property
    def tablespaces(self) -> Path:
        """Where every tablespace of the source is put, under its OID."""
        return self.directory / "tablespaces"

    @property
    def conf(self) -> Path:
        """The copy's configuration, ours alone to write."""
        return self.directory / "conf"

    @property
    def log(self) -> Path:
        """What server and pgBackRest say."""
        return self.directory / "log"

    @property
    def tools(self) -> Path:
        """Locks, logs and spool of pgBackRest, so that none of production's is touched."""
        return self.directory / "pgbackrest"

    @property
    def environment(self) -> dict[str, str]:
        """The variable by which every process of this copy is found."""
        return {copyprocesses.MARK: str(self.directory)}


class Request(Frozen):
    """What a drill needs to claim; `protected` are the source's data directory and tablespaces."""

    scratch: Path
    stanza: str
    run_id: UUID
    system_id: str
    user: str | None = None
    room: int = Field(default=0, ge=0, description="bytes")
    protected: tuple[Path, ...] = ()

    @property
    def directory(self) -> Path:
        """The directory that this drill gets."""
        return self.scratch / f"{self.stanza}-{self.run_id.hex[:8]}"


class Owner(Frozen):
    """Whose a directory is; it stands in the directory as `owner.json`."""

    run_id: UUID
    stanza: str
    system_id: str
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    process_started: int | None = Field(default_factory=liveness.own_start)
    pid_space: str = Field(default_factory=liveness.pid_space)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    keep_until: datetime | None = None
    sockets: Path
    user: str | None = None

    def place(self, directory: Path) -> Place:
        """Return the place of this owner."""
        return Place(directory=directory, sockets=self.sockets, user=self.user)

    def __str__(self) -> str:
        return f"run {self.run_id} (process {self.pid} on {self.host}, since {self.created_at:%F %T} UTC)"


def read_owner(directory: Path) -> Owner | None:
    """Read who owns a directory; None when it has no readable owner file, and is so nobody's of ours."""
    try:
        return Owner.model_validate_json((directory / OWNER).read_bytes())
    except (OSError, ValidationError):
        return None
