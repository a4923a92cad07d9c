"""The form of a page: fitted and coloured on a terminal, elsewhere one row one line. Only here colour is decided."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, NamedTuple, TextIO

from kerntune import streams
from kerntune.cli.commands import ALWAYS, AUTO

GOOD, MIXED, BAD, QUIET = "green", "yellow", "bold red", "dim"
SGR: Final = {GOOD: "32", MIXED: "33", BAD: "1;31", QUIET: "2"}
COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")

EMPTY: Final = "-"
GAP: Final = "  "
INDENT: Final = "   "  # of lines below a row: as far as the mark reaches
SHORT: Final = 20  # characters of a name that its owner chose
WIDEST: Final = 100  # characters: longer lines of prose are hard to read
NARROWEST: Final = 8  # characters: prose in a table gets no less


class Row(NamedTuple):
    """One line of a table: a cell a column (the mark included), a style for mark and state, and prose, line by line."""

    cells: tuple[str, ...]
    style: str = ""
    note: str = ""


class Table(NamedTuple):
    """Rows below a heading; `toned` are the columns that take a row's style. A column without a name holds marks.

    The last column is prose that may be broken between its words, if it `wraps`. A terminal shows the first of two
    columns `same` only where it differs from the other, and below its row where the table would be too wide. It shows
    no column without a cell.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    toned: frozenset[str] = frozenset({"", "STATE"})
    wraps: bool = False
    same: tuple[str, str] | None = None

    def fitted(self, width: int) -> Table:
        """Return the table for a terminal."""
        found = self.without_spare()
        column = self.same[0] if self.same else ""
        if not column or column not in found.columns or found.width <= width:
            return found
        place = found.columns.index(column)
        rows = []
        for row in found.rows:
            cell = row.cells[place]
            note = "\n".join(filter(None, (f"{column.lower()}: {cell}" if cell else "", row.note)))
            rows.append(Row((*row.cells[:place], *row.cells[place + 1 :]), row.style, note))
        return found._replace(columns=(*found.columns[:place], *found.columns[place + 1 :]), rows=tuple(rows))

    @property
    def width(self) -> int:
        """How wide the longest line can be."""
        widths = _widths([self.columns, *(row.cells for row in self.rows)])
        return sum(widths) + len(GAP) * (len(widths) - 1)

    def without_spare(self) -> Table:
        """Return the table without the cells that say the same twice, and without columns that say nothing."""
        cells = [list(row.cells) for row in self.rows]
        if self.same:
            place, other = map(self.columns.index, self.same)
            for line in cells:
                line[place] = "" if line[place] == line[other] else line[place]
        kept = [place for place, name in enumerate(self.columns) if not name or any(line[place] for line in cells)]
        rows = [row._replace(cells=tuple(line[place] for place in kept))
                for row, line in zip(self.rows, cells, strict=True)]  # fmt: skip
        columns = tuple(self.columns[place] for place in kept)
        return self._replace(columns=columns, rows=tuple(rows), wraps=self.wraps and kept[-1] == len(self.columns) - 1)


class Prose(NamedTuple):
    """A sentence, which may be broken between its words: the indent of its first line, and of the others."""

    text: str
    first: str = ""
    rest: str = "  "


Page = Sequence[str | Prose | Table]


def row(mark: str, cells: tuple[str, ...], style: str = "", *notes: str) -> Row:
    """Return a line of a table, safe to print."""
    return Row((mark, *(clean(cell) for cell in cells)), style, "\n".join(clean(note) for note in notes if note))


def clean(text: str) -> str:
    """Return the text with a replacement for each unprintable character.

    Names of processes and devices come from elsewhere: none may move the cursor or start a line.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def short(name: str) -> str:
    """Return a name that its owner chose, cut where it would push others out of a table."""
    return name if len(name) <= SHORT else f"{name[: SHORT - 1]}\N{HORIZONTAL ELLIPSIS}"


def is_coloured(stream: TextIO, color: str = AUTO) -> bool:
    """Return whether to write colours: `--color` decides, else NO_COLOR, else FORCE_COLOR, else the terminal."""
    if color != AUTO:
        return color == ALWAYS
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (stream.isatty() and os.environ.get("TERM", "dumb") != "dumb")


def write(page: Page, stream: TextIO, color: str = AUTO) -> None:
    """Write a page: fitted on a terminal, and where it is coloured; elsewhere one row one line."""
    coloured = is_coloured(stream, color)
    width = columns() if coloured or stream.isatty() else 0
    for part in page:
        lines: Iterable[str]
        if isinstance(part, str):
            lines = (part,)
        elif isinstance(part, Prose):
            lines = _sentence(part, width)
        else:
            lines = _fitted(part.fitted(width), width) if width else _plain(part)
        for line in lines:
            print(line if coloured else COLOUR.sub("", line), file=stream)


def columns() -> int:
    """Return the width of the terminal: COLUMNS if it is set, and 80 where there is no terminal."""
    import shutil  # noqa: PLC0415  # it imports archivers, and a pipe has no width

    return shutil.get_terminal_size().columns


def wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """Return indented lines that fit; words stay whole, because they may be names to copy."""
    import textwrap  # noqa: PLC0415  # a pipe needs none

    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _sentence(prose: Prose, width: int) -> Sequence[str]:
    """Return the lines of a sentence, one where there is no terminal (`width` 0)."""
    text = clean(prose.text)
    return wrapped(text, min(width, WIDEST), prose.first, prose.rest) if width else [prose.first + text]


def _plain(table: Table) -> Iterator[str]:
    """Yield the lines of a table without marks, because a word says the same."""
    shown = [number for number, name in enumerate(table.columns) if name]
    lines = [table.columns, *(row.cells for row in table.rows)]
    cells = [[line[number] or EMPTY for number in shown] for line in lines]
    widths = _widths(cells)
    for line, note in zip(cells, ["", *(row.note for row in table.rows)], strict=True):
        text = GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"{text}{GAP}{note}".rstrip().replace("\n", GAP)


def _fitted(table: Table, width: int) -> Iterator[str]:
    """Yield the lines of a table, the same at every width but for where prose is broken; notes stand below a row."""
    *widths, _ = _widths([table.columns, *(row.cells for row in table.rows)])
    margin = sum(widths) + len(GAP) * len(widths)
    yield styled(_line(table.columns, widths), QUIET)
    for row in table.rows:
        tones = [row.style if name in table.toned else "" for name in table.columns]
        *cells, last = row.cells
        lines = (wrapped(last, max(NARROWEST, width - margin), "", "") if table.wraps else [last]) or [""]
        yield _line([*cells, lines[0]], widths, tones)
        yield from (styled(f"{' ' * margin}{line}", tones[-1]) for line in lines[1:])
        for note in row.note.splitlines():
            yield from (styled(line, QUIET) for line in wrapped(note, width, INDENT, INDENT))


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int], tones: Sequence[str] = ()) -> str:
    """Return cells side by side; the last one, which has no width, as it is."""
    padding = [max(0, width - len(cell)) for cell, width in zip(cells, widths, strict=False)]
    styles = [*tones, *([""] * len(cells))]
    texts = [styled(cell, style) for cell, style in zip(cells, styles, strict=False)]
    spaces = [*(" " * count for count in padding), ""]
    return GAP.join(f"{text}{space}" for text, space in zip(texts, spaces, strict=False)).rstrip()


def styled(text: str, style: str) -> str:
    """Return a text in the colour of a style; `write` takes the colours out again where there are to be none."""
    return f"\x1b[{SGR[style]}m{text}\x1b[0m" if style and text else text


def error(what: str, hint: str, stream: TextIO) -> None:
    """Write what happened, then the hint; wrap them on a terminal only. It is no failure that nobody can read them."""
    page = [Prose(text, first) for text, first in ((what, "kerntune: "), (hint, "  ")) if text]
    width = columns() if stream.isatty() else 0
    with suppress(streams.Unwritten), streams.written(stream):
        for prose in page:
            print("\n".join(_sentence(prose, width)), file=stream)
