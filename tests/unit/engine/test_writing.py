"""How planned writes are carried out: side by side where the kernel is slow, one after the other where it is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from kerntune.engine.hung import Bounds, Crew, Hung
from kerntune.engine.writer import WRITERS, Writer
from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Claim, DesiredState, Origin, Reading, Step, Target, Write
from kerntune.tunables.knobs import CPU_GOVERNOR
from tests.unit.lab import BOUND, GIB

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
