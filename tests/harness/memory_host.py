"""A host whose memory programs commit and use, independent of the code under test: what the kernel grants and shows.

Commits and use are apart. The rules are those of mm/util.c (vm_commit_limit, __vm_enough_memory) and of
Documentation/mm/overcommit-accounting.rst; nothing here reads anything of kerntune.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

MIB, GIB = 1 << 20, 1 << 30
HEURISTIC, ALWAYS, NEVER = 0, 1, 2
# percpu_counter with the batch of mm_compute_batch in mode never: what is compared is off by so much of RAM at most.
ERROR_PART: Final = 256


@dataclass
class MemoryHost:
    """Bytes, but the reserves and the limit, which are KiB as in /proc/sys/vm.

    `zram_ratio` is what zram makes of what comes; `swapped` bytes are in it from the start, by `swapped_ratio`.
    `uncounted` is what the kernel, drivers and MAP_NORESERVE use, of which no commit tells. `error` is the part of the
    largest possible error by which the kernel counts commits too high (above 0) or too low: no more than what was
    committed and given back since mode never was written, for that has each CPU add up its own count.
    """

    total: int
    hugetlb: int = 0
    cpus: int = 32
    uncounted: int = 0
    disk_swap: int = 0
    zram: int = 0
    zram_ratio: float = 3.0
    swapped: int = 0
    swapped_ratio: float = 3.0
    arc: int = 0
    arc_min: int = 0
    error: float = 0.0
    mode: int = ALWAYS
    ratio: int = 95
    kbytes: int = 0
    admin_reserve: int = 8192
    user_reserve: int = 131072
    committed: int = 0
    used: int = 0
    refusals: int = 0
    moved: int = 0
    least_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.least_left = self.left

    @property
    def ram(self) -> int:
        """What huge pages leave."""
        return self.total - self.hugetlb

    @property
    def zram_gain(self) -> int:
        """What a full zram saves: what it holds, less the RAM that it takes."""
        return self._saved + int((self.zram - self.swapped) * (1 - 1 / self.zram_ratio))

    @property
    def _saved(self) -> int:
        return int(self.swapped * (1 - 1 / self.swapped_ratio))

    @property
    def left(self) -> int:
        """What can still be used before the OOM killer comes; the ARC gives way, but for its least size."""
        return self.ram + self.disk_swap + self.zram_gain - self.arc_min - self.uncounted - self.used

    @property
    def is_lost(self) -> bool:
        """Whether the OOM killer has come."""
        return self.least_left < 0

    @property
    def limit(self) -> int:
        """CommitLimit, which adds all swap, zram too."""
        base = self.kbytes << 10 if self.kbytes else self.ram * self.ratio // 100
        return base + self.disk_swap + self.zram

    def room(self, addresses: int, *, root: bool) -> int:
        """Return the largest request that is granted to a process with so much address space; below 0 when none is."""
        if self.mode == ALWAYS:
            return 1 << 62
        if self.mode == HEURISTIC:
            return self.total + self.disk_swap + self.zram
        reserves = (0 if root else self.admin_reserve << 10) + min(addresses // 32, self.user_reserve << 10)
        error = int(self.error * min(self.moved, self.total // ERROR_PART))
        return self.limit - reserves - self.committed - error - 1

    def commit(self, size: int) -> None:
        """Count what was granted, or below 0 what was given back."""
        self.committed += size
        self.moved += abs(size)

    def use(self, size: int) -> None:
        """Take pages of RAM or swap; below 0: give them back."""
        self.used += size
        self.least_left = min(self.least_left, self.left)

    def pin(self, size: int) -> None:
        """Take memory that nobody has committed, or give it back."""
        self.uncounted += size
        self.least_left = min(self.least_left, self.left)

    def write(self, name: str, value: int) -> None:
        """Write a file of /proc/sys/vm/overcommit_*: kilobytes and ratio set each other to 0."""
        setattr(self, {"memory": "mode"}.get(name, name), value)
        if name in ("ratio", "kbytes"):
            setattr(self, "kbytes" if name == "ratio" else "ratio", 0)
        if (name, value) == ("memory", NEVER):
            self.moved = 0

    @property
    def _in_swap(self) -> tuple[int, int, int]:
        """What is in zram, the RAM that this takes, and what is on disk.

        The kernel begins to swap when RAM is full, and zram comes first.
        """
        over = max(0, self.uncounted + self.used + self.arc_min - self._saved - self.ram)
        free, gain = self.zram - self.swapped, 1 - 1 / self.zram_ratio
        stored = min(free, int(over / gain) if gain else free) if over else 0
        taken = int(self.swapped / self.swapped_ratio) + int(stored / self.zram_ratio)
        return self.swapped + stored, taken, max(0, over - int(stored * gain))

    def files(self) -> dict[str, str]:
        """Return what the kernel shows."""
        in_zram, taken, on_disk = self._in_swap
        in_ram = self.uncounted + self.used - on_disk - in_zram + taken
        arc = max(self.arc_min, min(self.arc, self.ram - in_ram))
        available = max(0, self.ram - in_ram - arc)
        swap = self.disk_swap + self.zram
        rows = {
            "MemTotal": self.total,
            "MemFree": available,
            "MemAvailable": available,
            "SwapCached": 0,
            "SwapTotal": swap,
            "SwapFree": swap - on_disk - in_zram,
            "CommitLimit": self.limit,
            "Committed_AS": self.committed,
            "Hugetlb": self.hugetlb,
        }
        devices = [("/dev/zram0", self.zram, in_zram)] if self.zram else []
        devices += [("/dev/vdb", self.disk_swap, on_disk)] if self.disk_swap else []
        swaps = "".join(f"{name} partition {size >> 10} {used >> 10} -2\n" for name, size, used in devices)
        files = {
            "proc/meminfo": "".join(f"{name}: {size >> 10} kB\n" for name, size in rows.items()),
            "proc/swaps": f"Filename Type Size Used Priority\n{swaps}",
        }
        if self.zram:
            files["sys/block/zram0/mm_stat"] = f"{in_zram} 0 {taken} 0 0 0 0 0 0"
        if self.arc:
            files["proc/spl/kstat/zfs/arcstats"] = (
                f"13 1 0x01 147 39984 1 2\nname type data\nc_min 4 {self.arc_min}\nsize 4 {arc}\n"
            )
        return files


@dataclass
class Program:
    """A process: what it has committed and uses, and its address space, reserved addresses (PROT_NONE) with it."""

    host: MemoryHost
    root: bool = False
    addresses: int = 20 * MIB
    committed: int = 0
    used: int = 0

    @property
    def room(self) -> int:
        """The largest request of this program that is granted."""
        return self.host.room(self.addresses, root=self.root)

    def ask(self, size: int) -> bool:
        """Commit so much, as mmap does."""
        is_granted = size <= self.room
        if is_granted:
            self._commit(size)
        self.host.refusals += not is_granted
        return is_granted

    def touch(self, size: int) -> None:
        """Use what was committed."""
        size = min(size, self.committed - self.used)
        self.used += size
        self.host.use(size)

    def take(self, size: int, step: int = 16 * MIB, *, touched: bool = True) -> bool:
        """Ask and use in steps until it has so much, or is refused; tell whether it was refused."""
        granted = self._granted(size // step, step)
        self._commit(granted * step)
        if touched:
            self.touch(granted * step)
        refused = granted < size // step
        self.host.refusals += refused
        return refused

    def _granted(self, wanted: int, step: int) -> int:
        """Return how many steps the kernel grants; a larger address space leaves more to others."""
        low, high = 0, wanted
        while low < high:
            steps = (low + high + 1) // 2
            room = self.host.room(self.addresses + (steps - 1) * step, root=self.root)
            low, high = (steps, high) if steps * step <= room else (low, steps - 1)
        return low

    def _commit(self, size: int) -> None:
        self.committed += size
        self.addresses += size
        self.host.commit(size)

    def fork(self) -> Program | None:
        """Return a child, for which all is committed once more and which shares each page until it writes."""
        if self.committed > self.room:
            self.host.refusals += 1
            return None
        self.host.commit(self.committed)
        return Program(self.host, self.root, self.addresses, self.committed)

    def write_shm(self, size: int) -> bool:
        """Write a file in /dev/shm and map it: False for ENOSPC, and what was written stays."""
        granted = max(0, min(size, self.room))
        self._commit(granted)
        self.touch(granted)
        self.host.refusals += granted < size
        return granted == size

    def free(self, size: int) -> None:
        """Unmap what is committed; what is used goes first."""
        size = min(size, self.committed)
        used = min(size, self.used)
        self.committed -= size
        self.addresses -= size
        self.used -= used
        self.host.commit(-size)
        self.host.use(-used)

    def exit(self) -> None:
        """End, and give all back."""
        self.free(self.committed)


def started(host: MemoryHost, size: int, *, addresses: int = 0, root: bool = False) -> Program | None:
    """Return a new process that has committed and uses so much, None when it was refused."""
    program = Program(host, root, addresses or 20 * MIB)
    if not program.ask(size):
        return None
    program.touch(size)
    return program
