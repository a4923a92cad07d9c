"""A write that the kernel refuses or ignores is not made again at each pass, nor told again."""

from __future__ import annotations

import errno

import pytest

from kerntune.engine.retry import LATER
from kerntune.model import Origin, Reason, State
from tests.unit.lab import Clock, Lab, claim, large_host, queue, running

CLAIMED = claim(Origin.CONFIG, "io-scheduler", "*", "bfq")


async def look(lab: Lab, clock: Clock, seconds: float) -> list[tuple[str, str]]:
    clock.now += seconds
    await lab.engine.reconcile("drift")
    return lab.writes()


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO, 0], ids=["refused", "failed", "ignored"])
async def test_a_configured_value_that_is_in_vain(code: int) -> None:
    clock, kernel = Clock(), large_host()
    if code:
        kernel.refuse[queue("sda")] = code
    else:
        kernel.ignore.add(queue("sda"))
    async with running(kernel, claims=[CLAIMED], clock=clock) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert (queue("sda"), "bfq") in lab.writes()
        (failed,) = (o for o in lab.engine.outcomes.values() if o.target.instance == "sda")
        assert failed.state is not State.SATISFIED
        generation = lab.engine.generation
        for _ in range(5):
            assert await look(lab, clock, LATER / 6) == []
        assert await look(lab, clock, LATER / 6) == [(queue("sda"), "bfq")]
        assert await look(lab, clock, LATER * 1.9) == []
        assert await look(lab, clock, LATER * 0.1) == [(queue("sda"), "bfq")]
        assert lab.engine.generation == generation, "the same failure is no news"
        assert [o for o in lab.engine.outcomes.values() if o.target.instance == "sda"] == [failed]
        assert [outcome.state for outcome in await lab.engine.verify()] == [failed.state]


async def test_it_is_tried_at_once_when_the_drive_offers_more_or_reads_otherwise_or_is_named() -> None:
    clock, kernel = Clock(), large_host()
    kernel.refuse[queue("sda")] = errno.EINVAL
    async with running(kernel, claims=[CLAIMED], clock=clock) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        lab.writes()
        assert await look(lab, clock, 1) == []
        kernel.disks["sda"].offered = (*kernel.disks["sda"].offered, "kyber")
        assert await look(lab, clock, 1) == [(queue("sda"), "bfq")]
        kernel.disks["sda"].scheduler = "none"
        assert await look(lab, clock, 1) == [(queue("sda"), "bfq")]
        assert await look(lab, clock, 1) == []
        await lab.set(("io-scheduler", "*", "bfq"))
        assert lab.writes() == [(queue("sda"), "bfq")]


async def test_a_refused_write_is_no_change() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "bfq"))
        lab.kernel.refuse[queue("sda")] = errno.EIO
        lab.kernel.disks["sda"].scheduler = "none"
        await lab.engine.reconcile("drift", enforce=True)
        answer = await lab.set(("io-scheduler", "*", "bfq"))
        assert not answer.changed
        assert lab.engine.counters["drift_repairs"] == 0, "nothing was repaired"


async def test_a_value_the_kernel_takes_after_all_is_told() -> None:
    clock, kernel = Clock(), large_host()
    kernel.refuse[queue("sda")] = errno.EIO
    async with running(kernel, claims=[CLAIMED], clock=clock) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        kernel.refuse.clear()
        lab.writes()
        assert await look(lab, clock, LATER) == [(queue("sda"), "bfq")]
        (outcome,) = next(report.outcomes for report in reversed(lab.reports) if report.outcomes)
        assert (outcome.target.instance, outcome.state, outcome.reason) == ("sda", State.SATISFIED, Reason.OK)
        assert lab.engine.troubles == set()
