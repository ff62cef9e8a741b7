"""YAML that people write: nothing is guessed at, and every fault is one message with its place."""

from __future__ import annotations

import re
from typing import Any

import yaml
from typing_extensions import override
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.cyaml import CParser  # type: ignore[attr-defined]
from yaml.resolver import Resolver

from pgvigil.errors import ConfigError

# YAML can escape them, and no database, path, program or JSON document takes them.
_UNUSABLE = re.compile(r"[\x00\ud800-\udfff]")


def parse(what: str, text: str) -> object:
    """Read a document; `what` names the file in the message. Raises ConfigError."""
    try:
        return yaml.load(text, _Loader)  # type: ignore[arg-type]  # noqa: S506 - safe as a SafeLoader is
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise ConfigError(f"{what}{_told(error)}", hint="it must be valid YAML") from error
    except RecursionError:
        raise ConfigError(
            f"{what} is nested too deeply", hint="look for brackets that are not closed"
        ) from None


def _told(error: yaml.YAMLError | UnicodeEncodeError) -> str:
    """Say what is wrong where; what is never closed is noticed at the end, and told from its beginning."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": {' '.join(str(error).split())}"
    began = f" {error.context}, from {_place(error.context_mark)}" if error.context_mark else ""
    return f" {_place(error.problem_mark)}: {error.problem}{began}"


def _place(mark: yaml.Mark) -> str:
    return f"line {mark.line + 1}, column {mark.column + 1}"


class _Loader(Composer, CParser, SafeConstructor, Resolver):
    """Reads YAML like a SafeLoader, and refuses what that would guess at or stumble over.

    It is read by libyaml, for a fleet of hundreds of databases takes seconds without; it is put together
    in Python, where what is nested too deeply is an error and no crash.
    """

    def __init__(self, text: str) -> None:
        CParser.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    @override
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key '{key.value}' stands there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return node

    @override
    def construct_document(self, node: yaml.Node) -> Any:
        self.deep_construct = True  # an alias within what it names is refused then, and not built
        return super().construct_document(node)

    @override
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            built = super().construct_object(node, deep)
        except (ValueError, ArithmeticError, LookupError, AttributeError):  # PyYAML's own, for a bad scalar
            raise yaml.MarkedYAMLError(
                problem=f"cannot read '{str(node.value)[:40]}': quote it if it is text",
                problem_mark=node.start_mark,
            ) from None
        if isinstance(built, str) and _UNUSABLE.search(built):
            raise yaml.MarkedYAMLError(
                # Unspoken: it may be a password.
                problem="it holds a NUL or half of a sign, which no server takes",
                problem_mark=node.start_mark,
            )
        return built
