"""What makes a measurement of no use, as pure decisions over its runs; each is told with its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from kerntune.bench.model import Round, Sample

MIB: Final = 1 << 20
USED: Final = 0.5  # of what was loaded has to lie on the pages that were asked for
HOT: Final = 0.1  # of the runs
BUSY: Final = 0.5  # of the CPUs, taken by other programs in most of the runs
OTHERS: Final = "others_cpus"
THROTTLED: Final = "throttled"

# Legs and what does not reach them: (leg, tunable) -> why. Measured and read in the sources of the loaders.
OUT_OF_REACH: Final = {
    ("mmap", "hugepages"): "a file that is mapped lies in the page cache: no huge pages of a pool reach it",
    ("mmap", "hugepages-overcommit"): "a file that is mapped lies in the page cache: no huge pages of a pool reach it",
    ("mmap", "thp"): "a file that is mapped lies in the page cache: these huge pages are for other memory",
    ("mmap", "overcommit"): "a file is mapped for reading in every mode",
    ("mmap", "io-scheduler"): "the file is in memory: nothing is read from the disk",
    ("mmap", "read-ahead"): "the file is in memory: nothing is read from the disk",
    ("copy", "io-scheduler"): "the file is in memory: nothing is read from the disk",
    ("copy", "read-ahead"): "the file is in memory: nothing is read from the disk",
    ("copy", "overcommit"): "the mode decides whether a program gets memory, not how fast",
    ("io", "hugepages"): "what is read from the disk comes into the page cache, which takes no pages of a pool",
}


def runs_of(rounds: Iterable[Round]) -> list[Sample]:
    """Return all runs of some rounds."""
    return [run for each in rounds for run in (each.before, each.after, each.control) if run is not None]


def at_once(one: Round) -> str:
    """Return why nothing can be gained by going on after this round, or ""."""
    return next((run.trouble for run in runs_of([one]) if run.trouble), "")


def found(rounds: Sequence[Round], *, on_pages: str, cpus: int) -> str:
    """Return why the rounds are invalid, or "".

    `on_pages` names the figure that shows the use of huge pages, where these are what is compared: "hugetlb_bytes",
    "anon_huge_bytes", "pages_used", or "".
    """
    runs = runs_of(rounds)
    return unused(rounds, on_pages) or throttled(runs) or busy(runs, cpus)


def unused(rounds: Sequence[Round], figure: str) -> str:
    """Return that huge pages were not used after the change, or ""."""
    if not figure:
        return ""
    used = median(each.after.figures.get(figure, 0.0) for each in rounds)
    if figure == "pages_used":
        return "" if used else "huge pages not used: the command took none of them"
    loaded = median(each.after.figures.get("loaded_bytes", 0.0) for each in rounds)
    if used >= USED * loaded:
        return ""
    return f"huge pages not used: {mib(used)} of {mib(loaded)} MiB lay on them"


def throttled(runs: Sequence[Sample]) -> str:
    """Return that the CPUs were throttled meanwhile, or ""."""
    hot = sum(1 for run in runs if run.figures.get(THROTTLED))
    return f"clocks throttled: the CPUs were too hot in {hot} of {len(runs)} runs" if hot > HOT * len(runs) else ""


def busy(runs: Sequence[Sample], cpus: int) -> str:
    """Return that others kept the machine busy, or ""."""
    taken = [run.figures[OTHERS] for run in runs if OTHERS in run.figures]
    if not taken or median(taken) <= BUSY * cpus:
        return ""
    return f"machine busy: other programs used {median(taken):.1f} of {cpus} CPUs in most of the runs"


def out_of_reach(leg: str, tunables: Iterable[str]) -> str:
    """Return why none of these tunables reaches a leg, or "" where one may."""
    named = list(dict.fromkeys(tunables))
    whys = [OUT_OF_REACH.get((leg, name), "") for name in named]
    return "; ".join(dict.fromkeys(whys)) if whys and all(whys) else ""


def mib(size: float) -> str:
    """Write bytes as MiB, by thousands: `1 024`."""
    return f"{round(size / MIB):,}".replace(",", " ")
