"""Whatever goes wrong in a pass, a listener or an edit: it is withdrawn, its caller is answered, and others go on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

import pytest

from kerntune.errors import Failed, NoSuchTarget, UnknownTunable
from kerntune.kernel.files import KernelError
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Origin, Report, State
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.engine.test_lanes import begun, held
from tests.unit.lab import BOUND, THP, Lab, MemoryStore, claim, large_host, queue, running


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, owner: object, method: str, error: Exception) -> Iterator[None]:
    """Calls of the method fail so meanwhile."""

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(owner, method, fails)
        yield


async def all_is_as_before(lab: Lab) -> None:
    """Nothing is claimed or waits, and the next call is served."""
    assert lab.claims == []
    assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
    assert lab.engine.claims == lab.engine.committed
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
        lab.engine.listeners.insert(0, fails)
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
        assert lab.engine.claims == lab.engine.committed


async def test_the_first_error_is_told_when_its_withdrawal_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert lab.engine.claims == lab.engine.committed


async def test_what_a_pass_that_failed_was_to_do_is_done_by_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails, and so does the pass that was to put back what it has written."""
    async with running(large_host()) as lab:
        with failing(monkeypatch, IO_SCHEDULER, "assess", MemoryError()), pytest.raises(Failed):
            await lab.set(("io-scheduler", "sda", "kyber"))
        assert lab.store.baselines, "nobody knows whether the value is back"
        await lab.until(lambda: not lab.store.baselines)
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
        assert lab.claims == []


async def test_an_unknown_tunable_beside_a_missing_target_is_told_as_such() -> None:
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


async def test_a_drive_that_cannot_be_told_from_another_now_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        no_room = KernelError(errno.EMFILE, os.strerror(errno.EMFILE), "sys/block/sda/queue")
        with failing(monkeypatch, SimulatedKernel, "identity", no_room), pytest.raises(Failed):
            await lab.engine.reconcile("drift")
        assert list(lab.store.baselines.values()) == ["mq-deadline"]
        (outcome,) = (await lab.unset(("io-scheduler", "sda"))).outcomes
        assert outcome.actual == "mq-deadline"
