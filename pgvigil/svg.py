"""The few shapes of our drawings: plain SVG that stands alone, every word escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from pgvigil.visible import visible

if TYPE_CHECKING:
    from collections.abc import Iterable

Point = tuple[float, float]

_HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'font-family="sans-serif" font-size="12" role="img" aria-label={label}>'
)


def document(width: int, height: int, label: str, shapes: Iterable[str]) -> str:
    """Put shapes on white paper; the label is what a screen reader says."""
    head = _HEAD.format(width=width, height=height, label=quoteattr(visible(label)))
    paper = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, paper, *shapes, "</svg>"])


def text(at: Point, words: str, colour: str, anchor: str = "start", *, bold: bool = False) -> str:
    """Write words at a baseline; the anchor is start, middle or end."""
    x, y = at
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" fill={quoteattr(colour)} text-anchor="{anchor}"{weight}>'
        f"{escape(visible(words))}</text>"
    )


def box(corner: Point, size: Point, colour: str, title: str = "") -> str:
    """Draw a filled rectangle from its upper left corner; the title shows under the pointer."""
    (x, y), (width, height) = corner, size
    inside = titled(title) if title else ""
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill={quoteattr(colour)}'
    return f"{shape}>{inside}</rect>" if inside else f"{shape}/>"


def titled(words: str) -> str:
    """Name the shape around it: the words show under the pointer."""
    return f"<title>{escape(visible(words))}</title>"


def line(start: Point, end: Point, colour: str, width: float = 1) -> str:
    """Draw a straight line."""
    (x1, y1), (x2, y2) = start, end
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke={quoteattr(colour)} '
        f'stroke-width="{width:g}"/>'
    )
