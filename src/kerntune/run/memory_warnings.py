"""The words about a command's memory: the share on huge pages, and warnings, decided from figures alone. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from kerntune.kernel.huge_pages import Pool
from kerntune.run.allocator import TRANSPARENT, TUNABLE
from kerntune.units import mib, spell_size

LARGE: Final = 64 << 20  # bytes of a heap of which it is worth to speak
PART: Final = 0.1  # of a heap: so much may lie on small pages, or so little on huge ones
STEP: Final = 64 << 20  # sizes that are suggested are multiples of it
SPARE: Final = 1.1  # malloc(3) needs more than the memory that is used
SHELL: Final = 128  # a shell adds it to the number of the signal that ended its child


@dataclass(frozen=True, slots=True)
class Expected:
    """The setting that malloc gets, and the pages that the hold has for it."""

    hugetlb: int = 0  # the value of glibc.malloc.hugetlb; 0: nothing
    page_size: int = 0  # bytes, of the pool; 0 for transparent huge pages
    pages: int = 0  # that the hold has added
    borrowed: bool = False


@dataclass(frozen=True, slots=True)
class Heap:
    """Bytes of private memory; what forked processes share counts once."""

    private_hugetlb: int = 0
    shared_hugetlb: int = 0
    anon_huge: int = 0
    anonymous: int = 0  # with `anon_huge`, without pages of a pool
    processes: int = 0
    unread: int = 0  # processes that may not be read
    moment: float = 0.0  # of time.monotonic()

    @property
    def hugetlb(self) -> int:
        """The bytes on pages of a pool."""
        return self.private_hugetlb + self.shared_hugetlb

    @property
    def on_huge(self) -> int:
        """The bytes on huge pages of both kinds."""
        return self.hugetlb + self.anon_huge

    @property
    def total(self) -> int:
        """All bytes."""
        return self.hugetlb + self.anonymous

    @property
    def small(self) -> int:
        """The bytes on pages of the usual size."""
        return self.total - self.on_huge

    @property
    def share(self) -> float:
        """The part on huge pages, from 0 to 1."""
        return self.on_huge / self.total if self.total else 0.0

    def __str__(self) -> str:
        """Return the line of the summary."""
        if not self.processes:
            why = "this user may not read it" if self.unread else "it ended too soon"
            return f"the memory of the command was not seen: {why}"
        # Rounded down: 100 % means all of it.
        count = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        count += f", {self.unread} more that may not be read" if self.unread else ""
        return f"{int(100 * self.share)} % of the heap on huge pages ({used(self)}, {count})"

    def figures(self) -> dict[str, int]:
        """Return the fields of the JSON."""
        return {
            "heap_bytes": self.total,
            "on_huge_pages_bytes": self.on_huge,
            "private_hugetlb_bytes": self.private_hugetlb,
            "shared_hugetlb_bytes": self.shared_hugetlb,
            "anon_huge_bytes": self.anon_huge,
            "anonymous_bytes": self.anonymous,
            "processes": self.processes,
            "unread_processes": self.unread,
        }


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the tree: the process that executed it, and the memory of it and of those that it has forked."""

    pid: int
    name: str
    heap: Heap
    told: bool | None = None  # it was executed with the setting for malloc; None: not known


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts that one look has found."""

    programs: tuple[Program, ...]
    pool: Pool | None = None
    forked: tuple[tuple[int, str], ...] = ()  # pid and name of processes that share huge pages until they write
    at_risk: int = 0  # bytes that these share, where the pool cannot copy them
    thp: bool = True  # transparent huge pages are possible at all


@dataclass(frozen=True, slots=True)
class MemoryWarning:
    """A warning: what happened, the likely cause and what to try. `kind` and `program` tell it from the others."""

    kind: str
    what: str
    hint: str
    program: str = ""
    pid: int = 0


def summed(heaps: Iterable[Heap], *, unread: int = 0, moment: float = 0.0) -> Heap:
    """Return the memory of several programs together."""
    found = list(heaps)
    return Heap(
        sum(each.private_hugetlb for each in found),
        sum(each.shared_hugetlb for each in found),
        sum(each.anon_huge for each in found),
        sum(each.anonymous for each in found),
        sum(each.processes for each in found),
        unread,
        moment,
    )


def warnings_of(now: Situation, expected: Expected) -> Iterator[MemoryWarning]:
    """Yield what a user should know of the situation; none where malloc was told nothing."""
    if not expected.hugetlb:
        return
    unmet = [each for each in now.programs if is_unmet(each.heap)]
    for each in unmet:
        if each.told is False and each.heap.hugetlb == 0:
            yield lost(each)
    told = [each for each in unmet if each.told is not False or each.heap.hugetlb]
    if expected.hugetlb == TRANSPARENT:
        yield from (no_thp(each, possible=now.thp) for each in told if each.heap.share < PART)
    elif now.pool is not None:
        yield from in_pool(told, now.pool, expected)
        if now.at_risk:
            yield risky_forks(now, now.pool, expected)


def is_unmet(heap: Heap) -> bool:
    """Return whether so much of a heap lies on small pages that it matters."""
    return heap.small >= LARGE and heap.small >= PART * heap.total


def in_pool(programs: Iterable[Program], pool: Pool, expected: Expected) -> Iterator[MemoryWarning]:
    """Yield why the heaps of some programs do not lie on the pages of a pool, where that can be told."""
    page = expected.page_size
    available = (pool.left + pool.borrowable) * page
    for each in programs:
        heap = each.heap
        if not available:
            yield used_up(each, expected)
        elif heap.hugetlb and heap.small > available:
            yield too_small(each, available, expected)
        elif heap.hugetlb == 0 or heap.share < PART:
            # malloc takes a page at its start, where there is one (sysmalloc in glibc's malloc/malloc.c).
            yield unused(each, expected)


def used_up(program: Program, expected: Expected) -> MemoryWarning:
    """Return the warning that no page is left, so that malloc has fallen back to small ones."""
    return MemoryWarning(
        "used-up",
        f"the pool of {mib(expected.page_size)} MiB pages is used up: {_of_heap(program)} lie on huge pages",
        "malloc takes small pages then, and says nothing. "
        f"Ask for more, at least {asking(program.heap.small, expected)}",
        pid=program.pid,
    )


def too_small(program: Program, available: int, expected: Expected) -> MemoryWarning:
    """Return the warning that a large block did not fit in the pool."""
    return MemoryWarning(
        "too-small",
        f"the pool of {mib(expected.page_size)} MiB pages is too small: {_of_heap(program)} lie on huge pages, "
        f"and {mib(available)} MiB are left",
        "A large block lies on huge pages as a whole, or not at all. "
        f"Ask for more, at least {asking(program.heap.small - available, expected)}",
        pid=program.pid,
    )


def unused(program: Program, expected: Expected) -> MemoryWarning:
    """Return the warning that a program takes its memory elsewhere, though there are pages."""
    borrowed = " Or the memory of the host is too fragmented to borrow from." if expected.borrowed else ""
    return MemoryWarning(
        "unused",
        f"{_of_heap(program)} lie on huge pages, though the pool has pages left",
        "Its memory may not come from glibc's malloc: static programs, musl, Go, jemalloc and mmap take it elsewhere. "
        f"Or glibc is older than 2.35.{borrowed} For small objects of Python try PYTHONMALLOC=malloc",
        program.name,
        program.pid,
    )


def no_thp(program: Program, *, possible: bool) -> MemoryWarning:
    """Return the warning that transparent huge pages do not come."""
    return MemoryWarning(
        "no-thp",
        f"{_of_heap(program)} lie on transparent huge pages",
        "Its memory does not come from glibc's malloc (2.35 or newer), or the memory of the host is fragmented. "
        "Try --hugepages SIZE, which reserves pages"
        if possible
        else "Transparent huge pages are off: try --thp, or set thp to madvise",
        program.name,
        program.pid,
    )


def lost(program: Program) -> MemoryWarning:
    """Return the warning that a program was started without the setting."""
    return MemoryWarning(
        "lost-setting",
        f"{program.name} (pid {program.pid}) was started without {TUNABLE}: its heap of {mib(program.heap.total)} MiB "
        "lies on small pages",
        "A launcher such as sudo, env -i or systemd-run has cleaned the environment. "
        "Let GLIBC_TUNABLES through (sudo: --preserve-env=GLIBC_TUNABLES)",
        program.name,
        program.pid,
    )


def risky_forks(now: Situation, pool: Pool, expected: Expected) -> MemoryWarning:
    """Return the warning that forked processes may be killed when they write to what they share."""
    page, (pid, name) = expected.page_size, now.forked[0]
    shared = -(-now.at_risk // page)
    left = pool.left + pool.borrowable
    others = f" and {len(now.forked) - 1} more" if len(now.forked) > 1 else ""
    verb, one = ("share", "them") if others else ("shares", "it")
    return MemoryWarning(
        "forks",
        f"{name} (pid {pid}){others} {verb} {shared} huge pages with the process that forked {one}, and the "
        f"pool has {left} left: a write there may kill {one} by SIGBUS",
        "Start workers by spawn, not by fork (Python: multiprocessing.set_start_method('spawn')), or ask for "
        f"{shared - left} more pages: {asking((shared - left) * page, expected)}",
        name,
        pid,
    )


def killed(status: int, expected: Expected) -> MemoryWarning | None:
    """Return why a command with huge pages may have ended by SIGBUS; None for any other end.

    `status` is as in subprocess, where a shell may have been between.
    """
    if expected.hugetlb in (0, TRANSPARENT) or status not in (-signal.SIGBUS, SHELL + signal.SIGBUS):
        return None
    return MemoryWarning(
        "sigbus",
        "the command was killed by SIGBUS: a huge page was not to be had when it was written to",
        "A forked process may have written to memory that it shares: start workers by spawn, or ask for more pages. "
        "Or a limit of its cgroup (hugetlb.*.max) or of its NUMA nodes was reached, or a mapped file became shorter",
    )


def held_peak(peak: Heap, expected: Expected) -> str:
    """Return the option that would have held the most memory that there was; "" where the pool was not too small.

    Where nothing lies on huge pages, the memory does not come from malloc, and a larger pool would change nothing.
    """
    if not (expected.pages and peak.hugetlb and is_unmet(peak)):
        return ""
    return asking(peak.total - expected.pages * expected.page_size, expected)


def asking(more: int, expected: Expected) -> str:
    """Return the option that asks for the pages of the hold and for so many bytes more, with some to spare."""
    step = max(STEP, expected.page_size)
    size = -(-int(expected.pages * expected.page_size + more * SPARE) // step) * step
    return f"--hugepages {spell_size(size)}{' --borrow' if expected.borrowed else ''}"


def used(heap: Heap) -> str:
    """Return how much of a heap lies on huge pages: `2 of 1 024 MiB`."""
    return f"{mib(heap.on_huge)} of {mib(heap.total)} MiB"


def _of_heap(program: Program) -> str:
    return f"{used(program.heap)} of the heap of {program.name} (pid {program.pid})"
