"""Named SQL blocks: `-- name: what it is for`, then one statement; loaded once per file."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString

_BLOCK = re.compile(r"^-- ([a-z_]+): (.+)$", re.MULTILINE)


@cache
def blocks(file: str) -> dict[str, LiteralString]:
    """Read the named blocks of `pgvigil/sql/<file>.sql`."""
    text = files(__package__).joinpath(f"{file}.sql").read_text(encoding="utf-8")
    heads = list(_BLOCK.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    # The files are part of the package: nobody's input reaches them, so they are literal strings.
    return {head[1]: text[head.end() : end].strip() for head, end in zip(heads, ends, strict=True)}


def query(file: str, name: str) -> LiteralString:
    """Return one named block."""
    return blocks(file)[name]
