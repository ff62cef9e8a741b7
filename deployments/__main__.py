"""The program's first step: while the rest still loads, Ctrl-C ends it with a message and exit code 2."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def main() -> None:
    """Load the command line and be it; an ignored SIGINT stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _give_up)
    # Prefect reads it when it is imported, and a server that is not ours may have its own telemetry on.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from deployments import cli  # noqa: PLC0415 - loading takes a while, and may be interrupted

    if signal.getsignal(signal.SIGINT) is _give_up:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


def _give_up(_signal: int, _frame: object) -> NoReturn:
    os.write(2, b"error: interrupted; nothing was begun\n")
    os._exit(2)


if __name__ == "__main__":
    main()
