"""The slow look: only while something is managed, only where, and at whole multiples of the interval."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kerntune.daemon.drift_timer import DriftTimer
from kerntune.model import State
from tests.unit.lab import Lab, large_host, queue, running

DRIVES = ("io-scheduler", "nvme*", "mq-deadline")


@asynccontextmanager
async def timed(interval: int = 60) -> AsyncIterator[tuple[Lab, DriftTimer]]:
    async with running(large_host()) as lab:
        timer = DriftTimer(lab.engine)
        timer.set(interval)
        lab.engine.listeners.append(timer.update)
        try:
            yield lab, timer
        finally:
            timer.stop()


async def test_nothing_wakes_up_where_nothing_is_managed() -> None:
    async with timed() as (lab, timer):
        await lab.engine.reconcile("boot")
        assert timer._timer is None
        await lab.set(DRIVES)
        assert timer._timer is not None
        await lab.unset(("io-scheduler", "nvme*"))
        assert timer._timer is None


async def test_it_fires_at_whole_multiples_of_the_interval() -> None:
    async with timed(60) as (lab, timer):
        await lab.set(DRIVES)
        assert timer._timer
        due = timer._timer.when()
        assert due % 60 == 0
        assert 0 < due - asyncio.get_running_loop().time() <= 60
        timer.set(7)
        assert timer._timer
        assert timer._timer.when() % 7 == 0


async def test_0_is_never() -> None:
    async with timed(0) as (lab, timer):
        await lab.set(DRIVES)
        assert timer._timer is None


async def test_it_puts_back_what_others_changed_and_says_so() -> None:
    async with timed() as (lab, timer):
        await lab.set(DRIVES)
        lab.kernel.disks["nvme0n1"].scheduler = "none"
        lab.writes()
        lab.reports.clear()
        timer._fire()
        await lab.engine.reconcile("after it")
        assert lab.writes() == [(queue("nvme0n1"), "mq-deadline")]
        ((why, outcome),) = [(report.cause, outcome) for report in lab.reports for outcome in report.outcomes]
        assert why.startswith("drift")
        assert (outcome.before, outcome.actual, outcome.state) == ("none", "mq-deadline", State.SATISFIED)
        assert outcome.detail == "something else had set it to none; it was put back"


async def test_only_lanes_that_manage_something_are_looked_at() -> None:
    async with timed() as (lab, timer):
        await lab.set(DRIVES)
        lab.reports.clear()
        timer._fire()
        await lab.engine.reconcile("after it")
        assert sum(report.cause.startswith("drift") for report in lab.reports) == 1
