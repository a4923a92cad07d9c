"""The guard's verdict by tables: when it caps, what it writes, when it lets go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kerntune.engine.guard import (
    STEADY,
    GuardLimits,
    GuardState,
    GuardVerdict,
    decide,
    interval,
    kbytes_for,
    reserve,
    warning,
)
from kerntune.model import Memory

GIB, MIB = 1 << 30, 1 << 20
LIMITS = GuardLimits()
HOST = Memory(
    total=100 * GIB,
    available=90 * GIB,
    free=90 * GIB,
    hugetlb=0,
    swap_total=0,
    committed=5 * GIB,
    commit_limit=95 * GIB,
    overcommit_mode=1,
    overcommit_ratio=95,
    overcommit_kbytes=0,
)


def at(gib: float, host: Memory = HOST, **changes: Any) -> Memory:
    """The host with so much headroom; changes are fields of Memory."""
    return replace(host, available=int(gib * GIB), **changes)


def capped(gib: float = 12) -> tuple[Memory, GuardVerdict]:
    """A host that has just been capped, as the kernel then reads."""
    verdict = decide(at(gib), 0.0, LIMITS, GuardVerdict())
    limit = verdict.kbytes * 1024
    return at(gib, overcommit_mode=2, overcommit_kbytes=verdict.kbytes, commit_limit=limit), verdict


@pytest.mark.parametrize(
    ("headroom", "state", "level"),
    [
        (90, GuardState.RELAXED, 0),
        (20.1, GuardState.RELAXED, 0),
        (20, GuardState.RELAXED, 50),
        (12.1, GuardState.RELAXED, 50),
        (12, GuardState.CAPPED, 100),
        (5.1, GuardState.CAPPED, 100),
        (5, GuardState.EXHAUSTED, 255),
    ],
)
def test_states_and_levels_of_a_host_of_100_gib_at_95_percent(headroom: float, state: GuardState, level: int) -> None:
    verdict = decide(at(headroom), 0.0, LIMITS, GuardVerdict())
    assert (verdict.state, verdict.level) == (state, level)


@pytest.mark.parametrize(
    ("change", "headroom", "state"),
    [
        ({"hugetlb": 50 * GIB}, 7, GuardState.RELAXED),  # 12 % of the 50 GiB that are left are 6 GiB
        ({"hugetlb": 50 * GIB}, 6, GuardState.CAPPED),
        ({"swap_free": 8 * GIB, "swap_total": 8 * GIB}, 5, GuardState.RELAXED),
        ({"swap_free": 0, "swap_total": 8 * GIB, "committed": 20 * GIB}, 5.1, GuardState.CAPPED),
    ],
)
def test_huge_pages_shrink_the_base_and_free_swap_on_disk_counts(
    change: dict[str, Any], headroom: float, state: GuardState
) -> None:
    assert decide(at(headroom, **change), 0.0, LIMITS, GuardVerdict()).state is state


def test_the_limit_leaves_a_quarter_of_what_is_above_the_floor() -> None:
    _, verdict = capped(12)
    assert verdict.kbytes * 1024 == HOST.committed + reserve(HOST) + 7 * GIB * 3 // 4


def test_the_limit_leaves_a_margin_even_below_the_floor() -> None:
    _, verdict = capped(1)
    assert verdict.kbytes * 1024 == HOST.committed + reserve(HOST) + HOST.total // 200


def test_the_reserve_of_root_is_small_on_a_small_host() -> None:
    assert reserve(HOST) == 128 * MIB
    assert reserve(replace(HOST, total=2 * GIB)) == 2 * GIB // 100


def test_swap_is_left_out_of_what_is_written_for_the_kernel_adds_it() -> None:
    verdict = decide(at(4, swap_total=8 * GIB, swap_free=8 * GIB), 0.0, LIMITS, GuardVerdict())
    assert verdict.kbytes * 1024 + 8 * GIB == HOST.committed + reserve(HOST) + 7 * GIB * 3 // 4


def test_a_limit_below_the_swap_cannot_be_expressed() -> None:
    verdict = decide(at(3, swap_total=64 * GIB, swap_free=9 * GIB), 0.0, LIMITS, GuardVerdict())
    assert (verdict.state, verdict.kbytes) == (GuardState.OBSERVING, 0)
    assert "swap of 65536 MiB" in verdict.reason


def test_kbytes_are_never_0() -> None:
    assert kbytes_for(0, HOST) == kbytes_for(-5 * GIB, HOST) == 1


def test_while_capped_the_limit_is_lowered_as_memory_goes() -> None:
    host, before = capped(12)
    less = decide(at(10, host), 1.0, LIMITS, before)
    assert less.kbytes == before.kbytes - 2 * GIB * 3 // 4 // 1024
    more = decide(at(11, replace(host, overcommit_kbytes=less.kbytes)), 2.0, LIMITS, less)
    assert more.kbytes == less.kbytes


def test_the_limit_is_raised_for_the_others_once_nobody_asks_for_more_and_more() -> None:
    host, before = capped(12)
    refused = at(8, host, committed=host.commit_limit - reserve(HOST))
    asking = decide(refused, 1.0, LIMITS, before)
    assert asking.kbytes == before.kbytes
    assert decide(refused, 0.9 + STEADY, LIMITS, asking).kbytes == before.kbytes
    steady = decide(refused, 1.0 + STEADY, LIMITS, asking)
    assert steady.kbytes * 1024 == refused.committed + 2 * reserve(HOST)


def test_a_program_that_asks_again_is_let_through_to_the_floor_only() -> None:
    host, before = capped(12)
    refused = at(5, host, committed=host.commit_limit)
    asking = decide(refused, 1.0, LIMITS, before)
    assert decide(refused, 100.0, LIMITS, asking).kbytes == before.kbytes


def test_less_that_is_promised_does_not_count_as_asking() -> None:
    host, before = capped(12)
    less = decide(at(8, host, committed=4 * GIB), 0.1, LIMITS, before)
    assert (less.promised, less.steady_since) == (4 * GIB, 0.0)


@pytest.mark.parametrize("headroom", [17.9, 12.5])
def test_the_cap_stays_below_the_release_threshold(headroom: float) -> None:
    host, before = capped(12)
    assert decide(at(headroom, host), 100.0, LIMITS, before).state is GuardState.CAPPED


def test_released_after_ten_calm_seconds() -> None:
    host, verdict = capped(12)
    for now in (1.0, 5.0, 10.9):
        verdict = decide(at(18, host, overcommit_kbytes=verdict.kbytes), now, LIMITS, verdict)
        assert verdict.caps
    verdict = decide(at(18, host, overcommit_kbytes=verdict.kbytes), 11.0, LIMITS, verdict)
    assert (verdict.state, verdict.kbytes) == (GuardState.RELEASED, 0)


def test_calm_starts_again_after_a_dip() -> None:
    host, verdict = capped(12)
    for now, headroom in ((1.0, 18), (8.0, 17), (9.0, 18), (18.9, 18)):
        verdict = decide(at(headroom, host, overcommit_kbytes=verdict.kbytes), now, LIMITS, verdict)
        assert verdict.caps
    assert not decide(at(18, host, overcommit_kbytes=verdict.kbytes), 19.0, LIMITS, verdict).caps


def test_capped_at_least_as_long_as_the_dwell() -> None:
    limits = replace(LIMITS, calm=0.0)
    host, verdict = capped(12)
    assert decide(at(50, host), 4.9, limits, verdict).caps
    assert not decide(at(50, host), 5.0, limits, verdict).caps


def test_the_dwell_doubles_up_to_five_minutes_and_begins_anew_after_a_minute() -> None:
    now, verdict = 0.0, GuardVerdict()
    dwells = []
    for _ in range(8):
        verdict = decide(at(12), now, LIMITS, verdict)
        dwells.append(verdict.dwell)
        host = at(50, overcommit_mode=2, overcommit_kbytes=verdict.kbytes)
        verdict = decide(host, now, LIMITS, verdict)
        now += max(verdict.dwell, 10)
        verdict = decide(host, now, LIMITS, verdict)
        assert verdict.state is GuardState.RELEASED
        now += 59
    assert dwells == [5, 10, 20, 40, 80, 160, 300, 300]
    assert decide(at(12), now + 2, LIMITS, verdict).dwell == 5


def test_without_doubling_the_dwell_stays() -> None:
    before = GuardVerdict(GuardState.RELEASED, released_at=0.0, dwell=5.0)
    assert decide(at(12), 1.0, replace(LIMITS, doubling=False), before).dwell == 5


def test_released_becomes_relaxed_when_it_was_quiet_for_half_a_minute() -> None:
    before = GuardVerdict(GuardState.RELEASED, since=100.0, released_at=100.0, dwell=5.0)
    assert decide(at(50), 129.9, LIMITS, before).state is GuardState.RELEASED
    assert decide(at(50), 130.0, LIMITS, before).state is GuardState.RELAXED


def test_a_warning_goes_two_points_above_where_it_came() -> None:
    assert [warning(at(gib), LIMITS, 50) for gib in (21.9, 22, 22.1)] == [50, 50, 0]


@pytest.mark.parametrize(("headroom", "level"), [(90, 0), (19, 50), (12, 100), (5, 255)])
def test_with_a_hindrance_it_only_watches_and_warns(headroom: float, level: int) -> None:
    verdict = decide(at(headroom), 0.0, LIMITS, GuardVerdict(), "read-only here")
    assert (verdict.state, verdict.level, verdict.kbytes) == (GuardState.OBSERVING, level, 0)
    assert verdict.reason == "read-only here"
    assert decide(at(90), 1.0, LIMITS, verdict).state is GuardState.RELAXED


def test_another_mode_is_left_alone_until_it_is_always_again() -> None:
    verdict = decide(at(5, overcommit_mode=0), 0.0, LIMITS, GuardVerdict())
    assert verdict.state is GuardState.OBSERVING
    assert "something else set it" in verdict.reason
    assert decide(at(5), 1.0, LIMITS, verdict).state is GuardState.EXHAUSTED


@pytest.mark.parametrize(
    "change",
    [{"overcommit_mode": 0}, {"overcommit_mode": 1}, {"overcommit_kbytes": 0}, {"overcommit_kbytes": 4096}],
)
def test_a_cap_that_somebody_else_changed_is_theirs(change: dict[str, int]) -> None:
    host, before = capped(12)
    verdict = decide(replace(host, **change), 1.0, LIMITS, before)
    assert (verdict.state, verdict.kbytes) == (GuardState.OBSERVING, 0)
    assert "something else set" in verdict.reason


@pytest.mark.parametrize(
    ("headroom", "pressed", "seconds"), [(90, False, 1.0), (13, False, 0.5), (5, False, 0.02), (90, True, 0.02)]
)
def test_the_interval_shrinks_with_what_is_above_the_floor(headroom: int, pressed: bool, seconds: float) -> None:
    assert interval(at(headroom), LIMITS, pressed=pressed) == seconds
