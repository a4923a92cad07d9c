"""The memory of a command and its descendants while it runs: how much lies on huge pages, and what goes wrong.

A look at the tree costs little; where its memory lies costs a walk over page tables. So a walk is made when it fits in
a small part of the time that has passed. Between walks the figures of the last one are scaled.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kerntune.kernel.huge_pages import read_pool
from kerntune.kernel.process_memory import Process, Processes, Rollup, Unreadable
from kerntune.run.allocator import is_told
from kerntune.run.memory_warnings import (
    LARGE,
    Expected,
    Heap,
    MemoryWarning,
    Program,
    Situation,
    summed,
    warnings_of,
)

SOONEST: Final = 0.05  # seconds between looks at a command that has just begun
LATEST: Final = 1.0  # and at one that stays
GROWTH: Final = 50  # the part of its age after which a command is looked at again
COSTS: Final = 100  # times what a look costs pass before the next one
LONGEST: Final = 30.0  # seconds between looks
WALKS_AT_ONCE: Final = 0.1  # seconds of walks, at any time
WALKS: Final = 0.01  # seconds of walks in each second of the command's life
THP: Final = "sys/kernel/mm/transparent_hugepage/enabled"


@dataclass(slots=True)
class Pace:
    """The moments for looks and walks, decided from what they cost, in seconds of CPU: below 2 % of one CPU."""

    began: float
    next_look: float = field(init=False)
    walked: float = field(init=False, default=0.0)  # seconds that all walks have cost

    def __post_init__(self) -> None:
        self.next_look = self.began + SOONEST

    def affords(self, now: float, cost: float) -> bool:
        """Return whether a walk may cost so much now."""
        return self.walked + cost <= WALKS_AT_ONCE + WALKS * (now - self.began)

    def looked(self, now: float, cost: float, walk: float) -> None:
        """Take what a look at `now` cost, and its walk (0 without one)."""
        self.walked += walk
        interval = min(LATEST, max(SOONEST, (now - self.began) / GROWTH))
        self.next_look = now + min(LONGEST, max(interval, COSTS * cost))


class MemoryWatch:
    """Looks at a process and its descendants from time to time; it is called when `next_look` has come."""

    def __init__(self, pid: int, expected: Expected, *, root: Path = Path("/"), began: float | None = None) -> None:
        self.peak = Heap()
        self._pid = pid
        self._expected = expected
        self._root = root
        self._processes = Processes(str(root))
        self._pace = Pace(time.monotonic() if began is None else began)
        self._seen: Mapping[int, int] = {}
        self._walked: dict[tuple[int, int], tuple[Process, Rollup]] = {}
        self._refused: set[tuple[int, int]] = set()
        self._harmless: set[tuple[int, int]] = set()
        self._walk_cost = self._walk_resident = 0.0
        self._said: set[tuple[str, str]] = set()

    @property
    def next_look(self) -> float:
        """The moment of time.monotonic() at which to look again."""
        return self._pace.next_look

    def look(self, now: float) -> list[MemoryWarning]:
        """Read the memory of the tree; return the warnings that are new."""
        began = time.thread_time()
        tree = self._processes.tree(self._pid, self._seen)
        self._forget(tree)
        resident = sum(process.resident for process in tree.values())
        counted = self._counted(tree)
        looked = time.thread_time()
        walks = self._pace.affords(now, self._walk_cost * max(1.0, resident / max(1.0, self._walk_resident)))
        if walks:
            self._walk(counted)
        counted = [process for process in counted if not self._is_refused(process)]
        programs = self._programs(counted, tree)
        heap = summed((program.heap for program in programs), unread=len(tree) - len(self._readable(tree)), moment=now)
        if (heap.total, heap.unread) > (self.peak.total, self.peak.unread):
            self.peak = heap
        new = self._new(programs) if walks and self._expected.hugetlb else []
        self._seen = {process.pid: process.started for process in tree.values()}
        walk = time.thread_time() - looked if walks else 0.0
        if walks:
            self._walk_cost, self._walk_resident = walk, resident
        self._pace.looked(now, looked - began, walk)
        return new

    def _counted(self, tree: Mapping[int, Process]) -> list[Process]:
        """Return the processes whose memory counts: those that may be read.

        A forked process counts from the second look on. Until it executes a program it may borrow the memory of its
        parent (vfork(2)), which would then count twice.
        """
        for process in tree.values():
            if _key(process) not in self._walked and not (process.own and self._processes.may_read(process.pid)):
                self._refused.add(_key(process))
        return [each for each in self._readable(tree) if not each.forked or self._seen.get(each.pid) == each.started]

    def _readable(self, tree: Mapping[int, Process]) -> list[Process]:
        return [process for process in tree.values() if not self._is_refused(process)]

    def _is_refused(self, process: Process) -> bool:
        return _key(process) in self._refused

    def _walk(self, processes: Iterable[Process]) -> None:
        for process in processes:
            try:
                rollup = self._processes.rollup(process.pid)
            except Unreadable:  # it has just executed a setuid program
                self._refused.add(_key(process))
                continue
            if rollup is not None:
                self._walked[_key(process)] = process, rollup

    def _forget(self, tree: Mapping[int, Process]) -> None:
        alive = {_key(process) for process in tree.values()}
        self._walked = {key: value for key, value in self._walked.items() if key in alive}
        self._refused &= alive
        self._harmless &= alive

    def _programs(self, processes: Sequence[Process], tree: Mapping[int, Process]) -> list[Program]:
        """Return the programs of the tree: each with the processes that it has forked and that still run it."""
        families: dict[int, list[Process]] = {}
        for process in processes:
            families.setdefault(_head(process, tree).pid, []).append(process)
        return [
            Program(pid, tree[pid].name, heap_of([(each, self._estimate(each)) for each in members]))
            for pid, members in families.items()
        ]

    def _estimate(self, process: Process) -> Rollup:
        """Return where the memory of a process lies now, from its last walk; without one all is its own and small."""
        if (walked := self._walked.get(_key(process))) and walked[0] is process:
            return walked[1]
        rollup = walked[1] if walked else Rollup()
        part = process.anonymous / rollup.anonymous if rollup.anonymous else 0.0
        shared = min(rollup.shared_hugetlb, process.hugetlb)
        return Rollup(
            anonymous=process.anonymous,
            proportional=round(rollup.proportional * part) if rollup.anonymous else process.anonymous,
            anon_huge=round(rollup.anon_huge * part),
            private_hugetlb=process.hugetlb - shared,
            shared_hugetlb=shared,
        )

    def _new(self, programs: Sequence[Program]) -> list[MemoryWarning]:
        """Return the warnings that were not given before."""
        told = [
            Program(each.pid, each.name, each.heap, self._is_told(each.pid) if each.heap.total >= LARGE else None)
            for each in programs
        ]
        pool = read_pool(self._expected.page_size, self._root) if self._expected.page_size else None
        forked, at_risk = self._at_risk((pool.left + pool.borrowable) * self._expected.page_size if pool else 0)
        try:
            thp = (self._root / THP).read_text(encoding="ascii")
        except OSError:
            thp = ""
        situation = Situation(tuple(told), pool, forked=forked, at_risk=at_risk, thp="[never]" not in thp)
        new = []
        for warning in warnings_of(situation, self._expected):
            if (key := (warning.kind, warning.program)) not in self._said:
                self._said.add(key)
                new.append(warning)
        return new

    def _is_told(self, pid: int) -> bool | None:
        """Return whether a program was executed with the setting for malloc; None where that cannot be known."""
        environment = self._processes.environment(pid)
        return None if environment is None else is_told(environment)

    def _at_risk(self, available: int) -> tuple[tuple[tuple[int, str], ...], int]:
        """Return the forked processes that share huge pages, and the bytes of these, if the pool cannot copy them."""
        sharing = [
            (process, rollup.shared_hugetlb)
            for key, (process, rollup) in self._walked.items()
            if process.forked and rollup.shared_hugetlb and key not in self._harmless
        ]
        if sum(shared for _, shared in sharing) <= available:
            return (), 0
        found = []
        for process, _ in sharing:
            if size := self._processes.copied_on_write(process.pid):
                found.append((process, size))
            else:  # such memory is made to be shared, as that of a data base
                self._harmless.add(_key(process))
        total = sum(size for _, size in found)
        return (tuple((each.pid, each.name) for each, _ in found), total) if total > available else ((), 0)


def heap_of(members: Sequence[tuple[Process, Rollup]]) -> Heap:
    """Return the memory of one program's processes; what they share counts once.

    Huge pages of a pool that forked processes share are the same in all of them, so the most that one has counts.
    """
    shares = [(each.proportional / each.anonymous if each.anonymous else 0.0, each) for _, each in members]
    return Heap(
        private_hugetlb=sum(each.private_hugetlb for _, each in members),
        shared_hugetlb=max((each.shared_hugetlb for _, each in members), default=0),
        anon_huge=sum(round(each.anon_huge * share) for share, each in shares),
        anonymous=sum(each.proportional for _, each in members),
        processes=len(members),
    )


def _head(process: Process, tree: Mapping[int, Process]) -> Process:
    """Return the process that has executed the program of this one, or the nearest to it that is left."""
    passed = {process.pid}
    while process.forked and (parent := tree.get(process.parent)) is not None and parent.pid not in passed:
        passed.add(parent.pid)
        process = parent
    return process


def _key(process: Process) -> tuple[int, int]:
    return process.pid, process.started
