"""Holds: what they add to what is claimed otherwise, how they go together, and what is back when they end."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Iterable

import pytest

from kerntune.engine.claims import Claims, FilesEdit
from kerntune.engine.edits import boottime
from kerntune.engine.results import Answer
from kerntune.errors import Failed, InvalidValue, LimitsExceeded, OverLimit, PartiallyAllocated
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Hold, Limits, Origin, Reason, State
from kerntune.tunables.hugepages import HugePages
from tests.unit.lab import (
    FULL,
    GIB,
    PAGE,
    Lab,
    begun,
    claim,
    failing,
    have_pages,
    held,
    large_host,
    pages,
    queue,
    request,
    running,
    small_host,
)

POOL = ("hugepages", "2M")
FILE = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
ALICE, BOB, ROOT = 1000, 1001, 0


async def hold(
    lab: Lab, *settings: tuple[str, str, str | int], uid: int = ALICE, **options: bool
) -> tuple[int, Answer]:
    """What Hold does once it is authorised: the number of the hold, and the answer."""
    number = lab.engine.edits.number_for_a_hold()
    asked = request(*settings, hold=Hold(number, "alice (job)", "a test", uid), **options)
    return number, await lab.engine.change(asked, "Hold")


async def release(lab: Lab, *numbers: int) -> Answer:
    return await lab.engine.release(numbers, "Release")


def rows(answer: Answer) -> list[tuple[str, str, str, State]]:
    return [(str(each.target), each.requested, each.actual, each.state) for each in answer.outcomes]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_pages_of_holds_add_up_and_go_one_by_one(order: Iterable[int]) -> None:
    kernel = small_host()
    have_pages(kernel, 7)
    async with running(kernel) as lab:
        numbers = []
        for count, total in ((10, 17), (20, 37), (40, 77)):
            number, answer = await hold(lab, (*POOL, count))
            numbers.append(number)
            assert rows(answer) == [("hugepages@2M", f"+{count}", str(total), State.SATISFIED)]
        left = 77
        for each in order:
            left -= (10, 20, 40)[each]
            await release(lab, numbers[each])
            assert pages(kernel) == [left]
        assert (lab.engine.edits.claims.by_id, lab.engine.edits.claims.holds, lab.store.baselines) == ({}, {}, {})


async def test_they_go_on_top_of_what_is_claimed_and_of_what_is_claimed_later() -> None:
    kernel = small_host()
    have_pages(kernel, 7)
    async with running(kernel, claims=[claim(Origin.PERSISTENT, *POOL, 100)]) as lab:
        await lab.engine.reconcile("boot")
        number, _ = await hold(lab, (*POOL, 10))
        assert pages(kernel) == [110]
        outcome = await lab.one(*POOL, 50)
        assert (outcome.requested, outcome.actual, outcome.state) == ("50", "60", State.SATISFIED)
        assert "10 more are held" in outcome.detail
        await lab.unset(POOL)
        assert pages(kernel) == [110]
        await release(lab, number)
        assert pages(kernel) == [100]
        await lab.unset(POOL, persist=True)
        assert pages(kernel) == [7]


async def test_a_pass_changes_nothing_of_what_is_held() -> None:
    kernel = small_host()
    have_pages(kernel, 7)
    async with running(kernel) as lab:
        await hold(lab, (*POOL, 10), ("hugepages-overcommit", "2M", 5))
        lab.writes()
        await lab.engine.reconcile("boot", enforce=True)
        assert lab.writes() == []
        assert await lab.engine.verify() == ()


async def test_pages_to_borrow_add_up_too() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        (_, first), (_, second) = [await hold(lab, ("hugepages-overcommit", "2M", count)) for count in (3, 4)]
        assert rows(first) == [("hugepages-overcommit@2M", "+3", "3", State.SATISFIED)]
        assert rows(second) == [("hugepages-overcommit@2M", "+4", "7", State.SATISFIED)]
        await release(lab, 1)
        assert kernel.borrow[PAGE] == 4


async def test_of_governors_the_fastest_wins_and_of_schedulers_the_newest() -> None:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0, 1), "powersave")}
    async with running(kernel) as lab:
        first, _ = await hold(lab, ("cpu-governor", "*", "performance"), ("io-scheduler", "sda", "bfq"))
        _, answer = await hold(lab, ("cpu-governor", "*", "schedutil"), ("io-scheduler", "sda", "none"), uid=BOB)
        assert rows(answer) == [
            ("cpu-governor@policy0", "schedutil", "performance", State.OVERRIDDEN),
            ("io-scheduler@sda", "none", "none", State.SATISFIED),
        ]
        assert f"cpu-governor@* = performance of hold {first}, by alice (job)" in answer.outcomes[0].detail
        await release(lab, first)
        assert (kernel.policies["policy0"].governor, kernel.disks["sda"].scheduler) == ("schedutil", "none")
        await release(lab, 2)
        assert (kernel.policies["policy0"].governor, kernel.disks["sda"].scheduler) == ("powersave", "mq-deadline")


@pytest.mark.parametrize("nodes", [1, 2])
async def test_held_on_a_node_and_of_the_host(nodes: int) -> None:
    kernel = large_host(nodes)
    have_pages(kernel, *[10] * nodes)
    async with running(kernel) as lab:
        await hold(lab, ("hugepages", "2M/node0", 6))
        assert pages(kernel) == [16, *[10] * (nodes - 1)]
        _, answer = await hold(lab, (*POOL, 4))
        assert rows(answer) == [("hugepages@2M", "+4", str(10 * nodes + 10), State.SATISFIED)]
        assert sum(pages(kernel)) == 10 * nodes + 10
        assert pages(kernel)[0] >= 16
        await release(lab, 1)
        assert sum(pages(kernel)) == 10 * nodes + 4
        await release(lab, 2)
        assert pages(kernel) == [10] * nodes


async def test_held_on_a_node_of_a_total_that_others_claim() -> None:
    kernel = large_host()
    async with running(kernel) as lab:
        await lab.set((*POOL, 40))
        assert pages(kernel) == [20, 20]
        number, answer = await hold(lab, ("hugepages", "2M/node0", 10))
        assert rows(answer) == [("hugepages@2M/node0", "+10", "30", State.SATISFIED)]
        assert pages(kernel) == [30, 20]
        lab.writes()
        await lab.engine.reconcile("boot", enforce=True)
        assert lab.writes() == []
        await release(lab, number)
        assert sum(pages(kernel)) == 40


@pytest.mark.parametrize(
    ("nodes", "total", "held", "expected"),
    [
        # What nodes have by claims of their own, then what is claimed of all, then what is held where.
        ({0: 10, 1: 10}, None, {"2M": 100}, 120),
        ({0: 100}, 40, {"2M": 10}, 110),
        ({0: 100, 1: 5}, 40, {"2M": 10, "2M/node1": 3}, 118),
        ({0: 10}, 40, {"2M/node0": 5}, 45),
        ({}, 40, {"2M/node0": 7, "2M": 30}, 77),
        ({}, None, {"2M/node0": 7, "2M/*": 1}, 33),
    ],
)
async def test_held_pages_are_added_to_what_there_would_be_without(
    nodes: dict[int, int], total: int | None, held: dict[str, int], expected: int
) -> None:
    kernel = large_host()
    have_pages(kernel, 12, 12)
    async with running(kernel) as lab:
        await lab.set(*(("hugepages", f"2M/node{node}", count) for node, count in nodes.items()))
        if total is not None:
            await lab.set((*POOL, total))
        before = pages(kernel)
        for instances, count in held.items():
            _, answer = await hold(lab, ("hugepages", instances, count))
            assert {each.state for each in answer.outcomes} == {State.SATISFIED}
            await nobody_else_is_blamed(lab)
        assert sum(pages(kernel)) == expected
        for number in list(lab.engine.edits.claims.holds):
            await release(lab, number)
            await nobody_else_is_blamed(lab)
        assert sum(pages(kernel)) == sum(before)


async def nobody_else_is_blamed(lab: Lab) -> None:
    """A pass that looks for drift finds none."""
    lab.writes()
    await lab.engine.reconcile("drift")
    assert lab.writes() == []
    assert Reason.CHANGED_BY_OTHERS not in lab.engine.observed.troubles
    assert Reason.CHANGED_BY_OTHERS not in {outcome.reason for outcome in await lab.engine.verify()}


async def test_a_claim_on_single_nodes_overrides_one_on_the_total_with_holds_as_without() -> None:
    """On a host with one node both name one pool."""
    for nodes in (1, 2):
        async with running(large_host(nodes)) as lab:
            await lab.set(*(("hugepages", f"2M/node{node}", 5) for node in range(nodes)))
            await hold(lab, (*POOL, 3))
            outcome = await lab.one(*POOL, 50)
            assert (outcome.state, outcome.actual) == (State.OVERRIDDEN, str(5 * nodes + 3))
            why = "the claims on single nodes make 10 pages" if nodes == 2 else "2M/node0 = 5, by alice wins"
            assert why in outcome.detail


async def test_pages_that_a_node_loses_are_made_again_on_it() -> None:
    kernel = large_host()
    async with running(kernel) as lab:
        await hold(lab, ("hugepages", "2M/node0", 7))
        await hold(lab, (*POOL, 30))
        have_pages(kernel, 0, pages(kernel)[1])
        await lab.engine.reconcile("drift")
        assert sum(pages(kernel)) == 37
        assert pages(kernel)[0] >= 7


async def test_who_takes_what_can_be_had_is_in_nobodys_way() -> None:
    kernel = small_host(programs=10 * GIB)
    async with running(kernel) as lab:
        await lab.set((*POOL, 500))
        _, answer = await hold(lab, (*POOL, 3000), uid=ROOT, partial=True)
        (outcome,) = answer.outcomes
        there = int(outcome.actual)
        assert (outcome.state, outcome.reason) == (State.PARTIAL, Reason.OVER_LIMIT)
        assert outcome.detail.startswith(f"{there - 500} of 3000 pages had")
        for count in (400, 1):
            assert (await lab.one(*POOL, count)).state is State.SATISFIED
            assert pages(kernel) == [there], "what that one leaves the other gets"
        with pytest.raises(OverLimit, match=r"\+50 pages \(.*\) asked for hugepages@2M, \+0 possible"):
            await hold(lab, (*POOL, 50), uid=ROOT)
        kernel.nodes[0].programs -= 60 * PAGE
        _, answer = await hold(lab, (*POOL, 50), uid=ROOT)
        assert (answer.outcomes[0].state, pages(kernel)) == (State.SATISFIED, [there + 60])
        # He keeps what he has, and there are the 50 of the other.
        with pytest.raises(
            OverLimit,
            match=rf"4000 pages \(.*\) asked for hugepages@2M, 1 \(.*\) possible, {there + 60} \(.*\) there now",
        ):
            await lab.set((*POOL, 4000))


async def test_of_two_at_once_who_came_first_is_not_refused_for_the_other() -> None:
    for first, second in ((2000, 2000), (100, 6000)):
        kernel = small_host(programs=10 * GIB)
        async with running(kernel) as lab:
            both = [hold(lab, (*POOL, count), uid=ROOT) for count in (first, second)]
            found = await asyncio.gather(*both, return_exceptions=True)
            assert isinstance(found[0], tuple)
            assert isinstance(found[1], OverLimit)
            assert pages(kernel) == [first]
    kernel = small_host(programs=10 * GIB)
    async with running(kernel) as lab:
        answers = await asyncio.gather(
            lab.set((*POOL, 1000)), hold(lab, (*POOL, 2000), uid=ROOT), return_exceptions=True
        )
        assert (type(answers[1]), pages(kernel)) == (OverLimit, [1000])
    async with running(small_host(programs=10 * GIB)) as lab:
        late = await asyncio.gather(hold(lab, (*POOL, 2000), uid=ROOT), lab.set((*POOL, 1000)), return_exceptions=True)
        assert (type(late[1]), pages(lab.kernel)) == (OverLimit, [2000])


def tight_host(nodes: int = 2) -> SimulatedKernel:
    """Of each node's 16 GiB programs leave 2."""
    kernel = large_host(nodes)
    for node in kernel.nodes:
        node.programs = 14 * GIB
    return kernel


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("first", ["2M", "2M/node0"])
@pytest.mark.parametrize("second", ["2M", "2M/node0"])
async def test_by_whatever_name_nobody_gets_pages_that_are_anothers(nodes: int, first: str, second: str) -> None:
    async with running(tight_host(nodes)) as lab:
        with pytest.raises(OverLimit) as refused:
            await hold(lab, ("hugepages", first, 9000), uid=ROOT)
        possible = re.search(
            rf"\+9000 pages \(.*\) asked for hugepages@{first}, \+(\d+) \(.*\) possible, 0 there now",
            str(refused.value),
        )
        assert possible
        await hold(lab, ("hugepages", first, int(possible[1])), uid=ROOT)
        before = pages(lab.kernel)
        lab.writes()
        with pytest.raises(
            OverLimit, match=rf"\+9000 pages \(.*\) asked for hugepages@{second}, \+\d+ (\(.*\) )?possible"
        ):
            await hold(lab, ("hugepages", second, 9000), uid=ROOT)
        with pytest.raises(OverLimit, match=rf"9000 pages \(.*\) asked for hugepages@{first}, \d+ (\(.*\) )?possible"):
            await lab.set(("hugepages", first, 9000))
        assert (pages(lab.kernel), lab.writes()) == (before, [])


async def test_what_runs_on_a_node_keeps_its_memory_whoever_shares_the_total() -> None:
    async with running(tight_host()) as lab:
        await hold(lab, (*POOL, 1), uid=ROOT)
        for count, fits in ((700, False), (500, True), (500, False)):
            if fits:
                await hold(lab, ("hugepages", "2M/node0", count), uid=ROOT)
                continue
            with pytest.raises(OverLimit, match="MiB of node0 can be had, the rest stays for what runs there"):
                await hold(lab, ("hugepages", "2M/node0", count), uid=ROOT)


async def test_a_small_hold_on_a_node_moves_no_others_pages() -> None:
    kernel = large_host()
    kernel.nodes[0].programs = kernel.nodes[0].memory
    async with running(kernel) as lab:
        await lab.set((*POOL, 400))
        assert pages(kernel) == [0, 400]
        kernel.nodes[0].programs, kernel.nodes[1].pools[PAGE].used = GIB, 300
        await hold(lab, ("hugepages", "2M/node0", 5))
        assert pages(kernel) == [5, 400]


async def test_pages_held_of_the_host_stay_where_they_are_when_a_node_is_set() -> None:
    async with running(tight_host()) as lab:
        await hold(lab, (*POOL, 1000), uid=ROOT)
        before = pages(lab.kernel)
        outcome = await lab.one("hugepages", "2M/node0", 0)
        assert pages(lab.kernel) == before
        assert (outcome.state, outcome.actual) == (State.SATISFIED, str(before[0]))
        assert "at least 0, and pages of the whole host are there too" in outcome.detail


async def test_memory_that_came_back_is_for_who_asks_now_too() -> None:
    """A rehearsal foresees what will be there, and not what is."""
    kernel = small_host(programs=10 * GIB)
    async with running(kernel) as lab:
        await hold(lab, (*POOL, 5000), uid=ROOT, partial=True)
        kernel.nodes[0].programs = GIB
        plan = await lab.engine.plan(request((*POOL, 3000)))
        assert plan.outcomes[0].state is State.SATISFIED
        _, answer = await hold(lab, (*POOL, 3000), uid=ROOT)
        assert answer.outcomes[0].state is State.SATISFIED
        assert pages(kernel) == [6144]


async def test_where_memory_is_in_pieces_nobody_gets_pages_that_others_have() -> None:
    kernel = small_host(whole=100 * PAGE)
    async with running(kernel) as lab:
        await hold(lab, (*POOL, 1000), partial=True)
        assert pages(kernel) == [100]
        with pytest.raises(PartiallyAllocated, match="0 of 50 pages had"):
            await hold(lab, (*POOL, 50), uid=BOB)
        with pytest.raises(PartiallyAllocated, match="0 of 50 pages had"):
            await lab.set((*POOL, 50))
        kernel.nodes[0].whole = 130 * PAGE
        await hold(lab, (*POOL, 25), uid=BOB)
        (alice,) = [each for each in lab.engine.edits.claims.by_origin(Origin.HOLD) if each.hold == 1]
        (outcome,) = lab.engine.looking_up([alice])()
        assert outcome.detail.startswith(f"{pages(kernel)[0] - 25} of 1000 pages had")


async def test_one_that_waits_for_another_lane_keeps_the_pages_it_has() -> None:
    kernel = small_host(programs=10 * GIB)
    gate = held(kernel, queue("nvme0n1"))
    async with running(kernel) as lab:
        both = (*POOL, 2000), ("io-scheduler", "nvme0n1", "bfq")
        first = asyncio.create_task(hold(lab, *both, uid=ROOT))
        await lab.until(lambda: pages(kernel) == [2000])
        second = asyncio.create_task(hold(lab, (*POOL, 3000), uid=ROOT, partial=True))
        await lab.until(lambda: pages(kernel)[0] > 2000)
        gate.free.set()
        (_, answer), (_, other) = await first, await second
        assert answer.outcomes[0].state is State.SATISFIED
        assert other.outcomes[0].detail.startswith(f"{pages(kernel)[0] - 2000} of 3000 pages had")


async def test_pages_to_borrow_are_refused_one_by_one_too() -> None:
    async with running(small_host()) as lab:
        both = [hold(lab, ("hugepages-overcommit", "2M", 4000), uid=ROOT) for _ in range(2)]
        found = await asyncio.gather(*both, return_exceptions=True)
        assert (type(found[1]), lab.kernel.borrow[PAGE]) == (OverLimit, 4000)


@pytest.mark.parametrize("partial", [False, True])
async def test_pages_that_the_dead_still_use_are_nobodys(partial: bool) -> None:
    kernel = small_host()
    have_pages(kernel, 7)
    async with running(kernel) as lab:
        first, _ = await hold(lab, (*POOL, 10))
        kernel.nodes[0].pools[PAGE].used = 15
        await release(lab, first)
        for count in (3, 8, 100):
            with pytest.raises(PartiallyAllocated, match="8 pages of hugepages@2M that nobody claims any more are"):
                await hold(lab, (*POOL, count), partial=partial)
        kernel.nodes[0].pools[PAGE].used = 7
        await hold(lab, (*POOL, 8), partial=partial)
        assert pages(kernel) == [15]


@pytest.mark.parametrize(("count", "state"), [(50, State.OVERRIDDEN), (70, State.SATISFIED)])
async def test_the_outcome_of_an_overridden_one_names_the_winner(count: int, state: State) -> None:
    async with running(small_host(), claims=[claim(Origin.PERSISTENT, *POOL, count)]) as lab:
        await lab.set((*POOL, 70))
        await hold(lab, (*POOL, 10))
        (overridden,) = lab.engine.edits.claims.by_origin(Origin.PERSISTENT)
        (outcome,) = lab.engine.looking_up([overridden])()
        assert (outcome.requested, outcome.actual, outcome.state) == (str(count), "80", state)
        assert "runtime:hugepages@2M = 70, by alice" in outcome.detail


async def test_a_node_without_room_costs_nobody_the_pages_he_has() -> None:
    kernel = large_host()
    kernel.nodes[1].programs = kernel.nodes[1].memory - GIB // 8
    async with running(kernel) as lab:
        await lab.set((*POOL, 400))
        before = pages(kernel)
        assert before[0] > 300
        await hold(lab, ("hugepages", "2M/node0", 10))
        assert pages(kernel) == [before[0] + 10, before[1]]


async def test_one_that_falls_short_leaves_nothing_and_takes_nobodys() -> None:
    kernel = small_host(whole=100 * PAGE)
    async with running(kernel) as lab:
        first, _ = await hold(lab, (*POOL, 60))
        with pytest.raises(PartiallyAllocated, match="40 of 60 pages had"):
            await hold(lab, (*POOL, 60))
        assert pages(kernel) == [60]
        assert list(lab.engine.edits.claims.holds) == [first]
        _, answer = await hold(lab, (*POOL, 60), partial=True)
        assert rows(answer) == [("hugepages@2M", "+60", "100", State.PARTIAL)]
        with pytest.raises(PartiallyAllocated, match="0 of 20 pages had"):
            await lab.set((*POOL, 20))


async def test_more_than_the_host_can_bear_is_refused_with_figures() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        await hold(lab, (*POOL, 1000), uid=ROOT)
        writes = lab.writes()
        assert writes
        with pytest.raises(
            OverLimit,
            match=r"\+6000 pages \(.*\) asked for hugepages@2M, \+5144 \(.*\) possible, 1000 \(.*\) there now",
        ):
            await hold(lab, (*POOL, 6000), uid=ROOT)
        assert (lab.writes(), pages(kernel)) == ([], [1000])


async def test_one_user_leaves_half_of_the_pages_to_others() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        # 6144 pages are 75 % of 16 GiB.
        with pytest.raises(OverLimit, match="6 GiB in huge pages asked, 6 GiB possible: uid 1000 holds 0 GiB"):
            await hold(lab, (*POOL, 3073))
        await hold(lab, (*POOL, 3000))
        with pytest.raises(OverLimit, match="146 MiB in huge pages asked, 144 MiB possible: uid 1000 holds 6000 MiB"):
            await hold(lab, ("hugepages-overcommit", "2M", 73))
        await hold(lab, (*POOL, 3072), uid=BOB)
        assert pages(kernel) == [6072]


@pytest.mark.parametrize("claimed", [0, 1000])
async def test_who_comes_second_has_pages_too_where_programs_have_the_memory(claimed: int) -> None:
    async with running(small_host(programs=10 * GIB)) as lab:
        await lab.set((*POOL, claimed))
        half = (2662 - claimed) // 2
        for uid in (ALICE, BOB):
            with pytest.raises(OverLimit, match=rf"uid {uid} holds 0 GiB, and one user may hold [0-9.]+ GiB, 50 % of"):
                await hold(lab, (*POOL, half + 1), uid=uid)
            await hold(lab, (*POOL, half), uid=uid)
        assert pages(lab.kernel) == [claimed + 2 * half]


async def test_no_more_holds_than_there_may_be() -> None:
    kernel = small_host()
    async with running(kernel, limits=Limits(holds=3, holds_per_user=2)) as lab:
        for _ in range(2):
            await hold(lab, (*POOL, 1))
        with pytest.raises(LimitsExceeded, match="uid 1000 has 2 holds already"):
            await hold(lab, (*POOL, 1))
        await hold(lab, (*POOL, 1), uid=ROOT)
        with pytest.raises(LimitsExceeded, match="there are 3 holds already"):
            await hold(lab, (*POOL, 1), uid=ROOT)
        await release(lab, 1)
        number, _ = await hold(lab, (*POOL, 1))
        assert number == 6, "no number comes again"


async def test_one_user_leaves_claims_to_others() -> None:
    settings = [("io-scheduler", f"vd{number}*", "none") for number in range(5)]
    async with running(small_host(), limits=Limits(claims=16, holds=4, holds_per_user=2)) as lab:
        await hold(lab, *settings)
        with pytest.raises(LimitsExceeded, match="the holds of uid 1000 would have more than 8 claims"):
            await hold(lab, *settings)
        await hold(lab, *settings, uid=BOB)


async def test_a_hold_of_nothing_is_refused() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(InvalidValue, match="a hold of 0 for hugepages adds nothing"):
            await hold(lab, (*POOL, 0))


async def test_a_reset_ends_holds_only_when_it_is_asked_to() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        await hold(lab, (*POOL, 5))
        await lab.set((*POOL, 10))
        claims = lab.engine.edits.claims
        edit = claims.files_edit(files_of(claims), reset=True)
        assert [str(each) for each in edit.drop] == ["runtime:hugepages@2M"]
        edit = claims.files_edit(files_of(claims), reset=True, holds=True)
        await lab.engine.carry_out(edit, "Reset")
        assert (pages(kernel), lab.engine.edits.claims.holds) == ([0], {})


async def test_a_second_release_is_done_when_it_is_answered() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        number, _ = await hold(lab, (*POOL, 30))
        gate = held(kernel, FILE)
        first, second = await begun(release(lab, number), release(lab, number))
        await gate.reached.wait()
        assert not second.done()
        gate.free.set()
        assert [(await each).changed for each in (first, second)] == [True, False]
        assert (pages(kernel), lab.engine.edits.committed.holds) == ([0], {})


async def test_a_release_does_what_a_reset_could_not_save() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        number, _ = await hold(lab, (*POOL, 30))
        gate = held(kernel, FILE)
        edit = lab.engine.files_edit(files_of(lab.engine.edits.claims), reset=True, holds=True)
        resetting, releasing = await begun(lab.engine.carry_out(edit, "Reset"), release(lab, number))
        await gate.reached.wait()
        lab.store.full_for_claims = FULL
        gate.free.set()
        with pytest.raises(Failed, match=r"what was asked cannot be saved: .* Nothing was changed"):
            await resetting
        with pytest.raises(Failed):
            await releasing
        assert (pages(kernel), [*lab.engine.edits.committed.holds]) == ([30], [number])
        lab.store.full_for_claims = None
        await release(lab, number)
        assert (pages(kernel), lab.engine.edits.committed.holds) == ([0], {})


async def test_what_is_over_gives_its_pages_back_and_is_saved_when_that_is_possible() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        number, _ = await hold(lab, (*POOL, 1000))
        lab.writes()
        lab.store.full_for_claims = FULL
        await lab.engine.release([number], "client gone", is_fact=True)
        assert (pages(kernel), lab.engine.edits.committed.holds) == ([0], {})
        assert [text for path, text in lab.writes() if path == FILE] == ["0"], "they are not reserved again"
        assert [*lab.store.claims.holds] == [number]
        lab.store.full_for_claims = None
        await lab.set(("io-scheduler", "nvme0n1", "bfq"))
        assert lab.store.claims.holds == {}


async def test_what_is_over_is_over_though_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        number, _ = await hold(lab, (*POOL, 30))
        with failing(monkeypatch, HugePages, "plan", MemoryError()):
            await lab.engine.release([number], "client gone", is_fact=True)
        assert lab.engine.edits.committed.holds == {}
        await lab.until(lambda: pages(kernel) == [0])


async def test_listeners_hear_of_a_hold_when_it_is_committed() -> None:
    async with running(small_host()) as lab:
        heard: list[list[int]] = []
        lab.engine.observed.listeners.append(lambda _report: heard.append([*lab.engine.edits.committed.holds]))
        number, _ = await hold(lab, (*POOL, 5))
        assert heard[-1] == [number]
        await release(lab, number)
        assert heard[-1] == []


async def test_its_time_begins_when_it_is_granted() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        gate = held(kernel, FILE)
        asked = request((*POOL, 30), hold=Hold(1, "alice (job)", "", ALICE, ttl=1_000_000))
        (holding,) = await begun(lab.engine.change(asked, "Hold"))
        await gate.reached.wait()
        before, uptime = time.time_ns() // 1000, boottime()
        gate.free.set()
        await holding
        (granted,) = lab.engine.edits.committed.holds.values()
        assert before <= granted.since == granted.expires - 1_000_000
        assert uptime + 1_000_000 <= granted.ends_boottime <= boottime() + 1_000_000
        assert lab.store.claims.holds == lab.engine.edits.committed.holds


async def test_a_reserved_baseline_counts_below_what_is_held_and_is_not_put_back() -> None:
    kernel = large_host()
    have_pages(kernel, 7, 7)
    async with running(kernel) as lab:
        await hold(lab, (*POOL, 10))
        await lab.set(("io-scheduler", "sda", "bfq"))
        claims, baselines = lab.store.claims, lab.store.baselines
    # Another daemon, which cannot read who else claims what.
    async with running(kernel, baselines=baselines) as lab:
        lab.store.reserved = frozenset(baselines)
        lab.engine.edits.committed = claims.without(claims.by_origin(Origin.RUNTIME))
        lab.writes()
        for _ in range(2):
            await lab.engine.reconcile("boot", enforce=True)
            assert (pages(kernel), lab.writes()) == ([12, 12], [])
        assert kernel.disks["sda"].scheduler == "bfq"
        assert lab.engine.edits.number_for_a_hold() == 1  # has been the other's
        await hold(lab, (*POOL, 4))
        assert (sum(pages(kernel)), {target.tunable for target in lab.store.kept}) == (28, {"hugepages"})


def files_of(claims: Claims) -> FilesEdit:
    return FilesEdit((), claims.choice)
