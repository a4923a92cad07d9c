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

from kerntune.globs import natural_sort_key
from kerntune.kernel.files import KernelError, is_writable
from kerntune.kernel.simulated_pools import Node, Pool, Resizing, node_meminfo, pool_files

__all__ = ["Disk", "Node", "PlainFile", "Policy", "SimulatedKernel"]

MODULES = ("none", "mq-deadline", "kyber", "bfq")
GOVERNORS = ("performance", "powersave", "ondemand", "conservative", "userspace", "schedutil")
PREFERENCES = ("default", "performance", "balance_performance", "balance_power", "power")
CPUS = "sys/devices/system/cpu"
POLICIES = f"{CPUS}/cpufreq"
NAMELESS = "nameless"  # a preference of the firmware that the driver has no name for; a read gives EINVAL
POOLS = "sys/kernel/mm/hugepages"
NODES = "sys/devices/system/node"
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") >> 10
ADMIN_RESERVE = "proc/sys/vm/admin_reserve_kbytes"
USER_RESERVE = "proc/sys/vm/user_reserve_kbytes"


@dataclass(slots=True)
class Disk:
    """A block device and the scheduler it has; `offered` as the file lists them, none where there is no queue."""

    scheduler: str = "none"
    offered: tuple[str, ...] = ("none", "mq-deadline")
    by_id: str = ""
    queue: int = 0  # lives as long as the drive is plugged
    diskseq: int = 0  # another one for each medium
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
    driver: str = "intel_pstate"
    firmware: str = ""  # the preference that `default` brings back

    def __post_init__(self) -> None:
        self.firmware = self.firmware or self.epp

    @property
    def preference(self) -> str:
        """The governor performance covers what was preferred."""
        return "performance" if self.governor == "performance" else self.epp


@dataclass(slots=True)
class PlainFile:
    """A file without effects: it holds a whole number, or one of its words, which it lists."""

    value: str
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return in_brackets(self.value, self.words) if self.words else self.value

    def takes(self, text: str) -> bool:
        return text in self.words if self.words else text.isdecimal()


@dataclass(slots=True)
class SimulatedKernel:
    """The files of such a host; `journal` is every write that was accepted or refused, in order.

    `plain` are files by their paths. A kernel without them has no sysctls and no transparent huge pages.
    """

    nodes: list[Node]
    disks: dict[str, Disk] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)
    overcommit: dict[str, int] = field(default_factory=lambda: {"memory": 0, "ratio": 50, "kbytes": 0})
    plain: dict[str, PlainFile] = field(default_factory=dict)
    admin_reserve: int = 8192  # KiB
    user_reserve: int = 131072  # KiB
    committed: int = 2 << 30
    swap: int = 0
    sizes: tuple[int, ...] = (2 << 20, 1 << 30)
    borrow: dict[int, int] = field(default_factory=dict)  # pages by their size
    reserved: dict[int, int] = field(default_factory=dict)  # pages that programs were promised, by their size
    # Up to Linux 6.13 a number for one node is taken for more than it says by the surplus pages of the others.
    counts_foreign_surplus: bool = True
    refuse: dict[str, int] = field(default_factory=dict)
    ignore: set[str] = field(default_factory=set)
    late: dict[str, int] = field(default_factory=dict)
    compaction: int = 0
    pace: float = 0.0  # seconds that a write to a pool takes
    journal: list[tuple[str, str]] = field(default_factory=list)
    before_write: Callable[[str, str], None] | None = None
    has_diskseq: bool = True  # since 5.15
    simulated: bool = True
    _seq: int = 0
    _turns: dict[tuple[str, int], int] = field(default_factory=dict)
    _waiting: dict[str, tuple[int, str]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        for size in self.sizes:
            self._pools(size)

    def plug(self, name: str, **disk: object) -> None:
        """Add a drive; the same name later is another drive."""
        self._seq += 1
        numbers = {"queue": self._seq, "diskseq": self._seq}
        self.disks[name] = Disk(**{**numbers, **disk})  # type: ignore[arg-type]  # the fields of Disk

    def change_medium(self, name: str) -> None:
        """Put another medium into a drive: its queue stays, with all values (disk_check_events in block/genhd.c)."""
        self._seq += 1
        self.disks[name].diskseq = self._seq

    def unplug(self, name: str) -> None:
        del self.disks[name]

    def read(self, path: str) -> str:
        with self._lock:
            self._obey_late(path)
            files = self._files_around(path)
            if path not in files:
                raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            if files[path] == NAMELESS:
                raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
            return files[path]

    def glob(self, pattern: str) -> Sequence[str]:
        with self._lock:
            wanted = pattern.split("/")
            linked = self.policies.values() if pattern.endswith("/cpufreq") else ()
            links = [link for policy in linked for link in cpu_links(policy)]
            found = {
                "/".join(parts[: len(wanted)])
                for parts in (path.split("/") for path in (*self._files(), *links))
                if len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))
            }
        return sorted(found, key=natural_sort_key)

    def links(self, device: str) -> Sequence[str]:
        disk = self.disks.get(device)
        return [f"by-id/{disk.by_id}"] if disk and disk.by_id else []

    def identity(self, path: str) -> str:
        with self._lock:
            match path.split("/"):
                case ["sys", "block", name, "queue"] if name in self.disks:
                    return str(self.disks[name].queue)
                case ["sys", "devices", "system", "cpu", "cpufreq", name] if name in self.policies:
                    return name
                case ["sys", "devices", "system", "cpu", _, "cpufreq"]:
                    return next((name for name, policy in self.policies.items() if path in cpu_links(policy)), "")
        return ""

    def write(self, path: str, text: str) -> None:
        if self.before_write:
            self.before_write(path, text)
        if self.pace and path.endswith("/nr_hugepages"):
            time.sleep(self.pace)
        with self._lock:
            self.journal.append((path, text))
            if code := self.refuse.get(path, 0 if is_writable(path) else errno.EPERM):
                raise KernelError(code, os.strerror(code), path)
            if path in self.ignore:
                return
            if path in self.late:
                self._waiting[path] = (self.late[path], text)
                return
            self._obey(path, text)

    def open(self, path: str, *, writable: bool = False) -> SimulatedFile:
        if writable and (code := self.refuse.get(path, 0 if is_writable(path) else errno.EPERM)):
            raise KernelError(code, os.strerror(code), path)
        self.read(path)
        return SimulatedFile(self, path)

    def _obey_late(self, path: str) -> None:
        """Let a value that was written late take effect, after so many more reads of its file."""
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
        elif path in self.plain:
            self._set_plain(path, text)
        elif found := setters.get(parts[-1]):
            setter, depth = found
            setter(parts[depth], path, text)
        elif path not in self._files_around(path):
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        elif parts[-1] == "nr_overcommit_hugepages":
            self.borrow[size_in(parts[4])] = int(text)
        elif path.startswith(NODES):
            self._resizing(size_in(parts[6])).to(int(text), int(parts[4].removeprefix("node")))
        else:
            self._resizing(size_in(parts[4])).to(int(text))

    def _set_overcommit(self, name: str, path: str, text: str) -> None:
        """Ratio and kilobytes set each other to 0 (mm/util.c)."""
        value = int(text)
        if name == "memory" and value not in (0, 1, 2):
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        self.overcommit[name] = value
        if name in ("ratio", "kbytes"):
            self.overcommit["kbytes" if name == "ratio" else "ratio"] = 0

    def _set_plain(self, path: str, text: str) -> None:
        if not self.plain[path].takes(text):
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        self.plain[path].value = text

    def _set_scheduler(self, name: str, path: str, text: str) -> None:
        disk = self.disks.get(name)
        if disk is None:
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if text not in (*disk.offered, *MODULES) or not disk.offered:
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
        """Set a governor. The policy of an offline CPU is busy; a governor in a module loads when it is named."""
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
        """Set a preference. An offline CPU is busy, and so is one whose governor decides."""
        policy = self.policies.get(name)
        if policy is None or not policy.epp:
            raise KernelError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not policy.online or (policy.governor == "performance" and text != "performance"):
            raise KernelError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        if text not in PREFERENCES:
            raise KernelError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        if policy.governor != "performance":
            policy.epp = policy.firmware if text == "default" else text

    def take(self, number: int, count: int, size: int) -> int:
        """Let programs on a node have more huge pages: those of its pool, then borrowed ones; return how many they get.

        dequeue_hugetlb_folio and alloc_surplus_hugetlb_folio of mm/hugetlb.c.
        """
        with self._lock:
            node, pools = self.nodes[number], self._pools(size)
            pool = pools[number]
            for taken in range(count):
                free = sum(each.free for each in pools) - self.reserved.get(size, 0)
                if pool.free and free > 0:
                    pool.used += 1
                elif self._may_borrow(size) and node.give(size):
                    pool.total, pool.surplus, pool.used = pool.total + 1, pool.surplus + 1, pool.used + 1
                else:
                    return taken
            return count

    def reserve(self, count: int, size: int) -> bool:
        """Promise a program that many pages (hugetlb_acct_memory), borrowed ones too; below 0 they are let go."""
        with self._lock:
            before = self.reserved.get(size, 0)
            lacking = before + count - sum(pool.free for pool in self._pools(size))
            if count > 0 and lacking > self.borrow.get(size, 0) - sum(pool.surplus for pool in self._pools(size)):
                return False
            for _ in range(lacking if count > 0 else 0):
                self._resizing(size).borrow()
            self.reserved[size] = before + count
            for _ in range(max(0, -count)):
                self._resizing(size).return_surplus()
            return True

    def _may_borrow(self, size: int) -> bool:
        return sum(pool.surplus for pool in self._pools(size)) < self.borrow.get(size, 0)

    def _resizing(self, size: int) -> Resizing:
        return Resizing(self.nodes, size, self._turns, self.counts_foreign_surplus, self.reserved.get(size, 0))

    def _pools(self, size: int) -> list[Pool]:
        return [node.pools.get(size) or node.pools.setdefault(size, Pool()) for node in self.nodes]

    def _files_around(self, path: str) -> Mapping[str, str]:
        """Return the files of the policy, drive or pools that `path` belongs to (there may be hundreds), else all."""
        if path in self.plain:
            return {path: str(self.plain[path])}
        parts = path.split("/")
        if found := next((size for size in self.sizes if f"hugepages-{size >> 10}kB" in parts), None):
            return self._node_files(found) if path.startswith(NODES) else self._pool_files(found)
        if path == "proc/meminfo":
            return {path: self._meminfo()}
        if parts[0] == "proc":
            return self._settings()
        if path.startswith(f"{POLICIES}/") and (policy := self.policies.get(parts[5])):
            if not policy.online:
                raise KernelError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            return policy_files(parts[5], policy)
        if path.startswith("sys/block/") and (disk := self.disks.get(parts[2])):
            return self._disk_files(parts[2], disk)
        return self._files()

    def _files(self) -> dict[str, str]:
        """Return every file as it would be read now."""
        files = {
            "proc/meminfo": self._meminfo(),
            **self._settings(),
            **{path: str(file) for path, file in self.plain.items()},
        }
        for size in self.sizes:
            files |= self._pool_files(size) | self._node_files(size)
        for number, node in enumerate(self.nodes):
            files[f"{NODES}/node{number}/meminfo"] = node_meminfo(number, node)
        for name, policy in self.policies.items():
            files |= policy_files(name, policy)
        for name, disk in self.disks.items():
            files |= self._disk_files(name, disk)
        return files

    def _disk_files(self, name: str, disk: Disk) -> dict[str, str]:
        files = disk_files(name, disk)
        if not self.has_diskseq:
            del files[f"sys/block/{name}/diskseq"]
        return files

    def _settings(self) -> dict[str, str]:
        """Return the files below /proc/sys."""
        return {
            "proc/sys/kernel/osrelease": "6.1.0-simulated",
            "proc/sys/vm/compact_memory": "0",
            ADMIN_RESERVE: str(self.admin_reserve),
            USER_RESERVE: str(self.user_reserve),
            **{f"proc/sys/vm/overcommit_{name}": str(value) for name, value in self.overcommit.items()},
        }

    def _pool_files(self, size: int) -> dict[str, str]:
        """Return the files of the pool of a page size."""
        folder, pools = f"hugepages-{size >> 10}kB", self._pools(size)
        files = pool_files(f"{POOLS}/{folder}", pools)
        files[f"{POOLS}/{folder}/nr_overcommit_hugepages"] = str(self.borrow.get(size, 0))
        files[f"{POOLS}/{folder}/resv_hugepages"] = str(self.reserved.get(size, 0))
        return files

    def _node_files(self, size: int) -> dict[str, str]:
        """Return the same files of each node."""
        files: dict[str, str] = {}
        for number, pool in enumerate(self._pools(size)):
            files |= pool_files(f"{NODES}/node{number}/hugepages/hugepages-{size >> 10}kB", [pool])
        return files

    def _meminfo(self) -> str:
        total, free = sum(node.memory for node in self.nodes), sum(node.free for node in self.nodes)
        cache = sum(node.cache for node in self.nodes)
        hugetlb = sum(node.hugetlb for node in self.nodes)
        kbytes, ratio = self.overcommit.get("kbytes", 0), self.overcommit.get("ratio", 0)
        # The kernel's product is unsigned: a ratio below 0 limits nothing.
        product = (total - hugetlb) * ratio if ratio >= 0 else 1 << 64
        limit = kbytes << 10 if kbytes else product // 100
        figures: Mapping[str, int] = {
            "MemTotal": total,
            "MemFree": free,
            "MemAvailable": free + cache,
            "SwapTotal": self.swap,
            "SwapFree": self.swap,
            "CommitLimit": limit + self.swap,
            "Committed_AS": self.committed,
            "Hugepagesize": self.sizes[0] if self.sizes else 0,
            "Hugetlb": hugetlb,
        }
        return "\n".join(f"{name}: {value >> 10} kB" for name, value in figures.items())


@dataclass(frozen=True, slots=True)
class SimulatedFile:
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


def cpu_links(policy: Policy) -> list[str]:
    """Return the links of CPUs to their policy; they stay when the CPUs go offline."""
    return [f"{CPUS}/cpu{number}/cpufreq" for number in policy.cpus]


def policy_files(name: str, policy: Policy) -> dict[str, str]:
    """Return the files of a cpufreq policy."""
    folder = f"{POLICIES}/{name}"
    preferences = {
        f"{folder}/energy_performance_preference": policy.preference,
        f"{folder}/energy_performance_available_preferences": " ".join(PREFERENCES),
    }
    return {
        **(preferences if policy.epp else {}),
        f"{folder}/scaling_driver": policy.driver,
        f"{folder}/scaling_governor": policy.governor,
        f"{folder}/scaling_available_governors": " ".join(policy.offered),
        f"{folder}/related_cpus": " ".join(map(str, policy.cpus)),
    }


def in_brackets(chosen: str, offered: Sequence[str]) -> str:
    """Return the choices as such files list them."""
    return " ".join(f"[{word}]" if word == chosen else word for word in offered)


def disk_files(name: str, disk: Disk) -> dict[str, str]:
    """Return the files of a block device."""
    return {
        f"sys/block/{name}/queue/scheduler": in_brackets(disk.scheduler, disk.offered) or disk.scheduler,
        f"sys/block/{name}/queue/read_ahead_kb": str(disk.read_ahead),
        f"sys/block/{name}/diskseq": str(disk.diskseq),
        f"sys/block/{name}/hidden": str(int(disk.hidden)),
    }
