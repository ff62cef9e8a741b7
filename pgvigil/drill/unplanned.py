"""Hashing a table for which nothing may be planned: COPY gives its rows, and they are hashed here.

To plan a statement computes constant parts of the table's indexes, and so calls functions of whoever owns
the table, as the role that asks. COPY of a whole table reads its file and plans nothing. It is slower than
hashing in the server by about half, knows no part of a table, and leaves out generated columns.
"""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgvigil.postgres import copy_rows, sql

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgvigil.postgres import Connection

_HEAD = 19  # bytes: signature, flags, and the length of an extension that no version has
_END = b"\xff\xff"
_HALF = 8
_TOLD = 2**20  # bytes
_BINARY = sql.SQL("COPY {} TO STDOUT (FORMAT binary)")
_TEXT = sql.SQL("COPY {} TO STDOUT")


@dataclass
class Sums:
    """How many rows, and the sums of both halves of their hashes."""

    rows: int = 0
    low: int = 0
    high: int = 0

    def add(self, row: memoryview) -> None:
        """Count one row."""
        value = hashlib.blake2b(row, digest_size=2 * _HALF).digest()
        self.rows += 1
        self.low += int.from_bytes(value[:_HALF], "big")
        self.high += int.from_bytes(value[_HALF:], "big")


def hash_rows(
    connection: Connection, name: sql.Identifier, *, is_textual: bool, on_bytes: Callable[[int], None]
) -> Sums:
    """Hash every row of a table in the session's settings; `on_bytes` hears of each megabyte, and may raise.

    Raises the driver's errors.
    """
    sums, size = Sums(), 0
    head = 0 if is_textual else _HEAD
    with closing(copy_rows(connection, (_TEXT if is_textual else _BINARY).format(name))) as messages:
        for message in messages:
            row, head = message[head:], 0
            if not is_textual and row == _END:
                continue
            sums.add(row)
            size += len(row)
            if size >= _TOLD:
                on_bytes(size)
                size = 0
    return sums
