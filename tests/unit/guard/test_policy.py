"""The guard's verdict by tables: when it caps, what it writes, when it lets go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kerntune.guard.policy import (
    GuardLimits,
    GuardVerdict,
    Sample,
    counting_error,
    decide,
    expected_limit,
    inexpressible,
    interval,
    kbytes_for,
)
from kerntune.model import GuardState, Memory

GIB, MIB = 1 << 30, 1 << 20
LIMITS = GuardLimits()
RESERVES = 136 * MIB
ERROR = 400 * MIB
# Floor 5 GiB, band 2 GiB: it caps at 7 GiB, and lets go at 9.
HOST = Memory(
    total=100 * GIB,
    available=90 * GIB,
    free=90 * GIB,
    hugetlb=0,
    swap_total=0,
    committed=60 * GIB,
    commit_limit=95 * GIB,
    overcommit_mode=1,
    overcommit_ratio=95,
    overcommit_kbytes=0,
)


def at(gib: float, now: float = 0.0, host: Memory = HOST, unavailable_reason: str = "", **changes: Any) -> Sample:
    """The host with so much headroom; changes are fields of Memory."""
    memory = replace(host, available=round(gib * GIB), **changes)
    return Sample(memory, now, RESERVES, ERROR, cpus=32, unavailable_reason=unavailable_reason)


def decided(sample: Sample, before: GuardVerdict | None = None) -> GuardVerdict:
    return decide(sample, LIMITS, before or GuardVerdict())


def capped(gib: float = 7) -> tuple[Memory, GuardVerdict]:
    """A host that has just been capped, as the kernel then reads, and the verdict."""
    verdict = decided(at(gib))
    assert verdict.caps
    return following(verdict), verdict


def following(verdict: GuardVerdict) -> Memory:
    """The host with the verdict's limit in force."""
    return replace(HOST, overcommit_mode=2, overcommit_ratio=0, overcommit_kbytes=verdict.kbytes)


def limit(verdict: GuardVerdict) -> int:
    """The limit in MiB, rounded down, beyond what was committed at the start."""
    return (verdict.kbytes * 1024 - HOST.committed) // MIB


@pytest.mark.parametrize(
    ("headroom", "state", "level"),
    [
        (90, GuardState.RELAXED, 0),
        (9.01, GuardState.RELAXED, 0),
        (9, GuardState.RELAXED, 50),
        (7.01, GuardState.RELAXED, 50),
        (7, GuardState.CAPPED, 100),
        (5.01, GuardState.CAPPED, 100),
        (5, GuardState.EXHAUSTED, 255),
    ],
)
def test_states_and_levels_of_a_host_of_100_gib_at_95_percent(headroom: float, state: GuardState, level: int) -> None:
    verdict = decided(at(headroom))
    assert (verdict.state, verdict.level, verdict.caps) == (state, level, level >= 100)


@pytest.mark.parametrize(
    ("gib", "hugetlb", "floor", "band"),
    [(6, 0, 307, 430), (6, 2, 204, 286), (16, 0, 819, 1146), (64, 0, 3276, 2048), (256, 0, 13107, 2048),
     (1024, 0, 52428, 8192), (2048, 0, 104857, 16384)],
)  # fmt: skip
def test_floor_and_band_by_the_size_of_the_host(gib: int, hugetlb: int, floor: int, band: int) -> None:
    memory = replace(HOST, total=gib * GIB, hugetlb=hugetlb * GIB)
    assert (LIMITS.floor(memory) // MIB, LIMITS.width(memory) // MIB) == (floor, band)


def test_the_band_is_a_setting() -> None:
    limits = replace(LIMITS, band=512)
    assert not decide(at(5.51), limits, GuardVerdict()).caps
    assert decide(at(5.5), limits, GuardVerdict()).caps


@pytest.mark.parametrize(
    ("change", "headroom", "caps"),
    [
        ({"hugetlb": 50 * GIB}, 4.51, False),  # 5 % of the 50 GiB that are left, and 2 GiB
        ({"hugetlb": 50 * GIB}, 4.5, True),
        ({"swap_free": 8 * GIB, "swap_total": 8 * GIB}, 1, False),
        ({"swap_free": 0, "swap_total": 8 * GIB}, 6.9, True),
        ({"arc": 30 * GIB}, 1, False),
    ],
)
def test_huge_pages_shrink_what_counts_and_free_swap_and_the_arc_are_headroom(
    change: dict[str, Any], headroom: float, caps: bool
) -> None:
    assert decided(at(headroom, **change)).caps is caps


def test_a_cap_begins_with_all_that_is_above_the_floor_and_the_kernels_reserves() -> None:
    _, verdict = capped(7)
    assert limit(verdict) == 2048 + 136
    _, verdict = capped(6)
    assert limit(verdict) == 1024 + 136


def test_below_the_floor_large_programs_get_nothing_at_first() -> None:
    _, verdict = capped(4.9)
    assert limit(verdict) == 136


def test_the_limit_follows_headroom_down_and_up() -> None:
    host, verdict = capped(7)
    down = decided(at(6, 1.0, host), verdict)
    assert limit(down) == 1024 + 136
    up = decided(at(6.5, 2.0, following(down)), down)
    assert limit(up) == 1536 + 136


def test_what_is_used_of_the_limit_does_not_move_it() -> None:
    host, verdict = capped(7)
    used = decided(at(6, 1.0, host, committed=61 * GIB), verdict)
    assert used.kbytes == verdict.kbytes


def test_commits_that_nobody_uses_do_not_raise_it() -> None:
    host, verdict = capped(7)
    unused = decided(at(7, 0.0, host, committed=62 * GIB), verdict)
    assert unused.kbytes == verdict.kbytes


def test_beyond_that_a_little_more_a_second_as_if_what_is_committed_were_used() -> None:
    """Large programs end 2 % of RAM below the floor, and the kernel's error above that."""
    _, verdict = capped(7)
    first, committed = None, HOST.committed + 2 * GIB
    for second in range(1, 60):
        verdict = decided(at(7, float(second), following(verdict), committed=committed), verdict)
        first = first or verdict
        committed = max(committed, verdict.kbytes * 1024 - RESERVES)
    assert first
    assert limit(first) - 2048 == 136, "somebody has just taken much"
    assert limit(verdict) == pytest.approx(7 * 1024 - 3 * 1024 - 400 + 136, abs=1)


def test_commits_that_nobody_uses_come_to_no_more_than_twice_the_band() -> None:
    """A small program that asks again and again."""
    _, verdict = capped(7)
    for look in range(1, 2000):
        committed = max(HOST.committed, verdict.kbytes * 1024 - MIB)
        verdict = decided(at(7, look / 20, following(verdict), committed=committed), verdict)
    assert limit(verdict) == 2 * 2048


def test_when_memory_comes_back_as_much_may_be_committed_again() -> None:
    """A service of 48 GiB restarts."""
    _, verdict = capped(7)
    gone = decided(at(55, 1.0, following(verdict), committed=12 * GIB), verdict)
    assert gone.caps
    assert limit(gone) == 2048 + 136


def test_the_bucket_fills_below_the_floor_and_what_is_taken_leaves_it() -> None:
    _, verdict = capped(4.9)
    full = decided(at(4.9, 100.0, following(verdict)), verdict)
    # An eighth of the floor.
    assert limit(full) == 136 + 5 * 1024 // 8
    taken = decided(at(4.8, 100.001, following(full), committed=HOST.committed + 100 * MIB), full)
    assert limit(taken) == limit(full)
    empty = decided(at(4.3, 100.002, following(taken), committed=HOST.committed + 776 * MIB), taken)
    assert limit(empty) == pytest.approx(776, abs=1)


@pytest.mark.parametrize(("headroom", "more"), [(3.3, 0), (3.5, 112), (4.9, 640)])
def test_large_programs_get_nothing_more_at_2_percent_below_the_floor_and_the_kernels_error(
    headroom: float, more: int
) -> None:
    """At 3 GiB and 400 MiB; an eighth of the floor is there before."""
    _, verdict = capped(headroom)
    verdict = decided(at(headroom, 100.0, following(verdict)), verdict)
    assert limit(verdict) == pytest.approx(136 + more, abs=1)


def test_what_was_taken_while_the_mode_was_written_is_not_taken_of_the_bucket() -> None:
    """A fast program has gone below the floor meanwhile: others start all the same."""
    _, verdict = capped(7)
    after = decided(at(4.5, 0.02, following(verdict), committed=HOST.committed + 5 * GIB // 2), verdict)
    assert limit(after) - 2560 >= 136


def bucket(verdict: GuardVerdict) -> float:
    """What is in it, in MiB."""
    assert verdict.cap
    return verdict.cap.bucket / MIB


def test_what_is_taken_above_the_floor_is_not_taken_of_the_bucket() -> None:
    _, verdict = capped(7)
    for now, gone in ((0.5, 1000), (0.52, 2000), (0.54, 2100)):
        sample = at(7 - gone / 1024, now, following(verdict), committed=HOST.committed + gone * MIB)
        verdict = decided(sample, verdict)
    # Less the 52 MiB below the floor.
    assert bucket(verdict) == pytest.approx(136 - 52, abs=1)


def test_what_is_given_back_may_be_committed_again() -> None:
    """Small programs come and go, and nothing more is used."""
    _, verdict = capped(4.9)
    for tick in range(100):
        now = tick / 50
        for committed in (HOST.committed + 60 * MIB, HOST.committed):
            verdict = decided(at(4.9, now, following(verdict), committed=committed), verdict)
    assert bucket(verdict) >= 136


@pytest.mark.parametrize("slow", [16, 11, 2])
def test_the_bucket_fills_only_while_nobody_takes_much(slow: int) -> None:
    """Much is more than a 16384th of RAM in half a second, 6.25 MiB."""
    _, verdict = capped(7)
    fullest = 0.0
    for tick in range(1, 401):
        gone = tick * slow // 10
        sample = at(7 - gone / 1024, tick / 10, following(verdict), committed=HOST.committed + gone * MIB)
        verdict = decided(sample, verdict)
        fullest = max(fullest, bucket(verdict))
    assert (fullest == 136) if slow == 16 else (fullest >= 136 + 96)


@pytest.mark.parametrize(("slow", "fills"), [(7, True), (11, False)])
def test_on_a_small_host_much_is_4_mib_in_half_a_second(slow: int, fills: bool) -> None:
    """The floor of 8 GiB is 409 MiB."""
    small = replace(HOST, total=8 * GIB, committed=7 * GIB)
    verdict, fullest = decided(at(0.5, host=small)), 0.0
    for tick in range(1, 41):
        gone = slow * tick // 4
        host = replace(following(verdict), total=8 * GIB, committed=7 * GIB + gone * MIB)
        verdict = decided(replace(at(0.5 - gone / 1024, tick / 4, host), error=32 * MIB), verdict)
        fullest = max(fullest, bucket(verdict))
    assert (fullest > 136) is fills


def test_forks_that_come_and_go_let_it_fill() -> None:
    """A parent of 48 MiB forks twice a second, above the floor and below it."""
    for headroom in (5.005, 4.9):
        _, verdict = capped(headroom)
        for tick in range(1, 41):
            committed = HOST.committed + (48 * MIB if tick % 2 else 0)
            verdict = decided(at(headroom, tick / 4, following(verdict), committed=committed), verdict)
        assert bucket(verdict) >= 136 + 96


def test_above_the_floor_it_goes_when_somebody_takes_much() -> None:
    _, verdict = capped(6)
    verdict = decided(at(6, 60.0, following(verdict)), verdict)
    assert bucket(verdict) > 136 + 256
    taking = decided(at(5.9, 60.02, following(verdict), committed=HOST.committed + 102 * MIB), verdict)
    assert bucket(taking) == 136


def test_who_has_had_the_whole_band_again_is_noticed_again() -> None:
    _, verdict = capped(5.1)
    verdict = decided(at(7.5, 1.0, following(verdict), committed=HOST.committed - GIB), verdict)
    for now, headroom in ((9.0, 6.9), (9.5, 6.0)):
        gone = round((7.5 - headroom) * GIB) - GIB
        verdict = decided(at(headroom, now, following(verdict), committed=HOST.committed + gone), verdict)
    assert bucket(verdict) == 136


def test_what_flows_in_for_small_programs_waits_for_nobody() -> None:
    _, verdict = capped(4.9)
    committed, buckets = HOST.committed, []
    for tick in range(1, 40):
        committed += 20 * MIB
        verdict = decided(at(4.9 - tick * 20 / 1024, tick / 10, following(verdict), committed=committed), verdict)
        assert verdict.cap
        buckets.append(verdict.cap.bucket // MIB)
    assert min(buckets) < 60
    committed -= MIB
    later = decided(at(4.0, 4.4, following(verdict), committed=committed), verdict)
    assert later.cap
    assert later.cap.bucket // MIB > buckets[-1] + 70


@pytest.mark.parametrize(("gib", "rate"), [(100, 160), (8, 64)])
def test_a_32nd_of_the_floor_flows_in_a_second_but_at_least_64_mib(gib: int, rate: int) -> None:
    """All that is in it is taken at once, twice; a quarter of a second lies between."""
    host = replace(HOST, total=gib * GIB)
    low = LIMITS.floor(host) / GIB - 0.01
    verdict, committed = decided(at(low, host=host)), HOST.committed
    for now in (0.0, 0.25):
        committed += 150 * MIB
        full = replace(following(verdict), total=host.total, committed=committed)
        verdict = decided(at(low - (committed - HOST.committed) / GIB, now, full), verdict)
    spent = bucket(verdict)
    later = replace(following(verdict), total=host.total, committed=committed)
    verdict = decided(at(low - (committed - HOST.committed) / GIB, 0.5, later), verdict)
    assert bucket(verdict) - spent == rate / 4


def test_the_bucket_fills_from_the_start_of_the_cap_on() -> None:
    verdict = decided(at(4.9, 1000.0))
    assert limit(decided(at(4.9, 1000.0, following(verdict)), verdict)) == 136


def test_the_mode_is_written_again_each_second_near_the_floor_only() -> None:
    """As near as a 128th of RAM: 0.78 GiB."""
    _, verdict = capped(7)
    counted = []
    for now, headroom in ((0.5, 7), (5.0, 5.8), (5.1, 5.7), (5.9, 4.9), (6.2, 4.9), (6.3, 5.8), (9.0, 5.8)):
        verdict = decided(at(headroom, now, following(verdict)), verdict)
        assert verdict.cap
        counted.append(verdict.cap.counted_at)
    assert counted == [0, 0, 5.1, 5.1, 6.2, 6.2, 6.2]


def test_nobody_gets_anything_at_a_quarter_of_the_floor_and_the_kernels_error() -> None:
    # 1.25 GiB and 400 MiB.
    _, verdict = capped(1.63)
    assert limit(verdict) < 0
    _, verdict = capped(1.70)
    assert 0 < limit(verdict) < 136


def test_swap_is_left_out_of_what_is_written_for_the_kernel_adds_it() -> None:
    verdict = decided(at(6, swap_total=8 * GIB, swap_free=GIB))
    assert verdict.kbytes * 1024 + 8 * GIB == HOST.committed + 2 * GIB + RESERVES


def test_a_limit_below_the_swap_cannot_be_expressed() -> None:
    verdict = decided(at(6, swap_total=64 * GIB))
    assert (verdict.state, verdict.level, verdict.caps) == (GuardState.OBSERVING, 100, False)
    assert "swap of 65536 MiB" in verdict.reason
    # It is known long before.
    for swap, there_is in ((200, True), (64, False)):
        memory = at(90, swap_total=swap * GIB).memory
        assert bool(inexpressible(memory, expected_limit(memory, LIMITS))) is there_is


def test_without_swap_every_limit_can_be_expressed() -> None:
    """What is used was never committed, and less is left than the floor."""
    assert decided(at(2, committed=GIB)).caps
    assert decided(at(0.1, committed=GIB)).kbytes == 1
    memory = at(2, committed=GIB, swap_total=GIB // 2, swap_free=0).memory
    assert not inexpressible(memory, expected_limit(memory, LIMITS))


def test_a_cap_says_so_when_swap_is_added_that_is_more_than_the_limit() -> None:
    """The whole swap is the least limit that there can be, and better than none."""
    verdict = decided(at(6, committed=7 * GIB, swap_total=7 * GIB))
    assert verdict.kbytes > 1
    host = replace(HOST, overcommit_mode=2, overcommit_kbytes=verdict.kbytes, swap_total=64 * GIB)
    later = decided(at(6, 1.0, host, committed=7 * GIB), verdict)
    assert (later.state, later.kbytes) == (GuardState.CAPPED, 1)
    assert "swap of 65536 MiB" in later.reason


def test_kbytes_are_never_0() -> None:
    memory = replace(HOST, swap_total=7 * GIB)
    assert [kbytes_for(7 * GIB + more, memory) for more in (-GIB, 0, 1023, 2048)] == [1, 1, 1, 2]


def test_memory_that_comes_back_and_was_not_committed_may_be_committed() -> None:
    """A driver's pinned memory, or huge pages: 50 GiB."""
    _, verdict = capped(7)
    back = decided(at(57, 1.0, following(verdict)), verdict)
    assert back.caps
    assert limit(back) >= 52 * 1024


@pytest.mark.parametrize(
    ("gib", "cpus", "page", "mib"),
    [(64, 32, 4096, 256), (128, 384, 4096, 1152), (128, 80, 65536, 800), (1, 1, 4096, 4)],
)
def test_the_kernels_count_is_off_by_a_256th_of_ram_or_by_a_batch_of_each_cpu(
    gib: int, cpus: int, page: int, mib: int
) -> None:
    assert counting_error(gib * GIB, cpus, page) // MIB == mib


@pytest.mark.parametrize("headroom", [8.9, 7.5])
def test_the_cap_stays_below_where_it_ends(headroom: float) -> None:
    host, verdict = capped()
    for now in (100.0, 200.0, 300.0):
        verdict = decided(at(headroom, now, host), verdict)
        host = following(verdict)
        assert (verdict.state, verdict.level) == (GuardState.CAPPED, 100)


def test_the_cap_ends_after_three_calm_seconds() -> None:
    _, verdict = capped()
    for now in (1.0, 2.0, 3.9):
        verdict = decided(at(9, now, following(verdict)), verdict)
        assert verdict.caps
    verdict = decided(at(9.01, 4.0, following(verdict)), verdict)
    assert (verdict.state, verdict.level, verdict.kbytes) == (GuardState.RELAXED, 0, 0)


def test_calm_starts_again_after_a_dip() -> None:
    _, verdict = capped()
    for now, headroom in ((1.0, 9.5), (3.9, 8.9), (4.0, 9.5), (6.9, 9.5)):
        verdict = decided(at(headroom, now, following(verdict)), verdict)
        assert verdict.caps
    assert not decided(at(9.5, 7.0, following(verdict)), verdict).caps


def test_a_level_goes_three_seconds_after_what_called_for_it() -> None:
    _, verdict = capped(4.9)
    for now, headroom, state in (
        (1.0, 5.1, GuardState.EXHAUSTED),
        (3.9, 5.1, GuardState.EXHAUSTED),
        (4.0, 5.1, GuardState.CAPPED),
        (4.1, 4.9, GuardState.EXHAUSTED),
    ):
        verdict = decided(at(headroom, now, following(verdict)), verdict)
        assert verdict.state is state
    warned = decided(at(8))
    assert [warned.level, (warned := decided(at(10, 1.0), warned)).level] == [50, 50]
    assert [decided(at(10, now), warned).level for now in (3.9, 4.0)] == [50, 0]


@pytest.mark.parametrize(("headroom", "level"), [(90, 0), (8, 50), (7, 100), (5, 255)])
def test_with_a_hindrance_it_only_watches_and_warns(headroom: float, level: int) -> None:
    verdict = decided(at(headroom, unavailable_reason="read-only here"))
    assert (verdict.state, verdict.level, verdict.caps) == (GuardState.OBSERVING, level, False)
    assert verdict.reason == "read-only here"
    again = decided(at(90, 1.0), verdict)
    assert (again.state, again.reason) == (GuardState.RELAXED, "")


def test_another_mode_is_left_alone_until_it_is_always_again() -> None:
    verdict = decided(at(5, overcommit_mode=0))
    assert verdict.state is GuardState.OBSERVING
    assert "vm.overcommit_memory is 0, not 1: something else set it" in verdict.reason
    assert decided(at(5, 1.0), verdict).state is GuardState.EXHAUSTED


@pytest.mark.parametrize(
    "change",
    [{"overcommit_mode": 0}, {"overcommit_mode": 1}, {"overcommit_kbytes": 0}, {"overcommit_kbytes": 4096}],
)
def test_a_cap_that_somebody_else_changed_is_none_of_the_guards(change: dict[str, int]) -> None:
    host, before = capped(7)
    verdict = decided(Sample(replace(host, available=7 * GIB, **change), 1.0, RESERVES, ERROR), before)
    assert (verdict.state, verdict.caps) == (GuardState.OBSERVING, False)
    assert "something else set" in verdict.reason


@pytest.mark.parametrize(
    ("headroom", "cpus", "seconds"),
    [(7 + 128, 64, 1.0), (7 + 64, 64, 0.5), (7 + 64, 6, 0.5), (7 + 2.4, 1, 0.1), (7 + 2, 32, 0.02), (4, 32, 0.02)],
)
def test_it_looks_twice_while_the_fastest_programs_get_to_where_it_caps(
    headroom: float, cpus: int, seconds: float
) -> None:
    assert interval(replace(at(headroom), cpus=cpus), LIMITS) == pytest.approx(seconds)
