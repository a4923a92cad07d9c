"""Messages of the daemon to systemd: ready, status, still alive, more time. They never wait, and never fail.

libsystemd's sd_notify() waits while the socket is full, and the whole loop with it. So this module sends them again.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from kerntune.sd_notify import sent

EXTEND_EVERY = 5.0  # seconds between asking for more time
EXTEND_BY = 20_000_000  # microseconds
# systemd acts on these, and waits for them. After a STATUS= or a request for more time comes another one.
WAITED_FOR: Final = frozenset({"READY=1", "RELOADING=1", "STOPPING=1", "WATCHDOG=1"})
RETRY: Final = 0.25  # seconds
TRIES: Final = 240  # a minute: by then systemd has given up the daemon, or does not read at all
MAX_WAITING: Final = 16  # messages that wait


class Queue:
    """A queue that sends messages in order; while the socket is full, those that systemd waits for are sent again."""

    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._tries = 0

    def send(self, text: str) -> None:
        """Send one or more KEY=VALUE lines, now or as soon as there is room."""
        matters = not WAITED_FOR.isdisjoint(text.splitlines())
        if self._waiting:
            # Behind a waiting message only those that matter are kept, and a watchdog beat only once.
            if matters and text not in self._waiting[-1:]:
                self._waiting = [*self._waiting, text][-MAX_WAITING:]
        elif not sent(text) and matters:
            self._waiting, self._tries = [text], 0
            self._later()

    def _later(self) -> None:
        try:
            asyncio.get_running_loop().call_later(RETRY, self._again)
        except RuntimeError:  # no loop runs, so no later try is possible
            self._waiting.clear()

    def _again(self) -> None:
        self._tries += 1
        while self._waiting and sent(self._waiting[0]):
            del self._waiting[0]
            self._tries = 0
        if self._waiting and self._tries < TRIES:
            self._later()
        else:
            self._waiting.clear()


_queue = Queue()


def send(text: str) -> None:
    """Send one or more KEY=VALUE lines; do nothing where no service manager listens."""
    _queue.send(text)


def reloading() -> None:
    """Say that the daemon reads the configuration again; READY=1 ends it. systemd 253 and later want the time."""
    send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


async def extend(*, at_once: bool = True) -> None:
    """Ask for more time until cancelled: huge pages can take long. Work that is probably short need not ask at once.

    systemd extends the time for the operation that it waits for: a start, or the command of ExecReload=. That command
    has TimeoutStartSec= like a start (systemd's src/core/service.c, service_enter_reload and service_extend_timeout).
    """
    while True:
        if at_once:
            send(f"EXTEND_TIMEOUT_USEC={EXTEND_BY}")
        at_once = True
        await asyncio.sleep(EXTEND_EVERY)


async def watchdog(alive: Callable[[], bool]) -> None:
    """Say that the loop still runs, twice as often as the unit's WatchdogSec= demands, while `alive` returns True."""
    usec = int(os.environ.get("WATCHDOG_USEC", "0"))
    if not usec or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        if alive():
            send("WATCHDOG=1")
        await asyncio.sleep(usec / 2_000_000)
