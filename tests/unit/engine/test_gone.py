"""What everybody is told of a target that went, and of one that came."""

from __future__ import annotations

from kerntune.model import Outcome, Reason, State
from tests.unit.lab import Lab, large_host, running

DRIVES = ("io-scheduler", "nvme*", "mq-deadline")


async def after(lab: Lab, cause: str) -> tuple[Outcome, ...]:
    """What a pass tells."""
    lab.reports.clear()
    await lab.engine.reconcile(cause)
    return tuple(outcome for report in lab.reports for outcome in report.outcomes)


async def test_a_managed_drive_that_goes_is_told_once() -> None:
    async with running(large_host()) as lab:
        await lab.set(DRIVES)
        lab.kernel.unplug("nvme1n1")
        (outcome,) = await after(lab, "remove nvme1n1")
        assert (outcome.target.instance, outcome.before, outcome.actual) == ("nvme1n1", "mq-deadline", "")
        assert (outcome.state, outcome.reason) == (State.UNSUPPORTED, Reason.NO_SUCH_TARGET)
        assert await after(lab, "again") == ()
        assert lab.engine.troubles == set()


async def test_a_drive_that_comes_is_set_and_told() -> None:
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
