"""The host's memory and who holds huge pages, read from /proc."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kerntune.kernel.files import KernelView, find, number
from kerntune.kernel.processes import printable
from kerntune.model import Memory

VM = "proc/sys/vm"


class Holder(NamedTuple):
    """A process and the bytes it has in huge pages (HugetlbPages in /proc/PID/status)."""

    pid: int
    command: str
    size: int


def meminfo(kernel: KernelView) -> dict[str, int]:
    """What /proc/meminfo says."""
    return parse_meminfo(find(kernel, "proc/meminfo") or "")


def parse_meminfo(text: str) -> dict[str, int]:
    """The lines of /proc/meminfo as name -> bytes; those without a unit (HugePages_Total) stay counts."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        value, _, unit = rest.strip().partition(" ")
        if value.isdigit():
            found[name] = int(value) * (1024 if unit == "kB" else 1)
    return found


def read_memory(kernel: KernelView) -> Memory:
    """One snapshot of the figures that the limits rest on."""
    mode = find(kernel, f"{VM}/overcommit_memory")
    return memory_of(
        find(kernel, "proc/meminfo") or "",
        find(kernel, "proc/swaps") or "",
        mode=int(mode) if mode is not None and mode.isdigit() else None,
        ratio=number(kernel, f"{VM}/overcommit_ratio"),
        kbytes=number(kernel, f"{VM}/overcommit_kbytes"),
    )


def memory_of(meminfo: str, swaps: str, *, mode: int | None, ratio: int, kbytes: int) -> Memory:
    """The figures in the texts of /proc/meminfo and /proc/swaps, with vm.overcommit_*."""
    info = parse_meminfo(meminfo)
    return Memory(
        total=info.get("MemTotal", 0),
        available=info.get("MemAvailable", 0),
        free=info.get("MemFree", 0),
        hugetlb=info.get("Hugetlb", 0),
        swap_total=info.get("SwapTotal", 0),
        committed=info.get("Committed_AS", 0),
        commit_limit=info.get("CommitLimit", 0),
        overcommit_mode=mode,
        overcommit_ratio=ratio,
        overcommit_kbytes=kbytes,
        swap_free=max(0, info.get("SwapFree", 0) - free_zram(swaps)),
    )


def free_zram(swaps: str) -> int:
    """Bytes of swap that are free in /proc/swaps on zram, which is RAM again."""
    rows = (line.split() for line in swaps.splitlines()[1:])
    return sum(int(row[2]) - int(row[3]) for row in rows if len(row) > 3 and "/zram" in row[0]) * 1024


def default_page_size(kernel: KernelView) -> int:
    """The default huge page size in bytes (Hugepagesize in /proc/meminfo), 0 without huge pages."""
    return meminfo(kernel).get("Hugepagesize", 0)


def holders(kernel: KernelView) -> Sequence[Holder]:
    """The processes that have huge pages mapped, the largest first."""
    found = []
    for path in kernel.glob("proc/[0-9]*/status"):
        lines = (find(kernel, path) or "").splitlines()
        fields = {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}
        size = fields.get("HugetlbPages", "0").split()[0]
        if size.isdigit() and int(size):
            found.append(Holder(int(path.split("/")[1]), printable(fields.get("Name", "?")), int(size) * 1024))
    return sorted(found, key=lambda holder: -holder.size)
