"""Names of tables as SQL writes them: folded unless quoted, a dot between schema and table."""

from __future__ import annotations

import re
import string

_SPACE = r" \t\n\r\f\v"
_PART = re.compile(rf'[{_SPACE}]*(?:"((?:[^"]|"")+)"|([^{_SPACE}."][^{_SPACE}.]*))[{_SPACE}]*(\.|\Z)')
_FOLD = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_PLAIN = re.compile(r"[a-z_][a-z0-9_$]*")
_LONGEST = 63  # bytes; the server cuts what is longer


def read_name(text: str) -> tuple[str, ...]:
    """Split a name into its parts as the catalog has them, just as to_regclass does; raises ValueError."""
    parts: list[str] = []
    place = 0
    while found := _PART.match(text, place):
        raw = found[1].replace('""', '"') if found[1] else found[2].translate(_FOLD)
        parts.append(raw.encode()[:_LONGEST].decode(errors="ignore"))
        place = found.end()
        if not found[3]:
            return tuple(parts)
    raise ValueError(f"'{text}' is no name as SQL writes it: quote what is not lower-case letters and digits")


def write_name(*parts: str) -> str:
    """Write a name so that it reads back as these parts."""
    return ".".join(part if _PLAIN.fullmatch(part) else '"' + part.replace('"', '""') + '"' for part in parts)
