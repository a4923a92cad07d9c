"""hugepages: whole host and per node, on kernels that give less than asked or take back later."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, KernelRejected, NoSuchTarget, NotSupported, OverLimit, PartiallyAllocated
from kerntune.kernel.files import HostKernel
from kerntune.kernel.memory import read_memory
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Claim, Limits, Origin, Outcome, Reason, State, Target, Verdict, Wish
from kerntune.tunables.hugepages import HugePages
from kerntune.tunables.overcommit import needed_limit, predicted_limit
from tests.hosts import lay_out
from tests.unit.lab import (
    COMPACT,
    GIB,
    MIB,
    PAGE,
    POOL,
    Clock,
    Lab,
    claim,
    have_pages,
    large_host,
    node_pool,
    pages,
    running,
    small_host,
)

HUGE = HugePages()
WHOLE = Target("hugepages", "2M")
FREE_FOR_100 = 100 * PAGE


def told(outcome: Outcome) -> tuple[str, str, State, Reason]:
    return outcome.target.instance, outcome.actual, outcome.state, outcome.reason


def judged(kernel: HostKernel, target: Target, wanted: int) -> Verdict:
    wish = Wish(target, str(wanted), Claim(Origin.RUNTIME, "hugepages", target.instance, str(wanted)))
    reading = HUGE.read(kernel, target)
    return HUGE.judge(wish, reading, {target: reading})


# What a host has


def test_the_pools_of_a_server(tmp_path: Path) -> None:
    targets = HUGE.targets(lay_out("two-sockets", tmp_path))
    assert [target.instance for target in targets] == ["1G", "1G/node0", "1G/node1", "2M", "2M/node0", "2M/node1"]


def test_nodes_are_in_the_order_of_their_numbers() -> None:
    instances = [target.instance for target in HUGE.targets(large_host(nodes=11))]
    assert instances.index("2M/node2") < instances.index("2M/node10")


def test_a_kernel_without_huge_pages_says_why(tmp_path: Path) -> None:
    board = lay_out("no-hugetlb", tmp_path)
    assert list(HUGE.targets(board)) == []
    assert HUGE.missing(board) == (
        "/sys/kernel/mm/hugepages is missing; "
        "/boot/config-6.6.31-board does not set CONFIG_HUGETLBFS: this kernel was built without it"
    )
    assert HUGE.missing(lay_out("small-vm", tmp_path / "vm")) == ""


def test_what_was_asked_leaves_out_what_is_borrowed(tmp_path: Path) -> None:
    server = lay_out("two-sockets", tmp_path)
    whole, first = HUGE.read(server, WHOLE), HUGE.read(server, Target("hugepages", "2M/node0"))
    assert (whole.value, whole.restore) == ("522", "512")
    assert (whole.figures["asked"], whole.figures["surplus"], whole.figures["borrow"]) == (512, 10, 64)
    assert (first.figures["asked"], first.figures["borrow"]) == (256, 64)
    assert first.figures["room"] == 102211584 * 1024 // PAGE
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


# What may be asked


@pytest.mark.parametrize(("value", "normal"), [("0", "0"), ("128", "128"), ("0128", "128"), ("9" * 20, "9" * 20)])
def test_counts(value: str, normal: str) -> None:
    assert HUGE.normal_value(value) == normal


@pytest.mark.parametrize("value", ["", "-1", "1.5", "64G", "0x10", "1 ", "1\n", "1e3", "9" * 21])
def test_what_is_no_count(value: str) -> None:
    with pytest.raises(InvalidValue):
        HUGE.normal_value(value)


@pytest.mark.parametrize(
    ("pattern", "covers"),
    [
        ("2M", ["2M"]),
        ("2M/node1", ["2M/node1"]),
        ("2M/*", ["2M/node0", "2M/node1", "2M/node10"]),
        ("1G/*", ["1G/node0"]),
    ],
)
def test_matching(pattern: str, covers: list[str]) -> None:
    there = [Target("hugepages", at) for at in ("2M", "2M/node0", "2M/node1", "2M/node10", "1G", "1G/node0")]
    assert [target.instance for target in there if HUGE.matches(pattern, target)] == covers
    assert HUGE.exact(pattern) is not pattern.endswith("*")


async def test_a_node_or_a_size_that_is_not_there() -> None:
    async with running(large_host()) as lab:
        for absent in ("2M/node7", "64K"):
            with pytest.raises(NoSuchTarget, match="hugepages has no"):
                await lab.set(("hugepages", absent, 1))
        with pytest.raises(InvalidValue):
            await lab.set(("hugepages", "*", 1))
        assert (lab.writes(), lab.claims) == ([], [])


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


async def test_on_several_nodes_the_nodes_are_written() -> None:
    async with running(large_host()) as lab:
        assert told(await lab.one("hugepages", "2M", 100)) == ("2M", "100", State.SATISFIED, Reason.OK)
        assert lab.writes() == [(node_pool(0), "50"), (node_pool(1), "50")]


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
        assert not lab.ledger.baselines


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
        assert not lab.ledger.baselines


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
    async with running(lab.kernel, claims=lab.ledger.book.claims.values(), baselines=lab.ledger.baselines) as later:
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
    async with running(lab.kernel, claims=lab.ledger.book.claims.values(), baselines=lab.ledger.baselines) as later:
        await later.unset(("hugepages", "2M"))
        assert pages(later.kernel) == [100]
        assert not later.ledger.baselines


# Fragmentation


async def test_a_shortfall_is_an_error_and_the_old_count_comes_back() -> None:
    kernel = small_host(whole=FREE_FOR_100)
    have_pages(kernel, 10)
    async with running(kernel) as lab:
        with pytest.raises(PartiallyAllocated, match="150 pages asked for 2M, 110 had"):
            await lab.set(("hugepages", "2M", 150))
        # Compacted once, and not again as it did not help.
        assert lab.writes() == [(POOL, "150"), (COMPACT, "1"), (POOL, "150"), (POOL, "10")]
        assert (pages(kernel), lab.claims, dict(lab.ledger.baselines)) == ([10], [], {})


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


# What the host can bear


async def test_beyond_the_limit_nothing_is_written() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(OverLimit) as caught:
            await lab.set(("hugepages", "2M", 6145))
        assert "6145 pages asked for 2M, 6144 possible, 0 there now" in str(caught.value)
        assert "huge pages may have 12288 MiB in all (75 % of RAM)" in str(caught.value)
        assert (lab.writes(), lab.claims, dict(lab.ledger.baselines)) == ([], [], {})
        assert (await lab.one("hugepages", "2M", 6144)).state is State.SATISFIED


async def test_a_number_without_bounds_is_refused() -> None:
    for kernel in (small_host(), large_host()):
        async with running(kernel) as lab:
            for instance in ("2M", "2M/node0", "2M/*"):
                with pytest.raises(OverLimit):
                    await lab.set(("hugepages", instance, "99999999999999999999"))
            assert (lab.writes(), lab.claims) == ([], [])


async def test_memory_that_others_need_is_not_taken() -> None:
    async with running(small_host(programs=10 * GIB)) as lab:
        with pytest.raises(OverLimit, match="6144 MiB are available and 819 MiB stay for the host"):
            await lab.set(("hugepages", "2M", 2663))
        assert lab.writes() == []
        assert (await lab.one("hugepages", "2M", 2662)).state is State.SATISFIED


async def test_with_partial_exactly_the_possible_number_is_asked() -> None:
    async with running(small_host()) as lab:
        outcome = await lab.one("hugepages", "2M", 9000, partial=True)
        assert told(outcome) == ("2M", "6144", State.PARTIAL, Reason.OVER_LIMIT)
        assert "9000 pages asked for 2M, 6144 possible" in outcome.detail
        assert lab.writes() == [(POOL, "6144")]


async def test_with_partial_the_nodes_share_what_is_possible() -> None:
    async with running(large_host()) as lab:
        outcome = await lab.one("hugepages", "2M", 20000, partial=True)
        assert told(outcome) == ("2M", "12288", State.PARTIAL, Reason.OVER_LIMIT)
        assert pages(lab.kernel) == [6144, 6144]


async def test_the_limit_counts_every_size() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "1G", 6))
        with pytest.raises(OverLimit, match="3073 pages asked for 2M, 3072 possible"):
            await lab.set(("hugepages", "2M", 3073))
        assert (await lab.one("hugepages", "2M", 3072)).state is State.SATISFIED


async def test_the_limit_can_be_configured() -> None:
    async with running(small_host(), limits=Limits(hugepages_percent=10)) as lab:
        with pytest.raises(OverLimit, match=r"1000 pages asked for 2M, 819 possible.*10 % of RAM"):
            await lab.set(("hugepages", "2M", 1000))


async def test_a_saved_claim_beyond_the_limit_gets_what_is_possible_at_boot() -> None:
    async with running(small_host(), claims=[claim(Origin.PERSISTENT, "hugepages", "2M", 9000)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert told(lab.engine.outcomes[WHOLE]) == ("2M", "6144", State.PARTIAL, Reason.OVER_LIMIT)


async def test_two_nodes_in_one_call_do_not_take_the_same_room() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(OverLimit):
            await lab.set(("hugepages", "2M/node0", 6500), ("hugepages", "2M/node1", 6500))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_two_sizes_in_one_call_do_not_take_the_same_room() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(OverLimit):
            await lab.set(("hugepages", "2M", 6000), ("hugepages", "1G", 11))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_with_partial_two_sizes_share_what_is_possible() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M", 6000), ("hugepages", "1G", 11), partial=True)
        assert lab.kernel.nodes[0].hugetlb <= 12 * GIB


async def test_saved_claims_on_two_sizes_share_what_is_possible_at_boot() -> None:
    saved = [claim(Origin.PERSISTENT, "hugepages", "2M", 6000), claim(Origin.PERSISTENT, "hugepages", "1G", 11)]
    async with running(small_host(), claims=saved) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert lab.kernel.nodes[0].hugetlb <= 12 * GIB
        assert lab.engine.troubles == {Reason.OVER_LIMIT}


async def test_on_a_full_host_pages_of_one_size_become_pages_of_another() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "1G", 12))
        answer = await lab.set(("hugepages", "2M", 6144), ("hugepages", "1G", 0))
        assert {o.state for o in answer.outcomes} == {State.SATISFIED}
        assert (pages(lab.kernel), pages(lab.kernel, GIB)) == ([6144], [0])


async def test_what_one_size_gives_back_another_gets_back() -> None:
    kernel = large_host()
    have_pages(kernel, 12, 34)
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 0))
        await lab.set(("hugepages", "1G", 24))
        await lab.unset(("hugepages", "*"))
        assert (pages(kernel), pages(kernel, GIB)) == ([12, 34], [0, 0])
        assert not lab.ledger.baselines
        assert COMPACT not in [path for path, _ in lab.writes()]


async def test_a_number_that_nodes_beat_is_refused_if_no_host_could_bear_it() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M/node0", 10))
        with pytest.raises(OverLimit):
            await lab.set(("hugepages", "2M", 99_999_999))
        assert lab.claims == ["runtime:hugepages@2M/node0=10"]


def never(kernel: SimulatedKernel, ratio: int) -> SimulatedKernel:
    kernel.overcommit = {"memory": 2, "ratio": ratio, "kbytes": 0}
    return kernel


async def test_in_mode_never_growth_that_would_lock_out_is_refused() -> None:
    kernel = never(small_host(), 40)
    memory = read_memory(kernel)
    spare = predicted_limit(memory, ratio=40) - needed_limit(memory)
    possible = spare * 100 // 40 // PAGE
    async with running(kernel) as lab:
        with pytest.raises(OverLimit, match=rf"{possible} possible.* overcommit is never:40, where huge pages lower"):
            await lab.set(("hugepages", "2M", possible + 1))
        assert lab.writes() == []
        assert (await lab.one("hugepages", "2M", possible)).state is State.SATISFIED
        after = read_memory(kernel)
        assert predicted_limit(after, ratio=40) >= needed_limit(after)
        assert predicted_limit(after, ratio=40, more_hugetlb=2 * PAGE) < needed_limit(after)


async def test_in_mode_never_with_kilobytes_huge_pages_lower_no_limit() -> None:
    kernel = small_host()
    kernel.overcommit = {"memory": 2, "ratio": 0, "kbytes": 4 * MIB}
    async with running(kernel) as lab:
        assert (await lab.one("hugepages", "2M", 6144)).state is State.SATISFIED


async def test_overcommit_is_checked_against_what_huge_pages_of_the_same_call_take() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(OverLimit, match="never:50 would make the commit limit 2048 MiB"):
            await lab.set(("hugepages", "2M", 6144), ("overcommit", "", "never:50"))
        assert (pages(lab.kernel), lab.kernel.overcommit["memory"], lab.claims) == ([0], 0, [])


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
