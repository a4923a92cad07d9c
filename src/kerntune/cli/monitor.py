"""`kerntune monitor`: a screen that is kept up to date on a terminal, and a line for each event elsewhere.

It owns the terminal while it shows the screen, and restores it at any end.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import time
from argparse import Namespace
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from kerntune.bus.names import CPU_GOVERNOR, HUGE_PAGES, IO_SCHEDULER, MANAGER, MEMORY
from kerntune.cli import verbs
from kerntune.cli.board import Board, screen
from kerntune.cli.document import Event
from kerntune.cli.remote import Connect, Manager
from kerntune.cli.rows import Answer

INTERVAL: Final = 0.5  # seconds between two looks
# xterm's other screen, which every other terminal knows too, and the cursor.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, CLEAR_LINE, CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"


def monitor(connect: Connect, args: Namespace) -> Awaitable[Answer] | AsyncGenerator[Answer, None]:
    """Show every change from now on. Raise Unreachable when the daemon goes."""
    on_terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if args.json or args.events or not on_terminal:
        return verbs.monitor(connect, args)
    return show_live(connect, sys.stdout)


async def show_live(connect: Connect, stream: TextIO) -> Answer:
    """Keep the screen up to date until Ctrl-C or SIGTERM. Raise Unreachable when the daemon goes."""
    async with connect() as manager, manager.watch() as events:
        board = Board(await manager.describe())
        changed = asyncio.Event()
        changed.set()
        follower = asyncio.create_task(_follow(board, events, changed))
        try:
            with _signals() as ended, _screen(stream):
                either: set[asyncio.Future[Any]] = {follower, ended}
                while not ended.done():
                    await _look(board, manager, everything=changed.is_set())
                    changed.clear()
                    _draw(board, stream)
                    await asyncio.wait(either, timeout=INTERVAL, return_when=asyncio.FIRST_COMPLETED)
                    if follower.done():
                        follower.result()
        finally:
            follower.cancel()
    if ended.result() is signal.SIGTERM:
        # As without a handler: the sender sees that this signal ended the process.
        signal.raise_signal(signal.SIGTERM)
    return Answer(None, [])


async def _follow(board: Board, events: AsyncIterable[Event], changed: asyncio.Event) -> None:
    async for event in events:
        board.note(time.strftime("%H:%M:%S"), event)
        changed.set()


async def _look(board: Board, manager: Manager, *, everything: bool) -> None:
    """Read the values that change by themselves, and the others only when a signal has reported a change."""
    board.memory = await manager.properties(MEMORY)
    board.pools = await manager.properties(HUGE_PAGES)
    if everything:
        board.manager = await manager.properties(MANAGER)
        board.governors = await manager.properties(CPU_GOVERNOR)
        board.drives = await manager.properties(IO_SCHEDULER)


def _draw(board: Board, stream: TextIO) -> None:
    size = shutil.get_terminal_size()
    coloured = not os.environ.get("NO_COLOR")
    lines = screen(board, time.strftime("%H:%M:%S"), width=size.columns, height=max(4, size.lines), coloured=coloured)
    stream.write(HOME + "\r\n".join(f"{line}{CLEAR_LINE}" for line in lines) + CLEAR_REST)
    stream.flush()


@contextmanager
def _screen(stream: TextIO) -> Iterator[None]:
    """Show the other screen of the terminal; leave it at any end, and while the process is stopped (Ctrl-Z)."""

    def stop() -> None:
        put(LEAVE)
        signal.raise_signal(signal.SIGSTOP)
        put(ENTER)

    def put(text: str) -> None:
        stream.write(text)
        stream.flush()

    loop = asyncio.get_running_loop()
    put(ENTER)
    try:
        loop.add_signal_handler(signal.SIGTSTP, stop)
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTSTP)
        put(LEAVE)


@contextmanager
def _signals() -> Iterator[asyncio.Future[signal.Signals]]:
    """Give a future that holds the signal that is to end the screen."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[signal.Signals] = loop.create_future()

    def end(number: signal.Signals) -> None:
        if not ended.done():
            ended.set_result(number)

    ending = (signal.SIGINT, signal.SIGTERM)
    for number in ending:
        loop.add_signal_handler(number, end, number)
    try:
        yield ended
    finally:
        for number in ending:
            loop.remove_signal_handler(number)
