"""What a process gives itself before it becomes a command: kept over fork(2) and exec(2), and without the daemon.

These are its CPUs, how the kernel schedules it (`scheduling.py`), and where and how firmly its memory lies (`numa.py`).
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from kerntune.errors import AccessDenied, NoSuchTarget
from kerntune.run import numa, scheduling
from kerntune.run.scheduling import RealTime, Scheduling, aside
from kerntune.units import parse_cpus, spell_cpus

CPUS: Final = "/sys/devices/system/cpu"


@dataclass(frozen=True, slots=True)
class Shield:
    """What a process asks for; by default all stays as it is.

    `cpus` are those to stay on, and `slice_us` is the slice in microseconds. `memlock` raises the soft limit of locked
    memory to the hard one.
    """

    cpus: frozenset[int] = frozenset()
    slice_us: int = 0
    nice: int | None = None
    real_time: RealTime = RealTime.NO
    numa: numa.Policy | None = None
    memlock: bool = False

    def __bool__(self) -> bool:
        return self != Shield()

    def apply(self) -> None:
        """Put the calling thread, and what it starts from now on, behind the shield, and check that by reading it back.

        Real time of the kind MAIN ends with fork(2): the process that becomes the command has to ask for it.
        Raise InvalidValue for what no kernel takes, and NotSupported where this one cannot keep it. Raise NoSuchTarget
        for CPUs that are not there or offline, and AccessDenied for what the process may not do. CPUs come last: they
        stay as they were when anything else is refused.
        """
        scheduling.check(self.slice_us, self.nice, self.real_time)
        if self.numa:
            self.numa.apply()
        if self.real_time:
            scheduling.set_real_time(self.real_time)
        elif self.slice_us or self.nice is not None:
            scheduling.set_fair(self.slice_us, self.nice)
        if self.cpus:
            _set_cpus(self.cpus)
        if self.memlock:
            hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))

    def as_json(self) -> dict[str, Any]:
        """Return the shield in the form that `from_json` reads, in another process."""
        return {
            "cpus": sorted(self.cpus),
            "slice_us": self.slice_us,
            "nice": self.nice,
            "real_time": str(self.real_time),
            "numa": [self.numa.kind, *sorted(self.numa.nodes)] if self.numa else [],
            "memlock": self.memlock,
        }

    @classmethod
    def from_json(cls, asked: Mapping[str, Any]) -> Shield:
        """Return the shield that `as_json` wrote; what is missing stays as it is. Raise TypeError or ValueError."""
        kind, *nodes = asked.get("numa") or (0,)
        return cls(
            frozenset(asked.get("cpus", ())),
            asked.get("slice_us", 0),
            asked.get("nice"),
            RealTime(asked.get("real_time", "")),
            numa.Policy(numa.Kind(kind), frozenset(nodes)) if kind else None,
            bool(asked.get("memlock")),
        )


@dataclass(frozen=True, slots=True)
class InForce:
    """What a process has: its CPUs, its scheduling, and the bytes that it may lock (None: any, or unknown)."""

    cpus: frozenset[int]
    scheduling: Scheduling
    lockable_bytes: int | None


def try_out(shield: Shield) -> None:
    """Raise what `apply` would raise; nothing changes but a thread that ends here.

    The limit of locked memory belongs to the process, so it stays; to raise it to the hard limit is always allowed.
    """
    aside(replace(shield, memlock=False).apply)


def in_force(pid: int = 0) -> InForce:
    """Return what a process has (its main thread), or the calling thread for 0.

    Raise ProcessLookupError when the process has ended.
    """
    return InForce(frozenset(os.sched_getaffinity(pid)), scheduling.in_force(pid), lockable_bytes(pid))


def lockable_bytes(pid: int = 0) -> int | None:
    """Return the soft limit of locked memory; None without a limit, and where the process belongs to somebody else."""
    try:
        soft = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)[0]
    except PermissionError:
        return None
    return None if soft == resource.RLIM_INFINITY else soft


def _set_cpus(cpus: frozenset[int]) -> None:
    if why := unusable(cpus, cpus_in("present"), cpus_in("online")):
        raise NoSuchTarget(why, f"Online are {spell_cpus(cpus_in('online'))}")
    before = os.sched_getaffinity(0)
    hint = "The cpuset of its cgroup leaves them out: look at cpuset.cpus.effective there"
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        raise AccessDenied(f"the process may not run on CPU {spell_cpus(cpus)} ({error.strerror})", hint) from error
    # The kernel leaves out CPUs that are not allowed, and says so only when none remains.
    if lost := cpus - os.sched_getaffinity(0):
        os.sched_setaffinity(0, before)
        raise AccessDenied(f"the process may not run on CPU {spell_cpus(lost)}", hint)


def unusable(cpus: frozenset[int], present: frozenset[int], online: frozenset[int]) -> str:
    """Return the words for CPUs that are not there, or offline; "" when all are usable."""
    if absent := cpus - present:
        return f"there is no CPU {spell_cpus(absent)}"
    return f"CPU {spell_cpus(offline)} is offline" if (offline := cpus - online) else ""


def cpus_in(file: str, folder: str = CPUS) -> frozenset[int]:
    """Return the CPUs in a list of sysfs: `present`, `online` or `possible` (Documentation/admin-guide/cputopology)."""
    with open(f"{folder}/{file}", encoding="ascii") as text:
        return parse_cpus(text.read())
