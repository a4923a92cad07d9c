"""`kerntune bench` on a drive that answers each request after 2 ms (dm-delay): what read-ahead is worth there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.host import Host
from tests.system.machine import Machine

DRIVE, SLOW = "slow", "kerntune-slow"
PLACE = "/run/kerntune-slow"
SIZE = 24  # MiB: 192 requests of 128 KiB
LIMIT = 240.0


@pytest.fixture
def slow_disk(vm: Machine) -> Iterator[str]:
    """Give the name of a device that answers late and holds a file system, which is at PLACE."""
    path = f"/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_{DRIVE}"
    vm.nvme_add(DRIVE, megabytes=4 * SIZE)
    try:
        vm.wait_for(f"test -b {path}")
        vm.check(
            f"modprobe dm-delay && size=$(blockdev --getsz {path}) && "
            f'dmsetup create {SLOW} --table "0 $size delay {path} 0 2" && '
            f"mkfs.ext4 -q -E lazy_itable_init=0 /dev/mapper/{SLOW} && "
            f"mkdir -p {PLACE} && mount /dev/mapper/{SLOW} {PLACE}"
        )
        yield vm.check(f"basename $(readlink -f /dev/mapper/{SLOW})").strip()
    finally:
        vm.run(f"umount {PLACE}; dmsetup remove {SLOW}")
        vm.nvme_del(DRIVE)


def bench(vm: Machine, *words: str) -> dict[str, Any]:
    argv = ["kerntune", "bench", "--leg", "io", "--dir", PLACE, "--size", f"{SIZE}M", "--pairs", "6", "--json", *words]
    done = vm.run(argv, limit=LIMIT)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    leg: dict[str, Any]
    (leg,) = found["legs"]
    assert {run["cold"] for side in ("before", "after") for run in leg[side]} <= {
        "blocks read",
        "not in the page cache",
    }
    return leg


def test_read_ahead_halves_the_time_on_a_drive_that_answers_late(host: Host, vm: Machine, slow_disk: str) -> None:
    vm.check(f"echo 128 > /sys/block/{slow_disk}/queue/read_ahead_kb")
    leg = bench(vm, "--set", f"read-ahead@{slow_disk}=4096", "--no-control")
    assert leg["verdict"] == "faster"
    assert leg["looks"][-1]["ratio"] <= 0.5, leg["pairs"]
    assert vm.read(f"/sys/block/{slow_disk}/queue/read_ahead_kb").strip() == "128"


@pytest.mark.soak
def test_read_ahead_beside_itself_changes_nothing(host: Host, vm: Machine, slow_disk: str) -> None:
    vm.check(f"echo 128 > /sys/block/{slow_disk}/queue/read_ahead_kb")
    leg = bench(vm, "--set", f"read-ahead@{slow_disk}=128")
    assert leg["looks"][-1]["ratio"] == pytest.approx(1, abs=0.25), leg["pairs"]
