"""Repair puts right now what is managed: what drifted, what waits for another try, and what is contested."""

from __future__ import annotations

import asyncio
import errno

import pytest

from kerntune.errors import Failed
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Lane, Outcome, Reason, State
from tests.unit.engine.test_drift import contested
from tests.unit.lab import (
    BOUND,
    MANY_PAGES,
    Clock,
    Lab,
    begun,
    ends,
    held,
    large_host,
    pages,
    queue,
    running,
    slow_pools,
    small_host,
)


def rows(outcomes: tuple[Outcome, ...]) -> list[tuple[str, str, str, State]]:
    return [(str(one.target), one.before, one.actual, one.state) for one in outcomes]


async def repaired(lab: Lab) -> tuple[bool, list[tuple[str, str, str, State]]]:
    answer = await lab.engine.repair("Repair")
    return answer.changed, rows(answer.outcomes)


async def test_what_is_contested_is_set_once_more() -> None:
    async with contested() as (lab, _):
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
        answer = await lab.engine.repair("Repair")
        assert (answer.changed, rows(answer.outcomes)) == (
            True,
            [("io-scheduler@sda", "mq-deadline", "bfq", State.SATISFIED)],
        )
        assert answer.outcomes[0].detail == "put back, it was mq-deadline"
        assert (await lab.engine.verify(), lab.engine.observed.troubles) == ((), set())


async def test_what_others_changed_is_put_back_also_where_drift_is_only_reported() -> None:
    async with running(large_host()) as lab:
        await lab.set(("overcommit", "", "always:95"), ("io-scheduler", "sda", "bfq"), ("sysctl", "vm.swappiness", 1))
        lab.kernel.overcommit["memory"] = 0
        await lab.engine.reconcile("timer")
        lab.kernel.disks["sda"].scheduler = "none"
        assert {str(one.target) for one in await lab.engine.verify()} == {"overcommit", "io-scheduler@sda"}
        changed, found = await repaired(lab)
        assert (changed, sorted(found)) == (
            True,
            [
                ("io-scheduler@sda", "none", "bfq", State.SATISFIED),
                ("overcommit", "heuristic", "always:95", State.SATISFIED),
            ],
        )
        assert await lab.engine.verify() == ()
        lab.writes()
        assert await repaired(lab) == (False, [])
        assert lab.writes() == []


async def test_what_waits_for_its_next_try_is_tried_now() -> None:
    """A claim that the kernel refused, and a value that is owed to the host."""
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        lab.kernel.refuse = {queue("sda"): errno.EIO}
        await lab.set(("io-scheduler", "*", "bfq"))
        await lab.set(("read-ahead", "sda", 512))
        lab.kernel.refuse |= {"sys/block/sda/queue/read_ahead_kb": errno.EIO}
        await lab.unset(("read-ahead", "sda"))
        await lab.engine.reconcile("timer")
        lab.writes()
        await lab.engine.reconcile("timer")
        assert lab.writes() == []  # both wait
        assert [state for *_, state in (await repaired(lab))[1]] == [State.FAILED, State.FAILED]
        assert {path for path, _ in lab.writes()} == {queue("sda"), "sys/block/sda/queue/read_ahead_kb"}
        lab.kernel.refuse = {}
        assert await repaired(lab) == (
            True,
            [
                ("io-scheduler@sda", "mq-deadline", "bfq", State.SATISFIED),
                ("read-ahead@sda", "512", "128", State.UNMANAGED),
            ],
        )
        assert not lab.engine.edits.store.baselines.keys() & {
            t for t in lab.engine.observed.readings if "read" in t.tunable
        }


async def test_what_cannot_be_put_right_is_answered_as_verify_does() -> None:
    async with running(large_host()) as lab:
        lab.kernel.policies = {"policy0": Policy((0, 1), "performance", epp="power")}
        await lab.engine.observed.read_all()
        await lab.set(("cpu-epp", "*", "power"), ("io-scheduler", "vd*", "bfq"))
        changed, found = await repaired(lab)
        assert not changed
        assert found == rows(await lab.engine.verify())
        assert {state for *_, state in found} == {State.UNSUPPORTED}


async def test_it_reads_no_claim_anew_and_is_refused_when_the_daemon_stops() -> None:
    async with running(large_host()) as lab:
        await lab.engine.put_back(5)
        with pytest.raises(Failed, match="kerntuned is stopping"):
            await lab.engine.repair("Repair")


async def emptied(lab: Lab, kernel: SimulatedKernel) -> asyncio.Event:
    """Claim many pages, take them away by other hands, and return the event that a slow write begins with."""
    await lab.set(("hugepages", "2M", MANY_PAGES))
    for node in kernel.nodes:
        node.pools[2 << 20].asked = 0
    return slow_pools(kernel)


async def test_a_caller_who_leaves_ends_it_and_the_claims_stay() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        begins = await emptied(lab, kernel)
        repairing = asyncio.ensure_future(lab.engine.repair("Repair", endable=True))
        await asyncio.wait_for(begins.wait(), 10)
        repairing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await repairing
        kernel.pace, kernel.before_write = 0.0, None
        await lab.until(lambda: any(one.reason is Reason.INTERRUPTED for one in lab.engine.observed.outcomes.values()))
        assert pages(kernel)[0] < MANY_PAGES
        assert lab.claims == [f"runtime:hugepages@2M={MANY_PAGES}"]
        assert (await repaired(lab))[0]
        assert pages(kernel) == [MANY_PAGES]


async def test_a_caller_who_leaves_before_its_pass_begins_has_nothing_put_back() -> None:
    async with running(large_host(), clock=Clock()) as lab:
        lab.kernel.refuse = {queue("sda"): errno.EIO}
        await lab.set(("io-scheduler", "*", "bfq"))
        lab.writes()
        gate = held(lab.kernel, queue("nvme0n1"))
        (setting,) = await begun(lab.set(("io-scheduler", "nvme0n1", "none")))
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        (repairing,) = await begun(lab.engine.repair("Repair", endable=True))
        repairing.cancel()
        await ends(repairing)
        gate.free.set()
        await setting
        await lab.engine.reconcile("timer")  # it shares the pass that the repair has asked for, or comes after it
        assert queue("sda") not in {path for path, _ in lab.writes()}


async def test_an_event_that_shares_the_pass_of_a_caller_who_leaves_is_served() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        begins = await emptied(lab, kernel)
        (repairing,) = await begun(lab.engine.repair("Repair", endable=True))
        lab.engine.look_again("uevent", [Lane.MEMORY])
        await asyncio.wait_for(begins.wait(), BOUND)
        repairing.cancel()
        await ends(repairing)
        kernel.pace, kernel.before_write = 0.0, None
        await lab.until(lambda: lab.reports[-1].cause == "uevent")
        assert "Repair, uevent" in [report.cause for report in lab.reports]


@pytest.mark.parametrize("drifted", [False, True])
async def test_what_another_call_sets_in_the_same_pass_was_not_put_back(drifted: bool) -> None:
    async with running(large_host()) as lab:
        await lab.set(("sysctl", "vm.swappiness", 1))
        gate = held(lab.kernel, queue("nvme0n1"))
        (first,) = await begun(lab.set(("io-scheduler", "nvme0n1", "bfq")))
        await asyncio.wait_for(gate.reached.wait(), BOUND)
        if drifted:
            lab.kernel.plain["proc/sys/vm/swappiness"].value = "60"
        other, repairing = await begun(lab.set(("io-scheduler", "sda", "bfq")), lab.engine.repair("Repair"))
        gate.free.set()
        answer = await repairing
        found = [str(one.target) for one in answer.outcomes]
        assert (answer.changed, found) == (drifted, ["sysctl@vm.swappiness"] * drifted)
        assert all(one.changed for one in (await first, await other))


async def test_a_lane_that_fails_is_the_error_of_it() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.kernel.disks["sda"].scheduler = "none"
        lab.store.baselines = {}
        lab.store.full = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(Failed, match="cannot be saved"):
            await lab.engine.repair("Repair")
        lab.store.full = None
