"""`kerntune monitor`: a screen that is kept up to date on a terminal, and a line for each event elsewhere."""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any, Final, TextIO

from kerntune import streams
from kerntune.api.document import Document, Event, GuardChange, Health
from kerntune.api.names import BACK_SECONDS, CPU_GOVERNOR, HUGE_PAGES, IO_SCHEDULER, LOOK_SECONDS, MEMORY
from kerntune.cli import output, tables, terminal
from kerntune.cli.board import Board, screen
from kerntune.cli.commands import Namespace
from kerntune.cli.output import Answer
from kerntune.cli.remote import Connect, Manager
from kerntune.cli.signals import Caught, caught
from kerntune.dbus.blocking import Interrupted
from kerntune.errors import Unreachable

INTERVAL: Final = 0.5  # seconds between two looks
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
Q: Final = "q or Ctrl-C ends it"
CTRL_C: Final = "Ctrl-C ends it"


def monitor(connect: Connect, args: Namespace) -> Answer | Generator[Answer, None, None]:
    """Show every change from now on. Raise Unreachable when the bus goes, or the daemon and no other comes."""
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if args.json or args.events or not on_terminal:
        return lines(connect)
    return show_live(connect, sys.stdout, args.color)


def lines(connect: Connect) -> Generator[Answer, None, None]:
    """Yield every change from now on, until nobody reads on. Raise Unreachable as `monitor` does."""
    with connect() as manager, streams.reader_gone(sys.stdout) as gone:
        manager.watch()
        document = manager.describe()
        yield Answer({"event": "watching", **_now(), **_known(document)}, output.watching(document))
        while True:
            try:
                while event := manager.next_event(gone):
                    yield from _each(event)
                return
            except Unreachable:
                if not manager.has_left():
                    raise
            yield Answer({"event": "left", **_now()}, output.left(_clock()))
            deadline = time.monotonic() + BACK_SECONDS
            while (next_one := manager.next_daemon(deadline)) is None:
                if select.select(gone, (), (), LOOK_SECONDS)[0]:
                    return
            yield Answer({"event": "back", **_now(), **_known(next_one)}, output.back(_clock(), next_one))


def _known(document: Document) -> dict[str, Any]:
    return {
        "version": document["version"],
        "generation": document["generation"],
        "degraded": document["degraded"],
        "host": document["host"],
    }


def _now() -> dict[str, str]:
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def _clock() -> str:
    return time.strftime("%H:%M:%S")


def _each(event: Event) -> Iterator[Answer]:
    """Yield an answer for each change, a line of JSON each; the first has the page, where some share a line."""
    page = output.happened(_clock(), event)
    for data in _data(event):
        yield Answer({**data, **_now()}, page)
        page = []


def _data(event: Event) -> Iterator[dict[str, Any]]:
    if isinstance(event, Health):
        yield {"event": "degraded", "degraded": list(event.degraded)}
    elif isinstance(event, GuardChange):
        yield {"event": "guard", **event._asdict()}
    else:
        for outcome in event.outcomes:
            data = output.outcome_data(outcome)
            yield {"event": "outcome", "generation": event.generation, "cause": event.cause, **data}


def show_live(connect: Connect, stream: TextIO, color: str) -> Answer:
    """Keep the screen up to date until q, Ctrl-C or SIGTERM. Raise Unreachable as `monitor` does."""
    with connect() as manager:
        manager.watch()
        board = Board(manager.describe())
        with caught(*ENDING, signal.SIGTSTP) as signals, terminal.shown(stream) as screen:
            ended = Live(manager, board, screen, signals, is_coloured=tables.is_coloured(stream, color)).run()
    if ended is not signal.SIGINT:
        # As without a handler: the sender sees that this signal ended the process.
        signal.raise_signal(ended)
    return Answer(None, [])


class Live:
    """The screen while it is shown: it asks the daemon, draws, and obeys signals and keys."""

    def __init__(
        self, manager: Manager, board: Board, screen: terminal.Screen, signals: Caught, *, is_coloured: bool
    ) -> None:
        self._manager, self._board, self._screen, self._signals = manager, board, screen, signals
        self._is_coloured = is_coloured
        self._is_changed = True  # since the last look at everything
        self._back_by: float | None = None  # while there is no daemon

    def run(self) -> signal.Signals:
        """Keep the screen up to date until a signal ends it, and return that; a q counts as Ctrl-C."""
        while True:
            with suppress(Interrupted):
                if self._back_by is None:
                    self._show_daemon()
                else:
                    self._wait_for_daemon(self._back_by)
            for number in self._signals.take():
                if number is not signal.SIGTSTP:
                    return number
                self._screen.stop()
            if self._screen.has_quit():
                return signal.SIGINT

    @property
    def _beside(self) -> list[int]:
        return [self._signals.fileno(), *self._screen.keyboard]

    def _show_daemon(self) -> None:
        """Ask, draw, and note the events of one INTERVAL. Raise Interrupted at a signal or a key."""
        try:
            self._look()
            self._draw()
            self._follow()
        except Unreachable:
            if not self._manager.has_left():
                raise
            self._back_by = time.monotonic() + BACK_SECONDS
            self._board.lose(_clock())

    def _wait_for_daemon(self, deadline: float) -> None:
        """Draw, and look for the next daemon. Raise Unreachable if none has come by the deadline."""
        self._draw()
        select.select(self._beside, (), (), LOOK_SECONDS)
        if document := self._manager.next_daemon(deadline, self._beside):
            self._board.find(_clock(), document)
            self._back_by, self._is_changed = None, True

    def _look(self) -> None:
        """Read the values that change by themselves, and the others only after a change."""
        board, manager, beside = self._board, self._manager, self._beside
        board.memory = manager.properties(MEMORY, beside)
        board.pools = manager.properties(HUGE_PAGES, beside)
        if self._is_changed:
            board.document = manager.describe(beside, start=False)
            board.governors = manager.properties(CPU_GOVERNOR, beside)
            board.drives = manager.properties(IO_SCHEDULER, beside)
            self._is_changed = False

    def _follow(self) -> None:
        end = time.monotonic() + INTERVAL
        while event := self._manager.next_event(self._beside, timeout=max(0.0, end - time.monotonic())):
            self._board.note(output.happened(_clock(), event))
            self._is_changed = True

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        ending = Q if self._screen.keyboard else CTRL_C
        self._screen.draw(
            screen(
                self._board,
                _clock(),
                width=size.columns,
                height=max(4, size.lines),
                coloured=self._is_coloured,
                ending=ending,
            )
        )
