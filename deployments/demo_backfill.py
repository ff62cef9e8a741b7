"""What `make demo` shows of a backfill: its progress, its death in the middle, and how it goes on."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pgvigil.backfill import steering
from pgvigil.errors import ToolFailed
from pgvigil.fleet import load_fleet
from pgvigil.postgres import connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.sandbox import Sandbox

SUBJECT, NAME = "demo/shop", "cents"
ARGV = ("run", "run-backfill", SUBJECT, "-p", f"backfill={NAME}", "--json")
PAYMENTS = 400_000
_PATIENCE = 120.0
_POLL = 0.3
_KILL_AT = 0.3

_MORE = f"""
INSERT INTO public.payments (order_id, method, amount)
SELECT 1 + n %% 6000, 'card', n / 100.0 FROM pg_catalog.generate_series(1, {PAYMENTS}) AS n
"""  # noqa: S608 - our own number


def kill_in_the_middle(sandbox: Sandbox, tell: Callable[[str], object]) -> int:
    """Add payments, run the backfill until a third is done, kill it, and return how many rows it had done.

    The same command run once more goes on from there. Raises ToolFailed when it never got so far.
    """
    os.environ.update(sandbox.environment)
    with connect(sandbox.admin_dsn(sandbox.primary_port, "shop"), "demo") as session:
        session.execute(_MORE, {})
        session.execute("ANALYZE public.payments")
    program = Path(sys.executable).with_name("pgvigil")
    pid = sandbox.start_service("backfill-to-be-killed", [program, *ARGV])
    seen = _watch(tell)
    os.kill(pid, signal.SIGKILL)
    tell(f"killed process {pid} (SIGKILL) after {seen} rows")
    return seen


def _watch(tell: Callable[[str], object]) -> int:
    """Tell the progress until a third is done."""
    deadline, last = time.monotonic() + _PATIENCE, ""
    while time.monotonic() < deadline:
        progress = steering.show(load_fleet(), SUBJECT, NAME).progress
        if progress and progress.rows_seen and str(progress) != last:
            last = str(progress)
            tell(last)
        if progress and progress.rows_seen > _KILL_AT * progress.rows_total:
            return progress.rows_seen
        time.sleep(_POLL)
    raise ToolFailed(
        f"the backfill was not a third done within {_PATIENCE:g} s", hint="see log/backfill-to-be-killed.log"
    )
