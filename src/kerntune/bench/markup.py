"""HTML and SVG as values: the only place that makes foreign text safe for a page."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator
from typing import Final

MAX_TEXT: Final = 1000  # characters of any text on a page
SHORT: Final = 60  # characters of a name in a heading
MARKS: Final = 4  # combining marks in a row; Hebrew and Tibetan have as many
# str.isprintable accepts only the common space; figures are written with these two.
SPACES: Final = frozenset("\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}")
LINE_ENDS: Final = frozenset("\n\r\t")
VOID: Final = frozenset({"meta", "br"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def visible(text: str, longest: int = MAX_TEXT) -> str:
    """Return text on one line, cut; characters that act unseen (colours, text direction) show as `[U+202E]`."""
    shown = "".join(_visible(text[:longest]))
    return shown if max(len(text), len(shown)) <= longest else f"{shown[: longest - 1]}\N{HORIZONTAL ELLIPSIS}"


def _visible(text: str) -> Iterator[str]:
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.category(char) in {"Mn", "Me"} else 0
        if marks > MARKS:
            yield "\N{REPLACEMENT CHARACTER}" if marks == MARKS + 1 else ""
        elif char in LINE_ENDS:
            yield " "
        else:
            yield char if char.isprintable() or char in SPACES else f"[U+{ord(char):04X}]"


def element(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """Return an element; text among the children is escaped. `http_equiv` stands for http-equiv, `class_` for class."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_escaped(value)}"' for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: str) -> Markup:
    """Return the children, markup or text, one after the other."""
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children))


def _escaped(value: str | float) -> str:
    text = visible(value) if isinstance(value, str) else f"{value:g}"
    return html.escape(text, quote=True)
