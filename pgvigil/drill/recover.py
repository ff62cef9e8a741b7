"""Recover the copy to a stop, and watch it until it is there or has ended in another way."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pgvigil.drill import copy as copies
from pgvigil.drill.ending import judge
from pgvigil.drill.recovery import Outcome, Recovery, Replay, State
from pgvigil.drill.serverlog import PROMOTED, position
from pgvigil.errors import DatabaseFailed
from pgvigil.sql import query
from pgvigil.wal.names import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgvigil.drill.copy import Control, Copy, Server
    from pgvigil.drill.recovery import Stop, Watch

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_RESTARTS = 3  # the source's settings may have been raised so often between the backup and the stop


@contextmanager
def recover(copy: Copy, stop: Stop, watch: Watch) -> Iterator[Recovery]:
    """Start the copy, recover it to a stop, and yield how far it got; the server ends with the block.

    Inside the block the copy is paused at the stop, or promoted (default target, or a stop that came
    before the copy could take sessions), or has ended: `outcome`, `promoted` tell. A later stop goes on
    from the last restart point, unless the copy was promoted: `outcome` then says that it cannot. Settings
    that the source raised on the way are followed.
    """
    if _was_promoted(copy):
        yield _no_further(copy, stop)
        return
    with ExitStack() as stack:
        for attempt in range(_RESTARTS + 1):
            server = stack.enter_context(copies.running(copy, stop.settings()))
            recovery = _follow(server, stop, watch)
            if recovery.outcome is not Outcome.SETTINGS_TOO_LOW or attempt == _RESTARTS:
                break
            stack.close()
        yield recovery


def _was_promoted(copy: Copy) -> bool:
    """Ask the logs of earlier starts: from its promotion on a copy is on a timeline of its own."""
    logs = copy.place.log.glob("server-*.log")
    return any(PROMOTED in log.read_text(encoding="utf-8", errors="replace") for log in logs)


def _no_further(copy: Copy, stop: Stop) -> Recovery:
    control = copies.read_control(copy)
    return Recovery(
        outcome=Outcome.PROMOTED,
        stop=stop,
        message=f"recovery to {stop} was not tried: the copy was promoted at an earlier stop, where it took "
        "no sessions yet, because a transaction with more than 64 open subtransactions was at work",
        hint="drill again when that transaction has ended at the source, or with recovery_target=name",
        lsn=control.checkpoint,
        system_id=control.system_id,
    )


def _follow(server: Server, stop: Stop, watch: Watch) -> Recovery:
    """Watch until recovery has ended in one way or another."""
    control = server.control
    deadline = server.started + watch.deadline.total_seconds()
    told = ""
    while True:
        is_running = server.is_running()
        state = _look(server) if is_running else None
        over = time.monotonic() > deadline
        if not is_running or over or (state and (not state.in_recovery or state.pause == "paused")):
            return judge(server, stop, watch, state, is_running=is_running)
        lsn = (state.lsn if state else None) or position(server.lines(), control.segment_size)
        if lsn and lsn != told:
            told = lsn
            watch.on_progress(_progress(lsn, control, stop, state))
        time.sleep(_pause(time.monotonic() - server.started))


def _pause(elapsed: float) -> float:
    """Look often at a short replay, whose time is measured, and seldom at a long one."""
    return min(max(elapsed / 20, _SHORTEST_PAUSE), _LONGEST_PAUSE)


def _look(server: Server) -> State | None:
    """Ask the server where it is; None while it takes no sessions, or is just changing its state."""
    if copies.state(server.copy.place, server.held.pid) not in {"standby", "ready"}:
        return None
    try:
        with copies.connect(server.copy, "postgres", "pgvigil drill recovery") as connection:
            row = connection.execute(query("drill_copy", "replay")).fetchone()
    except DatabaseFailed:
        return None  # it ends, or is being promoted; the next look knows
    return State.model_validate(row)


def _progress(lsn: str, control: Control, stop: Stop, state: State | None) -> Replay:
    begin, now, end = (parse_lsn(text) for text in (control.checkpoint, lsn, stop.lsn))
    percent = 100.0 if end <= begin else max(0.0, min(100.0, 100 * (now - begin) / (end - begin)))
    committed_at = state.committed_at if state else None
    return Replay(lsn=lsn, target=stop.lsn, percent=percent, committed_at=committed_at)
