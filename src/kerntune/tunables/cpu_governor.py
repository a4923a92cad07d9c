"""cpu-governor: how a CPU frequency policy chooses its frequency (Documentation/admin-guide/pm/cpufreq.rst)."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import ClassVar

from kerntune.errors import InvalidValue
from kerntune.kernel import support
from kerntune.kernel.files import KernelError, KernelView, find
from kerntune.model import Lane, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import Action, Plain, unlike

POLICIES = "sys/devices/system/cpu/cpufreq"
# Governors that the kernel loads when their name is written, though the file does not list them before.
ON_DEMAND = frozenset({"conservative", "ondemand", "performance", "powersave", "schedutil", "userspace"})
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
POLICY = re.compile(r"policy[0-9]{1,5}")
# Up to the 9999th CPU: the kernel can be built for 8192.
CPU_LIST = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")


class CpuGovernor(Plain):
    """One target per cpufreq policy; its aliases are the CPUs it moves (`cpu3`)."""

    name: ClassVar[str] = "cpu-governor"
    summary: ClassVar[str] = "CPU frequency governor"
    lane: ClassVar[Lane] = Lane.CPU
    action: ClassVar[Action] = "set"

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        names = [path.split("/")[-1] for path in kernel.glob(f"{POLICIES}/policy*")]
        return [Target(self.name, name, aliases=cpus_of(kernel, name)) for name in names]

    def missing(self, kernel: KernelView) -> str:
        if kernel.glob(f"{POLICIES}/policy*"):
            return ""
        why = (
            f"there is no scaling_governor, for /{POLICIES} has no policy: the CPUs run at a fixed frequency, as in "
            "most virtual machines (their host decides) and where the firmware decides, or no driver is loaded"
        )
        how = "On bare metal, let the operating system control power in the firmware's setup, or modprobe acpi_cpufreq"
        return ". ".join(part for part in (why, how, support.configured(kernel, "CPU_FREQ")) if part)

    def normal(self, instances: str) -> str:
        if instances == "*" or POLICY.fullmatch(instances):
            return instances
        if CPU_LIST.fullmatch(instances):
            return spell_cpus(parse_cpus(instances))
        raise InvalidValue(f"{instances!r} names no CPUs", "Give a CPU list (0-3,8), a policy (policy0) or *")

    def exact(self, instances: str) -> bool:
        return instances != "*"

    def matches(self, instances: str, target: Target) -> bool:
        if instances in ("*", target.instance):
            return True
        if instances.startswith("policy"):
            return False
        listed = parse_cpus(instances)
        return any(int(alias.removeprefix("cpu")) in listed for alias in target.aliases)

    def read(self, kernel: KernelView, target: Target) -> Reading:
        return self.read_all(kernel, [target])[target]

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        """One driver serves all policies, so all offer the same (show_scaling_available_governors of cpufreq.c)."""
        files = (f"{POLICIES}/{target.instance}/scaling_available_governors" for target in targets)
        offered = next((text for file in files if (text := find(kernel, file))), "")
        return {target: self._read(kernel, target, tuple(offered.split())) for target in targets}

    def _read(self, kernel: KernelView, target: Target, offered: tuple[str, ...]) -> Reading:
        try:
            governor = kernel.read(path_of(target))
        except KernelError as error:
            if error.errno == errno.EBUSY:
                return Reading(target, None, reason=Reason.CPU_OFFLINE, detail=offline(target))
            detail = f"cannot be read: {error.strerror}"
            return Reading(target, None, reason=Reason.DEVICE_GONE, detail=detail)
        return Reading(target, governor, choices=offered or (governor,))

    def normal_value(self, value: str) -> str:
        if not NAME.fullmatch(value):
            raise InvalidValue(f"{value!r} cannot be the name of a governor", "Examples: performance, powersave")
        return value

    def validate(self, reading: Reading, value: str) -> None:
        if reading.value is not None and value not in ON_DEMAND.union(reading.choices):
            raise InvalidValue(
                f"{reading.target.instance} offers {', '.join(reading.choices)}, not {value}", "Choose one of these"
            )

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target]) for target, wish in wishes.items()]

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if reading.value != wish.value:
            return unlike(reading)
        return Verdict(State.SATISFIED, Reason.OK, also_moved(wish))

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EBUSY:
            return Verdict(State.UNSUPPORTED, Reason.CPU_OFFLINE, offline(reading.target))
        if code == errno.EINVAL:
            offered = ", ".join(reading.choices)
            why = f"{reading.target.instance} offers {offered}, not {value}, and the kernel has no module for it"
            return Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, why)
        return super().rejected(reading, value, code)


def path_of(target: Target) -> str:
    """The sysfs file of one policy."""
    return f"{POLICIES}/{target.instance}/scaling_governor"


def cpus_of(kernel: KernelView, policy: str) -> tuple[str, ...]:
    """The CPUs a policy moves; of one whose CPUs are all offline only the first is known (reads give EBUSY)."""
    listed = find(kernel, f"{POLICIES}/{policy}/related_cpus") or policy.removeprefix("policy")
    return tuple(f"cpu{number}" for number in listed.split())


def plan_one(wish: Wish, before: Reading) -> Step:
    """Nothing where the value is in place; an offline CPU keeps its wish until it comes back."""
    if before.value is None:
        return Step(wish, before, verdict=unlike(before))
    if before.value == wish.value:
        return Step(wish, before)
    return Step(wish, before, (Write(path_of(wish.target), wish.value),))


def offline(target: Target) -> str:
    """What is said of a policy whose CPUs are offline."""
    return f"the CPUs of {target.instance} are offline; the value is set when one comes online"


def also_moved(wish: Wish) -> str:
    """The CPUs that a policy moves beside those that a CPU list named."""
    if not CPU_LIST.fullmatch(wish.winner.instances):
        return ""
    listed = parse_cpus(wish.winner.instances)
    others = {int(alias.removeprefix("cpu")) for alias in wish.target.aliases} - listed
    return f"{wish.target.instance} also moves CPU {spell_cpus(others)}" if others else ""


@lru_cache(maxsize=256)
def parse_cpus(text: str) -> frozenset[int]:
    """A CPU list as the kernel writes it (0-3,8); InvalidValue for a range that runs backwards."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first):
            raise InvalidValue(f"{part!r} runs backwards", "Give the lower CPU first: 0-3")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def spell_cpus(cpus: Iterable[int]) -> str:
    """CPU numbers in the kernel's list form."""
    spans: list[list[int]] = []
    for cpu in sorted(cpus):
        if spans and cpu == spans[-1][1] + 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
