"""Owns where the files of a knob are: one for each drive, one for each CPU policy, or those of a fixed list."""

from __future__ import annotations

import errno
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kerntune.errors import InvalidValue, NoSuchName
from kerntune.kernel import kconfig
from kerntune.kernel.files import KernelError, KernelView, read_or_none
from kerntune.model import Lane, Reading, Reason, Target
from kerntune.patterns import EVERY, GLOB, OTHER_TUNABLES, PATTERNS, Kind, also_moved, full_name
from kerntune.suggest import no_such_target

CPUS = "sys/devices/system/cpu"
POLICIES = f"{CPUS}/cpufreq"
# A path of a multipath drive: subsystem, controller, namespace (nvme_mpath_set_disk_name in drivers/nvme/host).
HIDDEN_PATH = re.compile(r"(nvme[0-9]+)c[0-9]+(n[0-9]+)")


class Scope(ABC):
    """The files of one knob, a file for each target."""

    kind: Kind
    lane: Lane
    # Writes to different targets may run at the same time.
    parallel: bool = False

    @property
    @abstractmethod
    def files(self) -> tuple[str, ...]:
        """The files, as patterns of paths below the root."""

    @property
    @abstractmethod
    def import_patterns(self) -> str:
        """The files as people name them, as a regular expression; see Tunable.import_patterns for its groups."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the instances, where there is a list of them."""
        return ()

    @property
    def attributes(self) -> tuple[str, ...]:
        """The attributes of a device that are its file, as udev rules name them."""
        return ()

    @abstractmethod
    def path(self, instance: str) -> str:
        """Return the file of one instance."""

    def of_device(self, name: str) -> str:
        """Return the file of a device by the device's own name (cpu3), as far as it has another than the instance."""
        return self.path(name)

    @abstractmethod
    def targets(self, tunable: str, kernel: KernelView) -> Sequence[Target]:
        """Return every target there is now."""

    @abstractmethod
    def missing(self, kernel: KernelView) -> str:
        """Return why this kernel has no such file, and how that was found; "" when it may have."""

    def normal(self, instances: str) -> str:
        """Return a pattern in normal form. Raise InvalidValue when it cannot be one."""
        return PATTERNS[self.kind].normal(instances)

    def unreadable(self, target: Target, error: KernelError) -> Reading:
        """Return the reading of a target whose file cannot be read."""
        return Reading(target, None, reason=Reason.DEVICE_GONE, detail=f"cannot be read: {error.strerror}")

    def called(self, target: Target) -> str:
        """Return what a target is called in a sentence."""
        return target.instance

    def also_set(self, pattern: str, target: Target) -> str:  # noqa: ARG002
        """Return what a value set by this pattern changes beside what the pattern names, as prose."""
        return ""


@dataclass(frozen=True)
class Drives(Scope):
    """One target per whole disk that has the file; partitions have none and never match.

    The key is what lives as long as the queue, for the values are the queue's: the identity of its folder. A diskseq
    will not do: another medium in the drive has another, and kernels before 5.15 have none.

    Where NVMe's native multipath is at work there are the drive (nvme0n1) and its hidden paths (nvme0c0n1). With
    `on_paths` the paths are the targets, and go by the drive's names too.
    """

    # In the folder queue/ of the device, and in `others`, where it is the same file.
    file: str
    others: tuple[str, ...] = ()
    on_paths: bool = False

    kind = Kind.DRIVES
    lane = Lane.BLOCK
    parallel = True

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path("*"),)

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(f"{folder}/{self.file}" for folder in ("queue", *self.others))

    @property
    def import_patterns(self) -> str:
        # The classes hold links.
        return rf"sys/(?:class/)?block/(?P<drive>[^/]+)/(?:{'|'.join(('queue', *self.others))})/{self.file}"

    def path(self, instance: str) -> str:
        return f"sys/block/{instance}/queue/{self.file}"

    def targets(self, tunable: str, kernel: KernelView) -> Sequence[Target]:
        names = [path.split("/")[2] for path in kernel.glob(self.path("*"))]
        heads = {name: head for name in names if (head := head_of(kernel, name))}
        return [
            Target(tunable, name, queue, aliases=other_names(kernel, name, heads.get(name)))
            for name in names
            if name not in (heads.values() if self.on_paths else heads)
            # One that goes at this moment has no queue any more.
            and (queue := kernel.identity(f"sys/block/{name}/queue"))
        ]

    def missing(self, kernel: KernelView) -> str:
        if kernel.glob(self.path("*")):
            return ""
        return f"no block device below /sys/block has a queue/{self.file} file. " + kconfig.configured(kernel, "BLOCK")


@dataclass(frozen=True)
class Policies(Scope):
    """One target per cpufreq policy that has the file; its aliases are the CPUs it moves (`cpu3`).

    The key is the driver, for a value means what the driver makes of it. The governor powersave chooses by load under
    intel_pstate; under intel_cpufreq, the same driver in another mode, it is the lowest frequency.
    """

    # In the folder of the policy.
    file: str
    # Says why there is no such file, where there is none.
    why_missing: Callable[[KernelView], str]

    kind = Kind.CPUS
    lane = Lane.CPU
    # A governor that ends waits for an RCU grace period: policies that change at the same time share it.
    parallel = True

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path("policy*"),)

    @property
    def attributes(self) -> tuple[str, ...]:
        return (f"cpufreq/{self.file}",)

    @property
    def import_patterns(self) -> str:
        # A policy itself, or a CPU that it moves.
        folder = rf"{CPUS}/(?:cpu(?P<cpus>[^/]+)|\*|cpufreq/(?P<policy>[^/]+))(?:/cpufreq)?"
        return f"{folder}/{self.file}"

    def path(self, instance: str) -> str:
        return f"{POLICIES}/{instance}/{self.file}"

    def of_device(self, name: str) -> str:
        return f"{CPUS}/{name}/cpufreq/{self.file}"

    def targets(self, tunable: str, kernel: KernelView) -> Sequence[Target]:
        names = [path.split("/")[-2] for path in kernel.glob(self.path("policy*"))]
        # There is one driver at a time (cpufreq_driver of drivers/cpufreq/cpufreq.c), also of a policy that is offline.
        driver = first(kernel, names, "scaling_driver")
        return [Target(tunable, name, driver, aliases=aliases) for name, aliases in cpus_of(kernel, names).items()]

    def missing(self, kernel: KernelView) -> str:
        return "" if kernel.glob(self.path("policy*")) else self.why_missing(kernel)

    def unreadable(self, target: Target, error: KernelError) -> Reading:
        if error.errno == errno.EBUSY:
            return Reading(target, None, reason=Reason.CPU_OFFLINE, detail=offline(target))
        return super().unreadable(target, error)

    def also_set(self, pattern: str, target: Target) -> str:
        return also_moved(pattern, target)


@dataclass(frozen=True)
class Names(Scope):
    """The files of a list, below one folder: a dot in a name is a slash in its path."""

    folder: str
    listed: tuple[str, ...]
    # The build option of the kernel that brings them.
    option: str
    # The name of the tunable.
    tunable: str
    # Why all of them cannot be named at once, and what to do about it.
    not_together: str = ""
    hint: str = ""

    kind = Kind.NAMES
    lane = Lane.MEMORY

    @property
    def names(self) -> tuple[str, ...]:
        return self.listed

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(map(self.path, self.names))

    @property
    def import_patterns(self) -> str:
        return rf"{self.folder}/(?P<name>{'|'.join(re.escape(name.replace('.', '/')) for name in self.names)})"

    def path(self, instance: str) -> str:
        return f"{self.folder}/{instance.replace('.', '/')}"

    def targets(self, tunable: str, kernel: KernelView) -> Sequence[Target]:
        return [Target(tunable, name) for name in self.names if read_or_none(kernel, self.path(name)) is not None]

    def missing(self, kernel: KernelView) -> str:
        if self.targets("", kernel):
            return ""
        return kconfig.missing(kernel, self.path(self.names[0]), self.option)

    def normal(self, instances: str) -> str:
        """Return the name with dots; as in sysctl(8) it may have slashes instead. Its last part alone may do."""
        name = full_name(PATTERNS[self.kind].normal(instances), self.names)
        if name == EVERY and self.not_together:
            raise InvalidValue(self.not_together, self.hint)
        if name not in self.names:
            there = [Target(self.tunable, each) for each in self.names]
            error = no_such_target(self.tunable, self.kind, name if name in OTHER_TUNABLES else instances, there)
            if GLOB.search(name):
                what = f"{instances!r} is a pattern, and of {self.tunable} each is named by itself"
                raise NoSuchName(what, error.hint)
            raise NoSuchName(error.what, error.hint)
        return name

    def unreadable(self, target: Target, error: KernelError) -> Reading:
        return Reading(target, None, reason=Reason.NO_KERNEL_SUPPORT, detail=f"cannot be read: {error.strerror}")

    def called(self, target: Target) -> str:
        """Return the whole target: a name alone (`enabled`) says too little."""
        return str(target)


def head_of(kernel: KernelView, device: str) -> str:
    """Return the drive of which this is a hidden path, or ""."""
    found = HIDDEN_PATH.fullmatch(device)
    return f"{found[1]}{found[2]}" if found and read_or_none(kernel, f"sys/block/{device}/hidden") == "1" else ""


def other_names(kernel: KernelView, device: str, head: str | None) -> tuple[str, ...]:
    """Return the device's persistent names, and those of the drive it is a path of."""
    links = tuple(link for link in kernel.links(head or device) if link.startswith("by-id/"))
    return (head, *links) if head else links


def first(kernel: KernelView, policies: Iterable[str], file: str) -> str:
    """Return what the file says of the first policy that is online, or ""."""
    return next((text for policy in policies if (text := read_or_none(kernel, f"{POLICIES}/{policy}/{file}"))), "")


def cpus_of(kernel: KernelView, policies: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the CPUs that each policy moves.

    While all of a policy's CPUs are offline, its files give EBUSY. The links of the CPUs to their policy stay until
    the CPUs are removed (cpufreq_add_dev and cpufreq_remove_dev of drivers/cpufreq/cpufreq.c).
    """
    listed = {policy: read_or_none(kernel, f"{POLICIES}/{policy}/related_cpus") for policy in policies}
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
    """Return what is said of a policy whose CPUs are offline."""
    return f"the CPUs of {target.instance} are offline; the value is set when one comes online"
