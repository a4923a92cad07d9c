"""A bar on the terminal while the daemon waits for huge pages; it asks nothing, and is gone at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TextIO

from kerntune.api.document import named
from kerntune.api.names import MANAGER, ROOT
from kerntune.cli.tables import clean
from kerntune.streams import is_quiet

if TYPE_CHECKING:
    from kerntune.dbus.blocking import BlockingClient, Signal

ERASE: Final = "\r\x1b[K"
WIDEST: Final = 40  # characters of the bar itself
NARROWEST: Final = 5
USUAL: Final = 80  # columns


@contextmanager
def shown(client: BlockingClient, stream: TextIO) -> Iterator[None]:
    """Draw the daemon's progress on the call that is made inside; draw nothing where `stream` is no terminal."""
    if not may_draw(stream):
        yield
        return
    client.listen(ROOT, MANAGER, "Progress", start=True)
    drawn = False

    def draw(signal: Signal) -> None:
        nonlocal drawn
        drawn = True
        _write(stream, ERASE + line(*signal.args, columns=_columns(stream)))

    client.on_signal = draw
    try:
        yield
    finally:
        client.on_signal = None
        if drawn:
            _write(stream, ERASE)


def may_draw(stream: TextIO) -> bool:
    """Return True if a bar may be drawn: on a terminal that can erase it, where not only errors are wanted."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not is_quiet()


def _columns(stream: TextIO) -> int:
    """Return the width of a terminal; USUAL for a serial console that does not know it, or a terminal that has gone."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or USUAL
    except OSError:
        return USUAL


def _write(stream: TextIO, text: str) -> None:
    """Write to a terminal, but do not fail if it has gone."""
    with suppress(OSError):
        stream.write(text)
        stream.flush()


def line(tunable: str, instance: str, done: int, wanted: int, *_: Any, columns: int) -> str:
    """Return the daemon's progress in one line."""
    return bar(f"{clean(named(tunable, instance))} ", done, wanted, " pages", columns=columns)


def bar(before: str, done: int, wanted: int, after: str, *, columns: int) -> str:
    """Return one line of less than `columns` characters, so that it can be erased; the bar shrinks if needed."""
    after = f" {done} of {wanted}{after}"
    width = min(WIDEST, columns - len(before) - len(after) - 3)
    if width < NARROWEST:
        return (before + after.strip())[: max(0, columns - 1)]
    full = width * min(done, wanted) // max(1, wanted)
    return f"{before}[{'#' * full}{'.' * (width - full)}]{after}"


class Bar:
    """A bar with the remaining time, for work in this process; it draws nothing where `stream` is no terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._draws = may_draw(stream)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.erase()

    def erase(self) -> None:
        """Erase the bar, so that a line of another kind can follow."""
        if self._draws:
            _write(self._stream, ERASE)

    def draw(self, name: str, done: int, planned: int, unit: str, left: str) -> None:
        """Draw the progress of `name`; `left` says how long it still takes."""
        if self._draws:
            _write(
                self._stream,
                ERASE + bar(f"{clean(name)} ", done, planned, f" {unit}{left}", columns=_columns(self._stream)),
            )
