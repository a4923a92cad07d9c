"""When a write that was in vain is made again, and when a fight with others is given up."""

from __future__ import annotations

import errno

import pytest

from kerntune.engine.retry import (
    FIRST,
    LATER,
    LONGEST_WAIT,
    Attempt,
    DriftLog,
    Retries,
    Vain,
    is_due,
    next_attempt,
)
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Origin, Reading, Reason, State, Target, Write
from tests.unit.lab import (
    COMPACT,
    GIB,
    PAGE,
    POOL,
    Clock,
    Lab,
    claim,
    large_host,
    look,
    pages,
    queue,
    running,
    small_host,
    told,
)

DRIVE, OTHER = Target("io-scheduler", "nvme0n1"), Target("io-scheduler", "nvme1n1")


def after_repairs(*times: float) -> DriftLog:
    log = DriftLog()
    for now in times:
        log.repaired(DRIVE, now)
    return log


def test_three_repairs_in_ten_minutes_are_a_fight() -> None:
    assert not after_repairs(0, 299).contested(DRIVE, 300)
    assert after_repairs(0, 299, 599).contested(DRIVE, 599)


def test_repairs_longer_ago_do_not_count() -> None:
    log = after_repairs(0, 1, 2)
    assert log.contested(DRIVE, 599)
    assert not log.contested(DRIVE, 600)
    assert not after_repairs(0, 601, 602).contested(DRIVE, 603)


def test_each_target_has_its_own() -> None:
    assert not after_repairs(0, 1, 2).contested(OTHER, 3)


def test_forgiving() -> None:
    log = after_repairs(0, 1, 2)
    log.forgive([OTHER])
    assert log.contested(DRIVE, 3)
    log.forgive([DRIVE, OTHER])
    assert not log.contested(DRIVE, 3)


# After a refusal


SDA = Target("io-scheduler", "sda")


# The times, by themselves


def vain(now: float, code: int = errno.EIO) -> Vain:
    return Vain((Write(queue("sda"), "bfq"),), code, now, LATER)


def test_the_same_is_not_tried_before_its_time() -> None:
    retries, reading = Retries(), Reading(SDA, "none", ("none", "bfq"))
    retries.replace("io-scheduler", {SDA: retries.after(SDA, "bfq", reading, vain(100.0))})
    assert retries.waiting(SDA, "bfq", reading, 100.0 + LATER - 1) is not None
    assert retries.waiting(SDA, "bfq", reading, 100.0 + LATER) is None
    assert retries.waiting(SDA, "kyber", reading, 101.0) is None, "another value"
    assert retries.waiting(SDA, "bfq", Reading(SDA, "kyber", ("none", "bfq")), 101.0) is None, "another reading"
    assert retries.waiting(SDA, "bfq", Reading(SDA, "none", ("none", "bfq", "x")), 101.0) is None, "another choice"
    assert retries.due == 100.0 + LATER


def test_the_wait_doubles_up_to_an_hour_and_begins_anew_with_another_errno() -> None:
    retries, reading, waits = Retries(), Reading(SDA, "none"), []
    for _ in range(9):
        tried = retries.after(SDA, "bfq", reading, vain(0.0))
        retries.replace("io-scheduler", {SDA: tried})
        waits.append(tried.wait)
    assert waits == [60, 120, 240, 480, 960, 1920, LONGEST_WAIT, LONGEST_WAIT, LONGEST_WAIT]
    assert retries.after(SDA, "bfq", reading, vain(0.0, errno.EBUSY)).wait == LATER


def test_what_a_pass_does_not_name_is_forgotten() -> None:
    retries, reading = Retries(), Reading(SDA, "none")
    tried = retries.after(SDA, "bfq", reading, vain(0.0))
    retries.replace("io-scheduler", {SDA: tried})
    retries.replace("read-ahead", {})
    assert (retries.tried(SDA), retries.due) == (True, LATER)
    retries.replace("io-scheduler", {})
    assert (retries.tried(SDA), retries.due) == (False, None)


# Pools that fell short


WHOLE = Target("hugepages", "2M")
SHORTFALL = 400


@pytest.mark.parametrize(
    ("waited", "grown", "asked"),
    [
        (FIRST - 1, SHORTFALL, False),
        (FIRST, SHORTFALL // 4 - 1, False),
        (FIRST, SHORTFALL // 4, True),
        (FIRST, 0, False),
        (FIRST, -SHORTFALL, False),
        (LONGEST_WAIT, 0, False),
        (LONGEST_WAIT, SHORTFALL, True),
    ],
)
def test_asked_again_when_a_quarter_of_the_shortfall_became_free(waited: float, grown: int, asked: bool) -> None:
    tried = Attempt("150", SHORTFALL, at=1000.0, free=5000)
    assert is_due(tried, 1000.0 + waited, 5000 + grown) is asked


@pytest.mark.parametrize(
    ("before", "wait"),
    [
        (None, FIRST),
        (Attempt("150", SHORTFALL, 0.0, 0), 2 * FIRST),
        (Attempt("150", SHORTFALL, 0.0, 0, 2000.0), LONGEST_WAIT),
        (Attempt("150", SHORTFALL, 0.0, 0, LONGEST_WAIT), LONGEST_WAIT),
        (Attempt("150", SHORTFALL + 1, 0.0, 0, LONGEST_WAIT), FIRST),
        (Attempt("151", SHORTFALL, 0.0, 0, LONGEST_WAIT), FIRST),
    ],
)
def test_the_wait_doubles_while_nothing_is_gained(before: Attempt | None, wait: float) -> None:
    assert next_attempt(before, "150", SHORTFALL, 7.0, 9) == Attempt("150", SHORTFALL, 7.0, 9, wait)


def short_host() -> SimulatedKernel:
    """100 pages can be had; 400 are desired."""
    return small_host(programs=8 * GIB, whole=100 * PAGE)


async def boot(lab: Lab) -> None:
    await lab.engine.reconcile("boot", enforce=True)
    assert told(lab.engine.observed.outcomes[WHOLE]) == ("2M", "100", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
    lab.writes()


async def test_a_pool_that_cannot_grow_is_not_written_at_each_look() -> None:
    clock, kernel = Clock(), short_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "hugepages", "2M", 400)], clock=clock) as lab:
        await boot(lab)
        for _ in range(5):
            assert await look(lab, clock) == []
        assert told(lab.engine.observed.outcomes[WHOLE]) == ("2M", "100", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)
        assert [outcome.reason for outcome in await lab.engine.verify()] == [Reason.PARTIALLY_ALLOCATED]


async def test_it_is_asked_again_without_compaction_when_memory_became_free_and_less_often_when_that_is_in_vain() -> (
    None
):
    clock, kernel = Clock(), short_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "hugepages", "2M", 400)], clock=clock) as lab:
        await boot(lab)
        kernel.nodes[0].programs -= 80 * PAGE  # a quarter of the 300 that are missing
        assert await look(lab, clock, 59.0) == []
        assert await look(lab, clock, 1.0) == [(POOL, "400")]
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock, 119.0) == []
        assert await look(lab, clock, 1.0) == [(POOL, "400")]
        kernel.nodes[0].whole = 50 * PAGE
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock, 240.0) == [(POOL, "400")]
        assert pages(kernel) == [150]
        kernel.nodes[0].whole = None
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock, 60.0) == [(POOL, "400")], "what helped starts anew"
        assert told(lab.engine.observed.outcomes[WHOLE]) == ("2M", "400", State.SATISFIED, Reason.OK)


async def test_memory_that_was_taken_and_came_back_is_memory_that_became_free() -> None:
    clock, kernel = Clock(), short_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "hugepages", "2M", 400)], clock=clock) as lab:
        await boot(lab)
        kernel.nodes[0].programs += 80 * PAGE
        assert await look(lab, clock) == []
        kernel.nodes[0].programs -= 80 * PAGE
        assert await look(lab, clock) == [(POOL, "400")]


async def test_who_asks_does_not_wait_and_nor_does_what_others_took() -> None:
    clock, kernel = Clock(), short_host()
    async with running(kernel, clock=clock) as lab:
        assert (await lab.one("hugepages", "2M", 400, partial=True)).actual == "100"
        lab.writes()
        assert await look(lab, clock) == []
        kernel.nodes[0].pools[PAGE].asked = 60  # somebody else shrank it
        kernel.nodes[0].whole = 50 * PAGE
        assert await look(lab, clock) == [(POOL, "400")]
        assert pages(kernel) == [110]
        assert (await lab.one("hugepages", "2M", 400, partial=True)).actual == "110"
        assert (COMPACT, "1") in lab.writes()


# Passes


CLAIMED = claim(Origin.CONFIG, "io-scheduler", "*", "bfq")


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
        (failed,) = (o for o in lab.engine.observed.outcomes.values() if o.target.instance == "sda")
        assert failed.state is not State.SATISFIED
        generation = lab.engine.observed.generation
        for _ in range(5):
            assert await look(lab, clock, LATER / 6) == []
        assert await look(lab, clock, LATER / 6) == [(queue("sda"), "bfq")]
        assert await look(lab, clock, LATER * 1.9) == []
        assert await look(lab, clock, LATER * 0.1) == [(queue("sda"), "bfq")]
        assert lab.engine.observed.generation == generation, "the same failure is no change"
        assert [o for o in lab.engine.observed.outcomes.values() if o.target.instance == "sda"] == [failed]
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
        assert lab.engine.observed.counters["drift_repairs"] == 0, "nothing was repaired"


async def test_a_value_the_kernel_takes_after_all_is_published() -> None:
    clock, kernel = Clock(), large_host()
    kernel.refuse[queue("sda")] = errno.EIO
    async with running(kernel, claims=[CLAIMED], clock=clock) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        kernel.refuse.clear()
        lab.writes()
        assert await look(lab, clock, LATER) == [(queue("sda"), "bfq")]
        (outcome,) = next(report.outcomes for report in reversed(lab.reports) if report.outcomes)
        assert (outcome.target.instance, outcome.state, outcome.reason) == ("sda", State.SATISFIED, Reason.OK)
        assert lab.engine.observed.troubles == set()
