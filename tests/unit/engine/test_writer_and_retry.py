"""How planned writes are carried out and who hears of it; when one that was in vain is made again."""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from kerntune.engine.claims import NOTHING_CHOSEN, Edit, FilesEdit
from kerntune.engine.hung import Bounds, Crew, Hung
from kerntune.engine.retry import FIRST, LATER, LONGEST_WAIT, Attempt, DriftLog, Retries, Vain, is_due, next_attempt
from kerntune.engine.writer import WRITERS, Writer, only_for
from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Claim, DesiredState, Origin, Reading, Reason, State, Step, Target, Write
from kerntune.tunables import REGISTRY
from kerntune.tunables.knobs import CPU_GOVERNOR
from tests.unit.lab import (
    BOUND,
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
    request,
    running,
    small_host,
    told,
)

MANY = 64


def host() -> SimulatedKernel:
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.policies = {f"policy{number}": Policy((number,)) for number in range(MANY)}
    return kernel


def step(number: int) -> Step:
    target = Target("cpu-governor", f"policy{number}")
    desired = DesiredState(target, "performance", Claim(Origin.RUNTIME, "cpu-governor", "*", "performance"))
    path = f"sys/devices/system/cpu/cpufreq/policy{number}/scaling_governor"
    return Step(desired, Reading(target, "schedutil"), (Write(path, "performance"),))


def used(kernel: SimulatedKernel, *, threads: bool = True, slow: Callable[[int], float] = lambda _number: 0.0) -> int:
    """How many threads wrote all of them; `slow`: how long a write takes, by its number."""
    names, numbers = set[int](), iter(range(MANY))

    def writing(_path: str, _text: str) -> None:
        names.add(threading.get_ident())
        time.sleep(slow(next(numbers)))

    kernel.before_write = writing
    with closing(Crew(WRITERS, "test")) as pool:
        writer = Writer(kernel, CPU_GOVERNOR, pool if threads else None, None)
        writer.write([step(number) for number in range(MANY)])
    assert writer.errors == {}
    assert {policy.governor for policy in kernel.policies.values()} == {"performance"}
    return len(names)


def test_slow_writes_are_made_side_by_side() -> None:
    assert used(host(), slow=lambda _number: 0.02) > WRITERS // 2


def test_writes_that_become_slow_are_so_too() -> None:
    assert used(host(), slow=lambda number: 0.05 if number > MANY // 4 else 0.0) > 1


def test_without_threads_one_does_all_of_it() -> None:
    assert used(host(), threads=False, slow=lambda _number: 0.001) == 1


@pytest.mark.parametrize("threads", [False, True])
def test_what_is_refused_is_noted_and_the_rest_goes_on(threads: bool) -> None:
    kernel = host()
    kernel.refuse["sys/devices/system/cpu/cpufreq/policy3/scaling_governor"] = 5
    with closing(Crew(4, "test")) as pool:
        writer = Writer(kernel, CPU_GOVERNOR, pool if threads else None, None)
        writer.write([step(number) for number in range(MANY)])
        assert writer.errors == {Target("cpu-governor", "policy3"): 5}
        kernel.refuse.clear()
        writer.write([step(3)])
    assert writer.errors == {}


def test_what_was_left_behind_makes_no_other_write_when_it_returns() -> None:
    kernel, go_on, ended = host(), threading.Event(), threading.Event()
    kernel.before_write = lambda path, _text: None if "policy3/" not in path else waits(go_on)
    two = replace(step(3), writes=(*step(3).writes, *step(4).writes))
    with closing(Crew(4, "test")) as pool:
        writer = Writer(kernel, CPU_GOVERNOR, pool, None, hung=Hung(lambda _: ended.set(), Bounds(write=0.05)))
        try:
            writer.write([two, step(5)])
            assert [kernel.policies[f"policy{number}"].governor for number in (3, 5)] == ["schedutil", "performance"]
            assert list(writer.hung.now().why) == ["policy3"]
        finally:
            go_on.set()
        assert ended.wait(BOUND)
    assert [kernel.policies[f"policy{number}"].governor for number in (3, 4)] == ["performance", "schedutil"]
    assert (writer.errors, writer.hung.now().why) == ({}, {})


def waits(go_on: threading.Event) -> None:
    assert go_on.wait(BOUND)


# Who hears of which pools


TUNABLES = {tunable.name: tunable for tunable in REGISTRY}
TWO, ONE_NODE, LARGE = (Target("hugepages", instance) for instance in ("2M", "2M/node1", "1G"))


def runtime(tunable: str, instances: str, value: str = "1") -> Claim:
    return Claim(Origin.RUNTIME, tunable, instances, value)


def heard(edit: Edit, *targets: Target) -> list[Target]:
    found: list[Target] = []
    report = only_for(edit, TUNABLES, lambda target, _done, _wanted: found.append(target))
    for target in targets:
        report(target, 1, 2)
    return found


@pytest.mark.parametrize("instances", ["2M", "2M/node1", "2M/*"])
def test_the_pools_of_a_page_size_are_one_plan(instances: str) -> None:
    assert heard(Edit(put=(runtime("hugepages", instances),)), TWO, ONE_NODE, LARGE) == [TWO, ONE_NODE]
    assert heard(Edit(drop=(runtime("hugepages", instances).id,)), TWO, ONE_NODE, LARGE) == [TWO, ONE_NODE]


def test_who_asks_for_something_else_hears_nothing() -> None:
    assert (
        heard(Edit(put=(runtime("overcommit", "", "always"), runtime("io-scheduler", "*", "none"))), TWO, LARGE) == []
    )


def test_a_profile_is_about_what_it_says_and_what_it_ends() -> None:
    files = FilesEdit((runtime("hugepages", "1G"),), NOTHING_CHOSEN, gone=(runtime("hugepages", "2M").id,))
    assert heard(Edit(files=files), TWO, LARGE) == [TWO, LARGE]
    assert heard(Edit(files=FilesEdit((runtime("overcommit", ""),), NOTHING_CHOSEN)), TWO) == []


# Progress of a pass


async def test_progress_is_reported_while_pages_are_made() -> None:
    """The kernel takes its time; between two looks the caller hears how far it is."""
    kernel = large_host()
    found: list[tuple[str, int, int]] = []
    heard = threading.Event()
    async with running(kernel) as lab:

        def slowly(path: str, text: str) -> None:
            if (path, text) == (POOL, "1024"):
                heard.wait(BOUND)

        def progress(target: Target, done: int, wanted: int) -> None:
            found.append((target.instance, done, wanted))
            heard.set()

        kernel.before_write = slowly
        await lab.engine.change(request(("hugepages", "2M", 1200)), "Set", progress)
    assert found[0] == ("2M", 512, 1200)
    assert kernel.journal == [(POOL, "512"), (POOL, "1024"), (POOL, "1200")]


@pytest.mark.parametrize("turns", range(8))
async def test_a_pass_that_begins_for_somebody_else_just_then_reports_its_progress_too(turns: int) -> None:
    """What is in force is done by whichever pass comes first: its caller waits for that one."""
    kernel = large_host()
    found: list[int] = []
    heard = threading.Event()
    async with running(kernel) as lab:

        def slowly(path: str, text: str) -> None:
            if (path, text) == (POOL, "1024"):
                heard.wait(1)

        def progress(_target: Target, done: int, _wanted: int) -> None:
            found.append(done)
            heard.set()

        kernel.before_write = slowly
        other = asyncio.create_task(lab.set(("overcommit", "", "always:95")))
        for _ in range(turns):
            await asyncio.sleep(0)
        await lab.engine.change(request(("hugepages", "2M", 1200)), "Set", progress)
        await other
    assert found


# When a fight with others is given up


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


# After a refusal: when the same is tried again


SDA = Target("io-scheduler", "sda")


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


# Passes after a refusal


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
