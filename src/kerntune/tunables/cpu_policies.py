"""How the tunables of cpufreq policies name their targets: a policy, a list of CPUs, or all."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import ClassVar

from kerntune.kernel.files import KernelError, KernelView, find
from kerntune.model import Lane, Reading, Reason, Target
from kerntune.patterns import Kind
from kerntune.tunables.base import Action, Plain

CPUS = "sys/devices/system/cpu"
POLICIES = f"{CPUS}/cpufreq"
# As people name a policy: itself, or a CPU that it moves.
BY_HAND = r"sys/devices/system/cpu/(?:cpu(?P<cpus>[^/]+)|\*|cpufreq/(?P<policy>[^/]+))(?:/cpufreq)?"


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
