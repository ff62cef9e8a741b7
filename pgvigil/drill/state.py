"""A drill as its steps have it in hand: what is drilled, what was planned, marked and is stopped at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgvigil.drill.facts import Phase
from pgvigil.wal.names import parse_lsn

if TYPE_CHECKING:
    from datetime import datetime

    from pgvigil.drill.catalogue import Catalogue
    from pgvigil.drill.choose import Choice, Wanted
    from pgvigil.drill.facts import PhaseName, Target
    from pgvigil.drill.history import History
    from pgvigil.drill.judgement import Judgement
    from pgvigil.drill.recovery import Stop
    from pgvigil.drill.source import Cluster, MarkedDatabase
    from pgvigil.drill.untouched import Listing
    from pgvigil.fleet import ClusterSettings
    from pgvigil.lock import HeldLock
    from pgvigil.pgbackrest import Backup, PgBackRest, StanzaInfo
    from pgvigil.policies.drill import DrillPolicy
    from pgvigil.runs import Run
    from pgvigil.wal.server import Server

# What a drill owes, in its order; what it does not get to is told as not proven.
OWED = {
    "restored": "the set restored, every file as its manifest says",
    "recovered": "replay reaches the target",
    "witnesses": "the commit before the target is there, the one after it is not",
    "identity": "the copy is the source's system",
    "rows": "every table equal to the source at the mark",
    "catalogue": "the same objects as the source",
    "sequences": "no sequence behind the source",
    "amcheck": "every database sound",
    "checksums": "no page fails its checksum",
    "untouched": "the repository as it was",
    "clean": "nothing left of the copy",
}


@dataclass
class Drill:
    """A stanza that is drilled: how to reach it, what was asked for, and the ledger to write into."""

    run: Run
    settings: ClusterSettings
    pgbackrest: PgBackRest
    lock: HeldLock
    wanted: Wanted
    keep: bool = False
    phases: list[Phase] = field(default_factory=list)

    @property
    def policy(self) -> DrillPolicy:
        """What the fleet file asks of drills."""
        return self.settings.drill

    @property
    def stanza(self) -> str:
        """The stanza's name."""
        return self.settings.pgbackrest.stanza

    def take(self, judgement: Judgement) -> None:
        """Write what a judge found into the ledger."""
        self.run.checks += judgement.checks
        self.run.findings += judgement.findings

    def note(self, name: PhaseName, seconds: float, size: int = 0) -> None:
        """Add a phase's time."""
        self.phases.append(Phase(name=name, seconds=seconds, bytes=size))


@dataclass(frozen=True)
class Plan:
    """What is to be restored, and the world before."""

    choice: Choice
    backup: Backup
    info: StanzaInfo
    cluster: Cluster
    server: Server
    history: History

    @property
    def archive_id(self) -> str:
        """Where the set's WAL lies, such as 15-1."""
        return self.info.archive_id(self.backup)

    def wal_bytes(self, lsn: str | None) -> int:
        """Return the bytes of WAL from the set's start to an LSN."""
        if self.backup.lsn is None or lsn is None:
            return 0
        return max(parse_lsn(lsn) - parse_lsn(self.backup.lsn.start), 0)


@dataclass(frozen=True)
class Marked:
    """The source as it was marked: each database, the target, and what lay in the repository before."""

    target: Target
    databases: tuple[MarkedDatabase, ...]
    listing: Listing
    stored_at: datetime
    arrival_seconds: float | None = None


@dataclass(frozen=True)
class Halt:
    """A stop of the recovery: where, and which databases are compared there, or what all of them share."""

    stop: Stop
    databases: tuple[MarkedDatabase, ...]
    is_last: bool
    shared: tuple[Catalogue, Catalogue] | None = None
