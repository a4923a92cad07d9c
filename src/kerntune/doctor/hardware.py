"""Findings on what the host offers: huge pages, CPU frequency scaling, drives and their schedulers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from kerntune.doctor import boot_settings
from kerntune.doctor.files import Files, whole
from kerntune.doctor.types import Finding, Left, Severity
from kerntune.kernel.cpufreq import why_no_cpufreq
from kerntune.kernel.files import KernelView, read_int, read_or_none
from kerntune.kernel.memory import default_page_size, meminfo
from kerntune.model import Target
from kerntune.patterns import parse_pool
from kerntune.tunables.hugepages import POOLS, HugePages, folder_of
from kerntune.tunables.knobs import CPU_GOVERNOR, IO_SCHEDULER
from kerntune.tunables.scopes import POLICIES
from kerntune.units import spell_size

# These kernel parameters decide whether and how kerntune can set CPU frequencies.
CPU_PARAMETERS: Final = frozenset({"intel_pstate", "amd_pstate", "cpufreq.off", "cpufreq.default_governor"})
# A drive with a queue of its own in the hardware gains nothing from a scheduler in front of it.
FAST: Final = "none"


def huge_pages(files: Files, kernel: KernelView) -> Iterator[Finding]:
    """Yield whether the kernel has huge pages, and what its pools hold."""
    if why := HugePages().missing(kernel):
        fix = "use a kernel with CONFIG_HUGETLBFS=y (every distribution's own has it)"
        yield Finding(Severity.WARNING, "hugepages", "huge pages are not supported here", (why,), fix)
        return
    pools = [target for target in HugePages().targets(kernel) if "/" not in target.instance]
    evidence = [f"/{folder_of(pool)}: {counts(kernel, pool)}" for pool in pools]
    default = default_page_size(kernel)
    what = f"huge pages are supported, in sizes of {', '.join(pool.instance for pool in pools)}"
    if default:
        what += f"; {spell_size(default)} is the default"
    yield Finding(Severity.OK, "hugepages", what, tuple(evidence))
    for pool in pools:
        total, free = (read_int(kernel, f"{folder_of(pool)}/{name}_hugepages") for name in ("nr", "free"))
        size = parse_pool(pool.instance).size
        if total and free == total:
            what = f"{total} huge pages of {pool.instance} ({total * size >> 20} MiB) are reserved, and nobody uses one"
            fix = f"give the memory back, if no program is to come for it: kerntune set hugepages@{pool.instance}=0"
            yield Finding(Severity.NOTE, "hugepages", what, (f"/{folder_of(pool)}: {counts(kernel, pool)}",), fix)
    yield from short_at_boot(files, kernel)


def counts(kernel: KernelView, pool: Target) -> str:
    total, free = (read_int(kernel, f"{folder_of(pool)}/{name}_hugepages") for name in ("nr", "free"))
    return f"nr_hugepages reads {total}, free_hugepages {free}"


def short_at_boot(files: Files, kernel: KernelView) -> Iterator[Finding]:
    """Yield the pools that have fewer pages than the command line asks for.

    The kernel takes the pages that it gets, and says so only in its log.
    """
    for line in boot_settings.read_cmdline(files, default_page_size(kernel)):
        if isinstance(line, Left) or not line.path.startswith(f"{POOLS}/"):
            continue
        asked, there = whole(line.value), read_int(kernel, line.path)
        if asked is not None and there < asked:
            what = f"the kernel command line asks for {asked} huge pages, and there are {there}"
            evidence = (line.place.quoted, f"/{line.path} reads {there}")
            fix = "ask for fewer, or look for HugeTLB in the kernel's log: memory may be too small or too fragmented"
            yield Finding(Severity.WARNING, "hugepages", what, evidence, fix)


def cpu_frequency(files: Files, kernel: KernelView) -> Iterator[Finding]:
    """Yield whether kerntune can set CPU frequencies, and which governors are at work."""
    parameters = tuple(place.quoted for name, _, place in boot_settings.parameters(files) if name in CPU_PARAMETERS)
    if CPU_GOVERNOR.missing(kernel):
        why, read, fix = why_no_cpufreq(kernel)
        what = f"CPU frequency scaling is not available: {why}"
        yield Finding(
            Severity.NOTE,
            "cpu-governor",
            what,
            (f"/{POLICIES} has no policy", *read, *parameters),
            f"{fix[0].lower()}{fix[1:]}",
        )
        return
    readings = CPU_GOVERNOR.read_all(kernel, CPU_GOVERNOR.targets(kernel))
    used = Counter(reading.value or "offline" for reading in readings.values())
    driver = read_or_none(kernel, f"{POLICIES}/policy0/scaling_driver")
    offered = next((reading.choices for reading in readings.values() if reading.value), ())
    policies = f"{len(readings)} polic{'y' if len(readings) == 1 else 'ies'}"
    what = f"CPU frequency scaling is available: {policies}, governor {', '.join(used)}"
    evidence = [
        *(f"{count} x /{POLICIES}/policy*/scaling_governor reads {value}" for value, count in used.items()),
        f"offered: {' '.join(offered)}",
        *([f"/{POLICIES}/policy0/scaling_driver reads {driver}"] if driver else []),
        *parameters,
    ]
    yield Finding(Severity.OK, "cpu-governor", what, tuple(evidence))
    if len(used.keys() - {"offline"}) > 1:
        what = "the CPUs run with different governors"
        fix = "kerntune set cpu-governor=performance --persist, or another that is offered"
        yield Finding(Severity.WARNING, "cpu-governor", what, tuple(evidence), fix)


def drives(kernel: KernelView) -> Iterator[Finding]:
    """Yield the NVMe drives, and the scheduler of each."""
    targets = IO_SCHEDULER.targets(kernel)
    fast = [target for target in targets if target.instance.startswith("nvme")]
    if not fast:
        others = [target.instance for target in targets if not target.instance.startswith(("loop", "zram", "ram"))]
        rest = f"with a scheduler there are {', '.join(others)}" if others else "no other drive has a scheduler either"
        yield Finding(Severity.OK, "io-scheduler", "there is no NVMe drive", (f"/sys/block has no nvme*; {rest}",))
    for target in fast:
        reading = IO_SCHEDULER.read(kernel, target)
        path = IO_SCHEDULER.path(target)
        evidence = (f"/{path} reads {read_or_none(kernel, path)}",)
        name = next((alias for alias in target.aliases if not alias.startswith("by-id/")), "")
        drive = f"{target.instance}, a path of {name}," if name else target.instance
        if reading.value == FAST:
            what = f"the NVMe drive {drive} has no scheduler in its way"
            yield Finding(Severity.OK, "io-scheduler", what, evidence)
        elif reading.value is None:
            yield Finding(Severity.NOTE, "io-scheduler", f"{drive} cannot be read", (reading.detail,))
        else:
            what = f"the NVMe drive {drive} is scheduled by {reading.value}; {FAST} is right for most NVMe drives"
            fix = f"kerntune set 'io-scheduler@nvme*={FAST}' --persist"
            yield Finding(Severity.NOTE, "io-scheduler", what, evidence, fix)


def memory(kernel: KernelView) -> Iterator[Finding]:
    """Yield the figures of RAM and swap."""
    info = meminfo(kernel)
    total, available, swap = (info.get(name, 0) for name in ("MemTotal", "MemAvailable", "SwapTotal"))
    if not total:
        what = "how much memory there is cannot be read"
        yield Finding(Severity.WARNING, "memory", what, ("/proc/meminfo has no MemTotal",))
        return
    pools = info.get("Hugetlb", 0)
    figures = ", ".join(f"{name} {info[name] >> 20} MiB" for name in FIGURES if name in info)
    evidence = (f"/proc/meminfo: {figures}",)
    what = f"{gib(total)} of RAM, {gib(available)} available, {gib(pools)} in huge pages, {gib(swap)} of swap"
    yield Finding(Severity.OK, "memory", what, evidence)
    if available < max(512 << 20, total // 20):
        fix = "end what is not needed, or give huge pages back; nothing can be reserved now"
        what = f"memory is nearly used up: {gib(available)} of {gib(total)} are available"
        yield Finding(Severity.WARNING, "memory", what, evidence, fix)
    if not swap:
        what = "there is no swap: when memory runs out the kernel kills programs at once"
        fix = "some GiB of swap give a warning time; with huge models it is no substitute for RAM"
        yield Finding(Severity.NOTE, "memory", what, ("/proc/meminfo: SwapTotal 0",), fix)


FIGURES: Final = ("MemTotal", "MemAvailable", "Hugetlb", "SwapTotal", "Committed_AS", "CommitLimit")


def gib(size: int) -> str:
    """Return bytes as people say them."""
    return f"{size / (1 << 30):.1f} GiB"
