"""What is read is what the kernel holds now: looks are shared, bounded, and never older than a pass that has ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from kerntune.engine.observed import FRESH
from kerntune.errors import NotOffered, NotSupported
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Lane, Origin, Outcome, Reason, Report, State, Target
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.engine.test_lanes import begun, held
from tests.unit.lab import (
    BOUND,
    PAGE,
    POOL,
    SWAPPINESS,
    Clock,
    Lab,
    claim,
    large_host,
    queue,
    request,
    running,
    small_host,
)


def value(lab: Lab, instance: str = "sda") -> str | None:
    return next(reading.value for target, reading in lab.engine.readings.items() if target.instance == instance)


def looks(lab: Lab) -> list[Lane]:
    """The lanes that are looked at from now on, one for each look."""
    found: list[Lane] = []
    read = lab.engine.observed._look

    async def counted(lane: Lane) -> object:
        found.append(lane)
        return await read(lane)

    lab.engine.observed._look = counted  # type: ignore[assignment]  # the same with a note
    return found


async def test_what_others_changed_is_read_though_nothing_is_managed() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        lab.kernel.disks["sda"].scheduler = "none"
        clock.now += FRESH * 1.1
        await lab.engine.observed.fresh([Lane.BLOCK])
        assert value(lab) == "none"
        assert lab.reports[-1].cause == "look"


async def test_readings_of_just_now_serve_and_those_who_ask_share_a_look() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        found = looks(lab)
        clock.now += FRESH / 2
        await lab.engine.observed.fresh([Lane.BLOCK])
        assert found == []
        clock.now += FRESH
        await asyncio.gather(*(lab.engine.observed.fresh([Lane.BLOCK]) for _ in range(20)))
        assert found == [Lane.BLOCK]
        await lab.engine.observed.fresh(Lane)
        assert sorted(found) == [Lane.BLOCK, Lane.CPU, Lane.MEMORY]


async def test_who_reads_what_was_read_just_now_waits_for_nothing() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        clock.now += FRESH * 2
        for lanes in ((Lane.BLOCK,), tuple(Lane)):
            looking = lab.engine.refresh(*lanes)
            assert looking is not None
            await looking
            assert lab.engine.refresh(*lanes) is None


async def test_nothing_is_announced_when_nothing_is_otherwise() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        lab.reports.clear()
        clock.now += 1
        await lab.engine.observed.fresh(Lane)
        assert lab.reports == []


async def test_a_look_that_a_pass_overtakes_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It began before the pass wrote, and ends after it."""
    async with running(large_host()) as lab:
        began, go_on = threading.Event(), threading.Event()
        read_all = IO_SCHEDULER.read_all

        def slowly(kernel: SimulatedKernel, targets: Sequence[Target]) -> object:
            readings = read_all(kernel, targets)
            if not began.is_set():
                began.set()
                go_on.wait(BOUND)
            return readings

        monkeypatch.setattr(IO_SCHEDULER, "read_all", slowly)
        looking = asyncio.create_task(lab.engine.observed.fresh([Lane.BLOCK], 0))
        assert await asyncio.to_thread(began.wait, BOUND)
        # The pass has a thread of its own, so that it overtakes the look.
        await lab.engine.reconcile("other")
        lab.kernel.disks["sda"].scheduler = "bfq"
        await lab.engine.reconcile("another")
        assert value(lab) == "bfq"
        go_on.set()
        await looking
        assert value(lab) == "bfq"


async def test_a_governor_that_was_not_there_is_looked_for_before_it_is_refused() -> None:
    kernel = large_host()
    async with running(kernel) as lab:
        with pytest.raises(NotSupported):
            await lab.one("cpu-governor", "*", "performance")
        kernel.policies = {"policy0": Policy((0,))}
        assert (await lab.one("cpu-governor", "*", "performance")).state is State.SATISFIED


async def test_a_scheduler_that_was_not_offered_is_looked_for_before_it_is_refused() -> None:
    kernel = large_host()
    async with running(kernel) as lab:
        with pytest.raises(NotOffered):
            await lab.one("io-scheduler", "sda", "adaptive")
        kernel.disks["sda"].offered = (*kernel.disks["sda"].offered, "adaptive")
        edit = await lab.engine.check(request(("io-scheduler", "sda", "adaptive")))
        assert [claim.value for claim in edit.put] == ["adaptive"]


async def test_while_pages_are_made_their_number_is_told() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        gate = held(kernel, POOL)
        (making,) = await begun(lab.set(("hugepages", "2M", 1024)))
        await gate.reached.wait()
        kernel.nodes[0].pools[PAGE].asked = 300
        await lab.engine.observe()
        assert value(lab, "2M") == "300"
        assert await lab.engine.verify() == (), "nobody else is at it"
        gate.free.set()
        await making
        assert await lab.engine.verify() == ()


async def test_a_drive_that_a_pass_is_putting_right_is_nobody_elses_work() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.kernel.disks["sda"].scheduler = "none"
        gate = held(lab.kernel, queue("sda"))
        lab.engine.look_again("drift")
        await gate.reached.wait()
        assert await lab.engine.verify() == ()
        gate.free.set()
        await lab.engine.reconcile("drift")


def told(lab: Lab, instance: str = "sda") -> Outcome:
    """What Describe would say of it."""
    return next(o for o in lab.engine.outcomes_now().values() if o.target.instance == instance)


async def test_what_is_told_of_a_target_goes_with_what_is_read_as_verify_has_it() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        assert told(lab).state is State.SATISFIED
        lab.kernel.disks["sda"].scheduler = "none"
        await lab.engine.observe()
        assert (told(lab).actual, told(lab).reason) == ("none", Reason.CHANGED_BY_OTHERS)
        assert await lab.engine.verify() == (told(lab),)
        assert lab.kernel.disks["sda"].scheduler == "none", "to look is to write nothing"


async def test_a_pool_that_others_raised_is_contested_to_all_who_look() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M", 10))
        lab.kernel.nodes[0].pools[PAGE].asked = 20
        await lab.engine.observe()
        assert told(lab, "2M").state is State.CONTESTED
        assert await lab.engine.verify() == (told(lab, "2M"),)


async def test_a_look_that_finds_a_new_drive_has_it_set() -> None:
    """Its event may come later than whoever asks."""
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "bfq"))
        seen: list[tuple[State, str]] = []

        def note(report: Report) -> None:
            """Ask before the pass begins that the look asks for."""
            if report.cause == "look" and not seen:
                outcome = told(lab, "sdz")
                seen.append((outcome.state, outcome.requested))

        lab.kernel.plug("sdz", offered=("none", "bfq"))
        lab.engine.listeners.append(note)
        await lab.engine.observed.fresh([Lane.BLOCK], 0)
        assert seen == [(State.PLANNED, "bfq")]
        await lab.until(lambda: lab.kernel.disks["sdz"].scheduler == "bfq")


async def test_before_the_boot_pass_a_look_asks_for_none() -> None:
    async with running(large_host(), claims=[claim(Origin.CONFIG, "io-scheduler", "*", "bfq")]) as lab:
        await lab.engine.observe()
        await lab.engine.reconcile("boot", enforce=True)
        assert {report.cause for report in lab.reports if report.outcomes} == {"boot"}


async def test_a_pass_does_not_take_back_what_a_later_look_has_read() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        gate = held(kernel, POOL)
        (making,) = await begun(lab.set(("hugepages", "2M", 64)))
        await gate.reached.wait()
        kernel.plain[SWAPPINESS].value = "7"  # the pass has read it, or will, and not at its end
        await lab.engine.observe()
        gate.free.set()
        await making
        assert (value(lab, "vm.swappiness"), value(lab, "2M")) == ("7", "64")


async def test_a_drive_that_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        go_on = threading.Event()

        def hangs(kernel: SimulatedKernel, targets: Sequence[Target]) -> object:
            go_on.wait(BOUND)
            raise AssertionError("nobody waits for it")

        with monkeypatch.context() as broken:
            broken.setattr(IO_SCHEDULER, "read_all", hangs)
            await asyncio.wait_for(lab.engine.observed.fresh(Lane, 0, 0.05), BOUND / 2)
            assert value(lab) == "mq-deadline", "what was read last"
            await asyncio.wait_for(lab.engine.observed.fresh(Lane, 0, 0.05), BOUND / 2)
            lab.kernel.plain[SWAPPINESS].value = "7"
            await lab.engine.observed.fresh([Lane.MEMORY], 0)
            assert value(lab, "vm.swappiness") == "7", "another lane is read all the same"
            go_on.set()
