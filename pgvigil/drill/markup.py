"""HTML that stands alone: whatever is not markup already is escaped, and a name cannot disguise itself."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from pgvigil.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_FOLD = 12  # rows, from which on a list is folded


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def html(value: object) -> Markup:
    """Turn a value into HTML; signs that show nothing, or turn the direction of writing, are spelled out."""
    if isinstance(value, Markup):
        return value
    return Markup(escape(visible(str(value))))


def tag(name: str, *children: object, **attributes: str) -> Markup:
    """Build one element; `class_` is written class, and no value can end its attribute."""
    words = "".join(f' {key.rstrip("_")}="{html(value)}"' for key, value in attributes.items())
    return Markup(f"<{name}{words}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Put parts one after the other; None and empty ones are nothing."""
    return Markup("".join(html(part) for part in parts if part is not None))


def name(text: object) -> Markup:
    """Show a name of the database's world: its own direction of writing, its own font, on one line."""
    return tag("bdi", str(text).replace("\n", "\\n"), class_="name")


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, figures: Sequence[int] = ()) -> Markup:
    """Build a table; the columns named in `figures` are set to the right."""
    classes = {column: {"class_": "figure"} for column in figures}

    def row(cells: Sequence[object], kind: str) -> Markup:
        return tag("tr", *(tag(kind, cell, **classes.get(at, {})) for at, cell in enumerate(cells)))

    return tag("table", tag("thead", row(head, "th")), tag("tbody", *(row(cells, "td") for cells in rows)))


def pairs(rows: Iterable[tuple[object, object]]) -> Markup:
    """Build a table of names and values."""
    return tag("table", tag("tbody", *(tag("tr", tag("th", key), tag("td", value)) for key, value in rows)))


def folded(title: object, *children: object) -> Markup:
    """Build a part that opens when asked to, and stands open on paper."""
    return tag("details", tag("summary", title), *children)


def badge(words: object, colour: str) -> Markup:
    """Show a word in a colour of its meaning: verified, refuted, inconclusive or plain."""
    return tag("span", words, class_=f"badge {colour}")


def listed(title: str, content: Markup, rows: int) -> Markup:
    """Show a list under its title; a long one is folded, and no list is nothing."""
    if not rows:
        return Markup()
    return folded(title, content) if rows > _FOLD else join([tag("h4", title), content])


def document(title: str, style: str, body: Iterable[object]) -> str:
    """Build a page that needs nothing but itself and cannot run anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", title),
        tag("style", Markup(style)),
    ]
    page = tag("html", tag("head", *head), tag("body", tag("main", *body)), lang="en")
    return f"<!doctype html>\n{page}\n"
