"""Signals as events: while a verb waits, a signal wakes it and does not end it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socket import socket, socketpair
from typing import Final

MAX_SIGNALS: Final = 64  # signals that are taken at once


class Caught:
    """The signals that have come; `fileno` is readable when there is one."""

    def __init__(self, source: socket) -> None:
        self._source = source

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._source.fileno()

    def take(self) -> list[signal.Signals]:
        """Return those that have come since the last time, in their order."""
        with suppress(BlockingIOError):
            return [signal.Signals(number) for number in self._source.recv(MAX_SIGNALS)]
        return []


@contextmanager
def caught(*numbers: signal.Signals) -> Iterator[Caught]:
    """Catch these signals. What the caller has ignored stays so: a script's background command ignores SIGINT."""
    source, woken = socketpair()
    with source, woken:
        for end in (source, woken):
            end.setblocking(False)  # noqa: FBT003  # the parameter has no name
        before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        handlers = {number: signal.getsignal(number) for number in numbers}
        caught_ones = [number for number in numbers if handlers[number] != signal.SIG_IGN]
        for number in caught_ones:
            signal.signal(number, lambda *_: None)
        try:
            yield Caught(source)
        finally:
            for number in caught_ones:
                signal.signal(number, handlers[number])
            signal.set_wakeup_fd(before)
