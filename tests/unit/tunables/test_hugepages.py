"""hugepages: what a host has, whole host and nodes, and kernels that give less than asked or do not obey."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerntune.errors import KernelRejected, NotSupported, PartiallyAllocated
from kerntune.kernel.files import HostKernel
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Claim, DesiredState, Origin, Reason, State, Target, Verdict, Write
from kerntune.tunables.hugepages import HugePages
from tests.hosts import lay_out
from tests.unit.lab import (
    COMPACT,
    GIB,
    MIB,
    PAGE,
    POOL,
    Clock,
    claim,
    have_pages,
    large_host,
    node_pool,
    pages,
    running,
    small_host,
    told,
)

HUGE = HugePages()
WHOLE = Target("hugepages", "2M")
POOL_1G = POOL.replace("2048kB", "1048576kB")
FREE_FOR_100 = 100 * PAGE


def judged(kernel: HostKernel, target: Target, wanted: int) -> Verdict:
    desired = DesiredState(target, str(wanted), Claim(Origin.RUNTIME, "hugepages", target.instance, str(wanted)))
    readings = HUGE.read_all(kernel, [target])
    return HUGE.assess(desired, readings[target], readings)


# How it is written


def carried_out(kernel: SimulatedKernel, path: str, wanted: int) -> list[int]:
    """What is written, one after the other, for a write that was planned."""
    texts = []
    for piece in HUGE.chunks(kernel, Write(path, str(wanted))):
        kernel.write(piece.path, piece.text)
        texts.append(int(piece.text))
    return texts


@pytest.mark.parametrize("path", [POOL, node_pool(0)])
def test_a_pool_grows_by_a_gib_at_a_time(path: str) -> None:
    kernel = small_host()
    assert carried_out(kernel, path, 1200) == [512, 1024, 1200]
    assert carried_out(kernel, path, 1712) == [1712]
    assert carried_out(kernel, path, 0) == [0]
    assert carried_out(kernel, POOL_1G, 3) == [1, 2, 3]


def test_after_a_piece_that_fell_short_there_is_one_more_try() -> None:
    assert carried_out(small_host(whole=600 * PAGE), POOL, 4096) == [512, 1024, 4096]


def test_a_pool_that_is_gone_is_written_once_and_fails_as_before() -> None:
    gone = Write(POOL.replace("2048kB", "64kB"), "4096")
    assert list(HUGE.chunks(small_host(), gone)) == [gone]


# What a host has


def test_the_pools_of_a_server(tmp_path: Path) -> None:
    targets = HUGE.targets(lay_out("two-sockets", tmp_path))
    assert [target.instance for target in targets] == ["1G", "1G/node0", "1G/node1", "2M", "2M/node0", "2M/node1"]


def test_nodes_are_in_the_order_of_their_numbers() -> None:
    instances = [target.instance for target in HUGE.targets(large_host(nodes=11))]
    assert instances.index("2M/node2") < instances.index("2M/node10")


def test_what_was_asked_leaves_out_what_is_borrowed(tmp_path: Path) -> None:
    server = lay_out("two-sockets", tmp_path)
    whole, first = HUGE.read(server, WHOLE), HUGE.read(server, Target("hugepages", "2M/node0"))
    assert (whole.value, whole.restore) == ("522", "512")
    assert (whole.figures["asked"], whole.figures["surplus"], whole.figures["borrow"]) == (512, 10, 64)
    assert (first.figures["asked"], first.figures["borrow"]) == (256, 64)
    node = 131960824 * 1024
    assert (first.figures["available"], first.figures["reserve"]) == (102211584 * 1024, node // 20)
    assert first.figures["room"] == (102211584 * 1024 - node // 20) // PAGE
    assert judged(server, WHOLE, 512) == (State.SATISFIED, Reason.OK, "")


def test_surplus_that_may_not_be_borrowed_is_in_use(tmp_path: Path) -> None:
    server = lay_out("two-sockets", tmp_path)
    (tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB/nr_overcommit_hugepages").write_text("0\n")
    verdict = judged(server, WHOLE, 512)
    assert (verdict.state, verdict.reason) == (State.PARTIAL, Reason.PAGES_IN_USE)
    assert verdict.detail == (
        "522 pages stay until they are given back, and the kernel frees them then: 522 in use, 0 free, 10 surplus; "
        "held by qemu-system-x86 (pid 4711, 8192 MiB), postgres (pid 902, 1044 MiB)"
    )


def test_a_pool_that_went_away(tmp_path: Path) -> None:
    server = lay_out("two-sockets", tmp_path)
    reading = HUGE.read(server, Target("hugepages", "2M/node7"))
    assert (reading.value, reading.reason) == (None, Reason.NO_SUCH_TARGET)


def test_pages_of_1g_on_a_captured_server(tmp_path: Path) -> None:
    server = lay_out("two-sockets", tmp_path)
    reading = HUGE.read(server, Target("hugepages", "1G"))
    assert (reading.figures["size"], reading.figures["total"], reading.figures["free"]) == (GIB, 16, 8)


async def test_a_kernel_without_huge_pages() -> None:
    kernel = small_host()
    kernel.sizes = ()
    async with running(kernel) as lab:
        for instances in ("2M", "2M/*"):
            with pytest.raises(NotSupported, match="no pools of huge pages"):
                await lab.set(("hugepages", instances, 1))
        assert lab.claims == []


# Whole host and nodes


async def test_on_one_node_the_total_is_written() -> None:
    async with running(small_host()) as lab:
        answer = await lab.set(("hugepages", "2M", 128))
        assert answer.changed
        assert [told(o) for o in answer.outcomes] == [("2M", "128", State.SATISFIED, Reason.OK)]
        assert lab.writes() == [(POOL, "128")]
        assert not (await lab.set(("hugepages", "2M", 128))).changed
        assert lab.writes() == []


async def test_a_total_of_several_nodes_is_the_kernels_to_spread() -> None:
    async with running(large_host()) as lab:
        assert told(await lab.one("hugepages", "2M", 100)) == ("2M", "100", State.SATISFIED, Reason.OK)
        assert lab.writes() == [(POOL, "100")]
        assert pages(lab.kernel) == [50, 50]
        assert {target.instance for target in lab.store.baselines} == {"2M", "2M/node0", "2M/node1"}


async def test_a_total_is_had_where_memory_is_page_cache() -> None:
    """Nearly no memory is free on either node, and one has less to give: what one write of the total does."""
    kernel = large_host()
    for node, programs in zip(kernel.nodes, (12 * GIB, GIB), strict=True):
        node.programs, node.cache = programs, node.memory - programs - 256 * MIB
    async with running(kernel) as lab:
        assert (await lab.one("hugepages", "2M", 6000)).state is State.SATISFIED
        assert {path for path, _ in lab.writes()} == {POOL}
        assert pages(kernel) == [2048, 3952]


async def test_the_rest_of_a_total_goes_where_page_cache_makes_room() -> None:
    kernel = large_host(nodes=3)
    for node, programs in zip(kernel.nodes, (GIB, 13 * GIB, GIB), strict=True):
        node.programs, node.cache = programs, node.memory - programs - 256 * MIB
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M/node0", 80), ("hugepages", "2M", 4080))
        assert pages(kernel)[0] == 80
        assert sum(pages(kernel)) == 4080
        assert [path for path, _ in lab.writes() if path == COMPACT] == []


async def test_what_one_node_cannot_give_of_the_rest_another_is_asked_for_at_once() -> None:
    """Nothing tells how much of a node is in pieces: the kernel gives 100, and compacting would help nobody."""
    kernel = large_host(nodes=4)
    kernel.nodes[1].whole = 100 * PAGE
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M/node0", 80), ("hugepages", "2M", 1280))
        assert pages(kernel) == [80, 100, 550, 550]
        assert [path for path, _ in lab.writes() if path == COMPACT] == []


@pytest.mark.parametrize("total", [1400, 1401])
async def test_a_node_that_is_full_is_asked_for_nothing_more(total: int) -> None:
    kernel = large_host(nodes=3)
    kernel.nodes[0].whole = 0
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M/node2", 80))
        lab.writes()
        assert (await lab.one("hugepages", "2M", total)).state is State.SATISFIED
        assert pages(kernel) == [0, total - 80, 80]
        assert len([path for path, _ in lab.writes() if path == node_pool(0)]) <= 2, "it is told once, and put back"


async def test_where_no_node_can_give_the_rest_memory_is_compacted() -> None:
    kernel = large_host(nodes=3)
    kernel.nodes[1].whole, kernel.nodes[2].whole = 100 * PAGE, 200 * PAGE
    async with running(kernel) as lab:
        answer = await lab.set(("hugepages", "2M/node0", 80), ("hugepages", "2M", 1080), partial=True)
        assert [told(o)[:3] for o in answer.outcomes] == [
            ("2M/node0", "80", State.SATISFIED),
            ("2M", "380", State.PARTIAL),
        ]
        assert (COMPACT, "1") in lab.writes()


async def test_every_node_of_a_size() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set(("hugepages", "2M/*", 30))
        assert [told(o)[:3] for o in answer.outcomes] == [
            ("2M/node0", "30", State.SATISFIED),
            ("2M/node1", "30", State.SATISFIED),
        ]
        assert pages(lab.kernel) == [30, 30]
        assert pages(lab.kernel, GIB) == [0, 0]


async def test_pages_of_two_sizes_are_two_pools() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M", 100), ("hugepages", "1G", 2))
        assert (pages(lab.kernel), pages(lab.kernel, GIB)) == ([100], [2])
        await lab.unset(("hugepages", "*"))
        assert (pages(lab.kernel), pages(lab.kernel, GIB)) == ([0], [0])


async def test_a_total_below_the_nodes_is_overridden_by_them() -> None:
    async with running(large_host()) as lab:
        await lab.set(("hugepages", "2M/node0", 80))
        outcome = await lab.one("hugepages", "2M", 40)
        assert told(outcome) == ("2M", "80", State.OVERRIDDEN, Reason.OVERRIDDEN)
        assert pages(lab.kernel) == [80, 0]
        await lab.engine.reconcile("again")
        assert pages(lab.kernel) == [80, 0]
        await lab.unset(("hugepages", "2M/node0"))
        assert sum(pages(lab.kernel)) == 40


@pytest.mark.parametrize("order", [("2M", "2M/node0"), ("2M/node0", "2M")])
async def test_what_the_nodes_leave_of_a_total_goes_to_the_others(order: tuple[str, str]) -> None:
    counts = {"2M": 200, "2M/node0": 80}
    async with running(large_host(nodes=3)) as lab:
        for instance in order:
            await lab.set(("hugepages", instance, counts[instance]))
        assert pages(lab.kernel) == [80, 60, 60]
        lab.writes()
        await lab.engine.reconcile("again")
        assert lab.writes() == []


async def test_a_total_and_a_node_in_one_call() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set(("hugepages", "2M", 200), ("hugepages", "2M/node0", 80))
        assert [told(o)[:3] for o in answer.outcomes] == [
            ("2M", "200", State.SATISFIED),
            ("2M/node0", "80", State.SATISFIED),
        ]
        assert pages(lab.kernel) == [80, 120]


@pytest.mark.parametrize("order", [("2M", "2M/node0"), ("2M/node0", "2M")])
@pytest.mark.parametrize("leaving", [("2M", "2M/node0"), ("2M/node0", "2M")])
async def test_on_one_node_the_pool_has_two_names(order: tuple[str, str], leaving: tuple[str, str]) -> None:
    kernel = small_host()
    have_pages(kernel, 7)
    async with running(kernel) as lab:
        for instance in order:
            await lab.set(("hugepages", instance, {"2M": 60, "2M/node0": 40}[instance]))
        assert pages(kernel) == [40]
        for instance in leaving:
            await lab.unset(("hugepages", instance))
        assert pages(kernel) == [7]
        assert not lab.store.baselines


async def test_on_one_node_the_claim_on_the_node_wins() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M/node0", 40))
        outcome = await lab.one("hugepages", "2M", 60)
        assert told(outcome) == ("2M", "40", State.OVERRIDDEN, Reason.OVERRIDDEN)
        await lab.unset(("hugepages", "2M/node0"))
        assert pages(lab.kernel) == [60]


async def test_each_node_gets_its_own_number_back() -> None:
    kernel = large_host()
    have_pages(kernel, 12, 34)
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 500))
        await lab.set(("hugepages", "2M/node1", 300))
        await lab.unset(("hugepages", "2M"))
        assert pages(kernel) == [12, 300]
        await lab.unset(("hugepages", "2M/node1"))
        assert pages(kernel) == [12, 34]
        assert not lab.store.baselines


# Fragmentation


async def test_a_shortfall_is_an_error_and_the_old_count_comes_back() -> None:
    kernel = small_host(whole=FREE_FOR_100)
    have_pages(kernel, 10)
    async with running(kernel) as lab:
        with pytest.raises(PartiallyAllocated, match=r"150 pages \(.*\) asked for 2M, 110 \(.*\) had"):
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
        assert lab.engine.observed.troubles == {Reason.PARTIALLY_ALLOCATED}


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
        assert told(lab.engine.observed.outcomes[WHOLE]) == ("2M", "100", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        assert (COMPACT, "1") in lab.writes()
        await lab.engine.reconcile("timer")
        assert (COMPACT, "1") not in lab.writes()
        assert pages(kernel) == [100]


async def test_one_node_of_two_is_fragmented() -> None:
    kernel = large_host()
    kernel.nodes[1].whole = 10 * PAGE
    async with running(kernel) as lab:
        with pytest.raises(PartiallyAllocated, match=r"50 pages \(.*\) asked for 2M/node1, 10 \(.*\) had"):
            await lab.set(("hugepages", "2M/*", 50))
        assert (pages(kernel), lab.claims) == ([0, 0], [])


# Kernels that do not obey


async def test_a_kernel_that_ignores_growth() -> None:
    async with running(small_host()) as lab:
        lab.kernel.ignore.add(POOL)
        with pytest.raises(PartiallyAllocated, match=r"5 pages \(.*\) asked for 2M, 0 had"):
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
        outcome = lab.engine.observed.outcomes[Target("hugepages", "1G")]
        assert told(outcome) == ("1G", "0", State.UNSUPPORTED, Reason.BOOT_PARAMETER_WINS)
        assert "has those of its command line only" in outcome.detail


async def test_a_kernel_without_memory_to_try() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        kernel.refuse[POOL] = errno.ENOMEM
        with pytest.raises(KernelRejected, match="no memory left even to try"):
            await lab.set(("hugepages", "2M", 8))
