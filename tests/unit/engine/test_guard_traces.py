"""The guard over generated traces, with a kernel that obeys it: what must hold whatever programs do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kerntune.engine.guard import (
    FASTEST,
    SHORTEST,
    STEADY,
    GuardLimits,
    GuardState,
    GuardVerdict,
    decide,
    interval,
    kept_from_one,
    reserve,
)
from kerntune.model import Memory

GIB = 1 << 30
LATENESS = 0.005  # seconds between the moment a look is due and the moment it is taken


@dataclass
class Host:
    """Memory that programs take and give back, at most as fast as FASTEST, and what the kernel makes of it.

    `one` program takes all that is taken from now on: the kernel keeps user_reserve_kbytes from it.
    """

    total: int
    used: int
    swap_total: int = 0
    root: bool = False
    one: bool = False
    had: int = 0
    swap_used: int = 0
    now: float = 0.0
    verdict: GuardVerdict = field(default_factory=GuardVerdict)

    @property
    def memory(self) -> Memory:
        kbytes = self.verdict.kbytes
        return Memory(
            total=self.total,
            available=self.total - self.used,
            free=self.total - self.used,
            hugetlb=0,
            swap_total=self.swap_total,
            committed=self.used + self.swap_used,
            commit_limit=kbytes * 1024 + self.swap_total,
            overcommit_mode=2 if self.verdict.caps else 1,
            overcommit_ratio=0,
            overcommit_kbytes=kbytes,
            swap_free=self.swap_total - self.swap_used,
        )

    def use(self, rate: int, seconds: float, *, kernel_refuses: bool = False) -> None:
        """Bytes a second, negative to give back; RAM first, then swap. `kernel_refuses`: beyond the limit."""
        self.now += seconds
        memory = self.memory
        wanted = max(0, memory.committed + int(rate * seconds))
        if kernel_refuses and self.verdict.caps:
            own = min((memory.committed - self.had) // 32, kept_from_one(memory)) if self.one else 0
            wanted = min(wanted, memory.commit_limit - (0 if self.root else reserve(memory)) - own)
            wanted = max(wanted, memory.committed if rate > 0 else 0)
        self.used = min(wanted, self.total)
        self.swap_used = min(wanted - self.used, self.swap_total)


def steps(
    host: Host, limits: GuardLimits, rates: list[int], *, kernel_refuses: bool = False
) -> Iterator[tuple[Memory, GuardVerdict, GuardVerdict]]:
    """Figures, verdict before, verdict after, at the moments at which the guard would look."""
    for rate in rates:
        memory, before = host.memory, host.verdict
        host.verdict = decide(memory, host.now, limits, before)
        yield memory, before, host.verdict
        host.use(rate, interval(memory, limits) + LATENESS, kernel_refuses=kernel_refuses)


hosts = st.builds(
    Host,
    total=st.integers(8 * GIB, 512 * GIB),
    used=st.integers(0, 4 * GIB),
    swap_total=st.sampled_from([0, 0, 4 * GIB, 64 * GIB]),
    root=st.booleans(),
)
rates = st.lists(st.integers(-FASTEST, FASTEST), min_size=1, max_size=200)
ratios = st.builds(GuardLimits, ratio=st.integers(50, 97), calm=st.sampled_from([0.0, 1.0, 10.0]))


@given(hosts, ratios, rates)
@settings(deadline=None)
def test_what_is_written_is_never_0_nor_below_what_is_promised_and_roots_reserve(
    host: Host, limits: GuardLimits, changes: list[int]
) -> None:
    for memory, before, after in steps(host, limits, changes):
        assert after.caps == (after.kbytes > 0)
        if after.caps and (after.kbytes != before.kbytes or not before.caps):
            assert after.kbytes * 1024 + memory.swap_total >= memory.committed + reserve(memory)


@given(hosts, ratios, rates)
@settings(deadline=None)
def test_it_never_caps_with_ample_headroom_and_always_warns_before(
    host: Host, limits: GuardLimits, changes: list[int]
) -> None:
    for memory, before, after in steps(host, limits, changes):
        if after.caps and not before.caps:
            assert memory.headroom <= limits.above(memory, limits.cap)
        if memory.headroom <= limits.floor(memory):
            assert after.level == 255
        if memory.headroom > limits.above(memory, limits.warn + 2) and not after.caps:
            assert after.level == 0


@given(hosts, ratios, st.integers(1, FASTEST))
@settings(deadline=None)
def test_however_fast_memory_goes_it_is_capped_before_the_floor(host: Host, limits: GuardLimits, rate: int) -> None:
    """On a host whose seven points outlast the shortest interval at that speed, lateness included."""
    band = host.total * limits.cap // 100
    if band < FASTEST * (SHORTEST + LATENESS) + FASTEST * LATENESS * 2:
        return
    for memory, before, after in steps(host, limits, [rate] * 4000):
        if after.state is GuardState.OBSERVING:
            return
        if after.caps:
            assert not before.caps
            # Half the time to nothing was left at the last look: it may be late by what the shortest wait takes.
            assert memory.headroom > limits.floor(memory) - FASTEST * LATENESS
            return


@given(hosts, st.integers(100 << 20, FASTEST), st.booleans())
@settings(deadline=None)
def test_a_program_that_takes_all_it_gets_leaves_the_floor_less_2_percent(host: Host, rate: int, stops: bool) -> None:
    """Also one of root, and also one that asks again and again; on a host that is not too small for its speed."""
    limits = GuardLimits()
    if host.total * limits.cap // 100 < rate * (SHORTEST + 2 * LATENESS) * 2:
        return
    for memory, _, after in steps(host, limits, [rate] * 2000, kernel_refuses=True):
        if after.state is GuardState.OBSERVING:
            return
        assert memory.headroom >= limits.floor(memory) - memory.total * 2 // 100
        if stops and after.caps and memory.committed >= memory.commit_limit - reserve(memory):
            return


@given(
    st.integers(64, 1024), st.integers(0, 50), st.integers(100 << 20, FASTEST), st.booleans(), st.sampled_from([0, 64])
)
@settings(deadline=None)
def test_beside_one_program_that_asks_again_and_again_users_can_work(
    gib: int, percent: int, rate: int, root: bool, swap: int
) -> None:
    """Once it was refused something: a login and a shell of some 30 MiB, whoever the program belongs to."""
    total, limits = gib * GIB, GuardLimits()
    used = total * percent // 100
    host = Host(total, used, swap * GIB, root=root, one=True, had=used)
    refused_at = None
    for memory, _, after in steps(host, limits, [rate] * 2000, kernel_refuses=True):
        if after.state is GuardState.OBSERVING:
            return
        left = after.kbytes * 1024 + memory.swap_total - memory.committed
        if after.caps and refused_at is None and left < kept_from_one(memory) + reserve(memory) + (8 << 20):
            refused_at = host.now
        if refused_at is not None and host.now > refused_at + 2 * STEADY:
            assert left - reserve(memory) >= 30 << 20
            assert memory.headroom > limits.floor(memory)


@given(hosts, ratios, rates)
@settings(deadline=None)
def test_it_flaps_no_faster_than_the_dwell(host: Host, limits: GuardLimits, changes: list[int]) -> None:
    capped_at = 0.0
    for _, before, after in steps(host, limits, changes):
        if after.caps and not before.caps:
            capped_at = host.now
        if before.caps and after.state is GuardState.RELEASED:
            assert host.now - capped_at >= limits.dwell


@given(hosts, ratios, rates)
@settings(deadline=None)
def test_a_limit_is_raised_only_where_little_is_left_to_promise_and_above_the_floor(
    host: Host, limits: GuardLimits, changes: list[int]
) -> None:
    for memory, before, after in steps(host, limits, changes):
        if before.caps and after.caps and after.kbytes > before.kbytes:
            assert memory.committed + 2 * reserve(memory) > before.kbytes * 1024 + memory.swap_total
            assert memory.headroom > limits.floor(memory)
