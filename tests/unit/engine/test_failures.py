"""Whatever goes wrong in the kernel, a pass, a listener or the store: the caller is answered, and nothing is left."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from kerntune.engine.retry import SOON
from kerntune.errors import (
    Failed,
    KernelRejected,
    KerntuneError,
    NoSuchTarget,
    OverLimit,
    PartiallyAllocated,
    UnknownTunable,
)
from kerntune.kernel.files import KernelError
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Lane, Origin, Reason, Report, State
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.lab import (
    BOUND,
    FULL,
    PAGE,
    SETTINGS,
    THP,
    VM,
    Clock,
    Lab,
    MemoryStore,
    begun,
    claim,
    failing,
    have_pages,
    held,
    host_values,
    large_host,
    queue,
    running,
)

# Errors leave nothing


async def test_a_failure_in_one_lane_withdraws_the_other_lanes_part() -> None:
    kernel = large_host()
    kernel.nodes[0].whole = kernel.nodes[1].whole = 10 * PAGE
    async with running(kernel) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "kyber"))
        before = host_values(kernel)
        with pytest.raises(PartiallyAllocated):
            await lab.set(
                ("io-scheduler", "*", "bfq"), ("hugepages", "2M", 100), ("overcommit", "", "always"), persist=True
            )
        assert host_values(kernel) == before
        assert lab.claims == ["runtime:io-scheduler@nvme0n1=kyber"]
        assert [target.instance for target in lab.store.baselines] == ["nvme0n1"]


async def test_what_can_be_foreseen_is_refused_before_any_lane_writes() -> None:
    async with running(large_host()) as lab:
        with pytest.raises(OverLimit):
            await lab.set(("io-scheduler", "*", "bfq"), ("hugepages", "2M", 99_999_999))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_all_lanes_in_one_call() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set(("io-scheduler", "sda", "bfq"), ("hugepages", "2M", 10), ("overcommit", "", "always"))
        assert [(o.target.tunable, o.state) for o in answer.outcomes] == [
            ("io-scheduler", State.SATISFIED),
            ("hugepages", State.SATISFIED),
            ("overcommit", State.SATISFIED),
        ]


async def test_a_kernel_that_ignores_a_write() -> None:
    async with running(large_host()) as lab:
        lab.kernel.ignore.add(queue("sda"))
        with pytest.raises(KernelRejected, match="accepted, but io-scheduler@sda still reads mq-deadline"):
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert lab.claims == []
        assert not lab.store.baselines


async def test_a_kernel_that_ignores_some_writes() -> None:
    async with running(large_host()) as lab:
        lab.kernel.ignore.add(queue("sda"))
        answer = await lab.set(("io-scheduler", "*", "kyber"))
        assert [(o.state, o.reason) for o in answer.outcomes] == [
            (State.SATISFIED, Reason.OK),
            (State.SATISFIED, Reason.OK),
            (State.FAILED, Reason.READ_BACK_DIFFERS),
        ]
        assert lab.claims == ["runtime:io-scheduler@*=kyber"]
        assert lab.engine.observed.troubles == {Reason.READ_BACK_DIFFERS}


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
async def test_a_kernel_that_obeys_late_is_waited_for(reads: int) -> None:
    async with running(large_host()) as lab:
        lab.kernel.late[queue("sda")] = reads
        outcome = await lab.one("io-scheduler", "sda", "bfq")
        assert (outcome.state, outcome.actual) == (State.SATISFIED, "bfq")
        assert lab.writes() == [(queue("sda"), "bfq")]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, errno.EPERM, errno.EBUSY, errno.ENODEV])
async def test_a_kernel_that_refuses(code: int) -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[queue("sda")] = code
        with pytest.raises(KerntuneError):
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert lab.claims == []
        assert not lab.store.baselines


async def test_of_the_writes_of_a_step_none_follows_one_that_was_refused() -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[f"{VM}ratio"] = errno.EINVAL
        with pytest.raises(KernelRejected, match="the kernel refused never:80"):
            await lab.set(("overcommit", "", "never:80"))
        assert (f"{VM}memory", "2") not in lab.writes()
        assert lab.kernel.overcommit == {"memory": 0, "ratio": 50, "kbytes": 0}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
async def test_a_claim_that_cannot_be_saved_is_withdrawn(setting: tuple[str, str, str]) -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    before = host_values(kernel)
    async with running(kernel) as lab:
        lab.store.full_for_claims = FULL
        with pytest.raises(Failed, match="cannot be saved: No space left on device"):
            await lab.set(setting)
        assert host_values(kernel) == before
        assert (lab.claims, dict(lab.store.baselines)) == ([], {})


async def test_a_claim_that_cannot_be_saved_puts_back_the_one_before() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.store.full_for_claims = FULL
        with pytest.raises(Failed):
            await lab.set(("io-scheduler", "sda", "none"), persist=True)
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        with pytest.raises(Failed):
            await lab.unset(("io-scheduler", "sda"))
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
async def test_without_a_saved_baseline_nothing_is_written(setting: tuple[str, str, str]) -> None:
    async with running(large_host()) as lab:
        lab.store.full = FULL
        with pytest.raises(Failed, match="own values cannot be saved"):
            await lab.set(setting)
        assert (lab.writes(), lab.claims) == ([], [])


@pytest.mark.parametrize("part", ["full", "full_for_claims"])
async def test_an_error_without_a_file_name_is_answered_without_one(part: str) -> None:
    async with running(large_host()) as lab:
        setattr(lab.store, part, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(Failed) as caught:
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert "None" not in str(caught.value)


async def test_baselines_that_cannot_be_dropped_do_not_fail_the_call() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.store.full = FULL
        with pytest.raises(Failed):
            await lab.unset(("io-scheduler", "sda"))
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        lab.store.full = None
        await lab.unset(("io-scheduler", "sda"))
        assert not lab.store.baselines


async def test_a_bug_in_a_pass_is_answered_as_such_and_the_lane_goes_on() -> None:
    async with running(large_host()) as lab:

        def stumble(path: str, text: str) -> None:
            raise RuntimeError("no such thing should happen")

        lab.kernel.before_write = stumble
        with pytest.raises(Failed) as caught:
            await lab.set(("io-scheduler", "sda", "bfq"))
        assert str(caught.value) == "internal error. The daemon's journal says more"
        lab.kernel.before_write = None
        assert lab.claims == []
        assert (await lab.one("io-scheduler", "sda", "bfq")).state is State.SATISFIED


# Faults of kerntuned itself


async def all_is_as_before(lab: Lab) -> None:
    """Nothing is claimed or waits, and the next call is served."""
    assert lab.claims == []
    assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
    assert lab.engine.edits.claims == lab.engine.edits.committed
    assert (await lab.one("io-scheduler", "sda", "bfq")).state is State.SATISFIED
    assert await asyncio.wait_for(lab.engine.end_writes(BOUND), BOUND / 2) == [], "nobody waits at the end"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread"), KeyError("seq")])
async def test_an_edit_that_cannot_be_saved_is_withdrawn(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        with failing(monkeypatch, MemoryStore, "commit", error), pytest.raises(type(error)):
            await lab.set(("io-scheduler", "sda", "kyber"))
        await all_is_as_before(lab)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
async def test_a_pass_that_fails_withdraws_its_edits(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        with (
            failing(monkeypatch, IO_SCHEDULER, "plan", error),
            pytest.raises(Failed, match=r"internal error\. The daemon's journal says more"),
        ):
            await lab.set(("io-scheduler", "sda", "kyber"))
        await all_is_as_before(lab)


async def test_a_listener_that_fails_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fails(report: Report) -> None:
        if report.outcomes:
            raise ConnectionRefusedError(111, "nobody listens there")

    async with running(large_host()) as lab:
        lab.engine.observed.listeners.insert(0, fails)
        assert (await lab.one("io-scheduler", "sda", "bfq")).state is State.SATISFIED
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]
        assert lab.reports[-1].outcomes, "those behind it hear of it"
        assert "a listener failed" in caplog.text


async def test_baselines_that_cannot_be_dropped_for_want_of_memory_fail_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))

        with failing(monkeypatch, MemoryStore, "drop_baselines", MemoryError()):
            (outcome,) = (await lab.unset(("io-scheduler", "sda"))).outcomes
            assert outcome.state is State.UNMANAGED
        assert lab.store.baselines
        await lab.engine.reconcile("later")
        assert not lab.store.baselines


async def test_a_baseline_that_could_not_be_dropped_is_owed_again_after_the_next_claim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        with failing(monkeypatch, MemoryStore, "drop_baselines", MemoryError()):
            await lab.unset(("io-scheduler", "sda"))
            await lab.set(("io-scheduler", "sda", "kyber"))
        await lab.unset(("io-scheduler", "sda"))
        assert (lab.kernel.disks["sda"].scheduler, lab.store.baselines) == ("mq-deadline", {})


async def test_what_has_begun_is_finished_though_its_caller_is_gone() -> None:
    """Half of it would be on disk or in the kernel, where the other half is forgotten."""
    kernel: SimulatedKernel = large_host()
    async with running(kernel) as lab:
        gate = held(kernel, queue("sda"))
        (going,) = await begun(lab.set(("io-scheduler", "sda", "kyber")))
        await gate.reached.wait()
        going.cancel()
        await asyncio.wait([going])
        gate.free.set()
        assert await lab.engine.end_writes(BOUND) == []
        assert lab.claims == ["runtime:io-scheduler@sda=kyber"]
        assert lab.engine.edits.claims == lab.engine.edits.committed


async def test_the_first_error_is_answered_when_its_withdrawal_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        passes = 0
        run = IO_SCHEDULER.plan

        def second_fails(*args: Any) -> object:
            nonlocal passes
            passes += 1
            if passes > 1:
                raise Failed("of the second")
            return run(*args)

        monkeypatch.setattr(IO_SCHEDULER, "plan", second_fails)
        saving = failing(monkeypatch, MemoryStore, "commit", MemoryError("of the first"))
        with saving, pytest.raises(MemoryError, match="of the first"):
            await lab.set(("io-scheduler", "sda", "kyber"))
        assert lab.engine.edits.claims == lab.engine.edits.committed


async def test_what_a_pass_that_failed_was_to_do_is_done_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails, and so does the pass that was to put back what it has written."""
    async with running(large_host()) as lab:
        with failing(monkeypatch, IO_SCHEDULER, "assess", MemoryError()), pytest.raises(Failed):
            await lab.set(("io-scheduler", "sda", "kyber"))
        assert lab.store.baselines, "nobody knows whether the value is back"
        await lab.until(lambda: not lab.store.baselines)
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
        assert lab.claims == []


async def test_a_pass_that_fails_is_made_again_after_longer_and_longer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host(), clock=Clock()) as lab:
        lane = lab.engine.lanes[Lane.BLOCK]

        async def wait_after_a_failure() -> float:
            with failing(monkeypatch, IO_SCHEDULER, "plan", MemoryError()), pytest.raises(Failed):
                await lab.engine.reconcile("drift")
            assert lane.due
            return lane.due - lane.runner.clock()

        waits = [await wait_after_a_failure() for _ in range(8)]
        assert waits == sorted(waits)
        assert waits[-1] >= SOON * 2**7
        await lab.engine.reconcile("drift")
        assert lane.due is None
        assert await wait_after_a_failure() == SOON


async def test_an_unknown_tunable_beside_a_missing_target_is_named() -> None:
    async with running(large_host()) as lab:
        for settings in ([("io-scheduler", "nosuch", "none"), ("bogus", "", "1")],) * 2:
            with pytest.raises((NoSuchTarget, UnknownTunable)):
                await lab.set(*settings)
            with pytest.raises((NoSuchTarget, UnknownTunable)):
                await lab.unset(*((tunable, at) for tunable, at, _ in settings))


async def test_a_boot_pass_that_fails_in_one_lane_is_whole_in_the_others_and_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = [claim(Origin.CONFIG, "io-scheduler", "sda", "bfq"), claim(Origin.CONFIG, "thp", "enabled", "never")]
    async with running(large_host(), claims=wanted) as lab:
        with failing(monkeypatch, IO_SCHEDULER, "plan", MemoryError()), pytest.raises(Failed):
            await lab.engine.reconcile("boot", enforce=True)
        assert lab.kernel.plain[f"{THP}/enabled"].value == "never"
        await lab.until(lambda: lab.kernel.disks["sda"].scheduler == "bfq")


async def test_a_drive_that_cannot_be_identified_now_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        no_room = KernelError(errno.EMFILE, os.strerror(errno.EMFILE), "sys/block/sda/queue")
        with failing(monkeypatch, SimulatedKernel, "identity", no_room), pytest.raises(Failed):
            await lab.engine.reconcile("drift")
        assert list(lab.store.baselines.values()) == ["mq-deadline"]
        (outcome,) = (await lab.unset(("io-scheduler", "sda"))).outcomes
        assert outcome.actual == "mq-deadline"
