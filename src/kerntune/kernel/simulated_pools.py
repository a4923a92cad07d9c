"""The huge pages of a simulated host, page by page as mm/hugetlb.c keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


class Pool:
    """One node's huge pages of one size, in pages, with the counters of struct hstate (mm/hugetlb.c)."""

    __slots__ = ("_used", "surplus", "total")

    def __init__(self, asked: int = 0, used: int = 0) -> None:
        self.total = self.surplus = self._used = 0
        self.asked, self.used = asked, used

    @property
    def asked(self) -> int:
        """The persistent pages."""
        return self.total - self.surplus

    @asked.setter
    def asked(self, count: int) -> None:
        """Set the pool as if a user had asked for the pages at its node alone."""
        self.total = max(count, self._used)
        self.surplus = self.total - count

    @property
    def used(self) -> int:
        return self._used

    @used.setter
    def used(self, count: int) -> None:
        """Let programs have `count` pages.

        While the pool has surplus, the kernel frees a page that programs give back (free_huge_folio).
        """
        freed = min(max(0, self._used - count), self.surplus)
        borrowed = max(0, count - self.total)
        self.surplus += borrowed - freed
        self.total += borrowed - freed
        self._used = count

    @property
    def free(self) -> int:
        return self.total - self._used


@dataclass(slots=True)
class Node:
    """One NUMA node: its memory in bytes, of which programs use a part and the page cache another.

    Pages of a pool push the page cache out. `whole` caps the unfragmented memory, in bytes.
    """

    memory: int
    programs: int = 0
    whole: int | None = None
    pools: dict[int, Pool] = field(default_factory=dict)
    cache: int = 0

    @property
    def hugetlb(self) -> int:
        return sum(size * pool.total for size, pool in self.pools.items())

    @property
    def free(self) -> int:
        return self.memory - self.programs - self.hugetlb - self.cache

    def give(self, size: int) -> bool:
        """Take one page of that size out of the node's memory; return False if the node has none."""
        if self.free + self.cache < size or (self.whole is not None and self.whole < size):
            return False
        self.cache -= max(0, size - self.free)
        if self.whole is not None:
            self.whole -= size
        return True

    def take_back(self, size: int) -> bool:
        """Free one page of that size; return False if none is free."""
        pool = self.pools[size]
        if not pool.free:
            return False
        pool.total -= 1
        if self.whole is not None:
            self.whole += size
        return True


@dataclass(frozen=True, slots=True)
class Resizing:
    """The effect of writing a number of pages of one size on all nodes, or on one (set_max_huge_pages).

    `turns` has the node whose turn it was last, by action and page size. Up to Linux 6.13 the kernel adds the surplus
    pages of the other nodes to a number for one node.
    """

    nodes: Sequence[Node]
    size: int
    turns: dict[tuple[str, int], int]
    counts_foreign_surplus: bool
    reserved: int = 0

    def to(self, count: int, only: int | None = None) -> None:
        """Grow the pools as far as memory goes, without an error; or free the free pages, and make the rest surplus."""
        pools = [node.pools[self.size] for node in self.nodes]
        numbers = range(len(pools)) if only is None else (only,)
        if only is not None:
            others = [pool for number, pool in enumerate(pools) if number != only]
            count += sum(pool.total if self.counts_foreign_surplus else pool.asked for pool in others)
        asked, kept = sum(pool.asked for pool in pools), self.reserved + sum(pool.used for pool in pools)
        while asked < count and (pool := self._turn("grow", numbers, lambda n: pools[n].surplus > 0)):
            pool.surplus -= 1
            asked += 1
        while asked < count and (pool := self._turn("grow", numbers, lambda n: self.nodes[n].give(self.size))):
            pool.total += 1
            asked += 1
        while asked > max(count, kept) and self._turn("shrink", numbers, lambda n: self.nodes[n].take_back(self.size)):
            asked -= 1
        while asked > count and (pool := self._turn("shrink", numbers, lambda n: pools[n].asked > 0)):
            pool.surplus += 1
            asked -= 1

    def borrow(self) -> bool:
        """Make one surplus page on any node, for the program that reserves it; return False if no node has memory."""
        pool = self._turn("grow", range(len(self.nodes)), lambda n: self.nodes[n].give(self.size))
        if pool:
            pool.total += 1
            pool.surplus += 1
        return pool is not None

    def return_surplus(self) -> bool:
        """Free one surplus page that nobody uses (return_unused_surplus_pages); return False if none exists."""
        pools = [node.pools[self.size] for node in self.nodes]
        pool = self._turn(
            "shrink", range(len(pools)), lambda n: bool(pools[n].surplus and self.nodes[n].take_back(self.size))
        )
        if pool:
            pool.surplus -= 1
        return pool is not None

    def _turn(self, what: str, numbers: Sequence[int], able: Callable[[int], bool]) -> Pool | None:
        """Return the pool of the next node in turn that is `able`, or None if no node is."""
        last = self.turns.get((what, self.size), -1)
        for number in sorted(numbers, key=lambda number: (number <= last, number)):
            if able(number):
                self.turns[what, self.size] = number
                return self.nodes[number].pools[self.size]
        return None


def pool_files(folder: str, pools: Sequence[Pool]) -> dict[str, str]:
    """Return the counters of one pool, or the sums over the pools of all nodes."""
    return {
        f"{folder}/nr_hugepages": str(sum(pool.total for pool in pools)),
        f"{folder}/free_hugepages": str(sum(pool.free for pool in pools)),
        f"{folder}/surplus_hugepages": str(sum(pool.surplus for pool in pools)),
    }


def node_meminfo(number: int, node: Node) -> str:
    """Return the memory of one node (drivers/base/node.c)."""
    figures = {"MemTotal": node.memory, "MemFree": node.free, "Inactive(file)": node.cache, "FilePages": node.cache}
    return "\n".join(f"Node {number} {name}: {value >> 10} kB" for name, value in figures.items())
