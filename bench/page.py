"""Keeps what was measured in docs/bench/results.json; brings tables and drawings of it into docs/bench.md.

The words of the page are written by hand; between `<!-- NAME -->` and `<!-- end -->` stands what this makes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from itertools import groupby, pairwise
from math import log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgvigil import svg
from pgvigil.sandbox.postgres import find_programs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from measure import Row

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "bench.md"
DRAWINGS = DOCS / "bench"
RESULTS = DRAWINGS / "results.json"
Kept = dict[str, Any]

_BLOCK = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 260, 60, 40, 40
_OURS, _OTHER, _INK = "#1f6feb", "#8c959f", "#24292f"


def keep(comparison: str, rows: Iterable[Row]) -> None:
    """Store rows in place of those that measured the same before, each with its day and machine."""
    where = {"comparison": comparison, "day": f"{datetime.now(UTC):%Y-%m-%d}", "machine": _machine()}
    new = {_key(row): row for row in (row.as_json() | where for row in rows)}
    every = {_key(row): row for row in read()} | new
    DRAWINGS.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(sorted(every.values(), key=_key), indent=2) + "\n", encoding="utf-8")


def read() -> list[Kept]:
    """Return every row that was kept, in the page's order."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def write() -> None:
    """Bring the page and its drawings up to what is kept."""
    for name, drawing in drawings(read()).items():
        (DRAWINGS / f"{name}.svg").write_text(drawing, encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")


def page(text: str, rows: Sequence[Kept]) -> str:
    """Return the page with every block made anew; a block without rows says so."""

    def block(found: re.Match[str]) -> str:
        own = [row for row in rows if row["comparison"] == found[2]]
        return found[1] + "\n".join([*_table(own), "", *_figures(own)]) + found[3]

    return _BLOCK.sub(block, text)


def drawings(rows: Sequence[Kept]) -> dict[str, str]:
    """Draw how each comparison grows: those that were measured at two sizes or more."""
    return {name: _draw(name, series) for name, series in _grown(rows)}


def _key(row: Kept) -> tuple[str, str, float, str, str]:
    return row["comparison"], row["name"], _number(row), row["size"], row["other_is"]


def _number(row: Kept) -> float:
    found = re.search(r"[\d.]+", row["size"].replace(" ", ""))
    return float(found[0]) if found else 0.0


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    server = _version([str(find_programs(None) / "postgres"), "--version"])
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {platform.python_version()},"
        f" PostgreSQL {server}, pgBackRest {_version(['pgbackrest', 'version'])}"
    )


def _version(argv: Sequence[str]) -> str:
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return re.findall(r"\d+\.[\d.]*\d", told)[0]


def _table(rows: Sequence[Kept]) -> Iterator[str]:
    if not rows:
        yield "Not measured yet."
        return
    yield "| what | size | pgvigil | other | other is | unit | other ÷ pgvigil | turns |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        told = (row["name"], row["size"], f"{row['ours']:g}", f"{row['other']:g}", _cell(row["other_is"]))
        yield "| " + " | ".join([*told, row["unit"], f"{row['ratio']:.2f}", str(row["runs"])]) + " |"
    yield ""
    for (day, machine), _ in groupby(sorted((row["day"], row["machine"]) for row in rows)):
        yield f"Measured on {day}: {machine}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _figures(rows: Sequence[Kept]) -> Iterator[str]:
    for name, _ in _grown(rows):
        yield f"![{name}: seconds by size](bench/{name}.svg)"
        yield ""


def _grown(rows: Sequence[Kept]) -> Iterator[tuple[str, list[Kept]]]:
    for name, own in groupby((row for row in rows if row["unit"] == "s"), key=lambda row: row["name"]):
        series = list(own)
        if len({_number(row) for row in series}) > 1:
            yield name, series


def _draw(name: str, rows: Sequence[Kept]) -> str:
    """Draw seconds over size, both axes logarithmic, ours and the other's."""
    sizes = sorted({_number(row) for row in rows})
    seconds = [row[side] for row in rows for side in ("ours", "other")]
    low, high = 10 ** _floor(min(seconds)), 10 ** (_floor(max(seconds)) + 1)

    def at(size: float, value: float) -> svg.Point:
        across = (log10(size) - log10(sizes[0])) / (log10(sizes[-1]) - log10(sizes[0]))
        up = (log10(value) - log10(low)) / (log10(high) - log10(low))
        height = _HEIGHT - _TOP - _BOTTOM
        return _LEFT + across * (_WIDTH - 2 * _LEFT), _HEIGHT - _BOTTOM - up * height

    shapes = [svg.text((_LEFT, 20), f"{name}: seconds", _INK, bold=True)]
    for power in range(_floor(low), _floor(high) + 1):
        left, right = at(sizes[0], 10**power), at(sizes[-1], 10**power)
        shapes += [
            svg.line(left, right, "#d0d7de"),
            svg.text((left[0] - 8, left[1] + 4), f"{10**power:g}", _INK, "end"),
        ]
    for row in rows:
        foot = at(_number(row), low)
        shapes.append(svg.text((foot[0], foot[1] + 18), row["size"], _INK, "middle"))
    for side, colour, label in (("other", _OTHER, "other"), ("ours", _OURS, "pgvigil")):
        points = [at(_number(row), row[side]) for row in rows]
        shapes += [svg.line(*pair, colour, 2) for pair in pairwise(points)]
        shapes += [
            svg.box((x - 3, y - 3), (6, 6), colour, f"{label}, {row['size']}: {row[side]:g} s")
            for (x, y), row in zip(points, rows, strict=True)
        ]
        shapes.append(svg.text((_WIDTH - _LEFT + 8, points[-1][1] + 4), label, colour))
    return svg.document(_WIDTH, _HEIGHT, f"{name}: seconds by size, pgvigil and the other", shapes) + "\n"


def _floor(value: float) -> int:
    return int(log10(value) // 1)
