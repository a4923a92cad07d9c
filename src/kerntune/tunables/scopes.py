"""How the tunables of block devices name their targets: a drive, a glob of drives, a name below /dev/disk/by-id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from kerntune.kernel import support
from kerntune.kernel.files import KernelView, find
from kerntune.model import Lane, Target
from kerntune.patterns import Kind
from kerntune.tunables.base import Action, Plain

# As people name it: the classes hold links.
BY_HAND = r"sys/(?:class/)?block/(?P<drive>[^/]+)"
# A path of a multipath drive: subsystem, controller, namespace (nvme_mpath_set_disk_name in drivers/nvme/host).
HIDDEN_PATH = re.compile(r"(nvme[0-9]+)c[0-9]+(n[0-9]+)")


class OnDrives(Plain):
    """One target per whole disk that has the file; partitions have none and never match.

    The key is what lives as long as the queue, for the values are the queue's: the identity of its folder. A diskseq
    will not do: another medium in the drive has another, and kernels before 5.15 have none.

    Where NVMe's native multipath is at work there are the drive (nvme0n1) and its hidden paths (nvme0c0n1). With
    `on_paths` the paths are the targets, and go by the drive's names too.
    """

    name: ClassVar[str]
    # Below the folder of the device.
    file: ClassVar[str]
    on_paths: ClassVar[bool]
    lane: ClassVar[Lane] = Lane.BLOCK
    action: ClassVar[Action] = "set"
    kind: ClassVar[Kind] = Kind.DRIVES
    parallel: ClassVar[bool] = True

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        names = [path.split("/")[2] for path in kernel.glob(f"sys/block/*/{self.file}")]
        heads = {name: head for name in names if (head := head_of(kernel, name))}
        return [
            Target(self.name, name, queue, aliases=other_names(kernel, name, heads.get(name)))
            for name in names
            if name not in (heads.values() if self.on_paths else heads)
            # One that goes at this moment has no queue any more.
            and (queue := kernel.identity(f"sys/block/{name}/queue"))
        ]

    def missing(self, kernel: KernelView) -> str:
        if kernel.glob(f"sys/block/*/{self.file}"):
            return ""
        return f"no block device below /sys/block has a {self.file} file. " + support.configured(kernel, "BLOCK")

    def path(self, target: Target) -> str:
        """The sysfs file of one device."""
        return f"sys/block/{target.instance}/{self.file}"


def head_of(kernel: KernelView, device: str) -> str:
    """The drive of which this is a hidden path, or ""."""
    found = HIDDEN_PATH.fullmatch(device)
    return f"{found[1]}{found[2]}" if found and find(kernel, f"sys/block/{device}/hidden") == "1" else ""


def other_names(kernel: KernelView, device: str, head: str | None) -> tuple[str, ...]:
    """The device's persistent names, and those of the drive it is a path of."""
    links = tuple(link for link in kernel.links(head or device) if link.startswith("by-id/"))
    return (head, *links) if head else links
