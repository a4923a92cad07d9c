"""How the tunables of cpufreq policies name their targets: a policy, a list of CPUs, or all."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from kerntune.errors import InvalidValue
from kerntune.kernel.files import KernelError, KernelView, find
from kerntune.model import Lane, Reading, Reason, Target, Wish
from kerntune.tunables.base import Action, Kind, Matcher, Plain

CPUS = "sys/devices/system/cpu"
POLICIES = f"{CPUS}/cpufreq"
# As people name a policy: itself, or a CPU that it moves.
BY_HAND = r"sys/devices/system/cpu/(?:cpu(?P<cpus>[^/]+)|\*|cpufreq/(?P<policy>[^/]+))(?:/cpufreq)?"
POLICY = re.compile(r"policy[0-9]{1,5}")
# Up to the 9999th CPU: the kernel can be built for 8192.
CPU_LIST = re.compile(r"[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*")


class OnPolicies(Plain):
    """One target per cpufreq policy that has the file; its aliases are the CPUs it moves (`cpu3`).

    The key is the driver, for a value means what the driver makes of it. The governor powersave chooses by load under
    intel_pstate; under intel_cpufreq, the same driver in another mode, it is the lowest frequency.
    """

    name: ClassVar[str]
    # In the folder of the policy.
    file: ClassVar[str]
    # The word for a value that the driver has no name for, where the file may hold one: a read gives EINVAL.
    nameless: ClassVar[str] = ""
    lane: ClassVar[Lane] = Lane.CPU
    action: ClassVar[Action] = "set"
    kind: ClassVar[Kind] = Kind.CPUS
    # A governor that ends waits for an RCU grace period: policies that change at the same time share it.
    parallel: ClassVar[bool] = True

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        names = [path.split("/")[-2] for path in kernel.glob(f"{POLICIES}/policy*/{self.file}")]
        # There is one driver at a time (cpufreq_driver of drivers/cpufreq/cpufreq.c), also of a policy that is offline.
        driver = first(kernel, names, "scaling_driver")
        return [Target(self.name, name, driver, aliases=aliases) for name, aliases in cpus_of(kernel, names).items()]

    def normal(self, instances: str) -> str:
        if instances == "*" or POLICY.fullmatch(instances):
            return instances
        if CPU_LIST.fullmatch(instances):
            return str(CpuList.parse(instances))
        raise InvalidValue(f"{instances!r} names no CPUs", "Give a CPU list (0-3,8), a policy (policy0) or *")

    def exact(self, instances: str) -> bool:
        return instances != "*"

    def matcher(self, instances: str) -> Matcher:
        if instances == "*":
            return lambda _target: True
        if instances.startswith("policy"):
            return super().matcher(instances)
        listed = CpuList.parse(instances).bits
        return lambda target: bool(listed & bits_of(target.aliases))

    def path(self, target: Target) -> str:
        """The sysfs file of one policy."""
        return f"{POLICIES}/{target.instance}/{self.file}"

    def value(self, kernel: KernelView, target: Target) -> str | Reading:
        """What the file says, or the reading of one that cannot be read."""
        try:
            return kernel.read(self.path(target))
        except KernelError as error:
            if error.errno == errno.EINVAL and self.nameless:
                return self.nameless
            if error.errno == errno.EBUSY:
                return Reading(target, None, reason=Reason.CPU_OFFLINE, detail=offline(target))
            return Reading(target, None, reason=Reason.DEVICE_GONE, detail=f"cannot be read: {error.strerror}")


def first(kernel: KernelView, policies: Iterable[str], file: str) -> str:
    """Return what the file says of the first policy that is online, or ""."""
    return next((text for policy in policies if (text := find(kernel, f"{POLICIES}/{policy}/{file}"))), "")


def offered(kernel: KernelView, targets: Sequence[Target], file: str) -> tuple[str, ...]:
    """Return what all policies offer, for one driver serves them all."""
    return tuple(first(kernel, (target.instance for target in targets), file).split())


def cpus_of(kernel: KernelView, policies: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the CPUs that each policy moves.

    While all of a policy's CPUs are offline, its files give EBUSY. The links of the CPUs to their policy stay until
    the CPUs are removed (cpufreq_add_dev and cpufreq_remove_dev of drivers/cpufreq/cpufreq.c).
    """
    listed = {policy: find(kernel, f"{POLICIES}/{policy}/related_cpus") for policy in policies}
    links = {} if all(listed.values()) else linked_cpus(kernel)
    return {
        policy: tuple(f"cpu{number}" for number in numbers.split())
        if numbers
        else links.get(kernel.identity(f"{POLICIES}/{policy}"), (policy.replace("policy", "cpu"),))
        for policy, numbers in listed.items()
    }


def linked_cpus(kernel: KernelView) -> dict[str, tuple[str, ...]]:
    """Return the CPUs with a link to a policy, by the identity of the policy."""
    found: dict[str, tuple[str, ...]] = {}
    for link in kernel.glob(f"{CPUS}/cpu[0-9]*/cpufreq"):
        if policy := kernel.identity(link):
            found[policy] = (*found.get(policy, ()), link.split("/")[-2])
    return found


def offline(target: Target) -> str:
    """What is said of a policy whose CPUs are offline."""
    return f"the CPUs of {target.instance} are offline; the value is set when one comes online"


def also_moved(wish: Wish) -> str:
    """The CPUs that a policy moves beside those that a CPU list named."""
    if not CPU_LIST.fullmatch(wish.winner.instances):
        return ""
    listed = CpuList.parse(wish.winner.instances).bits
    others = [cpu for cpu in cpus_in(wish.target.aliases) if not listed >> cpu & 1]
    return f"{wish.target.instance} also moves CPU {spell_cpus(others)}" if others else ""


@dataclass(frozen=True, slots=True)
class CpuList:
    """A CPU list as the kernel writes it (0-3,8): ranges in order that do not touch; its cost is that of its text."""

    spans: tuple[tuple[int, int], ...]

    @classmethod
    def parse(cls, text: str) -> CpuList:
        """Return what CPU_LIST has found to be one. Raise InvalidValue for a range that runs backwards."""
        found = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            if int(last or first) < int(first):
                raise InvalidValue(f"{part!r} runs backwards", "Give the lower CPU first: 0-3")
            found.append((int(first), int(last or first)))
        return cls.of(found)

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> CpuList:
        """Return the list that has all of these."""
        joined: list[tuple[int, int]] = []
        for first, last in sorted(spans):
            if joined and first <= joined[-1][1] + 1:
                joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
            else:
                joined.append((first, last))
        return cls(tuple(joined))

    @property
    def bits(self) -> int:
        """The list as a number that has a bit for each CPU."""
        return sum(((1 << last - first + 1) - 1) << first for first, last in self.spans)

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.spans)


def spell_cpus(cpus: Iterable[int]) -> str:
    """CPU numbers in the kernel's list form."""
    return str(CpuList.of((cpu, cpu) for cpu in cpus))


def cpus_in(aliases: Iterable[str]) -> list[int]:
    """Return the CPUs that a policy's other names are."""
    return [int(alias.removeprefix("cpu")) for alias in aliases]


# The names are those of this host's policies, which no caller can add to.
@lru_cache(maxsize=1024)
def bits_of(aliases: tuple[str, ...]) -> int:
    """Return the same as a number that has a bit for each."""
    return sum(1 << cpu for cpu in cpus_in(aliases))
