"""How planned writes are carried out, side by side where the kernel is slow, and who hears of their progress."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from kerntune.engine.claims import NOTHING_CHOSEN, Edit, FilesEdit
from kerntune.engine.hung import Bounds, Crew, Hung
from kerntune.engine.writer import WRITERS, Writer, only_for
from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Claim, DesiredState, Origin, Reading, Step, Target, Write
from kerntune.tunables import REGISTRY
from kerntune.tunables.knobs import CPU_GOVERNOR
from tests.unit.lab import (
    BOUND,
    GIB,
    POOL,
    large_host,
    request,
    running,
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
