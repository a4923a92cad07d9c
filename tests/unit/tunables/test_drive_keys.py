"""Which drive a host's own value belongs to: the queue that had it, whatever medium is in the drive."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.kernel.files import HostKernel
from kerntune.kernel.simulated import SimulatedKernel
from kerntune.model import Target
from kerntune.tunables.knobs import READ_AHEAD
from tests.hosts import plant
from tests.unit.lab import large_host, running

CLAIM = ("read-ahead", "sda", "4096")
# Kernels before 5.15 have no /sys/block/X/diskseq.
KERNELS = pytest.mark.parametrize("diskseq", [True, False], ids=["diskseq", "no diskseq"])


def host(*, diskseq: bool) -> SimulatedKernel:
    kernel = large_host()
    kernel.has_diskseq = diskseq
    return kernel


@KERNELS
async def test_another_medium_leaves_the_drive_its_own_value(*, diskseq: bool) -> None:
    async with running(host(diskseq=diskseq)) as lab:
        await lab.set(CLAIM)
        lab.kernel.change_medium("sda")
        lab.reports.clear()
        await lab.engine.reconcile("change sda")
        assert [outcome for report in lab.reports for outcome in report.outcomes] == []
        await lab.unset(("read-ahead", "sda"))
        assert lab.kernel.disks["sda"].read_ahead == 128
        assert not lab.store.baselines


@KERNELS
async def test_a_new_drive_of_the_same_name_never_gets_the_former_ones_value(*, diskseq: bool) -> None:
    async with running(host(diskseq=diskseq)) as lab:
        lab.kernel.disks["sda"].read_ahead = 8192
        await lab.set(CLAIM)
        lab.kernel.unplug("sda")
        lab.kernel.plug("sda", read_ahead=256)
        await lab.engine.reconcile("add sda")
        assert lab.kernel.disks["sda"].read_ahead == 4096
        await lab.unset(("read-ahead", "sda"))
        assert lab.kernel.disks["sda"].read_ahead == 256
        assert not lab.store.baselines


@KERNELS
async def test_a_new_drive_that_nobody_claims_is_left_alone(*, diskseq: bool) -> None:
    async with running(host(diskseq=diskseq)) as lab:
        await lab.set(CLAIM)
        lab.kernel.unplug("sda")
        await lab.unset(("read-ahead", "*"))
        lab.kernel.plug("sda", read_ahead=256)
        lab.writes()
        await lab.engine.reconcile("add sda")
        assert lab.writes() == []
        assert lab.kernel.disks["sda"].read_ahead == 256


async def test_a_value_that_was_saved_under_another_kind_of_key_is_dropped() -> None:
    former = Target("read-ahead", "sda", key="diskseq of a former release")
    async with running(large_host(), baselines={former: "999"}) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        assert lab.writes() == []
        assert not lab.store.baselines


def test_in_a_tree_the_inode_of_the_queues_folder_serves(tmp_path: Path) -> None:
    kernel = plant(tmp_path, "sys/block/sda/queue/read_ahead_kb\t128\nsys/block/sda/diskseq\t7")
    (target,) = READ_AHEAD.targets(kernel)
    assert target.key == str((tmp_path / "sys/block/sda/queue").stat().st_ino)
    assert list(READ_AHEAD.targets(HostKernel(tmp_path))) == [target]


class Leaving(SimulatedKernel):
    """sda goes between the look at the folders and the look at its queue."""

    def identity(self, path: str) -> str:
        return "" if path == "sys/block/sda/queue" else super().identity(path)


def test_a_drive_that_leaves_while_it_is_looked_at_is_no_target() -> None:
    kernel = Leaving([], disks=large_host().disks)
    assert [target.instance for target in READ_AHEAD.targets(kernel)] == ["nvme0n1", "nvme1n1"]
