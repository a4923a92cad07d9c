"""What happens to passes and callers when the daemon is told to stop: they end soon, and are told the truth."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from kerntune.engine.halt import SIGNAL, Halt, make_endable
from kerntune.errors import Failed
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Origin, Reason, State, Target
from tests.unit.engine.test_lanes import begun, held
from tests.unit.lab import BOUND, POOL, claim, have_pages, large_host, pages, queue, running, small_host

WHOLE = Target("hugepages", "2M")
MANY = 6000  # pages, which the simulated kernel makes in 12 pieces
PACE = 0.05  # seconds for a piece
SDA = queue("sda")


@pytest.fixture
def endable() -> Iterator[None]:
    before = signal.getsignal(SIGNAL)
    make_endable()
    yield
    signal.signal(SIGNAL, before)


def slow_pools(kernel: SimulatedKernel) -> asyncio.Event:
    """A piece of a pool takes PACE; set when the first one begins."""
    begins, loop = asyncio.Event(), asyncio.get_running_loop()

    def writing(_path: str, _text: str) -> None:
        loop.call_soon_threadsafe(begins.set)

    kernel.pace, kernel.before_write = PACE, writing
    return begins


async def test_what_ends_by_itself_is_not_cut_short() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, SDA)
        (slow,) = await begun(lab.set(("io-scheduler", "*", "bfq")))
        await gate.reached.wait()
        asyncio.get_running_loop().call_later(0.05, gate.free.set)
        assert await lab.engine.end_writes(BOUND, grace=BOUND) == []
        assert {outcome.state for outcome in (await slow).outcomes} == {State.SATISFIED}
        assert lab.claims == ["runtime:io-scheduler@*=bfq"]


async def test_nothing_is_waited_for_when_nothing_runs() -> None:
    async with running(small_host()) as lab:
        began = time.monotonic()
        assert await lab.engine.end_writes(BOUND, grace=BOUND) == []
        assert time.monotonic() - began < 1
        with pytest.raises(Failed, match="is stopping"):
            await lab.set(("hugepages", "2M", 4))
        with pytest.raises(Failed, match="is stopping"):
            await lab.engine.reload((), lab.engine.limits)
        assert lab.writes() == []


async def test_a_boot_pass_ends_with_what_was_had_and_the_next_start_goes_on() -> None:
    kernel = small_host()
    have_pages(kernel, 3)
    wanted = [claim(Origin.CONFIG, "hugepages", "2M", MANY)]
    async with running(kernel) as lab:
        lab.engine.configure(wanted, lab.engine.limits)
        begins = slow_pools(kernel)
        boot = asyncio.create_task(lab.engine.reconcile("boot", enforce=True))
        await begins.wait()
        assert await lab.engine.end_writes(BOUND, grace=0) == []
        await boot
        outcome = lab.engine.outcomes[WHOLE]
        assert (outcome.state, outcome.reason) == (State.PARTIAL, Reason.INTERRUPTED)
        assert "was told to stop" in outcome.detail
        had = pages(kernel)[0]
        assert (3 < had < MANY, outcome.actual) == (True, str(had))
        saved = dict(lab.store.baselines)
        assert saved[WHOLE] == "3"
    kernel.pace = 0
    async with running(kernel, baselines=saved) as lab:
        lab.engine.configure(wanted, lab.engine.limits)
        await lab.engine.reconcile("boot", enforce=True)
        assert pages(kernel) == [MANY]
        assert lab.store.baselines == saved


async def test_a_caller_who_wanted_all_of_it_gets_an_error_and_the_old_count_is_back() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        begins = slow_pools(lab.kernel)
        (slow,) = await begun(lab.set(("hugepages", "2M", MANY)))
        await begins.wait()
        assert await lab.engine.end_writes(BOUND, grace=0) == []
        with pytest.raises(Failed, match=r"told to stop.*try again when kerntuned has started"):
            await slow
        assert pages(lab.kernel) == [3]
        assert (lab.claims, lab.store.baselines) == ([], {})


async def test_a_caller_who_takes_less_keeps_what_was_had() -> None:
    async with running(small_host()) as lab:
        begins = slow_pools(lab.kernel)
        (slow,) = await begun(lab.set(("hugepages", "2M", MANY), partial=True))
        await begins.wait()
        assert await lab.engine.end_writes(BOUND, grace=0) == []
        (outcome,) = (await slow).outcomes
        assert (outcome.state, outcome.reason) == (State.PARTIAL, Reason.INTERRUPTED)
        assert 0 < int(outcome.actual) < MANY
        assert lab.claims == [f"runtime:hugepages@2M={MANY}"]


async def test_what_was_not_reached_is_not_counted_as_done() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, queue("nvme0n1"))
        (slow,) = await begun(lab.set(("io-scheduler", "*", "mq-deadline")))
        await gate.reached.wait()
        asyncio.get_running_loop().call_later(0.05, gate.free.set)
        assert await lab.engine.end_writes(BOUND, grace=0) == []
        with pytest.raises(Failed, match="told to stop"):
            await slow
        assert {disk.scheduler for name, disk in lab.kernel.disks.items() if name != "sda"} == {"none"}
        assert (lab.claims, lab.store.baselines) == ([], {})


async def test_a_write_that_cannot_be_ended_is_named_and_not_waited_for() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        gate = held(lab.kernel, POOL)
        (slow,) = await begun(lab.set(("hugepages", "2M", 100)))
        await gate.reached.wait()
        assert await lab.engine.end_writes(0.1, grace=0) == [POOL]
        assert not slow.done()
        # What the host had is saved, and no claim: the next start puts it back.
        saved = dict(lab.store.baselines)
        assert (saved[WHOLE], lab.store.claims.by_id) == ("3", {})
        gate.free.set()
        await slow
    assert pages(lab.kernel) == [100]
    async with running(lab.kernel, baselines=saved) as after:
        await after.engine.reconcile("boot", enforce=True)
        assert (pages(lab.kernel), after.store.baselines) == ([3], {})


async def test_at_the_end_of_the_time_no_pass_writes_any_more() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        gate = held(lab.kernel, POOL)
        (slow,) = await begun(lab.set(("hugepages", "2M", MANY)))
        await gate.reached.wait()
        await lab.engine.end_writes(0.05, grace=0)
        gate.free.set()
        with pytest.raises(Failed, match="told to stop"):
            await slow
        # It could not be put back: that is owed.
        assert pages(lab.kernel)[0] > 3
        assert lab.store.baselines[WHOLE] == "3"
        assert await lab.engine.put_back(BOUND)
        assert (pages(lab.kernel), lab.store.baselines) == ([3], {})


def test_a_thread_that_is_inside_a_write_gets_the_signal(endable: None) -> None:
    halt, inside, got = Halt(), threading.Event(), list[object]()

    def write() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        with halt.writing("pool"):
            inside.set()
            got.append(signal.sigtimedwait({SIGNAL}, BOUND))

    thread = threading.Thread(target=write)
    thread.start()
    assert inside.wait(BOUND)
    assert halt.interrupt() == ["pool"]
    thread.join(BOUND)
    assert [found.si_signo for found in got] == [SIGNAL]  # type: ignore[attr-defined]  # None when it did not come
    assert halt.interrupt() == []


def test_without_a_handler_no_signal_is_sent() -> None:
    assert signal.getsignal(SIGNAL) is signal.SIG_DFL
    halt = Halt()
    with halt.writing("pool"):
        assert halt.interrupt() == ["pool"]
