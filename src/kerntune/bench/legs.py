"""The workloads: their names, the legs that a change affects, and what each leg needs of the host."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from kerntune.bench import tensors
from kerntune.bench.file import ModelFile
from kerntune.bench.traps import TAKEN, out_of_reach
from kerntune.errors import NotSupported, OverLimit, Usage
from kerntune.run import allocator
from kerntune.units import mib

MEMORY: Final = ("copy", "mmap", "torch")
NAMES: Final = (*MEMORY, "io", "cpu")  # without "cmd", which is measured alone
READ_A_FILE: Final = frozenset({*MEMORY, "io"})
HOGS: Final = 3  # busy loops on the CPU of the cpu leg
WAKES: Final = 400
PERCENT: Final = 60  # of the available memory, which file, copy and pool may take

# The legs that are measured when the user names none, by the tunable that is set.
BEARS_ON: Final = {
    "hugepages": ("copy", "mmap"),
    "hugepages-overcommit": ("copy", "mmap"),
    "thp": ("copy", "mmap"),
    "overcommit": ("copy", "mmap"),
    "io-scheduler": ("io",),
    "read-ahead": ("io",),
    "cpu-governor": ("copy", "cpu"),
    "cpu-epp": ("copy", "cpu"),
}
SHIELD: Final = ("cpu",)
ANY: Final = ("copy", "mmap", "io")  # for a tunable that has no row

# glibc maps an allocation with its own header, and rounds it up to pages (malloc/malloc.c, sysmalloc_mmap).
MALLOC_HEADER: Final = 4096 + 80
ZIP: Final = b"PK\3\4"  # the first bytes of a file of torch.save
MAPPED_FROM: Final = 128 << 10  # bytes; smaller allocations share the heap (M_MMAP_THRESHOLD in mallopt(3))
FOR_THE_INTERPRETER: Final = 96
IN_MEMORY: Final = frozenset({"tmpfs", "ramfs", "hugetlbfs"})


@dataclass(frozen=True, slots=True)
class Workload:
    """A leg: its name, and a description of its work.

    `on_pages` is the figure that shows the use of huge pages, "" where these are not compared. `note` says why the
    change does not affect the leg, or "".
    """

    name: str
    what: str
    on_pages: str = ""
    note: str = ""


def chosen(
    named: Iterable[str], tunables: Iterable[str], *, has_shield: bool, has_command: bool, for_torch: bool = False
) -> list[str]:
    """Return the names of the legs: those that were named, else those that the change affects. Raise Usage.

    `for_torch` says that PyTorch can load the file, here and now.
    """
    memory = MEMORY if for_torch else MEMORY[:2]
    asked = [leg for name in named for leg in (memory if name == "memory" else (name,))]
    if has_command and asked:
        raise Usage(f"a command is timed alone, and not with --leg {asked[0]}", "Leave out --leg, or -- CMD")
    if has_command:
        return ["cmd"]
    bearing = [leg for name in tunables for leg in BEARS_ON.get(name, ANY)]
    if for_torch and "copy" in bearing:
        bearing.append("torch")
    found = asked or [*bearing, *(SHIELD if has_shield else ())]
    return [name for name in NAMES if name in found]


def pages_figure(leg: str, malloc: int) -> str:
    """Return the figure that must show huge pages in a leg after the change, or "" for none.

    `malloc` is the value of allocator.hugetlb for the change.
    """
    if malloc == allocator.TRANSPARENT:
        return {"copy": "anon_huge_bytes", "torch": "anon_huge_bytes"}.get(leg, "")
    return {"copy": "hugetlb_bytes", "torch": "hugetlb_bytes", "cmd": TAKEN}.get(leg, "") if malloc else ""


def workload(
    name: str, file: ModelFile | None, tunables: Iterable[str], *, malloc: int, command: str, cpus: str
) -> Workload:
    """Return a leg by its name; `cpus` names the CPUs of the cpu leg and its busy loops, `malloc` is as above."""
    if name == "cmd":
        return Workload(name, f"run {command}", pages_figure(name, malloc))
    if name == "cpu":
        return Workload(name, f"wake up again and again; {HOGS} busy loops {cpus}")
    assert file
    model = described(file)
    what = {
        "copy": f"copy {model} into memory",
        "mmap": f"map {model} and touch each page",
        "torch": f"load the weights in {model} with PyTorch",
        "io": f"read {model} from {', '.join(file.disk.drives) or 'its disk'}, mapped",
    }
    names = list(tunables)
    notes = [out_of_reach(name, names), holes(file) if name == "io" else ""]
    return Workload(name, what[name], pages_figure(name, malloc), "; ".join(filter(None, notes)))


def holes(file: ModelFile) -> str:
    """Return the sentence that not all of a file lies on the disk, or ""."""
    if file.is_whole:
        return ""
    return f"{mib(file.allocated)} of {mib(file.size)} MiB lie on the disk: the file has holes, or is compressed"


def described(file: ModelFile) -> str:
    """Return a file's name and size as text."""
    return f"{mib(file.size)} MiB of random data" if file.made_up else f"{file.name} ({mib(file.size)} MiB)"


def loads_with_torch(file: ModelFile) -> bool:
    """Return True if PyTorch is installed, and the file is an archive as torch.save writes it."""
    return find_spec("torch") is not None and os.pread(file.fd, len(ZIP), 0) == ZIP


def check_torch(names: Iterable[str], file: ModelFile) -> None:
    """Raise NotSupported for a leg that needs PyTorch without it, Usage for a file that PyTorch did not write."""
    if "torch" not in names or loads_with_torch(file):
        return
    if find_spec("torch") is None:
        raise NotSupported(
            f"{sys.executable} has no PyTorch", "Time your own program: kerntune bench -- python load.py"
        )
    raise Usage(f"{described(file)} is no file of torch.save", "Name one, or leave out --leg torch")


def check_room(names: Iterable[str], size: int, *, pool: int, available: int) -> None:
    """Raise OverLimit where a file of `size` bytes, its copy and the pool would leave others too little memory."""
    copy = size if set(names) & {"copy", "torch"} else 0
    takes = size + copy + pool
    if takes > available * PERCENT // 100:
        raise OverLimit(
            f"the file, its copy and the huge pages take {mib(takes)} MiB; {PERCENT} % of the memory that is available "
            f"are {mib(available * PERCENT // 100)} MiB",
            "Measure a smaller file (--size 512M), ask for fewer pages, or end what takes memory",
        )


def pages_for(buffers: Iterable[int], page_size: int) -> int:
    """Return how many huge pages hold buffers of these sizes in bytes, and the interpreter's own memory.

    glibc takes huge pages for allocations as large as one, and for the heap with all small ones (malloc/malloc.c).
    """
    sizes = list(buffers)
    mapped = sum(-(-(size + MALLOC_HEADER) // page_size) for size in sizes if size >= page_size)
    heap = sum(size for size in sizes if size < MAPPED_FROM)
    return mapped + -(-heap // page_size) + FOR_THE_INTERPRETER


def foreseen(leg: Workload, file: ModelFile, *, page_size: int, free: int) -> str:
    """Return why `free` huge pages will hold little of a load, and how many would hold it; "" if they hold much."""
    if leg.on_pages != "hugetlb_bytes" or not page_size:
        return ""
    sizes = [part.size for part in tensors.parts_of(file.fd, file.size)]
    between = sum(size for size in sizes if MAPPED_FROM <= size < page_size)
    if between > file.size // 2:
        return (
            f"{leg.name}: {mib(between)} of {mib(file.size)} MiB are tensors of less than {mib(page_size)} MiB, for "
            "which glibc takes no huge pages"
        )
    if free * page_size >= file.size:
        return ""
    return (
        f"{leg.name}: {free} pages of {mib(page_size)} MiB hold {mib(free * page_size)} of {mib(file.size)} MiB, and "
        f"the rest comes from other memory; hugepages={pages_for(sizes, page_size)} can hold this load"
    )


def check_disk(names: Iterable[str], file: ModelFile) -> None:
    """Raise NotSupported for a read from disk of a file that does not lie on a disk."""
    where = file.disk.file_system
    if "io" in names and where in IN_MEMORY:
        raise NotSupported(
            f"{described(file)} would be in memory ({where}), and there is no disk to read from",
            "Name a file on a disk, or the folder for the random data: --dir /var/tmp",
        )
