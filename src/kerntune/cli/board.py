"""The screen of `kerntune monitor`: what is known of the host, and the lines that show it. It asks nobody."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kerntune.api.document import Document
from kerntune.cli import output, tables
from kerntune.cli.health import of_document
from kerntune.cli.tables import Page, Prose, styled
from kerntune.model import Reason
from kerntune.units import gib, spell_size

MAX_EVENTS: Final = 200  # lines
LABEL: Final = 12  # columns
CLOCK: Final = len("12:00:00  ")  # columns
NARROWEST: Final = 10  # columns: prose gets no less
BAR: Final = 20  # columns
FULL: Final = 4  # the end of the bar, in floors
ALARMING: Final = 100  # level of the memory guard, as in Memory.WarningLevel
SHORT: Final = 50
HEURISTIC: Final = "heuristic"  # the mode of overcommit that knows no ratio

Properties = Mapping[str, Any]
Line = tuple[str, str]  # a text and its style


@dataclass(slots=True)
class Board:
    """The known state of the host: its description, properties as the contract has them, and lines about events."""

    document: Document
    memory: Properties = field(default_factory=dict)
    pools: Properties = field(default_factory=dict)
    governors: Properties = field(default_factory=dict)
    drives: Properties = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    is_lost: bool = False

    def note(self, page: Page) -> None:
        """Add the lines about an event."""
        self.events.extend(part for part in page if isinstance(part, str))

    def lose(self, clock: str) -> None:
        """Note that the daemon has left the bus."""
        self.is_lost = True
        self.note(output.left(clock))

    def find(self, clock: str, document: Document) -> None:
        """Note that the next daemon is there."""
        self.is_lost, self.document = False, document
        self.note(output.back(clock, document))


def screen(board: Board, clock: str, *, width: int, height: int, coloured: bool, ending: str) -> list[str]:
    """Return the lines to show, none too wide and not too many; the newest event is the last, and whole."""
    health = list(_health(board, clock, width))
    daemon = [(text, "") for text in _wrapped(output.head(board.document), width, "  ")]
    lines = [*health, *daemon, *_meanings(board, width), ("", ""), *_values(board, width), ("", "")]
    events = [_wrapped(event, width, " " * CLOCK) for event in board.events]
    newest = len(events[-1]) if events else 0
    # In a small window health matters most, then the newest event, then the other lines about the host.
    lines = lines[: max(min(len(health), height - 2), height - 2 - newest)]
    title = "Last events" if events else "Nothing has changed yet"
    lines += [(title, tables.QUIET), *((text, "") for text in _latest(events, max(0, height - 2 - len(lines))))]
    lines = [*lines[: height - 1], (ending, tables.QUIET)]
    return [styled(text[:width], style if coloured else "") for text, style in lines]


def _latest(events: Sequence[Sequence[str]], room: int) -> list[str]:
    """Return the lines of as many of the last events as have room."""
    shown: list[str] = []
    for event in reversed(events):
        if len(event) + len(shown) > room:
            return shown or list(event[:room])
        shown = [*event, *shown]
    return shown


def _health(board: Board, clock: str, width: int) -> Iterator[Line]:
    """Yield the lines about the health, with the time behind the first."""
    health = of_document(board.document)
    page, style = [Prose(health.sentence)], "" if health.is_well else tables.BAD
    if board.is_lost:
        page, style = [Prose("kerntuned has left the bus. This is what it has told last:"), *page], tables.BAD
    room = width - len(clock) - len(tables.GAP)
    lines = [line for prose in page for line in _wrapped(prose.text, max(room, NARROWEST), prose.rest)]
    if room >= NARROWEST:
        lines[0] = f"{lines[0]:{width - len(clock)}}{clock}"
    yield from ((line, style) for line in lines)


def _meanings(board: Board, width: int) -> Iterator[Line]:
    """Yield what each thing means that degrades the daemon."""
    for prose in output.explained(board.document["degraded"]):
        yield from ((line, tables.MIXED) for line in _wrapped(prose.text, width, prose.rest))


def _values(board: Board, width: int) -> Iterator[Line]:
    yield from _memory(board.memory, width)
    yield from _labelled("huge pages", "; ".join(_pools(board.pools.get("Pools", []))) or "none", width)
    yield from _labelled("governors", _governors(board.governors.get("Policies", {})), width)
    yield from _labelled("drives", "; ".join(_drives(board.drives.get("Devices", {}))) or "none", width)


def _memory(known: Properties, width: int) -> Iterator[Line]:
    headroom, floor = known.get("Headroom", 0), known.get("Floor", 0)
    sentence = f"{gib(headroom)} left"
    if floor:
        sentence += f"  [{_bar(headroom, floor)}] | floor {gib(floor)}, end {gib(FULL * floor)}"
    yield from _labelled("memory", sentence, width)
    level = known.get("WarningLevel", 0)
    style = tables.BAD if level >= ALARMING else tables.MIXED if level >= SHORT else ""
    yield from _labelled("guard", f"{known.get('GuardState', '')}, overcommit {_overcommit(known)}", width, style)


def _overcommit(known: Properties) -> str:
    """Return the mode of overcommit, with the ratio where it has a meaning, as `set` takes them."""
    mode, ratio = known.get("OvercommitMode"), known.get("OvercommitRatio")
    return f"{mode}:{ratio}" if ratio and mode != HEURISTIC else mode or "not there"


def _bar(headroom: int, floor: int) -> str:
    """Return a bar of the headroom against the floor: full at a multiple of it, with a mark at the floor."""
    filled = min(BAR, round(BAR * headroom / (FULL * floor)))
    cells = ["#" if cell < filled else "-" for cell in range(BAR)]
    cells[BAR // FULL] = "|"
    return "".join(cells)


def _pools(rows: Iterable[Any]) -> Iterator[str]:
    """Yield the pools that hold pages or should hold some, each with its nodes."""
    nodes: dict[int, list[str]] = defaultdict(list)
    whole = []
    for size, node, total, free, _, _, requested in rows:
        if node:
            nodes[size].append(f"node{node} {total}")
        elif total or requested:
            desired = f", {requested} desired" if requested != total else ""
            whole.append((size, f"{spell_size(size)} {total} pages, {free} free{desired}"))
    for size, text in whole:
        yield f"{text} ({', '.join(nodes[size])})" if len(nodes[size]) > 1 else text


def _governors(policies: Mapping[str, Any]) -> str:
    counts = Counter(governor or str(Reason.CPU_OFFLINE) for governor, _ in policies.values())
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common()) or "no frequency scaling here"


def _drives(devices: Mapping[str, Any]) -> Iterator[str]:
    by_scheduler: dict[str, list[str]] = defaultdict(list)
    for name, (scheduler, _) in devices.items():
        by_scheduler[scheduler or tables.EMPTY].append(name)
    for scheduler, names in sorted(by_scheduler.items()):
        yield f"{scheduler}: {' '.join(names)}"


def _labelled(label: str, text: str, width: int, style: str = "") -> Iterator[Line]:
    for number, line in enumerate(_wrapped(text, width - LABEL)):
        yield f"{'' if number else label:{LABEL}}{line}", style


def _wrapped(text: str, width: int, rest: str = "") -> list[str]:
    """Return the lines of a text, those after the first indented; there is room for a few words at least."""
    rest = rest if len(rest) + NARROWEST <= width else ""
    return textwrap.wrap(tables.clean(text), max(NARROWEST, width), subsequent_indent=rest, break_on_hyphens=False) or [
        ""
    ]
