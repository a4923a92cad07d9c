"""When a write is made again that was in vain, and when to stop a fight with others. Pure; the clock is the caller's.

A write that is refused costs: some make the kernel look for a module each time. So `Retries` makes the same write again
after longer and longer waits, or at once when the target reads otherwise. A write to a pool that cannot grow costs the
kernel a search of all memory: `Backoff` waits until memory has become free. `DriftLog` counts what others undo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from kerntune.model import Reading, Target, Write

# Seconds to the second try: of a value that is owed to the host, and of a claim that the kernel refused.
SOON: Final = 1.0
LATER: Final = 60.0
LONGEST_WAIT: Final = 3600.0
FIRST: Final = 60.0  # seconds to the second request for memory that the kernel did not have
PARTS: Final = 4  # a quarter of the shortfall has to have become free
REPAIRS: Final = 3  # so many in WINDOW are a fight
WINDOW: Final = 600.0  # seconds

Seen = tuple[str | None, tuple[str, ...]]


def seen(reading: Reading) -> Seen:
    """Return what makes a write worth another try when it has changed: the value, and what is offered."""
    return reading.value, reading.choices


def held(reading: Reading) -> str:
    """Return the value as a baseline would save it: a difference means that somebody else wrote it."""
    return reading.restore or reading.value or ""


class Vain(NamedTuple):
    """A try in vain: the writes and the errno (see Try), when it was, and how long to wait when it is the first.

    `anew`: somebody asked for it, and the waits begin anew.
    """

    writes: tuple[Write, ...]
    code: int
    at: float
    first: float
    anew: bool = False


@dataclass(frozen=True, slots=True)
class Try:
    """The last try in vain: the value, what the target read after it, when, and how long to wait from then on.

    `writes` is empty where there was nothing to write: then only a look is due. `code` is the errno of the refusal, 0
    when the kernel took the write and holds another value.
    """

    value: str
    writes: tuple[Write, ...]
    seen: Seen
    code: int
    at: float
    wait: float

    @property
    def due(self) -> float:
        """The time of the next try."""
        return self.at + self.wait


class Retries:
    """The last try at each target of a lane that is not in the desired state."""

    def __init__(self) -> None:
        self._tries: dict[Target, Try] = {}

    @property
    def due(self) -> float | None:
        """The time of the earliest next try, None when nothing waits."""
        return min((tried.due for tried in self._tries.values()), default=None)

    def last(self, target: Target, value: str, reading: Reading) -> Try | None:
        """Return the last try at this value; None where the target reads otherwise since then."""
        tried = self._tries.get(target)
        return tried if tried and (tried.value, tried.seen) == (value, seen(reading)) else None

    def waiting(self, target: Target, value: str, reading: Reading, now: float) -> Try | None:
        """Return the last try when it is too early for another; what reads otherwise since then is tried at once."""
        tried = self.last(target, value, reading)
        return tried if tried and now < tried.due else None

    def after(self, target: Target, value: str, reading: Reading, vain: Vain) -> Try:
        """Return the record of a try in vain: the wait doubles when it left everything as it was."""
        last = self._tries.get(target)
        same = last is not None and (last.value, last.seen, last.code) == (value, seen(reading), vain.code)
        wait = min(last.wait * 2, LONGEST_WAIT) if last and same and not vain.anew else vain.first
        return Try(value, vain.writes, seen(reading), vain.code, vain.at, wait)

    def tried(self, target: Target) -> bool:
        """Return whether a try was in vain."""
        return target in self._tries

    def replace(self, tunable: str, tries: Mapping[Target, Try]) -> None:
        """Keep these tries of a tunable's targets, and no other."""
        self._tries = {t: tried for t, tried in self._tries.items() if t.tunable != tunable} | dict(tries)


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last attempt: the value, the bytes that were missing after it, its time, and how long to wait since.

    `free` is the least memory that was free since, in bytes, and `writes` are those that were made.
    """

    value: str
    shortfall: int
    at: float
    free: int
    wait: float = FIRST
    writes: tuple[Write, ...] = ()


def is_due(tried: Attempt, now: float, free: int) -> bool:
    """Return whether the wait is over and so much memory became free that the kernel may have more."""
    return now - tried.at >= tried.wait and may_have_more(tried, free)


def may_have_more(tried: Attempt, free: int) -> bool:
    """Return whether so much memory became free since the attempt that the kernel may have more."""
    return (free - tried.free) * PARTS >= tried.shortfall


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

    def is_vain(self, target: Target, writes: tuple[Write, ...], shortfall: int, free: int) -> bool:
        """Return whether the last attempt had the same writes and shortfall, and no memory came free since."""
        tried = self._tried.get(target)
        return bool(tried and (tried.writes, tried.shortfall) == (writes, shortfall) and not may_have_more(tried, free))

    def fell_short(
        self, target: Target, value: str, shortfall: int, now: float, free: int, *, writes: tuple[Write, ...]
    ) -> None:
        """Record that the kernel was asked, and that so many bytes are still missing."""
        tried = next_attempt(self._tried.get(target), value, shortfall, now, free)
        self._tried[target] = replace(tried, writes=writes)

    def looked(self, target: Target, free: int) -> None:
        """Record how much memory was free at a look that was too early to ask."""
        if tried := self._tried.get(target):
            self._tried[target] = replace(tried, free=min(tried.free, free))

    def drop(self, target: Target) -> None:
        """Drop the record: nothing is missing any more, or somebody asks anew."""
        self._tried.pop(target, None)


class DriftLog:
    """The times at which each target was put right after others had changed it."""

    def __init__(self) -> None:
        self._repairs: dict[Target, list[float]] = {}
        self.total = 0  # also those that are forgotten by now

    def repaired(self, target: Target, now: float) -> None:
        # Drives come and go without end: what is too long ago is of no use for any target.
        kept = {other: recent for other in self._repairs if (recent := self._recent(other, now))}
        self._repairs = {**kept, target: [*kept.get(target, ()), now]}
        self.total += 1

    def __len__(self) -> int:
        return len(self._repairs)

    def contested(self, target: Target, now: float) -> bool:
        """Return whether the target has been repaired so often that another repair would be a fight."""
        return len(self._recent(target, now)) >= REPAIRS

    def forgive(self, targets: Iterable[Target]) -> None:
        """Have these targets written again: somebody has named them."""
        for target in targets:
            self._repairs.pop(target, None)

    def _recent(self, target: Target, now: float) -> list[float]:
        return [then for then in self._repairs.get(target, ()) if now - then < WINDOW]
