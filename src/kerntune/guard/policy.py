"""What the memory guard is to do: a sample, limits and the verdict before in, the next verdict out. Pure.

It reads no clock and no kernel, and writes nothing. A cap is mode never of vm.overcommit_memory with a limit on commits
(the kernel's promises of memory) that follows headroom; what the kernel counts and refuses is in
Documentation/mm/overcommit-accounting.rst and mm/util.c (vm_commit_limit, __vm_enough_memory).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from kerntune.model import Memory
from kerntune.tunables.overcommit import ALWAYS_RATIO

MIB, GIB = 1 << 20, 1 << 30
MODE_ALWAYS, MODE_NEVER = 1, 2  # vm.overcommit_memory
SHORTEST, LONGEST = 0.02, 1.0  # seconds between two looks
PER_CPU, FASTEST = 12 * GIB, 64 * GIB  # bytes a second that one CPU and that all of them use at most
BAND_PERCENT, LEAST_BAND, BAND_PART = 7, 2 * GIB, 128
ERROR_PART: Final = 256  # in mode never the kernel's count of commits is off by RAM / 256 at most (mm_compute_batch)
QUIET: Final = 0.5  # seconds in which commits have hardly grown, before large programs get more below the floor
RECOUNT: Final = 1.0  # seconds; writing mode never has the kernel count exactly (overcommit_policy_handler, Linux 5.9)
DEEPEST_PART: Final = 50  # large programs take no more than this part of RAM below the floor


class GuardState(StrEnum):
    """What the guard does; the values are the strings on the wire. OFF: nobody wants `always`, or it is disabled."""

    OFF = "off"
    RELAXED = "relaxed"
    CAPPED = "capped"
    EXHAUSTED = "exhausted"
    OBSERVING = "observing"


CAPPING: Final = frozenset({GuardState.CAPPED, GuardState.EXHAUSTED})


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """When the guard acts: `ratio` in percent, `band` in MiB (0: reckoned from RAM), `calm` in seconds."""

    enabled: bool = True
    ratio: int = ALWAYS_RATIO
    band: int = 0
    calm: float = 3.0

    def floor(self, memory: Memory) -> int:
        """Return what is to stay free, in bytes."""
        return memory.base * (100 - self.ratio) // 100

    def width(self, memory: Memory) -> int:
        """Return how far above the floor the guard caps, in bytes.

        Not less than RAM / 128 where that is much, for the kernel counts commits with an error of half of that.
        """
        if self.band:
            return self.band * MIB
        return min(memory.base * BAND_PERCENT // 100, max(LEAST_BAND, memory.total // BAND_PART))

    def caps_at(self, memory: Memory) -> int:
        """Return the headroom in bytes at which the guard caps."""
        return self.floor(memory) + self.width(memory)

    def ends_at(self, memory: Memory) -> int:
        """Return the headroom in bytes above which a cap may end, and at which the guard begins to warn."""
        return self.floor(memory) + 2 * self.width(memory)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a look found, at `now` seconds of a clock that never goes back.

    `reserves` are the bytes that the kernel keeps for root and from large programs (admin_reserve_kbytes and
    user_reserve_kbytes). `hindrance` says why nothing can be written, "" when it can be.
    """

    memory: Memory
    now: float
    reserves: int
    cpus: int = 1
    hindrance: str = ""


@dataclass(frozen=True, slots=True)
class Cap:
    """A cap in force: `kbytes` is what the guard wrote, the other sizes are bytes.

    `commits` and `headroom` are those at its start, `most` is the largest headroom since. `bucket` is what may be
    committed below the floor now, less than 0 where more was: the kernel's count has an error. `seen` are the commits
    at the last look, None while the cap was not in force; `at` is its time. `counted_at` is when the mode is to be
    written, first and again. Since `quiet_since` commits have hardly grown beyond `quiet`. `calm_since` says since when
    there has been enough, None while there is not.
    """

    kbytes: int
    commits: int
    headroom: int
    most: int
    bucket: int
    at: float
    counted_at: float
    quiet: int
    quiet_since: float
    seen: int | None = None
    calm_since: float | None = None


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What the guard is to be; without a `cap` the mode is the one that was asked for.

    `eased_at` is when a lower level was called for first, None while none is: a level stays for a moment.
    """

    state: GuardState = GuardState.OFF
    level: int = 0
    reason: str = ""
    cap: Cap | None = None
    eased_at: float | None = None

    @property
    def caps(self) -> bool:
        return self.cap is not None

    @property
    def kbytes(self) -> int:
        """The limit that is written, 0 without a cap."""
        return self.cap.kbytes if self.cap else 0

    @property
    def news(self) -> tuple[GuardState, int, str]:
        """What makes a verdict worth telling."""
        return self.state, self.level, self.reason


def decide(sample: Sample, limits: GuardLimits, before: GuardVerdict) -> GuardVerdict:
    """Return the next verdict."""
    memory, cap = sample.memory, before.cap
    if cap is None:
        if reason := sample.hindrance or _taken_by_others(memory):
            return _warned(sample, limits, before, GuardState.OBSERVING, reason)
        if memory.headroom > limits.caps_at(memory):
            return _warned(sample, limits, before, GuardState.RELAXED)
        if reason := inexpressible(memory, limits):
            return _warned(sample, limits, before, GuardState.OBSERVING, reason)
        cap = _begun(sample)
    elif (memory.overcommit_mode, memory.overcommit_kbytes) != (MODE_NEVER, cap.kbytes):
        return _warned(sample, limits, replace(before, cap=None), GuardState.OBSERVING, _changed(memory, cap))
    else:
        cap = _moved(sample, limits, cap)
        if cap.calm_since is not None and sample.now - cap.calm_since >= limits.calm:
            return _warned(sample, limits, replace(before, cap=None), GuardState.RELAXED)
    limited = replace(cap, kbytes=kbytes_for(commit_limit(sample, limits, cap), memory))
    return _warned(sample, limits, replace(before, cap=limited), GuardState.CAPPED)


def interval(sample: Sample, limits: GuardLimits) -> float:
    """Return the seconds to the next look: half the time in which the fastest programs could bring about a cap."""
    above = sample.memory.headroom - limits.caps_at(sample.memory)
    return min(LONGEST, max(SHORTEST, above / (2 * min(FASTEST, PER_CPU * sample.cpus))))


def commit_limit(sample: Sample, limits: GuardLimits, cap: Cap) -> int:
    """Return what all commits together may come to, in bytes.

    Above the floor programs get what fits, where no more is committed since the start than the largest headroom since.
    Beyond that there is the bucket: what is in it up to the kernel's reserves is for small programs and root.
    """
    memory = sample.memory
    floor, commits, headroom = limits.floor(memory), memory.committed, memory.headroom
    fits = min(headroom, cap.commits + cap.most - commits) - floor
    room = min(max(fits + sample.reserves, cap.bucket), headroom - _end(memory, floor))
    # What is in use now and was not at the start is no commit that nobody uses.
    most = cap.commits + 2 * limits.width(memory) + max(0, cap.headroom - headroom)
    return min(commits + room, most)


def inexpressible(memory: Memory, limits: GuardLimits) -> str:
    """Return why no limit can cap this host, "" when one can: the kernel adds all swap to whatever is written.

    Also before it is time: on the way to a cap commits grow as headroom goes.
    """
    if memory.committed + memory.headroom - limits.floor(memory) > memory.swap_total:
        return ""
    # Without the limit that is needed, which is another at each look.
    return f"the kernel's limit is never below the swap of {memory.swap_total // MIB} MiB, and less than that is needed"


def kbytes_for(limit: int, memory: Memory) -> int:
    """Return what to write for a limit in bytes: never 0, which would be a limit of no RAM at all."""
    return max(1, (limit - memory.swap_total) // 1024)


def _begun(sample: Sample) -> Cap:
    commits, headroom, now = sample.memory.committed, sample.memory.headroom, sample.now
    return Cap(0, commits, headroom, headroom, sample.reserves, now, now, commits, now)


def _moved(sample: Sample, limits: GuardLimits, cap: Cap) -> Cap:
    """Return the cap with what the look tells: the largest headroom, the bucket, and whether there is enough."""
    memory, now = sample.memory, sample.now
    floor, enough = limits.floor(memory), limits.ends_at(memory)
    most = max(cap.most, memory.headroom)
    is_enough = memory.headroom >= enough
    recounts = memory.headroom <= floor and now - cap.counted_at >= RECOUNT
    asks = memory.committed - cap.quiet > _rate(floor) * QUIET / 4
    cap = replace(
        cap,
        quiet=memory.committed if asks else min(cap.quiet, memory.committed),
        quiet_since=now if asks else cap.quiet_since,
    )
    return replace(
        cap,
        most=most,
        bucket=_filled(sample, cap, floor, most),
        seen=memory.committed,
        at=now,
        counted_at=now if recounts else cap.counted_at,
        calm_since=(now if cap.calm_since is None else cap.calm_since) if is_enough else None,
    )


def _filled(sample: Sample, cap: Cap, floor: int, most: int) -> int:
    """Return what is in the bucket now: so much a second more, less what was committed beyond the floor.

    It starts with no more than the kernel's reserves, which are for small programs. More than that comes only while
    nobody takes a quarter as fast as it flows in: a slow program too is refused at the floor. It keeps account also of
    what the kernel has granted by error: that is not granted again at each look.
    """
    memory = sample.memory
    beyond = floor - min(memory.headroom, cap.commits + most - memory.committed)
    grown = 0 if cap.seen is None else memory.committed - cap.seen
    filled = cap.bucket + int(_rate(floor) * (sample.now - cap.at))
    if sample.now - cap.quiet_since < QUIET:
        filled = min(filled, max(cap.bucket, sample.reserves))
    full = sample.reserves + min(max(256 * MIB, floor // 8), max(0, memory.headroom - _deepest(memory, floor)))
    return max(min(full, filled) - min(max(0, grown), max(0, beyond)), -memory.total // ERROR_PART)


def _rate(floor: int) -> int:
    """Return the bytes that flow into the bucket in a second."""
    return max(64 * MIB, floor // 32)


def _deepest(memory: Memory, floor: int) -> int:
    """Return the headroom in bytes at which large programs get nothing more: 2 % of RAM below the floor, or half of it.

    Less the kernel's error, by which they may go beyond.
    """
    return max(floor // 2, floor - memory.total // DEEPEST_PART) + memory.total // ERROR_PART


def _end(memory: Memory, floor: int) -> int:
    """Return the headroom in bytes at which nobody gets anything: a quarter of the floor, with the kernel's error."""
    return floor // 4 + memory.total // ERROR_PART


def _taken_by_others(memory: Memory) -> str:
    mode = memory.overcommit_mode
    return "" if mode == MODE_ALWAYS else f"vm.overcommit_memory is {mode}, not {MODE_ALWAYS}: something else set it"


def _changed(memory: Memory, cap: Cap) -> str:
    return (
        f"something else set vm.overcommit_memory to {memory.overcommit_mode} and vm.overcommit_kbytes to "
        f"{memory.overcommit_kbytes}, where the guard had {MODE_NEVER} and {cap.kbytes}"
    )


def _warned(
    sample: Sample, limits: GuardLimits, verdict: GuardVerdict, state: GuardState, reason: str = ""
) -> GuardVerdict:
    """Return the verdict with its state and its level: a higher one at once, a lower one after a calm moment."""
    memory = sample.memory
    level, eased_at = _level(memory, limits), None
    if level < verdict.level:
        eased_at = sample.now if verdict.eased_at is None else verdict.eased_at
        if sample.now - eased_at < limits.calm:
            level = verdict.level
        else:
            eased_at = None
    if verdict.caps:
        level = max(level, 100)
        state = GuardState.EXHAUSTED if level == 255 else GuardState.CAPPED
    return replace(verdict, state=state, level=level, reason=reason, eased_at=eased_at)


def _level(memory: Memory, limits: GuardLimits) -> int:
    """Return what the figures alone call for."""
    if memory.headroom <= limits.floor(memory):
        return 255
    if memory.headroom <= limits.caps_at(memory):
        return 100
    return 50 if memory.headroom <= limits.ends_at(memory) else 0
