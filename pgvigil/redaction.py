"""Secrets are masked wherever text leaves the program: by their values, and by the names before them."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

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
# pgBackRest quotes a line of its configuration that it cannot read, such as one without '='.
_OPTION = re.compile(
    r"(\b(?:repo\d{1,3}-)?(?:cipher-pass|s3-key|s3-key-secret|s3-token|azure-key|gcs-key)\s{1,8})(?=[^\s=:])[^\s,]+"
)
_OPTIONS = ("cipher-pass", "s3-", "azure-key", "gcs-key")
_WORDS = ("passw", "passphrase", "secret", "cipher", "access", "session")  # one of them is in every name
_VARIABLE = re.compile(r"KEY|SECRET|PASS|TOKEN|CIPHER|CREDENTIAL|AUTH_STRING", re.IGNORECASE)
_PLACE = "FILE"  # what such a variable ends with where it only says in which file the secret is
_SHORTEST = 6  # characters; less would mask half of every sentence


def is_secret(key: str) -> bool:
    """Tell whether what stands under this key is a secret, by its name."""
    return bool(_KEY.search(key))


def redact(text: str) -> str:
    """Mask passwords in connection strings, and values beside a name that is that of a secret."""
    if "://" in text:
        text = _URL.sub(rf"\1{MASK}@", text)
    if any(option in text for option in _OPTIONS):
        text = _OPTION.sub(rf"\1{MASK}", text)
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


def masked(value: Any, mask: Callable[[str], str]) -> Any:
    """Return a value, a model or a container, with every text in it masked; what holds no secret stays."""
    if isinstance(value, str):
        text = mask(value)
        return value if text == value else text  # a word of an enumeration stays one
    if isinstance(value, BaseModel):
        return value.model_copy(update={name: masked(item, mask) for name, item in value})
    if isinstance(value, dict):
        return {key: masked(item, mask) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, mask) for item in value]
    return tuple(masked(item, mask) for item in value) if isinstance(value, tuple) else value
