"""hugepages: what the host can bear; beyond it nothing is written."""

from __future__ import annotations

import pytest

from kerntune.errors import OverLimit
from kerntune.kernel.memory import read_memory
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Limits, Origin, Reason, State, Target
from kerntune.tunables.overcommit import needed_limit, predicted_limit
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
    running,
    small_host,
    told,
)

WHOLE = Target("hugepages", "2M")


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
