"""How long a hold lasts: its time begins when it is granted, whatever it has waited for before."""

from __future__ import annotations

import time
from dataclasses import replace

from kerntune.model import Hold


def granted(hold: Hold) -> Hold:
    """Return the hold with its time beginning now."""
    return replace(hold, since=time.time_ns() // 1000, ends_boottime=boottime() + hold.ttl if hold.ttl else 0)


def boottime() -> int:
    """Return CLOCK_BOOTTIME in microseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
