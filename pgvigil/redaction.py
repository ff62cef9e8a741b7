"""Secrets are masked wherever text leaves the program: by their values, and by the names before them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

MASK = "***"
LONGEST_SECRET = 8192  # bytes; what is cut into pieces keeps as much back, or it would cut a secret in two

_NAME = "(?:password|passwd|passphrase|secret|cipher[-_]pass|access[-_]key|session[-_]token)"
_KEY = re.compile(_NAME, re.IGNORECASE)
_URL = re.compile(r"(://[^\s:/@]*:)[^\s/]*@")
_ASSIGNED = re.compile(
    rf"""({_NAME}\w{{0,32}}["']?\s{{0,8}}[=:]\s{{0,8}})('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s&;,'"]+)""",
    re.IGNORECASE,
)
_WORDS = ("passw", "passphrase", "secret", "cipher", "access", "session")  # one of them is in every name
_VARIABLE = re.compile(r"KEY|SECRET|PASS|TOKEN|CIPHER|CREDENTIAL|AUTH_STRING", re.IGNORECASE)
_PLACE = "FILE"  # what such a variable ends with where it only says in which file the secret is
_SHORTEST = 6  # characters; less would mask half of every sentence


def is_secret(key: str) -> bool:
    """Tell whether what stands under this key is a secret, by its name."""
    return bool(_KEY.search(key))


def redact(text: str) -> str:
    """Mask passwords in connection strings and in `name=value` pairs whose name is that of a secret."""
    if "://" in text:
        text = _URL.sub(rf"\1{MASK}@", text)
    small = text.lower()  # every line of every tool comes here, and nearly none names a secret
    return _ASSIGNED.sub(rf"\1{MASK}", text) if any(word in small for word in _WORDS) else text


def redactor(env: dict[str, str] | None = None) -> Callable[[str], str]:
    """Return `redact` that masks the values of secret-looking variables as well, each line of them alone too.

    `env` is this process's environment unless given.
    """
    source = os.environ if env is None else env
    held = [v for name, v in source.items() if _VARIABLE.search(name) and not name.endswith(_PLACE)]
    parts = {part for value in held for part in (value, *value.splitlines()) if len(part) >= _SHORTEST}
    values = sorted(parts, key=len, reverse=True)

    def mask(text: str) -> str:
        for value in values:
            text = text.replace(value, MASK)
        return redact(text)

    return mask
