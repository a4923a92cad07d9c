"""The files that kerntuned may write, for tests that watch them: their values, and the order in which these go back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kerntune.kernel.files import WRITABLE

# It has no value to put back: a write to it is an order to the kernel, and nobody can read it
# (Documentation/admin-guide/sysctl/vm.rst).
WITHOUT_VALUE: Final = frozenset({"proc/sys/vm/compact_memory"})
TUNED: Final = tuple(pattern for pattern in WRITABLE if pattern not in WITHOUT_VALUE)

# The kernel sets one of these to 0 when the other is written (Documentation/admin-guide/sysctl/vm.rst).
PAIR: Final = frozenset({"proc/sys/vm/overcommit_ratio", "proc/sys/vm/overcommit_kbytes"})
# What an earlier write may change or refuse comes later: a governor moves the preference, and a mode goes by its limit.
LAST: Final = (
    "scaling_governor",
    "energy_performance_preference",
    "overcommit_ratio",
    "overcommit_kbytes",
    "overcommit_memory",
)
TOTALS, NODES, COUNT = "sys/kernel/mm/hugepages/", "sys/devices/system/node/", "nr_hugepages"


def chosen(text: str) -> str:
    """Return what a file holds; of a list of choices the chosen one, for loading a module makes the list longer."""
    words = text.split()
    return next((word.strip("[]") for word in words if word.startswith("[")), " ".join(words))


def in_order(paths: Iterable[str]) -> list[str]:
    """Return the paths to write, in the order in which their values go back.

    Where nodes have pools of a size, the total of that size is their sum. Writing it would spread the pages anew.
    """
    everything = sorted(paths)
    on_nodes = {size_of(path) for path in everything if path.startswith(NODES)}
    written = (path for path in everything if not (is_total(path) and size_of(path) in on_nodes))
    return sorted(written, key=lambda path: LAST.index(name) if (name := path.rpartition("/")[2]) in LAST else -1)


def is_total(path: str) -> bool:
    """Return whether it is the number of huge pages of the whole host."""
    return path.startswith(TOTALS) and path.endswith(f"/{COUNT}")


def size_of(path: str) -> str:
    """Return the directory of a pool, which has the size of its pages in its name."""
    return path.split("/")[-2]
