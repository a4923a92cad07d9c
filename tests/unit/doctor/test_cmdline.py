"""The kernel's command line (Documentation/admin-guide/kernel-parameters.txt)."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.doctor import cmdline
from kerntune.doctor.files import Files
from kerntune.doctor.types import Assignment, Cause, Left
from tests.unit.doctor.lab import write

POOLS = "sys/kernel/mm/hugepages"
NODES = "sys/devices/system/node"
MIB = 1 << 20


def read(root: Path, text: str, *, default: int = 2 * MIB) -> list[Assignment | Left]:
    return cmdline.read(Files(write(root, {"proc/cmdline": f"{text}\n"})), default)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("quiet root=/dev/sda1", []),
        ("hugepages=64", [(f"{POOLS}/hugepages-2048kB/nr_hugepages", "64")]),
        (
            "hugepages=64 hugepagesz=1G hugepages=4",
            [
                (f"{POOLS}/hugepages-2048kB/nr_hugepages", "64"),
                (f"{POOLS}/hugepages-1048576kB/nr_hugepages", "4"),
            ],
        ),
        ("default_hugepagesz=1G hugepages=4", [(f"{POOLS}/hugepages-1048576kB/nr_hugepages", "4")]),
        (
            "hugepagesz=2M hugepages=0:8,1:16",
            [
                (f"{NODES}/node0/hugepages/hugepages-2048kB/nr_hugepages", "8"),
                (f"{NODES}/node1/hugepages/hugepages-2048kB/nr_hugepages", "16"),
            ],
        ),
        ("transparent_hugepage=madvise", [("sys/kernel/mm/transparent_hugepage/enabled", "madvise")]),
        (
            "cpufreq.default_governor=performance",
            [("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor", "performance")],
        ),
        ("sysctl.vm.overcommit_memory=1", [("proc/sys/vm/overcommit_memory", "1")]),
        ("numa_balancing=disable", [("proc/sys/kernel/numa_balancing", "0")]),
        ("init=/x -- hugepages=64", []),
    ],
)
def test_parameters(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    assert [(line.path, line.value) for line in read(tmp_path, text) if isinstance(line, Assignment)] == expected
    assert not [line for line in read(tmp_path, text) if isinstance(line, Left)]


@pytest.mark.parametrize("text", ["hugepages=many", "hugepagesz=big", "hugepages=0:1,x", "elevator=noop"])
def test_what_is_no_setting_is_left(tmp_path: Path, text: str) -> None:
    assert [type(line) for line in read(tmp_path, text)][-1] is Left


def test_elevator_has_no_effect(tmp_path: Path) -> None:
    (line,) = read(tmp_path, "elevator=none")
    assert isinstance(line, Left)
    assert line.cause is Cause.NO_EFFECT


def test_without_huge_pages_there_is_no_default_size(tmp_path: Path) -> None:
    (line,) = read(tmp_path, "hugepages=64", default=0)
    assert isinstance(line, Left)
