"""The policy of restore_drill."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import Field
from typing_extensions import override

from pgvigil.drill.facts import TargetKind
from pgvigil.policies.clocks import Clock, Duty, Watched
from pgvigil.policies.units import AbsolutePath, Dsn, Duration, ServerWait
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator


class Assertion(Frozen):
    """A statement about the restored data that must come out true: one row, one boolean column."""

    name: str = Field(min_length=1, description="how the report calls it")
    database: str = Field(description="the database that it is asked in")
    sql: str = Field(min_length=1, description="a query of one row with one boolean column")
    role: str | None = Field(
        default=None,
        description="the role it is run as, such as the application's; without it, pgvigil's own",
    )


class DrillPgBackRest(Frozen):
    """The pgBackRest of the drill's host, which may have credentials that only read."""

    config: AbsolutePath | None = Field(default=None, description="its pgbackrest.conf; without it the usual")
    command: tuple[str, ...] = Field(default=("pgbackrest",), min_length=1, description="the program")
    user: str | None = Field(
        default=None, description="user to run as, and the copy's server, when pgvigil itself runs as root"
    )


class DrillPolicy(Watched):
    """Where and how a restore is drilled, and what it must reach."""

    scratch: AbsolutePath = Field(
        default=Path("/var/lib/pgvigil/drill"),
        description="directory for the copies, on the host where pgvigil runs",
    )
    pgbackrest: DrillPgBackRest | None = Field(
        default=None, description="the pgbackrest of the host where pgvigil runs, if it is not the cluster's"
    )
    postgres_bin: AbsolutePath | None = Field(
        default=None, description="PostgreSQL's programs, of the source's major; looked for if not given"
    )
    wait: ServerWait = Field(
        default=timedelta(minutes=1), description="how long to wait for another drill of the stanza"
    )
    standby: Dsn | None = Field(default=None, description="a standby whose replay may be paused for the mark")
    mark: Literal["auto", "standby", "slot", "fence"] = Field(
        default="auto", description="how the compared point is fixed; auto takes the gentlest that works"
    )
    fence: Duration = Field(default=timedelta(milliseconds=200), description="longest that writers may wait")
    fence_for: Duration = Field(default=timedelta(minutes=5), description="how long to try for a fence")
    hash_for: Duration = Field(
        default=timedelta(hours=1), description="longest time that hashing may hold a snapshot on the source"
    )
    hash_rate: int | None = Field(default=None, ge=1, description="megabytes per second read on the source")
    hash_workers: int = Field(
        default=2, ge=1, le=32, description="sessions that hash at the same time, on each side"
    )
    archive_wait: Duration = Field(
        default=timedelta(minutes=5), description="how long the mark may take into the repository"
    )
    shared_buffers_mb: int = Field(default=128, ge=1, description="megabytes of shared_buffers of the copy")
    preload: tuple[str, ...] = Field(
        default=(), description="libraries that the copy needs in shared_preload_libraries"
    )
    assertions: tuple[Assertion, ...] = Field(
        default=(), description="what must be true of the restored data"
    )
    rto: Duration | None = Field(default=None, description="longest time that a restore may take")
    keep_for: Duration = Field(default=timedelta(hours=24), description="deadline of a copy that is kept")
    deadline: Duration = Field(default=timedelta(hours=24), description="longest time of one phase")
    fresh: Duration = Field(
        default=timedelta(days=35),
        description="longest time between proofs in pgvigil status; repositories and target kinds take "
        "turns, so each has so many times longer as there are",
    )

    @override
    def clocks(self) -> Iterator[Clock]:
        kinds = get_args(TargetKind)
        turn = Clock(flow="restore_drill", proof="restore", max_age=self.fresh, takes_turns=True)
        yield turn
        for kind in kinds:
            yield turn.model_copy(update={"detail": kind, "max_age": self.fresh * len(kinds)})

    @override
    def duties(self) -> Iterator[Duty]:
        yield Duty(flow="restore_drill", at_once=1)  # each fills a disk of this host with a whole cluster
        yield Duty(flow="reap_drills")
