"""Edits and baselines: what becomes of an edit whose caller left, what is saved, and what is put back at the end."""

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
from kerntune.model import Origin, State, Target
from tests.unit.lab import (
    BOUND,
    FULL,
    MANY_PAGES,
    POOL,
    Lab,
    MemoryStore,
    begun,
    claim,
    have_pages,
    held,
    host_values,
    large_host,
    pages,
    queue,
    request,
    running,
    slow_pools,
    small_host,
)

LEFT = "the caller of Set left"


def setting(lab: Lab, *settings: tuple[str, str, str | int]) -> asyncio.Task[Answer]:
    """Begin a Set that is to end with its caller."""
    return asyncio.ensure_future(lab.engine.change(request(*settings), "Set", endable=True))


async def leaves(call: asyncio.Task[Answer]) -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


def details(lab: Lab) -> Iterator[str]:
    """Return the details of all that was published."""
    return (outcome.detail for report in lab.reports for outcome in report.outcomes)


def slow_saves(monkeypatch: pytest.MonkeyPatch) -> tuple[asyncio.Event, threading.Event]:
    """Have saves wait; return an event that is set when the first begins, and the one that lets them go on."""
    saving, free, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()
    commit = MemoryStore.commit

    def slowly(store: MemoryStore, claims: Claims) -> None:
        loop.call_soon_threadsafe(saving.set)
        free.wait(BOUND)
        commit(store, claims)

    monkeypatch.setattr(MemoryStore, "commit", slowly)
    return saving, free


async def test_a_slow_pool_is_ended_and_the_old_count_is_back() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        begins = slow_pools(lab.kernel)
        call = setting(lab, ("hugepages", "2M", MANY_PAGES))
        await begins.wait()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert pages(lab.kernel) == [3]
        assert (lab.claims, lab.store.baselines) == ([], {})
        # It did not have to make all of them first.
        assert max(int(text) for path, text in lab.writes() if path == POOL) < MANY_PAGES
        assert any(LEFT in detail for detail in details(lab))
        assert not any("told to stop" in detail for detail in details(lab))


@pytest.mark.usefixtures("endable")
async def test_a_thread_that_is_inside_a_write_is_signalled_until_the_pass_is_over() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        gate = held(lab.kernel, POOL)
        call = setting(lab, ("hugepages", "2M", 100))
        await gate.reached.wait()
        halt = lab.engine.lanes[lab.engine.tunables["hugepages"].lane].halt
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
        (call,) = await begun(lab.set(("hugepages", "2M", MANY_PAGES)))
        await begins.wait()
        await leaves(call)
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([MANY_PAGES], [f"runtime:hugepages@2M={MANY_PAGES}"])


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
        assert not any(LEFT in detail for detail in details(lab))


async def test_who_comes_later_in_the_lane_has_what_he_asked_for() -> None:
    async with running(small_host()) as lab:
        begins = slow_pools(lab.kernel)
        leaving = setting(lab, ("hugepages", "2M", MANY_PAGES))
        await begins.wait()
        (later,) = await begun(lab.set(("overcommit", "", "always:95")))
        await leaves(leaving)
        assert [outcome.state for outcome in (await later).outcomes] == [State.SATISFIED]
        await lab.engine.reconcile("after")
        assert (pages(lab.kernel), lab.claims) == ([0], ["runtime:overcommit=always:95"])


async def test_what_is_being_saved_is_finished_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(small_host()) as lab:
        saving, free = slow_saves(monkeypatch)
        call = setting(lab, ("hugepages", "2M", 4))
        await saving.wait()
        call.cancel()
        free.set()
        assert [outcome.state for outcome in (await call).outcomes] == [State.SATISFIED]
        assert (pages(lab.kernel), lab.claims) == ([4], ["runtime:hugepages@2M=4"])


async def test_of_two_that_are_saved_at_the_same_time_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        saving, free = slow_saves(monkeypatch)
        (first,) = await begun(lab.set(("hugepages", "2M", 4)))
        await saving.wait()
        (second,) = await begun(lab.set(("io-scheduler", "sda", "bfq")))
        # Of another lane: its pass is over, and it is to be saved too.
        for _ in range(2):
            await lab.engine.reconcile("meanwhile")
        free.set()
        await asyncio.gather(first, second)
        assert lab.claims == ["runtime:hugepages@2M=4", "runtime:io-scheduler@sda=bfq"]


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


SDA = Target("io-scheduler", "sda", key="3")


# Baselines


async def test_the_hosts_own_value_is_saved_before_it_is_overwritten() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    saved: list[dict[str, str]] = []
    async with running(kernel) as lab:
        kernel.before_write = lambda path, text: saved.append({str(t): v for t, v in lab.store.baselines.items()})
        await lab.set(("hugepages", "2M/node0", 50))
        assert saved == [{"hugepages@2M/node0": "3"}]
        await lab.set(("hugepages", "2M/node0", 60))
        assert saved[-1] == {"hugepages@2M/node0": "3"}


async def test_a_baseline_is_saved_once() -> None:
    async with running(large_host()) as lab:
        for value in ("bfq", "none", "kyber"):
            await lab.set(("io-scheduler", "sda", value))
        assert [target.instance for target in lab.store.kept] == ["sda"]


async def test_only_what_was_written_has_a_baseline() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "mq-deadline"))
        assert {target.instance for target in lab.store.baselines} == {"nvme0n1", "nvme1n1"}


async def test_what_nobody_claims_any_more_is_put_back_once() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        await lab.unset(("io-scheduler", "sda"))
        assert lab.writes() == [(queue("sda"), "mq-deadline")]
        lab.kernel.disks["sda"].scheduler = "kyber"  # it is the admin's again
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        assert lab.engine.observed.outcomes == {}


async def test_a_value_that_never_was_changed_is_not_put_back() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "mq-deadline"))
        lab.kernel.disks["sda"].scheduler = "bfq"
        await lab.unset(("io-scheduler", "sda"))
        assert lab.writes() == []


async def test_after_a_crash_between_write_and_commit_the_host_has_its_own_back() -> None:
    """The baseline is on disk and the value in place, but nobody was answered."""
    kernel = large_host()
    kernel.disks["sda"].scheduler = "bfq"
    async with running(kernel, baselines={SDA: "mq-deadline"}) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert kernel.disks["sda"].scheduler == "mq-deadline"
        assert not lab.store.baselines


# Saved claims


async def test_saved_claims_are_in_force_after_boot() -> None:
    saved = [claim(Origin.PERSISTENT, "hugepages", "2M", 10), claim(Origin.RUNTIME, "io-scheduler", "sda", "bfq")]
    async with running(large_host(), claims=saved) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert (pages(lab.kernel), lab.kernel.disks["sda"].scheduler) == ([5, 5], "bfq")
        lab.writes()
        await lab.engine.reconcile("again")
        assert lab.writes() == []


async def test_a_saved_claim_that_no_call_could_have_made_is_left_out() -> None:
    bad = [
        claim(Origin.PERSISTENT, "hugepages", "2M", "1x0"),
        claim(Origin.PERSISTENT, "hugepages", "*", "1"),
        claim(Origin.PERSISTENT, "hugepages", "2048K", "1"),
        claim(Origin.RUNTIME, "overcommit", "", "never:1048576k"),
        claim(Origin.RUNTIME, "no-such-tunable", "", "1"),
        claim(Origin.RUNTIME, "io-scheduler", "../sda", "none"),
    ]
    good = claim(Origin.PERSISTENT, "io-scheduler", "sda", "bfq")
    async with running(large_host(), claims=[*bad, good]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert set(lab.engine.edits.unsound) == set(bad)
        assert list(lab.engine.edits.claims.by_id.values()) == [good]
        assert lab.writes() == [(queue("sda"), "bfq")]


# Put back at the end


async def test_at_the_end_the_host_has_its_own_values_and_the_claims_stay_saved() -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    files = [claim(Origin.CONFIG, "overcommit", "", "always:95")]
    async with running(kernel) as lab:
        before = host_values(kernel)
        lab.engine.configure(files, lab.engine.limits)
        await lab.set(("hugepages", "2M/node0", 50), ("io-scheduler", "*", "bfq"), persist=True)
        await lab.set(("read-ahead", "sda", 2048))
        saved = lab.store.claims
        assert await lab.engine.put_back(BOUND)
        assert host_values(kernel) == before
        assert (lab.store.claims, lab.store.baselines) == (saved, {})
        with pytest.raises(Failed, match="is stopping"):
            await lab.set(("read-ahead", "sda", 4096))
        await lab.engine.reconcile("hotplug")
        assert host_values(kernel) == before
        assert lab.store.claims == saved
    async with running(kernel, claims=saved.by_id.values()) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert (pages(kernel)[0], kernel.disks["sda"].scheduler, kernel.disks["sda"].read_ahead) == (50, "bfq", 2048)


async def test_what_is_fought_over_is_put_back_at_the_end_too() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        for _ in range(4):
            lab.kernel.disks["sda"].scheduler = "kyber"
            await lab.engine.reconcile("drift")
        assert lab.engine.observed.outcomes[SDA].state is State.CONTESTED
        assert await lab.engine.put_back(BOUND)
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"


async def test_the_end_waits_for_no_kernel_that_does_not_answer() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        answered = threading.Event()

        def block(path: str, text: str) -> None:
            answered.wait(BOUND)

        lab.kernel.before_write = block
        assert await lab.engine.put_back(0.05) is False
        answered.set()
