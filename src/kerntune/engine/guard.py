"""The memory guard's verdict: figures, limits and the verdict before in, the next verdict out. Pure.

It reads no clock and no kernel, and writes nothing. What the kernel counts and refuses is in
Documentation/mm/overcommit-accounting.rst and mm/util.c (vm_commit_limit, __vm_enough_memory).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Protocol

from kerntune.model import Claim, ClaimId, Consumer, Memory

MIB: Final = 1 << 20
FASTEST: Final = 8 << 30  # bytes a second that programs take at most
SHORTEST, LONGEST = 0.02, 1.0  # seconds between two looks
ALWAYS_RATIO: Final = 95  # percent, for `always` without a ratio: the kernel's own 50 would cap a half full host
MODE_ALWAYS, MODE_NEVER = 1, 2  # vm.overcommit_memory
WARNED_UNTIL: Final = 2  # points: level 50 goes when so much more is free than it came at
AGAIN_WITHIN: Final = 60.0  # seconds after a release in which another cap doubles the dwell
LONGEST_DWELL: Final = 300.0
LITTLE: Final = 8  # this part of the reserve comes and goes with every program that starts
STEADY: Final = 0.5  # seconds in which no more is promised, before the limit is raised


class GuardState(StrEnum):
    """What the guard does; the values are the strings on the wire. OFF: nobody wants `always`, or it is disabled."""

    OFF = "off"
    RELAXED = "relaxed"
    CAPPED = "capped"
    EXHAUSTED = "exhausted"
    RELEASED = "released"
    OBSERVING = "observing"


OBSERVES: Final = "guard-observing"  # the slug in Degraded: `always` is in force, and nothing makes it safe
CAPPING: Final = frozenset({GuardState.CAPPED, GuardState.EXHAUSTED})


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """When the guard acts: points are percent of RAM (less huge pages) above the floor, times are seconds."""

    enabled: bool = True
    ratio: int = ALWAYS_RATIO
    cap: int = 7
    release: int = 13
    warn: int = 15
    calm: float = 10.0
    dwell: float = 5.0
    quiet: float = 30.0
    doubling: bool = True

    def floor(self, memory: Memory) -> int:
        """What is to stay free, in bytes."""
        return memory.base * (100 - self.ratio) // 100

    def above(self, memory: Memory, points: int) -> int:
        """The headroom in bytes that is so many points above the floor."""
        return self.floor(memory) + memory.base * points // 100


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What the guard is to be; `kbytes` is the limit to have written while it caps, 0 when it does not.

    `since`: when it was capped or released. `calm_since`: since when there has been enough while capped, None when
    there is not. `released_at`: the last release. `promised`: bytes, hardly more since `steady_since`.
    """

    state: GuardState = GuardState.OFF
    level: int = 0
    kbytes: int = 0
    reason: str = ""
    since: float = 0.0
    calm_since: float | None = None
    released_at: float | None = None
    promised: int = 0
    steady_since: float = 0.0
    dwell: float = 0.0

    @property
    def caps(self) -> bool:
        return self.state in CAPPING

    @property
    def news(self) -> tuple[GuardState, int, str]:
        """What makes a verdict worth telling."""
        return self.state, self.level, self.reason


@dataclass(frozen=True, slots=True)
class Alert:
    """One change of the guard, in bytes; no processes where nothing is short."""

    verdict: GuardVerdict
    headroom: int
    floor: int
    limit: int
    largest: Sequence[Consumer] = ()
    growing: Sequence[Consumer] = ()


class Guard(Protocol):
    """The guard as the passes see it: a claim maker that writes one tunable by itself, beside them."""

    @property
    def tunable(self) -> str:
        """The name of that tunable."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while that tunable is written, by the guard or by a pass."""

    @property
    def verdict(self) -> GuardVerdict: ...

    @property
    def limits(self) -> GuardLimits | None:
        """None while it does not watch."""

    @property
    def alive(self) -> bool:
        """Whether it looks as often as it should; also while there is nothing to look at."""

    @property
    def times_capped(self) -> int:
        """How often it has begun to cap since the daemon started."""

    @property
    def times_refused(self) -> int:
        """How often the kernel logged that it refused memory during a cap; it logs only some of many."""

    def count_refusals(self, times: int) -> None:
        """So many more, of a cap that has ended."""

    @property
    def claims(self) -> tuple[Claim, ...]:
        """What the guard itself claims now."""

    def follow(self, claims: Sequence[Claim], released: Collection[ClaimId], *, dry: bool) -> tuple[Claim, ...]:
        """The claims of a pass that begins, with the guard's own; begins and ends to watch. Called with the lock held.

        `released` are the claims that are withdrawn. A dry run changes nothing.
        """

    def remark(self, value: str, memory: Memory) -> str:
        """What to say of a value, "" when the guard has no part in it."""


def decide(memory: Memory, now: float, limits: GuardLimits, before: GuardVerdict, hindrance: str = "") -> GuardVerdict:
    """The next verdict, at `now` seconds of a clock that never goes back; `hindrance` is why nothing can be written."""
    if before.caps:
        return _while_capped(memory, now, limits, before)
    if hindrance:
        return _observing(memory, limits, before, hindrance)
    if memory.overcommit_mode != MODE_ALWAYS:
        reason = f"vm.overcommit_memory is {memory.overcommit_mode}, not {MODE_ALWAYS}: something else set it"
        return _observing(memory, limits, before, reason)
    if memory.headroom > limits.above(memory, limits.cap):
        return _with_room(memory, now, limits, before)
    if reason := inexpressible(memory, limits):
        return _observing(memory, limits, before, reason)
    again = before.released_at is not None and now - before.released_at < AGAIN_WITHIN
    dwell = min(before.dwell * 2, LONGEST_DWELL) if again and limits.doubling else limits.dwell
    capped = replace(before, kbytes=wanted_kbytes(memory, limits), since=now, calm_since=None, dwell=dwell)
    return _pressed(memory, limits, replace(capped, promised=memory.committed, steady_since=now))


def _while_capped(memory: Memory, now: float, limits: GuardLimits, before: GuardVerdict) -> GuardVerdict:
    """Hold the cap, move it, or release it; leave it alone when it is no longer ours."""
    if (memory.overcommit_mode, memory.overcommit_kbytes) != (MODE_NEVER, before.kbytes):
        reason = (
            f"something else set vm.overcommit_memory to {memory.overcommit_mode} and vm.overcommit_kbytes to "
            f"{memory.overcommit_kbytes}, where the guard had {MODE_NEVER} and {before.kbytes}"
        )
        return _observing(memory, limits, before, reason)
    enough = memory.headroom >= limits.above(memory, limits.release)
    calm_since = (now if before.calm_since is None else before.calm_since) if enough else None
    calm = calm_since is not None and now - calm_since >= limits.calm
    if calm and now - before.since >= before.dwell:
        level = warning(memory, limits, before.level)
        return GuardVerdict(GuardState.RELEASED, level, since=now, released_at=now, dwell=before.dwell)
    held = _still_asking(memory, now, replace(before, calm_since=calm_since))
    return _pressed(memory, limits, replace(held, kbytes=moved_kbytes(memory, now, limits, held)))


def _still_asking(memory: Memory, now: float, before: GuardVerdict) -> GuardVerdict:
    """Since when about the same is promised; less is no reason to begin anew."""
    if memory.committed > before.promised + reserve(memory) // LITTLE:
        return replace(before, promised=memory.committed, steady_since=now)
    return replace(before, promised=min(before.promised, memory.committed))


def _pressed(memory: Memory, limits: GuardLimits, capped: GuardVerdict) -> GuardVerdict:
    """The state of a cap."""
    exhausted = memory.headroom <= limits.floor(memory)
    state, level = (GuardState.EXHAUSTED, 255) if exhausted else (GuardState.CAPPED, 100)
    return replace(capped, state=state, level=level, reason="")


def _with_room(memory: Memory, now: float, limits: GuardLimits, before: GuardVerdict) -> GuardVerdict:
    """Nothing to do now."""
    level = warning(memory, limits, before.level)
    if before.state is GuardState.RELEASED and now - before.since < limits.quiet:
        return replace(before, level=level)
    return replace(before, state=GuardState.RELAXED, level=level, reason="", kbytes=0)


def _observing(memory: Memory, limits: GuardLimits, before: GuardVerdict, reason: str) -> GuardVerdict:
    """Nothing is written; the level still warns."""
    if memory.headroom <= limits.floor(memory):
        level = 255
    elif memory.headroom <= limits.above(memory, limits.cap):
        level = 100
    else:
        level = warning(memory, limits, before.level)
    return replace(before, state=GuardState.OBSERVING, level=level, reason=reason, kbytes=0, calm_since=None)


def warning(memory: Memory, limits: GuardLimits, before: int) -> int:
    """0, or 50 when it is time to look."""
    points = limits.warn + (WARNED_UNTIL if before else 0)
    return 50 if memory.headroom <= limits.above(memory, points) else 0


def reserve(memory: Memory) -> int:
    """What only root is promised while the guard caps, and everybody as much again: bytes, 1 % of RAM or 128 MiB.

    Many programs together may take it all, so it has to be small beside the floor. One alone may not, for the kernel
    keeps `kept_from_one` from it.
    """
    return min(128 * MIB, memory.total // 100)


def kept_from_one(memory: Memory) -> int:
    """What no program gets, root's neither, while others can have it: bytes, for vm.user_reserve_kbytes.

    More than root's reserve, so that some is left to ordinary users where a program of root takes that. The kernel
    keeps no more of it from a program than 1/32 of the program's own size.
    """
    return 2 * reserve(memory)


def margin(memory: Memory, limits: GuardLimits) -> int:
    """What may be promised to all when the cap begins, in bytes: not all that is above the floor.

    A program that takes all it can get leaves a quarter to the rest of the host; one of root takes the reserve too.
    """
    spare = memory.headroom - limits.floor(memory)
    return max(memory.total // 200, spare * 3 // 4)


def inexpressible(memory: Memory, limits: GuardLimits) -> str:
    """Why no limit can cap this host, "" when one can: the kernel adds all swap to whatever is written."""
    if memory.committed + reserve(memory) + margin(memory, limits) > memory.swap_total:
        return ""
    # Without the limit that is needed, which is another at each look.
    return f"the kernel's limit is never below the swap of {memory.swap_total // MIB} MiB, and less than that is needed"


def kbytes_for(limit: int, memory: Memory) -> int:
    """What to write for a limit in bytes: never 0, which would be a limit of no RAM at all."""
    return max(1, -(-(limit - memory.swap_total) // 1024))


def wanted_kbytes(memory: Memory, limits: GuardLimits) -> int:
    """vm.overcommit_kbytes for a cap that begins now."""
    return kbytes_for(memory.committed + reserve(memory) + margin(memory, limits), memory)


def moved_kbytes(memory: Memory, now: float, limits: GuardLimits, before: GuardVerdict) -> int:
    """The limit while capped: lowered as memory goes, raised so far that the rest of the host can go on working.

    That room is for everybody, so it is made only when nobody asks for more and more (whoever did has been refused),
    and above the floor: a program that asks again and again gets no further than 2 % of RAM below it.
    """
    needed = kbytes_for(memory.committed + 2 * reserve(memory), memory)
    if needed > before.kbytes:
        asked_lately = now - before.steady_since < STEADY
        return before.kbytes if asked_lately or memory.headroom <= limits.floor(memory) else needed
    if inexpressible(memory, limits):
        return before.kbytes
    wanted = max(needed, wanted_kbytes(memory, limits))
    return wanted if wanted < before.kbytes - reserve(memory) // 1024 // LITTLE else before.kbytes


def interval(memory: Memory, limits: GuardLimits, *, pressed: bool = False) -> float:
    """Seconds to the next look: half the time in which the fastest programs could be at the floor.

    `pressed` is PSI's hint that it had better be soon.
    """
    above = memory.headroom - limits.floor(memory)
    return SHORTEST if pressed else min(LONGEST, max(SHORTEST, above / (2 * FASTEST)))
