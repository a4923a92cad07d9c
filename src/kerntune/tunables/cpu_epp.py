"""cpu-epp: what CPUs that choose their own frequency prefer, speed or power (energy_performance_preference).

Documentation/admin-guide/pm/intel_pstate.rst and amd-pstate.rst. While such a driver is active and the governor is
performance, the preference is performance and the kernel takes no other (EBUSY); the one before comes back with the
governor. So the governor comes first in a pass, and a preference that it forbids stays wished.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from kerntune.errors import InvalidValue
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel.files import KernelView, find
from kerntune.model import Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import unlike, unreadable
from kerntune.tunables.cpu_policies import BY_HAND, POLICIES, OnPolicies, also_moved, offered, offline

PERFORMANCE = "performance"
# Drivers whose governor performance decides the preference too.
ACTIVE = frozenset({"intel_pstate", "amd-pstate-epp"})
# Not a preference but the way back to the firmware's, which then reads as one of the others.
DEFAULT = "default"
NAME = re.compile(r"[a-z][a-z_]{0,31}")
# What a file reads after somebody wrote a number (0 to 255) to it.
RAW = re.compile(r"[0-9]{1,3}", re.ASCII)


class CpuEpp(OnPolicies):
    """One target per policy whose driver has preferences."""

    name: ClassVar[str] = "cpu-epp"
    summary: ClassVar[str] = "CPU energy performance preference"
    file: ClassVar[str] = "energy_performance_preference"
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
        driver = next(
            (text for path in kernel.glob(f"{POLICIES}/policy*/scaling_driver") if (text := find(kernel, path))), ""
        )
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
        return Reading(target, value, tuple(c for c in choices if c != DEFAULT) or (value,), figures=figures)

    def normal_value(self, value: str) -> str:
        if not NAME.fullmatch(value):
            raise InvalidValue(f"{value!r} is no preference", "Examples: performance, balance_performance, power")
        if value == DEFAULT:
            raise InvalidValue(
                f"{DEFAULT} is no preference that can be kept: it reads as another",
                "Choose one of the others, or unset cpu-epp to have the host's own",
            )
        return value

    def restorable(self, value: str) -> bool:
        return bool(RAW.fullmatch(value)) or super().restorable(value)

    def validate(self, reading: Reading, value: str) -> None:
        if reading.value is not None and value not in reading.choices:
            raise InvalidValue(not_offered(reading, value), "Choose one of these")

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target], self.path(target)) for target, wish in wishes.items()]

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if reading.value == wish.value:
            return Verdict(State.SATISFIED, Reason.OK, also_moved(wish))
        return decided(wish.value) if forbids(reading) else unlike(reading)

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EBUSY:
            if reading.figures.get("fastest"):
                return decided(value)
            return Verdict(State.UNSUPPORTED, Reason.CPU_OFFLINE, offline(reading.target))
        if code == errno.EINVAL and reading.value is not None:
            return Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, not_offered(reading, value))
        return super().rejected(reading, value, code)


def plan_one(wish: Wish, before: Reading, path: str) -> Step:
    """Nothing where the value is in place; one that the governor forbids is not even asked for."""
    if before.value is None:
        return Step(wish, before, verdict=unreadable(before))
    if before.value == wish.value:
        return Step(wish, before)
    if forbids(before):
        return Step(wish, before, verdict=decided(wish.value))
    return Step(wish, before, (Write(path, wish.value),))


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


def not_offered(reading: Reading, value: str) -> str:
    """Prose: what the driver has instead."""
    return f"{reading.target.instance} offers {', '.join(reading.choices)}, not {value}"
