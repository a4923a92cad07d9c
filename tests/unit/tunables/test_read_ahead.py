"""read-ahead: figures in KiB that the kernel rounds to pages, on drives that come and go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, NoSuchTarget
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Reason, State, Target
from kerntune.tunables.knobs import READ_AHEAD as TUNABLE
from tests.hosts import plant
from tests.unit.lab import GIB, large_host, running, told

NAME = TUNABLE.name
PAGE = os.sysconf("SC_PAGE_SIZE") >> 10  # KiB


def path(device: str) -> str:
    return f"sys/block/{device}/queue/read_ahead_kb"


@pytest.mark.parametrize(("value", "normal"), [("0", "0"), ("128", "128"), ("004096", "4096"), ("65536", "65536")])
def test_values(value: str, normal: str) -> None:
    assert TUNABLE.normal_value(value) == normal
    assert TUNABLE.restorable(normal)


@pytest.mark.parametrize("kib", [1, PAGE - 1])
async def test_less_than_a_page_would_switch_it_off_and_is_refused(kib: int) -> None:
    async with running(large_host()) as lab:
        with pytest.raises(InvalidValue, match=f"whole pages of {PAGE} KiB") as raised:
            await lab.set((NAME, "sda", kib))
        assert "0 to switch it off" in raised.value.hint
        assert lab.writes() == []
        assert told(await lab.one(NAME, "sda", PAGE)) == ("sda", str(PAGE), State.SATISFIED, Reason.OK)
        assert told(await lab.one(NAME, "sda", 0)) == ("sda", "0", State.SATISFIED, Reason.OK)


@pytest.mark.parametrize("value", ["4M", "0x10", "65537", "9" * 30, "many"])
def test_what_is_no_read_ahead(value: str) -> None:
    with pytest.raises(InvalidValue):
        TUNABLE.normal_value(value)


def test_the_hosts_own_value_may_be_any() -> None:
    assert TUNABLE.restorable("1048576")
    assert TUNABLE.restorable("1")
    assert not TUNABLE.restorable("much")


def test_names_are_those_of_the_scheduler() -> None:
    drive = Target(NAME, "nvme0n1", aliases=("by-id/nvme-First",))
    assert all(TUNABLE.matches(pattern, drive) for pattern in ("nvme0n1", "nvme*", "*", "by-id/nvme-*"))
    assert not any(TUNABLE.matches(pattern, drive) for pattern in ("sd*", "nvme0n1p1", "by-id/nvme-Second"))
    with pytest.raises(InvalidValue):
        TUNABLE.normal("../nvme0n1")


def test_of_a_multipath_drive_the_drive_itself(tmp_path: Path) -> None:
    names = ("nvme0n1", "nvme0c0n1", "nvme0c1n1")
    rows = [f"{path(name)}\t128\nsys/block/{name}/hidden\t{int(name != 'nvme0n1')}" for name in names]
    kernel = plant(tmp_path, "\n".join(rows))
    assert [target.instance for target in TUNABLE.targets(kernel)] == ["nvme0n1"]


def test_a_host_without_drives(tmp_path: Path) -> None:
    assert "has a queue/read_ahead_kb file" in TUNABLE.missing(plant(tmp_path, "sys/block/zram0/diskseq\t1"))
    assert TUNABLE.missing(large_host()) == ""


async def test_a_pattern_sets_what_it_covers_and_unset_puts_it_back() -> None:
    async with running(large_host()) as lab:
        answer = await lab.set((NAME, "nvme*", 4096))
        assert [told(o) for o in answer.outcomes] == [
            ("nvme0n1", "4096", State.SATISFIED, Reason.OK),
            ("nvme1n1", "4096", State.SATISFIED, Reason.OK),
        ]
        assert sorted(lab.writes()) == [(path("nvme0n1"), "4096"), (path("nvme1n1"), "4096")]
        assert (await lab.set((NAME, "nvme*", 4096))).changed is False
        await lab.unset((NAME, "nvme*"))
        assert [disk.read_ahead for disk in lab.kernel.disks.values()] == [128] * 3


async def test_what_is_rounded_to_pages_is_as_asked_and_written_once() -> None:
    async with running(large_host()) as lab:
        outcome = await lab.one(NAME, "sda", 4 * PAGE + 1)
        assert told(outcome) == ("sda", str(4 * PAGE), State.SATISFIED, Reason.OK)
        assert "whole pages" in outcome.detail
        await lab.engine.reconcile("again")
        assert len(lab.writes()) == 1


async def test_a_drive_that_comes_has_it_too() -> None:
    async with running(large_host()) as lab:
        await lab.set((NAME, "nvme*", 2048))
        lab.kernel.plug("nvme2n1")
        await lab.engine.reconcile("hotplug")
        assert lab.kernel.disks["nvme2n1"].read_ahead == 2048


async def test_a_drive_that_is_not_there() -> None:
    async with running(SimulatedKernel([Node(GIB)])) as lab:
        lab.kernel.plug("sda")
        await lab.engine.reconcile("plugged")
        with pytest.raises(NoSuchTarget, match="'sdb'"):
            await lab.set((NAME, "sdb", 2048))
