"""The guard over what memory did on a real kernel (tests/system/record.py made the files), which obeys it here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest

from kerntune.guard.policy import GuardLimits, GuardVerdict, Sample, decide, interval
from kerntune.kernel.memory import Watermarks, memory_of
from kerntune.model import GuardState, Memory

FOLDER = Path(__file__).parent / "traces"
HOGS = ("hog", "hog-swap")
OTHERS = ("page-cache", "fork-storm")  # of hosts that are not short
RESERVES = 136 << 20  # bytes
BUCKET = 256 << 20  # bytes, that a small host grants below the floor after a quiet moment
EVERY = ("rest", *HOGS, *OTHERS)
EARLY = 100  # of the first looks one is where a cap begins
FORK = 150 << 20  # bytes: commits that grow by more have a fork of 200 MiB among them
SWAPS = "Filename Type Size Used Priority\n/dev/vdb partition {total} {used} -2\n"


@dataclass(frozen=True)
class Look:
    """The figures at a moment, in seconds since the first."""

    now: float
    memory: Memory


def recorded(name: str) -> list[Look]:
    """The figures as the daemon would have read them, from the texts of the kernel's files."""
    lines = [line for line in (FOLDER / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
    fixed = {key: value for key, mark, value in (line.partition(" = ") for line in lines) if mark}
    names, *rows = (line.split() for line in lines if " = " not in line)
    return [look_at(fixed | dict(zip(names, row, strict=True))) for row in rows]


def look_at(figures: dict[str, str]) -> Look:
    own = {"ms", "mode", "ratio", "kbytes", "stalled", "reserve", "low"}
    meminfo = "\n".join(f"{name}: {figure} kB" for name, figure in figures.items() if name not in own)
    total = int(figures["SwapTotal"])
    swaps = SWAPS.format(total=total, used=total - int(figures["SwapFree"])) if total else "Filename\n"
    memory = memory_of(
        meminfo,
        swaps,
        mode=int(figures["mode"]),
        ratio=int(figures["ratio"]),
        kbytes=int(figures["kbytes"]),
        watermarks=Watermarks(int(figures["reserve"]) << 10, int(figures["low"]) << 10),
    )
    return Look(int(figures["ms"]) / 1000, memory)


def replayed(name: str, limits: GuardLimits, begin: float = 0.0) -> Iterator[tuple[Look, GuardVerdict, GuardVerdict]]:
    """What was seen, verdict before and verdict after, at the first look that is due each time."""
    verdict, due = GuardVerdict(), begin
    for look in recorded(name):
        if look.now < due:
            continue
        before, memory = verdict, look.memory
        if before.caps:
            limit = before.kbytes * 1024 + memory.swap_total
            memory = replace(
                memory, overcommit_mode=2, overcommit_ratio=0, overcommit_kbytes=before.kbytes, commit_limit=limit
            )
        sample = Sample(memory, look.now, RESERVES, memory.total // 256, cpus=1)
        verdict = decide(sample, limits, before)
        due = look.now + interval(sample, limits)
        yield Look(look.now, memory), before, verdict


def capping(name: str, begin: float = 0.0, ratio: int = GuardLimits().ratio) -> GuardLimits:
    """Limits with which it caps at the look at `begin`, and on to the end; hogs bring a cap about themselves."""
    limits = GuardLimits(ratio=ratio)
    if name in HOGS:
        return limits
    memory = next(look.memory for look in recorded(name) if look.now >= begin)
    return replace(limits, band=((memory.headroom - limits.floor(memory)) >> 20) + 1)


def sparing(name: str, bands: int) -> GuardLimits:
    """Limits of which the floor and so many bands are always left, and hardly more, as the kernel has it."""
    limits = GuardLimits()
    above = min(look.memory.available - limits.floor(look.memory) for look in recorded(name))
    return replace(limits, band=(above - 1) // bands >> 20)


def limit_of(look: Look, verdict: GuardVerdict) -> int:
    """The kernel's limit on commits, in bytes."""
    return verdict.kbytes * 1024 + look.memory.swap_total


def beyond(memory: Memory, limits: GuardLimits) -> int:
    """What the limit has beyond what fits: the kernel's reserves, to a quarter of the floor less the kernel's error."""
    return min(RESERVES, limits.floor(memory) * 3 // 4 - memory.total // 256)


@pytest.fixture(params=[min, max], ids=["between-forks", "among-forks"])
def begin(request: pytest.FixtureRequest) -> float:
    """When a cap begins in the fork storm: with no worker there, or with most of them."""
    pick: Callable[..., Look] = request.param
    return pick(recorded("fork-storm")[:EARLY], key=lambda look: look.memory.committed).now


@pytest.mark.parametrize("name", EVERY)
def test_the_recording_is_of_a_host_in_mode_always(name: str) -> None:
    looks = recorded(name)
    assert 100 <= len(looks) <= 1200
    assert {look.memory.overcommit_mode for look in looks} == {1}
    assert (looks[0].memory.swap_total > 0) == name.endswith("swap")


@pytest.mark.parametrize("name", ["rest", "page-cache"])
def test_it_neither_warns_nor_caps(name: str) -> None:
    """Nor with a band so wide that there is hardly more than it warns at."""
    for limits in (GuardLimits(), sparing(name, bands=2)):
        assert {(after.state, after.level) for _, _, after in replayed(name, limits)} == {(GuardState.RELAXED, 0)}


def test_the_page_cache_has_what_is_left() -> None:
    """So that a guard which takes memory in use by it for lost would have capped."""
    limits, looks = GuardLimits(), [look.memory for look, _, _ in replayed("page-cache", GuardLimits())]
    assert sum(memory.free <= limits.floor(memory) for memory in looks) >= len(looks) // 10
    assert max(memory.free for memory in looks) > 3 * limits.floor(looks[0]), "some is dropped, and read again"
    assert all(memory.available - memory.free > memory.base // 4 for memory in looks)


def test_a_fork_storm_does_not_cap_while_14_percent_are_left() -> None:
    looks = recorded("fork-storm")
    assert all(0.14 <= look.memory.headroom / look.memory.base <= 0.20 for look in looks)
    for limits in (GuardLimits(), sparing("fork-storm", bands=1)):
        assert {after.state for _, _, after in replayed("fork-storm", limits)} == {GuardState.RELAXED}


def test_the_forks_fit() -> None:
    limits, looks = GuardLimits(), [look.memory for look in recorded("fork-storm")]
    commits = [memory.committed for memory in looks]
    assert max(commits) - min(commits) < min(memory.headroom for memory in looks) - limits.floor(looks[0])
    assert sum(after - before > FORK for before, after in pairwise(commits)) >= 30


def test_within_a_cap_no_fork_is_refused_that_fits(begin: float) -> None:
    """Of the limit the kernel keeps its reserves from a large program."""
    verdicts = {look.now: after for look, _, after in replayed("fork-storm", capping("fork-storm", begin), begin)}
    limits: list[int] = []
    for look in recorded("fork-storm"):
        if limits:
            assert look.memory.committed <= limits[-1] - RESERVES
        if look.now in verdicts:
            limits.append(limit_of(look, verdicts[look.now]))
    assert len(limits) >= 200


def test_within_a_cap_forks_leave_no_more_to_commit_than_there_was(begin: float) -> None:
    limits = capping("fork-storm", begin)
    looks = [(look.memory, limit_of(look, after)) for look, _, after in replayed("fork-storm", limits, begin)]
    start, most = looks[0][0], 0
    for memory, limit in looks:
        most = max(most, memory.headroom)
        fits = min(start.committed + most, memory.committed + memory.headroom) - limits.floor(memory)
        assert 0 < limit <= max(fits, memory.committed + BUCKET) + RESERVES


def test_unused_commits_never_exceed_those_at_the_start_and_twice_the_band(begin: float) -> None:
    """With a floor so near to what is left that the kernel's reserves alone are more than that."""
    least = min(look.memory.headroom / look.memory.base for look in recorded("fork-storm"))
    limits = capping("fork-storm", begin, ratio=100 - int(100 * least))
    looks = [
        (look.memory, limit_of(look, after)) for look, _, after in replayed("fork-storm", limits, begin) if after.caps
    ]
    start = looks[0][0]
    assert 2 * limits.width(start) < start.headroom - limits.floor(start) + RESERVES
    for memory, limit in looks:
        used = max(0, start.headroom - memory.headroom)
        assert limit <= start.committed + used + 2 * limits.width(memory)


@pytest.mark.parametrize("name", HOGS)
def test_it_warns_and_then_caps_before_the_floor(name: str) -> None:
    limits = GuardLimits()
    levels = []
    for look, before, after in replayed(name, limits):
        levels.append(after.level)
        if after.caps:
            assert not before.caps
            assert limits.floor(look.memory) < look.memory.headroom <= limits.caps_at(look.memory)
            break
    assert sorted(set(levels)) == [0, 50, 100]
    assert levels == sorted(levels)


@pytest.mark.parametrize("name", [*HOGS, *OTHERS])
def test_above_the_floor_the_limit_is_what_is_left(name: str) -> None:
    """To a large program too, from which the kernel keeps what is there for others."""
    limits, start = capping(name), None
    for look, before, after in replayed(name, limits):
        memory = look.memory
        if after.caps and not before.caps:
            start = memory.committed + memory.headroom
        if after.caps and memory.headroom > limits.floor(memory):
            assert start
            least = min(start, memory.committed + memory.headroom) - limits.floor(memory)
            assert limit_of(look, after) - beyond(memory, limits) > least - 1024, "it is in KiB"
            most = max(memory.headroom - limits.floor(memory), BUCKET) + RESERVES
            assert limit_of(look, after) <= memory.committed + most
    assert start


@pytest.mark.parametrize("name", HOGS)
def test_when_the_program_is_gone_the_cap_ends_after_three_calm_seconds(name: str) -> None:
    limits = GuardLimits()
    looks = [(look, before, after) for look, before, after in replayed(name, limits)]
    ended = next(number for number, (_, before, after) in enumerate(looks) if before.caps and not after.caps)
    end = looks[ended][0].now
    calm = [look for look, _, _ in looks[: ended + 1] if look.now >= end - limits.calm]
    assert all(look.memory.headroom >= limits.ends_at(look.memory) for look in calm)
    assert not looks[-1][2].caps, "the last word is that it does not cap"
