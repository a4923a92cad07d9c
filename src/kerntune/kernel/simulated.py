"""A host in memory behind the same seam as the real one: pools that run out, schedulers, overcommit.

It plays the kernel's four ways of not obeying: it clamps (huge pages beyond what memory is free), refuses (`refuse`),
ignores in silence (`ignore`) and obeys late (`late`).
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from kerntune.kernel.files import KernelError, allowed, natural

MODULES = ("none", "mq-deadline", "kyber", "bfq")
GOVERNORS = ("performance", "powersave", "ondemand", "conservative", "userspace", "schedutil")
PREFERENCES = ("default", "performance", "balance_performance", "balance_power", "power")
POLICIES = "sys/devices/system/cpu/cpufreq"
POOLS = "sys/kernel/mm/hugepages"
NODES = "sys/devices/system/node"
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") >> 10
THP = "sys/kernel/mm/transparent_hugepage"
THP_WORDS = {
    "enabled": ("always", "madvise", "never"),
    "defrag": ("always", "defer", "defer+madvise", "madvise", "never"),
}
# The values of a new kernel. To write the last one takes CAP_SYS_ADMIN, so it is not WRITABLE, which is EPERM here too.
SYSCTLS = {"vm/swappiness": 60, "vm/zone_reclaim_mode": 0, "kernel/numa_balancing": 1}
MOST = {"vm/swappiness": 200}
ADMIN_RESERVE = "proc/sys/vm/admin_reserve_kbytes"
USER_RESERVE = "proc/sys/vm/user_reserve_kbytes"


@dataclass(slots=True)
class Pool:
    """One node's huge pages of one size, in pages."""

    asked: int = 0
    used: int = 0

    @property
    def total(self) -> int:
        return max(self.asked, self.used)


@dataclass(slots=True)
class Node:
    """One NUMA node: its memory in bytes, less what programs use; `whole` caps what is unfragmented, in bytes."""

    memory: int
    programs: int = 0
    whole: int | None = None
    pools: dict[int, Pool] = field(default_factory=dict)

    @property
    def hugetlb(self) -> int:
        return sum(size * pool.total for size, pool in self.pools.items())

    @property
    def free(self) -> int:
        return self.memory - self.programs - self.hugetlb


@dataclass(slots=True)
class Disk:
    """A block device and the scheduler it has; `offered` as the file lists them."""

    scheduler: str = "none"
    offered: tuple[str, ...] = ("none", "mq-deadline")
    by_id: str = ""
    diskseq: int = 0
    hidden: bool = False
    read_ahead: int = 128  # KiB


@dataclass(slots=True)
class Policy:
    """A cpufreq policy; `offered` as scaling_available_governors lists them (the rest loads on demand)."""

    cpus: tuple[int, ...]
    governor: str = "schedutil"
    offered: tuple[str, ...] = ("performance", "schedutil")
    online: bool = True
    epp: str = ""  # the preference, of a driver that has them and is active

    @property
    def preference(self) -> str:
        """The governor performance covers what was preferred."""
        return "performance" if self.governor == "performance" else self.epp


@dataclass(slots=True)
class SimulatedKernel:
    """The files of such a host; `journal` is every write that was accepted or refused, in order."""

    nodes: list[Node]
    disks: dict[str, Disk] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    overcommit: dict[str, int] = field(default_factory=lambda: {"memory": 0, "ratio": 50, "kbytes": 0})
    sysctls: dict[str, int] = field(default_factory=lambda: dict(SYSCTLS))
    thp: dict[str, str] = field(default_factory=lambda: {"enabled": "always", "defrag": "madvise"})
    admin_reserve: int = 8192  # KiB
    user_reserve: int = 131072  # KiB
    committed: int = 2 << 30
    swap: int = 0
    sizes: tuple[int, ...] = (2 << 20, 1 << 30)
    borrow: dict[int, int] = field(default_factory=dict)  # pages by their size
    refuse: dict[str, int] = field(default_factory=dict)
    ignore: set[str] = field(default_factory=set)
    late: dict[str, int] = field(default_factory=dict)
    compaction: int = 0
    pace: float = 0.0  # seconds that a write to a pool takes
    journal: list[tuple[str, str]] = field(default_factory=list)
    before_write: Callable[[str, str], None] | None = None
    simulated: bool = True
    _seq: int = 0
    _waiting: dict[str, tuple[int, str]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def plug(self, name: str, **disk: object) -> None:
        """A drive appears; the same name later is another drive."""
        self._seq += 1
        self.disks[name] = Disk(**{"diskseq": self._seq, **disk})  # type: ignore[arg-type]  # the fields of Disk

    def unplug(self, name: str) -> None:
        del self.disks[name]

    def read(self, path: str) -> str:
        with self._lock:
            self._obey_late(path)
            files = self._files_around(path)
            if path not in files:
                raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            return files[path]

    def glob(self, pattern: str) -> Sequence[str]:
        with self._lock:
            wanted = pattern.split("/")
            found = {
                "/".join(parts[: len(wanted)])
                for parts in (path.split("/") for path in self._files())
                if len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))
            }
        return sorted(found, key=natural)

    def links(self, device: str) -> Sequence[str]:
        disk = self.disks.get(device)
        return [f"by-id/{disk.by_id}"] if disk and disk.by_id else []

    def write(self, path: str, text: str) -> None:
        if self.before_write:
            self.before_write(path, text)
        if self.pace and path.endswith("/nr_hugepages"):
            time.sleep(self.pace)
        with self._lock:
            self.journal.append((path, text))
            if code := self.refuse.get(path, 0 if allowed(path) else errno.EPERM):
                raise KernelError(code, os.strerror(code), path)
            if path in self.ignore:
                return
            if path in self.late:
                self._waiting[path] = (self.late[path], text)
                return
            self._obey(path, text)

    def keep(self, path: str, *, writable: bool = False) -> KeptPath:
        if writable and (code := self.refuse.get(path, 0 if allowed(path) else errno.EPERM)):
            raise KernelError(code, os.strerror(code), path)
        self.read(path)
        return KeptPath(self, path)

    def _obey_late(self, path: str) -> None:
        """A value that was written takes effect after so many more reads of its file."""
        if path in self._waiting:
            left, text = self._waiting.pop(path)
            if left:
                self._waiting[path] = (left - 1, text)
            else:
                self._obey(path, text)

    def _obey(self, path: str, text: str) -> None:
        parts = path.split("/")
        # With where in the path the policy or the drive is named.
        setters = {
            "scaling_governor": (self._set_governor, 5),
            "energy_performance_preference": (self._set_preference, 5),
            "scheduler": (self._set_scheduler, 2),
            "read_ahead_kb": (self._set_read_ahead, 2),
        }
        if path.endswith("/compact_memory"):
            for node in self.nodes:
                node.whole = None if node.whole is None else node.whole + self.compaction
        elif path == ADMIN_RESERVE:
            self.admin_reserve = int(text)
        elif path == USER_RESERVE:
            self.user_reserve = int(text)
        elif path.startswith("proc/sys/vm/overcommit_"):
            self._set_overcommit(parts[-1].removeprefix("overcommit_"), path, text)
        elif path.startswith(("proc/sys/", THP)):
            self._set_plain(path, text)
        elif found := setters.get(parts[-1]):
            setter, depth = found
            setter(parts[depth], path, text)
        elif path not in self._files():
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        elif parts[-1] == "nr_overcommit_hugepages":
            self.borrow[size_in(parts[4])] = int(text)
        elif path.startswith(NODES):
            self._resize(self.nodes[int(parts[4].removeprefix("node"))], size_in(parts[6]), int(text))
        else:
            self._resize_whole(size_in(parts[4]), int(text))

    def _set_overcommit(self, name: str, path: str, text: str) -> None:
        """Ratio and kilobytes set each other to 0 (mm/util.c)."""
        value = int(text)
        if name == "memory" and value not in (0, 1, 2):
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        self.overcommit[name] = value
        if name in ("ratio", "kbytes"):
            self.overcommit["kbytes" if name == "ratio" else "ratio"] = 0

    def _set_plain(self, path: str, text: str) -> None:
        """A sysctl within its range, or a word of transparent huge pages."""
        name = path.removeprefix("proc/sys/").removeprefix(f"{THP}/")
        if name in self.sysctls and int(text) <= MOST.get(name, int(text)):
            self.sysctls[name] = int(text)
        elif name in self.thp and text in THP_WORDS[name]:
            self.thp[name] = text
        else:
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)

    def _set_scheduler(self, name: str, path: str, text: str) -> None:
        disk = self.disks.get(name)
        if disk is None:
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if text not in (*disk.offered, *MODULES) or disk.offered == ("none",):
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        disk.scheduler = text
        if text not in disk.offered:
            disk.offered = (*disk.offered, text)

    def _set_read_ahead(self, name: str, path: str, text: str) -> None:
        """Rounded down to whole pages."""
        if name not in self.disks:
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self.disks[name].read_ahead = int(text) - int(text) % PAGE_KIB

    def _set_governor(self, name: str, path: str, text: str) -> None:
        """An offline CPU's policy stays listed and is busy; governors in modules load when they are named."""
        policy = self.policies.get(name)
        if policy is None:
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not policy.online:
            raise KernelError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        if text not in GOVERNORS:
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        policy.governor = text
        if text not in policy.offered:
            policy.offered = (*policy.offered, text)

    def _set_preference(self, name: str, path: str, text: str) -> None:
        """An offline CPU is busy, and so is one whose governor decides."""
        policy = self.policies.get(name)
        if policy is None or not policy.epp:
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not policy.online or (policy.governor == "performance" and text != "performance"):
            raise KernelError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        if text not in PREFERENCES:
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        if policy.governor != "performance":
            policy.epp = text

    def _resize(self, node: Node, size: int, asked: int) -> int:
        """Grow as far as memory goes, without an error; pages in use stay."""
        pool = node.pools[size]
        possible = node.free if node.whole is None else min(node.free, node.whole)
        most = max(pool.total + possible // size, pool.used)
        before, pool.asked = pool.total, min(asked, most)
        if node.whole is not None:
            node.whole -= (pool.total - before) * size
        return pool.asked

    def _resize_whole(self, size: int, asked: int) -> None:
        """The kernel spreads a total over the nodes in turn."""
        left = asked
        for number, node in enumerate(self.nodes):
            left -= self._resize(node, size, -(-left // (len(self.nodes) - number)))

    def _files_around(self, path: str) -> Mapping[str, str]:
        """The files of the policy or the drive that `path` belongs to (there may be hundreds), else every file."""
        parts = path.split("/")
        if path.startswith(f"{POLICIES}/") and (policy := self.policies.get(parts[5])):
            if not policy.online:
                raise KernelError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            return policy_files(parts[5], policy)
        if path.startswith("sys/block/") and (disk := self.disks.get(parts[2])):
            return disk_files(parts[2], disk)
        return self._files()

    def _files(self) -> dict[str, str]:
        """Every file as it would be read now."""
        files = {
            "proc/meminfo": self._meminfo(),
            "proc/sys/kernel/osrelease": "6.1.0-simulated",
            "proc/sys/vm/compact_memory": "0",
            ADMIN_RESERVE: str(self.admin_reserve),
            USER_RESERVE: str(self.user_reserve),
            **{f"proc/sys/{name}": str(value) for name, value in self.sysctls.items()},
            **{f"{THP}/{name}": in_brackets(word, THP_WORDS[name]) for name, word in self.thp.items()},
            **{f"proc/sys/vm/overcommit_{name}": str(value) for name, value in self.overcommit.items()},
        }
        for size in self.sizes:
            folder = f"hugepages-{size >> 10}kB"
            pools = [node.pools.setdefault(size, Pool()) for node in self.nodes]
            files |= pool_files(f"{POOLS}/{folder}", pools)
            files[f"{POOLS}/{folder}/nr_overcommit_hugepages"] = str(self.borrow.get(size, 0))
            files[f"{POOLS}/{folder}/resv_hugepages"] = "0"
            for number, pool in enumerate(pools):
                files |= pool_files(f"{NODES}/node{number}/hugepages/{folder}", [pool])
        for number, node in enumerate(self.nodes):
            files[f"{NODES}/node{number}/meminfo"] = f"Node {number} MemFree:  {node.free >> 10} kB"
        for name, policy in self.policies.items():
            files |= policy_files(name, policy)
        for name, disk in self.disks.items():
            files |= disk_files(name, disk)
        return files

    def _meminfo(self) -> str:
        total, free = sum(node.memory for node in self.nodes), sum(node.free for node in self.nodes)
        hugetlb = sum(node.hugetlb for node in self.nodes)
        kbytes, ratio = self.overcommit.get("kbytes", 0), self.overcommit.get("ratio", 0)
        limit = kbytes << 10 if kbytes else (total - hugetlb) * ratio // 100
        figures: Mapping[str, int] = {
            "MemTotal": total,
            "MemFree": free,
            "MemAvailable": free,
            "SwapTotal": self.swap,
            "SwapFree": self.swap,
            "CommitLimit": limit + self.swap,
            "Committed_AS": self.committed,
            "Hugepagesize": self.sizes[0] if self.sizes else 0,
            "Hugetlb": hugetlb,
        }
        return "\n".join(f"{name}: {value >> 10} kB" for name, value in figures.items())


@dataclass(frozen=True, slots=True)
class KeptPath:
    """A file of a simulated host that is kept open: nothing but its path."""

    kernel: SimulatedKernel
    path: str

    def read(self) -> str:
        return self.kernel.read(self.path)

    def write(self, text: str) -> None:
        self.kernel.write(self.path, text)

    def close(self) -> None:
        pass


def size_in(folder: str) -> int:
    """hugepages-2048kB -> bytes."""
    return int(folder.removeprefix("hugepages-").removesuffix("kB")) << 10


def pool_files(folder: str, pools: Sequence[Pool]) -> dict[str, str]:
    """The counters of one pool, or of all nodes' together."""
    total, used = sum(pool.total for pool in pools), sum(pool.used for pool in pools)
    return {
        f"{folder}/nr_hugepages": str(total),
        f"{folder}/free_hugepages": str(total - used),
        f"{folder}/surplus_hugepages": str(total - sum(pool.asked for pool in pools)),
    }


def policy_files(name: str, policy: Policy) -> dict[str, str]:
    """One cpufreq policy."""
    folder = f"{POLICIES}/{name}"
    preferences = {
        f"{folder}/energy_performance_preference": policy.preference,
        f"{folder}/energy_performance_available_preferences": " ".join(PREFERENCES),
        f"{folder}/scaling_driver": "intel_pstate",
    }
    return {
        **(preferences if policy.epp else {}),
        f"{folder}/scaling_governor": policy.governor,
        f"{folder}/scaling_available_governors": " ".join(policy.offered),
        f"{folder}/related_cpus": " ".join(map(str, policy.cpus)),
    }


def in_brackets(chosen: str, offered: Sequence[str]) -> str:
    """The choices as such files list them."""
    return " ".join(f"[{word}]" if word == chosen else word for word in offered)


def disk_files(name: str, disk: Disk) -> dict[str, str]:
    """One block device."""
    return {
        f"sys/block/{name}/queue/scheduler": in_brackets(disk.scheduler, disk.offered),
        f"sys/block/{name}/queue/read_ahead_kb": str(disk.read_ahead),
        f"sys/block/{name}/diskseq": str(disk.diskseq),
        f"sys/block/{name}/hidden": str(int(disk.hidden)),
    }


def demo_host() -> SimulatedKernel:
    """What `kerntuned --demo` shows: two NUMA nodes of 64 GiB, 8 CPUs, two NVMe drives and a disk."""
    kernel = SimulatedKernel([Node(64 << 30, programs=4 << 30), Node(64 << 30, programs=2 << 30)])
    kernel.policies = {f"policy{cpu}": Policy((cpu,), epp="balance_performance") for cpu in range(8)}
    for number in range(2):
        kernel.plug(f"nvme{number}n1", by_id=f"nvme-Simulated_SSD_{number}")
    kernel.plug("sda", scheduler="mq-deadline", offered=("none", "mq-deadline", "bfq"), by_id="ata-Simulated_HDD")
    return kernel
