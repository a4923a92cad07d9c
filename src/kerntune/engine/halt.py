"""Ends the writes of a pass that is to be over: a flag between two of them, and a signal to a thread that is in one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# set_max_huge_pages() in mm/hugetlb.c leaves off, without an error, when its thread has any signal to handle.
SIGNAL: Final = signal.SIGUSR2
TOLD_TO_STOP: Final = "kerntuned was told to stop"


def make_endable() -> None:
    """Take the signal and do nothing about it, so that it ends no process; call it in the main thread."""
    signal.signal(SIGNAL, lambda _number, _frame: None)


class Halt:
    """One pass's: whether it is to be over, and which threads of it are inside a write. Thread-safe."""

    def __init__(self) -> None:
        self.asked = False
        self.why = TOLD_TO_STOP
        self._lock = threading.Lock()
        self._inside: dict[int, str] = {}

    def ask(self, why: str = TOLD_TO_STOP) -> None:
        """No write begins from now on; outcomes tell the first reason."""
        if not self.asked:
            self.why = why
            self.asked = True

    @contextmanager
    def writing(self, path: str) -> Iterator[None]:
        """Mark the thread as being inside a write, for as long as the context lasts."""
        thread = threading.get_ident()
        with self._lock:
            self._inside[thread] = path
        try:
            yield
        finally:
            # A signal is sent with the lock held, so to no thread that has gone on or ended.
            with self._lock:
                del self._inside[thread]

    def interrupt(self) -> list[str]:
        """Signal each thread that is inside a write, and return the paths.

        The signal may come just before the system call: repeat it until nothing is left.
        """
        with self._lock:
            # Without a handler it would end the process.
            if callable(signal.getsignal(SIGNAL)):
                for thread in self._inside:
                    signal.pthread_kill(thread, SIGNAL)
            return sorted(self._inside.values())
