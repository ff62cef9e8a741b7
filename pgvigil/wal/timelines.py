"""Timelines: the tree that the history files tell, and what became of each."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from pgvigil.wal.names import parse_lsn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

ENDLESS = 2**64


class Fate(StrEnum):
    """What a timeline is to the server: its present, its past, a past given up, or somebody else's.

    UNKNOWN is one that is newer than a standby's: its primary may have gone there.
    """

    LIVE = "live"
    ANCESTOR = "ancestor"
    ABANDONED = "abandoned"
    STRAY = "stray"
    UNKNOWN = "unknown"


class Branch(NamedTuple):
    """A line of a history file: the timeline that was left, and where (bytes)."""

    timeline: int
    lsn: int


class Stretch(NamedTuple):
    """The segments, by number, that a line takes from one timeline."""

    timeline: int
    first: int
    last: int


# PostgreSQL src/backend/access/transam/timeline.c: id, switch point, reason; '#' begins a comment.
_LINE = re.compile(r"^\s*([0-9]{1,10})\s+([0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8})(?:\s.*)?$")


def read_history(text: str) -> tuple[Branch, ...]:
    """Read a history file, oldest ancestor first; raises ValueError for what is none."""
    branches: list[Branch] = []
    # Only a line feed ends a line: the name of a restore point may hold whatever else counts as one.
    for line in text.split("\n"):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.match(line)
        if match is None:
            raise ValueError(f"not a line of a history file: {line[:60]!r}")
        branch = Branch(int(match[1]), parse_lsn(match[2]))
        if branches and (branch.timeline <= branches[-1].timeline or branch.lsn < branches[-1].lsn):
            raise ValueError(f"timeline {branch.timeline} comes after {branches[-1].timeline}")
        branches.append(branch)
    if not branches:
        raise ValueError("it is empty")
    return tuple(branches)


def timeline_of(lsn: int, tip: int, branches: Iterable[Branch]) -> int:
    """Return the timeline of the WAL that ends at an LSN, on the way over these branches to a tip."""
    return next((branch.timeline for branch in branches if lsn <= branch.lsn), tip)


@dataclass
class Tree:
    """Who descends from whom; `unreadable` has the history files whose content is none, and why."""

    ancestry: dict[int, tuple[Branch, ...]] = field(default_factory=dict)
    unreadable: dict[int, str] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Mapping[int, str]) -> Tree:
        """Read the tree from the history files' contents."""
        tree = cls()
        for timeline, text in files.items():
            try:
                branches = read_history(text)
                if branches[-1].timeline >= timeline:
                    raise ValueError(f"it names timeline {branches[-1].timeline} as parent")  # noqa: TRY301
            except ValueError as error:
                tree.unreadable[timeline] = str(error)
            else:
                tree.ancestry[timeline] = branches
        return tree

    def branches(self, timeline: int) -> tuple[Branch, ...]:
        """Return a timeline's ancestors, from its own file or else from a descendant's."""
        if timeline in self.ancestry:
            return self.ancestry[timeline]
        for branches in self.ancestry.values():
            for index, branch in enumerate(branches):
                if branch.timeline == timeline:
                    return branches[:index]
        return ()

    def parent(self, timeline: int) -> Branch | None:
        """Return where a timeline branched off, or None for the first and the unknown."""
        branches = self.branches(timeline)
        return branches[-1] if branches else None

    def line(self, tip: int, segment_size: int) -> tuple[Stretch, ...]:
        """Return the way to a timeline: which segments, by number, recovery takes from which timeline.

        The segment in which a timeline ends is taken from its child, which begins with a copy of it.
        """
        stretches = []
        first = 0
        for branch in self.branches(tip):
            last = branch.lsn // segment_size - 1
            if last >= first:
                stretches.append(Stretch(branch.timeline, first, last))
            first = max(first, branch.lsn // segment_size)
        return (*stretches, Stretch(tip, first, ENDLESS))


def fates(
    tree: Tree,
    known: Iterable[int],
    live: int,
    receiving: Collection[int] = (),
    *,
    is_standby: bool = False,
) -> dict[int, Fate]:
    """Say of each timeline what it is to a server whose timeline is `live`.

    A server takes the next number that no history file in the archive has, so a higher number than its
    own was never in its past: somebody else pushed it. So did somebody with a timeline that was given up
    and was still `receiving` WAL when the server was already on its own.
    """
    ancestors = {branch.timeline for branch in tree.branches(live)}

    def fate(timeline: int) -> Fate:
        if timeline == live:
            return Fate.LIVE
        if timeline in ancestors:
            return Fate.ANCESTOR
        if timeline > live and is_standby:
            return Fate.UNKNOWN
        return Fate.STRAY if timeline > live or timeline in receiving else Fate.ABANDONED

    return {timeline: fate(timeline) for timeline in sorted({*known, live})}
