"""What the host's own value is owed: published at once, tried again with longer and longer waits, until it is back."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from dataclasses import replace

import pytest

from kerntune.engine.claims import NOTHING_CHOSEN, FilesEdit
from kerntune.engine.retry import LONGEST_WAIT, SOON
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Lane, Outcome, Reason, State, Target
from tests.unit.lab import (
    BOUND,
    COMPACT,
    FULL,
    PAGE,
    POOL,
    Clock,
    Lab,
    have_pages,
    large_host,
    look,
    node_pool,
    pages,
    queue,
    running,
    small_host,
    told,
)

SDA = Target("io-scheduler", "sda")
GOVERNOR = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"


def only(lab: Lab) -> Outcome:
    (outcome,) = lab.engine.observed.outcomes.values()
    return outcome


def last(lab: Lab) -> Sequence[Outcome]:
    """Return what was published last; a look at all lanes makes a report of each."""
    return next(report.outcomes for report in reversed(lab.reports) if report.outcomes)


async def owed(lab: Lab, code: int = errno.EIO) -> Outcome:
    """The drive's own mq-deadline cannot be put back in place of bfq."""
    await lab.set(("io-scheduler", "sda", "bfq"))
    lab.kernel.refuse[queue("sda")] = code
    lab.writes()
    (outcome,) = (await lab.unset(("io-scheduler", "sda"))).outcomes
    lab.writes()
    return outcome


@pytest.mark.parametrize("code", [errno.EIO, errno.EBUSY, errno.EROFS, errno.EINVAL])
async def test_a_value_that_cannot_be_put_back_is_published_and_kept(code: int) -> None:
    async with running(large_host(), clock=Clock()) as lab:
        outcome = await owed(lab, code)
        assert (outcome.state, outcome.actual, outcome.requested) == (State.FAILED, "bfq", "mq-deadline")
        assert outcome.is_owed
        assert "the host's own value is owed, and tried again until it is back" in outcome.detail
        assert list(lab.store.baselines.values()) == ["mq-deadline"]
        assert only(lab) == outcome
        assert outcome.reason in lab.engine.observed.troubles
        assert lab.claims == []


async def test_it_is_tried_again_after_longer_and_longer_waits_and_published_once() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await owed(lab)
        generation, wait = lab.engine.observed.generation, SOON
        for _ in range(4):
            assert await look(lab, clock, wait * 0.9) == []
            assert await look(lab, clock, wait * 0.1) == [(queue("sda"), "mq-deadline")]
            wait *= 2
        assert lab.engine.observed.generation == generation, "a try in vain is no change"
        lab.kernel.refuse.clear()
        assert await look(lab, clock, wait) == [(queue("sda"), "mq-deadline")]
        assert (lab.engine.observed.outcomes, lab.store.baselines) == ({}, {})
        assert [(o.target.instance, o.actual, o.state) for o in last(lab)] == [("sda", "mq-deadline", State.UNMANAGED)]
        assert await look(lab, clock, LONGEST_WAIT) == []


async def test_a_timer_tries_again_where_nothing_else_looks() -> None:
    async with running(large_host()) as lab:
        await owed(lab)
        lab.kernel.refuse.clear()
        await lab.until(lambda: not lab.engine.observed.outcomes)
        assert lab.kernel.disks["sda"].scheduler == "mq-deadline"
        assert "retry" in [report.cause for report in lab.reports if report.outcomes]


async def test_what_somebody_else_writes_stays_and_ends_the_debt() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await owed(lab)
        lab.kernel.refuse.clear()
        lab.kernel.disks["sda"].scheduler = "none"
        lab.writes()
        assert await look(lab, clock, 0.1) == []
        (outcome,) = last(lab)
        assert (outcome.actual, outcome.state, outcome.reason) == ("none", State.UNMANAGED, Reason.CHANGED_BY_OTHERS)
        assert "something else set io-scheduler@sda to none, and that stays" in outcome.detail
        assert (lab.engine.observed.outcomes, lab.store.baselines) == ({}, {})
        count = len(lab.reports)
        assert await look(lab, clock, LONGEST_WAIT) == []
        assert not any(report.outcomes for report in lab.reports[count:]), "published once"


async def test_somebody_else_who_puts_it_back_pays_the_debt() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await owed(lab)
        lab.kernel.disks["sda"].scheduler = "mq-deadline"
        assert await look(lab, clock, 0.1) == []
        (outcome,) = last(lab)
        assert (outcome.state, outcome.reason) == (State.UNMANAGED, Reason.OK)
        assert lab.store.baselines == {}


async def test_a_new_claim_ends_the_debt_and_the_next_release_puts_back_the_first_value() -> None:
    async with running(large_host(), clock=Clock()) as lab:
        await owed(lab)
        lab.kernel.refuse.clear()
        assert (await lab.one("io-scheduler", "sda", "kyber")).state is State.SATISFIED
        (outcome,) = (await lab.unset(("io-scheduler", "sda"))).outcomes
        assert (outcome.actual, outcome.state) == ("mq-deadline", State.UNMANAGED)
        assert not lab.store.baselines


async def test_who_asks_again_does_not_wait() -> None:
    async with running(large_host(), clock=Clock()) as lab:
        await owed(lab)
        lab.kernel.refuse.clear()
        lab.writes()
        (outcome,) = (await lab.unset(("io-scheduler", "sda"))).outcomes
        assert (outcome.state, lab.writes()) == (State.UNMANAGED, [(queue("sda"), "mq-deadline")])


async def test_verify_says_what_is_owed_and_blames_nobody() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        outcome = await owed(lab)
        for _ in range(3):
            assert await lab.engine.verify() == (outcome,)
            clock.now += 2 * SOON
        assert lab.writes() == []


async def test_a_drive_that_goes_takes_its_debt_along() -> None:
    async with running(large_host(), clock=Clock()) as lab:
        await owed(lab)
        lab.kernel.unplug("sda")
        await lab.engine.reconcile("remove sda")
        (outcome,) = (o for report in lab.reports for o in report.outcomes if report.cause == "remove sda")
        assert "sda has gone, and what was owed to it with it" in outcome.detail
        assert (lab.engine.observed.outcomes, lab.store.baselines) == ({}, {})


async def test_a_debt_outlives_the_daemon() -> None:
    kernel = large_host()
    async with running(kernel, clock=Clock()) as lab:
        await owed(lab)
        baselines = lab.store.baselines
    async with running(kernel, baselines=baselines, clock=Clock()) as later:
        await later.engine.reconcile("boot", enforce=True)
        assert only(later).is_owed
        kernel.refuse.clear()
        await later.engine.reconcile("boot", enforce=True)
        assert kernel.disks["sda"].scheduler == "mq-deadline"
        assert not later.store.baselines


async def test_a_busy_queue_is_asked_again_at_once() -> None:
    """A controller that resets answers EBUSY for a moment."""
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.kernel.refuse[queue("sda")] = errno.EBUSY
        lab.kernel.journal.clear()

        def ready(path: str, text: str) -> None:
            if len(lab.kernel.journal) == 2:
                lab.kernel.refuse.clear()

        lab.kernel.before_write = ready
        (outcome,) = (await lab.unset(("io-scheduler", "sda"))).outcomes
        assert (outcome.state, outcome.actual) == (State.UNMANAGED, "mq-deadline")
        assert lab.writes() == [(queue("sda"), "mq-deadline")] * 3


async def test_pages_that_memory_is_too_fragmented_for_are_owed_until_it_is_whole() -> None:
    clock, kernel = Clock(), small_host()
    have_pages(kernel, 3000)
    async with running(kernel, clock=clock) as lab:
        await lab.set(("hugepages", "2M", 1000))
        kernel.nodes[0].whole = 24 * PAGE
        (outcome,) = (await lab.unset(("hugepages", "2M"))).outcomes
        assert told(outcome) == ("2M", "1024", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        assert outcome.requested == "3000"
        assert (COMPACT, "1") in lab.writes()
        assert await look(lab, clock, SOON) == [(POOL, "1536"), (POOL, "3000")], "without compaction"
        kernel.nodes[0].whole = None
        assert await look(lab, clock, SOON * 2) == [(POOL, "1536"), (POOL, "2048"), (POOL, "2560"), (POOL, "3000")]
        assert (pages(kernel), lab.engine.observed.outcomes, lab.store.baselines) == ([3000], {}, {})


async def test_pages_in_use_are_owed_until_their_program_ends() -> None:
    clock, kernel = Clock(), small_host()
    async with running(kernel, clock=clock) as lab:
        await lab.set(("hugepages", "2M", 64))
        kernel.nodes[0].pools[PAGE].used = 16
        (outcome,) = (await lab.unset(("hugepages", "2M"))).outcomes
        assert told(outcome) == ("2M", "16", State.PARTIAL, Reason.PAGES_IN_USE)
        lab.writes()
        assert await look(lab, clock, SOON) == [], "the kernel frees them by itself"
        kernel.nodes[0].pools[PAGE].used = 0
        assert await look(lab, clock, 0.1) == []
        assert (lab.engine.observed.outcomes, lab.store.baselines) == ({}, {})


async def test_a_look_that_finds_a_debt_paid_has_it_published() -> None:
    kernel = small_host()
    async with running(kernel) as lab:
        await lab.set(("hugepages", "2M", 64))
        kernel.nodes[0].pools[PAGE].used = 16
        await lab.unset(("hugepages", "2M"))
        assert {outcome.is_owed for outcome in lab.engine.observed.outcomes.values()} == {True}
        kernel.nodes[0].pools[PAGE].used = 0
        await lab.engine.observed.read_all()
        await lab.until(lambda: not lab.engine.observed.outcomes)


async def test_a_claim_on_the_total_ends_the_debts_of_the_nodes() -> None:
    """A node's own number counts only while no total is claimed, and comes back when that is withdrawn."""
    clock, kernel = Clock(), two_nodes()
    async with running(kernel, clock=clock) as lab:
        await lab.set(("hugepages", "2M", 200))
        kernel.nodes[0].pools[PAGE].used = 64
        await lab.unset(("hugepages", "2M"))
        owed = {o.target.instance for o in lab.engine.observed.outcomes.values() if o.is_owed}
        assert owed >= {"2M", "2M/node0"}
        await lab.set(("hugepages", "2M", 40))
        states = {o.target.instance: (o.state, o.is_owed) for o in lab.engine.observed.outcomes.values()}
        assert states == {"2M": (State.PARTIAL, False)}
        kernel.nodes[0].pools[PAGE].used = 0
        await look(lab, clock, SOON)
        (outcome,) = lab.engine.observed.outcomes.values()
        assert (outcome.state, outcome.actual, sum(pages(kernel))) == (State.SATISFIED, "40", 40)
        await lab.unset(("hugepages", "2M"))
        assert (pages(kernel), lab.engine.observed.outcomes, lab.store.baselines) == ([10, 10], {}, {})


def cpus() -> SimulatedKernel:
    kernel = large_host()
    kernel.policies = {f"policy{number}": Policy((number,), epp="balance_performance") for number in range(2)}
    return kernel


async def test_an_offline_cpu_gets_its_own_governor_when_it_comes_back() -> None:
    kernel = cpus()
    async with running(kernel, clock=Clock()) as lab:
        await lab.set(("cpu-governor", "*", "powersave"))
        kernel.policies["policy1"].online = False
        _, outcome = (await lab.unset(("cpu-governor", "*"))).outcomes
        assert (outcome.state, outcome.reason, outcome.is_owed) == (State.UNSUPPORTED, Reason.CPU_OFFLINE, True)
        await lab.engine.reconcile("cpu offline")
        kernel.policies["policy1"].online = True
        await lab.engine.reconcile("cpu online")
        assert kernel.policies["policy1"].governor == "schedutil"
        assert (lab.engine.observed.outcomes, lab.store.baselines) == ({}, {})


async def test_a_preference_that_the_governor_holds_comes_back_with_another_governor() -> None:
    kernel = cpus()
    async with running(kernel, clock=Clock()) as lab:
        await lab.set(("cpu-epp", "*", "power"))
        await lab.set(("cpu-governor", "*", "performance"))
        outcome, _ = (await lab.unset(("cpu-epp", "*"))).outcomes
        assert (outcome.reason, outcome.is_owed) == (Reason.GOVERNOR_DECIDES, True)
        await lab.engine.reconcile("drift")
        await lab.unset(("cpu-governor", "*"))
        assert kernel.policies["policy0"].epp == "balance_performance", "what the governor moved is nobody else's"
        assert not lab.store.baselines


# Several nodes: each has a debt of its own


def two_nodes() -> SimulatedKernel:
    kernel = large_host()
    have_pages(kernel, 10, 10)
    return kernel


async def both_owed(lab: Lab) -> None:
    await lab.set(("hugepages", "2M/*", 100))
    lab.kernel.refuse |= {node_pool(node): errno.EBUSY for node in range(2)}
    await lab.unset(("hugepages", "2M/*"))
    assert {o.target.instance for o in lab.engine.observed.outcomes.values() if o.is_owed} >= {"2M/node0", "2M/node1"}
    lab.kernel.refuse.clear()


async def test_who_writes_one_node_ends_the_debt_of_that_node() -> None:
    async with running(two_nodes(), clock=Clock()) as lab:
        await both_owed(lab)
        lab.kernel.nodes[0].pools[PAGE].asked = 33
        lab.reports.clear()
        await lab.engine.reconcile("drift", enforce=True)
        found = {o.target.instance: o.reason for report in lab.reports for o in report.outcomes}
        assert (found["2M/node0"], found["2M/node1"]) == (Reason.CHANGED_BY_OTHERS, Reason.OK)
        assert (pages(lab.kernel), lab.store.baselines) == ([33, 10], {})


async def test_a_debt_outlasts_a_fight_over_another_node() -> None:
    clock = Clock()
    async with running(two_nodes(), clock=clock) as lab:
        await lab.set(("hugepages", "2M/node0", 100), ("hugepages", "2M/node1", 100))
        lab.kernel.refuse[node_pool(1)] = errno.EBUSY
        await lab.unset(("hugepages", "2M/node1"))
        lab.kernel.refuse.clear()
        lab.kernel.nodes[0].pools[PAGE].asked = 300
        await look(lab, clock, 0.1)
        states = {o.target.instance: (o.state, o.is_owed) for o in lab.engine.observed.outcomes.values()}
        assert states == {"2M/node0": (State.CONTESTED, False), "2M/node1": (State.CONTESTED, True)}
        await lab.set(("hugepages", "2M/node0", 100))
        await look(lab, clock, SOON)
        assert pages(lab.kernel) == [100, 10]


# Asked for again


async def test_who_asks_again_and_again_does_not_lengthen_the_wait() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await owed(lab)
        for _ in range(10):
            await lab.unset(("io-scheduler", "sda"))
        lab.writes()
        assert await look(lab, clock, SOON) == [(queue("sda"), "mq-deadline")]


async def test_unset_of_everything_and_a_reset_name_what_is_owed() -> None:
    async with running(large_host(), clock=Clock()) as lab:
        outcome = await owed(lab)
        assert (await lab.unset(("io-scheduler", "*"))).outcomes == (outcome,)
        edit = lab.engine.files_edit(FilesEdit((), NOTHING_CHOSEN), reset=True)
        assert (await lab.engine.carry_out(edit, "Reset")).outcomes == (outcome,)
        lab.kernel.refuse.clear()
        edit = lab.engine.files_edit(FilesEdit((), NOTHING_CHOSEN), reset=True)
        (paid,) = (await lab.engine.carry_out(edit, "Reset")).outcomes
        assert (paid.actual, paid.state) == ("mq-deadline", State.UNMANAGED)


async def test_what_others_wrote_stays_though_the_debt_cannot_be_dropped() -> None:
    clock = Clock()
    async with running(large_host(), clock=clock) as lab:
        await owed(lab)
        lab.kernel.refuse.clear()
        lab.store.full = FULL
        lab.kernel.disks["sda"].scheduler = "none"
        for _ in range(3):
            assert await look(lab, clock, 2 * SOON) == []
        published = [o for report in lab.reports for o in report.outcomes if o.reason is Reason.CHANGED_BY_OTHERS]
        assert len(published) == 1
        lab.store.full = None
        await look(lab, clock, 2 * SOON)
        assert (lab.kernel.disks["sda"].scheduler, lab.store.baselines) == ("none", {})


async def test_nothing_is_tried_again_after_the_end() -> None:
    async with running(large_host()) as lab:
        await owed(lab)
        assert await lab.engine.end_writes(BOUND) == []
        lab.engine.look_again("an event")
        await asyncio.sleep(0)
        assert (lab.writes(), lab.engine.lanes[Lane.BLOCK].idle) == ([], True)
        assert {queue.due for queue in lab.engine.lanes.values()} == {None}


async def test_others_do_not_wait_for_what_is_busy() -> None:
    naps: list[float] = []
    async with running(large_host(), clock=Clock()) as lab:
        await owed(lab, errno.EBUSY)
        queue_of = lab.engine.lanes[Lane.BLOCK]
        queue_of.runner = replace(queue_of.runner, sleep=naps.append)
        await lab.set(("io-scheduler", "nvme0n1", "kyber"))
        assert naps == []


@pytest.mark.parametrize("code", [errno.EBUSY, errno.ENODEV])
async def test_a_cpu_that_refuses_is_not_asked_at_each_pass(code: int) -> None:
    clock, kernel = Clock(), cpus()
    async with running(kernel, clock=clock) as lab:
        await lab.set(("cpu-governor", "*", "powersave"))
        kernel.refuse[GOVERNOR] = code
        kernel.policies["policy0"].governor = "schedutil"
        await lab.engine.reconcile("drift")
        lab.writes()
        assert [await look(lab, clock, 0.1) for _ in range(5)] == [[]] * 5
        kernel.refuse.clear()
        assert await look(lab, clock, SOON) == [(GOVERNOR, "powersave")]
