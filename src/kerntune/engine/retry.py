"""When a write is made again that the kernel refused or did not keep, and what is owed to the host. Pure.

A write that is refused costs: some make the kernel look for a module each time. So the same write is made again after
longer and longer waits, or at once when the target reads otherwise. The clock is the caller's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from kerntune.model import Reading, Target, Write

# Seconds to the second try: of a value that is owed to the host, and of a claim that the kernel refused.
SOON: Final = 1.0
LATER: Final = 60.0
LONGEST_WAIT: Final = 3600.0

Seen = tuple[str | None, tuple[str, ...]]


def seen(reading: Reading) -> Seen:
    """Return what makes a write worth another try when it has changed: the value, and what is offered."""
    return reading.value, reading.choices


def held(reading: Reading) -> str:
    """Return the value as a baseline would have it: what somebody else wrote is told by it."""
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
    """The last try at each target of a lane whose value is not as it should be."""

    def __init__(self) -> None:
        self._tries: dict[Target, Try] = {}

    @property
    def due(self) -> float | None:
        """The time of the earliest next try, None when nothing waits."""
        return min((tried.due for tried in self._tries.values()), default=None)

    def waiting(self, target: Target, value: str, reading: Reading, now: float) -> Try | None:
        """Return the last try when it is too early for another; what reads otherwise since then is tried at once."""
        tried = self._tries.get(target)
        if tried is None or (tried.value, tried.seen) != (value, seen(reading)) or now >= tried.due:
            return None
        return tried

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
