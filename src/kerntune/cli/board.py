"""The screen of `kerntune monitor` on a terminal: the host in a few lines, then the last events; it asks nothing."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from kerntune.cli import output as show
from kerntune.cli import tables
from kerntune.cli.document import Document, Event
from kerntune.model import Reason
from kerntune.units import gib, spell_size

MAX_EVENTS: Final = 200  # events
LABEL: Final = 12  # columns
BAR: Final = 20  # columns
FULL: Final = 4  # the end of the bar, in floors
ALARMING: Final = 100  # level of the memory guard, as in Memory.WarningLevel
SHORT: Final = 50

Properties = Mapping[str, Any]


@dataclass(slots=True)
class Board:
    """The known state of the host: properties as the contract has them, and events with the time they came."""

    document: Document
    manager: Properties = field(default_factory=dict)
    memory: Properties = field(default_factory=dict)
    pools: Properties = field(default_factory=dict)
    governors: Properties = field(default_factory=dict)
    drives: Properties = field(default_factory=dict)
    events: deque[str] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))

    def note(self, clock: str, event: Event) -> None:
        """Add an event."""
        self.events.extend(part for part in show.happened(clock, event) if isinstance(part, str))


def screen(board: Board, clock: str, *, width: int, height: int, coloured: bool) -> list[str]:
    """Return the lines to show, none too wide and not too many; the newest event is the last."""
    lines = [*_head(board, clock, width), *_values(board, width)]
    # In a small window the newest event matters more than the last lines about the host.
    lines = lines[: height - (3 if board.events else 2)]
    room = max(1, height - len(lines) - 2)
    events = list(board.events)[-room:]
    title = "Last events" if events else "Nothing has changed yet"
    lines += [(title, tables.QUIET), *((event, "") for event in events), ("Ctrl-C ends it", tables.QUIET)]
    return [_styled(text[:width], style if coloured else "") for text, style in lines[:height]]


def _head(board: Board, clock: str, width: int) -> Iterator[tuple[str, str]]:
    known = board.manager
    now: Any = {
        **board.document,
        "generation": known.get("Generation", 0),
        "degraded": known.get("Degraded", []),
        "profile": known.get("ActiveProfile", ""),
    }
    text = tables.clean(show.head(now))
    yield (
        f"{text[: width - len(clock) - 2]:{max(0, width - len(clock))}}{clock}",
        tables.MIXED if now["degraded"] else "",
    )
    yield "", ""


def _values(board: Board, width: int) -> Iterator[tuple[str, str]]:
    yield from _memory(board.memory, width)
    yield from _labelled("huge pages", "; ".join(_pools(board.pools.get("Pools", []))) or "none", width)
    yield from _labelled("governors", _governors(board.governors.get("Policies", {})), width)
    yield from _labelled("drives", "; ".join(_drives(board.drives.get("Devices", {}))) or "none", width)
    yield "", ""


def _memory(known: Properties, width: int) -> Iterator[tuple[str, str]]:
    headroom, floor = known.get("Headroom", 0), known.get("Floor", 0)
    said = f"{gib(headroom)} left"
    if floor:
        said += f"  [{_bar(headroom, floor)}] | floor {gib(floor)}, end {gib(FULL * floor)}"
    yield from _labelled("memory", said, width)
    level = known.get("WarningLevel", 0)
    style = tables.BAD if level >= ALARMING else tables.MIXED if level >= SHORT else ""
    mode = known.get("OvercommitMode") or "not there"
    yield from _labelled("guard", f"{known.get('GuardState', '')}, overcommit {mode}", width, style)


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


def _labelled(label: str, text: str, width: int, style: str = "") -> Iterator[tuple[str, str]]:
    lines = textwrap.wrap(tables.clean(text), max(10, width - LABEL), break_on_hyphens=False) or [""]
    for number, line in enumerate(lines):
        yield f"{'' if number else label:{LABEL}}{line}", style


def _styled(text: str, style: str) -> str:
    return f"\x1b[{tables.SGR[style]}m{text}\x1b[0m" if style else text
