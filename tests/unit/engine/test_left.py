"""What becomes of an edit whose caller left: it is ended and put back if that was asked for; others are not harmed."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator

import pytest

from kerntune.engine.claims import Claims
from kerntune.engine.edits import Pending
from kerntune.engine.results import Answer
from kerntune.engine.workers import LaneQueue, PassRequest
from kerntune.errors import Failed
from kerntune.model import State
from tests.unit.engine.test_halt import MANY, endable, slow_pools
from tests.unit.engine.test_lanes import begun, held
from tests.unit.lab import (
    BOUND,
    FULL,
    POOL,
    Lab,
    MemoryStore,
    have_pages,
    large_host,
    pages,
    queue,
    request,
    running,
    small_host,
)

__all__ = ["endable"]
LEFT = "the caller of Set left"


def setting(lab: Lab, *settings: tuple[str, str, str | int]) -> asyncio.Task[Answer]:
    """Begin a Set that is to end with its caller."""
    return asyncio.ensure_future(lab.engine.change(request(*settings), "Set", endable=True))


async def leaves(call: asyncio.Task[Answer]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def told(lab: Lab) -> Iterator[str]:
    """Return the details of all that was announced."""
    return (outcome.detail for report in lab.reports for outcome in report.outcomes)


async def test_a_slow_pool_is_ended_and_the_old_count_is_back() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        begins = slow_pools(lab.kernel)
        call = setting(lab, ("hugepages", "2M", MANY))
        await begins.wait()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert pages(lab.kernel) == [3]
        assert (lab.claims, lab.store.baselines) == ([], {})
        # It did not have to make all of them first.
        assert max(int(text) for path, text in lab.writes() if path == POOL) < MANY
        assert any(LEFT in detail for detail in told(lab))
        assert not any("told to stop" in detail for detail in told(lab))


@pytest.mark.usefixtures("endable")
async def test_a_thread_that_is_inside_a_write_is_signalled_until_the_pass_is_over() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        gate = held(lab.kernel, POOL)
        call = setting(lab, ("hugepages", "2M", 100))
        await gate.reached.wait()
        halt = lab.engine._lanes[lab.engine.tunables["hugepages"].lane].halt
        assert halt
        signals = asyncio.Semaphore(0)
        real = halt.interrupt

        def interrupt() -> list[str]:
            signals.release()
            return real()

        halt.interrupt = interrupt  # type: ignore[method-assign]
        await leaves(call)
        for _ in range(3):
            await signals.acquire()
        gate.free.set()
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([3], [])


async def test_without_it_an_edit_is_finished() -> None:
    async with running(small_host()) as lab:
        begins = slow_pools(lab.kernel)
        (call,) = await begun(lab.set(("hugepages", "2M", MANY)))
        await begins.wait()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([MANY], [f"runtime:hugepages@2M={MANY}"])


async def test_what_waits_for_its_pass_is_only_withdrawn() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, queue("sda"))
        (first,) = await begun(lab.set(("io-scheduler", "sda", "bfq")))
        await gate.reached.wait()
        call = setting(lab, ("io-scheduler", "nvme0n1", "kyber"))
        await begun()
        await leaves(call)
        gate.free.set()
        assert [outcome.state for outcome in (await first).outcomes] == [State.SATISFIED]
        await lab.engine.reconcile("after")
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]
        assert lab.kernel.disks["nvme0n1"].scheduler == "none"


async def test_who_shares_the_pass_is_not_harmed() -> None:
    async with running(large_host()) as lab:
        first_gate = held(lab.kernel, queue("sda"))
        (first,) = await begun(lab.set(("io-scheduler", "sda", "bfq")))
        await first_gate.reached.wait()
        leaving = setting(lab, ("io-scheduler", "nvme0n1", "kyber"))
        (staying,) = await begun(lab.set(("io-scheduler", "nvme1n1", "kyber")))
        gate = held(lab.kernel, queue("nvme0n1"))
        first_gate.free.set()
        await first
        await gate.reached.wait()
        await leaves(leaving)
        gate.free.set()
        assert [outcome.state for outcome in (await staying).outcomes] == [State.SATISFIED]
        await lab.engine.reconcile("after")
        schedulers = {name: disk.scheduler for name, disk in lab.kernel.disks.items()}
        assert schedulers == {"sda": "bfq", "nvme0n1": "none", "nvme1n1": "kyber"}
        assert not any(LEFT in detail for detail in told(lab))


async def test_who_comes_later_in_the_lane_has_what_he_asked_for() -> None:
    async with running(small_host()) as lab:
        begins = slow_pools(lab.kernel)
        leaving = setting(lab, ("hugepages", "2M", MANY))
        await begins.wait()
        (later,) = await begun(lab.set(("overcommit", "", "always:95")))
        await leaves(leaving)
        assert [outcome.state for outcome in (await later).outcomes] == [State.SATISFIED]
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([0], ["runtime:overcommit=always:95"])


async def test_what_is_being_saved_is_finished_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(small_host()) as lab:
        saving, free, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
        commit = MemoryStore.commit

        def slowly(store: MemoryStore, claims: Claims) -> None:
            loop.call_soon_threadsafe(saving.set)
            free.wait(BOUND)
            commit(store, claims)

        monkeypatch.setattr(MemoryStore, "commit", slowly)
        call = setting(lab, ("hugepages", "2M", 4))
        await saving.wait()
        call.cancel()
        free.set()
        assert [outcome.state for outcome in (await call).outcomes] == [State.SATISFIED]
        assert (pages(lab.kernel), lab.claims) == ([4], ["runtime:hugepages@2M=4"])


async def test_who_leaves_before_the_first_step_leaves_nothing() -> None:
    async with running(small_host()) as lab:
        edit = await lab.engine.check(request(("io-scheduler", "nvme0n1", "kyber")))
        call = asyncio.ensure_future(lab.engine.carry_out(edit, "Set", endable=True))
        await begun()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert (lab.claims, lab.writes()) == ([], [])


async def test_edits_without_a_pause_leave_nothing_of_those_before_them() -> None:
    """Each begins before the one before it has ended."""

    def alive() -> int:
        gc.collect()
        return sum(isinstance(found, Pending) for found in gc.get_objects())

    async with running(large_host()) as lab:
        others, most = alive(), 0

        async def sets(device: str) -> None:
            nonlocal most
            for number in range(20):
                await lab.set(("io-scheduler", device, ("none", "bfq")[number % 2]))
                if number == 15:
                    most = max(most, alive() - others)

        await asyncio.gather(*map(sets, ("sda", "nvme0n1", "nvme1n1")))
        assert most <= 8


async def test_what_is_put_back_is_not_ended_with_another_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[PassRequest] = []
    put = LaneQueue.put

    def noted(self: LaneQueue, request: PassRequest) -> None:
        requests.append(request)
        put(self, request)

    monkeypatch.setattr(LaneQueue, "put", noted)

    def fails(*_: object) -> None:
        raise FULL

    async with running(large_host()) as lab:
        monkeypatch.setattr(MemoryStore, "commit", fails)
        with pytest.raises(Failed):
            await lab.set(("io-scheduler", "sda", "none"))
        assert [request.waited for request in requests if request.cause == "Set withdrawn"] == [True]
