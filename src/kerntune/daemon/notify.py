"""What systemd is told (sd_notify(3)): ready, status, still alive, more time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from systemd import daemon

EXTEND_EVERY = 5.0  # seconds between asking for more time to start
EXTEND_BY = 20_000_000  # microseconds


def tell(text: str) -> None:
    """Send one or more KEY=VALUE lines; nothing happens where no service manager listens."""
    daemon.notify(text)


def reloading() -> None:
    """Say that the configuration is being read again; READY=1 ends it. systemd 253 and later want the time."""
    tell(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


async def extend_start() -> None:
    """Ask for more time to start, until cancelled: huge pages can take long."""
    while True:
        tell(f"EXTEND_TIMEOUT_USEC={EXTEND_BY}")
        await asyncio.sleep(EXTEND_EVERY)


async def watchdog(alive: Callable[[], bool]) -> None:
    """Say that the loop still turns, twice as often as the unit's WatchdogSec= demands, while the rest is `alive`."""
    usec = int(os.environ.get("WATCHDOG_USEC", "0"))
    if not usec or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        if alive():
            tell("WATCHDOG=1")
        await asyncio.sleep(usec / 2_000_000)
