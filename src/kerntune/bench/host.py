"""The facts about the host for a report, and those that make its figures doubtful; read only, below one root."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

import kerntune
from kerntune.kernel.files import HostKernel, KernelView, read_int, read_or_none
from kerntune.kernel.huge_pages import read_pool
from kerntune.kernel.memory import meminfo
from kerntune.units import parse_cpus

HOST: Final = Path("/")
CPU: Final = "sys/devices/system/cpu"
# Makers of virtual machines have these names in DMI, where the processor has no flag for it (arm64).
HYPERVISORS: Final = re.compile(r"QEMU|KVM|VMware|Xen|innotek|Parallels|OpenStack|Virtual Machine|Compute Engine|BHYVE")
# Columns of the first line of /proc/stat (Documentation/filesystems/proc.rst); the first two include the guests.
BUSY: Final = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq


def environment(root: Path = HOST) -> dict[str, object]:
    """Return where the measurement runs, by a fixed list of names; "" and 0 stand for unknown values."""
    kernel = HostKernel(root)
    cpuinfo = read_or_none(kernel, "proc/cpuinfo") or ""
    return {
        "kernel": read_or_none(kernel, "proc/sys/kernel/osrelease") or "",
        "architecture": read_or_none(kernel, "proc/sys/kernel/arch") or os.uname().machine,
        "cpu": _field(cpuinfo, "model name"),
        "cpus": len(parse_cpus(read_or_none(kernel, f"{CPU}/online") or "")),
        "numa_nodes": len(kernel.glob("sys/devices/system/node/node[0-9]*")),
        "memory_bytes": meminfo(kernel).get("MemTotal", 0),
        "virtualisation": virtualisation(kernel, cpuinfo),
        "python": ".".join(map(str, sys.version_info[:3])),
        "kerntune": kerntune.__version__,
        "glibc": glibc(),
    }


def virtualisation(kernel: KernelView, cpuinfo: str) -> str:
    """Return the maker of the virtual machine, "unknown" where it gives no name, and "" on real hardware."""
    maker, product = (read_or_none(kernel, f"sys/class/dmi/id/{name}") or "" for name in ("sys_vendor", "product_name"))
    named = " ".join(filter(None, (maker, product)))
    if "hypervisor" in _field(cpuinfo, "flags").split():
        return named or read_or_none(kernel, "sys/hypervisor/type") or "unknown"
    return named if HYPERVISORS.search(named) else read_or_none(kernel, "sys/hypervisor/type") or ""


def glibc() -> str:
    """Return the version of the running glibc, "" with another C library."""
    try:
        name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    except (ValueError, OSError):
        return ""
    return version if name == "glibc" else ""


def throttled(root: Path = HOST) -> int:
    """Return how often heat slowed CPUs down since boot: for differences only, as each CPU counts its package."""
    kernel = HostKernel(root)
    return sum(read_int(kernel, path) for path in kernel.glob(f"{CPU}/cpu[0-9]*/thermal_throttle/*_throttle_count"))


def cpu_seconds(root: Path = HOST) -> float:
    """Return the seconds that CPUs have worked since boot; guests' work is counted once."""
    words = (read_or_none(HostKernel(root), "proc/stat") or "").partition("\n")[0].split()[1:]
    return sum(int(words[column]) for column in BUSY if column < len(words)) / os.sysconf("SC_CLK_TCK")


def available_memory(root: Path = HOST) -> int:
    """Return the bytes that programs can still get, as the kernel estimates them."""
    return meminfo(HostKernel(root)).get("MemAvailable", 0)


def free_pages(page_size: int, root: Path = HOST) -> int:
    """Return how many huge pages of a size are still available; 0 where the kernel has no such size."""
    return read_pool(page_size, root).left


def used_pages(page_size: int, root: Path = HOST) -> int:
    """Return how many huge pages of a size are in use, including borrowed ones."""
    pool = read_pool(page_size, root)
    return pool.pages - pool.free


def _field(text: str, name: str) -> str:
    """Return the first value of a name in /proc/cpuinfo."""
    rows = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for key, _, value in rows if key.strip() == name), "")
