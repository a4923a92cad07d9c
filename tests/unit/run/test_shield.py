"""The shield of a process, on the kernel that runs: each test puts on its own in a thread that ends with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from kerntune.errors import InvalidValue, KerntuneError, NoSuchTarget, NotSupported
from kerntune.run.shield import Shield, cpus_in, in_force, unusable
from kerntune.units import parse_cpus, spell_cpus

T = TypeVar("T")
ONE = frozenset({min(os.sched_getaffinity(0))})
SLICES = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12)
needs_slices = pytest.mark.skipif(not SLICES, reason="slices of processes came with Linux 6.12")
SAY = """\
import json, os
from kerntune.run.shield import in_force
found = in_force()
print(json.dumps([sorted(found.cpus), found.slice_us, os.getpriority(os.PRIO_PROCESS, 0)]))
"""


def aside(work: Callable[[], T]) -> T:
    """Do something in a thread of its own: what it changes of the scheduler ends with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def of_a_child() -> list[object]:
    """What is in force in a new program."""
    done = subprocess.run([sys.executable, "-c", SAY], stdout=subprocess.PIPE, check=True, timeout=20)
    said: list[object] = json.loads(done.stdout)
    return said


def test_without_one_all_is_as_it_was() -> None:
    def put_on() -> Shield:
        Shield().apply()
        return in_force()

    assert not Shield()
    assert aside(put_on) == in_force() == Shield(frozenset(os.sched_getaffinity(0)))


def test_the_cpus_are_kept_by_a_new_program() -> None:
    def put_on() -> tuple[Shield, list[object]]:
        Shield(ONE).apply()
        return in_force(), of_a_child()

    assert aside(put_on) == (Shield(ONE), [sorted(ONE), 0, os.getpriority(os.PRIO_PROCESS, 0)])


@pytest.mark.parametrize("slice_us", [100, 2_345, 100_000])
def test_the_slice_is_kept_by_a_new_program(slice_us: int) -> None:
    def put_on() -> tuple[Shield, list[object]]:
        Shield(slice_us=slice_us).apply()
        return in_force(), of_a_child()

    if not SLICES:
        with pytest.raises(NotSupported, match=r"keeps no slice of .* \(it takes Linux 6\.12\)"):
            aside(put_on)
        return
    mine, childs = aside(put_on)
    assert mine == Shield(frozenset(os.sched_getaffinity(0)), slice_us)
    assert childs[1] == slice_us


@needs_slices
def test_nice_stays_as_it_was() -> None:
    def put_on() -> list[object]:
        os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0) + 3)
        Shield(slice_us=100).apply()
        return of_a_child()

    before = os.getpriority(os.PRIO_PROCESS, 0)
    assert aside(put_on)[1:] == [100, before + 3]


@needs_slices
def test_to_be_put_behind_fewer_processes_is_kept() -> None:
    def put_on() -> tuple[int, Shield]:
        os.sched_setscheduler(0, os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        Shield(slice_us=100).apply()
        return os.sched_getscheduler(0), in_force()

    policy, shield = aside(put_on)
    assert (policy, shield.slice_us) == (os.SCHED_BATCH | os.SCHED_RESET_ON_FORK, 100)


def test_another_policy_has_no_slice() -> None:
    def put_on() -> Shield:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        try:
            Shield(ONE, 100).apply()
        finally:
            found.append(in_force())
        return found[0]

    found: list[Shield] = []
    with pytest.raises(NotSupported, match=r"runs under SCHED_IDLE, which has no slice\. Start it under SCHED_OTHER"):
        aside(put_on)
    assert found == [Shield(frozenset(os.sched_getaffinity(0)))], "the CPUs are as before"


@pytest.mark.parametrize("slice_us", [-1, 1, 99, 100_001])
def test_a_slice_that_the_kernel_would_change_is_refused(slice_us: int) -> None:
    with pytest.raises(
        InvalidValue, match=f"a slice of {slice_us} us is out of range. The kernel takes 100 us to 100 ms"
    ):
        aside(Shield(slice_us=slice_us).apply)


@pytest.mark.parametrize("cpus", [{9_999}, {0, 9_999}, {-1}, {1 << 40}])
def test_cpus_that_are_not_there_are_named(cpus: set[int]) -> None:
    def put_on() -> tuple[KerntuneError, Shield]:
        with pytest.raises(NoSuchTarget) as caught:
            Shield(frozenset(cpus)).apply()
        return caught.value, in_force()

    error, shield = aside(put_on)
    assert error.what == f"there is no CPU {spell_cpus(cpus - {0})}"
    assert error.hint == f"Online are {spell_cpus(cpus_in('online'))}"
    assert shield == in_force(), "nothing has been changed"


@pytest.mark.parametrize(
    ("cpus", "why"),
    [
        ({0, 1}, ""),
        ({0, 2, 3}, "CPU 2-3 is offline"),
        ({3, 4, 6}, "there is no CPU 4,6"),
    ],
)
def test_which_cpus_cannot_be_used(cpus: set[int], why: str) -> None:
    assert unusable(frozenset(cpus), present=frozenset(range(4)), online=frozenset({0, 1})) == why


@pytest.mark.parametrize(("text", "cpus"), [("", set()), ("0", {0}), ("0-2,5,7-8", {0, 1, 2, 5, 7, 8})])
def test_how_the_kernel_writes_cpus(text: str, cpus: set[int], tmp_path: Path) -> None:
    (tmp_path / "online").write_text(f"{text}\n")
    assert cpus_in("online", str(tmp_path)) == parse_cpus(text) == cpus
    assert spell_cpus(cpus) == text
