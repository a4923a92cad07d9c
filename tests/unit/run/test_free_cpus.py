"""Which CPUs are free (`--cpus auto`): by two snapshots, on a tree of files, and on the host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kerntune.run.free_cpus import FREE_BELOW, Snapshot, cores, decide, look, snapshot
from kerntune.units import parse_cpus
from tests.harness.workers import LIMIT

TICK = os.sysconf("SC_CLK_TCK")
# CPUs 0 and 1 are one core, 2 and 3 the other.
PAIRS = {0: {0, 1}, 1: {0, 1}, 2: {2, 3}, 3: {2, 3}}


def sharing(cores_of: Mapping[int, set[int]]) -> dict[int, frozenset[int]]:
    return {cpu: frozenset(core) for cpu, core in cores_of.items()}


@pytest.mark.parametrize(
    ("parts", "allowed", "cores_of", "pinned", "sentence"),
    [
        (
            {0: 0.9, 1: 0.05}, {0, 1}, {}, {1},
            "pinned to 1 of 2 CPUs, 1, which were free (CPU 0 works 90%); nobody is kept off them",
        ),
        ({0: 0.9, 1: 0.5}, {0, 1}, {}, set(), "nothing is pinned: no CPU is free (CPU 0 works 90%, CPU 1 works 50%)"),
        ({0: 0.1, 1: 0.0}, {0, 1}, {}, set(), "nothing is pinned: all allowed CPUs are free (0-1)"),
        ({0: 0.9, 1: 0.0}, {1}, {}, set(), "nothing is pinned: all allowed CPUs are free (1)"),
        ({0: 0.9, 1: 0.0}, {0}, {}, set(), "nothing is pinned: no CPU is free (CPU 0 works 90%)"),
        (
            {0: FREE_BELOW - 0.01, 1: FREE_BELOW}, {0, 1}, {}, {0},
            "pinned to 1 of 2 CPUs, 0, which were free (CPU 1 works 20%); nobody is kept off them",
        ),
        (
            {0: 0.0, 1: 1.0, 2: 0.0, 3: 0.1}, {0, 1, 2, 3}, PAIRS, {2, 3},
            "pinned to 2 of 4 CPUs, 2-3, which were free (CPU 0 shares a core with CPU 1, CPU 1 works 100%); "
            "nobody is kept off them",
        ),
        (
            {0: 0.0, 1: 1.0, 2: 0.0, 3: 0.0}, {0, 2}, PAIRS, {2},
            "pinned to 1 of 2 CPUs, 2, which were free (CPU 0 shares a core with CPU 1); nobody is kept off them",
        ),
        ({0: 0.0}, {0, 1}, {}, set(), "nothing is pinned: all allowed CPUs are free (0)"),
        ({7: 0.0}, {0, 1}, {}, set(), "nothing is pinned: no allowed CPU could be looked at"),
        (
            {0: -0.5, 1: 1.4}, {0, 1}, {}, {0},
            "pinned to 1 of 2 CPUs, 0, which were free (CPU 1 works 100%); nobody is kept off them",
        ),
    ],
    ids=[
        "one-is-free", "none-is-free", "all-are-free", "busy-one-not-allowed", "free-one-not-allowed", "at-the-bound",
        "cores", "sibling-not-allowed", "one-goes-offline", "hidden", "counters-that-jump",
    ],
)  # fmt: skip
def test_which_are_pinned(
    parts: Mapping[int, float], allowed: set[int], cores_of: Mapping[int, set[int]], pinned: set[int], sentence: str
) -> None:
    before = Snapshot(5.0, dict.fromkeys(range(4), 0.0))
    after = Snapshot(7.0, {cpu: 2.0 * part for cpu, part in parts.items()})
    found = decide(before, after, frozenset(allowed), sharing(cores_of))
    assert found.pinned == pinned
    assert found.sentence == sentence


def test_a_cpu_that_comes_online_meanwhile_is_left_out() -> None:
    before, after = Snapshot(0.0, {0: 0.0}), Snapshot(1.0, {0: 0.9, 1: 0.0})
    found = decide(before, after, frozenset({0, 1}), {})
    assert (found.free, set(found.busy)) == (frozenset(), {0})


def stat(rows: Mapping[int, str]) -> str:
    return "cpu  1 2 3 4 5 6 7 8 9 10\n" + "".join(f"cpu{cpu} {row}\n" for cpu, row in rows.items()) + "intr 1 2 3\n"


def test_a_look_reads_the_files_twice(tmp_path: Path) -> None:
    # user nice system idle iowait irq softirq steal guest guest_nice: what is not idle counts, and guests only once.
    zero, part = "0 0 0 0 0 0 0 0 0 0", TICK // 20
    worked = {
        0: f"0 0 0 {5 * TICK} {9 * TICK} 0 0 0 {TICK} {TICK}",
        1: f"{part} {part} {part} 0 0 {part} 0 0 0 0",
        2: f"0 0 0 {TICK} 0 0 0 {TICK} 0 0",
        10: f"0 0 0 0 0 0 {TICK} 0 0 0",
    }
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text(stat(dict.fromkeys(worked, zero)))
    times = iter([10.0, 11.0])
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        (tmp_path / "proc/stat").write_text(stat(worked))

    found = look(frozenset({0, 1, 2, 10}), tmp_path, times.__next__, sleep)
    assert slept == [1.0]
    assert found.free == {0}
    assert found.busy == {1: pytest.approx(4 * part / TICK), 2: 1.0, 10: 1.0}


@pytest.mark.parametrize("text", [None, "", "cpu  1 2 3\n"], ids=["no-file", "empty", "no-rows"])
def test_without_figures_nothing_is_pinned(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/stat").write_text(text)
    found = look(frozenset({0, 1}), tmp_path, sleep=lambda _: None)
    assert (found.pinned, found.sentence) == (frozenset(), "nothing is pinned: no allowed CPU could be looked at")


def test_the_cpus_of_a_core(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/cpu"
    for cpu, text in {0: "0,4", 4: "0,4", 1: "1"}.items():
        (folder / f"cpu{cpu}/topology").mkdir(parents=True)
        (folder / f"cpu{cpu}/topology/thread_siblings_list").write_text(f"{text}\n")
    assert cores(frozenset({0, 1, 2}), tmp_path) == {0: {0, 4}, 1: {1}, 2: set()}


# The host


def test_the_cpus_of_this_host_are_seen() -> None:
    online = parse_cpus(Path("/sys/devices/system/cpu/online").read_text())
    assert snapshot().worked.keys() == online


def test_a_cpu_with_a_hog_is_not_free() -> None:
    cpu = min(os.sched_getaffinity(0))
    said = f"import os; os.sched_setaffinity(0, [{cpu}]); print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", said], stdout=subprocess.PIPE) as hog:
        try:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"\n"
            found = look(frozenset({cpu}))
        finally:
            hog.kill()
    # Others may run there too: all of them count as busy.
    assert (found.free, set(found.busy)) == (frozenset(), {cpu})
    assert found.pinned == frozenset()


def test_a_signal_ends_the_look() -> None:
    script = (
        "import time\nfrom kerntune.run.free_cpus import look\n"
        "def sleep(seconds):\n    print(flush=True); time.sleep(60)\n"
        "try:\n    look(frozenset({0}), sleep=sleep)\nexcept KeyboardInterrupt:\n    print('interrupted')"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as looking:
        assert looking.stdout is not None
        assert looking.stdout.readline() == b"\n"
        looking.send_signal(signal.SIGINT)
        assert looking.communicate(timeout=LIMIT)[0] == b"interrupted\n"
