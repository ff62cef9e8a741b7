"""The JSON of `repo-ls`, entry by entry as it arrives, for listings too long to hold.

pgBackRest writes the bytes of names as they are, so they need not be UTF-8 and may hold any sign.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pgvigil.errors import ToolFailed

if TYPE_CHECKING:
    from collections.abc import Callable

TEXT = rb'"(?:[^"\\]|\\.)*+"'
# A key and its flat object.
ENTRY = re.compile(rb"[{,]?\s*(" + TEXT + rb")\s*:\s*(\{(?:" + TEXT + rb'|[^{}"])*+\})\s*', re.DOTALL)
_END = re.compile(rb"\s*\}?\s*$")
_LONGEST_ENTRY = 1 << 20  # bytes


class EntryStream:
    """Cuts a listing that comes in chunks into its entries, and hands each match of `entry` to `take`."""

    def __init__(self, entry: re.Pattern[bytes], take: Callable[[re.Match[bytes]], None]) -> None:
        self.entry = entry
        self.take = take
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next chunk; raises ToolFailed for what is no listing."""
        text = self._rest + chunk
        position = 0
        for match in self.entry.finditer(text, 0, text.rfind(b"}") + 1):
            if match.start() != position:
                break
            position = match.end()
            try:
                self.take(match)
            except (ValueError, TypeError, OverflowError) as error:  # sizes and times that are none
                raise _unreadable(match[0]) from error
        self._rest = text[position:]
        if len(self._rest) > _LONGEST_ENTRY:
            raise _unreadable(self._rest)

    def close(self) -> None:
        """Raise ToolFailed when the listing did not come whole."""
        if not _END.fullmatch(self._rest) or b"}" not in self._rest:
            raise _unreadable(self._rest)


def load(text: bytes) -> Any:
    """Read one key or value; what is no UTF-8 in it is kept as surrogates. Raises ToolFailed."""
    try:
        return json.loads(text.decode(errors="surrogateescape"), strict=False)
    except (ValueError, RecursionError) as error:
        raise _unreadable(text) from error


def _unreadable(rest: bytes) -> ToolFailed:
    return ToolFailed(
        f"pgbackrest's listing ends or breaks at {rest[:80]!r}",
        hint="a command prefix or login script may write to standard output, or the listing was cut off",
    )
