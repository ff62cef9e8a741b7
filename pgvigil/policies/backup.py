"""The policy of nightly_backup."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import Field
from typing_extensions import override

from pgvigil.policies.clocks import Clock, Watched
from pgvigil.policies.units import Duration, ServerWait
from pgvigil.reports import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator


class Retention(Frozen):
    """What is kept at least, whatever the ages."""

    fulls: int = Field(default=2, ge=1, description="newest proven full backups that stay")
    days: int = Field(
        default=0, ge=0, description="each moment of so many days stays restorable, from the full before it"
    )


class BackupPolicy(Watched):
    """When which backup type is taken, and what a proof is worth."""

    full_every: Duration = Field(
        default=timedelta(days=7), description="age of the last proven full that calls for a new one"
    )
    diff_every: Duration | None = Field(
        default=None, description="age of the last full or diff that calls for a diff; without it, incr only"
    )
    max_chain: int = Field(default=14, ge=1, description="backups that may depend on one full")
    wal_ratio: float = Field(
        default=1.0,
        gt=0,
        description="WAL since the last full, in sizes of that full, that calls for a new one",
    )
    retention: Retention | None = Field(default=None, description="without it pgvigil expires nothing")
    fresh: Duration = Field(default=timedelta(hours=26), description="older proof is stale in pgvigil status")
    wait: ServerWait = Field(default=timedelta(minutes=1), description="how long to wait for a busy stanza")
    max_ready: int = Field(
        default=64, ge=0, description="WAL files waiting for the archiver that call for a warning"
    )
    clock_skew: Duration = Field(
        default=timedelta(seconds=5), description="difference of clocks between hosts that is a finding"
    )

    @override
    def clocks(self) -> Iterator[Clock]:
        yield Clock(flow="nightly_backup", proof="backup", max_age=self.fresh)
