"""What a process is called, and how much memory each has; the only module that imports psutil."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from heapq import nlargest
from operator import itemgetter
from typing import TYPE_CHECKING

from kerntune.model import Consumer

LEAST = 1.0  # seconds

if TYPE_CHECKING:
    import psutil
    from psutil import Process


def describe(pid: int, uid: int) -> str:
    """`alice (busctl)`: the user's name and the program's, as far as they can be found. Never used to authorise."""
    try:
        import psutil  # noqa: PLC0415  (its import costs more than the start of the daemon may)
    except ImportError:  # it is just being replaced by an upgrade
        return f"uid {uid}"
    try:
        user = psutil.Process(pid).username()
        command = psutil.Process(pid).name()
    except (psutil.Error, OSError):  # it is gone, or there is no memory or no descriptor to look
        return f"uid {uid}"
    return f"{user} ({printable(command)})"


def printable(name: str) -> str:
    """A name that its process chose, without what would break a log line, a terminal or a file of text."""
    return "".join(char if char.isprintable() else "?" for char in name)


def swapped(pid: int) -> int:
    """Bytes of a process that are in swap; 0 when that cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmSwap:")), 0)
    except OSError:
        return 0


class Consumers:
    """Who holds memory, and who has taken more of it since the look before. Keeps no process alive.

    Sizes are resident memory (the second figure of /proc/PID/statm), and where the host has swap, what is swapped out
    of it (VmSwap in /proc/PID/status). Pages of hugetlbfs are not in it, and are not in what the guard counts either.
    """

    def __init__(self) -> None:
        """Raises ImportError while psutil is being replaced."""
        import psutil  # noqa: PLC0415  (see describe)

        self._psutil = psutil
        self._now: dict[psutil.Process, int] = {}
        self._before: dict[psutil.Process, int] = {}
        self._looked = -LEAST

    def look(self, now: float) -> None:
        """Read every process, at so many seconds of a clock that never goes back; takes some 10 us each.

        What cannot be read is left out. Raises OSError when nothing can be.
        """
        # Looks may follow each other at once: growth is that of LEAST seconds or more.
        if now - self._looked >= LEAST:
            self._before = self._now
        self._now, self._looked = {}, now
        swaps = self._psutil.swap_memory().total > 0
        for process in self._psutil.process_iter():
            with contextlib.suppress(self._psutil.Error, OSError):
                self._now[process] = process.memory_info().rss + (swapped(process.pid) if swaps else 0)

    def largest(self, count: int) -> list[Consumer]:
        """By what they have; reads their names."""
        return self._named(nlargest(count, self._now.items(), key=itemgetter(1)))

    def growing(self, count: int) -> list[Consumer]:
        """By what they have got lately; nobody when there was only one look."""
        if not self._before:
            return []
        grown = {process: size - self._before.get(process, 0) for process, size in self._now.items()}
        most = nlargest(count, grown.items(), key=itemgetter(1))
        return self._named([(process, size) for process, size in most if size > 0])

    def _named(self, rows: Iterable[tuple[Process, int]]) -> list[Consumer]:
        found = []
        for process, size in rows:
            with contextlib.suppress(self._psutil.Error, OSError):
                found.append(Consumer(process.pid, printable(process.name()), process.uids().real, size))
        return found
