"""The pools of huge pages as sysfs shows them; the module imports little, because workers of `bench` import it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path("/")
FIELDS: Final = ("nr", "free", "resv", "surplus", "nr_overcommit")


class Pool(NamedTuple):
    """The pages of one size, over all nodes (Documentation/admin-guide/mm/hugetlbpage.rst).

    `pages` includes the borrowed ones, `surplus` (h->nr_huge_pages in mm/hugetlb.c).
    """

    pages: int = 0
    free: int = 0
    reserved: int = 0
    surplus: int = 0
    overcommit: int = 0

    @property
    def left(self) -> int:
        """The free pages that no mapping has reserved."""
        return max(0, self.free - self.reserved)

    @property
    def borrowable(self) -> int:
        """The pages that the kernel may still add when a program asks, if it finds the memory."""
        return max(0, self.overcommit - self.surplus)


def read_pool(page_size: int, root: Path = ROOT) -> Pool:
    """Return the pool of a page size in bytes; all 0 where the kernel has no such size."""
    folder, found = f"{root}/sys/kernel/mm/hugepages/hugepages-{page_size >> 10}kB", []
    for name in FIELDS:
        try:
            with open(f"{folder}/{name}_hugepages", encoding="ascii") as file:
                found.append(int(file.read()))
        except (OSError, ValueError):
            found.append(0)
    return Pool(*found)
