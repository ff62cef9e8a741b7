"""What every comparison uses: paired runs, their medians, and the row that make bench prints."""

from __future__ import annotations

import os
import pwd
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TURNS = max(3, int(os.environ.get("RUNS", "3")))
PGVIGIL = Path(sys.executable).with_name("pgvigil")


@dataclass(frozen=True)
class Row:
    """One comparison: medians in `unit`, less being better; `ratio` above 1 means that ours is better."""

    name: str
    size: str
    ours: float
    other: float
    other_is: str
    unit: str
    runs: int

    @property
    def ratio(self) -> float:
        """How many times the other side needs what we need."""
        return round(self.other / self.ours, 3)

    def as_json(self) -> dict[str, Any]:
        """Render the row as it is kept."""
        return asdict(self) | {"ratio": self.ratio}


def paired(sides: Sequence[Callable[[], object]], turns: int = TURNS, *, warm: bool = True) -> list[float]:
    """Run the sides in turn (A B A B …), so often each, and return each side's median seconds.

    One turn before them warms caches and is not counted, unless the work is so long that it warms its own.
    """
    for side in sides if warm else ():
        side()
    seconds = [[_seconds(side) for side in sides] for _ in range(turns)]
    return [round(statistics.median(column), 3) for column in zip(*seconds, strict=True)]


def _seconds(side: Callable[[], object]) -> float:
    began = time.perf_counter()
    side()
    return time.perf_counter() - began


def call(argv: Sequence[object], env: Mapping[str, str] | None = None, user: str | None = None) -> str:
    """Run a whole process as a user would and return its output; whatever fails ends the bench."""
    done = subprocess.run(
        [str(word) for word in argv],
        env={**os.environ, **(env or {})},
        **_identity(user),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, argv))} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _identity(user: str | None) -> dict[str, Any]:
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []} if user else {}
