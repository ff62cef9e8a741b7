"""Text of the users' world as it can be shown: a name can neither hide nor disguise itself."""

from __future__ import annotations

import unicodedata

# Controls, formats such as those that turn the direction of writing, halves of signs, what is no sign at all.
_UNSEEN = {"Cc", "Cf", "Cn", "Cs", "Zl", "Zp"}


def visible(text: str) -> str:
    """Spell out what shows nothing or turns the direction of writing; a line feed stays."""
    return "".join(map(_seen, text))


def _seen(sign: str) -> str:
    if sign == "\n" or unicodedata.category(sign) not in _UNSEEN:
        return sign
    return f"\\u{ord(sign):04x}"
