"""The virtual machines in which the first touch of memory is slow; tests/live touches real pages."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from kerntune.run.prefault import BALLOON, flags, free_page_reporting

NO_BITS = "0" * 64
REPORTS = "000001" + "0" * 58


def lay(root: Path, *devices: tuple[str, str]) -> Path:
    """Make the folders of virtio devices: their ids and features."""
    for number, (kind, features) in enumerate(devices):
        folder = root / f"sys/bus/virtio/devices/virtio{number}"
        folder.mkdir(parents=True)
        (folder / "device").write_text(f"{kind}\n")
        (folder / "features").write_text(f"{features}\n")
    return root


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ((), False),
        (((BALLOON, NO_BITS),), False),
        (((BALLOON, REPORTS),), True),
        ((("0x0001", REPORTS),), False),
        ((("0x0001", REPORTS), (BALLOON, REPORTS)), True),
        (((BALLOON, ""),), False),
    ],
    ids=["no device", "plain balloon", "reports", "a network card", "beside a network card", "no features"],
)
def test_a_host_that_takes_free_memory_back(
    devices: tuple[tuple[str, str], ...], expected: bool, tmp_path: Path
) -> None:
    assert free_page_reporting(lay(tmp_path, *devices)) is expected


@pytest.mark.parametrize(("page_size", "shift"), [(64 << 10, 16), (2 << 20, 21), (1 << 30, 30)])
def test_the_size_of_a_page_stands_in_the_flags(page_size: int, shift: int) -> None:
    assert flags(page_size) >> 26 == shift
    assert flags(page_size) & mmap.MAP_ANONYMOUS
