"""What one call may cost: its settings, its comparisons, and whose threads it waits for."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from kerntune.api.describe import Host, in_parts, prepare
from kerntune.errors import LimitsExceeded, NoSuchTarget
from kerntune.guard.guard import MemoryGuard
from kerntune.model import Lane, Limits
from tests.unit.lab import BOUND, large_host, request, running

MANY = [("io-scheduler", f"nvme{n}*", "none") for n in range(129)]


def described(*known: Any) -> dict[str, Any]:
    """Return the whole document."""
    head, rows = prepare(*known)
    return head | rows()


async def test_a_plan_has_fewer_settings_than_a_set_may_have() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(LimitsExceeded, match="a plan of 129 settings is too long, 128 are allowed"):
            await lab.engine.plan(request(*MANY))
        assert (await lab.engine.plan(request(*MANY[:128]))).changed
        assert (await lab.set(*MANY)).changed


async def test_settings_times_targets_are_bounded() -> None:
    """Three drives: the third pattern is the one too many."""
    async with running(large_host(), limits=Limits(comparisons=8)) as lab:
        assert (await lab.engine.plan(request(*MANY[:2]))).changed
        with pytest.raises(LimitsExceeded, match="3 settings for so many targets"):
            await lab.engine.plan(request(*MANY[:3]))


async def test_what_a_call_is_answered_is_bounded() -> None:
    """Three drives: the second pattern would be answered two outcomes too many."""
    every = [("io-scheduler", pattern, "none") for pattern in ("*", "nvme*")]
    async with running(large_host(), limits=Limits(outcomes=4)) as lab:
        assert len((await lab.engine.plan(request(every[0]))).outcomes) == 3
        for refused in (lab.engine.plan(request(*every)), lab.set(*every)):
            with pytest.raises(LimitsExceeded, match="cover 5 targets together, and 4 are allowed"):
                await refused
        assert lab.claims == []


async def test_what_a_call_withdraws_is_bounded() -> None:
    async with running(large_host(), limits=Limits(claims=3)) as lab:
        named = [(tunable, instances) for tunable, instances, _ in MANY]
        assert not (await lab.unset(*named[:3])).changed
        with pytest.raises(LimitsExceeded, match="a call of 4 settings is too long, and 3 are allowed"):
            await lab.unset(*named[:4])


async def test_no_set_waits_for_what_anybody_may_ask_for() -> None:
    async with running(large_host()) as lab:
        gate = threading.Event()
        strangers = [lab.engine.threads.open(gate.wait, BOUND) for _ in range(32)]
        plans = [asyncio.create_task(lab.engine.plan(request(("hugepages", "2M", 10)))) for _ in range(8)]
        try:
            async with asyncio.timeout(BOUND / 2):
                assert (await lab.set(("hugepages", "2M", 20))).changed
            assert not any(plan.done() for plan in plans)
        finally:
            gate.set()
        await asyncio.gather(*strangers, *plans)


async def test_a_large_document_is_made_of_a_copy_and_says_the_same() -> None:
    host = Host("6.1", "/", simulated=True, default_page_size=2 << 20)
    async with running(large_host()) as lab:
        guard = MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_told: None)
        await lab.set(*MANY[:20])
        head, rows = prepare(lab.engine, guard, host, [], "")
        before = described(lab.engine, guard, host, [], "")
        await lab.set(("io-scheduler", "*", "bfq"))
        assert json.loads(await lab.engine.threads.open(in_parts, head, rows)) == json.loads(json.dumps(before))


async def test_many_who_plan_what_is_not_there_share_a_look() -> None:
    async with running(large_host()) as lab:
        before = lab.engine.observed._lanes[Lane.BLOCK].begun
        asking = [lab.engine.plan(request(("io-scheduler", "nvme9n9", "none"))) for _ in range(64)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert all(isinstance(error, NoSuchTarget) for error in found)
        assert lab.engine.observed._lanes[Lane.BLOCK].begun - before <= 2


async def test_who_is_named_again_and_again_is_withdrawn_once() -> None:
    async with running(large_host()) as lab:
        for number in range(20):
            await lab.set(("io-scheduler", f"nvme{number}*", "none"))
        edit = await lab.engine.check(request(*[("io-scheduler", "*", "")] * 1000, unset=True))
        assert len(edit.drop) == 20
