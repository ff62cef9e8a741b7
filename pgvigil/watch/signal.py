"""The dead-man's signal: a request to a URL of the operator's, whose absence is the alarm."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from pgvigil.errors import ConfigError, SignalFailed

SECONDS = 10.0


def read_url(variable: str) -> str:
    """Return the URL of an environment variable; raises ConfigError when it is missing or none."""
    url = os.environ.get(variable, "")
    if not _is_url(url):
        raise ConfigError(
            f"environment variable '{variable}' holds no URL for the signal",
            hint="set it where the worker runs, or take alarms.signal_from out of the fleet file",
        )
    return url


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets, a port or a host name that are none
        return False


def place(url: str) -> str:
    """Name where a URL leads without what may be its secret: path and query often are."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def send(url: str) -> int:
    """Ask the URL once and return its HTTP status; raises SignalFailed, which may pass."""
    request = urllib.request.Request(url, headers={"User-Agent": "pgvigil"})  # noqa: S310 - read_url looked
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 - as above
            return int(answer.status)
    except urllib.error.HTTPError as error:
        told, status = f"answers with HTTP {error.code}", error.code
    except (OSError, http.client.HTTPException) as error:
        told, status = f"does not answer: {getattr(error, 'reason', None) or type(error).__name__}", None
    raise SignalFailed(
        f"{place(url)} {told}, expected HTTP 200",
        hint="look at the service and the way to it; until it hears again, it takes pgvigil for dead",
        status=status,
    )
