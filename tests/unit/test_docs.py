"""What the pages tell people to type is what the program takes."""

import importlib
import inspect
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from deployments.cli import app
from deployments.run import known_flows
from pgvigil.fleet import Fleet

HOUSE = Path(__file__).resolve().parents[2]
PAGES = [HOUSE / "README.md", *sorted((HOUSE / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`(pgvigil [^`]+)`")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

AUDIT = {"dsn": "postgresql://pgvigil@ops:5432/ops", "reports": "s3://acme/reports"}
CLUSTER = {"dsn": "postgresql://pgvigil@host:5432/postgres", "pgbackrest": {"stanza": "main"}}


def blocks(kind: str) -> Iterator[tuple[str, str]]:
    """Yield page and text of each block of a kind."""
    for page in PAGES:
        for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
            if found[1] == kind:
                yield page.name, found[2]


def shown() -> list[str]:
    """Collect every command of ours that stands in a block, to be copied."""
    return _ours(line.strip() for _, text in blocks("sh") for line in text.splitlines())


def told() -> list[str]:
    """Collect every command of ours that prose names."""
    return _ours(text for page in PAGES for text in _CODE.findall(page.read_text(encoding="utf-8")))


def _ours(texts: Iterable[str]) -> list[str]:
    return sorted({shlex.join(shlex.split(text, comments=True)) for text in texts if _is_ours(text)})


def _is_ours(text: str) -> bool:
    """Tell a whole command from a pattern such as `pgvigil run NAME SUBJECT`, or `pgvigil backfill …`."""
    return text.startswith("pgvigil ") and not re.search(r"…|\.\.\.|\b[A-Z]{3,}\b|[|&;<>\[]", text)


def parse(words: list[str]) -> dict[str, Any]:
    """Read a command line as the program would, and run nothing; raises what the program would say."""
    command: Any = typer.main.get_command(app)
    while getattr(command, "commands", None) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    found: dict[str, Any] = command.make_context("pgvigil", list(words)).params
    return found


@pytest.mark.parametrize("line", shown())
def test_a_command_in_a_block_is_whole(line: str) -> None:
    """It can be copied as it stands: with its subject, its options, a flow's name and parameters."""
    require_known(parse(shlex.split(line)[1:]))


@pytest.mark.parametrize("line", told())
def test_a_command_in_prose_is_one_that_the_program_takes(line: str) -> None:
    """As in a block, but it may leave its subject out."""
    try:
        given = parse(shlex.split(line)[1:])
    except Exception as refusal:
        if type(refusal).__name__ in {"MissingParameter", "NoArgsIsHelpError"}:
            return
        raise

    require_known(given)


def require_known(given: Mapping[str, Any]) -> None:
    """Of a command that names a flow: there is that flow, and it has these parameters."""
    if "flow" in given:
        assert given["flow"] in known_flows()
        module = given["flow"].replace("-", "_")
        flow = getattr(importlib.import_module(f"flows.{module}"), module)
        known = inspect.signature(flow.fn).parameters
        assert {pair.partition("=")[0] for pair in given["parameter"] or ()} <= set(known)


@pytest.mark.parametrize("text", [text for _, text in blocks("yaml") if not text.startswith(" ")])
def test_a_piece_of_the_fleet_file_in_the_docs_is_one_that_it_takes(text: str) -> None:
    """Whole, or the part that a page is about; what is indented lies deeper in one shown before."""
    piece = yaml.safe_load(text)
    if "databases" in piece:
        piece = {"clusters": {"one": piece}}
    clusters = {name: CLUSTER | cluster for name, cluster in piece.get("clusters", {"one": {}}).items()}

    Fleet.model_validate({"audit": AUDIT, **piece, "clusters": clusters})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_in_the_docs_leads_somewhere(page: Path) -> None:
    """To a file of this house; addresses elsewhere are nobody's promise here."""
    targets = [target for target in _LINK.findall(page.read_text(encoding="utf-8")) if "//" not in target]

    assert [] == [target for target in targets if not (page.parent / target).exists()]
