"""cpu-governor: how a CPU frequency policy chooses its frequency (Documentation/admin-guide/pm/cpufreq.rst)."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from kerntune.errors import InvalidValue, NotOffered
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel.cpufreq import lacking
from kerntune.kernel.files import KernelView
from kerntune.model import Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.patterns import also_moved
from kerntune.tunables.base import unlike
from kerntune.tunables.cpu_policies import BY_HAND, POLICIES, OnPolicies, offered, offline

# Governors that the kernel loads when their name is written, though the file does not list them before.
ON_DEMAND = frozenset({"conservative", "ondemand", "performance", "powersave", "schedutil", "userspace"})
# The slowest first: one that is not among them is between `powersave` and those that follow the load.
BY_SPEED = ("powersave", "", "userspace", "conservative", "ondemand", "schedutil", "performance")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


class CpuGovernor(OnPolicies):
    """One target per policy; all have a governor."""

    name: ClassVar[str] = "cpu-governor"
    summary: ClassVar[str] = "CPU frequency governor"
    file: ClassVar[str] = "scaling_governor"
    by_hand: ClassVar[tuple[str, ...]] = (rf"{BY_HAND}/scaling_governor",)
    explained: ClassVar[Explanation] = Explanation(
        what="How CPUs choose their frequency, one setting for all CPUs of a policy.",
        helps="Hosts where requests should not wait for the clock to rise: 'performance'. Many virtual machines have "
        "no frequency scaling, and their host decides.",
        evidence=(Evidence(Grade.VENDOR, "'performance' is recommended for inference; no gain was measured here"),),
        risk="Power, and with it heat.",
        files=("/sys/devices/system/cpu/cpufreq/policy*/scaling_governor",),
        document="Documentation/admin-guide/pm/cpufreq.rst",
        instances="a policy (policy0) or a list of CPUs (0-3,8); left out: all of them",
        values="the kernel's name of a governor (performance, powersave, schedutil)",
        example=Example("cpu-governor=performance", "the highest frequency on every CPU"),
    )

    def missing(self, kernel: KernelView) -> str:
        if kernel.glob(f"{POLICIES}/policy*"):
            return ""
        cause = lacking(kernel)
        why = f"there is no scaling_governor, for /{POLICIES} has no policy: {cause.why}"
        return "".join((why, *(f" ({evidence})" for evidence in cause.evidence), f". {cause.fix}"))

    def read(self, kernel: KernelView, target: Target) -> Reading:
        return self.read_all(kernel, [target])[target]

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        choices = offered(kernel, targets, "scaling_available_governors")
        return {target: self._read(kernel, target, choices) for target in targets}

    def _read(self, kernel: KernelView, target: Target, choices: tuple[str, ...]) -> Reading:
        governor = self.value(kernel, target)
        if isinstance(governor, Reading):
            return governor
        return Reading(target, governor, choices=choices or (governor,))

    def normal_value(self, value: str) -> str:
        if not NAME.fullmatch(value):
            raise InvalidValue(f"{value!r} cannot be the name of a governor", "Examples: performance, powersave")
        return value

    def validate(self, reading: Reading, value: str) -> None:
        if reading.value is not None and value not in ON_DEMAND.union(reading.choices):
            raise NotOffered(
                f"{reading.target.instance} offers {', '.join(reading.choices)}, not {value}", "Choose one of these"
            )

    def speed(self, value: str) -> int:
        return BY_SPEED.index(value if value in BY_SPEED else "")

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target], self.path(target)) for target, wish in wishes.items()]

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if reading.value != wish.value:
            return unlike(reading)
        return Verdict(State.SATISFIED, Reason.OK, also_moved(wish.winner.instances, wish.target))

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code == errno.EBUSY:
            return Verdict(State.UNSUPPORTED, Reason.CPU_OFFLINE, offline(reading.target))
        if code == errno.EINVAL:
            there = ", ".join(reading.choices)
            why = f"{reading.target.instance} offers {there}, not {value}, and the kernel has no module for it"
            return Verdict(State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, why)
        return super().rejected(reading, value, code)


def plan_one(wish: Wish, before: Reading, path: str) -> Step:
    """Nothing where the value is in place; an offline CPU keeps its wish until it comes back."""
    if before.value is None:
        return Step(wish, before, verdict=unlike(before))
    if before.value == wish.value:
        return Step(wish, before)
    return Step(wish, before, (Write(path, wish.value),))
