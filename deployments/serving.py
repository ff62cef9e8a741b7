"""The process of a Prefect server on a free loopback port: `-m deployments.serving FILE [--temporary]`.

It listens first, writes its address into FILE, and only then loads Prefect. So nobody can take the port
in between, and who connects early waits in the socket instead of asking again and again. It ends at
once when told to; with `--temporary` its home goes with it, because whoever made that may be dead.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import NoReturn

HOST = "127.0.0.1"
PORT = "PGVIGIL_SERVER_PORT"  # set: that port, and no other


def main(announcement: Path, port: int) -> None:
    """Listen, announce the API's address in a file that appears whole, and serve until a signal comes."""
    with socket.create_server((HOST, port), backlog=256) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/api"
        os.environ["PREFECT_SERVER_UI_API_URL"] = url
        os.environ["PREFECT_UI_URL"] = url.removesuffix("/api")  # where messages of automations lead
        os.environ["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] = url.removesuffix("/api")
        draft = announcement.with_suffix(".new")
        draft.write_text(url, encoding="ascii")
        draft.replace(announcement)
        # Outside the main thread uvicorn leaves signals alone: its own way to end takes many seconds.
        server = threading.Thread(target=_serve, args=(listener,), daemon=True)
        server.start()
        server.join()


def _serve(listener: socket.socket) -> None:
    import uvicorn  # noqa: PLC0415 - the address is announced before anything slow

    application = "prefect.server.api.server:create_app"
    config = uvicorn.Config(application, factory=True, lifespan="on", log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


def _vanish(_signal: int, _frame: object) -> NoReturn:
    """Remove the server's home and end, without a word to threads that would write there again."""
    shutil.rmtree(os.environ["PREFECT_HOME"], ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    if "--temporary" in sys.argv:
        signal.signal(signal.SIGTERM, _vanish)
    main(Path(sys.argv[1]), int(os.environ.get(PORT, "0")))
