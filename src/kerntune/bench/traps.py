"""The reasons why a measurement is useless, decided from its runs alone, each with its figures. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Final

from kerntune.bench.model import Round, Sample
from kerntune.units import mib

USED: Final = 0.5  # of the loaded bytes must lie on the pages that were asked for
HOT: Final = 0.1  # part of the runs
BUSY: Final = 0.5  # of the CPUs, used by other programs in most of the runs
READ: Final = 0.01  # of the loaded bytes may come from the disk where the file should be in memory
LITTLE: Final = 0.01  # of a command's memory: so few huge pages change nothing
SEEN: Final = 0.5  # seconds: a command that runs so long takes no huge page unseen
COMMAND: Final = "cmd"

# Names of figures. TAKEN is the memory that a command took of the pool, LEFT the least that the pool had left. RESIDENT
# is the most memory without huge pages that one of its processes had.
OTHERS: Final = "others_cpus"
THROTTLED: Final = "throttled"
TAKEN: Final = "pool_taken_bytes"
LEFT: Final = "pool_left_bytes"
RESIDENT: Final = "resident_bytes"

# Tunables that do not affect a leg: (leg, tunable) -> why. Measured, and read in the sources of the loaders.
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
    """Return why it is useless to go on after this round, or ""."""
    return next((run.trouble for run in runs_of([one]) if run.trouble), "")


def found(rounds: Sequence[Round], leg: str, *, on_pages: str, cpus: int) -> str:
    """Return why the rounds of a leg are invalid, or "".

    `on_pages` names the figure that shows the use of huge pages, where these are compared: "hugetlb_bytes",
    "anon_huge_bytes", "pool_taken_bytes", or "".
    """
    runs = runs_of(rounds)
    others = busy(runs, cpus) if leg != COMMAND else ""
    return (
        unused([each.after for each in rounds], on_pages) or throttled(runs) or (others and f"machine busy: {others}")
    )


def unused_at_once(after: Sample, figure: str) -> str:
    """Return the sentence that one run has not used huge pages, and that the others will not, or "".

    A command's pages are counted from outside, so a short command could have taken some unseen.
    """
    return "" if figure == TAKEN and after.seconds < SEEN else unused([after], figure)


def unused(after: Sequence[Sample], figure: str) -> str:
    """Return the sentence that the runs after the change did not use huge pages, or ""."""
    if not figure:
        return ""
    used, loaded = on_pages_of(after, figure)
    if used > LITTLE * loaded if figure == TAKEN else used >= USED * loaded:
        return ""
    return f"huge pages not used: {mib(used)} of {mib(loaded)} MiB lay on them"


def on_pages_of(after: Sequence[Sample], figure: str) -> tuple[float, float]:
    """Return the bytes that lay on huge pages, and all that could have: for a command, its memory."""

    def middle(name: str) -> float:
        return median(run.figures.get(name, 0.0) for run in after)

    return middle(figure), middle(figure) + middle(RESIDENT) if figure == TAKEN else middle("loaded_bytes")


def notes(rounds: Sequence[Round], leg: str, *, on_pages: str, cpus: int) -> Iterator[str]:
    """Yield the remarks about valid runs: how few huge pages they used, and how much came from the disk."""
    runs, after = runs_of(rounds), [each.after for each in rounds]
    if leg == COMMAND and (others := busy(runs, cpus)):
        # Not all processes that a command starts can be counted as its own.
        yield f"{others}, or the command itself with what it does not wait for"
    if on_pages == TAKEN and after:
        used, memory = on_pages_of(after, on_pages)
        if LITTLE * memory < used < USED * memory:
            yield f"huge pages held {mib(used)} of the {mib(memory)} MiB of the command's memory"
        if short := sum(1 for run in after if run.figures.get(LEFT) == 0):
            yield f"the command took the last free huge page in {short} of {len(after)} runs: more may help"
    loads = [run for run in runs if "loaded_bytes" in run.figures]
    if read := sum(1 for run in loads if run.figures["read_bytes"] > READ * run.figures["loaded_bytes"]):
        yield f"{read} of {len(loads)} runs read from the disk: the file did not stay in memory"


def throttled(runs: Sequence[Sample]) -> str:
    """Return the sentence that the CPUs were throttled meanwhile, or ""."""
    hot = sum(1 for run in runs if run.figures.get(THROTTLED))
    return f"clocks throttled: the CPUs were too hot in {hot} of {len(runs)} runs" if hot > HOT * len(runs) else ""


def busy(runs: Sequence[Sample], cpus: int) -> str:
    """Return what other programs used if that is much, or ""."""
    taken = [run.figures[OTHERS] for run in runs if OTHERS in run.figures]
    if not taken or median(taken) <= BUSY * cpus:
        return ""
    return f"other programs used {median(taken):.1f} of {cpus} CPUs in most of the runs"


def out_of_reach(leg: str, tunables: Iterable[str]) -> str:
    """Return why none of these tunables affects a leg, or "" where one may."""
    named = list(dict.fromkeys(tunables))
    whys = [OUT_OF_REACH.get((leg, name), "") for name in named]
    return "; ".join(dict.fromkeys(whys)) if whys and all(whys) else ""
