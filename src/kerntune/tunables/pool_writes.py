"""The writes that bring the pools of one page size to their numbers, whatever pages programs have. Pure.

What a write does is in set_max_huge_pages of mm/hugetlb.c. It takes pages out of surplus first, then makes new ones on
the nodes in turn; it frees free pages, and what is then still too many becomes surplus, which is freed when it is given
back. With surplus about, two things go wrong with one write:

- up to Linux 6.13 a node's number is taken for more than it says by the surplus pages of the other nodes;
- free pages are kept for as many as are in use anywhere, and become surplus that nobody will give back (`idle`).

Neither happens without surplus. So a plan first makes all pages persistent, which needs no memory, frees what is free,
and leaves the pages in use to the end (`through`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from kerntune.model import Reading, Target

Pools = Mapping[Target, Reading]
# What is known of a node that gave less than it was asked: nothing more is asked of it.
FULL: Final = {"full": 1, "room": 0}
COUNTERS: Final = ("total", "free", "surplus", "asked")  # of a total: the sums of its nodes


class Work(NamedTuple):
    """The pages to write for one part, pool by pool, and what that settles beside the part's own."""

    writes: Sequence[tuple[Target, int]] = ()
    touches: tuple[Target, ...] = ()


def nodes_of(group: Iterable[Target]) -> list[Target]:
    """Return the pools of single nodes; a host of one node has one pool under two names, and none of these."""
    nodes = [target for target in group if "/" in target.instance]
    return nodes if len(nodes) > 1 else []


def is_full(pool: Reading) -> bool:
    """Return whether a node has given all that it has."""
    return bool(pool.figures.get("full"))


def used(reading: Reading) -> int:
    """Return the pages that are in use."""
    return reading.figures["total"] - reading.figures["free"]


def persistent(pool: Reading) -> int:
    """Return the pages that are not surplus."""
    return pool.figures["asked"]


def idle(pools: Iterable[Reading], reserved: int) -> int:
    """Return the surplus pages that nobody uses or has reserved, and that so nobody will give back."""
    return max(0, sum(max(0, pool.figures["surplus"] - used(pool)) for pool in pools) - reserved)


def pools_after(group: Pools, goals: Mapping[Target, int]) -> dict[Target, Reading]:
    """Return the pools of one page size after writes that bring these to their goals; `group` is as they are.

    What the kernel does with a total on several nodes is its own to say: then their pools stay as they are.
    """
    nodes = nodes_of(group)
    reserved = max(pool.figures["reserved"] for pool in group.values())
    if not nodes:
        count = next(iter(goals.values()), None)
        return dict(group) if count is None else {t: with_pages(pool, count, reserved) for t, pool in group.items()}
    whole = next(pool for target, pool in group.items() if target not in nodes)
    of_nodes = goals.keys() & set(nodes)
    if whole.target in goals and (of_nodes or goals[whole.target] == whole.figures["total"]):
        # The kernel makes all pages persistent with that write.
        goals = {**{node: group[node].figures["total"] for node in nodes}, **goals}
    found = {t: with_pages(group[t], goals[t], 0) if t in goals else group[t] for t in nodes}
    if goals.keys() & found.keys():
        sums = {name: sum(pool.figures[name] for pool in found.values()) for name in COUNTERS}
        whole = replace(whole, value=str(sums["total"]), figures={**whole.figures, **sums})
    elif goals:
        whole = with_pages(whole, goals[whole.target], reserved)
    return {**found, whole.target: whole}


def with_pages(pool: Reading, count: int, reserved: int) -> Reading:
    """Return a pool that was brought to a number of pages."""
    total = max(count, min(pool.figures["total"], used(pool) + reserved))
    figures = {"total": total, "free": total - used(pool), "surplus": total - count, "asked": count}
    return replace(pool, value=str(total), restore=str(count), figures={**pool.figures, **figures})


def carry_out(wants: Mapping[Target, Mapping[Target, int]], group: Pools) -> dict[Target, Work]:
    """Return the writes for each desired state, by the pages that it wants in each pool of one page size.

    Where nodes have surplus, the writes of one carry out those of all.
    """
    pools = {node: group[node] for node in nodes_of(group)}
    whole = next(reading for target, reading in group.items() if "/" not in target.instance)
    reserved = whole.figures["reserved"]
    goals = {target: count for own in wants.values() for target, count in own.items()}
    if not goals.keys() <= pools.keys():
        left = idle(pools.values() or [whole], reserved)
        return {
            desired: Work(to_total(group[target], count, left))
            for desired, own in wants.items()
            for target, count in own.items()
        }
    settled = [pools[target] for target in goals]
    goals = {node: persistent(pool) for node, pool in pools.items()} | goals
    changed = {target for target, goal in goals.items() if goal != persistent(pools[target])}
    calm = not any(pool.figures["surplus"] or used(pool) > goals[target] for target, pool in pools.items())
    if calm and not promised(goals, pools, reserved):
        return {desired: Work(in_order(own, pools)) for desired, own in wants.items()}
    left = idle(settled, reserved)
    carrier = next((desired for desired, own in wants.items() if own and (left or changed & own.keys())), None)
    if carrier is None:
        return {}
    touches = tuple(target for target, pool in pools.items() if pool.figures["surplus"] or target in changed)
    return {carrier: Work(through(goals, pools, whole, left=left), touches)}


def to_total(pool: Reading, count: int, left: int) -> list[tuple[Target, int]]:
    """Return the writes that bring a total, or the only pool, to a number; `left` are idle surplus pages."""
    total, surplus = pool.figures["total"], pool.figures["surplus"]
    if count == persistent(pool) and not left:
        return []
    first = [(pool.target, total)] if surplus and total != count and (count < persistent(pool) or left) else []
    return [*first, (pool.target, count)]


def in_order(goals: Mapping[Target, int], pools: Pools) -> list[tuple[Target, int]]:
    """Return the writes where no pool has surplus: those that shrink come first."""
    change = {target: goal - persistent(pools[target]) for target, goal in goals.items()}
    return [(target, goals[target]) for target in sorted(change, key=lambda t: change[t]) if change[target]]


def promised(goals: Mapping[Target, int], pools: Pools, reserved: int) -> int:
    """Return the pages that programs have reserved beyond those that will be free: the kernel keeps as many."""
    return max(0, reserved - sum(max(0, goal - used(pools[target])) for target, goal in goals.items()))


def through(goals: Mapping[Target, int], pools: Pools, whole: Reading, *, left: int) -> list[tuple[Target, int]]:
    """Return the writes that bring all nodes to their goals while programs have pages beyond them.

    Without surplus each node gets what it may keep and what is in use. What is then not where it belongs is put right
    as soon as programs give pages back; until then there is nothing to write.
    """
    reserved = whole.figures["reserved"]
    keep = {target: max(goal, used(pools[target])) for target, goal in goals.items()}
    over = {target: keep[target] - goal for target, goal in goals.items() if keep[target] > goal}
    short = promised(goals, pools, reserved)
    free = sum(pool.figures["free"] for pool in pools.values())
    settled = not left and free <= reserved and sum(map(persistent, pools.values())) == sum(goals.values())
    if settled and (len(over) > 1 or short):
        return []
    surplus = any(pool.figures["surplus"] for pool in pools.values())
    writes = [(whole.target, whole.figures["total"])] if surplus else []
    change = {target: count - pools[target].figures["total"] for target, count in keep.items()}
    # The kernel keeps reserved pages where pages are freed last, as surplus there: growth comes before.
    in_turn = sorted(change, key=lambda target: change[target], reverse=bool(reserved))
    writes += [(target, keep[target]) for target in in_turn if change[target]]
    spare = any(count > used(pools[target]) for target, count in keep.items())
    writes += made_surplus(goals, over, short)
    if short or (len(over) > 1 and not spare):
        writes.append((whole.target, sum(goals.values())))
    return writes


def made_surplus(goals: Mapping[Target, int], over: Mapping[Target, int], made: int) -> list[tuple[Target, int]]:
    """Return the writes that make surplus of the pages in use beyond the goals, `over` by node; `made` are so already.

    A kernel that counts the surplus of the other nodes takes a number for that much more. It would make new pages where
    the node has not as many to lose, so such a node is left out. It leaves too many on the others: the total's number
    then puts the sum right, unless that would free what a node is to keep.
    """
    writes = []
    for target in sorted(over, key=lambda t: over[t]):
        if made <= over[target]:
            writes.append((target, goals[target]))
            made += over[target]
    return writes
