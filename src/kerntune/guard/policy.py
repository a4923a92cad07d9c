"""The decisions of the memory guard: the next verdict from a sample, the limits and the verdict before. Pure.

The module reads no clock and no kernel file, and writes nothing. A cap is mode never of vm.overcommit_memory with a
limit on commits (the kernel's promises of memory) that follows headroom. Documentation/mm/overcommit-accounting.rst and
mm/util.c (vm_commit_limit, __vm_enough_memory) say what the kernel counts and refuses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kerntune.model import GuardState, Memory
from kerntune.tunables.overcommit import ALWAYS_RATIO, kept_free

MIB, GIB = 1 << 20, 1 << 30
MODE_ALWAYS, MODE_NEVER = 1, 2  # values of vm.overcommit_memory
SHORTEST, LONGEST = 0.02, 1.0  # seconds between two looks
PER_CPU, FASTEST = 12 * GIB, 64 * GIB  # bytes a second that one CPU uses at most, and that all CPUs use at most
BAND_PERCENT, LEAST_BAND, BAND_PART = 7, 2 * GIB, 128
QUIET: Final = 0.5  # seconds in which no program has taken much; after them large programs get more than what is left
MUCH, MUCH_PART = 4 * MIB, 1 << 14  # bytes, or a part of RAM
RECOUNT: Final = 1.0  # seconds; writing mode never has the kernel count exactly (overcommit_policy_handler, Linux 5.9)
RECOUNT_PART: Final = 128  # part of RAM above the floor, below which it does so: twice the largest error, and more
ASKED: Final = 96 * MIB  # bytes that a large bystander may ask for at once, and some more
DEEPEST_PART: Final = 50  # large programs take at most this part of RAM below the floor


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """The guard's thresholds: `ratio` in percent, `band` in MiB (0: computed from RAM), `calm` in seconds."""

    enabled: bool = True
    ratio: int = ALWAYS_RATIO
    band: int = 0
    calm: float = 3.0

    def floor(self, memory: Memory) -> int:
        """Return the bytes that stay free."""
        return kept_free(memory, self.ratio)

    def width(self, memory: Memory) -> int:
        """Return how many bytes above the floor the guard caps.

        The width is at least RAM / 128 where that is much, because the kernel counts commits with an error of half of
        that.
        """
        if self.band:
            return self.band * MIB
        return min(memory.base * BAND_PERCENT // 100, max(LEAST_BAND, memory.total // BAND_PART))

    def caps_at(self, memory: Memory) -> int:
        """Return the headroom in bytes at which the guard caps."""
        return self.floor(memory) + self.width(memory)

    def ends_at(self, memory: Memory) -> int:
        """Return the headroom in bytes above which a cap may end; at or below it the guard begins to warn."""
        return self.floor(memory) + 2 * self.width(memory)


@dataclass(frozen=True, slots=True)
class Sample:
    """The findings of one look, at `now` seconds of a clock that never goes back.

    `reserves` are the bytes that the kernel keeps for root and from large programs (admin_reserve_kbytes and
    user_reserve_kbytes). The kernel's count of commits may be wrong by `error` bytes. `unavailable_reason` says why
    the guard can write nothing, "" when it can.
    """

    memory: Memory
    now: float
    reserves: int
    error: int
    cpus: int = 1
    unavailable_reason: str = ""


@dataclass(frozen=True, slots=True)
class Cap:
    """A cap in force: `kbytes` is the limit that the guard wrote, the other sizes are in bytes.

    `commits` and `headroom` are the figures at the cap's start, `most` is the largest headroom since then. `bucket` is
    what programs may commit beyond what is left above the floor. It is below 0 where they have committed more, because
    the kernel's count has an error. `seen` are the commits at the last look, at the time `at`; None while the cap was
    not in force. `lowest` is the least that was left above the floor, and `quiet_since` is the time of that.
    `counted_at` is the time to write the mode, for the first time and again. `calm_since` is the time since which there
    has been enough, None while there is not.
    """

    kbytes: int
    commits: int
    headroom: int
    most: int
    bucket: int
    lowest: int
    quiet_since: float
    at: float
    counted_at: float
    seen: int | None = None
    calm_since: float | None = None


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """The state that the guard is to have; without a `cap` the mode is the one that the claim asks for.

    `eased_at` is when the figures first called for a lower level, None while they do not: a level stays for a moment.
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
        """The limit to write in KiB, 0 without a cap."""
        return self.cap.kbytes if self.cap else 0

    @property
    def news(self) -> tuple[GuardState, int, str]:
        """The parts of a verdict that make it worth a report when they change."""
        return self.state, self.level, self.reason


def decide(sample: Sample, limits: GuardLimits, before: GuardVerdict) -> GuardVerdict:
    """Return the next verdict."""
    memory, cap = sample.memory, before.cap
    if cap is None:
        if reason := sample.unavailable_reason or _taken_by_others(memory):
            return _warned(sample, limits, before, GuardState.OBSERVING, reason)
        if memory.headroom > limits.caps_at(memory):
            return _warned(sample, limits, before, GuardState.RELAXED)
        cap = _begun(sample, limits)
    elif (memory.overcommit_mode, memory.overcommit_kbytes) != (MODE_NEVER, cap.kbytes):
        return _warned(sample, limits, replace(before, cap=None), GuardState.OBSERVING, _changed(memory, cap))
    else:
        cap = _moved(sample, limits, cap)
        if cap.calm_since is not None and sample.now - cap.calm_since >= limits.calm:
            return _warned(sample, limits, replace(before, cap=None), GuardState.RELAXED)
    limit = commit_limit(sample, limits, cap)
    reason = inexpressible(memory, limit)
    if reason and not before.caps:
        return _warned(sample, limits, before, GuardState.OBSERVING, reason)
    limited = replace(cap, kbytes=kbytes_for(limit, memory))
    return _warned(sample, limits, replace(before, cap=limited), GuardState.CAPPED, reason)


def interval(sample: Sample, limits: GuardLimits) -> float:
    """Return the seconds to the next look: half the time in which the fastest programs could bring about a cap."""
    above = sample.memory.headroom - limits.caps_at(sample.memory)
    return min(LONGEST, max(SHORTEST, above / (2 * min(FASTEST, PER_CPU * sample.cpus))))


def commit_limit(sample: Sample, limits: GuardLimits, cap: Cap) -> int:
    """Return the bytes that all commits together may reach.

    Programs get what is left above the floor, and then what is in the bucket. Of both the kernel keeps its reserves for
    small programs and root.
    """
    memory = sample.memory
    headroom = memory.headroom
    left = _left(memory, limits, cap)
    room = min(max(left + sample.reserves, cap.bucket), left + limits.floor(memory) - _end(sample, limits))
    if headroom >= limits.ends_at(memory):  # the cap is about to end
        return memory.committed + room
    # Where memory has come back that no program had committed, commits without use could grow.
    most = cap.commits + 2 * limits.width(memory) + max(0, cap.headroom - headroom)
    return min(memory.committed + room, most)


def expected_limit(memory: Memory, limits: GuardLimits) -> int:
    """Return the limit in bytes with which a cap would begin: until then commits grow as headroom shrinks."""
    return memory.committed + max(0, memory.headroom - limits.floor(memory))


def inexpressible(memory: Memory, limit: int) -> str:
    """Return why the kernel cannot have this limit, "" when it can: it adds all swap to the written value."""
    if limit > memory.swap_total or not memory.swap_total:
        return ""
    # The sentence leaves out the limit that is needed, which differs at each look.
    return f"the kernel's limit is never below the swap of {memory.swap_total // MIB} MiB, and less than that is needed"


def kbytes_for(limit: int, memory: Memory) -> int:
    """Return the KiB to write for a limit in bytes: never 0, which would be a limit of no RAM at all."""
    return max(1, (limit - memory.swap_total) // 1024)


def counting_error(total: int, cpus: int, page: int) -> int:
    """Return by how many bytes the kernel's count of commits may be wrong in mode never.

    Each CPU counts for itself up to a batch (mm_compute_batch in mm/mm_init.c).
    """
    return max(total // 256, max(2 * cpus, 32) * cpus * page)


def _begun(sample: Sample, limits: GuardLimits) -> Cap:
    commits, headroom, now = sample.memory.committed, sample.memory.headroom, sample.now
    left = headroom - limits.floor(sample.memory)
    return Cap(0, commits, headroom, headroom, sample.reserves, left, now, now, now)


def _left(memory: Memory, limits: GuardLimits, cap: Cap) -> int:
    """Return the bytes that programs may commit until only the floor is left; below 0 where less is left.

    Memory that was committed and is not used yet cannot be committed again.
    """
    return min(memory.headroom, cap.commits + cap.most - memory.committed) - limits.floor(memory)


def _moved(sample: Sample, limits: GuardLimits, cap: Cap) -> Cap:
    """Return the cap with the findings of a look: the most and the least that was left, the bucket, and calm."""
    memory, now = sample.memory, sample.now
    cap = replace(cap, most=max(cap.most, memory.headroom))
    left = _left(memory, limits, cap)
    if left > cap.lowest + limits.width(memory) // 4:  # so that the guard sees the next program that takes much
        cap = replace(cap, lowest=left)
    elif left < cap.lowest - max(MUCH, memory.total // MUCH_PART):
        cap = replace(cap, lowest=left, quiet_since=now)
    near = memory.headroom <= limits.floor(memory) + memory.total // RECOUNT_PART
    is_enough = memory.headroom >= limits.ends_at(memory)
    return replace(
        cap,
        bucket=_filled(sample, limits, cap, left),
        seen=memory.committed,
        at=now,
        counted_at=now if near and now - cap.counted_at >= RECOUNT else cap.counted_at,
        calm_since=(now if cap.calm_since is None else cap.calm_since) if is_enough else None,
    )


def _filled(sample: Sample, limits: GuardLimits, cap: Cap, left: int) -> int:
    """Return the bytes in the bucket now: a fixed rate a second, less what was committed below the floor.

    As much as the kernel's reserves is for small programs and root, and always comes. More, for large programs, comes
    only after a quiet moment. So a program that takes all it gets is refused at the floor first. Above the floor this
    part goes away when a program takes much. Programs may commit again what they give back. The bucket counts also what
    the kernel has granted by its error.
    """
    memory, reserves = sample.memory, sample.reserves
    floor = limits.floor(memory)
    filled = cap.bucket + int(max(64 * MIB, floor // 32) * (sample.now - cap.at))
    if sample.now - cap.quiet_since < QUIET:
        filled = min(filled, reserves if left >= 0 else max(cap.bucket, reserves))
    elif cap.at - cap.quiet_since < QUIET:  # at the last look it was not quiet for so long yet
        filled = max(filled, reserves + ASKED)
    deepest = max(floor // 2, floor - memory.total // DEEPEST_PART) + sample.error
    full = reserves + min(max(256 * MIB, floor // 8), max(0, left + floor - deepest))
    grown = 0 if cap.seen is None else memory.committed - cap.seen
    taken = min(grown, max(0, -left)) if grown > 0 else grown
    return max(min(full, min(full, filled) - taken), -sample.error)


def _end(sample: Sample, limits: GuardLimits) -> int:
    """Return the headroom in bytes at which nobody gets anything: a quarter of the floor, with the kernel's error.

    On a small host it is lower, so that at the floor a large bystander still gets what it asks for. It is lower by at
    most a third of that quarter.
    """
    quarter = limits.floor(sample.memory) // 4
    return quarter + max(sample.error - quarter // 3, min(sample.error, 3 * quarter - sample.reserves - ASKED))


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
    """Return the verdict with its state and level: a higher level at once, a lower one after a calm moment."""
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
    """Return the level that the figures alone call for."""
    if memory.headroom <= limits.floor(memory):
        return 255
    if memory.headroom <= limits.caps_at(memory):
        return 100
    return 50 if memory.headroom <= limits.ends_at(memory) else 0
