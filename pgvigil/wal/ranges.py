"""Sorted, disjoint, closed ranges of whole numbers: how a million segments are thought about as a few."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def ranges_of(numbers: Iterable[int]) -> list[Range]:
    """Join ascending numbers, repeats allowed, into ranges."""
    found: list[Range] = []
    first = last = None
    for number in numbers:
        if last is not None and number <= last + 1:
            last = number
            continue
        if first is not None and last is not None:
            found.append((first, last))
        first = last = number
    if first is not None and last is not None:
        found.append((first, last))
    return found


def clip(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """Return what of the ranges lies between first and last."""
    begin = bisect_left(ranges, first, key=lambda item: item[1])
    found = []
    for low, high in ranges[begin:]:
        if low > last:
            break
        found.append((max(low, first), min(high, last)))
    return found


def holes(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    """Return what between first and last is in no range."""
    found = []
    position = first
    for low, high in clip(ranges, first, last):
        if low > position:
            found.append((position, low - 1))
        position = high + 1
    if position <= last:
        found.append((position, last))
    return found


def without(ranges: Sequence[Range], taken: Sequence[Range]) -> list[Range]:
    """Return the ranges less what is in `taken`."""
    return [hole for first, last in ranges for hole in holes(taken, first, last)]


def union(*many: Iterable[Range]) -> list[Range]:
    """Join ranges; those that touch become one."""
    found: list[Range] = []
    for first, last in sorted(item for some in many for item in some):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return found


def run_from(ranges: Sequence[Range], number: int) -> int | None:
    """Return the last number of the range that holds `number`, or None when none does."""
    index = bisect_left(ranges, number, key=lambda item: item[1])
    if index < len(ranges) and ranges[index][0] <= number:
        return ranges[index][1]
    return None


def count(ranges: Iterable[Range]) -> int:
    """Count the numbers in the ranges."""
    return sum(last - first + 1 for first, last in ranges)
