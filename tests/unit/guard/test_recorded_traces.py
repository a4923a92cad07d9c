"""The guard over what memory did on a real kernel (tests/system/record.py made the files), which obeys it here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kerntune.guard.policy import GuardLimits, GuardState, GuardVerdict, Sample, decide, interval
from kerntune.kernel.memory import Watermarks, memory_of
from kerntune.model import Memory

FOLDER = Path(__file__).parent / "traces"
HOGS = ("hog", "hog-swap")
RESERVES = 136 << 20  # bytes
EVERY = ("rest", *HOGS)
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


def replayed(name: str, limits: GuardLimits) -> Iterator[tuple[Look, GuardVerdict, GuardVerdict]]:
    """What was seen, verdict before and verdict after, at the first look that is due each time."""
    verdict, due = GuardVerdict(), 0.0
    for look in recorded(name):
        if look.now < due:
            continue
        before, memory = verdict, look.memory
        if before.caps:
            limit = before.kbytes * 1024 + memory.swap_total
            memory = replace(
                memory, overcommit_mode=2, overcommit_ratio=0, overcommit_kbytes=before.kbytes, commit_limit=limit
            )
        sample = Sample(memory, look.now, RESERVES, cpus=1)
        verdict = decide(sample, limits, before)
        due = look.now + interval(sample, limits)
        yield Look(look.now, memory), before, verdict


@pytest.mark.parametrize("name", EVERY)
def test_the_recording_is_of_a_host_in_mode_always(name: str) -> None:
    looks = recorded(name)
    assert 100 <= len(looks) <= 1200
    assert {look.memory.overcommit_mode for look in looks} == {1}
    assert (looks[0].memory.swap_total > 0) == name.endswith("swap")


def test_at_rest_it_neither_warns_nor_caps() -> None:
    assert {(after.state, after.level) for _, _, after in replayed("rest", GuardLimits())} == {(GuardState.RELAXED, 0)}


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


@pytest.mark.parametrize("name", HOGS)
def test_above_the_floor_the_limit_is_no_less_than_what_was_left(name: str) -> None:
    limits, start = GuardLimits(), None
    for look, before, after in replayed(name, limits):
        memory = look.memory
        if after.caps and not before.caps:
            start = memory.committed + memory.headroom
        if after.caps and memory.headroom > limits.floor(memory):
            assert start
            least = min(start, memory.committed + memory.headroom) - limits.floor(memory)
            assert after.kbytes * 1024 + memory.swap_total >= least
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
