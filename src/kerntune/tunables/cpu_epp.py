"""cpu-epp: what CPUs that choose their own frequency prefer, speed or power (energy_performance_preference).

Documentation/admin-guide/pm/intel_pstate.rst and amd-pstate.rst. While such a driver is active and the governor is
performance, the preference is performance and the kernel takes no other (EBUSY); the one before comes back with the
governor. So the governor comes first in a pass, and a preference that it forbids stays wished.

The firmware may have set a preference that amd-pstate-epp has no name for: a read gives EINVAL
(show_energy_performance_preference of drivers/cpufreq/amd-pstate.c). It reads `unknown` here, may be written, and goes
back by `default`, which is what the firmware had.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from kerntune.errors import InvalidValue, NotOffered
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel.files import KernelView, find
from kerntune.model import Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.patterns import also_moved
from kerntune.tunables.base import unlike, unreadable
from kerntune.tunables.cpu_policies import BY_HAND, POLICIES, OnPolicies, first, offered, offline

PERFORMANCE = "performance"
# Drivers whose governor performance decides the preference too.
ACTIVE = frozenset({"intel_pstate", "amd-pstate-epp"})
# Not a preference but the way back to the firmware's, which then reads as one of the others, or as none.
DEFAULT = "default"
UNKNOWN = "unknown"
NAME = re.compile(r"[a-z][a-z_]{0,31}")
# What a file reads after somebody wrote a number (0 to 255) to it.
RAW = re.compile(r"[0-9]{1,3}", re.ASCII)


class CpuEpp(OnPolicies):
    """One target per policy whose driver has preferences."""

    name: ClassVar[str] = "cpu-epp"
    summary: ClassVar[str] = "CPU energy performance preference"
    file: ClassVar[str] = "energy_performance_preference"
    moved_by: ClassVar[str] = "cpu-governor"
    nameless: ClassVar[str] = UNKNOWN
    by_hand: ClassVar[tuple[str, ...]] = (rf"{BY_HAND}/energy_performance_preference",)
    explained: ClassVar[Explanation] = Explanation(
        what="What CPUs that choose their own frequency prefer, speed or power (energy performance preference).",
        helps="As cpu-governor, on CPUs with intel_pstate (HWP) or amd_pstate (active).",
        evidence=(Evidence(Grade.VENDOR, "'performance' is recommended for inference; no gain was measured here"),),
        risk="Power, and with it heat. With the governor 'performance' most drivers take no other preference.",
        files=("/sys/devices/system/cpu/cpufreq/policy*/energy_performance_preference",),
        document="Documentation/admin-guide/pm/intel_pstate.rst, amd-pstate.rst",
        instances="a policy (policy0) or a list of CPUs (0-3,8); left out: all of them",
        values="the kernel's name of a preference (performance, balance_performance, balance_power, power)",
        example=Example("cpu-epp=performance", "speed at any price"),
    )

    def missing(self, kernel: KernelView) -> str:
        if self.targets(kernel):
            return ""
        policies = (path.split("/")[-2] for path in kernel.glob(f"{POLICIES}/policy*/scaling_driver"))
        driver = first(kernel, policies, "scaling_driver")
        if not driver and not kernel.glob(f"{POLICIES}/policy*"):
            return (
                f"there is no {self.file}, for /{POLICIES} has no policy: the CPUs run at a fixed frequency, as in "
                "most virtual machines (their host decides) and where the firmware decides"
            )
        return (
            f"the frequency driver {driver or 'here'} has no {self.file}. intel_pstate (on CPUs with HWP) and "
            "amd_pstate (mode active, on CPUs with CPPC) have; acpi-cpufreq and virtual machines have not"
        )

    def read(self, kernel: KernelView, target: Target) -> Reading:
        return self.read_all(kernel, [target])[target]

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        choices = offered(kernel, targets, "energy_performance_available_preferences")
        return {target: self._read(kernel, target, choices) for target in targets}

    def _read(self, kernel: KernelView, target: Target, choices: tuple[str, ...]) -> Reading:
        value = self.value(kernel, target)
        if isinstance(value, Reading):
            return value
        folder = f"{POLICIES}/{target.instance}"
        figures = {
            "fastest": int(find(kernel, f"{folder}/scaling_governor") == PERFORMANCE),
            "active": int(find(kernel, f"{folder}/scaling_driver") in ACTIVE),
        }
        named = tuple(choice for choice in choices if choice != DEFAULT)
        if value == UNKNOWN:
            why = f"the driver has no name for the preference that the firmware set for {target.instance}"
            return Reading(target, value, named, detail=why, restore=DEFAULT, figures=figures)
        return Reading(target, value, named or (value,), figures=figures)

    def normal_value(self, value: str) -> str:
        if not NAME.fullmatch(value) or value == UNKNOWN:
            raise InvalidValue(f"{value!r} is no preference", "Examples: performance, balance_performance, power")
        if value == DEFAULT:
            raise InvalidValue(
                f"{DEFAULT} is no preference that can be kept: it reads as another",
                "Choose one of the others, or unset cpu-epp to have the host's own",
            )
        return value

    def restorable(self, value: str) -> bool:
        """The host's own may be a number, or have no name."""
        return bool(RAW.fullmatch(value)) or value == DEFAULT or super().restorable(value)

    def validate(self, reading: Reading, value: str) -> None:
        if reading.value is not None and value not in reading.choices:
            raise NotOffered(not_offered(reading, value), "Choose one of these")

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target], self.path(target)) for target, wish in wishes.items()]

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if is_in_place(wish.value, reading):
            return Verdict(State.SATISFIED, Reason.OK, also_moved(wish.winner.instances, wish.target))
        if forbids(reading):
            return decided(wish.value)
        return no_way_back(reading) if wish.value == DEFAULT and reading.value is not None else unlike(reading)

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EBUSY:
            if reading.value is None:
                return Verdict(State.UNSUPPORTED, Reason.CPU_OFFLINE, offline(reading.target))
            return decided(value) if reading.figures.get("fastest") else busy(reading)
        if code == errno.EINVAL and value == DEFAULT:
            return no_way_back(reading)
        if code == errno.EINVAL and reading.value is not None:
            return Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, not_offered(reading, value))
        return super().rejected(reading, value, code)


def plan_one(wish: Wish, before: Reading, path: str) -> Step:
    """Nothing where the value is in place; one that the governor forbids is not even asked for."""
    if before.value is None:
        return Step(wish, before, verdict=unreadable(before))
    if is_in_place(wish.value, before):
        return Step(wish, before)
    if forbids(before):
        return Step(wish, before, verdict=decided(wish.value))
    return Step(wish, before, (Write(path, wish.value),))


def is_in_place(value: str, reading: Reading) -> bool:
    """Return whether the target holds the value; one without a name is what `default` brought back."""
    return value == reading.value or (value == DEFAULT and reading.value == UNKNOWN)


def forbids(reading: Reading) -> bool:
    """Whether the governor lets the kernel take no preference but performance."""
    return bool(reading.value == PERFORMANCE and reading.figures.get("fastest") and reading.figures.get("active"))


def decided(value: str) -> Verdict:
    """The governor decides, until there is another."""
    return Verdict(
        State.UNSUPPORTED,
        Reason.GOVERNOR_DECIDES,
        f"the governor is {PERFORMANCE}, with which the kernel takes no preference but {PERFORMANCE}; {value} is set "
        "when there is another governor (kerntune set cpu-governor=powersave)",
    )


def busy(reading: Reading) -> Verdict:
    """Return the verdict on a driver that takes no preference, though CPUs are online and the governor would let it.

    See store_energy_performance_preference of drivers/cpufreq/amd-pstate.c: dynamic_epp.
    """
    return Verdict(
        State.FAILED,
        Reason.KERNEL_REJECTED,
        f"{reading.target.instance} keeps {reading.value}: the frequency driver takes no preference now "
        f"({os.strerror(errno.EBUSY)}, EBUSY). Likely: it chooses them itself (dynamic_epp of amd_pstate), or the CPUs "
        "went offline for a moment. Try again, after dynamic_epp was turned off where there is one",
    )


def no_way_back(reading: Reading) -> Verdict:
    """Return the verdict on a preference without a name that `default` did not bring back: to ask again is no use.

    Older kernels refuse it with EINVAL (amd_pstate_set_energy_pref_index of drivers/cpufreq/amd-pstate.c). So nothing
    stays owed.
    """
    return Verdict(
        State.UNMANAGED,
        Reason.VALUE_NOT_OFFERED,
        f"the driver has no name for the preference that {reading.target.instance} had by itself, and this kernel does "
        f"not bring it back by its word {DEFAULT}: it is {reading.value or UNKNOWN} until the next boot. Choose "
        "another (kerntune set cpu-epp=...), or leave it so",
    )


def not_offered(reading: Reading, value: str) -> str:
    """Prose: what the driver has instead."""
    return f"{reading.target.instance} offers {', '.join(reading.choices)}, not {value}"
