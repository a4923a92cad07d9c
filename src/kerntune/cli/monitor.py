"""`kerntune monitor`: a screen that is kept up to date on a terminal, and a line for each event elsewhere.

It owns the terminal while it shows the screen, and restores it at any end.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import textwrap
import time
from argparse import Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

from kerntune.api.document import Document, Event, GuardChange, Health
from kerntune.api.names import CPU_GOVERNOR, HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY
from kerntune.cli import output, tables
from kerntune.cli.output import Answer
from kerntune.cli.remote import Connect, Manager
from kerntune.cli.signals import Caught, caught
from kerntune.dbus.blocking import Interrupted
from kerntune.model import Reason
from kerntune.units import gib, spell_size

INTERVAL: Final = 0.5  # seconds between two looks
# xterm's other screen, which every other terminal knows too, and the cursor.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"
MAX_EVENTS: Final = 200  # events
LABEL: Final = 12  # columns
BAR: Final = 20  # columns
FULL: Final = 4  # the end of the bar, in floors
ALARMING: Final = 100  # level of the memory guard, as in Memory.WarningLevel
SHORT: Final = 50

Properties = Mapping[str, Any]


def monitor(connect: Connect, args: Namespace) -> Answer | Generator[Answer, None, None]:
    """Show every change from now on. Raise Unreachable when the daemon goes."""
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if args.json or args.events or not on_terminal:
        return lines(connect)
    return show_live(connect, sys.stdout)


def lines(connect: Connect) -> Generator[Answer, None, None]:
    """Yield every change from now on. Raise Unreachable when the daemon goes."""
    with connect() as manager:
        manager.watch()
        document = manager.describe()
        known = {key: document[key] for key in ("version", "generation", "degraded", "host")}
        yield Answer({"event": "watching", **_now(), **known}, output.watching(document))
        while event := manager.next_event():
            for data, one in _each(event):
                yield Answer({**data, **_now()}, output.happened(time.strftime("%H:%M:%S"), one))


def _now() -> dict[str, str]:
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _each(event: Event) -> Iterator[tuple[dict[str, Any], Event]]:
    """Yield one answer for each change, so that each is a line of its own."""
    if isinstance(event, Health):
        yield {"event": "degraded", "degraded": list(event.degraded)}, event
        return
    if isinstance(event, GuardChange):
        yield {"event": "guard", **event._asdict()}, event
        return
    for outcome in event.outcomes:
        row = {"event": "outcome", "generation": event.generation, "cause": event.cause, **outcome._asdict()}
        yield row, event._replace(outcomes=(outcome,))


def show_live(connect: Connect, stream: TextIO) -> Answer:
    """Keep the screen up to date until Ctrl-C or SIGTERM. Raise Unreachable when the daemon goes."""
    with connect() as manager:
        manager.watch()
        board = Board(manager.describe())
        with caught(signal.SIGINT, signal.SIGTERM, signal.SIGTSTP) as signals, _screen(stream):
            changed, ended = True, None
            while ended is None:
                with suppress(Interrupted):
                    _look(board, manager, signals, everything=changed)
                    _draw(board, stream)
                    changed = _follow(board, manager, signals)
                ended = _obey(signals, stream)
    if ended is signal.SIGTERM:
        # As without a handler: the sender sees that this signal ended the process.
        signal.raise_signal(signal.SIGTERM)
    return Answer(None, [])


def _follow(board: Board, manager: Manager, signals: Caught) -> bool:
    """Note the events of one INTERVAL, or until a signal comes; return True if there were any."""
    end = time.monotonic() + INTERVAL
    is_changed = False
    while event := manager.next_event([signals.fileno()], timeout=max(0.0, end - time.monotonic())):
        board.note(time.strftime("%H:%M:%S"), event)
        is_changed = True
    return is_changed


def _obey(signals: Caught, stream: TextIO) -> signal.Signals | None:
    """Stop the process for Ctrl-Z, with the terminal as it was; return a signal that ends the screen."""
    for number in signals.take():
        if number is not signal.SIGTSTP:
            return number
        _put(stream, LEAVE)
        signal.raise_signal(signal.SIGSTOP)
        _put(stream, ENTER)
    return None


def _look(board: Board, manager: Manager, signals: Caught, *, everything: bool) -> None:
    """Read the values that change by themselves, and the others only after a change. Raise Interrupted at a signal."""
    beside = [signals.fileno()]
    board.memory = manager.properties(MEMORY, beside)
    board.pools = manager.properties(HUGE_PAGES, beside)
    if everything:
        board.manager = manager.properties(MANAGER, beside)
        board.governors = manager.properties(CPU_GOVERNOR, beside)
        board.drives = manager.properties(IO_SCHEDULER, beside)


def _draw(board: Board, stream: TextIO) -> None:
    size = shutil.get_terminal_size()
    coloured = not os.environ.get("NO_COLOR")
    lines = screen(board, time.strftime("%H:%M:%S"), width=size.columns, height=max(4, size.lines), coloured=coloured)
    _put(stream, HOME + "\r\n".join(f"{line}{CLEAR_LINE}" for line in lines) + CLEAR_REST)


@contextmanager
def _screen(stream: TextIO) -> Iterator[None]:
    """Show the other screen of the terminal; leave it at any end."""
    _put(stream, ENTER)
    try:
        yield
    finally:
        _put(stream, LEAVE)


def _put(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


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
        self.events.extend(part for part in output.happened(clock, event) if isinstance(part, str))


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
    text = tables.clean(output.head(now))
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
    sentence = f"{gib(headroom)} left"
    if floor:
        sentence += f"  [{_bar(headroom, floor)}] | floor {gib(floor)}, end {gib(FULL * floor)}"
    yield from _labelled("memory", sentence, width)
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
