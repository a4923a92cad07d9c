"""overcommit: how much memory the kernel commits, mode and ratio as one value.

Documentation/mm/overcommit-accounting.rst; the formula of the limit is in mm/util.c (vm_commit_limit):
CommitLimit = (overcommit_kbytes, or (RAM - huge pages) * ratio / 100) + swap, and is enforced in mode 2 (never) only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from kerntune.errors import InvalidValue
from kerntune.kernel import kconfig
from kerntune.kernel.files import KernelView, read_int, read_or_none
from kerntune.model import DesiredState, Lane, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Write
from kerntune.patterns import Kind
from kerntune.tunables.base import Tunable, unlike

MODES = ("heuristic", "always", "never")
NEVER = "never"
# A host may hold any of these: the ratio is an int, the kilobytes are an unsigned long (mm/util.c).
VALUE = re.compile(r"(heuristic|always|never)(?::(-?[0-9]{1,10}|[0-9]{1,20}k))?", re.ASCII)
# The mode may be the number that it has in vm.overcommit_memory.
CLAIMED = re.compile(r"(heuristic|always|never|[012])(?::([0-9]{1,9}))?", re.ASCII)
ALWAYS_RATIO = 95  # percent, for `always` without a ratio: the kernel's own 50 would cap a half full host
NO_LIMIT = (1 << 64) // 100  # bytes
TARGET = Target("overcommit")
VM = "proc/sys/vm"


class Overcommit(Tunable):
    """One target, the host. A baseline also names the ratio or the kilobytes that a mode does not use."""

    name = "overcommit"
    summary = "control of memory overcommit"
    lane = Lane.MEMORY
    action = "set-memory"
    kind = Kind.SINGLE
    files = (f"{VM}/overcommit_memory", f"{VM}/overcommit_ratio")
    import_patterns = (r"proc/sys/vm/overcommit_(?P<part>memory|ratio|kbytes)",)

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        return [TARGET] if read_or_none(kernel, f"{VM}/overcommit_memory") is not None else []

    def missing(self, kernel: KernelView) -> str:
        path = f"{VM}/overcommit_memory"
        return "" if read_or_none(kernel, path) is not None else kconfig.missing(kernel, path, "MMU")

    def read(self, kernel: KernelView, target: Target) -> Reading:
        mode = read_or_none(kernel, f"{VM}/overcommit_memory")
        if mode not in ("0", "1", "2"):
            return Reading(target, None, reason=Reason.NO_KERNEL_SUPPORT, detail=self.missing(kernel))
        ratio, kbytes = read_int(kernel, f"{VM}/overcommit_ratio"), read_int(kernel, f"{VM}/overcommit_kbytes")
        # A ratio of 0 is a value; one that cannot be read is none.
        known = read_or_none(kernel, f"{VM}/overcommit_ratio") is not None
        return reading_of(target, MODES[int(mode)], ratio, kbytes, has_limit=bool(kbytes) or known)

    def choices(self, reading: Reading, loads: Collection[str] = ()) -> list[str]:  # noqa: ARG002  # no module has any
        return [] if reading.value is None else ["heuristic", "always", "always:1..99", "never:1..100"]

    def normal_value(self, value: str, typed: str = "") -> str:  # noqa: ARG002  # it is no size
        found = CLAIMED.fullmatch(value)
        hint = (
            "Give heuristic, always, always:RATIO or never:RATIO, with a RATIO from 1 to 100 percent (99 with always)"
        )
        if not found:
            raise InvalidValue(f"{value!r} is not an overcommit setting", hint)
        mode, ratio = MODES[int(found[1])] if found[1].isdecimal() else found[1], found[2]
        # Of 100 % there is nothing left that the memory guard could keep free.
        if ratio is not None and not 1 <= int(ratio) <= (99 if mode == "always" else 100):
            raise InvalidValue(f"an overcommit ratio of {ratio} is out of range", hint)
        if (mode == "heuristic") != (ratio is None) and mode != "always":
            wrong = "takes no ratio" if ratio else "needs a ratio of RAM, such as never:80"
            raise InvalidValue(f"overcommit {value}: the mode {mode} {wrong}", hint)
        if mode == "always" and ratio is None:
            ratio = ALWAYS_RATIO  # in force by the memory guard, and what reads back is the kernel's
        return mode if ratio is None else f"{mode}:{int(ratio)}"

    def restorable(self, value: str) -> bool:
        """Return whether a baseline can be written back: it may have kilobytes, or a ratio that nobody would claim."""
        return VALUE.fullmatch(value) is not None

    def plan(
        self,
        readings: Mapping[Target, Reading],
        desired_states: Mapping[Target, DesiredState],
        memory: Memory,
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(desired, readings[target], memory) for target, desired in desired_states.items()]

    def expected(self, steps: Sequence[Step], readings: Mapping[Target, Reading]) -> Mapping[Target, Reading]:
        return {**readings, **{step.desired.target: after(step) for step in steps if step.writes}}

    def assess(self, desired: DesiredState, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if reading.value is None or writes_for(desired.value, reading):
            return unlike(reading)
        return Verdict(State.SATISFIED, Reason.OK, meaning(reading))

    def report_only(self, desired: DesiredState, reading: Reading) -> bool:
        return bool(writes_for(desired.value, reading))


def reading_of(target: Target, mode: str, ratio: int, kbytes: int, *, has_limit: bool) -> Reading:
    """Return the reading of these sysctls; without a limit neither ratio nor kilobytes could be read."""
    whole = f"{mode}:{kbytes}k" if kbytes else f"{mode}:{ratio}"
    shown, restore = mode if mode == "heuristic" else whole, whole if has_limit else mode
    return Reading(target, shown, choices=MODES, restore=restore, figures={"ratio": ratio, "kbytes": kbytes})


def after(step: Step) -> Reading:
    """Return the reading after the writes of a step: ratio and kilobytes set each other to 0."""
    mode, ratio, kbytes = split(step.desired.value)
    if ratio is kbytes is None:
        ratio, kbytes = step.before.figures["ratio"], step.before.figures["kbytes"]
    return reading_of(step.desired.target, mode, ratio or 0, kbytes or 0, has_limit=":" in step.before.restore)


def split(value: str) -> tuple[str, int | None, int | None]:
    """Return a value as (mode, ratio, kilobytes); None for what it does not name."""
    mode, _, limit = value.partition(":")
    if limit.endswith("k"):
        return mode, None, int(limit[:-1])
    return mode, int(limit) if limit else None, None


def writes_for(value: str, reading: Reading) -> tuple[Write, ...]:
    """Return what has to be written, in an order that never passes through mode never with the wrong limit.

    The kernel sets the ratio to 0 when kilobytes are written and the reverse, so only the one in use is compared. With
    neither of them in use both are 0, and a ratio of 0 is what gets there.
    """
    mode, ratio, kbytes = split(value)
    now = split(reading.restore)[0]
    limit: list[Write] = []
    if kbytes is not None and kbytes != reading.figures["kbytes"]:
        limit = [Write(f"{VM}/overcommit_kbytes", str(kbytes))]
    elif ratio is not None and (ratio != reading.figures["ratio"] or reading.figures["kbytes"]):
        limit = [Write(f"{VM}/overcommit_ratio", str(ratio))]
    switch = [Write(f"{VM}/overcommit_memory", str(MODES.index(mode)))] if mode != now else []
    return tuple(limit + switch if mode == NEVER else switch + limit)


def predicted_limit(memory: Memory, *, ratio: int, kbytes: int = 0, more_hugetlb: int = 0) -> int:
    """CommitLimit in bytes as the kernel would compute it, with `more_hugetlb` bytes more in huge pages.

    It takes the product for unsigned, so a ratio below 0 limits nothing.
    """
    if ratio < 0 and not kbytes:
        return NO_LIMIT
    base = kbytes * 1024 if kbytes else (memory.total - memory.hugetlb - more_hugetlb) * ratio // 100
    return max(0, base) + memory.swap_total


def needed_limit(memory: Memory) -> int:
    """Return the least CommitLimit, in bytes, with which the host stays usable in mode never."""
    return memory.committed + memory.reserve


def plan_one(desired: DesiredState, before: Reading, memory: Memory) -> Step:
    """Return the step with its writes, or refused where nobody could start a program any more."""
    if before.value is None:
        return Step(desired, before, verdict=unlike(before))
    writes = writes_for(desired.value, before)
    mode, ratio, kbytes = split(desired.value)
    if writes and mode == "always" and ratio and memory.headroom <= least_left(memory, ratio):
        return Step(desired, before, verdict=Verdict(State.REFUSED, Reason.OVER_LIMIT, too_little_left(memory, ratio)))
    if writes and mode == NEVER:
        if ratio is kbytes is None:
            ratio, kbytes = memory.overcommit_ratio, memory.overcommit_kbytes
        limit = predicted_limit(memory, ratio=ratio or 0, kbytes=kbytes or 0)
        if limit < needed_limit(memory):
            return Step(
                desired,
                before,
                verdict=Verdict(State.REFUSED, Reason.OVER_LIMIT, lock_out(memory, limit, desired.value)),
            )
    return Step(desired, before, writes)


def kept_free(memory: Memory, ratio: int) -> int:
    """Return what always with this ratio is to leave free, in bytes: the floor of the memory guard."""
    return memory.base * (100 - ratio) // 100


def least_left(memory: Memory, ratio: int) -> int:
    """Return the headroom, in bytes, at which the memory guard lets nobody commit any more: a quarter, and some more.

    By a 256th of RAM the kernel's count of commits may be off, with very many CPUs by more.
    """
    return kept_free(memory, ratio) // 4 + memory.total // 64


def too_little_left(memory: Memory, ratio: int) -> str:
    """Return why the memory guard would refuse everybody at once, with both figures."""
    return (
        f"always:{ratio} would have the memory guard refuse all memory: {memory.headroom >> 20} MiB are left, and with "
        f"{least_left(memory, ratio) >> 20} MiB not even a shell can start. Give a higher ratio, or end what has most"
    )


def lock_out(memory: Memory, limit: int, value: str) -> str:
    """Return why a limit would lock everybody out, with both figures."""
    return (
        f"{value} would make the commit limit {limit >> 20} MiB, but {memory.committed >> 20} MiB are committed "
        f"already and {memory.reserve >> 20} MiB must stay free: not even a shell could start. "
        f"A ratio of at least {least_ratio(memory)} is needed"
    )


def least_ratio(memory: Memory) -> int:
    """Return the smallest ratio that keeps the host usable (above 100 when none does)."""
    base = max(1, memory.total - memory.hugetlb)
    return max(1, -(-(needed_limit(memory) - memory.swap_total) * 100 // base))


def meaning(reading: Reading) -> str:
    """Return what the kernel itself does with the ratio in its mode, as prose."""
    mode = split(reading.restore)[0]
    kbytes = reading.figures["kbytes"]
    limit = f"{kbytes} KiB" if kbytes else f"{reading.figures['ratio']} % of RAM"
    if mode == NEVER:
        return f"the kernel refuses memory beyond {limit}{'' if kbytes else ' less huge pages'}, plus swap"
    if mode == "always":
        return f"by itself the kernel refuses nothing in this mode, and the ratio ({limit}) caps nothing"
    return f"the kernel refuses only single requests beyond RAM and swap; the ratio ({limit}) is not read in this mode"
