"""When to ask the kernel again for memory that it did not have. Pure; the clock is the caller's.

A write to a pool that cannot grow costs the kernel a search of all memory each time, and nothing has changed until
memory became free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kerntune.model import Target

FIRST: Final = 60.0  # seconds
LONGEST: Final = 3600.0
PARTS: Final = 4  # a quarter of what is lacking has to have become free


@dataclass(frozen=True, slots=True)
class Tried:
    """The last try: the value, the bytes that were lacking after it, when it was, and how long to wait from then on.

    `free` is the least memory that was free since, in bytes.
    """

    value: str
    lacking: int
    at: float
    free: int
    wait: float = FIRST


def worth_asking(tried: Tried, now: float, free: int) -> bool:
    """Whether the wait is over and so much memory became free that the kernel may have more."""
    return now - tried.at >= tried.wait and (free - tried.free) * PARTS >= tried.lacking


def next_try(before: Tried | None, value: str, lacking: int, now: float, free: int) -> Tried:
    """After a try that fell short: the wait doubles where it brought nothing."""
    if before is None or (before.value, before.lacking) != (value, lacking):
        return Tried(value, lacking, now, free)
    return Tried(value, lacking, now, free, min(before.wait * 2, LONGEST))


class Patience:
    """The last tries at those targets that are short."""

    def __init__(self) -> None:
        self._tried: dict[Target, Tried] = {}

    def waits(self, target: Target, value: str, lacking: int, now: float, free: int) -> bool:
        """Whether it is too early; what is wished or had differently from then on is asked for at once."""
        tried = self._tried.get(target)
        if tried is None or (tried.value, tried.lacking) != (value, lacking):
            return False
        return not worth_asking(tried, now, free)

    def fell_short(self, target: Target, value: str, lacking: int, now: float, free: int) -> None:
        """The kernel was asked, and so much is lacking still."""
        self._tried[target] = next_try(self._tried.get(target), value, lacking, now, free)

    def looked(self, target: Target, free: int) -> None:
        """It was too early to ask, with so much memory free."""
        if tried := self._tried.get(target):
            self._tried[target] = replace(tried, free=min(tried.free, free))

    def forget(self, target: Target) -> None:
        """Nothing is lacking any more, or somebody asks anew."""
        self._tried.pop(target, None)
