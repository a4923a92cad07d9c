"""Whatever is asked in whatever order: replies are true, plans write nothing, and letting go gives the host back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerntune.engine.results import Answer
from kerntune.errors import KerntuneError, Overridden, PartiallyAllocated
from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Lane, State, Target
from kerntune.tunables import REGISTRY
from kerntune.tunables.knobs import SYSCTLS
from tests.harness import often
from tests.unit.lab import BOUND, GIB, PAGE, Clock, Lab, have_pages, host_values, large_host, request, running

VALUES = {
    "hugepages": ["0", "3", "46", "80", "200", "99999999"],
    "overcommit": ["heuristic", "always", "always:95", "never:1", "never:80"],
    "io-scheduler": ["none", "mq-deadline", "bfq", "kyber"],
    "cpu-governor": ["performance", "powersave", "schedutil"],
    "cpu-epp": ["performance", "balance_power", "power"],
    "hugepages-overcommit": ["0", "7", "99999999"],
    "thp": ["always", "madvise", "defer", "never"],
    "sysctl": ["0", "1", "3", "150"],
    "read-ahead": ["0", "128", "2048"],
}
INSTANCES = {
    "hugepages": ["2M", "2M/node0", "2M/node1", "2M/*", "1G", "1G/*"],
    "overcommit": [""],
    "io-scheduler": ["*", "nvme*", "nvme0n1", "sda", "by-id/nvme-First", "vd*"],
    "cpu-governor": ["*", "policy0", "0-1"],
    "cpu-epp": ["*", "policy2", "0-1"],
    "hugepages-overcommit": ["2M", "1G"],
    "thp": ["enabled", "defrag"],
    "sysctl": list(SYSCTLS),
    "read-ahead": ["*", "nvme*", "sda"],
}
QUIET = {State.SATISFIED, State.OVERRIDDEN, State.UNMANAGED}


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: several settings, or what they name withdrawn."""

    settings: tuple[tuple[str, str, str], ...]
    unset: bool
    persist: bool
    partial: bool
    must_win: bool


setting = st.sampled_from(sorted(VALUES)).flatmap(
    lambda name: st.tuples(st.just(name), st.sampled_from(INSTANCES[name]), st.sampled_from(VALUES[name]))
)
asks = st.builds(
    Ask,
    settings=st.lists(setting, min_size=1, max_size=3).map(tuple),
    unset=st.sampled_from([False, False, True]),
    persist=st.booleans(),
    partial=st.booleans(),
    must_win=st.booleans(),
)


@st.composite
def hosts(draw: st.DrawFn) -> SimulatedKernel:
    """Two nodes with pages and values of their own; memory may be in pieces, programs may hold pages."""
    kernel = large_host()
    used = draw(st.sampled_from([0, 5]))
    have_pages(kernel, 12, 34, used=used)
    for node in kernel.nodes:
        node.whole = draw(st.none() | st.integers(0, 100).map(lambda count: count * PAGE))
    kernel.compaction = draw(st.sampled_from([0, 2 * PAGE]))
    kernel.policies = {
        "policy0": Policy((0, 1), epp="power"),
        "policy2": Policy((2, 3), "powersave", epp="performance"),
    }
    kernel.overcommit = draw(
        st.sampled_from(
            [
                {"memory": 0, "ratio": 50, "kbytes": 0},
                {"memory": 1, "ratio": 150, "kbytes": 0},
                {"memory": 2, "ratio": 0, "kbytes": 20 << 20},
            ]
        )
    )
    return kernel


async def do(lab: Lab, ask: Ask) -> None:
    """One call and what must hold of it and after it."""
    what = request(*ask.settings, unset=ask.unset, persist=ask.persist, partial=ask.partial, must_win=ask.must_win)
    before, claims = in_all(lab.kernel), lab.claims
    lab.writes()
    planned, _ = await ended(lab.engine.plan(what))
    _, foreseen = await ended(lab.engine.plan(what, strict=True))
    assert lab.writes() == []
    answer, error = await ended(lab.engine.change(what, "Set"))
    # Nobody foresees that memory is in pieces, nor what must win without a claim of its own.
    if not isinstance(error, PartiallyAllocated | Overridden):
        assert (type(foreseen), str(foreseen)) == (type(error), str(error))
        assert not (error and planned and planned.changed)
    if answer is None:
        assert in_all(lab.kernel) == before
        assert lab.claims == claims
    else:
        for outcome in answer.outcomes:
            reading = next((r for t, r in now(lab.kernel).items() if str(t) == str(outcome.target)), None)
            assert outcome.actual == (reading or "")
        assert planned is not None
        # Pages are asked for once more where some are missing, which comes to nothing where memory is in pieces.
        in_vain = any(outcome.state is State.PARTIAL for outcome in lab.engine.observed.outcomes.values())
        assert answer.changed == planned.changed or (planned.changed and in_vain)
    assert lab.engine.edits.claims == lab.engine.edits.committed
    assert sum(node.hugetlb for node in lab.kernel.nodes) <= sum(node.memory for node in lab.kernel.nodes) * 75 // 100
    if {outcome.state for outcome in lab.engine.observed.outcomes.values()} <= QUIET:
        lab.writes()
        await lab.engine.reconcile("again")
        assert lab.writes() == []


async def ended(call: Awaitable[Answer]) -> tuple[Answer | None, KerntuneError | None]:
    """Return what a call answers, or the error that it ends with."""
    try:
        return await call, None
    except KerntuneError as error:
        return None, error


def in_all(kernel: SimulatedKernel) -> dict[str, object]:
    """The values, with pools as totals: how a total is spread over nodes that nobody named is nobody's claim."""
    totals = {size: sum(node.pools[size].asked for node in kernel.nodes) for size in kernel.sizes}
    return host_values(kernel) | {"pools": totals}


def now(kernel: SimulatedKernel) -> dict[Target, str | None]:
    return {t: tunable.read(kernel, t).value for tunable in REGISTRY for t in tunable.targets(kernel)}


async def let_go(lab: Lab) -> None:
    for persist in (False, True):
        await lab.unset(*((name, "*") for name in sorted(VALUES)), persist=persist)


@settings(max_examples=often(40))
@given(kernel=hosts(), calls=st.lists(asks, max_size=6))
def test_after_letting_go_the_host_is_as_it_was(kernel: SimulatedKernel, calls: list[Ask]) -> None:
    start = host_values(kernel)

    async def story() -> None:
        async with running(kernel) as lab:
            for ask in calls:
                await do(lab, ask)
            await let_go(lab)
            assert host_values(kernel) == start
            assert lab.claims == []
            assert not lab.store.baselines
            assert lab.engine.observed.outcomes == {}

    asyncio.run(asyncio.wait_for(story(), BOUND))


@settings(max_examples=often(25))
@given(kernel=hosts(), calls=st.lists(asks, min_size=1, max_size=4), more=st.lists(asks, max_size=2))
def test_a_restart_in_between_changes_nothing(kernel: SimulatedKernel, calls: list[Ask], more: list[Ask]) -> None:
    start = host_values(kernel)

    async def story() -> None:
        async with running(kernel) as lab:
            for ask in calls:
                await do(lab, ask)
            states = {outcome.state for outcome in lab.engine.observed.outcomes.values()}
        before = host_values(kernel)
        saved = lab.store.claims.by_id.values()
        async with running(kernel, claims=saved, baselines=lab.store.baselines) as later:
            later.writes()
            await later.engine.reconcile("boot", enforce=True)
            if states <= QUIET:
                assert later.writes() == []
                assert host_values(kernel) == before
            for ask in more:
                await do(later, ask)
            await let_go(later)
            assert host_values(kernel) == start
            assert not later.store.baselines

    asyncio.run(asyncio.wait_for(story(), BOUND))


@settings(max_examples=often(25))
@given(kernel=hosts(), calls=st.lists(asks, min_size=2, max_size=6))
def test_calls_at_the_same_moment_leave_what_is_saved_in_force(kernel: SimulatedKernel, calls: list[Ask]) -> None:
    start = host_values(kernel)

    async def story() -> None:
        async with running(kernel) as lab:
            asked = [
                lab.engine.change(
                    request(*ask.settings, unset=ask.unset, persist=ask.persist, partial=ask.partial), "Set"
                )
                for ask in calls
            ]
            for found in await asyncio.gather(*asked, return_exceptions=True):
                assert not isinstance(found, BaseException) or isinstance(found, KerntuneError)
            assert lab.engine.edits.claims == lab.engine.edits.committed
            assert dict(lab.engine.edits.claims.by_id) == dict(lab.store.claims.by_id)
            if {outcome.state for outcome in lab.engine.observed.outcomes.values()} <= QUIET:
                lab.writes()
                await lab.engine.reconcile("again")
                assert lab.writes() == []
            await let_go(lab)
            assert host_values(kernel) == start
            assert not lab.store.baselines

    asyncio.run(asyncio.wait_for(story(), BOUND))


def test_every_lane_is_asked() -> None:
    names = {tunable.name for tunable in REGISTRY if tunable.lane in Lane}
    assert names == set(VALUES), "a new tunable: say what may be asked of it"


# Pools of three nodes in which programs have pages, on old and new kernels


SEQUENCES = often(100)  # on each kernel
NODES = 3
HOUR = 3600.0
POOL_INSTANCES = ("2M", "2M", "2M/*", *(f"2M/node{number}" for number in range(NODES)))
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
    name, at = ("hugepages-overcommit", "2M") if dice.random() < 0.2 else ("hugepages", dice.choice(POOL_INSTANCES))
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
        assert (lab.claims, dict(lab.store.baselines), lab.engine.observed.outcomes) == ([], {}, {})


@pytest.mark.parametrize("counts_foreign_surplus", [True, False], ids=["up to 6.13", "since 6.14"])
def test_the_host_gets_its_pools_back(counts_foreign_surplus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kerntune.engine.passes.LATE", ())  # this kernel obeys at once
    for seed in range(SEQUENCES):
        playing = story(random.Random(seed), counts_foreign_surplus=counts_foreign_surplus)
        try:
            asyncio.run(asyncio.wait_for(playing, BOUND))
        except AssertionError as error:
            raise AssertionError(f"sequence {seed}: {error}") from error
