"""Where a process takes its memory from: what `--numa` comes to on a host, and the policy on the kernel that runs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from kerntune.errors import InvalidValue, KerntuneError, NoSuchTarget, NotSupported
from kerntune.run import numa
from kerntune.run.numa import Kind, Node, Policy, nodes, place
from kerntune.run.scheduling import aside
from kerntune.units import spell_cpus
from tests.harness.workers import LIMIT

GIB: Final = 1 << 30
KIB_IN_GIB: Final = 1 << 20
HERE = numa.allowed()
ALL = frozenset(range(12))
# node -> CPUs, GiB that are free, GiB of the file cache; a node without memory has None.
Rows = Mapping[int, tuple[str, int, int | None]]
TWO: Final = {0: ("0-3,8-9", 10, 20), 1: ("4-7,10-11", 25, 1)}
# A node of CXL memory or of a graphics card has most of the memory, and no CPU; node 3 has CPUs alone.
MIXED: Final = {**TWO, 2: ("", 90, 0), 3: ("12-15", 0, None)}


class Asked(NamedTuple):
    """What is asked for: the word, on which host, by a process with these CPUs and these nodes (none: all)."""

    word: str
    rows: Rows
    cpus: set[int] | frozenset[int] = ALL
    nodes: str = ""

    def place(self, root: Path) -> numa.Place:
        return place(self.word, frozenset(self.cpus), host(root, self.rows, self.nodes))


needs_nodes = pytest.mark.skipif(not nodes(), reason="this kernel has no NUMA nodes")


def host(root: Path, rows: Rows, allowed: str = "") -> Path:
    folder = root / "sys/devices/system/node"
    folder.mkdir(parents=True)
    memory = [number for number, (_, _, cache) in rows.items() if cache is not None]
    (folder / "has_memory").write_text(f"{spell_cpus(memory)}\n")
    for number, (cpus, free, cache) in rows.items():
        (folder / f"node{number}").mkdir()
        (folder / f"node{number}/cpulist").write_text(f"{cpus}\n")
        half = (cache or 0) * KIB_IN_GIB // 2
        (folder / f"node{number}/meminfo").write_text(
            f"Node {number} MemTotal:       {200 * KIB_IN_GIB} kB\n"
            f"Node {number} MemFree:        {free * KIB_IN_GIB} kB\n"
            f"Node {number} Active(file):   {half} kB\n"
            f"Node {number} Inactive(file): {half} kB\n"
            f"Node {number} FilePages:      {150 * KIB_IN_GIB} kB\n"
        )
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/status").write_text(f"Name:\tx\nMems_allowed_list:\t{allowed or spell_cpus(rows)}\nx:\t1\n")
    return root


def test_the_nodes_of_a_host(tmp_path: Path) -> None:
    assert nodes(host(tmp_path, MIXED, allowed="0,2-3")) == [
        Node(0, frozenset({0, 1, 2, 3, 8, 9}), 30 * GIB),
        Node(2, frozenset(), 90 * GIB),
    ]


@pytest.mark.parametrize(
    ("asked", "policy", "stay", "why"),
    [
        (
            Asked("auto", TWO), (Kind.PREFERRED, {0}), {0, 1, 2, 3, 8, 9},
            "memory first from node 0, which has the most free memory of 2 (30.0 GiB with the file cache); "
            "on its CPUs 0-3,8-9",
        ),
        (
            Asked("auto", MIXED), (Kind.PREFERRED, {0}), {0, 1, 2, 3, 8, 9},
            "memory first from node 0, which has the most free memory of 2 (30.0 GiB with the file cache); "
            "on its CPUs 0-3,8-9",
        ),
        (
            Asked("auto", TWO, {3, 4, 5}), (Kind.PREFERRED, {0}), {3},
            "memory first from node 0, which has the most free memory of 2 (30.0 GiB with the file cache); "
            "on its CPUs 3",
        ),
        (
            Asked("auto", TWO, {4, 5}), (Kind.PREFERRED, {1}), {4, 5},
            "memory first from node 1 (26.0 GiB with the file cache); on its CPUs 4-5",
        ),
        (
            Asked("auto", TWO, ALL, "1"), (Kind.PREFERRED, {1}), {4, 5, 6, 7, 10, 11},
            "memory first from node 1 (26.0 GiB with the file cache); on its CPUs 4-7,10-11",
        ),
        (
            Asked("1", TWO), (Kind.PREFERRED, {1}), {4, 5, 6, 7, 10, 11},
            "memory first from node 1 (26.0 GiB with the file cache); on its CPUs 4-7,10-11",
        ),
        (
            Asked("2", MIXED), (Kind.PREFERRED, {2}), set(),
            "memory first from node 2 (90.0 GiB with the file cache); the node has no CPUs to stay on",
        ),
        (Asked("interleave", TWO), (Kind.INTERLEAVE, {0, 1}), set(), "memory in turn from nodes 0-1"),
        (Asked("interleave", MIXED), (Kind.INTERLEAVE, {0, 1}), set(), "memory in turn from nodes 0-1"),
        (Asked("interleave", TWO, ALL, "0"), (Kind.INTERLEAVE, {0}), set(), "memory in turn from node 0"),
        (
            Asked("auto", {0: ("0-1", 3, 1)}, {0, 1}), (Kind.PREFERRED, {0}), {0, 1},
            "memory first from node 0 (4.0 GiB with the file cache); on its CPUs 0-1",
        ),
    ],
    ids=[
        "auto", "auto-beside-memory-alone", "auto-for-some-cpus", "auto-for-cpus-of-one", "auto-in-a-cpuset",
        "by-number", "without-cpus", "interleave", "interleave-beside-memory-alone", "interleave-in-a-cpuset",
        "one-node",
    ],
)  # fmt: skip
def test_what_is_asked_for_comes_to(
    asked: Asked, policy: tuple[Kind, set[int]], stay: set[int], why: str, tmp_path: Path
) -> None:
    expected = numa.Place(Policy(policy[0], frozenset(policy[1])), frozenset(stay), why)
    assert asked.place(tmp_path) == expected


@pytest.mark.parametrize(
    ("asked", "error", "why"),
    [
        (Asked("3", MIXED), NoSuchTarget, "node 3 is not there, has no memory, or is not allowed. Memory is on nodes"),
        (Asked("9", {0: ("0-1", 1, 1)}), NoSuchTarget, "node 9 is not there, .*. Memory is on node 0"),
        (Asked("1", TWO, {0, 1}), NoSuchTarget, "may use no CPU of node 1, which has 4-7,10-11. It may use 0-1"),
        (Asked("auto", TWO, {12}), NoSuchTarget, "no node has both memory and one of the CPUs 12"),
        (Asked("interleave", TWO, {12}), NoSuchTarget, "no node has both memory and one of the CPUs 12"),
        (Asked("-1", TWO), InvalidValue, "'-1' is no node. Give its number, auto or interleave"),
        (Asked("all", TWO), InvalidValue, "'all' is no node"),
        (Asked("0", {}), NotSupported, "this kernel has no NUMA nodes"),
        (Asked("auto", {}), NotSupported, "this kernel has no NUMA nodes"),
    ],
    ids=["no-memory", "absent", "other-cpus", "auto-no-cpu", "interleave-no-cpu", "negative", "word", "no-numa",
         "auto-no-numa"],
)  # fmt: skip
def test_what_cannot_be_is_refused(asked: Asked, error: type[KerntuneError], why: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=why):
        asked.place(tmp_path)


# The kernel that runs


@needs_nodes
def test_what_is_asked_for_here() -> None:
    cpus = frozenset(os.sched_getaffinity(0))
    for asked in ("auto", "interleave"):
        found = place(asked, cpus)
        assert found.policy.nodes <= HERE
        assert found.cpus <= cpus
        aside(found.policy.apply)


@needs_nodes
@pytest.mark.parametrize(("kind", "word"), [(Kind.PREFERRED, "prefer"), (Kind.INTERLEAVE, "interleave")])
def test_the_policy_is_kept_by_a_new_program(kind: Kind, word: str) -> None:
    node = min(HERE)

    def put_on() -> tuple[tuple[int, frozenset[int]], str]:
        Policy(kind, frozenset({node})).apply()
        maps = subprocess.run(["cat", "/proc/self/numa_maps"], stdout=subprocess.PIPE, timeout=LIMIT, check=True)
        return numa.in_force(), maps.stdout.decode()

    before = numa.in_force()
    mine, maps = aside(put_on)
    assert mine == (kind, frozenset({node}))
    assert f" {word}:{node} " in maps or f" {word} (many):{node} " in maps
    assert numa.in_force() == before, "other threads keep theirs"


@needs_nodes
@pytest.mark.parametrize("asked", [{1023}, {1024}, {-1}, set()], ids=["absent", "too-high", "too-low", "none"])
@pytest.mark.parametrize("kind", list(Kind), ids=["preferred", "interleave"])
def test_a_node_that_is_not_there_is_refused(kind: Kind, asked: set[int]) -> None:
    with pytest.raises(NoSuchTarget, match="cannot give memory"):
        aside(Policy(kind, frozenset(asked)).apply)


# A filter that answers set_mempolicy(2) with an errno, as those of containers do (seccomp(2)).
FILTERED = """\
import ctypes, struct, sys
from kerntune.run import numa
from kerntune.errors import KerntuneError
number, error = map(int, sys.argv[1:])
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program) == 0, ctypes.get_errno()
try:
    numa.Policy(numa.Kind.PREFERRED, numa.allowed()).apply()
except KerntuneError as error:
    print(type(error).__name__, error)
"""


@needs_nodes
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (1, "AccessDenied the process may not set its memory policy (Operation not permitted). A filter of system "
            "calls forbids it: containers of docker and podman need --cap-add SYS_NICE for it\n"),
        (38, "NotSupported there is no set_mempolicy(2) here. The kernel is built without CONFIG_NUMA, "
             "or a filter hides it\n"),
    ],
    ids=["EPERM", "ENOSYS"],
)  # fmt: skip
def test_a_filter_of_system_calls_is_named(error: int, said: str) -> None:
    number = numa.CALLS[os.uname().machine][0]
    words = [sys.executable, "-c", FILTERED, str(number), str(error)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LIMIT, check=True)
    assert done.stdout == said


def test_the_mask_has_a_bit_for_each_node() -> None:
    assert ctypes.sizeof(ctypes.c_ulong) * 8 == numa.WORD
    assert numa.MAX_NODES % numa.WORD == 0
