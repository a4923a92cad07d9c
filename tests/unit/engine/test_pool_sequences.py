"""Pools of three nodes in which programs have pages: in the end each is what the host had, on old and new kernels."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from kerntune.errors import KerntuneError
from kerntune.kernel.simulated import Node, SimulatedKernel
from tests.harness.often import often
from tests.unit.lab import BOUND, GIB, PAGE, Clock, Lab, have_pages, running

SEQUENCES = often(100)  # on each kernel
NODES = 3
HOUR = 3600.0
INSTANCES = ("2M", "2M", "2M/*", *(f"2M/node{number}" for number in range(NODES)))
COUNTS = (0, 0, 3, 10, 40, 64, 100)


def counters(kernel: SimulatedKernel) -> list[tuple[int, int, int]]:
    """What the kernel counts on each node: pages, surplus and free ones."""
    pools = [node.pools[PAGE] for node in kernel.nodes]
    return [(pool.total, pool.surplus, pool.free) for pool in pools]


def a_program(kernel: SimulatedKernel, dice: random.Random) -> None:
    """A program takes pages on a node, or gives some back; or it is promised some, or lets them go."""
    number = dice.randrange(NODES)
    pool = kernel.nodes[number].pools[PAGE]
    if dice.random() < 0.3:
        kernel.reserve(dice.choice((-kernel.reserved.get(PAGE, 0), 4, 15)), PAGE)
    elif dice.random() < 0.6:
        kernel.take(number, dice.choice((1, 5, 20, 50)), PAGE)
    else:
        pool.used -= dice.randint(0, pool.used)


async def a_call(lab: Lab, dice: random.Random) -> None:
    """Somebody sets or withdraws something; a call that cannot be carried out is one that leaves nothing."""
    name, at = ("hugepages-overcommit", "2M") if dice.random() < 0.2 else ("hugepages", dice.choice(INSTANCES))
    with contextlib.suppress(KerntuneError):
        if dice.random() < 0.3:
            await lab.unset((name, at))
        else:
            await lab.set((name, at, dice.choice(COUNTS)), partial=dice.random() < 0.3)


async def story(dice: random.Random, *, counts_foreign_surplus: bool) -> None:
    nodes, clock = [Node(16 * GIB, programs=GIB) for _ in range(NODES)], Clock()
    kernel = SimulatedKernel(nodes, sizes=(PAGE,), counts_foreign_surplus=counts_foreign_surplus)
    have_pages(kernel, *(dice.choice((0, 0, 7, 30)) for _ in range(NODES)))
    kernel.borrow[PAGE] = dice.choice((0, 0, 25))
    own, lent = counters(kernel), kernel.borrow[PAGE]
    async with running(kernel, clock=clock) as lab:
        for _ in range(10):
            if dice.random() < 0.5:
                a_program(kernel, dice)
            else:
                await a_call(lab, dice)
                # What is surplus is in use or promised, so the kernel frees it when it is given back.
                kept = sum(max(0, surplus - (total - free)) for total, surplus, free in counters(kernel))
                assert kept <= kernel.reserved.get(PAGE, 0)
        await lab.unset(("hugepages", "*"), ("hugepages-overcommit", "*"))
        numbers = list(range(NODES))
        dice.shuffle(numbers)
        for number in numbers:
            kernel.nodes[number].pools[PAGE].used = 0
            if dice.random() < 0.5:
                await lab.engine.reconcile("timer")
        kernel.reserve(-kernel.reserved.get(PAGE, 0), PAGE)
        for _ in range(3):
            clock.now += HOUR
            await lab.engine.reconcile("timer")
        assert (counters(kernel), kernel.borrow[PAGE]) == (own, lent)
        assert (lab.claims, dict(lab.store.baselines), lab.engine.outcomes) == ([], {}, {})


@pytest.mark.parametrize("counts_foreign_surplus", [True, False], ids=["up to 6.13", "since 6.14"])
def test_the_host_gets_its_pools_back(counts_foreign_surplus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerntune.engine.passes.LATE", ())  # this kernel obeys at once
    for seed in range(SEQUENCES):
        told = story(random.Random(seed), counts_foreign_surplus=counts_foreign_surplus)
        try:
            asyncio.run(asyncio.wait_for(told, BOUND))
        except AssertionError as error:
            raise AssertionError(f"sequence {seed}: {error}") from error
