"""A cluster's WAL archive as the steps of a proof have it in hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgvigil.wal.server import Server, read_server

if TYPE_CHECKING:
    from pgvigil.fleet import ClusterSettings
    from pgvigil.pgbackrest import PgBackRest, StanzaInfo
    from pgvigil.policies.wal import WalPolicy
    from pgvigil.runs import Run


@dataclass(frozen=True)
class Archive:
    """A cluster's WAL archive: how to reach it, and the ledger to write into."""

    run: Run
    settings: ClusterSettings
    pgbackrest: PgBackRest

    @property
    def stanza(self) -> str:
        """The stanza's name."""
        return self.settings.pgbackrest.stanza

    @property
    def policy(self) -> WalPolicy:
        """What the fleet file asks of this archive."""
        return self.settings.wal

    def server(self) -> Server:
        """Ask the server now."""
        return read_server(self.settings.dsn, self.run.name)


def archive_id_of(info: StanzaInfo, repo: int) -> str:
    """Return the archive id, such as 15-1, into which the server archives now."""
    history = info.history(repo)
    return f"{history.version}-{history.id}"
