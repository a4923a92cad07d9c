"""hugepages on kernels that give less than asked, take back later, or do not obey."""

from __future__ import annotations

import errno

import pytest

from kerntune.errors import KernelRejected, NotSupported, PartiallyAllocated
from kerntune.model import Origin, Reason, State, Target
from tests.unit.lab import (
    COMPACT,
    GIB,
    PAGE,
    POOL,
    Clock,
    Lab,
    claim,
    have_pages,
    large_host,
    pages,
    running,
    small_host,
    told,
)

WHOLE = Target("hugepages", "2M")
POOL_1G = POOL.replace("2048kB", "1048576kB")
FREE_FOR_100 = 100 * PAGE


# Pages in use


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
        assert told(later.engine.outcomes[WHOLE])[2:] == (State.PARTIAL, Reason.PAGES_IN_USE)
        later.kernel.nodes[0].pools[PAGE].used = 4  # the program gives them back
        await later.engine.reconcile("timer")
        assert later.writes() == []
        assert told(later.engine.outcomes[WHOLE]) == ("2M", "10", State.SATISFIED, Reason.OK)


async def test_pages_in_use_come_back_whole_when_the_claim_goes() -> None:
    lab = await in_use()
    async with running(lab.kernel, claims=lab.store.claims.by_id.values(), baselines=lab.store.baselines) as later:
        await later.unset(("hugepages", "2M"))
        assert pages(later.kernel) == [100]
        assert not later.store.baselines


# Fragmentation


async def test_a_shortfall_is_an_error_and_the_old_count_comes_back() -> None:
    kernel = small_host(whole=FREE_FOR_100)
    have_pages(kernel, 10)
    async with running(kernel) as lab:
        with pytest.raises(PartiallyAllocated, match="150 pages asked for 2M, 110 had"):
            await lab.set(("hugepages", "2M", 150))
        # Compacted once, and not again as it did not help.
        assert lab.writes() == [(POOL, "150"), (COMPACT, "1"), (POOL, "150"), (POOL, "10")]
        assert (pages(kernel), lab.claims, dict(lab.store.baselines)) == ([10], [], {})


async def test_a_shortfall_puts_back_what_another_claim_wants() -> None:
    async with running(small_host(whole=FREE_FOR_100)) as lab:
        await lab.set(("hugepages", "2M", 30), persist=True)
        with pytest.raises(PartiallyAllocated):
            await lab.set(("hugepages", "2M", 150))
        assert pages(lab.kernel) == [30]
        await lab.set(("hugepages", "2M", 40))
        with pytest.raises(PartiallyAllocated):
            await lab.set(("hugepages", "2M", 150))
        assert pages(lab.kernel) == [40]
        assert lab.claims == ["persistent:hugepages@2M=30", "runtime:hugepages@2M=40"]


async def test_with_partial_what_could_be_had_is_kept() -> None:
    async with running(small_host(whole=FREE_FOR_100)) as lab:
        outcome = await lab.one("hugepages", "2M", 150, partial=True)
        assert told(outcome) == ("2M", "100", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        assert pages(lab.kernel) == [100]
        assert lab.claims == ["runtime:hugepages@2M=150"]
        assert lab.engine.troubles == {Reason.PARTIALLY_ALLOCATED}


async def test_compaction_goes_on_while_it_helps() -> None:
    async with running(small_host(whole=FREE_FOR_100, compaction=20 * PAGE)) as lab:
        outcome = await lab.one("hugepages", "2M", 150)
        assert told(outcome) == ("2M", "150", State.SATISFIED, Reason.OK)
        assert lab.writes() == [(POOL, "150"), *[(COMPACT, "1"), (POOL, "150")] * 3]


async def test_compaction_is_tried_where_nothing_was_had_at_first() -> None:
    async with running(small_host(whole=0, compaction=20 * PAGE)) as lab:
        assert told(await lab.one("hugepages", "2M", 15)) == ("2M", "15", State.SATISFIED, Reason.OK)


async def test_compaction_takes_no_longer_than_ten_seconds() -> None:
    clock = Clock()
    kernel = small_host(whole=FREE_FOR_100, compaction=PAGE)

    def slowly(path: str, text: str) -> None:
        clock.now += 4.0 if path == COMPACT else 0.0

    kernel.before_write = slowly
    async with running(kernel, clock=clock) as lab:
        outcome = await lab.one("hugepages", "2M", 150, partial=True)
        assert told(outcome) == ("2M", "103", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        assert lab.writes().count((COMPACT, "1")) == 3


async def test_compaction_is_for_callers_and_the_first_try() -> None:
    kernel = small_host(whole=FREE_FOR_100)
    async with running(kernel, claims=[claim(Origin.PERSISTENT, "hugepages", "2M", 150)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert told(lab.engine.outcomes[WHOLE]) == ("2M", "100", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        assert (COMPACT, "1") in lab.writes()
        await lab.engine.reconcile("timer")
        assert (COMPACT, "1") not in lab.writes()
        assert pages(kernel) == [100]


async def test_one_node_of_two_is_fragmented() -> None:
    kernel = large_host()
    kernel.nodes[1].whole = 10 * PAGE
    async with running(kernel) as lab:
        with pytest.raises(PartiallyAllocated, match="50 pages asked for 2M/node1, 10 had"):
            await lab.set(("hugepages", "2M/*", 50))
        assert (pages(kernel), lab.claims) == ([0, 0], [])


# Kernels that do not obey


async def test_a_kernel_that_ignores_growth() -> None:
    async with running(small_host()) as lab:
        lab.kernel.ignore.add(POOL)
        with pytest.raises(PartiallyAllocated, match="5 pages asked for 2M, 0 had"):
            await lab.set(("hugepages", "2M", 5))
        assert lab.claims == []


async def test_a_kernel_that_ignores_shrinking() -> None:
    kernel = small_host()
    have_pages(kernel, 20)
    kernel.ignore.add(POOL)
    async with running(kernel) as lab:
        with pytest.raises(KernelRejected, match="5 pages asked, the pool reads 20"):
            await lab.set(("hugepages", "2M", 5))
        assert lab.claims == []


async def test_a_kernel_that_shrinks_late_is_waited_for() -> None:
    kernel = small_host()
    have_pages(kernel, 20)
    kernel.late[POOL] = 2
    async with running(kernel) as lab:
        assert told(await lab.one("hugepages", "2M", 5)) == ("2M", "5", State.SATISFIED, Reason.OK)


# Pages of the kernel command line only


async def test_a_size_that_is_made_at_boot_only() -> None:
    """What a kernel without CONFIG_CONTIG_ALLOC does: pages go, and none are made."""
    kernel = small_host()
    have_pages(kernel, 4, size=GIB)
    async with running(kernel) as lab:
        kernel.refuse[POOL_1G] = errno.EINVAL
        with pytest.raises(NotSupported, match="hugepagesz=1G hugepages=8 on the kernel command line") as raised:
            await lab.set(("hugepages", "1G", 8))
        assert "a reboot" in raised.value.hint
        assert lab.claims == []
        kernel.refuse.clear()
        assert told(await lab.one("hugepages", "1G", 2)) == ("1G", "2", State.SATISFIED, Reason.OK)


async def test_a_saved_claim_on_such_a_size_says_who_decides() -> None:
    kernel = small_host()
    kernel.refuse[POOL_1G] = errno.EINVAL
    async with running(kernel, claims=[claim(Origin.CONFIG, "hugepages", "1G", 8)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        outcome = lab.engine.outcomes[Target("hugepages", "1G")]
        assert told(outcome) == ("1G", "0", State.UNSUPPORTED, Reason.BOOT_PARAMETER_WINS)
        assert "has those of its command line only" in outcome.detail


async def test_a_kernel_without_memory_to_try() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        kernel.refuse[POOL] = errno.ENOMEM
        with pytest.raises(KernelRejected, match="no memory left even to try"):
            await lab.set(("hugepages", "2M", 8))
