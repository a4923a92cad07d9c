"""What the guard promises, on simulated hosts of every size whose programs are of any speed.

Each program that asks again and again does so for long enough that nothing more comes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from kerntune.guard.policy import GuardLimits
from kerntune.kernel.memory import Watermarks, memory_of
from kerntune.model import GuardState
from tests.harness.memory_host import ALWAYS, ERROR_PART, GIB, HEURISTIC, MIB, NEVER, MemoryHost, Program, started
from tests.unit.guard.lab import LATE, SWITCHES, WRITES, Act, Guarded

CUDA: int = 64 * GIB  # addresses that a program of CUDA reserves
# Without shrinking: what fails is told with its numbers, and each example is seconds of a host.
few = settings(
    max_examples=settings().max_examples // 6,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
sizes = st.sampled_from([8, 16, 64, 128, 256, 1024, 2048])
errors = st.sampled_from([-1.0, 0.0, 0.5, 1.0])


def floor(host: MemoryHost, ratio: int = 95) -> int:
    return host.ram * (100 - ratio) // 100


def band(host: MemoryHost) -> int:
    """As design and docs have it: 7 points, or 2 GiB, or a 128th of RAM."""
    return min(host.ram * 7 // 100, max(2 * GIB, host.total // 128))


def full(total: int, left: int, *, addresses: int = CUDA, **changes: float) -> tuple[MemoryHost, Program]:
    """A host of which a program, and memory that nobody has committed, leave so much."""
    host = MemoryHost(total, uncounted=total // 40, **changes)  # type: ignore[arg-type]  # the numbers of its fields
    program = started(host, host.left - left, addresses=addresses)
    assert program
    return host, program


@dataclass
class Hog:
    """A program that takes memory at so many bytes a second, in steps; it stops when it is refused, or asks again."""

    program: Program
    rate: float
    step: int = 8 * MIB
    again: bool = False
    refused_at: int | None = None
    owed: float = 0.0

    def __call__(self, seconds: float) -> None:
        if self.refused_at is not None and not self.again:
            return
        self.owed += self.rate * seconds
        wanted = int(self.owed // self.step) * self.step
        self.owed -= wanted
        if wanted and self.program.take(wanted, self.step) and self.refused_at is None:
            self.refused_at = self.program.host.left


@dataclass
class Swarm:
    """Processes of one size that come at so many bytes a second altogether, again and again."""

    host: MemoryHost
    rate: float
    size: int
    root: bool
    owed: float = 0.0

    def __call__(self, seconds: float) -> None:
        self.owed += self.rate * seconds
        while self.owed >= self.size:
            self.owed -= self.size
            if not started(self.host, self.size, root=self.root):
                self.owed %= self.size


def can_follow(host: MemoryHost, rate: float) -> bool:
    """Whether the host is large enough for the speed: the band and 2 % of RAM last from one look to the next cap."""
    return rate * (0.02 + LATE + WRITES + SWITCHES) < band(host) + host.total // 50


@pytest.mark.parametrize(
    ("gib", "percent"),
    [
        (64, 8.5),
        (64, 11),
        (128, 8.5),
        (128, 11),
        *((gib, share) for gib in (256, 512, 1024, 2048) for share in (6.5, 11)),
    ],
)
@pytest.mark.parametrize("cpus", [1, 32])
def test_a_host_at_rest_is_never_capped(gib: int, percent: float, cpus: int) -> None:
    host, program = full(gib * GIB, int(gib * GIB * percent / 100), cpus=cpus)
    watch = Guarded(host)

    def work(_seconds: float) -> None:
        """A worker comes, writes a little and goes."""
        child = program.fork()
        assert child
        child.touch(64 * MIB)
        child.exit()

    watch.run(10, work)
    assert (watch.times_capped, host.mode, host.refusals) == (0, ALWAYS, 0)
    assert watch.looks < 10 / 0.02


@given(sizes, st.floats(0.05, 100), st.sampled_from([1, 8, 64]), st.booleans(), errors)
@example(gib=64, speed=0.05, step=1, root=False, error=-1.0)
@few
def test_a_program_that_stops_when_it_is_refused_leaves_the_floor_less_2_percent(
    gib: int, speed: float, step: int, root: bool, error: float
) -> None:
    host, program = full(gib * GIB, gib * GIB // 2, error=error)
    if not can_follow(host, speed * GIB):
        return
    more = host.left - floor(host) - min(band(host) * 5 // 4, int(2 * speed * GIB))
    assert program.ask(more)
    program.touch(more)
    hog = Hog(Program(host, root, CUDA), speed * GIB, step * MIB)
    Guarded(host).run(100, hog, until=lambda: hog.refused_at is not None)
    assert hog.refused_at or speed * 100 < gib * 3 // 100, "it is slow for a host of that size"
    assert host.least_left >= floor(host) - host.total // 50 - (8 * MIB if root else 0)


@given(sizes, st.floats(0.5, 100), errors)
@few
def test_a_large_program_that_asks_again_and_again_ends_at_half_of_the_floor(
    gib: int, speed: float, error: float
) -> None:
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + 3 * GIB, error=error)
    if not can_follow(host, speed * GIB):
        return
    watch = Guarded(host)
    watch.run(30, Hog(Program(host, addresses=CUDA), speed * GIB, again=True))
    assert host.least_left >= floor(host) // 2
    assert watch.verdict.state is GuardState.EXHAUSTED
    assert login(watch), "small programs still start"


def login(watch: Guarded) -> bool:
    """Whether somebody can log in and run something, each within a second."""
    return all(within_a_second(watch, partial(started, watch.host, size * MIB)) for size in (20, 8, 30))


def has_forked(parent: Program) -> bool:
    """Whether a child could be made, which ends at once."""
    child = parent.fork()
    if child:
        child.exit()
    return child is not None


def within_a_second(watch: Guarded, attempt: Callable[[], object], act: Act | None = None) -> bool:
    return within(watch, 1.0, attempt, act)


def within(watch: Guarded, seconds: float, attempt: Callable[[], object], act: Act | None = None) -> bool:
    end = watch.now + seconds
    while not attempt():
        if watch.now > end:
            return False
        watch.run(0.05, act)
    return True


@given(sizes, st.floats(0.5, 100), st.booleans(), st.integers(1, 200), errors)
@few
def test_nobody_brings_the_host_below_a_quarter_of_the_floor(
    gib: int, speed: float, root: bool, size: int, error: float
) -> None:
    """A swarm of small processes, of root too."""
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + 3 * GIB, error=error)
    if not can_follow(host, speed * GIB):
        return
    watch = Guarded(host)
    watch.run(20, Swarm(host, speed * GIB, size * MIB, root=root))
    assert host.least_left >= floor(host) // 4
    assert watch.verdict.caps


@pytest.mark.parametrize("begins_inside", [False, True])
@pytest.mark.parametrize("gib", [64, 256, 1024])
def test_a_dip_of_2_seconds_leaves_no_trace_in_the_limit(gib: int, begins_inside: bool) -> None:
    rooms = []
    for dip in (0, 1):
        host, _ = full(gib * GIB, gib * GIB * 5 // 100 + 2 * GIB + gib * GIB // 100)
        watch = Guarded(host)
        # More than 3 s in which the cap could end never come.
        above = floor(host) + (band(host) * 3 // 2 if begins_inside else band(host) * 3 // 4)
        host.pin(host.left - above)
        watch.run(1)
        assert watch.verdict.caps is not begins_inside
        host.pin(dip * band(host) * 5 // 4)
        watch.run(2)
        assert watch.verdict.caps is (not begins_inside or bool(dip))
        host.pin(-dip * band(host) * 5 // 4)
        watch.run(10)
        rooms.append(host.room(CUDA, root=False))
        assert host.left == above
    without, after = rooms
    assert after >= min(without, host.left - floor(host) - 4096)


@given(
    sizes, st.floats(0.0, 1.0), st.lists(st.tuples(st.sampled_from("cufxp"), st.integers(1, 64)), max_size=60), errors
)
@few
def test_unused_commits_never_exceed_those_at_the_start_and_twice_the_band(
    gib: int, part: float, deeds: list[tuple[str, int]], error: float
) -> None:
    """Programs commit and never use, children of forks end, services restart, and memory is used that was not.

    What a driver pins counts as used.
    """
    host, program = full(gib * GIB, gib * GIB * 5 // 100 + 4 * GIB)
    idle = Program(host)
    assert idle.ask(gib * GIB // 4)
    children = [child for _ in range(4) if (child := program.fork())]
    host.pin(host.left - floor(host) - int(band(host) * part))
    watch = Guarded(host)
    watch.run(0.1)
    assert watch.verdict.caps
    host.error = error
    committed, used = host.committed, host.used + host.uncounted
    unit = band(host) // 32
    for deed, many in deeds:
        if deed == "c":
            Program(host, root=True).take(many * unit, unit, touched=False)
        elif deed == "u":
            idle.touch(min(many * unit, max(0, host.left - floor(host) // 2)))
        elif deed == "p":
            host.pin(min(many * unit, max(0, host.left - floor(host) // 2)))
        elif deed == "f" and children:
            children.pop().exit()
        elif deed == "x":
            size = many * unit
            program.free(size)
            watch.run(0.1)
            if program.ask(size):
                program.touch(size)
        watch.run(0.3)
        if not watch.verdict.caps:
            return
        unused = (host.committed - committed) - (host.used + host.uncounted - used)
        lent = max(0, used - host.used - host.uncounted)  # what was given back and is not used again
        assert unused <= 2 * band(host) + lent + host.total // ERROR_PART


@given(sizes, st.floats(0.05, 1.0), st.integers(1, 20), errors)
@example(gib=512, part=0.63, pieces=7, error=1.0)
@few
def test_above_the_floor_nobody_is_refused_what_fits(gib: int, part: float, pieces: int, error: float) -> None:
    """Where the kernel has counted too much it counts again, and it is had within a second or two."""
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + 4 * GIB, error=error)
    host.pin(host.left - floor(host) - int(band(host) * part))
    watch = Guarded(host)
    watch.run(0.1)
    assert watch.verdict.caps
    for _ in range(pieces):
        one = Program(host, addresses=CUDA)
        size = (host.left - floor(host)) // (pieces + 1)
        assert within(watch, 1.1 if error > 0 else 0, partial(one.ask, size))
        one.touch(size)
        watch.run(0.05)
    assert host.left >= floor(host)


@pytest.mark.parametrize(
    ("gib", "speed"), [(6, 0.02), (6, 0.04), (6, 4), (64, 0.02), (64, 4), (256, 0.05), (256, 4), (1024, 0.3), (1024, 4)]
)
def test_beside_a_program_that_was_refused_others_go_on(gib: int, speed: float) -> None:
    """Each within a second: 64 MiB for CUDA, a fork, /dev/shm, a login, ps, python."""
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + int(2.5 * GIB))
    host.pin(host.left - floor(host) - min(band(host), int(60 * speed * GIB)))
    cuda, parent, worker = Program(host, addresses=CUDA), started(host, 48 * MIB), Program(host)
    assert parent
    hog = Hog(Program(host, addresses=CUDA), speed * GIB)
    watch = Guarded(host)
    watch.run(90, hog, until=lambda: hog.refused_at is not None)
    assert hog.refused_at
    assert hog.refused_at >= floor(host) - hog.step
    assert watch.verdict.caps
    host.pin(min(20 * MIB, host.left - floor(host) // 2))  # by the host itself, which goes on
    assert within_a_second(watch, lambda: cuda.ask(64 * MIB))
    cuda.touch(64 * MIB)
    assert within_a_second(watch, partial(has_forked, parent))
    assert within_a_second(watch, lambda: worker.write_shm(32 * MIB))
    assert login(watch)
    assert host.least_left >= floor(host) // 4


@dataclass
class Forks:
    """A parent whose children end after `lives` seconds; one comes every so many seconds."""

    parent: Program
    every: float
    lives: float = 0.06
    children: list[tuple[float, Program]] = field(default_factory=list)
    now: float = 0.0
    next: float = 0.0
    refused: int = 0

    def __call__(self, seconds: float) -> None:
        self.now += seconds
        while self.children and self.children[0][0] <= self.now:
            self.children.pop(0)[1].exit()
        if self.now >= self.next:
            self.next = self.now + self.every
            if child := self.parent.fork():
                self.children.append((self.now + self.lives, child))
            else:
                self.refused += 1


def forking(host: MemoryHost, size: int, every: float) -> Forks:
    """A process from before the cap that has so much and forks."""
    parent = Program(host, committed=size)
    host.committed += size
    return Forks(parent, every)


@pytest.mark.parametrize(("gib", "every"), [(6, 1.0), (6, 0.25), (64, 0.5), (64, 0.1), (256, 0.1)])
def test_beside_one_that_forks_a_large_program_gets_its_memory(gib: int, every: float) -> None:
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + int(2.5 * GIB))
    hog = Hog(Program(host, addresses=CUDA), GIB)
    watch, forks = Guarded(host), forking(host, 48 * MIB, every)
    watch.run(30, hog, until=lambda: hog.refused_at is not None)
    watch.run(5, forks)
    cuda = Program(host, addresses=CUDA)
    assert within_a_second(watch, lambda: cuda.ask(64 * MIB), forks)
    assert forks.refused == 0


@pytest.mark.parametrize(
    ("gib", "below", "size", "every"),
    [(6, 140, 20, 0.25), (6, 140, 20, 0.125), (64, 400, 30, 0.125), (256, 2000, 30, 0.05)],
)
def test_below_the_floor_small_programs_that_come_and_go_are_not_refused(
    gib: int, below: int, size: int, every: float
) -> None:
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + int(2.5 * GIB))
    watch = Guarded(host)
    host.pin(host.left - floor(host) - band(host) // 2)
    watch.run(1)
    forks = forking(host, size * MIB, every)
    host.pin(host.left - floor(host) + below * MIB)
    watch.run(30, forks)
    assert forks.refused == 0
    assert host.least_left > floor(host) // 4


@pytest.mark.parametrize("gib", [64, 256, 1024])
def test_when_pinned_memory_comes_back_who_had_it_gets_it_again(gib: int) -> None:
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + GIB)
    watch = Guarded(host)
    watch.run(1)
    host.pin(-4 * band(host))
    watch.run(0.1)
    assert watch.verdict.caps
    assert Program(host, addresses=CUDA).ask(host.left - floor(host) - MIB)


@pytest.mark.parametrize("gib", [16, 64, 256])
def test_after_one_that_ended_the_next_is_refused_at_the_floor_too(gib: int) -> None:
    """A model server that was below the floor ends and starts again; others still get what they ask."""
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + band(MemoryHost(gib * GIB)) * 9 // 10)
    watch = Guarded(host)
    watch.run(1)
    first = Hog(Program(host, addresses=CUDA), GIB, again=True)
    watch.run(20, first)
    assert host.left < floor(host)
    first.program.exit()
    watch.run(1)
    assert watch.verdict.caps
    hog = Hog(Program(host, addresses=CUDA), GIB)
    watch.run(20, hog, until=lambda: hog.refused_at is not None)
    assert hog.refused_at
    assert hog.refused_at >= floor(host) - hog.step
    cuda = Program(host, addresses=CUDA)
    assert within_a_second(watch, lambda: cuda.ask(64 * MIB))


@pytest.mark.parametrize(("addresses", "part"), [(CUDA, 2), (0, 4)])
@pytest.mark.parametrize("gib", [8, 16, 64, 256])
def test_what_is_committed_within_a_cap_and_used_later_leaves_as_much(gib: int, addresses: int, part: int) -> None:
    host, _ = full(gib * GIB, gib * GIB * 5 // 100 + band(MemoryHost(gib * GIB)) * 9 // 10)
    watch = Guarded(host)
    watch.run(1)
    program = Program(host, root=not addresses, addresses=addresses)

    def commit(_seconds: float) -> None:
        program.take(64 * MIB, MIB, touched=False)

    watch.run(60, commit)
    program.touch(program.committed)
    watch.run(1)
    assert host.least_left >= floor(host) // part


@pytest.mark.parametrize(("gib", "ratio"), [(16, 99), (32, 99), (64, 98), (16, 97)])
@pytest.mark.parametrize("root", [False, True])
def test_a_swarm_does_not_lose_a_host_with_a_small_floor(gib: int, ratio: int, root: bool) -> None:
    host, _ = full(gib * GIB, gib * GIB * (100 - ratio) // 100 + GIB, error=-1.0)
    Guarded(host, GuardLimits(ratio=ratio)).run(20, Swarm(host, 4 * GIB, 8 * MIB, root=root))
    assert host.least_left >= floor(host, ratio) // 6


def test_a_service_restarts_within_a_cap() -> None:
    host, program = full(64 * GIB, 4 * GIB)
    watch = Guarded(host)
    watch.run(1)
    size = program.committed
    program.exit()
    watch.run(0.05)
    assert watch.verdict.caps
    assert started(host, size, addresses=CUDA)


def test_the_cap_ends_three_seconds_after_there_is_enough() -> None:
    host, program = full(64 * GIB, 4 * GIB)
    watch = Guarded(host)
    watch.run(1)
    program.free(2 * GIB)
    watch.run(60)
    assert host.mode == NEVER, "there is less than twice the band above the floor"
    program.free(2 * GIB)
    begin = watch.now
    watch.run(60, until=lambda: host.mode == ALWAYS)
    assert 3.0 <= watch.now - begin < 3.1
    assert (host.ratio, host.kbytes) == (95, 0)


@pytest.mark.parametrize("arc", [51, 60])
def test_zfs_that_has_what_nobody_needs_is_not_short(arc: int) -> None:
    host = MemoryHost(64 * GIB, uncounted=GIB, arc=arc * GIB, arc_min=2 * GIB)
    started(host, 6 * GIB)
    watch = Guarded(host)
    watch.run(5)
    assert (watch.times_capped, watch.verdict.level) == (0, 0)
    watch.run(120, Hog(Program(host), GIB))
    assert watch.times_capped
    assert host.least_left >= floor(host) - host.total // 50


def test_swap_on_disk_is_used_before_anybody_is_refused() -> None:
    host, _ = full(64 * GIB, 8 * GIB, disk_swap=8 * GIB)
    hog = Hog(Program(host), GIB)
    watch = Guarded(host)
    watch.run(40, hog)
    assert hog.refused_at, "a limit can be expressed"
    assert floor(host) - host.total // 50 <= host.least_left < floor(host) + band(host)


@pytest.mark.parametrize("disk", [0, 8])
@pytest.mark.parametrize("zram", [16, 32])
@pytest.mark.parametrize("ratio", [1.0, 1.02, 1.1, 1.3, 3.0])
@pytest.mark.parametrize("held", [0, 2])
def test_zram_that_cannot_hold_what_comes_does_not_lose_the_host(ratio: float, zram: int, held: int, disk: int) -> None:
    """It holds what is small when compressed, three to one, and then comes what is not: a model's weights, say.

    What was saved is counted on as once more to be saved.
    """
    host = MemoryHost(64 * GIB, zram=zram * GIB, zram_ratio=ratio, disk_swap=disk * GIB, swapped=held * GIB)
    assert started(host, 50 * GIB)
    hog = Hog(Program(host), GIB)
    watch = Guarded(host)
    watch.run(60, hog)
    assert hog.refused_at, "a limit can be expressed"
    assert host.least_left >= floor(host) - host.total // 50 - held * GIB * 2 // 3


@given(st.integers(1, 99), st.sampled_from([16, 256]))
@few
def test_every_ratio_keeps_the_promises(ratio: int, gib: int) -> None:
    host, _ = full(gib * GIB, gib * GIB * (100 - ratio) // 100 + 3 * GIB)
    watch = Guarded(host, GuardLimits(ratio=ratio))
    hog = Hog(Program(host, addresses=CUDA), 4 * GIB, again=True)
    watch.run(20, hog)
    assert hog.refused_at
    assert hog.refused_at >= floor(host, ratio) - host.total // 50
    assert host.least_left >= max(floor(host, ratio) // 2, floor(host, ratio) - host.total // 50)


# The host of these tests grants and shows memory as the kernel does

CAPPED = {"mode": NEVER, "ratio": 0, "kbytes": 10 << 20}


def host(**changes: int) -> MemoryHost:
    return MemoryHost(64 * GIB, **changes)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"ratio": 50}, 32 * GIB),
        ({"ratio": 50, "hugetlb": 32 * GIB}, 16 * GIB),
        ({"kbytes": 1 << 20, "ratio": 0}, GIB),
        ({"kbytes": 1 << 20, "ratio": 0, "disk_swap": 2 * GIB, "zram": 3 * GIB}, 6 * GIB),
    ],
)
def test_the_limit_is_of_ram_less_huge_pages_and_all_swap_is_added(changes: dict[str, int], limit: int) -> None:
    assert host(**changes).limit == limit


def test_kilobytes_and_ratio_set_each_other_to_0() -> None:
    one = host()
    one.write("kbytes", 5)
    assert (one.ratio, one.kbytes) == (0, 5)
    one.write("ratio", 50)
    one.write("memory", 2)
    assert (one.mode, one.ratio, one.kbytes) == (2, 50, 0)


def test_without_a_limit_all_is_granted_or_what_there_is_at_once() -> None:
    assert Program(host(mode=ALWAYS)).ask(1 << 50)
    assert Program(host(mode=HEURISTIC)).ask(64 * GIB)
    assert not Program(host(mode=HEURISTIC)).ask(64 * GIB + 1)


@pytest.mark.parametrize(
    ("root", "addresses", "least"),
    [(True, 0, 0), (False, 0, 8 * MIB), (True, 320 * MIB, 10 * MIB), (False, 64 * GIB, 136 * MIB)],
)
def test_of_a_limit_each_leaves_what_the_kernel_reserves(root: bool, addresses: int, least: int) -> None:
    one = Program(host(**CAPPED), root, addresses)
    assert not one.ask(10 * GIB - least)
    assert one.ask(10 * GIB - least - 1)


def test_the_error_of_the_count_is_a_256th_of_ram_until_the_mode_is_written() -> None:
    where = host(**CAPPED)
    one = Program(where, root=True, addresses=0)
    assert one.ask(9 * GIB)
    where.error = -1.0
    assert one.room == GIB - 128 * MIB + 256 * MIB - 1
    where.write("memory", NEVER)
    assert one.room == GIB - 128 * MIB - 1
    one.free(MIB)
    assert one.room == GIB - 128 * MIB + 2 * MIB - 1


def test_commits_and_use_are_apart() -> None:
    where = host()
    one = Program(where)
    assert one.ask(GIB)
    assert (where.committed, where.left) == (GIB, 64 * GIB)
    one.touch(300 * MIB)
    assert where.left == 64 * GIB - 300 * MIB
    where.pin(GIB)
    assert (where.committed, where.left) == (GIB, 63 * GIB - 300 * MIB)
    one.exit()
    assert (where.committed, where.left) == (0, 63 * GIB)
    assert where.least_left == 63 * GIB - 300 * MIB


def test_a_program_takes_in_steps_until_it_is_refused() -> None:
    one = Program(host(**CAPPED), addresses=64 * GIB)
    assert one.take(11 * GIB)
    assert one.used == one.committed == (10 * GIB - 136 * MIB - 1) // (16 * MIB) * (16 * MIB)


def test_a_fork_commits_all_once_more_until_it_exits() -> None:
    where = host(**CAPPED)
    parent = started(where, 4 * GIB)
    assert parent
    child = parent.fork()
    assert child
    assert (where.committed, where.used) == (8 * GIB, 4 * GIB)
    assert parent.fork() is None
    child.touch(GIB)
    assert where.used == 5 * GIB
    child.exit()
    assert (where.committed, where.used) == (4 * GIB, 4 * GIB)


def test_dev_shm_is_written_until_the_limit() -> None:
    one = Program(host(**CAPPED), root=True, addresses=0)
    assert one.write_shm(4 * GIB)
    assert not one.write_shm(8 * GIB)
    assert one.used == 10 * GIB - 128 * MIB - 1


def test_a_host_is_lost_when_more_is_used_than_there_is() -> None:
    where = host(disk_swap=GIB)
    assert started(where, 65 * GIB)
    assert not where.is_lost
    assert started(where, 1)
    assert where.is_lost


def test_what_it_shows_is_what_it_has() -> None:
    where = MemoryHost(64 * GIB, hugetlb=4 * GIB, disk_swap=8 * GIB, zram=16 * GIB, arc=20 * GIB, arc_min=GIB)
    where.zram_ratio = 2.0
    assert where.left == 60 * GIB + 8 * GIB + 8 * GIB - GIB
    assert started(where, 64 * GIB)
    files = where.files()
    memory = memory_of(
        files["proc/meminfo"], files["proc/swaps"], mode=1, ratio=95, kbytes=0, watermarks=Watermarks(0, 0)
    )
    assert (memory.total, memory.hugetlb, memory.available) == (64 * GIB, 4 * GIB, 0)
    assert (memory.committed, memory.swap_total) == (64 * GIB, 24 * GIB)
    # 64 GiB and the ARC's least size on 60: 5 GiB are away, by 10 GiB that are stored in 5.
    assert "/dev/zram0 partition 16777216 10485760 -2" in files["proc/swaps"]
    assert "/dev/vdb partition 8388608 0 -2" in files["proc/swaps"]
    assert f"size 4 {GIB}\n" in files["proc/spl/kstat/zfs/arcstats"]
