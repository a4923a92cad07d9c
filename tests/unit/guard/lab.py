"""Hosts of the memory guard.

`Guarded` is watched by the policy alone, with a kernel that obeys: looks are late, and a write takes time. A `Scene` is
a simulated host with the guard beside the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kerntune.guard import policy
from kerntune.guard import thread as thread_module
from kerntune.guard.alerts import Alert, Alerts
from kerntune.guard.guard import MemoryGuard
from kerntune.guard.policy import GuardLimits, GuardVerdict, Sample, counting_error, decide, interval
from kerntune.kernel.memory import Watermarks, memory_of
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Claim, GuardState, Memory, Origin
from tests.harness.memory_host import ALWAYS, NEVER, MemoryHost
from tests.unit.lab import Lab, running

PAGE = 4096
LATE = 0.003  # seconds between the moment a look is due and what it finds
WRITES, SWITCHES = 0.0002, 0.019  # seconds that a write takes, and one of mode never
Act = Callable[[float], None]


def idle(_seconds: float) -> None:
    """Nobody does anything."""


@dataclass
class Guarded:
    """`act` is what programs do in so many seconds."""

    host: MemoryHost
    limits: GuardLimits = field(default_factory=GuardLimits)
    act: Act = idle
    now: float = 0.0
    looks: int = 0
    times_capped: int = 0
    verdict: GuardVerdict = field(default_factory=GuardVerdict)

    def sample(self) -> Sample:
        host, files = self.host, self.host.files()
        memory = memory_of(
            files["proc/meminfo"],
            files["proc/swaps"],
            mode=host.mode,
            ratio=host.ratio,
            kbytes=host.kbytes,
            watermarks=Watermarks(0, 0),
            arcstats=files.get("proc/spl/kstat/zfs/arcstats", ""),
            zram=[files[name] for name in files if name.endswith("mm_stat")],
        )
        reserves = (host.admin_reserve + host.user_reserve) << 10
        return Sample(memory, self.now, reserves, counting_error(host.total, host.cpus, PAGE), host.cpus)

    def look(self) -> GuardVerdict:
        """Look once, and do what that amounts to; programs go on meanwhile."""
        before, sample = self.verdict, self.sample()
        self.verdict = after = decide(sample, self.limits, before)
        self.looks += 1
        self._pass(WRITES)
        if after.caps and not before.caps:
            self.host.write("kbytes", after.kbytes)
        if after.cap and (not before.cap or after.cap.counted_at != before.cap.counted_at):
            self.times_capped += not before.caps
            self._pass(SWITCHES)
            self.host.write("memory", NEVER)
        if after.caps and after.kbytes != before.kbytes:
            self.host.write("kbytes", after.kbytes)
        elif before.caps and not after.caps and self.host.mode == NEVER:
            self.host.write("memory", ALWAYS)
            self.host.write("ratio", self.limits.ratio)
        return after

    def run(self, seconds: float, act: Act | None = None, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let so much time pass, or until something holds after a look."""
        self.act = act or idle
        end = self.now + seconds
        while self.now < end and not until():
            self.look()
            self._pass(min(interval(self.sample(), self.limits) + LATE, max(0.0, end - self.now)))
        self.act = idle

    def _pass(self, seconds: float) -> None:
        self.now += seconds
        self.act(seconds)


GIB = 1 << 30
QUICK = GuardLimits(calm=0.0)  # of 64 GiB it caps at 5.2 GiB, the floor is 3.2
PATIENCE = 10.0  # seconds
CONFIGURED = Claim(Origin.CONFIG, "overcommit", "", "always:95", who="config")


@dataclass
class Scene:
    """A host of 64 GiB with a guard. `news` are the verdicts that it told; `deaf` is raised by who is told."""

    lab: Lab
    guard: MemoryGuard
    alerts: Alerts
    news: asyncio.Queue[GuardVerdict] = field(default_factory=asyncio.Queue)
    told: list[GuardState] = field(default_factory=list)
    deaf: list[BaseException] = field(default_factory=list)

    @property
    def kernel(self) -> SimulatedKernel:
        return self.lab.kernel

    @property
    def settings(self) -> tuple[int, int, int]:
        """Mode, ratio and kilobytes, as the kernel has them."""
        now = self.kernel.overcommit
        return now["memory"], now["ratio"], now["kbytes"]

    def leave(self, gib: float) -> None:
        """Let programs take so much, between two looks, that this is left."""
        with self.guard.lock:
            self.kernel.nodes[0].programs = int((64 - gib) * GIB)
            self.kernel.committed = self.kernel.nodes[0].programs

    async def watch(self) -> None:
        """Ask for the guard on a host with plenty of memory."""
        await self.lab.one("overcommit", "", "always:95")
        await self.until(GuardState.RELAXED)

    async def cap(self) -> GuardVerdict:
        """Ask for the guard, and leave so little memory that it caps."""
        await self.watch()
        self.leave(5)
        return await self.until(GuardState.CAPPED)

    async def exhaust(self) -> None:
        """Leave less than the floor, and let it cap."""
        await self.lab.one("overcommit", "", "always:95")
        self.leave(3)
        await self.until(GuardState.EXHAUSTED)

    async def until(self, state: GuardState) -> GuardVerdict:
        return await self.met(lambda: self.guard.verdict.state is state)

    async def met(self, condition: Callable[[], bool]) -> GuardVerdict:
        """Wait for a verdict with which this holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await self.news.get()
        return self.guard.verdict

    def written(self) -> asyncio.Queue[tuple[str, str]]:
        """Return a queue of what is written from now on."""
        loop, written = asyncio.get_running_loop(), asyncio.Queue[tuple[str, str]]()

        def note(path: str, text: str) -> None:
            loop.call_soon_threadsafe(written.put_nowait, (path, text))

        self.kernel.before_write = note
        return written

    def heard(self) -> asyncio.Queue[Alert]:
        """Return a queue of the alerts that are published from now on."""
        heard = asyncio.Queue[Alert]()
        self.alerts.listeners.append(heard.put_nowait)
        return heard


@contextlib.asynccontextmanager
async def scene(
    runtime: Path,
    settings: GuardLimits = QUICK,
    kernel: SimulatedKernel | None = None,
    clock: Callable[[], float] = time.monotonic,
    **overcommit: int,
) -> AsyncIterator[Scene]:
    """Give a scene with alerts, which ask for the passes that follow a cap and its end.

    With room too the guard looks often, so that no test waits.
    """
    kernel = kernel or SimulatedKernel([Node(64 * GIB)])
    kernel.overcommit |= overcommit
    loop, alerts = asyncio.get_running_loop(), Alerts()

    def tell(verdict: GuardVerdict, memory: Memory | None, limits: GuardLimits | None) -> None:
        if host.deaf:
            raise host.deaf.pop()
        host.told.append(verdict.state)
        alerts.tell(verdict, memory, limits)
        loop.call_soon_threadsafe(host.news.put_nowait, verdict)

    guard = MemoryGuard(kernel, runtime, tell, clock)
    guard.configure(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "LONGEST", 0.03)
        patch.setattr(thread_module, "LONGEST", 0.03)
        try:
            async with running(kernel, companion=guard) as lab:
                host = Scene(lab, guard, alerts)
                guard.preparations += [alerts.prepare, lab.engine.threads.prepare]
                telling = asyncio.create_task(alerts.work(lab.engine))
                yield host
                assert not telling.done(), "the alerts have gone on"
                telling.cancel()
        finally:
            guard.stop()
            alerts.close()


async def told_of(heard: asyncio.Queue[Alert], state: GuardState) -> Alert:
    """Return the first alert with this state."""
    async with asyncio.timeout(PATIENCE):
        while (alert := await heard.get()).verdict.state is not state:
            pass
    return alert
