"""What /proc says of a running process: its memory and how often it woke up (proc(5))."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Memory(NamedTuple):
    """MiB, of smaps_rollup."""

    rss: float
    private_dirty: float


def memory(pid: int) -> Memory:
    """Resident memory, and what of it is the process's own and written."""
    fields = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    return Memory(fields["Rss"] / 1024, fields["Private_Dirty"] / 1024)


def wakeups(pid: int) -> int:
    """Voluntary context switches of all threads there are: each was a wait that ended."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += _fields(task / "status")["voluntary_ctxt_switches"]
    return total


def cpu_seconds(pid: int) -> float:
    """The time that all threads there are have run (Documentation/scheduler/sched-stats.rst)."""
    files = (task / "schedstat" for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def idle_share(before: list[int], after: list[int]) -> float:
    """The share of time in which no CPU had anything to do, between two `cpu_times`."""
    spent = [late - early for early, late in zip(before, after, strict=True)]
    return (spent[3] + spent[4]) / max(1, sum(spent[:8]))


def cpu_times() -> list[int]:
    """The first line of /proc/stat: ticks of all CPUs together, idle and iowait being the fourth and fifth."""
    return [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]


def _fields(path: Path) -> dict[str, int]:
    """The numbers in a file of `Name: number unit` lines."""
    rows = (line.replace(":", "").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
