"""hugepages: the pools of persistent huge pages, whole host and per NUMA node, as one plan per page size.

Documentation/admin-guide/mm/hugetlbpage.rst. In sysfs `nr_hugepages` counts surplus pages too (pages in use beyond
what was asked); what was asked is nr_hugepages - surplus_hugepages, here called `asked`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from kerntune.errors import InvalidValue
from kerntune.explained import Evidence, Example, Explanation, Grade
from kerntune.kernel import memory as host_memory
from kerntune.kernel import support
from kerntune.kernel.files import KernelView, find, natural, number
from kerntune.model import (
    SATISFIED,
    Lane,
    Limits,
    Memory,
    Reading,
    Reason,
    State,
    Step,
    Target,
    Verdict,
    Wish,
    Write,
)
from kerntune.tunables import page_size
from kerntune.tunables.base import Action, Kind, Plain, Sizes, unreadable
from kerntune.tunables.pool_plan import plan_pools

POOLS = "sys/kernel/mm/hugepages"
PIECE = 1 << 30  # bytes of growth in one write
COUNT = re.compile(r"[0-9]{1,20}")
FIGURES = {"free": "free_hugepages", "surplus": "surplus_hugepages", "borrow": "nr_overcommit_hugepages"}


class HugePages(Plain):
    """A target per page size (`2M`) and per node of it (`2M/node0`)."""

    name: ClassVar[str] = "hugepages"
    summary: ClassVar[str] = "pools of huge pages"
    lane: ClassVar[Lane] = Lane.MEMORY
    action: ClassVar[Action] = "set-memory"
    kind: ClassVar[Kind] = Kind.POOLS
    sizes: ClassVar[Sizes] = "pages"
    by_hand: ClassVar[tuple[str, ...]] = (
        r"proc/sys/vm/nr_hugepages(?:_mempolicy)?",
        rf"sys/kernel/mm/hugepages/{page_size.IN_PATH}/nr_hugepages(?:_mempolicy)?",
        rf"sys/devices/system/node/(?P<node>[^/]+)/hugepages/{page_size.IN_PATH}/nr_hugepages",
    )
    counted: ClassVar[bool] = True
    remedy: ClassVar[tuple[Write, ...]] = (Write("proc/sys/vm/compact_memory", "1"),)
    explained: ClassVar[Explanation] = Explanation(
        what="Memory set aside in pages of 2 MiB, 1 GiB or another size for programs that ask for them (MAP_HUGETLB, "
        "hugetlbfs, glibc.malloc.hugetlb=2).",
        helps="Loaders that copy a model into memory of their own (torch.load, read() into malloc) or ask for "
        "MAP_HUGETLB. Loaders that map the file (safetensors, llama.cpp by default) are not reached: see read-ahead.",
        evidence=(
            Evidence(Grade.MEASURED, "torch.load of 1 GiB, warm, in pages of 2 MiB: 0.50 of the time [0.35, 0.51]"),
            Evidence(Grade.MEASURED, "reading in order gains 0 to 5 %, random access 18 to 35 %"),
        ),
        risk="The pages are lost to all other programs. Children that write inherited memory die by SIGBUS when the "
        "pool is used up. The kernel may give fewer than asked without an error, so they are counted again.",
        files=(
            "/sys/kernel/mm/hugepages/hugepages-*kB/nr_hugepages",
            "/sys/devices/system/node/node*/hugepages/hugepages-*kB/nr_hugepages",
        ),
        document="Documentation/admin-guide/mm/hugetlbpage.rst",
        instances="a page size (2M, 1G), one NUMA node of it (2M/node0) or each node (2M/*); left out: the default "
        "size",
        values="a number of pages, or a size that is a whole number of them (64G)",
        example=Example("hugepages=64G", "as many pages of the default size as 64 GiB are"),
    )

    def targets(self, kernel: KernelView) -> Sequence[Target]:
        found = []
        for folder in (
            *kernel.glob(f"{POOLS}/hugepages-*kB"),
            *kernel.glob("sys/devices/system/node/node*/hugepages/*"),
        ):
            parts = folder.split("/")
            found.append(str(page_size.Pool(size_of(folder), parts[4] if parts[1] == "devices" else "")))
        return [Target(self.name, instance) for instance in sorted(found, key=natural)]

    def missing(self, kernel: KernelView) -> str:
        return "" if kernel.glob(f"{POOLS}/*") else support.missing(kernel, POOLS, "HUGETLBFS")

    def normal(self, instances: str) -> str:
        return str(page_size.parse(instances))

    def exact(self, instances: str) -> bool:
        return not instances.endswith("*")

    def matches(self, instances: str, target: Target) -> bool:
        if instances.endswith("/*"):
            return target.instance.startswith(f"{instances[:-1]}node")
        return instances == target.instance

    def group(self, target: Target) -> str:
        return target.instance.partition("/")[0]

    def read(self, kernel: KernelView, target: Target) -> Reading:
        folder = folder_of(target)
        total = find(kernel, f"{folder}/nr_hugepages")
        if total is None or not total.isdigit():
            return Reading(target, None, reason=Reason.NO_SUCH_TARGET, detail=f"/{folder} is not there any more")
        figures = {name: number(kernel, f"{folder}/{file}") for name, file in FIGURES.items()}
        size, node = page_size.parse(target.instance)
        if node:
            figures["borrow"] = number(
                kernel, f"{folder_of(Target(self.name, page_size.spell(size)))}/{FIGURES['borrow']}"
            )
        figures |= {
            "size": size,
            "total": int(total),
            "asked": int(total) - figures["surplus"],
            "reserved": number(kernel, f"{folder}/resv_hugepages"),
            "room": node_free(kernel, node) // size if node else 0,
        }
        stuck = figures["surplus"] > figures["borrow"]
        return Reading(
            target,
            total,
            restore=str(figures["asked"]),
            figures=figures,
            detail=who_holds(kernel) if stuck else "",
        )

    def normal_value(self, value: str) -> str:
        if not COUNT.fullmatch(value):
            raise InvalidValue(f"{value!r} is not a number of huge pages", "Give a whole number of pages, 0 or more")
        return str(int(value))

    def validate(self, reading: Reading, value: str) -> None:
        """Any count may be asked for; the limits of the host are checked by the plan."""

    def plan(
        self, readings: Mapping[Target, Reading], wishes: Mapping[Target, Wish], memory: Memory, limits: Limits
    ) -> Sequence[Step]:
        return plan_pools(readings, wishes, memory, limits, path_of=lambda target: f"{folder_of(target)}/nr_hugepages")

    def pieces(self, kernel: KernelView, write: Write) -> Iterable[Write]:
        """A pool grows by PIECE at a time: since Linux 6.7 new pages show only when the write has ended that made them.

        After a piece that fell short the whole is asked for at once: more tries would only cost time.
        """
        wanted, more = int(write.text), max(1, PIECE // size_of(write.path))
        had = number(kernel, write.path, wanted)
        while had + more < wanted:
            yield Write(write.path, str(had + more))
            now = number(kernel, write.path)
            if now < had + more:
                break
            had = now
        yield write

    def judge(self, wish: Wish, reading: Reading, group: Mapping[Target, Reading]) -> Verdict:  # noqa: ARG002
        if reading.value is None:
            return unreadable(reading)
        asked, wanted, figures = reading.figures["asked"], int(wish.value), reading.figures
        stuck = figures["surplus"] - figures["borrow"]
        if asked < wanted:
            return Verdict(
                State.PARTIAL,
                Reason.PARTIALLY_ALLOCATED,
                f"{wanted} pages asked for {reading.target.instance}, {asked} had: memory is too fragmented for the "
                f"rest; ask again when programs have ended, or {at_boot(reading, wanted)}",
            )
        if asked == wanted and stuck > 0:
            return Verdict(
                State.PARTIAL,
                Reason.PAGES_IN_USE,
                f"{figures['total']} pages stay until they are given back, and the kernel frees them then: "
                f"{figures['total'] - figures['free']} in use, {figures['free']} free, {figures['surplus']} surplus; "
                f"{reading.detail}",
            )
        if asked == wanted:
            return SATISFIED
        return Verdict(State.FAILED, Reason.READ_BACK_DIFFERS, f"{wanted} pages asked, the pool reads {asked}")

    def rejected(self, reading: Reading, value: str, code: int) -> Verdict:
        """The kernel gives fewer pages without an error; those it has are of other kinds.

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
            return super().rejected(reading, value, code)
        error = f"{os.strerror(code)} ({errno.errorcode[code]})"
        return Verdict(state, reason, f"the kernel refused {value} pages for {reading.target.instance}: {error}: {why}")

    def lacking(self, wish: Wish, reading: Reading) -> int:
        if reading.value is None:
            return 0
        return max(0, int(wish.value) - reading.figures["asked"]) * reading.figures["size"]

    def drifted(self, wish: Wish, reading: Reading) -> bool:
        return reading.value is not None and reading.figures["asked"] > int(wish.value)


def at_boot(reading: Reading, wanted: int) -> str:
    """Prose: how to have pages while memory is still whole (Documentation/admin-guide/kernel-parameters.txt)."""
    size = reading.target.instance.partition("/")[0]
    return f"reserve them at boot, with hugepagesz={size} hugepages={wanted} on the kernel command line"


def folder_of(target: Target) -> str:
    """The sysfs folder of a pool."""
    size, node = page_size.parse(target.instance)
    folder = f"hugepages-{size >> 10}kB"
    return f"sys/devices/system/node/{node}/hugepages/{folder}" if node else f"{POOLS}/{folder}"


def size_of(path: str) -> int:
    """The page size in bytes of a pool's folder, or of a file in it."""
    return int(path.rpartition("hugepages-")[2].partition("kB")[0]) << 10


def node_free(kernel: KernelView, node: str) -> int:
    """Free memory of one NUMA node in bytes (MemFree in its meminfo)."""
    text = find(kernel, f"sys/devices/system/node/{node}/meminfo") or ""
    found = re.search(r"MemFree:\s+([0-9]+) kB", text)
    return int(found[1]) << 10 if found else 0


def who_holds(kernel: KernelView) -> str:
    """Prose: the processes that have huge pages mapped."""
    found = host_memory.holders(kernel)
    if not found:
        return "no process has huge pages mapped; a file in hugetlbfs or shared memory holds them"
    listed = [f"{holder.command} (pid {holder.pid}, {holder.size >> 20} MiB)" for holder in found[:5]]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return "held by " + ", ".join(listed) + more
