"""When to ask the kernel again for memory that it did not have. Pure; the clock is the caller's.

A write to a pool that cannot grow costs the kernel a search of all memory each time, and nothing has changed until
memory became free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kerntune.model import Target

FIRST: Final = 60.0  # seconds
LONGEST_WAIT: Final = 3600.0
PARTS: Final = 4  # a quarter of the shortfall has to have become free


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last attempt: the value, the bytes that were missing after it, its time, and how long to wait since.

    `free` is the least memory that was free since, in bytes.
    """

    value: str
    shortfall: int
    at: float
    free: int
    wait: float = FIRST


def is_due(tried: Attempt, now: float, free: int) -> bool:
    """Return whether the wait is over and so much memory became free that the kernel may have more."""
    return now - tried.at >= tried.wait and (free - tried.free) * PARTS >= tried.shortfall


def next_attempt(before: Attempt | None, value: str, shortfall: int, now: float, free: int) -> Attempt:
    """Return the record of an attempt that fell short: the wait doubles where it brought nothing."""
    if before is None or (before.value, before.shortfall) != (value, shortfall):
        return Attempt(value, shortfall, now, free)
    return Attempt(value, shortfall, now, free, min(before.wait * 2, LONGEST_WAIT))


class Backoff:
    """The last attempts at the targets that have less than was asked."""

    def __init__(self) -> None:
        self._tried: dict[Target, Attempt] = {}

    def is_blocked(self, target: Target, value: str, shortfall: int, now: float, free: int) -> bool:
        """Return whether it is too early to ask again for the same value and the same shortfall."""
        tried = self._tried.get(target)
        if tried is None or (tried.value, tried.shortfall) != (value, shortfall):
            return False
        return not is_due(tried, now, free)

    def fell_short(self, target: Target, value: str, shortfall: int, now: float, free: int) -> None:
        """Record that the kernel was asked, and that so many bytes are still missing."""
        self._tried[target] = next_attempt(self._tried.get(target), value, shortfall, now, free)

    def looked(self, target: Target, free: int) -> None:
        """Record how much memory was free at a look that was too early to ask."""
        if tried := self._tried.get(target):
            self._tried[target] = replace(tried, free=min(tried.free, free))

    def drop(self, target: Target) -> None:
        """Drop the record: nothing is missing any more, or somebody asks anew."""
        self._tried.pop(target, None)
