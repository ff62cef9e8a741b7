"""What the proof costs: the whole process of an incremental nightly backup beside plain pgBackRest."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from measure import PGVIGIL, TURNS, Row, call, paired

from pgvigil.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER = "pgbackrest backup --type=incr and info"
INCR = ("run", "nightly-backup", "demo", "-p", "backup_type=incr", "--json")


def compare() -> list[Row]:
    """Measure with the sandbox's Prefect server, with a server of the run's own, and without pgvigil."""
    with _sandbox() as box:
        call([PGVIGIL, *INCR[:-2], "backup_type=full", "--json"], box.environment)
        size = _size(box)
        sides = [partial(_ours, box), partial(_ours, box, "--local"), partial(_other, box)]
        served, local, other = paired(sides)
        _tell_the_rest(box, served - other)
    row = partial(Row, size=size, other=other, other_is=OTHER, unit="s", runs=TURNS)
    return [row(name="backup_overhead", ours=served), row(name="backup_overhead_local", ours=local)]


@contextmanager
def _sandbox() -> Iterator[Sandbox]:
    parent = Path(tempfile.mkdtemp(prefix="pgvigil-bench-", dir="/tmp"))
    parent.chmod(0o755)
    try:
        call([PGVIGIL, "sandbox", "up", "--dir", parent / "box"])
        yield Sandbox.load(parent / "box")
    finally:
        call([PGVIGIL, "sandbox", "down", "--dir", parent / "box"])
        shutil.rmtree(parent)


def _ours(box: Sandbox, *options: str) -> None:
    report = json.loads(call([PGVIGIL, *INCR, *options], box.environment))
    if report["verdict"] != "verified":
        sys.exit(f"a backup that was not proven cannot be compared: {report['findings']}")


def _other(box: Sandbox) -> None:
    _pgbackrest(box, "--type=incr", "backup")
    _pgbackrest(box, "--output=json", "info")


def _pgbackrest(box: Sandbox, *words: str) -> str:
    user = box.server_user if os.geteuid() == 0 else None
    return call(
        ["pgbackrest", f"--config={box.pgbackrest_conf}", "--stanza=demo", *words], box.environment, user
    )


def _size(box: Sandbox) -> str:
    (stanza,) = json.loads(_pgbackrest(box, "--output=json", "info"))
    size = stanza["backup"][-1]["info"]["size"] / 1024**2
    return f"incr of a {size:.0f} MB cluster"


def _tell_the_rest(box: Sandbox, above: float) -> None:
    """Say where the time above plain pgBackRest goes, as far as it can be measured from outside."""
    parts = {
        "start Python": "pass",
        "import the flow, Prefect included": "import flows.nightly_backup",
        "import it and call an empty flow": _EMPTY_FLOW,
    }
    print(f"with a server: {above:.1f} s above plain pgBackRest. Whole processes for comparison:")
    for what, code in parts.items():
        (seconds,) = paired([partial(call, [sys.executable, "-c", code], box.environment)])
        print(f"  {seconds:5.1f} s  {what}")


_EMPTY_FLOW = """
import flows.nightly_backup
from prefect import flow
@flow
def nothing(): pass
nothing()
"""
