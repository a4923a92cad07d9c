"""io-scheduler: which scheduler orders a block device's requests (Documentation/block/switching-sched.rst)."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import ClassVar

from kerntune.errors import InvalidValue
from kerntune.kernel import support
from kerntune.kernel.files import KernelError, KernelView, find
from kerntune.model import Lane, Limits, Memory, Reading, Reason, State, Step, Target, Verdict, Wish, Write
from kerntune.tunables.base import Action, Plain, unreadable

# Modules that the kernel loads when their name is written, though the file does not list them before.
ON_DEMAND = frozenset({"bfq", "kyber", "mq-deadline"})
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# A device's name or a glob of one; `!` stands for the slash in names such as cciss!c0d0.
PATTERN = re.compile(r"(by-id/)?[A-Za-z0-9_.:!+=@*?\[\]-]{1,255}")
GLOB = re.compile(r"[*?\[]")
# A path of a multipath drive: subsystem, controller, namespace (nvme_mpath_set_disk_name in drivers/nvme/host).
HIDDEN_PATH = re.compile(r"(nvme[0-9]+)c[0-9]+(n[0-9]+)")


class IoScheduler(Plain):
    """One target per whole disk that has a queue; partitions have none and never match.

    Where NVMe's native multipath is at work the drive (nvme0n1) has nothing to schedule and its hidden paths
    (nvme0c0n1) do: they are the targets, and go by the drive's names too.
    """

    name: ClassVar[str] = "io-scheduler"
    summary: ClassVar[str] = "I/O scheduler of a block device"
    lane: ClassVar[Lane] = Lane.BLOCK
    action: ClassVar[Action] = "set"
    parallel: ClassVar[bool] = True

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        names = [path.split("/")[2] for path in kernel.glob("sys/block/*/queue/scheduler")]
        heads = {name: head for name in names if (head := head_of(kernel, name))}
        return [
            Target(self.name, name, diskseq(kernel, name), aliases=other_names(kernel, name, heads.get(name)))
            for name in names
            if name not in heads.values()
        ]

    def missing(self, kernel: KernelView) -> str:
        if kernel.glob("sys/block/*/queue/scheduler"):
            return ""
        return "no block device below /sys/block has a queue/scheduler file. " + support.configured(kernel, "BLOCK")

    def normal(self, instances: str) -> str:
        if not PATTERN.fullmatch(instances) or instances.removeprefix("by-id/") in (".", ".."):
            raise InvalidValue(
                f"{instances!r} cannot name a block device",
                "Give a name (nvme0n1), a glob (nvme*) or by-id/NAME as in /dev/disk/by-id",
            )
        return instances

    def exact(self, instances: str) -> bool:
        return not GLOB.search(instances)

    def matches(self, instances: str, target: Target) -> bool:
        names = (target.instance, *target.aliases)
        # The slash of by-id/ is not crossed.
        alike = (name for name in names if name.count("/") == instances.count("/"))
        return instances in names or any(fnmatchcase(name, instances) for name in alike)

    def read(self, kernel: KernelView, target: Target) -> Reading:
        try:
            text = kernel.read(path_of(target))
        except KernelError as error:
            return Reading(target, None, reason=Reason.DEVICE_GONE, detail=f"cannot be read: {error.strerror}")
        words = text.split()
        chosen = next((word.strip("[]") for word in words if word.startswith("[")), words[0] if words else "")
        return Reading(target, chosen, choices=tuple(word.strip("[]") for word in words))

    def normal_value(self, value: str) -> str:
        if not NAME.fullmatch(value):
            raise InvalidValue(
                f"{value!r} cannot be the name of a scheduler", "Examples: none, mq-deadline, bfq, kyber"
            )
        return value

    def validate(self, reading: Reading, value: str) -> None:
        if reading.value is not None and value not in reading.choices and value not in ON_DEMAND | {"none"}:
            raise InvalidValue(
                f"{reading.target.instance} offers {', '.join(reading.choices)}, not {value}",
                "Choose one of these; a scheduler in a module of another name must be loaded first (modprobe)",
            )

    def plan(
        self,
        readings: Mapping[Target, Reading],
        wishes: Mapping[Target, Wish],
        memory: Memory,  # noqa: ARG002
        limits: Limits,  # noqa: ARG002
    ) -> Sequence[Step]:
        return [plan_one(wish, readings[target]) for target, wish in wishes.items()]

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        if code in (errno.EINVAL, errno.ENOENT) and reading.value is not None:
            return not_offered(reading, value, "and the kernel has no module for it")
        return super().rejected(reading, value, code)


def path_of(target: Target) -> str:
    """The sysfs file of one device."""
    return f"sys/block/{target.instance}/queue/scheduler"


def head_of(kernel: KernelView, device: str) -> str:
    """The drive of which this is a hidden path, or ""."""
    found = HIDDEN_PATH.fullmatch(device)
    return f"{found[1]}{found[2]}" if found and find(kernel, f"sys/block/{device}/hidden") == "1" else ""


def diskseq(kernel: KernelView, device: str) -> str:
    """What tells two drives of the same name apart."""
    return find(kernel, f"sys/block/{device}/diskseq") or ""


def other_names(kernel: KernelView, device: str, head: str | None) -> tuple[str, ...]:
    """The device's persistent names, and those of the drive it is a path of."""
    links = tuple(link for link in kernel.links(head or device) if link.startswith("by-id/"))
    return (head, *links) if head else links


def plan_one(wish: Wish, before: Reading) -> Step:
    """Nothing where the value is in place; a device without a choice is not even asked."""
    if before.value is None:
        return Step(wish, before, verdict=unreadable(before))
    if before.value == wish.value:
        return Step(wish, before)
    if before.choices == ("none",):
        return Step(wish, before, verdict=not_offered(before, wish.value, "because it has no queue to schedule"))
    return Step(wish, before, (Write(path_of(wish.target), wish.value),))


def not_offered(reading: Reading, value: str, why: str) -> Verdict:
    """The device does not have this scheduler."""
    offered = ", ".join(reading.choices)
    return Verdict(
        State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED, f"{reading.target.instance} offers {offered}, not {value}, {why}"
    )
