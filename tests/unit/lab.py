"""The engine on a simulated kernel, with a store in memory: what most tests of the engine work with."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from kerntune.daemon.demo import plain_files
from kerntune.engine.claims import Claims
from kerntune.engine.companion import Companion
from kerntune.engine.hung import Bounds
from kerntune.engine.reconciler import Reconciler
from kerntune.engine.requests import Request
from kerntune.engine.results import Answer
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Baseline, Claim, Limits, Origin, Outcome, Reason, Report, Setting, State, Target
from kerntune.tunables import REGISTRY

MIB, GIB = 1 << 20, 1 << 30
PAGE = 2 * MIB
POOL = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
COMPACT = "proc/sys/vm/compact_memory"
VM = "proc/sys/vm/overcommit_"
SWAPPINESS = "proc/sys/vm/swappiness"
THP = "sys/kernel/mm/transparent_hugepage"
SETTINGS = [("io-scheduler", "*", "bfq"), ("hugepages", "2M", "100"), ("overcommit", "", "always:95")]
BOUND = 10.0  # seconds that anything may take here
MANY_PAGES = 6000  # which the simulated kernel makes in 12 pieces
PACE = 0.05  # seconds for a piece
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/lib/kerntune/claims.json")


def node_pool(number: int) -> str:
    return f"sys/devices/system/node/node{number}/hugepages/hugepages-2048kB/nr_hugepages"


def queue(device: str) -> str:
    return f"sys/block/{device}/queue/scheduler"


def small_host(*, programs: int = GIB, whole: int | None = None, compaction: int = 0) -> SimulatedKernel:
    """One node of 16 GiB and two NVMe drives; 6144 pages of 2 MiB are the limit."""
    nodes = [Node(16 * GIB, programs=programs, whole=whole)]
    kernel = SimulatedKernel(nodes, compaction=compaction, plain=plain_files())
    kernel.plug("nvme0n1", by_id="nvme-First")
    kernel.plug("nvme1n1", by_id="nvme-Second")
    return kernel


def large_host(nodes: int = 2) -> SimulatedKernel:
    """Nodes of 16 GiB, two NVMe drives and a disk."""
    kernel = SimulatedKernel([Node(16 * GIB, programs=GIB) for _ in range(nodes)], plain=plain_files())
    kernel.plug("nvme0n1", by_id="nvme-First")
    kernel.plug("nvme1n1", by_id="nvme-Second")
    kernel.plug("sda", scheduler="mq-deadline", offered=("none", "mq-deadline", "bfq"), by_id="ata-Disk")
    return kernel


def have_pages(kernel: SimulatedKernel, *counts: int, used: int = 0, size: int = PAGE) -> None:
    """Each node has so many pages before the daemon starts, `used` of them mapped by a program."""
    kernel.read(POOL)  # the pools exist once they were read
    for node, count in zip(kernel.nodes, counts, strict=True):
        node.pools[size].asked, node.pools[size].used = count, used


def pages(kernel: SimulatedKernel, size: int = PAGE) -> list[int]:
    """What each node's pool was asked to be."""
    return [node.pools[size].asked for node in kernel.nodes]


def host_values(kernel: SimulatedKernel) -> dict[str, object]:
    """Every value that a tunable may change."""
    kernel.read(POOL)
    return {
        "pools": [{size: pool.asked for size, pool in node.pools.items()} for node in kernel.nodes],
        "schedulers": {name: disk.scheduler for name, disk in kernel.disks.items()},
        "preferences": {name: policy.epp for name, policy in kernel.policies.items()},
        "borrow": {size: kernel.borrow.get(size, 0) for size in kernel.sizes},
        "plain": {path: file.value for path, file in kernel.plain.items()},
        "read_ahead": {name: disk.read_ahead for name, disk in kernel.disks.items()},
        "governors": {name: policy.governor for name, policy in kernel.policies.items()},
        "overcommit": dict(kernel.overcommit),
    }


@dataclass(slots=True)
class MemoryStore:
    """A StateStore that forgets at the end of the test; `full` is raised by whatever would save."""

    claims: Claims = field(default_factory=Claims)
    baselines: Mapping[Target, str] = field(default_factory=dict)
    reserved: Collection[Target] = ()
    full: OSError | None = None
    full_for_claims: OSError | None = None
    kept: list[Target] = field(default_factory=list)

    def save_baselines(self, baselines: Sequence[Baseline]) -> None:
        self._save()
        self.kept += [baseline.target for baseline in baselines]
        self.baselines = {baseline.target: baseline.value for baseline in baselines} | dict(self.baselines)

    def drop_baselines(self, targets: Collection[Target]) -> None:
        self._save()
        self.baselines = {target: value for target, value in self.baselines.items() if target not in targets}

    def commit(self, claims: Claims) -> None:
        self._save()
        if self.full_for_claims:
            raise self.full_for_claims
        self.claims = claims

    def _save(self) -> None:
        if self.full:
            raise self.full


@dataclass(slots=True)
class Lab:
    """A running engine, and short words for what is asked of it."""

    kernel: SimulatedKernel
    store: MemoryStore
    engine: Reconciler
    reports: list[Report] = field(default_factory=list)

    async def set(self, *settings: tuple[str, str, str | int], **options: bool) -> Answer:
        """A Set; options are those of Request: persist, partial, must_win."""
        return await self.engine.change(request(*settings, **options), "Set")

    async def unset(self, *what: tuple[str, str], persist: bool = False) -> Answer:
        named = tuple(Setting(tunable, instances, "") for tunable, instances in what)
        return await self.engine.change(Request(named, unset=True, persist=persist), "Unset")

    async def one(self, tunable: str, instances: str, value: str | int, **options: bool) -> Outcome:
        """A Set of one setting that covers one target: its outcome."""
        (outcome,) = (await self.set((tunable, instances, value), **options)).outcomes
        return outcome

    @property
    def claims(self) -> list[str]:
        """The claims in force, which are those that are saved."""
        assert dict(self.engine.edits.claims.by_id) == dict(self.store.claims.by_id)
        return sorted(f"{claim.id}={claim.value}" for claim in self.engine.edits.claims.by_id.values())

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait for a report after which something holds."""
        arrived = asyncio.Event()
        self.engine.observed.listeners.append(lambda _report: arrived.set())
        async with asyncio.timeout(BOUND):
            while not holds():
                await arrived.wait()
                arrived.clear()

    def writes(self) -> list[tuple[str, str]]:
        """What was written since this was asked last."""
        done = list(self.kernel.journal)
        self.kernel.journal.clear()
        return done


def request(*settings: tuple[str, str, str | int], **options: Any) -> Request:
    """Options are those of Request: persist, partial, must_win, hold."""
    return Request(tuple(Setting(tunable, at, str(value)) for tunable, at, value in settings), who="alice", **options)


def claim(origin: Origin, tunable: str, instances: str, value: str | int, seq: int = 1) -> Claim:
    return Claim(origin, tunable, instances, str(value), who=origin.word, seq=seq)


@contextlib.asynccontextmanager
async def running(
    kernel: SimulatedKernel,
    *,
    claims: Iterable[Claim] = (),
    baselines: Mapping[Target, str] | None = None,
    limits: Limits | None = None,
    companion: Companion | None = None,
    clock: Callable[[], float] = time.monotonic,
    bounds: Bounds | None = None,
) -> AsyncIterator[Lab]:
    """An engine that has looked at the kernel; nothing was written yet."""
    store = MemoryStore(Claims.of(*claims), baselines or {})
    engine = Reconciler(kernel, REGISTRY, store, limits=limits, companion=companion, clock=clock, bounds=bounds)
    lab = Lab(kernel, store, engine)
    engine.observed.listeners.append(lab.reports.append)
    working = asyncio.create_task(engine.work())
    try:
        await engine.observed.read_all()
        yield lab
    finally:
        working.cancel()
        await asyncio.wait([working])
        engine.threads.close()


@dataclass(slots=True)
class Clock:
    """A clock that stands until it is set."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def told(outcome: Outcome) -> tuple[str, str, State, Reason]:
    """What a caller reads first."""
    return outcome.target.instance, outcome.actual, outcome.state, outcome.reason


@dataclass(slots=True)
class Gate:
    """A kernel that does not return from its first write to a file until it is let go."""

    path: str
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    free: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def __call__(self, path: str, text: str) -> None:
        if path == self.path and not self.free.is_set():
            self.loop.call_soon_threadsafe(self.reached.set)
            self.free.wait(BOUND)


def held(kernel: SimulatedKernel, path: str) -> Gate:
    """Have the kernel wait in its first write to a file."""
    gate = Gate(path)
    kernel.before_write = gate
    return gate


def slow_pools(kernel: SimulatedKernel) -> asyncio.Event:
    """Have a piece of a pool take PACE; return what is set when the first one begins."""
    begins, loop = asyncio.Event(), asyncio.get_running_loop()

    def writing(_path: str, _text: str) -> None:
        loop.call_soon_threadsafe(begins.set)

    kernel.pace, kernel.before_write = PACE, writing
    return begins


async def begun(*requests: Awaitable[Answer]) -> list[asyncio.Task[Answer]]:
    """Begin the requests; each has asked for its pass, in this order."""
    tasks = [asyncio.ensure_future(one) for one in requests]
    await asyncio.sleep(0)
    return tasks


async def ends(*tasks: asyncio.Task[Answer]) -> list[Answer | BaseException]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def look(lab: Lab, clock: Clock, seconds: float = 60.0) -> list[tuple[str, str]]:
    """Make a pass of each lane after so many seconds, and return what it wrote."""
    clock.now += seconds
    await lab.engine.reconcile("drift")
    return lab.writes()


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner: object, method: str, error: Exception) -> Iterator[None]:
    """Calls of the method fail so meanwhile."""

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(owner, method, fails)
        yield
