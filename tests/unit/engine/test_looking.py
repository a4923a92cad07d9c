"""Looking, rehearsing and verifying write nothing and say what is."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable

import pytest

from kerntune.errors import Exit, KernelRejected, KerntuneError, OverLimit
from kerntune.kernel.simulated import Policy, SimulatedKernel
from kerntune.model import Reason, State, Target
from kerntune.results import exit_code
from kerntune.tunables import REGISTRY
from tests.unit.lab import (
    BOUND,
    PAGE,
    POOL,
    SETTINGS,
    have_pages,
    host_values,
    large_host,
    queue,
    request,
    running,
    small_host,
)

# Looking


async def test_looking_writes_nothing() -> None:
    kernel = large_host()
    async with running(kernel) as lab:
        there = {tunable.name for tunable in REGISTRY} - {"cpu-governor", "cpu-epp"}
        assert {target.tunable for target in lab.engine.readings} == there
        assert lab.engine.memory is not None
        assert "cpu-governor" in lab.engine.missing
        await lab.engine.reconcile("boot", enforce=True)
        assert (kernel.journal, lab.engine.outcomes, lab.engine.generation) == ([], {}, 0)


async def test_a_drive_that_came_a_moment_ago_is_found() -> None:
    async with running(large_host()) as lab:
        lab.kernel.plug("nvme7n1")
        assert (await lab.one("io-scheduler", "nvme7n1", "mq-deadline")).state is State.SATISFIED


# Dry runs


def everything(lab_kernel: SimulatedKernel) -> object:
    return host_values(lab_kernel), list(lab_kernel.journal)


@pytest.mark.parametrize(
    ("setting", "state", "changed"),
    [
        (("hugepages", "2M", 10), State.PLANNED, True),
        (("hugepages", "2M", 7), State.SATISFIED, True),
        (("hugepages", "2M", 99999), State.REFUSED, False),
        (("overcommit", "", "never:1"), State.REFUSED, False),
        (("overcommit", "", "always"), State.PLANNED, True),
        (("io-scheduler", "sda", "bfq"), State.PLANNED, True),
        (("io-scheduler", "nvme0n1", "mq-deadline"), State.SATISFIED, False),
        (("io-scheduler", "vd*", "bfq"), State.UNSUPPORTED, True),
    ],
)
async def test_a_plan_is_what_a_set_would_do(setting: tuple[str, str, str | int], state: State, changed: bool) -> None:
    kernel = large_host()
    have_pages(kernel, 3, 4)
    async with running(kernel) as lab:
        await lab.set(("io-scheduler", "nvme0n1", "mq-deadline"))
        before, claims = everything(kernel), lab.claims
        answer = await lab.engine.plan(request(setting))
        assert ([o.state for o in answer.outcomes], answer.changed) == ([state], changed)
        assert (everything(kernel), lab.claims) == (before, claims)


FAST = {"policy0": Policy((0, 1), "performance", ("performance", "powersave"), epp="performance")}


@pytest.mark.parametrize(
    ("settings", "error", "codes"),
    [
        # The claim on a preference waits for another governor: what goes with it is set.
        ([("cpu-epp", "*", "power"), ("io-scheduler", "sda", "bfq")], None, (Exit.PARTLY, Exit.PARTLY)),
        ([("cpu-epp", "*", "power")], None, (Exit.NOT_FOUND, Exit.NOT_FOUND)),
        ([("io-scheduler", "vd*", "bfq"), ("io-scheduler", "sda", "bfq")], None, (Exit.PARTLY, Exit.PARTLY)),
        ([("sysctl", "kernel.numa_balancing", 0), ("sysctl", "vm.swappiness", 1)], KernelRejected, ()),
        ([("hugepages", "2M", 99999), ("io-scheduler", "sda", "bfq")], OverLimit, ()),
        ([("io-scheduler", "sda", "bfq"), ("read-ahead", "sda", 512)], None, (Exit.OK, Exit.OK)),
    ],
)
async def test_a_plan_ends_as_the_set_does(
    settings: list[tuple[str, str, str | int]], error: type[KerntuneError] | None, codes: tuple[Exit, ...]
) -> None:
    kernel = large_host()
    kernel.policies = dict(FAST)
    async with running(kernel) as lab:
        asked = request(*settings)
        planned = await lab.engine.plan(asked)
        if error:
            assert not planned.changed
            for ending in (lab.engine.plan(asked, strict=True), lab.engine.change(asked, "Set")):
                with pytest.raises(error):
                    await ending
            assert lab.claims == []
            return
        strict = await lab.engine.plan(asked, strict=True)
        done = await lab.engine.change(asked, "Set")
        assert (exit_code(strict.outcomes), exit_code(done.outcomes)) == codes
        assert (strict, strict.changed) == (planned, done.changed)


async def test_a_plan_to_unset() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.writes()
        answer = await lab.engine.plan(request(("io-scheduler", "sda", ""), unset=True))
        assert ([(o.state, o.actual) for o in answer.outcomes], answer.changed) == ([(State.PLANNED, "bfq")], True)
        assert not (await lab.engine.plan(request(("io-scheduler", "vd*", ""), unset=True))).changed
        assert lab.writes() == []
        assert lab.claims == ["runtime:io-scheduler@sda=bfq"]


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
async def test_verifying_a_host_that_others_changed(
    change: Callable[[SimulatedKernel], None], target: str, actual: str
) -> None:
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


async def test_verifying_what_could_not_be_had_does_not_blame_others() -> None:
    async with running(small_host(whole=10 * PAGE)) as lab:
        await lab.set(("hugepages", "2M", 100), partial=True)
        (found,) = await lab.engine.verify()
        assert (found.actual, found.state, found.reason) == ("10", State.PARTIAL, Reason.PARTIALLY_ALLOCATED)


async def test_verifying_what_the_kernel_refused_does_not_blame_others() -> None:
    async with running(large_host()) as lab:
        lab.kernel.refuse[queue("sda")] = errno.EIO
        await lab.set(("io-scheduler", "*", "kyber"))
        (found,) = await lab.engine.verify()
        assert (found.target.instance, found.state, found.reason) == ("sda", State.FAILED, Reason.KERNEL_REJECTED)


async def test_verifying_a_drive_that_is_gone() -> None:
    async with running(large_host()) as lab:
        await lab.set(("io-scheduler", "sda", "bfq"))
        lab.kernel.unplug("sda")
        (found,) = await lab.engine.verify()
        assert (found.target.instance, found.state, found.reason) == ("sda", State.UNSUPPORTED, Reason.NO_SUCH_TARGET)


async def test_progress_is_told_while_pages_are_made() -> None:
    """The kernel takes its time; between two looks the caller hears how far it is."""
    kernel = large_host()
    told: list[tuple[str, int, int]] = []
    heard = threading.Event()
    async with running(kernel) as lab:

        def slowly(path: str, text: str) -> None:
            if (path, text) == (POOL, "1024"):
                heard.wait(BOUND)

        def progress(target: Target, done: int, wanted: int) -> None:
            told.append((target.instance, done, wanted))
            heard.set()

        kernel.before_write = slowly
        await lab.engine.change(request(("hugepages", "2M", 1200)), "Set", progress)
    assert told[0] == ("2M", 512, 1200)
    assert kernel.journal == [(POOL, "512"), (POOL, "1024"), (POOL, "1200")]


@pytest.mark.parametrize("turns", range(8))
async def test_a_pass_that_begins_for_somebody_else_just_then_tells_its_progress_too(turns: int) -> None:
    """What is in force is done by whichever pass comes first: its caller waits for that one."""
    kernel = large_host()
    told: list[int] = []
    heard = threading.Event()
    async with running(kernel) as lab:

        def slowly(path: str, text: str) -> None:
            if (path, text) == (POOL, "1024"):
                heard.wait(1)

        def progress(_target: Target, done: int, _wanted: int) -> None:
            told.append(done)
            heard.set()

        kernel.before_write = slowly
        other = asyncio.create_task(lab.set(("overcommit", "", "always:95")))
        for _ in range(turns):
            await asyncio.sleep(0)
        await lab.engine.change(request(("hugepages", "2M", 1200)), "Set", progress)
        await other
    assert told
