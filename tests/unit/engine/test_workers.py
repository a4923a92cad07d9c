"""Several requests at once share passes, no lane waits for another, and at a stop passes end soon."""

from __future__ import annotations

import asyncio
import signal
import threading
import time

import pytest

from kerntune.engine.results import Answer
from kerntune.engine.writer import SIGNAL, Halt
from kerntune.errors import Failed, KernelRejected, KerntuneError, OverLimit, Overridden
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Origin, Reason, State, Target
from tests.unit.lab import (
    BOUND,
    FULL,
    MANY_PAGES,
    POOL,
    VM,
    begun,
    claim,
    ends,
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

# Joining


async def test_requests_that_come_during_a_pass_share_the_next() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, queue("sda"))
        (first,) = await begun(lab.set(("io-scheduler", "sda", "bfq")))
        await gate.reached.wait()
        others = await begun(
            lab.set(("io-scheduler", "nvme0n1", "kyber")),
            lab.set(("io-scheduler", "nvme1n1", "bfq")),
            lab.unset(("io-scheduler", "vd*")),
        )
        gate.free.set()
        answers = await asyncio.gather(first, *others)
        assert [[o.actual for o in answer.outcomes] for answer in answers] == [["bfq"], ["kyber"], ["bfq"], []]
        assert [answer.changed for answer in answers] == [True, True, True, False]
        # One pass for the first, one for all the others.
        assert [report.cause for report in lab.reports if report.outcomes] == ["Set", "Set, Unset"]
        assert len(lab.claims) == 3


async def test_of_two_for_the_same_drive_the_later_wins_and_the_earlier_is_answered_so() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, queue("nvme0n1"))
        (first,) = await begun(lab.set(("io-scheduler", "nvme0n1", "kyber")))
        await gate.reached.wait()
        pair = await begun(
            lab.set(("io-scheduler", "sda", "bfq")),
            lab.set(("io-scheduler", "sda", "none")),
        )
        gate.free.set()
        (overridden,), (winner,) = [answer.outcomes for answer in await asyncio.gather(*pair)]
        await first
        assert (overridden.state, overridden.actual, overridden.requested) == (State.OVERRIDDEN, "none", "bfq")
        assert "a later call replaced this claim: runtime:io-scheduler@sda = none, by alice" in overridden.detail
        assert (winner.state, winner.actual) == (State.SATISFIED, "none")
        assert [text for path, text in lab.writes() if path == queue("sda")] == ["none"]
        assert "runtime:io-scheduler@sda=none" in lab.claims


async def test_of_two_patterns_the_later_wins_and_both_are_kept() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, queue("nvme0n1"))
        (first,) = await begun(lab.set(("io-scheduler", "nvme0n1", "kyber")))
        await gate.reached.wait()
        pair = await begun(lab.set(("io-scheduler", "sda", "bfq")), lab.set(("io-scheduler", "sd?", "none")))
        gate.free.set()
        (overridden,), (winner,) = [answer.outcomes for answer in await asyncio.gather(*pair)]
        await first
        assert (overridden.state, overridden.reason, overridden.actual) == (State.OVERRIDDEN, Reason.OVERRIDDEN, "none")
        assert "runtime:io-scheduler@sd? = none, by alice wins" in overridden.detail
        assert winner.state is State.SATISFIED
        assert {"runtime:io-scheduler@sda=bfq", "runtime:io-scheduler@sd?=none"} < set(lab.claims)


@pytest.mark.parametrize("kernel", [small_host(), large_host()], ids=["one node", "two nodes"])
async def test_of_two_for_the_same_pages_both_have_them(kernel: SimulatedKernel) -> None:
    async with running(kernel) as lab:
        answers = await asyncio.gather(*await begun(*(lab.set(("hugepages", "2M", 24)) for _ in range(4))))
        assert [answer.outcomes[0].state for answer in answers] == [State.SATISFIED] * 4
        assert lab.claims == ["runtime:hugepages@2M=24"]


async def test_of_two_for_the_same_value_both_have_it() -> None:
    async with running(large_host()) as lab:
        answers = await asyncio.gather(*await begun(*(lab.set(("io-scheduler", "sda", "bfq")) for _ in range(4))))
        assert [answer.outcomes[0].state for answer in answers] == [State.SATISFIED] * 4
        assert lab.writes() == [(queue("sda"), "bfq")]
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]


async def test_who_must_win_and_is_replaced_at_once_takes_nothing_from_the_other() -> None:
    async with running(large_host()) as lab:
        overridden, winner = await ends(
            *await begun(
                lab.set(("io-scheduler", "sda", "bfq"), must_win=True),
                lab.set(("io-scheduler", "sda", "none"), must_win=True),
            )
        )
        assert isinstance(overridden, Overridden)
        assert isinstance(winner, Answer)
        assert lab.claims == ["runtime:io-scheduler@sda=none"]
        assert lab.kernel.disks["sda"].scheduler == "none"


async def test_set_and_unset_at_the_same_moment() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        new, gone = await begun(lab.set(("io-scheduler", "sda", "none")), lab.unset(("io-scheduler", "sda")))
        (outcome,) = (await new).outcomes
        await gone
        assert (outcome.state, outcome.actual) == (State.OVERRIDDEN, "mq-deadline")
        assert "withdrew this claim at the same moment" in outcome.detail
        assert lab.claims == []
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"


async def test_unset_and_set_at_the_same_moment() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        gone, new = await begun(lab.unset(("io-scheduler", "sda")), lab.set(("io-scheduler", "sda", "none")))
        (outcome,) = (await new).outcomes
        await gone
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "none")
        assert lab.claims == ["runtime:io-scheduler@sda=none"]


async def test_one_that_fails_takes_nobody_with_it() -> None:
    async with running(large_host()) as lab:
        bad, good = await ends(
            *await begun(lab.set(("hugepages", "2M/node0", 99999)), lab.set(("hugepages", "2M/node1", 10)))
        )
        assert isinstance(bad, OverLimit)
        assert isinstance(good, Answer)
        assert pages(lab.kernel) == [0, 10]
        assert lab.claims == ["runtime:hugepages@2M/node1=10"]


async def test_one_that_fails_gives_back_what_an_earlier_one_of_the_same_pass_wants() -> None:
    async with running(large_host()) as lab:
        lab.kernel.ignore.add(queue("sda"))
        earlier, failing = await ends(
            *await begun(
                lab.set(("io-scheduler", "*", "kyber")),
                lab.set(("io-scheduler", "sda", "bfq")),
            )
        )
        assert isinstance(earlier, Answer)
        assert isinstance(failing, KernelRejected)
        lab.kernel.ignore.clear()
        await lab.engine.reconcile("again", enforce=True)
        assert lab.claims == ["runtime:io-scheduler@*=kyber"]
        assert lab.kernel.disks["sda"].scheduler == "kyber"


async def test_whoever_is_answered_is_saved() -> None:
    async with running(large_host()) as lab:
        answers = await asyncio.gather(
            *(lab.set(("io-scheduler", name, "bfq"), ("overcommit", "", "always")) for name in lab.kernel.disks)
        )
        assert all(answer.outcomes[0].actual == "bfq" for answer in answers)
        assert len(lab.claims) == 4


async def test_many_at_once_leave_what_the_last_one_asked() -> None:
    values = ["bfq", "kyber", "none", "mq-deadline"]
    async with running(large_host()) as lab:
        await asyncio.gather(*await begun(*(lab.set(("io-scheduler", "*", values[n % 4])) for n in range(30))))
        assert {disk.scheduler for disk in lab.kernel.disks.values()} == {values[29 % 4]}
        assert lab.claims == [f"runtime:io-scheduler@*={values[29 % 4]}"]
        before = host_values(large_host())
        await lab.unset(("io-scheduler", "*"))
        assert host_values(lab.kernel) == before


async def test_two_that_cannot_be_saved_leave_nothing() -> None:
    async with running(large_host()) as lab:
        lab.store.full_for_claims = FULL
        found = await ends(
            *await begun(lab.set(("io-scheduler", "sda", "bfq")), lab.set(("io-scheduler", "sda", "none")))
        )
        assert all(isinstance(one, KerntuneError) for one in found)
        assert lab.claims == []
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
        assert not lab.store.baselines


# Lanes


async def test_slow_memory_delays_no_drive() -> None:
    async with running(small_host()) as lab:
        gate = held(lab.kernel, POOL)
        (slow,) = await begun(lab.set(("hugepages", "2M", 100)))
        await gate.reached.wait()
        outcome = await lab.one("io-scheduler", "nvme0n1", "mq-deadline")
        assert outcome.state is State.SATISFIED
        assert not slow.done()
        assert [claim.tunable for claim in lab.store.claims.by_id.values()] == ["io-scheduler"]
        gate.free.set()
        assert (await slow).outcomes[0].actual == "100"
        assert len(lab.claims) == 2


async def test_a_slow_drive_delays_no_memory() -> None:
    async with running(small_host()) as lab:
        gate = held(lab.kernel, queue("nvme0n1"))
        (slow,) = await begun(lab.set(("io-scheduler", "nvme0n1", "mq-deadline")))
        await gate.reached.wait()
        assert (await lab.one("hugepages", "2M", 100)).actual == "100"
        assert (await lab.one("overcommit", "", "always")).state is State.SATISFIED
        assert not slow.done()
        gate.free.set()
        await slow


async def test_looking_waits_for_no_write() -> None:
    async with running(small_host()) as lab:
        gate = held(lab.kernel, POOL)
        (slow,) = await begun(lab.set(("hugepages", "2M", 100)))
        await gate.reached.wait()
        async with asyncio.timeout(BOUND):
            planned = await lab.engine.plan(request(("hugepages", "2M", 50)))
            await lab.engine.verify()
            await lab.engine.observed.read_all()
        assert not slow.done()
        assert planned.outcomes[0].state is State.PLANNED
        gate.free.set()
        await slow


async def test_within_a_lane_passes_follow_each_other() -> None:
    async with running(small_host()) as lab:
        gate = held(lab.kernel, POOL)
        (slow,) = await begun(lab.set(("hugepages", "2M", 100)))
        await gate.reached.wait()
        (next_,) = await begun(lab.set(("overcommit", "", "always")))
        assert [path for path, _ in lab.kernel.journal] == []
        gate.free.set()
        await asyncio.gather(slow, next_)
        assert lab.writes() == [(POOL, "100"), (f"{VM}memory", "1"), (f"{VM}ratio", "95")]


async def test_a_failure_in_a_fast_lane_waits_for_the_slow_one_to_put_it_back() -> None:
    kernel = small_host()
    have_pages(kernel, 7)
    async with running(kernel) as lab:
        gate = held(kernel, POOL)
        kernel.ignore.add(queue("nvme0n1"))
        (both,) = await begun(lab.set(("hugepages", "2M", 100), ("io-scheduler", "nvme0n1", "mq-deadline")))
        await gate.reached.wait()
        gate.free.set()
        with pytest.raises(KernelRejected):
            await both
        assert pages(kernel) == [7]
        assert lab.claims == []
        assert not lab.store.baselines


async def test_what_is_withdrawn_while_a_slower_lane_works_stays_withdrawn() -> None:
    async with running(large_host()) as lab:
        gate = held(lab.kernel, POOL)
        (both,) = await begun(lab.set(("hugepages", "2M", 100), ("io-scheduler", "sda", "bfq")))
        await gate.reached.wait()
        released = asyncio.Event()
        lab.engine.observed.listeners.append(lambda report: released.set() if report.cause == "Unset" else None)
        (gone,) = await begun(lab.unset(("io-scheduler", "sda")))
        await released.wait()
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
        gate.free.set()
        await asyncio.gather(both, gone)
        assert lab.claims == ["runtime:hugepages@2M=100"]


# When the daemon is told to stop


WHOLE = Target("hugepages", "2M")
SDA = queue("sda")


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
    wanted = [claim(Origin.CONFIG, "hugepages", "2M", MANY_PAGES)]
    async with running(kernel) as lab:
        lab.engine.configure(wanted, lab.engine.limits)
        begins = slow_pools(kernel)
        boot = asyncio.create_task(lab.engine.reconcile("boot", enforce=True))
        await begins.wait()
        assert await lab.engine.end_writes(BOUND, grace=0) == []
        await boot
        outcome = lab.engine.observed.outcomes[WHOLE]
        assert (outcome.state, outcome.reason) == (State.PARTIAL, Reason.INTERRUPTED)
        assert "was told to stop" in outcome.detail
        had = pages(kernel)[0]
        assert (3 < had < MANY_PAGES, outcome.actual) == (True, str(had))
        saved = dict(lab.store.baselines)
        assert saved[WHOLE] == "3"
    kernel.pace = 0
    async with running(kernel, baselines=saved) as lab:
        lab.engine.configure(wanted, lab.engine.limits)
        await lab.engine.reconcile("boot", enforce=True)
        assert pages(kernel) == [MANY_PAGES]
        assert lab.store.baselines == saved


async def test_a_caller_who_wanted_all_of_it_gets_an_error_and_the_old_count_is_back() -> None:
    async with running(small_host()) as lab:
        have_pages(lab.kernel, 3)
        begins = slow_pools(lab.kernel)
        (slow,) = await begun(lab.set(("hugepages", "2M", MANY_PAGES)))
        await begins.wait()
        assert await lab.engine.end_writes(BOUND, grace=0) == []
        with pytest.raises(Failed, match=r"told to stop.*try again when kerntuned has started"):
            await slow
        assert pages(lab.kernel) == [3]
        assert (lab.claims, lab.store.baselines) == ([], {})


async def test_a_caller_who_takes_less_keeps_what_was_had() -> None:
    async with running(small_host()) as lab:
        begins = slow_pools(lab.kernel)
        (slow,) = await begun(lab.set(("hugepages", "2M", MANY_PAGES), partial=True))
        await begins.wait()
        assert await lab.engine.end_writes(BOUND, grace=0) == []
        (outcome,) = (await slow).outcomes
        assert (outcome.state, outcome.reason) == (State.PARTIAL, Reason.INTERRUPTED)
        assert 0 < int(outcome.actual) < MANY_PAGES
        assert lab.claims == [f"runtime:hugepages@2M={MANY_PAGES}"]


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
        (slow,) = await begun(lab.set(("hugepages", "2M", MANY_PAGES)))
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
