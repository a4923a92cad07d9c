"""The huge pages that the host can still bear, in bytes, and why no more. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kerntune.model import Limits, Memory, Reading, Target
from kerntune.paths import setting
from kerntune.tunables.amounts import Bound
from kerntune.tunables.overcommit import NEVER, needed_limit, predicted_limit

MODE_NEVER = 2


@dataclass(frozen=True, slots=True)
class Room:
    """What the host can still bear, in bytes.

    `available` is memory that is not in use. `shared` is left of the limit on all pools with what they may borrow,
    `committable` of the commit limit in mode never, and `nodes` of each node's memory.
    """

    memory: Memory
    limits: Limits
    lent: int
    available: int
    shared: int
    committable: int | None
    nodes: Mapping[str, int]

    @classmethod
    def on(cls, memory: Memory, limits: Limits, pools: Mapping[Target, Reading]) -> Room:
        """Measure the host as it is; what is borrowed already is in its huge pages, and is not counted twice."""
        lent = sum(
            max(0, pool.figures["borrow"] - pool.figures["surplus"]) * pool.figures["size"]
            for target, pool in pools.items()
            if "/" not in target.instance
        )
        committable = None
        # Below 0 the ratio limits nothing.
        if memory.overcommit_mode == MODE_NEVER and not memory.overcommit_kbytes and memory.overcommit_ratio > 0:
            over = predicted_limit(memory, ratio=memory.overcommit_ratio) - needed_limit(memory)
            committable = over * 100 // memory.overcommit_ratio
        return cls(
            memory,
            limits,
            lent,
            available=memory.available,
            shared=memory.total * limits.hugepages_percent // 100 - memory.hugetlb - lent,
            committable=committable,
            nodes={
                node_of(target): pool.figures["available"] - pool.figures["reserve"]
                for target, pool in pools.items()
                if "available" in pool.figures
            },
        )

    def for_memory(self, node: str = "") -> Bound:
        """Return the tightest bound on memory that is taken, also by a host's own number: others need the rest.

        Of a node ("node0") less may be had than of the whole host.
        """
        memory = self.memory
        said = "{} are available and {} stay for the host"
        bounds = [Bound(self.available - memory.reserve, said, (memory.available, memory.reserve))]
        if self.committable is not None:
            why = (
                f"overcommit is {NEVER}:{memory.overcommit_ratio}, where huge pages lower the commit limit and "
                "{} of it are needed"
            )
            bounds.append(Bound(self.committable, why, (needed_limit(memory),)))
        if node in self.nodes:
            why = f"{{}} of {node} can be had, the rest stays for what runs there"
            bounds.append(Bound(self.nodes[node], why, (max(0, self.nodes[node]),)))
        return min(bounds)

    @property
    def for_pools(self) -> Bound:
        """Return what is left of the limit on all pools together."""
        ceiling, percent = self.memory.total * self.limits.hugepages_percent // 100, self.limits.hugepages_percent
        borrow = " and may borrow {} more (hugepages-overcommit)" if self.lent else ""
        return Bound(
            self.shared,
            f"huge pages may have {{}} in all ({percent} % of RAM, {setting('limits', 'hugepages-percent')}) and have "
            f"{{}}{borrow}",
            (ceiling, self.memory.hugetlb, self.lent) if self.lent else (ceiling, self.memory.hugetlb),
        )

    @property
    def spare(self) -> int:
        """Return the bytes that pools of huge pages can still take."""
        return max(0, min(self.for_memory(), self.for_pools).spare)

    def less(self, taken: int, counted: int, nodes: Mapping[str, int]) -> Room:
        """Return the room that is left when a plan takes so much."""
        return replace(
            self,
            available=self.available - taken,
            shared=self.shared - counted,
            committable=None if self.committable is None else self.committable - taken,
            nodes={node: spare - nodes.get(node, 0) for node, spare in self.nodes.items()},
        )


def node_of(target: Target) -> str:
    """Return the node that a pool is on, or "" for the whole host's."""
    return target.instance.partition("/")[2]
