"""hugepages while programs have pages: on old and new kernels, on several nodes, and while they are being read."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from kerntune.kernel.files import KernelView
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Reason, State, Target
from kerntune.tunables.hugepages import HugePages
from tests.hosts.simulated import pool_host, use_pages
from tests.unit.lab import (
    GIB,
    PAGE,
    POOL,
    Clock,
    Lab,
    have_pages,
    large_host,
    node_pool,
    pages,
    request,
    running,
    small_host,
    told,
)

HUGE = HugePages()
WHOLE = Target("hugepages", "2M")
BORROW = "hugepages-overcommit"


@pytest.fixture(params=[True, False], ids=["up to 6.13", "since 6.14"])
def kernel(request: pytest.FixtureRequest) -> SimulatedKernel:
    """Two nodes, on a kernel that counts the surplus of the other node or does not."""
    return pool_host(0, 0, foreign=request.param, memory=16 * GIB)


def counted(kernel: SimulatedKernel) -> list[tuple[int, int]]:
    """The pages and the surplus of each node."""
    return [(node.pools[PAGE].total, node.pools[PAGE].surplus) for node in kernel.nodes]


# Pages go back to the host


async def test_pages_in_use_on_each_node_go_when_the_programs_end(kernel: SimulatedKernel) -> None:
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 64))
        use_pages(kernel, 16, 16)
        answer = await lab.unset(("hugepages", "2M"))
        assert [told(o) for o in answer.outcomes] == [("2M", "32", State.PARTIAL, Reason.PAGES_IN_USE)]
        assert counted(kernel) == [(16, 16), (16, 16)]
        assert {t.instance for t in lab.store.baselines} == {"2M", "2M/node0", "2M/node1"}
        lab.writes()
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        use_pages(kernel, 0, 0)
        assert counted(kernel) == [(0, 0), (0, 0)]
        await lab.engine.reconcile("timer")
        assert (lab.writes(), dict(lab.store.baselines), lab.engine.observed.outcomes) == ([], {}, {})


async def test_each_node_gets_its_number_back_once_only_one_has_pages_in_use(kernel: SimulatedKernel) -> None:
    have_pages(kernel, 10, 2)
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 100))
        use_pages(kernel, 30, 40)
        await lab.unset(("hugepages", "2M"))
        assert sum(pages(kernel)) == 12
        assert {o.reason for o in lab.engine.observed.outcomes.values()} == {Reason.PAGES_IN_USE}
        lab.writes()
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        use_pages(kernel, 5, 40)
        await lab.engine.reconcile("timer")
        assert (pages(kernel), counted(kernel)) == ([10, 2], [(10, 0), (40, 38)])
        assert {t.instance for t in lab.store.baselines} == {"2M", "2M/node1"}


async def test_pages_that_are_free_on_the_other_node_are_freed(kernel: SimulatedKernel) -> None:
    """They would become surplus that no program gives back."""
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 40))
        use_pages(kernel, 20, 0)
        await lab.unset(("hugepages", "2M"))
        assert counted(kernel) == [(20, 20), (0, 0)]


async def test_surplus_that_nobody_will_give_back_is_freed(kernel: SimulatedKernel) -> None:
    """A script wrote the numbers of the nodes while a program had pages."""
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 64))
        use_pages(kernel, 16, 16)
        for number in (0, 1):
            kernel.write(node_pool(number), "0")
        use_pages(kernel, 0, 0)
        await lab.unset(("hugepages", "2M"))
        assert counted(kernel) == [(0, 0), (0, 0)]
        assert not lab.store.baselines


async def test_what_may_be_borrowed_is_no_debt(kernel: SimulatedKernel) -> None:
    kernel.borrow[PAGE] = 50
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 64))
        kernel.take(0, 40, PAGE)
        await lab.unset(("hugepages", "2M"))
        assert counted(kernel) == [(40, 40), (0, 0)]
        assert (dict(lab.store.baselines), lab.engine.observed.outcomes) == ({}, {})


async def test_a_baseline_that_memory_is_too_short_for_is_partial_and_kept() -> None:
    kernel, clock = small_host(), Clock()
    have_pages(kernel, 3000)
    async with running(kernel, clock=clock) as lab:
        await lab.set(("hugepages", "2M", 10))
        kernel.nodes[0].whole = 1000 * PAGE
        (outcome,) = (await lab.unset(("hugepages", "2M"))).outcomes
        assert told(outcome) == ("2M", "1010", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        kernel.nodes[0].whole = None
        clock.now += 3600
        await lab.engine.reconcile("timer")
        assert (pages(kernel), dict(lab.store.baselines)) == ([3000], {})


async def test_pages_that_programs_were_promised_go_when_they_let_them_go(kernel: SimulatedKernel) -> None:
    """Mapped and not yet touched: the kernel keeps as many free pages, and no more are made for them."""
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 64))
        use_pages(kernel, 2, 6)
        assert kernel.reserve(20, PAGE)
        (outcome,) = (await lab.unset(("hugepages", "2M"))).outcomes
        assert told(outcome) == ("2M", "28", State.PARTIAL, Reason.PAGES_IN_USE)
        assert sum(total for total, _ in counted(kernel)) == 28
        lab.writes()
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        kernel.reserve(-20, PAGE)
        use_pages(kernel, 0, 0)
        await lab.engine.reconcile("timer")
        assert (counted(kernel), dict(lab.store.baselines)) == ([(0, 0), (0, 0)], {})


# Numbers that are reached


@pytest.mark.parametrize("instance", ["2M", "2M/node0"])
async def test_a_node_reaches_its_number_while_pages_of_the_other_are_borrowed(
    kernel: SimulatedKernel, instance: str
) -> None:
    have_pages(kernel, 0, 5)
    kernel.borrow[PAGE] = 30
    assert kernel.take(1, 25, PAGE) == 25
    async with running(kernel) as lab:
        outcome = await lab.one("hugepages", instance, 80)
        assert told(outcome)[2:] == (State.SATISFIED, Reason.OK)
        assert sum(pages(kernel)) == (80 if instance == "2M" else 85)
        assert instance == "2M" or counted(kernel) == [(80, 0), (25, 20)]
        use_pages(kernel, 0, 0)
        await lab.unset(("hugepages", instance))
        await lab.engine.reconcile("timer")
        assert (counted(kernel), dict(lab.store.baselines)) == ([(0, 0), (5, 0)], {})


async def test_each_node_shrinks_below_what_is_in_use(kernel: SimulatedKernel) -> None:
    have_pages(kernel, 50, 50, used=20)
    async with running(kernel) as lab:
        answer = await lab.set(("hugepages", "2M/*", 5))
        assert {told(o)[2:] for o in answer.outcomes} == {(State.PARTIAL, Reason.PAGES_IN_USE)}
        assert [total for total, _ in counted(kernel)] == [20, 20]
        assert sum(pages(kernel)) == 10
        use_pages(kernel, 0, 0)
        await lab.engine.reconcile("timer")
        assert counted(kernel) == [(5, 0), (5, 0)]


async def test_a_plan_for_pools_in_use_is_one_that_is_carried_out(kernel: SimulatedKernel) -> None:
    """Each of the settings is planned, also where the writes of one carry out those of all."""
    have_pages(kernel, 0, 5)
    kernel.borrow[PAGE] = 30
    kernel.take(1, 25, PAGE)
    async with running(kernel) as lab:
        answer = await lab.set(("hugepages", "2M/node0", 80), ("hugepages", "2M/node1", 90))
        assert {o.state for o in answer.outcomes} == {State.SATISFIED}
        assert counted(kernel) == [(80, 0), (90, 0)]


async def test_what_goes_back_is_planned_for_the_total_and_its_nodes() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 100))
        planned = await lab.engine.plan(request(("hugepages", "2M", ""), unset=True))
        assert [told(o)[:3] for o in planned.outcomes] == [("2M", "100", State.PLANNED)]
        assert await lab.engine.verify() == ()


async def test_a_total_that_only_a_node_changes_is_planned() -> None:
    kernel = large_host()
    have_pages(kernel, 0, 120)
    async with running(kernel) as lab:
        planned = await lab.engine.plan(request(("hugepages", "2M", 200), ("hugepages", "2M/node0", 80)))
        assert {o.state for o in planned.outcomes} == {State.PLANNED}


# What is no drift


async def test_less_to_borrow_while_pages_are_borrowed_is_no_drift(kernel: SimulatedKernel) -> None:
    async with running(kernel) as lab:
        await lab.set((BORROW, "2M", 40), ("hugepages", "2M", 10))
        kernel.take(0, 30, PAGE)
        await lab.set((BORROW, "2M", 5))
        lab.writes()
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        assert told(lab.engine.observed.outcomes[WHOLE])[2:] == (State.PARTIAL, Reason.PAGES_IN_USE)
        assert "was put back" not in lab.engine.observed.outcomes[WHOLE].detail


@dataclass(slots=True)
class Lending:
    """A kernel that lends a page each time that surplus or free pages are read, so many times."""

    kernel: SimulatedKernel
    times: int
    reads: list[str] = field(default_factory=list)

    def read(self, path: str) -> str:
        self.reads.append(path)
        if path.endswith("/surplus_hugepages") and self.times:
            self.times -= 1
            self.kernel.take(0, 1, PAGE)
        return self.kernel.read(path)

    def glob(self, pattern: str) -> list[str]:
        return list(self.kernel.glob(pattern))

    def links(self, device: str) -> list[str]:
        return list(self.kernel.links(device))

    def identity(self, path: str) -> str:
        return self.kernel.identity(path)


@pytest.mark.parametrize("times", [0, 1, 3])
def test_pages_that_are_borrowed_while_a_pool_is_read_are_not_missed(times: int) -> None:
    kernel = small_host()
    have_pages(kernel, 100, used=100)
    kernel.borrow[PAGE] = 1000
    view: KernelView = Lending(kernel, times)
    reading = HUGE.read(view, WHOLE)
    assert (reading.value, reading.figures["surplus"], reading.restore) == (str(100 + times), times, "100")


def test_a_pool_that_never_rests_is_read_all_the_same() -> None:
    kernel = small_host()
    have_pages(kernel, 100, used=100)
    kernel.borrow[PAGE] = 1000
    view = Lending(kernel, 1000)
    assert HUGE.read(view, WHOLE).value is not None
    assert view.reads.count(POOL) < 10


# Who holds them


@dataclass(slots=True)
class Processes(Lending):
    """A kernel that is asked for its processes."""

    asked: int = 0

    def glob(self, pattern: str) -> list[str]:
        self.asked += pattern.startswith("proc/[0-9]")
        return list(self.kernel.glob(pattern))


@pytest.mark.parametrize(("surplus", "asked"), [(8, 1), (0, 0)])
def test_the_processes_are_read_once_and_only_for_pages_that_should_go(surplus: int, asked: int) -> None:
    kernel = large_host()
    have_pages(kernel, 8 - surplus, 8 - surplus, used=8)
    if not surplus:
        have_pages(kernel, 8, 8, used=8)
    view = Processes(kernel, 0)
    readings = HUGE.read_all(view, HUGE.targets(view))
    assert view.asked == asked
    assert {bool(r.detail) for t, r in readings.items() if t.instance.startswith("2M")} == {bool(asked)}


def test_another_entry_beside_the_pools_of_a_node_is_none() -> None:
    class Other(SimulatedKernel):
        def glob(self, pattern: str) -> list[str]:
            found = list(super().glob(pattern))
            return [*found, f"{pattern.removesuffix('*')}uevent"] if pattern.endswith("/hugepages/*") else found

    kernel = Other([Node(GIB)], sizes=(PAGE,))
    assert [target.instance for target in HUGE.targets(kernel)] == ["2M", "2M/node0"]


# A claim that is smaller than what is in use


async def in_use(*, used: int = 90) -> Lab:
    """A host with 100 pages of which a program has some, after a Set to 10."""
    kernel = small_host()
    have_pages(kernel, 100, used=used)
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 10))
    return lab


async def test_shrinking_below_what_is_in_use_is_partly_done() -> None:
    kernel = small_host()
    have_pages(kernel, 100, used=90)
    async with running(kernel) as lab:
        outcome = await lab.one("hugepages", "2M", 10)
        assert told(outcome) == ("2M", "90", State.PARTIAL, Reason.PAGES_IN_USE)
        assert "90 in use, 0 free, 80 surplus" in outcome.detail
        assert "hugetlbfs or shared memory holds them" in outcome.detail
        assert lab.claims == ["runtime:hugepages@2M=10"]
        assert lab.writes() == [(POOL, "10")]


async def test_pages_in_use_are_not_asked_for_again() -> None:
    lab = await in_use()
    lab.writes()
    async with running(lab.kernel, claims=lab.store.claims.by_id.values(), baselines=lab.store.baselines) as later:
        for cause in ("boot", "timer", "timer"):
            await later.engine.reconcile(cause, enforce=cause == "boot")
        assert later.writes() == []
        assert told(later.engine.observed.outcomes[WHOLE])[2:] == (State.PARTIAL, Reason.PAGES_IN_USE)
        later.kernel.nodes[0].pools[PAGE].used = 4  # the program gives them back
        await later.engine.reconcile("timer")
        assert later.writes() == []
        assert told(later.engine.observed.outcomes[WHOLE]) == ("2M", "10", State.SATISFIED, Reason.OK)


async def test_pages_in_use_come_back_whole_when_the_claim_goes() -> None:
    lab = await in_use()
    async with running(lab.kernel, claims=lab.store.claims.by_id.values(), baselines=lab.store.baselines) as later:
        await later.unset(("hugepages", "2M"))
        assert pages(later.kernel) == [100]
        assert not later.store.baselines
