"""The form of a page: fitted and coloured on a terminal, elsewhere one row one line; it decides nothing."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

from kerntune.patterns import joined

GOOD, MIXED, BAD, QUIET = "green", "yellow", "bold red", "dim"
SGR: Final = {GOOD: "32", MIXED: "33", BAD: "1;31", QUIET: "2"}

EMPTY: Final = "-"
GAP: Final = "  "
INDENT: Final = "   "  # of lines below a row: as far as the mark reaches
SHORT: Final = 20  # characters of a name that its owner chose
ALIKE: Final = 4  # from so many on, rows with nothing to tell them apart share a line


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a cell a column (the mark included), a style for mark and state, and prose, line by line."""

    cells: tuple[str, ...]
    style: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a heading; `toned` are the columns that take a row's style. A column without a name holds marks.

    A narrow terminal leaves out the column `spare`: the mark says the same, and a note where it is not good.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    toned: frozenset[str] = frozenset({"", "STATE"})
    spare: str = ""

    def without_spare(self) -> Table:
        """Return the same table without the column `spare`."""
        place = self.columns.index(self.spare)
        rows = []
        for row in self.rows:
            said = "" if row.style == GOOD else ", ".join(filter(None, (row.cells[place], row.note)))
            rows.append(Row((*row.cells[:place], *row.cells[place + 1 :]), row.style, said or row.note))
        return Table((*self.columns[:place], *self.columns[place + 1 :]), tuple(rows), self.toned)


class Prose(str):
    """A sentence, which may be broken between its words; any other text stays as it is."""

    __slots__ = ()


Page = Sequence[str | Table]


def row(mark: str, cells: tuple[str, ...], style: str = "", *notes: str) -> Row:
    """Return a line of a table, safe to print."""
    return Row((mark, *(clean(cell) for cell in cells)), style, "\n".join(clean(note) for note in notes if note))


def clean(text: str) -> str:
    """Return the text with a replacement for each unprintable character.

    Names of processes and devices come from elsewhere: none may move the cursor or start a line.
    """
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def short(name: str) -> str:
    """Return a name that its owner chose, cut where it would push others out of a table."""
    return name if len(name) <= SHORT else f"{name[: SHORT - 1]}\N{HORIZONTAL ELLIPSIS}"


def together(rows: Iterable[Row]) -> list[Row]:
    """Join many rows that differ only in the instance into one, where a pattern names just these."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for one in rows:
        mark, name, *cells = one.cells
        groups.setdefault((mark, name.partition("@")[0], *cells, one.note), []).append(one)
    found: list[Row] = []
    for alike in groups.values():
        if len(alike) < ALIKE:
            found += alike
            continue
        mark, first, *cells = alike[0].cells
        tunable = first.partition("@")[0]
        for pattern, names in joined([one.cells[1].partition("@")[2] for one in alike]):
            number = f" ({len(names)})" if len(names) > 1 else ""
            found.append(Row((mark, f"{tunable}@{pattern}{number}", *cells), alike[0].style, alike[0].note))
    return found


def write(page: Page, stream: TextIO) -> None:
    """Write a page: fitted and coloured on a terminal, elsewhere one row one line without either."""
    for part in page:
        lines: Iterable[str] = [part] if isinstance(part, str) else ()
        if isinstance(part, Table):
            lines = _fitted(part, columns()) if stream.isatty() else _plain(part)
        elif isinstance(part, Prose) and stream.isatty():
            lines = wrapped(part, columns(), "", "  ")
        for line in lines:
            print(line, file=stream)


def columns() -> int:
    """Return the width of the terminal."""
    return shutil.get_terminal_size().columns


def wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """Return indented lines that fit; words stay whole, because they may be names to copy."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


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
    """Yield the lines of a table; its last column is wrapped, or goes below where its words have no room."""
    *widths, last = _widths([table.columns, *(row.cells for row in table.rows)])
    room = width - sum(widths) - len(GAP) * len(widths)
    words = [word for cells in (table.columns, *(row.cells for row in table.rows)) for word in cells[-1].split()]
    below = last > room and max(map(len, words), default=0) > room
    if below and table.spare:
        yield from _fitted(table.without_spare(), width)
        return
    heading = table.columns[:-1] if below else table.columns
    yield _styled(_line(heading, widths), QUIET)
    for row in table.rows:
        tones = [row.style if name in table.toned else "" for name in table.columns]
        more = [] if below else (wrapped(row.cells[-1], room, "", "") if row.cells[-1] else [])
        cells = [*row.cells[:-1], *more[:1]]
        yield _line(cells, widths, tones)
        margin = " " * (width - room)
        yield from (_styled(f"{margin}{line}", tones[-1]) for line in more[1:])
        notes = [f"{table.columns[-1].lower()}: {row.cells[-1]}"] if below and row.cells[-1] else []
        for note in [*notes, *row.note.splitlines()]:
            yield from (_styled(line, QUIET) for line in wrapped(note, width, INDENT, INDENT))


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _line(cells: Sequence[str], widths: Sequence[int], tones: Sequence[str] = ()) -> str:
    """Return cells side by side; the last one, which has no width, as it is."""
    padding = [max(0, width - len(cell)) for cell, width in zip(cells, widths, strict=False)]
    styles = [*tones, *([""] * len(cells))]
    texts = [_styled(cell, style) for cell, style in zip(cells, styles, strict=False)]
    spaces = [*(" " * count for count in padding), ""]
    return GAP.join(f"{text}{space}" for text, space in zip(texts, spaces, strict=False)).rstrip()


def _styled(text: str, style: str) -> str:
    plain = not style or not text or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain else f"\x1b[{SGR[style]}m{text}\x1b[0m"


def error(what: str, hint: str, stream: TextIO, *, width: int = 80) -> None:
    """Write what happened, then the hint; wrap them on a terminal only."""
    for text, first in ((what, "kerntune: "), (hint, "  ")):
        if text:
            lines = wrapped(clean(text), width, first, "  ") if stream.isatty() else [f"{first}{clean(text)}"]
            print("\n".join(lines), file=stream)
