"""When somebody else changes a value: put it right, report it, or stop fighting."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kerntune.engine.retry import WINDOW, DriftLog
from kerntune.errors import Failed
from kerntune.kernel.files import KernelError
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Outcome, Reason, State, Target
from tests.unit.lab import (
    FULL,
    PAGE,
    VM,
    Clock,
    Lab,
    have_pages,
    large_host,
    node_pool,
    pages,
    queue,
    running,
    small_host,
)

CONTESTED = (State.CONTESTED, Reason.CHANGED_BY_OTHERS)
OVERCOMMIT, WHOLE = Target("overcommit"), Target("hugepages", "2M")


def outcome_of(lab: Lab, instance: str) -> Outcome:
    return next(outcome for target, outcome in lab.engine.observed.outcomes.items() if target.instance == instance)


async def fight(lab: Lab, clock: Clock, times: int, *, every: float = 60.0, device: str = "sda") -> None:
    """Somebody sets the drive back so often, and we look each time."""
    for _ in range(times):
        clock.now += every
        lab.kernel.disks[device].scheduler = "mq-deadline"
        await lab.engine.reconcile("timer")


@asynccontextmanager
async def contested() -> AsyncIterator[tuple[Lab, Clock]]:
    """A drive that is to have bfq, and whose scheduler others have set back four times."""
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        await fight(lab, clock, 4)
        yield lab, clock


async def test_a_changed_scheduler_is_put_right_three_times_in_ten_minutes() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        await fight(lab, clock, 3)
        assert lab.writes() == [(queue("sda"), "bfq")] * 3
        await fight(lab, clock, 1)
        assert lab.writes() == []
        outcome = outcome_of(lab, "sda")
        assert (outcome.state, outcome.reason) == CONTESTED
        assert (outcome.requested, outcome.actual) == ("bfq", "mq-deadline")
        assert lab.engine.observed.troubles == {Reason.CHANGED_BY_OTHERS}


async def test_one_that_is_contested_leaves_the_others_alone() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await lab.set(("io-scheduler", "*", "bfq"))
        await fight(lab, clock, 4)
        lab.writes()
        lab.kernel.disks["nvme0n1"].scheduler = "none"
        await lab.engine.reconcile("timer")
        assert lab.writes() == [(queue("nvme0n1"), "bfq")]
        assert outcome_of(lab, "sda").state is State.CONTESTED


async def test_contested_is_until_somebody_names_it_and_not_until_time_has_gone() -> None:
    async with contested() as (lab, clock):
        lab.writes()
        clock.now += 24 * 3600
        await lab.engine.reconcile("timer")
        await lab.set(("io-scheduler", "nvme0n1", "mq-deadline"))
        assert [path for path, _ in lab.writes()] == [queue("nvme0n1")]
        assert outcome_of(lab, "sda").state is State.CONTESTED
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"


async def test_repairs_far_apart_are_no_fight() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        await fight(lab, clock, 8, every=301.0)
        assert lab.writes() == [(queue("sda"), "bfq")] * 8
        assert lab.engine.observed.counters == {"hotplug_events": 0, "drift_repairs": 8}


async def test_a_repair_counts_although_its_pass_fails_later() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "*", "bfq"))
        lab.kernel.disks["sda"].scheduler = "none"
        lab.store.full = FULL  # so that the next tunable of the lane cannot save what it finds
        with pytest.raises(Failed, match="cannot be saved"):
            await lab.set(("read-ahead", "*", 512))
        lab.store.full = None
        await lab.engine.reconcile("later")
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        assert lab.engine.observed.counters["drift_repairs"] == 1


@pytest.mark.parametrize("pattern", ["sda", "*", "sd?"])
async def test_a_set_that_names_it_forgives(pattern: str) -> None:
    async with contested() as (lab, clock):
        lab.writes()
        answer = await lab.set(("io-scheduler", pattern, "bfq"))
        assert {o.target.instance: o.state for o in answer.outcomes}["sda"] is State.SATISFIED
        assert (queue("sda"), "bfq") in lab.writes()
        assert answer.changed
        await fight(lab, clock, 3)
        assert lab.kernel.disks["sda"].scheduler == "bfq"


async def test_a_reload_forgives() -> None:
    async with contested() as (lab, _):
        await lab.engine.reconcile("Reload", enforce=True)
        assert lab.kernel.disks["sda"].scheduler == "bfq"
        assert outcome_of(lab, "sda").state is State.SATISFIED


async def test_what_is_contested_is_released_as_anything_else() -> None:
    async with contested() as (lab, _):
        lab.kernel.disks["sda"].scheduler = "kyber"
        await lab.unset(("io-scheduler", "sda"))
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
        assert lab.engine.observed.outcomes == {}


async def test_when_the_others_give_in_it_is_satisfied() -> None:
    async with contested() as (lab, _):
        lab.kernel.disks["sda"].scheduler = "bfq"
        await lab.engine.reconcile("timer")
        assert outcome_of(lab, "sda").state is State.SATISFIED


async def test_looking_and_rehearsing_are_no_repairs() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.kernel.disks["sda"].scheduler = "none"
        for _ in range(10):
            await lab.engine.verify()
        lab.writes()
        await lab.engine.reconcile("timer")
        assert lab.writes() == [(queue("sda"), "bfq")]


async def test_overcommit_of_others_is_reported_and_not_written() -> None:
    async with running(small_host()) as lab:
        await lab.set(("overcommit", "", "always:95"))
        lab.writes()
        lab.kernel.overcommit["memory"] = 0
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        outcome = lab.engine.observed.outcomes[OVERCOMMIT]
        assert (outcome.state, outcome.reason) == CONTESTED
        assert "set overcommit to heuristic" in outcome.detail
        assert (await lab.one("overcommit", "", "always:95")).state is State.SATISFIED
        assert lab.writes() == [(f"{VM}memory", "1")]


async def test_pages_above_the_desired_number_are_reported_and_not_taken() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M", 100))
        lab.writes()
        lab.kernel.nodes[0].pools[PAGE].asked = 150
        await lab.engine.reconcile("timer")
        assert (lab.writes(), pages(lab.kernel)) == ([], [150])
        outcome = lab.engine.observed.outcomes[WHOLE]
        assert (outcome.state, outcome.reason, outcome.actual) == (*CONTESTED, "150")
        await lab.set(("overcommit", "", "always"))
        assert pages(lab.kernel) == [150]
        await lab.set(("hugepages", "2M", 100))
        assert pages(lab.kernel) == [100]


async def test_pages_below_the_desired_number_are_put_right() -> None:
    async with running(small_host()) as lab:
        await lab.set(("hugepages", "2M", 100))
        lab.kernel.nodes[0].pools[PAGE].asked = 50
        await lab.engine.reconcile("timer")
        assert pages(lab.kernel) == [100]
        assert lab.engine.observed.outcomes[WHOLE].state is State.SATISFIED


async def test_pages_that_moved_between_nodes_are_still_as_many() -> None:
    async with running(large_host()) as lab:
        await lab.set(("hugepages", "2M", 100))
        lab.kernel.nodes[0].pools[PAGE].asked, lab.kernel.nodes[1].pools[PAGE].asked = 30, 70
        lab.writes()
        await lab.engine.reconcile("timer")
        assert lab.writes() == []
        assert lab.engine.observed.outcomes[WHOLE].state is State.SATISFIED


async def test_one_contested_node_leaves_its_page_size_alone() -> None:
    """The pools of a page size are one plan: repairing one node would undo the other."""
    async with running(large_host()) as lab:
        await lab.set(("hugepages", "2M/*", 50))
        lab.kernel.nodes[0].pools[PAGE].asked = 80
        lab.kernel.nodes[1].pools[PAGE].asked = 20
        lab.writes()
        await lab.engine.reconcile("timer")
        assert node_pool(0) not in [path for path, _ in lab.writes()]
        assert outcome_of(lab, "2M/node0").state is State.CONTESTED


@pytest.mark.parametrize("wanted", ["heuristic", "always:50"])
async def test_what_was_set_after_a_crash_is_put_right_at_boot(wanted: str) -> None:
    """`enforce`: at boot even what is else only reported is written."""
    kernel: SimulatedKernel = small_host()
    have_pages(kernel, 0)
    async with running(kernel) as lab:
        await lab.set(("overcommit", "", wanted), ("hugepages", "2M", 10))
        lab.kernel.overcommit["memory"] = 2 if wanted == "heuristic" else 0
        lab.kernel.nodes[0].pools[PAGE].asked = 30
        await lab.engine.reconcile("boot", enforce=True)
        assert lab.kernel.overcommit["memory"] == (0 if wanted == "heuristic" else 1)
        assert pages(kernel) == [10]


async def both_nodes_contested(lab: Lab) -> None:
    await lab.set(("hugepages", "2M/node0", 50))
    await lab.set(("hugepages", "2M/node1", 50))
    lab.kernel.nodes[0].pools[PAGE].asked = lab.kernel.nodes[1].pools[PAGE].asked = 80
    await lab.engine.reconcile("timer")
    assert {o.state for o in lab.engine.observed.outcomes.values()} == {State.CONTESTED}
    lab.writes()


async def test_a_set_of_one_node_is_carried_out_though_the_other_is_contested() -> None:
    async with running(large_host()) as lab:
        await both_nodes_contested(lab)
        assert (await lab.one("hugepages", "2M/node0", 20)).state is State.SATISFIED
        assert pages(lab.kernel)[0] == 20


async def test_a_release_of_one_node_is_carried_out_though_the_other_is_contested() -> None:
    kernel = large_host()
    have_pages(kernel, 12, 34)
    async with running(kernel) as lab:
        await both_nodes_contested(lab)
        await lab.unset(("hugepages", "2M/node0"))
        assert pages(kernel)[0] == 12
        await lab.unset(("hugepages", "2M/node1"))
        assert pages(kernel) == [12, 34]
        assert not lab.store.baselines


async def test_a_contested_total_is_not_forgiven_by_its_nodes_baselines() -> None:
    async with running(large_host()) as lab:
        await lab.set(("hugepages", "2M", 100))
        lab.kernel.nodes[0].pools[PAGE].asked = 90
        lab.writes()
        for _ in range(2):
            await lab.engine.reconcile("timer")
        assert lab.writes() == []
        assert lab.engine.observed.outcomes[WHOLE].state is State.CONTESTED


# What is away, and what kerntuned moves itself, is no work of others


def cpus(*, epp: str = "") -> SimulatedKernel:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0,), epp=epp), "policy1": Policy((1,), epp=epp)}
    return kernel


async def test_a_cpu_that_goes_and_comes_is_never_contested() -> None:
    clock, kernel = Clock(), cpus()
    async with running(kernel, clock=clock) as lab:
        await lab.set(("cpu-governor", "*", "performance"))
        policy = kernel.policies["policy1"]
        for _ in range(6):
            clock.now += 30
            policy.online = False
            await lab.engine.reconcile("offline cpu1")
            away = outcome_of(lab, "policy1")
            assert (away.state, away.reason) == (State.UNSUPPORTED, Reason.CPU_OFFLINE)
            # It may come back with a governor of its own.
            policy.online, policy.governor = True, "schedutil"
            await lab.engine.reconcile("online cpu1")
            assert policy.governor == "performance"
            assert outcome_of(lab, "policy1").state is State.SATISFIED
        assert lab.engine.observed.counters["drift_repairs"] == 0
        assert lab.engine.observed.troubles == set()


async def test_a_drive_that_cannot_be_read_for_a_while_is_never_contested(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        read = SimulatedKernel.read

        def fails(self: SimulatedKernel, path: str) -> str:
            if path == queue("sda"):
                raise KernelError(errno.EIO, os.strerror(errno.EIO), path)
            return read(self, path)

        for _ in range(6):
            clock.now += 30
            with monkeypatch.context() as broken:
                broken.setattr(SimulatedKernel, "read", fails)
                await lab.engine.reconcile("drift")
                assert outcome_of(lab, "sda").reason is Reason.DEVICE_GONE
            lab.kernel.disks["sda"].scheduler = "none"
            await lab.engine.reconcile("drift")
            assert (lab.kernel.disks["sda"].scheduler, outcome_of(lab, "sda").state) == ("bfq", State.SATISFIED)
        assert lab.engine.observed.counters["drift_repairs"] == 0


async def test_what_was_contested_is_set_when_it_has_been_away() -> None:
    clock, kernel = Clock(), cpus()
    async with running(kernel, clock=clock) as lab:
        await lab.set(("cpu-governor", "policy1", "performance"))
        for _ in range(4):
            clock.now += 60
            kernel.policies["policy1"].governor = "powersave"
            await lab.engine.reconcile("drift")
        assert outcome_of(lab, "policy1").state is State.CONTESTED
        kernel.policies["policy1"].online = False
        await lab.engine.reconcile("offline cpu1")
        kernel.policies["policy1"].online = True
        await lab.engine.reconcile("online cpu1")
        assert kernel.policies["policy1"].governor == "performance"


async def test_a_preference_that_moves_with_the_governor_is_no_work_of_others() -> None:
    kernel = cpus(epp="balance_performance")
    async with running(kernel) as lab:
        await lab.set(("cpu-governor", "*", "performance"), ("cpu-epp", "*", "performance"))
        for governor in ("schedutil", "performance", "powersave", "performance", "schedutil"):
            lab.reports.clear()
            await lab.set(("cpu-governor", "1", governor))
            assert kernel.policies["policy1"].preference == "performance"
            assert not any("something else" in o.detail for report in lab.reports for o in report.outcomes)
        assert lab.engine.observed.counters["drift_repairs"] == 0


async def test_pages_that_stay_when_less_may_be_borrowed_are_no_work_of_others() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 10), ("hugepages-overcommit", "2M", 20))
        kernel.nodes[0].pools[PAGE].used = 15
        await lab.engine.reconcile("drift")
        await lab.set(("hugepages-overcommit", "2M", 2))
        await lab.engine.reconcile("drift")
        assert lab.engine.observed.outcomes[WHOLE].reason is Reason.PAGES_IN_USE
        assert lab.engine.observed.counters["drift_repairs"] == 0


def test_repairs_of_long_ago_take_no_room() -> None:
    drift = DriftLog()
    for number in range(5000):
        drift.repaired(Target("io-scheduler", f"sd{number}", str(number)), float(number))
    assert len(drift) <= WINDOW
