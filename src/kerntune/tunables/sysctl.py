"""sysctl: the few sysctls that are known to matter to hosts of large models, each with its range.

Documentation/admin-guide/sysctl/vm.rst and kernel.rst. Others are refused: nothing is known to speak for another value
of vfs_cache_pressure, the dirty ratios or min_free_kbytes there. One of the list is only compared with what is wished,
for the kernel asks for a capability and the service has none.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

from kerntune.errors import InvalidValue, NoSuchName
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel import support
from kerntune.kernel.files import KernelError, KernelView, find
from kerntune.model import Lane, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.patterns import Kind
from kerntune.tunables.base import Action, Plain, unreadable


class Range(NamedTuple):
    """The whole numbers that a sysctl takes."""

    least: int
    most: int


SYSCTLS: Mapping[str, Range] = {
    # How readily programs are swapped out to keep page cache: 1 to 10 keeps a server's memory (vendors).
    "vm.swappiness": Range(0, 200),
    # Bits: 0 takes memory of another node before the page cache, with the model in it, is dropped (vendors).
    "vm.zone_reclaim_mode": Range(0, 7),
    # Bits: 0 moves no pages after threads, which is felt as pauses (vendors).
    "kernel.numa_balancing": Range(0, 3),
}
# Names for which another tunable is there.
ELSEWHERE: Mapping[str, str] = {
    "vm.overcommit_memory": "overcommit",
    "vm.overcommit_ratio": "overcommit",
    "vm.overcommit_kbytes": "overcommit",
    "vm.nr_hugepages": "hugepages",
    "vm.nr_hugepages_mempolicy": "hugepages",
    "vm.nr_overcommit_hugepages": "hugepages-overcommit",
}
# To own the file is not enough: sysctl_numa_balancing of kernel/sched/core.c asks for CAP_SYS_ADMIN.
REPORTED = frozenset({"kernel.numa_balancing"})
NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


class Sysctl(Plain):
    """One target per sysctl of the list that this kernel has."""

    name: ClassVar[str] = "sysctl"
    summary: ClassVar[str] = "sysctl that kerntune tunes"
    lane: ClassVar[Lane] = Lane.MEMORY
    action: ClassVar[Action] = "set-memory"
    kind: ClassVar[Kind] = Kind.NAMES
    by_hand: ClassVar[tuple[str, ...]] = (
        rf"proc/sys/(?P<name>{'|'.join(re.escape(name.replace('.', '/')) for name in SYSCTLS)})",
    )
    explained: ClassVar[Explanation] = Explanation(
        what="Three settings of memory: vm.swappiness (page cache or programs, which goes first), vm.zone_reclaim_mode "
        "(whether a full NUMA node drops page cache before it takes memory of another), kernel.numa_balancing (whether "
        "pages are moved after threads).",
        helps="Servers that hold a model in memory: swappiness 1 to 10, and 0 for the other two.",
        evidence=(
            Evidence(Grade.VENDOR, "recommended for inference by AMD (ROCm), NVIDIA (Grace) and SGLang"),
            Evidence(Grade.NONE, "nothing is known to speak for other values of dirty ratios or vfs_cache_pressure"),
        ),
        risk="With a low swappiness page cache is dropped earlier. kernel.numa_balancing is compared with what is "
        "wished, and not written, for that takes a capability and kerntuned has none: a line in /etc/sysctl.d sets it.",
        files=("/proc/sys/vm/swappiness", "/proc/sys/vm/zone_reclaim_mode", "/proc/sys/kernel/numa_balancing"),
        document="Documentation/admin-guide/sysctl/vm.rst, kernel.rst",
        instances="vm.swappiness, vm.zone_reclaim_mode or kernel.numa_balancing",
        values="a whole number: to 200, 7 and 3 in that order",
        example=Example("sysctl@vm.swappiness=10", "keep programs in memory rather than page cache"),
    )

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        return [Target(self.name, name) for name in SYSCTLS if find(kernel, path_of(name)) is not None]

    def missing(self, kernel: KernelView) -> str:
        return "" if self.targets(kernel) else support.missing(kernel, path_of(next(iter(SYSCTLS))), "SYSCTL")

    def normal(self, instances: str) -> str:
        """With dots; as sysctl(8) it takes slashes too."""
        name = super().normal(instances)
        if tunable := ELSEWHERE.get(name):
            raise NoSuchName(f"{name} is set by the tunable {tunable}", f"kerntune set {tunable}=...")
        if name not in SYSCTLS:
            raise NoSuchName(f"{instances!r} is no sysctl that kerntune tunes", f"There are {', '.join(SYSCTLS)}")
        return name

    def read(self, kernel: KernelView, target: Target) -> Reading:
        try:
            return Reading(target, kernel.read(path_of(target.instance)))
        except KernelError as error:
            return Reading(target, None, reason=Reason.NO_KERNEL_SUPPORT, detail=f"cannot be read: {error.strerror}")

    def normal_value(self, value: str) -> str:
        if not NUMBER.fullmatch(value):
            raise InvalidValue(f"{value!r} is no value of a sysctl", "Give a whole number, 0 or more")
        return str(int(value))

    def check(self, instances: str, value: str) -> None:
        least, most = SYSCTLS[instances]
        if not least <= int(value) <= most:
            what = f"{instances} is a whole number from {least} to {most}, not {value}"
            raise InvalidValue(what, "Choose one in that range")

    def validate(self, reading: Reading, value: str) -> None:
        """Each kernel takes the whole range."""

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target]) for target, wish in wishes.items()]

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EINVAL:
            why = f"this kernel takes no {value} for {reading.target.instance}, though later ones may"
            return Verdict(State.UNSUPPORTED, Reason.OUT_OF_RANGE, why)
        return super().rejected(reading, value, code)


def path_of(name: str) -> str:
    """The file of a sysctl."""
    return f"proc/sys/{name.replace('.', '/')}"


def plan_one(wish: Wish, before: Reading) -> Step:
    """Nothing where the value is in place or not for us to write."""
    if before.value is None:
        return Step(wish, before, verdict=unreadable(before))
    if before.value == wish.value:
        return Step(wish, before)
    if (name := wish.target.instance) in REPORTED:
        why = f"{only_reported(name)}. {how_to_set(name, wish.value)}"
        return Step(wish, before, verdict=Verdict(State.UNSUPPORTED, Reason.READ_ONLY, why))
    return Step(wish, before, (Write(path_of(wish.target.instance), wish.value),))


def only_reported(name: str) -> str:
    """Why a sysctl of REPORTED is not written, in prose."""
    return f"the kernel lets only a process with CAP_SYS_ADMIN write {name}, and kerntuned has no capability"


def how_to_set(name: str, value: str) -> str:
    """What sets it in place of a claim."""
    return f"A line {name} = {value} in /etc/sysctl.d sets it at boot, and sudo sysctl -w {name}={value} now"
