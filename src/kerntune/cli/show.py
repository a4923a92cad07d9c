"""How answers look to people: rows and prose are made here and written here; nothing is asked or decided."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TextIO

from kerntune.cli.answers import Document, Event, GuardChange, Health, Outcome, TargetRow, TunableRow, named
from kerntune.cli.check import Report, line_of
from kerntune.cli.codes import CONTENT
from kerntune.model import Reason, State

if TYPE_CHECKING:
    from rich.text import Text

GOOD, MIXED, BAD, QUIET = "green", "yellow", "bold red", "dim"

# State -> (mark, style). A state that a newer daemon made up gets UNHEARD_OF.
MARKS: Final[Mapping[str, tuple[str, str]]] = {
    State.SATISFIED: ("✔", GOOD),
    State.PLANNED: ("→", GOOD),
    State.PARTIAL: ("◐", MIXED),
    State.OVERRIDDEN: ("≠", MIXED),
    State.CONTESTED: ("!", BAD),
    State.REFUSED: ("✘", BAD),
    State.FAILED: ("✘", BAD),
    State.UNSUPPORTED: ("○", MIXED),
    State.UNMANAGED: ("·", QUIET),
}
UNHEARD_OF: Final = ("?", MIXED)

EMPTY: Final = "-"
MIB: Final = 1 << 20
NOTHING_MANAGED: Final = "Nothing is managed: no claim has been made (kerntune set makes one)"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a cell a column (the mark included), a style for mark and state, and prose, line by line."""

    cells: tuple[str, ...]
    style: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a heading; `toned` are the columns that take a row's style."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    toned: frozenset[str] = frozenset({"", "STATE"})


Page = Sequence[str | Table]


def outcomes(rows: Iterable[Outcome], *, none: str = "Nothing changed.") -> Page:
    """What became of every target that was named; `none` is said when there is no row."""
    table = [
        state_row(row.state, (named(row.tunable, row.instance), row.requested, row.actual, row.state), why(*row[5:]))
        for row in rows
    ]
    return [Table(("", "TARGET", "REQUESTED", "ACTUAL", "STATE"), tuple(table))] if table else [none]


def targets(tunables: Sequence[TunableRow], rows: Sequence[TargetRow]) -> Page:
    """Every target with its value and choices, then the tunables this host does not support."""
    table = [
        state_row(
            row["state"],
            (named(row["tunable"], row["instance"]), row["value"] or "", row["state"], " ".join(row["choices"])),
            why(row["state"], row["reason"], row["detail"]),
        )
        for row in rows
    ]
    table += [
        state_row(State.UNSUPPORTED, (row["name"], "", State.UNSUPPORTED, ""), row["detail"])
        for row in tunables
        if not row["supported"]
    ]
    return [Table(("", "TARGET", "VALUE", "STATE", "CHOICES"), tuple(table))] if table else ["There are no targets."]


def values(rows: Sequence[TargetRow]) -> Page:
    """One target's bare value, or a line for each of several."""
    if len(rows) == 1:
        return [rows[0]["value"] or ""]
    return [f"{named(row['tunable'], row['instance'])} {row['value'] or EMPTY}" for row in rows]


def verified(rows: Sequence[Outcome], *, managed: int, satisfied: int) -> Page:
    """What is managed and not as wished, and how much of all that is."""
    if not managed:
        return [NOTHING_MANAGED]
    if not rows:
        return [f"All as wished: {managed} of {managed} managed."]
    return [f"As wished: {satisfied} of {managed} managed. The rest:", *outcomes(rows)]


def reloaded(document: Document) -> Page:
    """That the files are in force, and how the host is with them."""
    return [f"The configuration was read again: {head(document)}"]


def checked(report: Report) -> Page:
    """What is wrong with the configuration files, and how much they say."""
    wrong = [clean(line_of(problem)) for problem in report["problems"]]
    files, claims = len(report["files"]), len(report["claims"])
    said = f"{files} file{'' if files == 1 else 's'} with {claims} claim{'' if claims == 1 else 's'}"
    return [*wrong, f"{said}, nothing wrong" if not wrong else said]


def watching(document: Document) -> Page:
    """The first line of what is shown while it happens."""
    return [f"Watching {head(document)}; Ctrl-C ends it"]


def happened(clock: str, event: Event) -> Page:
    """A line for each thing that changed, with the time as it is to be shown."""
    if isinstance(event, Health):
        health = f"degraded: {', '.join(event.degraded)}" if event.degraded else "all well again"
        return [f"{clock}  {clean(health)}"]
    if isinstance(event, GuardChange):
        return [f"{clock}  memory guard  {part}" for part in _guard_change(event)]
    return [f"{clock}  {clean(event.cause)}  {_step(row)}" for row in event.outcomes]


def _guard_change(event: GuardChange) -> Iterable[str]:
    """What it does now, and where memory is short who has it."""
    limit = f", limit {event.limit // MIB} MiB" if event.limit else ""
    yield _guarding(event.state, event.reason, event.headroom, event.floor) + limit
    for title, found in (("largest", event.largest), ("growing", event.growing)):
        if found:
            rows = (f"{command} (pid {pid}, uid {uid}) {size // MIB} MiB" for pid, command, uid, size in found)
            yield clean(f"{title}: {', '.join(rows)}")


def _step(row: Outcome) -> str:
    mark, _ = MARKS.get(row.state, UNHEARD_OF)
    values = f"{row.before or EMPTY} -> {row.actual or EMPTY}"
    parts = (mark, named(row.tunable, row.instance), values, row.state, why(row.state, row.reason, row.detail))
    return "  ".join(clean(part) for part in parts if part)


def head(document: Document) -> str:
    """The daemon in a line."""
    host = document["host"]
    where = "a simulated host" if host["simulated"] else f"Linux {host['kernel']}"
    if host["root"] != "/" and not host["simulated"]:
        where += f" at {host['root']}"
    health = f"degraded: {', '.join(document['degraded'])}" if document["degraded"] else "all well"
    profile = f"profile {document['profile']}, " if document["profile"] else ""
    return f"kerntuned {document['version']} on {where}, generation {document['generation']}, {profile}{health}"


def guard(document: Document) -> Iterable[str]:
    """The memory guard in a line, where it has something to do."""
    guard = document["guard"]
    if guard["floor"] or guard["reason"]:
        yield f"memory guard: {_guarding(guard['state'], guard['reason'], guard['headroom'], guard['floor'])}"


def _guarding(state: str, reason: str, headroom: int, floor: int) -> str:
    left = f"{headroom // MIB} MiB left, floor {floor // MIB} MiB" if floor else ""
    return clean(", ".join(part for part in (state, left, reason) if part))


def why(state: str, reason: str, detail: str) -> str:
    """Prose about a state: the detail, led by the reason where something is not as it should be."""
    if reason == Reason.OK or state in CONTENT:
        return detail
    return f"{reason}: {detail}" if detail else reason


def state_row(state: str, cells: tuple[str, ...], *notes: str) -> Row:
    """A line about a target in that state, with what there is to say of it."""
    mark, style = MARKS.get(state, UNHEARD_OF)
    return row(mark, cells, style, *notes)


def row(mark: str, cells: tuple[str, ...], style: str = "", *notes: str) -> Row:
    """A line of a table, fit to be printed."""
    return Row((mark, *(clean(cell) for cell in cells)), style, "\n".join(clean(note) for note in notes if note))


def clean(text: str) -> str:
    """Names of processes and devices come from elsewhere: none may move the cursor or start a line."""
    return "".join(char if char.isprintable() else "�" for char in text)


def write(page: Page, stream: TextIO) -> None:
    """Write a page: fitted and coloured on a terminal, elsewhere one row one line without either."""
    for part in page:
        if isinstance(part, str):
            print(part, file=stream)
        elif not (stream.isatty() and _write_rich(part, stream)):
            _write_plain(part, stream)


def _write_plain(table: Table, stream: TextIO) -> None:
    lines = [table.columns, *(tuple(cell or EMPTY for cell in row.cells) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for cells, note in zip(lines, ["", *(row.note for row in table.rows)], strict=True):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"{line}  {note}".rstrip().replace("\n", "  "), file=stream)


def _write_rich(table: Table, stream: TextIO) -> bool:
    """False without rich: it is an optional dependency, and the plain table says the same."""
    try:
        from rich.console import Console  # noqa: PLC0415  # only tables on a terminal are worth its import
        from rich.table import Table as RichTable  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        return False
    grid = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=QUIET)
    for name in table.columns:
        grid.add_column(name, overflow="fold", no_wrap=not name)
    for row in table.rows:
        cells = [
            Text(cell, style=row.style if name in table.toned else "")
            for name, cell in zip(table.columns, row.cells, strict=True)
        ]
        if row.note:
            cells[-1] = _above(cells[-1], row.note)
        grid.add_row(*cells)
    console = Console(
        file=stream,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(grid)
    return True


def _above(cell: Text, note: str) -> Text:
    """A cell with prose below it."""
    return cell.copy().append(f"\n{note}" if cell.plain else note, style=QUIET)


def error(what: str, hint: str, stream: TextIO, *, width: int = 80) -> None:
    """Write what happened, then the hint; wrapped on a terminal only."""
    for text, first, rest in ((what, "kerntune: ", "  "), (hint, "  ", "  ")):
        if not text:
            continue
        if stream.isatty():
            # Words stay whole: a hint may be a command to copy.
            wrapper = textwrap.TextWrapper(
                width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
            )
            print(wrapper.fill(clean(text)), file=stream)
        else:
            print(f"{first}{clean(text)}", file=stream)
