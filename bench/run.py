"""Run every comparison in turn, print one table and bring docs/bench.md up to it: run.py [NAME].

A comparison is a file here with `compare() -> list[Row]`; its name is the file's.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import page
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from measure import Row

HERE = Path(__file__).resolve().parent
NOT_COMPARISONS = {"run", "measure", "page"}


def main(only: str | None) -> None:
    """Run all comparisons, or one, and show and keep what they measured."""
    names = sorted(file.stem for file in HERE.glob("*.py") if file.stem not in NOT_COMPARISONS)
    if only and only not in names:
        sys.exit(f"no comparison '{only}'; there are: {', '.join(names)}")
    rows = [row for name in names if only in {None, name} for row in _compare(name)]
    Console(width=120).print(_table(rows))
    page.write()


def _compare(name: str) -> list[Row]:
    rows: list[Row] = importlib.import_module(name).compare()
    page.keep(name, rows)
    return rows


def _table(rows: Sequence[Row]) -> Table:
    table = Table("name", "size", "ours", "other", "other is", "unit", "ratio", "runs")
    for row in rows:
        figures = (f"{row.ours:g}", f"{row.other:g}", row.other_is, row.unit, f"{row.ratio:g}", str(row.runs))
        table.add_row(row.name, row.size, *figures)
    return table


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
