"""Which CPUs are free now, by a look of one second, and whether staying on them is worth it (`--cpus auto`)."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kerntune.kernel.files import HostKernel, read_or_none
from kerntune.units import parse_cpus, spell_cpus

HOST: Final = Path("/")
SECONDS: Final = 1.0  # of the look
FREE_BELOW: Final = 0.2  # the part of its time for which a free CPU may work
# Columns of a line of /proc/stat (Documentation/filesystems/proc.rst): user, nice, system, irq, softirq and steal.
# To a command, stolen time is as lost as time in which others run. The first two columns include the guests.
BUSY: Final = (0, 1, 2, 5, 6, 7)
LINE: Final = re.compile(r"^cpu([0-9]+) (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The seconds that each online CPU has worked since boot, and the clock at which they were read."""

    at: float
    worked: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class FreeCpus:
    """The result of a look: the allowed CPUs that are free, and the part of its time for which each other one works.

    `beside` names those that are idle themselves, and the busy CPU with which each shares a core.
    """

    free: frozenset[int]
    busy: Mapping[int, float]
    beside: Mapping[int, int]

    @property
    def pinned(self) -> frozenset[int]:
        """The CPUs to stay on; none when no CPU is free, and when all are: then there is nothing to choose."""
        return self.free if self.busy else frozenset()

    @property
    def sentence(self) -> str:
        """The result and its consequence, in a sentence for people."""
        if not self.busy and not self.free:
            return "nothing is pinned: no allowed CPU could be looked at"
        if not self.free:
            return f"nothing is pinned: no CPU is free ({self._busy()})"
        if not self.busy:
            return f"nothing is pinned: all allowed CPUs are free ({spell_cpus(self.free)})"
        count = len(self.free) + len(self.busy)
        return (
            f"pinned to {len(self.free)} of {count} CPUs, {spell_cpus(self.free)}, which were free ({self._busy()}); "
            "nobody is kept off them"
        )

    def _busy(self) -> str:
        shown = (
            f"CPU {cpu} shares a core with CPU {self.beside[cpu]}"
            if cpu in self.beside
            else f"CPU {cpu} works {part:.0%}"
            for cpu, part in sorted(self.busy.items())
        )
        return ", ".join(shown)


def look(
    allowed: frozenset[int],
    root: Path = HOST,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> FreeCpus:
    """Look at the CPUs for a second, and return which of the allowed ones are free."""
    before = snapshot(root, clock)
    sleep(SECONDS)
    return decide(before, snapshot(root, clock), allowed, cores(allowed, root))


def decide(
    before: Snapshot, after: Snapshot, allowed: frozenset[int], sharing: Mapping[int, frozenset[int]]
) -> FreeCpus:
    """Return which allowed CPUs were free between two snapshots; `sharing` has the other CPUs of a CPU's core.

    A CPU that went offline, or that a container hides, is left out. Time goes by the clock: the columns for idle time
    may run backwards.
    """
    elapsed = max(after.at - before.at, 1e-9)
    parts = {
        cpu: min(max(worked - before.worked[cpu], 0.0) / elapsed, 1.0)
        for cpu, worked in after.worked.items()
        if cpu in before.worked
    }
    working = {cpu for cpu, part in parts.items() if part >= FREE_BELOW}
    seen = {cpu: parts[cpu] for cpu in allowed & parts.keys()}
    beside = {
        cpu: min(others) for cpu in seen.keys() - working if (others := sharing.get(cpu, frozenset()) & working - {cpu})
    }
    free = frozenset(seen.keys() - working - beside.keys())
    return FreeCpus(free, {cpu: seen[cpu] for cpu in sorted(seen.keys() - free)}, beside)


def snapshot(root: Path = HOST, clock: Callable[[], float] = time.monotonic) -> Snapshot:
    """Return how long each CPU has worked until now."""
    text, now = read_or_none(HostKernel(root), "proc/stat") or "", clock()
    rows = {int(found[1]): found[2].split() for found in LINE.finditer(text)}
    tick = os.sysconf("SC_CLK_TCK")
    return Snapshot(
        now, {cpu: sum(int(row[column]) for column in BUSY if column < len(row)) / tick for cpu, row in rows.items()}
    )


def cores(cpus: frozenset[int], root: Path = HOST) -> Mapping[int, frozenset[int]]:
    """Return the CPUs of each CPU's core, itself included (hyper-threading)."""
    kernel, folder = HostKernel(root), "sys/devices/system/cpu"
    return {
        cpu: parse_cpus(read_or_none(kernel, f"{folder}/cpu{cpu}/topology/thread_siblings_list") or "") for cpu in cpus
    }
