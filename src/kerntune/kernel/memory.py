"""The host's memory and the processes that hold huge pages, read from /proc."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from kerntune.kernel.files import KernelView, read_int, read_or_none
from kerntune.kernel.processes import printable
from kerntune.model import Memory

VM = "proc/sys/vm"
ARC = "proc/spl/kstat/zfs/arcstats"  # of OpenZFS


class Holder(NamedTuple):
    """A process and the bytes it has in huge pages (HugetlbPages in /proc/PID/status)."""

    pid: int
    command: str
    size: int


class Watermarks(NamedTuple):
    """The memory the kernel keeps free, and the sum of the low watermarks: bytes, over all zones of /proc/zoneinfo."""

    reserve: int
    low: int


def meminfo(kernel: KernelView) -> dict[str, int]:
    """Return the figures of /proc/meminfo."""
    return parse_meminfo(read_or_none(kernel, "proc/meminfo") or "")


def parse_meminfo(text: str) -> dict[str, int]:
    """Return the lines of /proc/meminfo as name -> bytes; lines without a unit (HugePages_Total) stay counts."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        value, _, unit = rest.strip().partition(" ")
        if value.isdigit():
            found[name] = int(value) * (1024 if unit == "kB" else 1)
    return found


def read_memory(kernel: KernelView) -> Memory:
    """Return one snapshot of the figures that the limits rest on."""
    mode = read_or_none(kernel, f"{VM}/overcommit_memory")
    swaps = read_or_none(kernel, "proc/swaps") or ""
    return memory_of(
        read_or_none(kernel, "proc/meminfo") or "",
        swaps,
        mode=int(mode) if mode is not None and mode.isdigit() else None,
        ratio=read_int(kernel, f"{VM}/overcommit_ratio"),
        kbytes=read_int(kernel, f"{VM}/overcommit_kbytes"),
        watermarks=read_watermarks(kernel),
        arcstats=read_or_none(kernel, ARC) or "",
        zram=[read_or_none(kernel, path) or "" for path in zram_files(swaps)],
    )


def zram_files(swaps: str) -> Sequence[str]:
    """Return the files that tell what the zram devices in /proc/swaps hold.

    See Documentation/admin-guide/blockdev/zram.rst.
    """
    names = (line.split()[0].rpartition("/")[2] for line in swaps.splitlines()[1:] if line.strip())
    return [f"sys/block/{name}/mm_stat" for name in names if name.startswith("zram")]


def read_watermarks(kernel: KernelView) -> Watermarks:
    """Return the watermarks of the host; they change with vm.min_free_kbytes and with plugged memory."""
    return watermarks_of(read_or_none(kernel, "proc/zoneinfo") or "")


def watermarks_of(zoneinfo: str) -> Watermarks:
    """Return the sums as calculate_totalreserve_pages in mm/page_alloc.c makes them."""
    reserve = low = 0
    for zone in zoneinfo.split("\nNode "):
        rows = dict(map(_row, zone.splitlines()))
        protection = max((int(word) for word in rows.get("protection:", "0").strip("()").split(", ")), default=0)
        reserve += min(int(rows.get("high", 0)) + protection, int(rows.get("managed", 0)))
        low += int(rows.get("low", 0))
    page = resource.getpagesize()
    return Watermarks(reserve * page, low * page)


def _row(line: str) -> tuple[str, str]:
    name, _, value = line.strip().partition(" ")
    return name, value.strip()


def shortage(info: Mapping[str, int], watermarks: Watermarks) -> int:
    """Return the bytes by which MemAvailable would be below 0, by si_mem_available in mm/show_mem.c."""
    if info.get("MemAvailable", 0):
        return 0
    cached = info.get("Active(file)", 0) + info.get("Inactive(file)", 0), info.get("KReclaimable", 0)
    there = info.get("MemFree", 0) + sum(size - min(size // 2, watermarks.low) for size in cached)
    return max(0, watermarks.reserve - there)


def memory_of(
    meminfo: str,
    swaps: str,
    *,
    mode: int | None,
    ratio: int,
    kbytes: int,
    watermarks: Watermarks,
    arcstats: str = "",
    zram: Sequence[str] = (),
) -> Memory:
    """Return the figures in the texts of the kernel's files, with vm.overcommit_*.

    `zram` has the texts of zram_files().
    """
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
        swap_free=free_swap(info, swaps, zram),
        short=shortage(info, watermarks),
        arc=spare_arc(arcstats),
    )


def free_swap(info: Mapping[str, int], swaps: str, zram: Sequence[str] = ()) -> int:
    """Return the bytes that swapping out can still free.

    They include pages that the kernel has read back and that keep their place in swap. A page in zram takes RAM again,
    only less. So the free space of zram counts as much as zram would save with it, but for no more than zram has saved.
    With zram, nothing tells where the pages in SwapCached have their place.
    """
    rows = [line.split() for line in swaps.splitlines()[1:]]
    free = [int(row[2]) - int(row[3]) for row in rows if len(row) > 3 and "/zram" in row[0]]
    if not free:
        return info.get("SwapFree", 0) + info.get("SwapCached", 0)
    held, taken = held_and_taken(zram)
    saved = max(0, held - taken)
    whole = sum(free) * 1024
    return max(0, info.get("SwapFree", 0) - whole) + min(saved, whole * saved // max(1, held))


def held_and_taken(stats: Iterable[str]) -> tuple[int, int]:
    """Return the bytes that zram holds and the bytes of RAM that they take (orig_data_size, mem_used_total)."""
    rows = [text.split() for text in stats]
    held, taken = (sum(int(row[column]) for row in rows if len(row) > 2) for column in (0, 2))
    return held, taken


def spare_arc(arcstats: str) -> int:
    """Return the bytes that ZFS gives back when memory is short, or 0 without ZFS; MemAvailable does not count them."""
    rows = (line.split() for line in arcstats.splitlines())
    found = {row[0]: int(row[2]) for row in rows if len(row) == 3 and row[2].isdigit()}
    return max(0, found.get("size", 0) - found.get("c_min", 0))


def default_page_size(kernel: KernelView) -> int:
    """Return the default huge page size in bytes (Hugepagesize in /proc/meminfo), or 0 without huge pages."""
    return meminfo(kernel).get("Hugepagesize", 0)


def holders(kernel: KernelView) -> Sequence[Holder]:
    """Return the processes that have huge pages mapped, the largest first."""
    found = []
    for path in kernel.glob("proc/[0-9]*/status"):
        lines = (read_or_none(kernel, path) or "").splitlines()
        fields = {name: rest.strip() for name, _, rest in (line.partition(":") for line in lines)}
        size = fields.get("HugetlbPages", "0").split()[0]
        if size.isdigit() and int(size):
            found.append(Holder(int(path.split("/")[1]), printable(fields.get("Name", "?")), int(size) * 1024))
    return sorted(found, key=lambda holder: -holder.size)
