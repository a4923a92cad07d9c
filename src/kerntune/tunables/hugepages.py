"""hugepages: the pools of persistent huge pages, whole host and per NUMA node, as one plan per page size.

Documentation/admin-guide/mm/hugetlbpage.rst. In sysfs `nr_hugepages` counts surplus pages too (pages in use beyond
what was asked); what was asked is nr_hugepages - surplus_hugepages, here called `asked`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from kerntune.errors import InvalidValue
from kerntune.globs import natural_sort_key
from kerntune.kernel import kconfig
from kerntune.kernel import memory as host_memory
from kerntune.kernel.files import KernelView, read_int, read_or_none
from kerntune.model import (
    SATISFIED,
    DesiredState,
    Lane,
    Limits,
    Memory,
    Reading,
    Reason,
    State,
    Step,
    Target,
    Verdict,
    Write,
    reserve_of,
)
from kerntune.patterns import Kind, Pool, parse_pool
from kerntune.tunables.amounts import amounts
from kerntune.tunables.base import Tunable, unreadable
from kerntune.tunables.pool_plan import plan_pools
from kerntune.tunables.pool_writes import FULL, idle, is_full, nodes_of, pools_after
from kerntune.tunables.sums import Asking, Total, of_pools
from kerntune.units import is_endless, spell_size

POOLS = "sys/kernel/mm/hugepages"
IN_PATH = r"hugepages-(?P<kb>[0-9]{1,12})kB"  # a page size in a path of the kernel
PIECE = 1 << 30  # bytes of growth in one write
COUNT = re.compile(r"[0-9]{1,20}")
A_SMALL_NODE = 12  # this part of it stays for what runs there, where that is less than the usual reserve
TRIES = 5  # to read a pool's counters while nobody changes them


class HugePages(Tunable):
    """A target per page size (`2M`) and per node of it (`2M/node0`)."""

    name = "hugepages"
    summary = "pools of huge pages"
    lane = Lane.MEMORY
    action = "set-memory"
    kind = Kind.POOLS
    sizes = "pages"
    files = (
        f"{POOLS}/hugepages-*kB/nr_hugepages",
        "sys/devices/system/node/node*/hugepages/hugepages-*kB/nr_hugepages",
    )
    import_patterns = (
        r"proc/sys/vm/nr_hugepages(?:_mempolicy)?",
        rf"sys/kernel/mm/hugepages/{IN_PATH}/nr_hugepages(?:_mempolicy)?",
        rf"sys/devices/system/node/(?P<node>[^/]+)/hugepages/{IN_PATH}/nr_hugepages",
    )
    has_progress = True
    adds = True
    retry_action = (Write("proc/sys/vm/compact_memory", "1"),)

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        found = []
        for folder in (
            *kernel.glob(f"{POOLS}/hugepages-*kB"),
            *kernel.glob("sys/devices/system/node/node*/hugepages/hugepages-*kB"),
        ):
            parts = folder.split("/")
            found.append(str(Pool(size_of(folder), parts[4] if parts[1] == "devices" else "")))
        return [Target(self.name, instance) for instance in sorted(found, key=natural_sort_key)]

    def missing(self, kernel: KernelView) -> str:
        return "" if kernel.glob(f"{POOLS}/hugepages-*kB") else kconfig.missing(kernel, POOLS, "HUGETLBFS")

    def group(self, target: Target) -> str:
        return target.instance.partition("/")[0]

    def sums(self, asking: Asking, own: Mapping[Target, int]) -> Mapping[Target, Total]:
        return of_pools(asking, own)

    def takes(self, target: Target, value: str) -> int:
        return parse_pool(target.instance).size * int(value)

    def read(self, kernel: KernelView, target: Target) -> Reading:
        return self._read(kernel, target, partial(node_memory, kernel))

    def _read(self, kernel: KernelView, target: Target, memory_of: Callable[[str], tuple[int, int]]) -> Reading:
        folder = folder_of(target)
        found = counters(kernel, folder)
        if found is None:
            return Reading(target, None, reason=Reason.NO_SUCH_TARGET, detail=f"/{folder} is not there any more")
        total, free, surplus = found
        size, node = parse_pool(target.instance)
        whole = folder_of(Target(self.name, spell_size(size)))
        figures = {
            "size": size,
            "total": total,
            "free": free,
            "surplus": surplus,
            "asked": total - surplus,
            "borrow": read_int(kernel, f"{whole}/nr_overcommit_hugepages"),
            "reserved": 0 if node else read_int(kernel, f"{folder}/resv_hugepages"),
            "room": 0,
        }
        memory, available = memory_of(node) if node else (0, 0)
        if memory:
            reserve = min(reserve_of(memory), memory // A_SMALL_NODE)
            figures |= {"available": available, "reserve": reserve, "room": max(0, available - reserve) // size}
        return Reading(target, str(total), restore=str(figures["asked"]), figures=figures)

    def read_all(self, kernel: KernelView, targets: Sequence[Target]) -> dict[Target, Reading]:
        """Read each pool; once the memory of each node, and the processes if pages of any are in use that should go."""
        memory_of = cache(partial(node_memory, kernel))
        readings = {target: self._read(kernel, target, memory_of) for target in targets}
        stuck = [t for t, r in readings.items() if r.value is not None and r.figures["surplus"] > r.figures["borrow"]]
        if stuck:
            held = who_holds(kernel)
            readings |= {target: replace(readings[target], detail=held) for target in stuck}
        return readings

    def normal_value(self, value: str, typed: str = "") -> str:
        return count_of(value, typed)

    def plan(
        self,
        readings: Mapping[Target, Reading],
        desired_states: Mapping[Target, DesiredState],
        memory: Memory,
        limits: Limits,
    ) -> Sequence[Step]:
        return plan_pools(readings, desired_states, memory, limits, path_of=path_of)

    def foreseen(self, steps: Sequence[Step], memory: Memory) -> Memory:
        taken = sum(step.grows for step in steps)
        return replace(
            memory,
            hugetlb=memory.hugetlb + taken,
            available=max(0, memory.available - taken),
            free=max(0, memory.free - taken),
        )

    def expected(self, steps: Sequence[Step], readings: Mapping[Target, Reading]) -> Mapping[Target, Reading]:
        """Return the pools with their numbers; pages in use or promised that are too many are surplus."""
        goals = {write.path: int(write.text) for step in steps for write in step.writes}
        known = {target: reading for target, reading in readings.items() if reading.value is not None}
        found = dict(readings)
        for size in {self.group(target) for target in known}:
            of_size = {target: reading for target, reading in known.items() if self.group(target) == size}
            found |= pools_after(of_size, {t: goals[path_of(t)] for t in of_size if path_of(t) in goals})
        return found

    def elsewhere(
        self, steps: Sequence[Step], old: Mapping[Target, Reading], now: Mapping[Target, Reading]
    ) -> Mapping[Target, Reading]:
        """Find the rest of a total that one node has no memory for, where another node gave all it was asked."""
        full: set[Target] = set()
        for step in steps:
            asked = {write.path: int(write.text) for write in step.writes}
            nodes = [target for target in step.touches if path_of(target) in asked and now[target].value is not None]
            short = {t for t in nodes if now[t].figures["asked"] < asked[path_of(t)]}
            if any(now[t].figures["asked"] > old[t].figures["asked"] for t in nodes if t not in short):
                full |= short
        new = {target for target in full if "/" in target.instance and not is_full(old[target])}
        known = {target for target, reading in old.items() if is_full(reading)}
        marked = {target: replace(now[target], figures={**now[target].figures, **FULL}) for target in new | known}
        return {**now, **marked} if new else {}

    def chunks(self, kernel: KernelView, write: Write) -> Iterable[Write]:
        """Give writes that grow a pool by PIECE each: since Linux 6.7 new pages show only after the write.

        After a piece that fell short the whole is asked for at once: more tries would only cost time.
        """
        wanted, more = int(write.text), max(1, PIECE // size_of(write.path))
        had = read_int(kernel, write.path, wanted)
        while had + more < wanted:
            yield Write(write.path, str(had + more))
            now = read_int(kernel, write.path)
            if now < had + more:
                break
            had = now
        yield write

    def assess(self, desired: DesiredState, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:
        if reading.value is None:
            return unreadable(reading)
        asked, wanted, figures = reading.figures["asked"], int(desired.value), reading.figures
        if desired.sum and desired.sum.at_least:
            wanted = max(wanted, asked)
        of_size = {
            t: r for t, r in group.items() if self.group(t) == self.group(desired.target) and r.value is not None
        }
        if asked == wanted and stuck(reading, of_size) > 0:
            return Verdict(
                State.PARTIAL,
                Reason.PAGES_IN_USE,
                f"{figures['total']} pages stay until they are given back, and the kernel frees them then: "
                f"{figures['total'] - figures['free']} in use, {figures['free']} free, {figures['surplus']} surplus"
                f"{reading.detail and '; '}{reading.detail}",
            )
        if asked == wanted > int(desired.value):
            said = f"at least {desired.value}, and pages of the whole host are there too"
            return Verdict(State.SATISFIED, Reason.OK, said)
        if asked == wanted:
            return SATISFIED
        if entangled(desired, reading, of_size):
            return Verdict(
                State.PARTIAL,
                Reason.PAGES_IN_USE,
                f"{fewer(desired, wanted, reading)}: programs have pages on several "
                "nodes, which this kernel counts together; it is put right when they give some back"
                f"{reading.detail and '; '}{reading.detail}",
            )
        if asked < wanted:
            return Verdict(
                State.PARTIAL,
                Reason.PARTIALLY_ALLOCATED,
                f"{fewer(desired, wanted, reading)}: memory is too fragmented for the rest; ask again when programs "
                f"have ended, or {at_boot(reading, wanted)}",
            )
        return Verdict(State.FAILED, Reason.READ_BACK_DIFFERS, f"{wanted} pages asked, the pool reads {asked}")

    def explain_errno(self, reading: Reading, value: str, code: int) -> Verdict:
        """Return the verdict on an errno; fewer pages than asked are no error of the kernel.

        set_max_huge_pages of mm/hugetlb.c: without CONFIG_CONTIG_ALLOC it has of large pages (1G) what was reserved
        at boot, and lets them only go.
        """
        if code == errno.EINVAL:
            why = (
                "it makes no pages of this size while it runs, and has those of its command line only; "
                f"{at_boot(reading, int(value))}"
            )
            state, reason = State.UNSUPPORTED, Reason.BOOT_PARAMETER_WINS
        elif code == errno.ENOMEM:
            why = "it has no memory left even to try; stop programs that hold memory, and ask again"
            state, reason = State.FAILED, Reason.KERNEL_REJECTED
        else:
            return super().explain_errno(reading, value, code)
        error = f"{os.strerror(code)} ({errno.errorcode[code]})"
        return Verdict(state, reason, f"the kernel refused {value} pages for {reading.target.instance}: {error}: {why}")

    def shortfall(self, desired: DesiredState, reading: Reading) -> int:
        if reading.value is None:
            return 0
        return max(0, int(desired.value) - reading.figures["total"]) * reading.figures["size"]

    def report_only(self, desired: DesiredState, reading: Reading) -> bool:
        is_shared = desired.sum is not None and desired.sum.at_least
        return reading.value is not None and reading.figures["asked"] > int(desired.value) and not is_shared


def count_of(value: str, typed: str) -> str:
    """Return a number of pages in normal form. Raise InvalidValue for what is none; `typed` as in normal_value."""
    if is_endless(value):
        raise InvalidValue(
            f"{typed or value:.40} is too large for huge pages", "Give a number of pages, or a size: 64G"
        )
    if not COUNT.fullmatch(value):
        raise InvalidValue(f"{value!r} is not a number of huge pages", "Give a number of pages, or a size: 64G")
    return str(int(value))


def fewer(desired: DesiredState, wanted: int, reading: Reading) -> str:
    """Prose: how many pages were asked, and how many the pool has."""
    asked, had = amounts(desired.winner.unit, reading.figures["size"], (wanted, reading.figures["asked"]))
    return f"{asked} asked for {reading.target.instance}, {had} had"


def at_boot(reading: Reading, wanted: int) -> str:
    """Prose: how to have pages while memory is still whole (Documentation/admin-guide/kernel-parameters.txt)."""
    size = reading.target.instance.partition("/")[0]
    return f"reserve them at boot, with hugepagesz={size} hugepages={wanted} on the kernel command line"


def folder_of(target: Target) -> str:
    """Return the sysfs folder of a pool."""
    size, node = parse_pool(target.instance)
    folder = f"hugepages-{size >> 10}kB"
    return f"sys/devices/system/node/{node}/hugepages/{folder}" if node else f"{POOLS}/{folder}"


def path_of(target: Target) -> str:
    """Return the file of a pool's number."""
    return f"{folder_of(target)}/nr_hugepages"


def size_of(path: str) -> int:
    """Return the page size in bytes of a pool's folder, or of a file in it."""
    return int(path.rpartition("hugepages-")[2].partition("kB")[0]) << 10


def counters(kernel: KernelView, folder: str) -> tuple[int, int, int] | None:
    """Return the pages of a pool, those that are free and the surplus; None when there is no such pool.

    A program that borrows a page between two reads would make another number of what was asked.
    """
    path = f"{folder}/nr_hugepages"
    now = read_or_none(kernel, path)
    for _ in range(TRIES):
        before = now
        free, surplus = read_int(kernel, f"{folder}/free_hugepages"), read_int(kernel, f"{folder}/surplus_hugepages")
        now = read_or_none(kernel, path)
        if now == before:
            break
    return None if now is None or not now.isdigit() else (int(now), free, surplus)


def stuck(reading: Reading, of_size: Mapping[Target, Reading]) -> int:
    """Return the surplus pages that are more than programs may borrow, or that nobody will give back."""
    pools = [of_size[target] for target in nodes_of(of_size)]
    if "/" in reading.target.instance or not pools:
        pools = [reading]
    reserved = max(pool.figures["reserved"] for pool in (reading, *of_size.values()))
    return max(reading.figures["surplus"] - reading.figures["borrow"], idle(pools, reserved))


def entangled(desired: DesiredState, reading: Reading, of_size: Mapping[Target, Reading]) -> bool:
    """Tell whether a node's number is off only as pages in use on other nodes were counted with it.

    It has more and none of them to give, or has the pages and they are surplus.
    """
    others = [of_size[target] for target in nodes_of(of_size) if target != desired.target]
    if "/" not in desired.target.instance or not any(pool.figures["surplus"] for pool in others):
        return False
    wanted, figures = int(desired.value), reading.figures
    promised = max(pool.figures["reserved"] for pool in of_size.values())
    return (figures["asked"] > wanted and figures["free"] <= promised) or figures["asked"] < wanted <= figures["total"]


def node_memory(kernel: KernelView, node: str) -> tuple[int, int]:
    """Return the memory of one NUMA node and what of it can be had, in bytes: free pages, page cache and slabs."""
    text = read_or_none(kernel, f"sys/devices/system/node/{node}/meminfo") or ""
    figures = {name: int(value) << 10 for name, value in re.findall(r"(\S+):\s+([0-9]+) kB", text)}
    names = ("MemFree", "Active(file)", "Inactive(file)", "KReclaimable")
    return figures.get("MemTotal", 0), sum(figures.get(name, 0) for name in names)


def who_holds(kernel: KernelView) -> str:
    """Prose: the processes that have huge pages mapped."""
    found = host_memory.holders(kernel)
    if not found:
        return "no process has huge pages mapped; a file in hugetlbfs or shared memory holds them"
    listed = [f"{holder.command} (pid {holder.pid}, {holder.size >> 20} MiB)" for holder in found[:5]]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return "held by " + ", ".join(listed) + more
