"""The experiment: rounds of before and after in random order, until a planned look has a verdict."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import Final, Protocol

from kerntune.bench import host, runs, statistics, traps
from kerntune.bench.file import ModelFile
from kerntune.bench.legs import HOGS, WAKES, Workload
from kerntune.bench.model import Leg, Look, Round, Sample, Verdict
from kerntune.bench.runs import Arm
from kerntune.bench.worker import ended as ended_by
from kerntune.run.shield import Shield

LOST: Final = "the process beside the command was killed: memory may have been short (see the kernel's log)"
ENDED_EARLY: Final = "the command ended before it printed what was waited for"
CPUS: Final = os.cpu_count() or 1
LATE_SECONDS: Final = 60.0  # before the user is told that the text has not come
LINE: Final = 200  # characters of the last line that a command printed
# A tenth of the time that the command has run passes between two looks at the pool, within these two bounds.
SHORTEST_SECONDS: Final = 0.002
POLL_SECONDS: Final = 0.05


class Switch(Protocol):
    """The switch that changes the host for the runs "after", and reads the kernel's values."""

    def on(self) -> AbstractAsyncContextManager[None]:
        """Change the host for the length of a block."""

    async def values(self) -> Mapping[str, str]:
        """Return the kernel's current value for each target of the change, by the target's name."""


@dataclass(frozen=True, slots=True)
class Command:
    """A user's command: it is timed to its end, or to the moment when it prints `until`.

    `is_told` says that a report may have its words and its output.
    """

    argv: tuple[str, ...]
    until: str = ""
    is_told: bool = True


@dataclass(frozen=True, slots=True)
class Bench:
    """The conditions that all legs have in common.

    `values` are those of `switch` without and with the change. `cpu` is the CPU of the cpu leg. `page_size` is the page
    size in bytes of the pool that is used after the change, 0 for none. The bench touches `touched` bytes of memory
    before each run, where the host of a virtual machine takes back free memory. `warn` receives what cannot wait for
    the end.
    """

    before: Arm
    after: Arm
    switch: Switch
    values: Mapping[bool, Mapping[str, str]]
    file: ModelFile | None
    command: Command | None
    cpu: int
    page_size: int
    touched: int
    looks: tuple[Look, ...]
    has_control: bool
    random: Random
    warn: Callable[[str], object] = lambda _: None


class Progress(Protocol):
    """The callback for a leg's progress before each run: runs done, runs at the next look, and the seconds of one."""

    def __call__(self, leg: Workload, done: int, planned: int, seconds: float) -> None: ...


async def measure(leg: Workload, bench: Bench, progress: Progress) -> Leg:
    """Measure a leg until it has a verdict. Raise what the switch raises."""
    async with _hogs(leg, bench) as spinning:
        return await _Experiment(leg, bench, progress, spinning).run()


class _Experiment:
    """A leg that is being measured."""

    def __init__(
        self, leg: Workload, bench: Bench, progress: Progress, spinning: Sequence[asyncio.Future[Sample]]
    ) -> None:
        self._leg, self._bench, self._progress, self._spinning = leg, bench, progress, spinning
        self._sides = ("before", "after", "control") if bench.has_control else ("before", "after")
        self._rounds: list[Round] = []
        self._started = time.monotonic()

    async def run(self) -> Leg:
        self._tell(0)
        for after in (True, False):  # one warm-up for each side, which is not counted
            warm = await self._sample(after=after)
            if why := warm.trouble or (traps.unused_at_once(warm, self._leg.on_pages) if after else ""):
                return self._leg_of(Verdict.INVALID, why)
        self._started = time.monotonic()
        while True:
            self._rounds.append(await self._round())
            if why := traps.at_once(self._rounds[-1]):
                return self._leg_of(Verdict.INVALID, why)
            if len(self._rounds) not in {look.pairs for look in self._bench.looks}:
                continue
            if why := traps.found(self._rounds, self._leg.name, on_pages=self._leg.on_pages, cpus=CPUS):
                return self._leg_of(Verdict.INVALID, why)
            if conclusion := statistics.conclude(self._bench.looks, self._rounds):
                return self._leg_of(conclusion.verdict, conclusion.reason)

    def _leg_of(self, verdict: Verdict, reason: str) -> Leg:
        rounds, looks = self._rounds, self._bench.looks
        whole = [each for each in rounds if not traps.at_once(each)]
        looked = statistics.taken(looks, whole)
        detectable = statistics.detectable(whole, looks, self._bench.random) if looked else None
        name, on_pages = self._leg.name, self._leg.on_pages
        notes = cold_notes(rounds) if name == "io" else traps.notes(whole, name, on_pages=on_pages, cpus=CPUS)
        told = tuple(filter(None, (self._leg.note, *notes)))
        return Leg(self._leg.name, self._leg.what, tuple(rounds), looked, verdict, reason, detectable, told)

    async def _round(self) -> Round:
        found: dict[str, Sample] = {}
        for place, side in enumerate(self._bench.random.sample(self._sides, len(self._sides))):
            self._tell(place)
            found[side] = await self._sample(after=side == "after")
        return Round(found["before"], found["after"], found.get("control"))

    def _tell(self, place: int) -> None:
        pairs, sides = len(self._rounds), len(self._sides)
        done = pairs * sides + place
        planned = next(look.pairs for look in self._bench.looks if look.pairs > pairs) * sides
        self._progress(self._leg, done, planned, (time.monotonic() - self._started) / done if done else 0.0)

    async def _sample(self, *, after: bool) -> Sample:
        async with AsyncExitStack() as stack:
            if after:
                await stack.enter_async_context(self._bench.switch.on())
            if drift := await self._drift(after=after):
                return Sample(0.0, trouble=drift)
            sample = await _watched(self._leg, self._bench, after=after)
            if any(task.done() for task in self._spinning):
                sample = replace(sample, trouble="a busy loop has ended: was memory short?")
            if not sample.trouble:
                sample = replace(sample, trouble=await self._drift(after=after))
        return sample

    async def _drift(self, *, after: bool) -> str:
        """Return what differs from the beginning, or ""."""
        now = await self._bench.switch.values()
        for name, was in self._bench.values[after].items():
            if now.get(name) != was:
                how = "with" if after else "without"
                return f"settings drifted: {name} is {now.get(name)} {how} the change, and was {was}"
        return ""


def cold_notes(rounds: Sequence[Round]) -> Iterator[str]:
    """Yield the remarks about reads from a disk."""
    unproven = sum(1 for run in traps.runs_of(rounds) if not run.cold)
    if unproven:
        yield f"not proven cold in {unproven} runs: the kernel says neither what it read nor what it had of the file"
    if host.environment()["virtualisation"]:
        yield "this is a virtual machine: its host may have had the file in memory"


async def _watched(leg: Workload, bench: Bench, *, after: bool) -> Sample:
    """Run once, and add the CPUs that others used meanwhile, and whether the CPUs were throttled."""
    began, busy, own, hot = time.monotonic(), host.cpu_seconds(), _own_seconds(), host.throttled()
    sample = await _once(leg, bench, after=after)
    seconds = time.monotonic() - began
    used = _own_seconds() - own + (seconds if leg.name == "cpu" else 0.0)  # the busy loops use a whole CPU
    others = round(max(0.0, host.cpu_seconds() - busy - used) / max(seconds, 1e-3), 3)
    figures = {traps.THROTTLED: float(host.throttled() - hot), traps.OTHERS: others}
    return replace(sample, figures={**sample.figures, **figures})


def _own_seconds() -> float:
    """Return the CPU time of this process and of the processes that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


async def _once(leg: Workload, bench: Bench, *, after: bool) -> Sample:
    arm = bench.after if after else bench.before
    if leg.name == "cpu":
        # Today the process may run on all CPUs: where the change is about CPUs, the runs before keep them all.
        cpus = frozenset() if bench.after.shield.cpus else frozenset({bench.cpu})
        arm = replace(arm, shield=replace(arm.shield, cpus=arm.shield.cpus or cpus))
        return await runs.worker(arm, "cpu", {"wakes": WAKES})
    if bench.touched:
        pool = min(bench.touched, host.free_pages(bench.page_size) * bench.page_size) if bench.page_size else 0
        await runs.worker(arm, "touch", {"bytes": bench.touched - pool})
        if pool:
            await runs.worker(arm, "touch", {"bytes": pool, "hugetlb": bench.page_size})
    if bench.command:
        return await _command(bench.command, arm, bench)
    assert bench.file
    file = bench.file
    # An overlay's files have their pages in the file system below it: cachestat(2) finds none.
    tells = file.disk.file_system != "overlay"
    how = {"fd": file.fd, "bytes": file.size, "on_disk": file.is_on_disk, "tells": tells}
    return await runs.worker(arm, leg.name, how, fds=[file.fd])


async def _command(command: Command, arm: Arm, bench: Bench) -> Sample:
    looks = [_pool(bench.page_size)]

    async def beside(said: Callable[[], str]) -> None:
        await asyncio.gather(_look_on(looks, bench.page_size), _tell_late(command, said, bench.warn))

    ended = await runs.command(arm, command.argv, until=command.until, meanwhile=beside)
    figures = dict[str, float]()
    if usage := ended.usage:
        figures |= {"user_seconds": usage.ru_utime, "system_seconds": usage.ru_stime}
        figures |= {"minor_faults": usage.ru_minflt, "major_faults": usage.ru_majflt}
        figures |= {"read_bytes": usage.ru_inblock * 512}
        if usage.ru_maxrss > ended.least:
            figures[traps.RESIDENT] = usage.ru_maxrss * 1024
    if bench.page_size:
        had, free = looks[0]
        figures[traps.TAKEN] = taken = max(used for used, _ in looks) - had
        if 0 < free >= taken:  # else the pool had no page, or some pages were borrowed
            figures[traps.LEFT] = min(left for _, left in looks)
    return Sample(ended.seconds, figures, trouble=_trouble(command, ended))


async def _look_on(looks: list[tuple[int, int]], page_size: int) -> None:
    """Look at the pool again and again if there is one: often at first, because the command may be short."""
    began = time.monotonic()
    while page_size:
        looks.append(_pool(page_size))
        await asyncio.sleep(min(max((time.monotonic() - began) / 10, SHORTEST_SECONDS), POLL_SECONDS))


def _pool(page_size: int) -> tuple[int, int]:
    """Return the bytes of huge pages that are used, and that are free; 0 for both where there is no pool."""
    if not page_size:
        return 0, 0
    return host.used_pages(page_size) * page_size, host.free_pages(page_size) * page_size


async def _tell_late(command: Command, said: Callable[[], str], warn: Callable[[str], object]) -> None:
    """Warn when the text that is waited for has not come after a while."""
    if command.until:
        await asyncio.sleep(LATE_SECONDS)
        waited = f"{command.until!r}{_last_line(said())}" if command.is_told else "what is waited for"
        warn(f"the command has run for {LATE_SECONDS:.0f} s, and has not printed {waited}")


def _trouble(command: Command, ended: runs.Ended) -> str:
    if ended.usage is None:
        return LOST
    said = _last_line(ended.output) if command.is_told else ""
    if command.until and not ended.found:
        return f"the command ended before it printed {command.until!r}{said}" if command.is_told else ENDED_EARLY
    if ended.status and not command.until:
        return f"the command failed: {ended_by(ended.status)}{said}"
    return ""


def _last_line(output: str) -> str:
    last = output.strip().rpartition("\n")[2][:LINE]
    return f"; its last line: {last}" if last else ""


@asynccontextmanager
async def _hogs(leg: Workload, bench: Bench) -> AsyncIterator[Sequence[asyncio.Future[Sample]]]:
    """Keep the CPU of the cpu leg busy, from before the leg's first run to the end of its last."""
    if leg.name != "cpu":
        yield ()
        return
    arm = Arm(Shield(cpus=frozenset({bench.cpu})), bench.before.environment)
    spinning = [asyncio.ensure_future(runs.worker(arm, "hog", {}, is_endless=True)) for _ in range(HOGS)]
    try:
        yield spinning
    finally:
        for task in spinning:
            task.cancel()
        await asyncio.wait(spinning)
