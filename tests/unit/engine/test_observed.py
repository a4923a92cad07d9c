"""What is known: looks are shared, bounded and never older than a pass that has ended; Verify says the same."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kerntune.api.describe import LATE, Host, prepare
from kerntune.engine.observed import FRESH, Observed
from kerntune.engine.results import Result
from kerntune.errors import NotOffered, NotSupported
from kerntune.guard.guard import MemoryGuard
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Lane, Origin, Outcome, Reading, Reason, Report, State, Target
from kerntune.tunables import REGISTRY
from kerntune.tunables.knobs import IO_SCHEDULER
from tests.unit.lab import (
    BOUND,
    PAGE,
    POOL,
    SETTINGS,
    SWAPPINESS,
    Clock,
    Lab,
    begun,
    claim,
    held,
    large_host,
    queue,
    request,
    running,
    small_host,
    told,
)

Change = Callable[[SimulatedKernel], None]


def value(lab: Lab, instance: str = "sda") -> str | None:
    return next(
        reading.value for target, reading in lab.engine.observed.readings.items() if target.instance == instance
    )


def noting(clock: Clock) -> tuple[Observed, list[Lane]]:
    """Return what is known without an engine, and the lanes that are looked at, one for each look."""
    looks: list[Lane] = []

    async def look(lane: Lane) -> Result:
        looks.append(lane)
        await asyncio.sleep(0)
        return Result()

    return Observed({}, look=look, being_set=set, due=lambda _lane: None, clock=clock), looks


async def test_what_others_changed_is_read_though_nothing_is_managed() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        lab.kernel.disks["sda"].scheduler = "none"
        clock.now += FRESH * 1.1
        await lab.engine.observed.fresh([Lane.BLOCK])
        assert value(lab) == "none"
        assert lab.reports[-1].cause == "look"


async def test_readings_of_just_now_serve_and_those_who_ask_share_a_look() -> None:
    observed, looks = noting(clock := Clock())
    await observed.read_all()
    looks.clear()
    clock.now += FRESH / 2
    await observed.fresh([Lane.BLOCK])
    assert looks == []
    clock.now += FRESH
    await asyncio.gather(*(observed.fresh([Lane.BLOCK]) for _ in range(20)))
    assert looks == [Lane.BLOCK]
    await observed.fresh(Lane)
    assert sorted(looks) == [Lane.BLOCK, Lane.CPU, Lane.MEMORY]


async def test_who_reads_what_was_read_just_now_waits_for_nothing() -> None:
    observed, _ = noting(Clock())
    for lanes in ((Lane.BLOCK,), tuple(Lane)):
        looking = observed.refresh(*lanes)
        assert looking is not None
        await looking
        assert observed.refresh(*lanes) is None


async def test_nothing_is_published_when_nothing_is_otherwise() -> None:
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


async def test_while_pages_are_made_their_number_is_shown() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        gate = held(kernel, POOL)
        (making,) = await begun(lab.set(("hugepages", "2M", 1024)))
        await gate.reached.wait()
        kernel.nodes[0].pools[PAGE].asked = 300
        await lab.engine.observed.read_all()
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
        await lab.engine.observed.fresh([Lane.BLOCK], 0, None)
        assert value(lab) == "none"
        assert outcome_now(lab).state is State.SATISFIED, "as of the last pass: nobody is blamed"
        gate.free.set()
        await lab.engine.reconcile("drift")


def outcome_now(lab: Lab, instance: str = "sda") -> Outcome:
    """What Describe would say of it."""
    return next(o for o in lab.engine.observed.outcomes_now().values() if o.target.instance == instance)


async def test_what_is_said_of_a_target_goes_with_what_is_read_as_verify_has_it() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        assert outcome_now(lab).state is State.SATISFIED
        lab.kernel.disks["sda"].scheduler = "none"
        await lab.engine.observed.read_all()
        assert (outcome_now(lab).actual, outcome_now(lab).reason) == ("none", Reason.CHANGED_BY_OTHERS)
        assert await lab.engine.verify() == (outcome_now(lab),)
        assert lab.kernel.disks["sda"].scheduler == "none", "to look is to write nothing"


async def test_a_pool_that_others_raised_is_contested_to_all_who_look() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M", 10))
        lab.kernel.nodes[0].pools[PAGE].asked = 20
        await lab.engine.observed.read_all()
        assert outcome_now(lab, "2M").state is State.CONTESTED
        assert await lab.engine.verify() == (outcome_now(lab, "2M"),)


async def test_a_look_that_finds_a_new_drive_has_it_set() -> None:
    """Its event may come later than whoever asks."""
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "bfq"))
        seen: list[tuple[State, str]] = []

        def note(report: Report) -> None:
            """Ask before the pass begins that the look asks for."""
            if report.cause == "look" and not seen:
                outcome = outcome_now(lab, "sdz")
                seen.append((outcome.state, outcome.requested))

        lab.kernel.plug("sdz", offered=("none", "bfq"))
        lab.engine.observed.listeners.append(note)
        await lab.engine.observed.fresh([Lane.BLOCK], 0)
        assert seen == [(State.PLANNED, "bfq")]
        await lab.until(lambda: lab.kernel.disks["sdz"].scheduler == "bfq")


async def test_before_the_boot_pass_a_look_asks_for_none() -> None:
    async with running(large_host(), claims=[claim(Origin.CONFIG, "io-scheduler", "*", "bfq")]) as lab:
        await lab.engine.observed.read_all()
        await lab.engine.reconcile("boot", enforce=True)
        assert {report.cause for report in lab.reports if report.outcomes} == {"boot"}


async def test_a_pass_does_not_take_back_what_a_later_look_has_read() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        gate = held(kernel, SWAPPINESS)
        (making,) = await begun(lab.set(("sysctl", "vm.swappiness", 7)))
        await gate.reached.wait()
        kernel.nodes[0].pools[PAGE].asked = 30  # the pass has read the pools before, and writes none
        await lab.engine.observed.read_all()
        gate.free.set()
        await making
        assert (value(lab, "2M"), value(lab, "vm.swappiness")) == ("30", "7")


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


async def test_values_are_told_as_old_while_nobody_waits_for_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(large_host()) as lab:
        go_on, read_all = threading.Event(), IO_SCHEDULER.read_all

        def slow(kernel: SimulatedKernel, targets: Sequence[Target]) -> dict[Target, Reading]:
            go_on.wait(BOUND)
            return read_all(kernel, targets)

        monkeypatch.setattr(IO_SCHEDULER, "read_all", slow)
        await lab.engine.observed.fresh([Lane.BLOCK], 0, 0.05)
        assert told_as_old(lab) == {"io-scheduler", "read-ahead"}
        go_on.set()
        await lab.engine.observed.fresh([Lane.BLOCK], 0, None)
        assert told_as_old(lab) == set()


def told_as_old(lab: Lab) -> set[str]:
    """Return the tunables of which Describe says that their values may be old."""
    guard = MemoryGuard(lab.kernel, Path("/nonexistent"), lambda *_told: None)
    host = Host("6.1", "/", True, 2 << 20)
    head, _ = prepare(lab.engine.observed, lab.engine.edits, guard, host, degraded=(), profile="")
    return {row["name"] for row in head["tunables"] if row["detail"] == LATE}


# Looking and verifying


# Looking


async def test_looking_writes_nothing() -> None:
    kernel = large_host()
    async with running(kernel) as lab:
        there = {tunable.name for tunable in REGISTRY} - {"cpu-governor", "cpu-epp"}
        assert {target.tunable for target in lab.engine.observed.readings} == there
        assert lab.engine.observed.memory is not None
        assert "cpu-governor" in lab.engine.observed.missing
        await lab.engine.reconcile("boot", enforce=True)
        assert (kernel.journal, lab.engine.observed.outcomes, lab.engine.observed.generation) == ([], {}, 0)


async def test_a_drive_that_came_a_moment_ago_is_found() -> None:
    async with running(large_host()) as lab:
        lab.kernel.plug("nvme7n1")
        assert (await lab.one("io-scheduler", "nvme7n1", "mq-deadline")).state is State.SATISFIED


# Verifying


async def test_verifying_a_host_that_is_as_it_should_be() -> None:
    async with running(large_host()) as lab:
        assert await lab.engine.verify() == ()
        await lab.set(*SETTINGS)
        lab.writes()
        assert await lab.engine.verify() == ()
        assert lab.writes() == []


@pytest.mark.parametrize(
    ("change", "target", "actual"),
    [
        (lambda kernel: setattr(kernel.disks["sda"], "scheduler", "none"), "io-scheduler@sda", "none"),
        (lambda kernel: setattr(kernel.nodes[0].pools[PAGE], "asked", 1), "hugepages@2M", "51"),
    ],
    ids=["scheduler", "pages"],
)
async def test_verifying_a_host_that_others_changed(change: Change, target: str, actual: str) -> None:
    async with running(large_host()) as lab:
        await lab.set(*SETTINGS)
        lab.writes()
        change(lab.kernel)
        (found,) = await lab.engine.verify()
        assert (str(found.target), found.actual, found.state, found.reason) == (
            target,
            actual,
            State.FAILED,
            Reason.CHANGED_BY_OTHERS,
        )
        assert lab.writes() == []


def short(kernel: SimulatedKernel) -> None:
    for node in kernel.nodes:
        node.whole = 5 * PAGE


def nothing(_kernel: SimulatedKernel) -> None:
    pass


def refusing(kernel: SimulatedKernel) -> None:
    kernel.refuse[queue("sda")] = errno.EIO


@pytest.mark.parametrize(
    ("before", "setting", "after_it", "found"),
    [
        (short, ("hugepages", "2M", 100), nothing, ("2M", "10", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)),
        (
            refusing,
            ("io-scheduler", "*", "kyber"),
            nothing,
            ("sda", "mq-deadline", State.FAILED, Reason.KERNEL_REJECTED),
        ),
        (
            nothing,
            ("io-scheduler", "sda", "bfq"),
            lambda kernel: kernel.unplug("sda"),
            ("sda", "", State.UNSUPPORTED, Reason.NO_SUCH_TARGET),
        ),
    ],
    ids=["could not be had", "refused", "gone"],
)
async def test_verifying_what_is_nobody_elses_work_does_not_blame_others(
    before: Change, setting: tuple[str, str, str | int], after_it: Change, found: tuple[object, ...]
) -> None:
    async with running(large_host()) as lab:
        before(lab.kernel)
        await lab.set(setting, partial=True)
        after_it(lab.kernel)
        assert [told(outcome) for outcome in await lab.engine.verify()] == [found]


# Targets that come and go


DRIVES = ("io-scheduler", "nvme*", "mq-deadline")


async def after(lab: Lab, cause: str) -> tuple[Outcome, ...]:
    """Return what a pass publishes."""
    lab.reports.clear()
    await lab.engine.reconcile(cause)
    return tuple(outcome for report in lab.reports for outcome in report.outcomes)


async def test_a_managed_drive_that_goes_is_published_once() -> None:
    async with running(large_host()) as lab:
        await lab.set(DRIVES)
        lab.kernel.unplug("nvme1n1")
        (outcome,) = await after(lab, "remove nvme1n1")
        assert (outcome.target.instance, outcome.before, outcome.actual) == ("nvme1n1", "mq-deadline", "")
        assert (outcome.state, outcome.reason) == (State.UNSUPPORTED, Reason.NO_SUCH_TARGET)
        assert await after(lab, "again") == ()
        assert lab.engine.observed.troubles == set()


async def test_a_drive_that_comes_is_set_and_published() -> None:
    async with running(large_host()) as lab:
        await lab.set(DRIVES)
        lab.kernel.unplug("nvme1n1")
        await lab.engine.reconcile("remove nvme1n1")
        lab.kernel.plug("nvme1n1")
        (outcome,) = await after(lab, "add nvme1n1")
        assert (outcome.before, outcome.actual, outcome.state) == ("none", "mq-deadline", State.SATISFIED)


async def test_a_drive_nobody_manages_comes_and_goes_without_a_word() -> None:
    async with running(large_host()) as lab:
        lab.kernel.plug("nvme7n1")
        assert await after(lab, "add nvme7n1") == ()
        lab.kernel.unplug("nvme7n1")
        assert await after(lab, "remove nvme7n1") == ()


async def test_the_last_drive_of_a_pattern_leaves_the_pattern() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sd*", "bfq"))
        lab.kernel.unplug("sda")
        pattern, drive = await after(lab, "remove sda")
        assert (pattern.target.instance, pattern.reason) == ("sd*", Reason.NO_SUCH_TARGET)
        assert (drive.target.instance, drive.reason) == ("sda", Reason.NO_SUCH_TARGET)
