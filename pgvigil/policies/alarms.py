"""The policy of keep_watch: whom alarms reach, and what is long."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field, StringConstraints

from pgvigil.policies.units import Duration
from pgvigil.reports import Frozen

Block = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+/[a-z0-9-]+$")]


class AlarmPolicy(Frozen):
    """How people hear of what is wrong, also of silence."""

    notify: tuple[Block, ...] = Field(
        default=(),
        description="notification blocks of Prefect as type/name, such as slack-webhook/dba; they hold the "
        "address and its secret. Without any, no automation is deployed",
    )
    signal_from: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*$",
        description="environment variable with the URL that hears of every watch that was kept: a dead-man's "
        "switch outside, which gives alarm when it hears nothing",
    )
    remind: Duration = Field(
        default=timedelta(days=1), description="how often an alarm that lasts is told again"
    )
    backfill_waits: Duration = Field(
        default=timedelta(hours=1), description="a backfill that waits longer than this is told"
    )
