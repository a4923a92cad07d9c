"""Where a daemon can be crashed: the host, or a made-up tree of plain files; and what may be asked of it there."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.harness import host
from tests.live.book import Book, Key, Operation

GIB_IN_KB: Final = 1 << 20
POOL: Final = "hugepages-2048kB"
MEMINFO: Final = f"""\
MemTotal:       {64 * GIB_IN_KB} kB
MemFree:        {60 * GIB_IN_KB} kB
MemAvailable:   {60 * GIB_IN_KB} kB
SwapTotal:      0 kB
CommitLimit:    {32 * GIB_IN_KB} kB
Committed_AS:   {2 * GIB_IN_KB} kB
HugePages_Total: 0
Hugepagesize:   2048 kB
Hugetlb:        0 kB
"""
# Never `none`: in a plain file it would look like a device without a choice.
DISKS: Final = {"nvme0n1": "mq-deadline", "nvme1n1": "kyber", "sda": "bfq"}


def make_tree(root: Path, *, boot: str = "first boot") -> Path:
    """A host of one node, a pool of 2 MiB pages, three disks and overcommit; also what a reboot makes of one."""
    pool = f"sys/kernel/mm/hugepages/{POOL}"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/sys/kernel/osrelease": "6.1.0-tree",
        "proc/sys/kernel/random/boot_id": boot,
        "proc/sys/vm/compact_memory": "0",
        "proc/sys/vm/overcommit_memory": "0",
        "proc/sys/vm/overcommit_ratio": "50",
        "proc/sys/vm/overcommit_kbytes": "0",
        **{f"{pool}/{name}_hugepages": "0" for name in ("nr", "free", "resv", "surplus", "nr_overcommit")},
        "sys/devices/system/node/node0/meminfo": f"Node 0 MemFree: {60 * GIB_IN_KB} kB",
        **{f"sys/block/{name}/queue/scheduler": scheduler for name, scheduler in DISKS.items()},
        **{f"sys/block/{name}/diskseq": str(number) for number, name in enumerate(DISKS, start=1)},
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text.strip()}\n")
    # One pool under two names, as on a host with one node.
    node = root / "sys/devices/system/node/node0/hugepages"
    node.mkdir(exist_ok=True)
    if not (node / POOL).is_symlink():
        (node / POOL).symlink_to(Path("../../../../..") / pool.removeprefix("sys/"))
    return root


@dataclass(frozen=True, slots=True)
class Ground:
    """A host below `root`: its disks, and the values that operations choose from."""

    root: Path
    disks: Sequence[str]
    patterns: Sequence[str]
    schedulers: Sequence[str]
    pool: str
    most_pages: int

    @property
    def targets(self) -> list[Key]:
        return [("hugepages", self.pool), ("overcommit", ""), *(("io-scheduler", disk) for disk in self.disks)]

    def values(self) -> dict[Key, str]:
        """What every target holds, in its tunable's words."""
        return {target: self._value(target) for target in self.targets}

    def _value(self, target: Key) -> str:
        tunable, instance = target
        if tunable == "io-scheduler":
            return host.scheduler(instance, self.root)
        if tunable == "overcommit":
            mode, ratio = host.overcommit(self.root)
            return f"{mode}:{ratio}"
        return str(host.pages(root=self.root))

    def operations(self, chance: random.Random) -> list[Operation]:
        """Some that may run at the same time: one on all tunables, or one on each."""
        tunables = ["io-scheduler", "hugepages", "overcommit"]
        if chance.random() < 0.4:
            return [self._operation(chance, chance.sample(tunables, chance.randint(2, 3)))]
        return [self._operation(chance, [tunable]) for tunable in tunables]

    def _operation(self, chance: random.Random, tunables: Sequence[str]) -> Operation:
        unset, persist = chance.random() < 0.35, chance.random() < 0.4
        rows = []
        for tunable in tunables:
            every = unset and chance.random() < 0.5
            where = {"io-scheduler": chance.choice(self.patterns), "hugepages": self.pool, "overcommit": ""}[tunable]
            value = {
                "io-scheduler": chance.choice(self.schedulers),
                "hugepages": str(chance.randint(0, self.most_pages)),
                "overcommit": chance.choice(["heuristic", "always:95", "always:70", "always:85"]),
            }[tunable]
            rows.append((tunable, "*" if every else where, value))
        return Operation(tuple(rows), unset=unset, persist=persist)

    def book(self) -> Book:
        return Book(tuple(self.targets))


def tree_ground(root: Path) -> Ground:
    disks = tuple(DISKS)
    return Ground(
        root, disks, (*disks, "nvme*", "*", "later*"), ("mq-deadline", "kyber", "bfq"), pool="2M", most_pages=4096
    )


def host_ground(loops: Sequence[str]) -> Ground:
    """This machine: loop devices and a few pages."""
    disks = tuple(loops[:3])
    patterns = (*disks, "loop[0-1]", "loop[0-2]", "later*")
    return Ground(host.HOST, disks, patterns, ("none", "mq-deadline"), pool=host.pool(), most_pages=32)
