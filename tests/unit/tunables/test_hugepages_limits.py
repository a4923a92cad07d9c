"""Pools of huge pages and loans: what the host can bear; beyond it nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, OverLimit
from kerntune.kernel.memory import read_memory
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import DesiredState, Limits, Origin, Reason, State, Target
from kerntune.tunables.hugepages import HugePages
from kerntune.tunables.hugepages_overcommit import HugePagesOvercommit
from kerntune.tunables.overcommit import needed_limit, predicted_limit
from tests.hosts import lay_out
from tests.unit.lab import (
    COMPACT,
    GIB,
    MIB,
    PAGE,
    POOL,
    claim,
    have_pages,
    large_host,
    pages,
    request,
    running,
    small_host,
    told,
)

HUGE = HugePages()
WHOLE = Target("hugepages", "2M")
LOANS = HugePagesOvercommit()
BORROW = LOANS.name


# What the host can bear


async def test_beyond_the_limit_nothing_is_written() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(OverLimit) as caught:
            await lab.set(("hugepages", "2M", 6145))
        assert "6145 pages (12 GiB) asked for 2M, 6144 (12 GiB) possible, 0 there now" in str(caught.value)
        assert (
            "huge pages may have 12 GiB in all (75 % of RAM, limits.hugepages-percent in /etc/kerntune/kerntune.toml)"
            in str(caught.value)
        )
        assert (lab.writes(), lab.claims, dict(lab.store.baselines)) == ([], [], {})
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
        assert "9000 pages (17.5 GiB) asked for 2M, 6144 (12 GiB) possible" in outcome.detail
        written = lab.writes()
        assert ({path for path, _ in written}, written[-1]) == ({POOL}, (POOL, "6144"))


async def test_with_partial_the_nodes_share_what_is_possible() -> None:
    async with running(large_host()) as lab:
        outcome = await lab.one("hugepages", "2M", 20000, partial=True)
        assert told(outcome) == ("2M", "12288", State.PARTIAL, Reason.OVER_LIMIT)
        assert pages(lab.kernel) == [6144, 6144]


async def test_the_limit_counts_every_size() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "1G", 6))
        with pytest.raises(OverLimit, match=r"3073 pages \(.*\) asked for 2M, 3072 \(.*\) possible"):
            await lab.set(("hugepages", "2M", 3073))
        assert (await lab.one("hugepages", "2M", 3072)).state is State.SATISFIED


async def test_the_limit_can_be_configured() -> None:
    async with running(small_host(), limits=Limits(hugepages_percent=10)) as lab:
        with pytest.raises(OverLimit, match=r"1000 pages \(.*\) asked for 2M, 819 \(.*\) possible.*10 % of RAM"):
            await lab.set(("hugepages", "2M", 1000))


async def test_a_saved_claim_beyond_the_limit_gets_what_is_possible_at_boot() -> None:
    async with running(small_host(), claims=[claim(Origin.PERSISTENT, "hugepages", "2M", 9000)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert told(lab.engine.observed.outcomes[WHOLE]) == ("2M", "6144", State.PARTIAL, Reason.OVER_LIMIT)


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
        assert lab.engine.observed.troubles == {Reason.OVER_LIMIT}


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
        assert not lab.store.baselines
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
        with pytest.raises(
            OverLimit, match=rf"{possible} \(.*\) possible.* overcommit is never:40, where huge pages lower"
        ):
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


# Pools and loans


@pytest.mark.parametrize("order", [("hugepages", BORROW), (BORROW, "hugepages")])
@pytest.mark.parametrize("second", ["2M", "1G"])
async def test_pools_and_loans_share_one_limit_whichever_comes_first(order: tuple[str, str], second: str) -> None:
    values = {"2M": 6000, "1G": 6000 * PAGE // GIB}
    async with running(small_host()) as lab:
        assert (await lab.one(order[0], "2M", 6000)).state is State.SATISFIED
        with pytest.raises(OverLimit):
            await lab.set((order[1], second, values[second]))
        assert len(lab.claims) == 1
        left = {"2M": 144, "1G": 0}[second]
        assert (await lab.one(order[1], second, left)).state is State.SATISFIED


async def test_what_may_be_borrowed_is_told_where_it_leaves_no_room() -> None:
    async with running(small_host()) as lab:
        await lab.set((BORROW, "2M", 6000))
        with pytest.raises(
            OverLimit,
            match=r"145 pages \(.*\) asked for 2M, 144 \(.*\) possible.* borrow 12000 MiB more",
        ):
            await lab.set(("hugepages", "2M", 145))


async def test_what_is_borrowed_already_counts_once() -> None:
    kernel = small_host()
    kernel.borrow[PAGE] = 3000
    assert kernel.take(0, 2000, PAGE) == 2000
    async with running(kernel) as lab:
        with pytest.raises(OverLimit, match=r"3145 pages \(.*\) asked for 2M, 3144 \(.*\) possible"):
            await lab.set(("hugepages", "2M", 3145))
        assert (await lab.one("hugepages", "2M", 3144)).state is State.SATISFIED


async def test_pages_in_use_that_are_to_go_count_once() -> None:
    """All the host may have is in use, and less is asked for: so much may be asked for again."""
    kernel = small_host()
    have_pages(kernel, 6144, used=6144)
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 100))
        assert (await lab.one("hugepages", "2M", 6144)).state is State.SATISFIED
        with pytest.raises(OverLimit, match=r"6145 pages \(.*\) asked for 2M, 6144 \(.*\) possible"):
            await lab.set(("hugepages", "2M", 6145))


async def test_pools_and_loans_of_one_call_share_the_limit() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(OverLimit, match=r"6000 pages to borrow \(.*\) asked for 2M, 144 \(.*\) possible"):
            await lab.set(("hugepages", "2M", 6000), (BORROW, "2M", 6000))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_overcommit_is_planned_with_the_pages_of_the_same_call() -> None:
    settings: list[tuple[str, str, str | int]] = [("hugepages", "2M", 5120), ("overcommit", "", "never:40")]
    async with running(small_host()) as lab:
        answer = await lab.engine.plan(request(*settings))
        assert {o.target.tunable: o.state for o in answer.outcomes} == {
            "hugepages": State.PLANNED,
            "overcommit": State.REFUSED,
        }
        with pytest.raises(OverLimit, match="never:40 would make the commit limit 2457 MiB"):
            await lab.set(*settings)
        assert (lab.writes(), lab.claims) == ([], [])


async def test_overcommit_is_planned_without_the_pages_that_the_same_call_gives_back() -> None:
    kernel = small_host()
    have_pages(kernel, 5120)
    async with running(kernel) as lab:
        answer = await lab.set(("hugepages", "2M", 0), ("overcommit", "", "never:40"))
        assert {o.state for o in answer.outcomes} == {State.SATISFIED}


@pytest.mark.parametrize(
    ("wanted", "used", "grows"),
    [(100, 0, 60), (40, 0, 0), (10, 0, -30), (10, 25, -15)],
    ids=["growth", "as it is", "given back", "pages in use stay"],
)
def test_the_memory_that_a_plan_leaves(wanted: int, used: int, grows: int) -> None:
    kernel = small_host()
    have_pages(kernel, 40, used=used)
    readings = HUGE.read_all(kernel, HUGE.targets(kernel))
    asked = claim(Origin.RUNTIME, "hugepages", "2M", wanted)
    memory = read_memory(kernel)
    steps = HUGE.plan(readings, {WHOLE: DesiredState(WHOLE, asked.value, asked)}, memory, Limits())
    ahead = HUGE.foreseen(steps, memory)
    assert ahead.hugetlb - memory.hugetlb == memory.available - ahead.available == memory.free - ahead.free
    assert ahead.hugetlb - memory.hugetlb == grows * PAGE


def test_a_plan_that_is_refused_or_capped_leaves_what_it_does_not_take() -> None:
    kernel = small_host()
    readings, memory = HUGE.read_all(kernel, HUGE.targets(kernel)), read_memory(kernel)
    asked = claim(Origin.RUNTIME, "hugepages", "2M", 9000)
    for strict, pages_taken in ((True, 0), (False, 6144)):
        steps = HUGE.plan(readings, {WHOLE: DesiredState(WHOLE, "9000", asked, strict=strict)}, memory, Limits())
        assert HUGE.foreseen(steps, memory).hugetlb == pages_taken * PAGE


def test_the_memory_that_all_parts_of_a_plan_leave() -> None:
    """A total with a node's claim and another size, with one step that carries out the writes of two."""
    kernel = large_host()
    have_pages(kernel, 0, 5)
    kernel.borrow[PAGE] = 30
    kernel.take(1, 25, PAGE)
    readings, memory = HUGE.read_all(kernel, HUGE.targets(kernel)), read_memory(kernel)
    desired_states = {}
    for instance, value in (("2M/node0", 80), ("2M", 200), ("1G", 3)):
        asked = claim(Origin.RUNTIME, "hugepages", instance, value)
        desired_states[Target("hugepages", instance)] = DesiredState(Target("hugepages", instance), str(value), asked)
    ahead = HUGE.foreseen(HUGE.plan(readings, desired_states, memory, Limits()), memory)
    assert ahead.hugetlb - memory.hugetlb == (80 + 120 - 25) * PAGE + 3 * GIB


# What a node keeps


async def test_a_claim_on_a_node_leaves_it_a_reserve() -> None:
    """819 MiB of 16 GiB, as the host has them of its memory."""
    async with running(large_host()) as lab:
        for instance in ("2M/node0", "2M/*"):
            with pytest.raises(
                OverLimit, match=r"7271 pages \(.*\) asked for 2M/node0, 7270 \(.*\) possible, 0 there now"
            ):
                await lab.set(("hugepages", instance, 7271))
            assert (lab.writes(), lab.claims) == ([], [])
        outcome = await lab.one("hugepages", "2M/node0", 9000, partial=True)
        assert told(outcome) == ("2M/node0", "7270", State.PARTIAL, Reason.OVER_LIMIT)
        assert "14.1 GiB) possible, 0 there now: 14.2 GiB of node0 can be had" in outcome.detail


async def test_two_sizes_share_what_a_node_can_give() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(OverLimit, match=r"pages \(.*\) asked for 1G/node0"):
            await lab.set(("hugepages", "2M/node0", 4000), ("hugepages", "1G/node0", 8))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_page_cache_of_a_node_can_be_had_and_a_small_node_keeps_a_twelfth() -> None:
    kernel = large_host()
    kernel.nodes.append(Node(GIB, cache=GIB - 64 * MIB))
    async with running(kernel) as lab:
        with pytest.raises(OverLimit, match=r"470 pages \(.*\) asked for 2M/node2, 469 \(.*\) possible"):
            await lab.set(("hugepages", "2M/node2", 470))
        assert (await lab.one("hugepages", "2M/node2", 469)).state is State.SATISFIED


def test_a_node_that_does_not_tell_its_memory_has_no_bound_of_its_own(tmp_path: Path) -> None:
    kernel = lay_out("two-sockets", tmp_path)
    (tmp_path / "sys/devices/system/node/node0/meminfo").unlink()
    node = Target("hugepages", "2M/node0")
    asked = claim(Origin.RUNTIME, "hugepages", "2M/node0", 300)
    readings = HUGE.read_all(kernel, HUGE.targets(kernel))
    steps = HUGE.plan(readings, {node: DesiredState(node, "300", asked, strict=True)}, read_memory(kernel), Limits())
    assert [step.verdict for step in steps] == [None]


# The host's own number


@pytest.mark.parametrize("percent", [87, 94])
async def test_the_hosts_own_number_may_go_back_beyond_every_limit(percent: int) -> None:
    own = 16 * GIB * percent // 100 // PAGE
    for kernel in (small_host(programs=0), large_host()):
        for node in kernel.nodes:
            node.programs = 0
        have_pages(kernel, *[own] * len(kernel.nodes))
        async with running(kernel) as lab:
            await lab.set(("hugepages", "2M", 100))
            (outcome,) = (await lab.unset(("hugepages", "2M"))).outcomes
            assert (outcome.state, outcome.reason) == (State.UNMANAGED, Reason.OK)
            assert pages(kernel) == [own] * len(kernel.nodes)
            assert (dict(lab.store.baselines), lab.engine.observed.troubles) == ({}, set())


async def test_the_hosts_own_number_goes_back_as_far_as_there_is_memory() -> None:
    kernel = small_host(programs=0)
    have_pages(kernel, 7000)
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 100))
        kernel.nodes[0].programs = 10 * GIB
        (outcome,) = (await lab.unset(("hugepages", "2M"))).outcomes
        assert told(outcome) == ("2M", "2662", State.PARTIAL, Reason.OVER_LIMIT)
        assert "5944 MiB are available and 819 MiB stay for the host" in outcome.detail
        assert kernel.nodes[0].free >= 819 * MIB, "the last of it belongs to others, now and when it is tried again"
        kernel.nodes[0].programs = 0
        await lab.engine.reconcile("timer")
        assert (pages(kernel), dict(lab.store.baselines)) == ([7000], {})


# Loans: pages that may be borrowed beyond those that a pool keeps


def test_only_the_whole_host_can_borrow() -> None:
    assert LOANS.normal("2048K") == "2M"
    assert [target.instance for target in LOANS.targets(small_host())] == ["1G", "2M"]
    for instances in ("2M/node0", "2M/*"):
        with pytest.raises(InvalidValue, match="only the whole host can borrow"):
            LOANS.normal(instances)


async def test_loans_have_what_pools_leave_of_the_limit() -> None:
    kernel = small_host()
    have_pages(kernel, 1000)
    async with running(kernel, limits=Limits(50)) as lab:
        with pytest.raises(
            OverLimit, match=r"3097 pages to borrow \(.*\) asked for 2M, 3096 \(.*\) possible, 0 there now"
        ):
            await lab.set((BORROW, "2M", 3097))
        assert (lab.writes(), lab.claims) == ([], [])
        assert (await lab.one(BORROW, "2M", 3096)).state is State.SATISFIED
        with pytest.raises(OverLimit, match="0 possible"):
            await lab.set((BORROW, "1G", 1))


async def test_a_smaller_loan_than_there_is_is_never_too_much() -> None:
    kernel = small_host()
    kernel.borrow[PAGE] = 99_999
    async with running(kernel) as lab:
        assert (await lab.one(BORROW, "2M", 90_000)).state is State.SATISFIED
        await lab.unset((BORROW, "2M"))
        assert kernel.borrow[PAGE] == 99_999


async def test_a_configured_loan_beyond_the_limit_is_not_written() -> None:
    async with running(small_host(), claims=[claim(Origin.CONFIG, BORROW, "2M", 99_999)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert [told(o)[2:] for o in lab.engine.observed.outcomes.values()] == [(State.REFUSED, Reason.OVER_LIMIT)]
        assert lab.writes() == []
