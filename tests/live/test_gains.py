"""The commands of benchmarks/gains.py on the real kernel, smaller: `kerntune run` gives what the benchmark counts on.

How much that gains is for the benchmark to say: times beside other work would fail by chance.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Final

import pytest
from benchmarks import gains

from kerntune.bench.file import synthetic
from kerntune.units import parse_cpus
from tests.harness import host
from tests.harness.daemon import Daemon
from tests.harness.privatebus import PrivateBus
from tests.harness.workers import MIB

SIZE: Final = 64  # MiB
KEEPS_SLICES: Final = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 12)
CPU: Final = min(os.sched_getaffinity(0))
IN_FORCE: Final = "from kerntune.run import shield; print(shield.in_force().scheduling.slice_us)"


@pytest.fixture
def bench(bus: PrivateBus, daemon: Daemon, tmp_path: Path) -> gains.Bench:
    return gains.Bench(bus.address, tmp_path)


@pytest.mark.parametrize(("options", "part"), [([f"--hugepages={SIZE + 8}M"], 0.9), ([], 0.0)], ids=["paged", "base"])
def test_a_load_lies_on_the_pages_that_it_was_given(bench: gains.Bench, options: list[str], part: float) -> None:
    before = host.pages()
    with synthetic(gains.ON_DISK, SIZE * MIB) as file:
        ended = bench.run(options, [sys.executable, "-c", gains.COPY, gains.of_descriptor(file.fd)])
    assert float(ended.out) > 0
    memory = ended.summary["memory"]
    assert memory["anonymous_bytes"] + memory["private_hugetlb_bytes"] >= SIZE * MIB
    assert memory["private_hugetlb_bytes"] >= part * SIZE * MIB
    assert bool(memory["private_hugetlb_bytes"]) == bool(options)
    assert host.pages() == before


def test_a_slice_is_kept_by_what_the_command_becomes(bench: gains.Bench) -> None:
    ended = bench.run([gains.SLICE], ["taskset", "--cpu-list", str(CPU), sys.executable, "-c", IN_FORCE])
    slices = {int(ended.out), ended.summary["shield"]["slice_us"]}
    if KEEPS_SLICES:
        assert slices == {100}
    else:
        assert 100 not in slices
        assert any("6.12" in note for note in ended.summary["notes"])


def test_a_busy_cpu_is_left_to_others(bench: gains.Bench) -> None:
    with gains.hogs(frozenset({CPU})):
        ended = bench.run([gains.AUTO], gains.worker("cpu", wakes=20))
    assert json.loads(ended.out)["seconds"] > 0
    (note,) = ended.summary["notes"]
    cpus = parse_cpus(ended.summary["shield"]["cpus"])
    if CPU in cpus:  # other work has all of them
        assert cpus == os.sched_getaffinity(0)
        assert note.startswith("nothing is pinned: no CPU is free")
    else:
        assert note.startswith("pinned to ")
        assert f"CPU {CPU} works " in note
