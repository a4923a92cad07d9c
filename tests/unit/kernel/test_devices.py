"""Other names of block devices, in a tree and on the host."""

from __future__ import annotations

from pathlib import Path

from kerntune.kernel.devices import MAX_DEVICES, Links, links
from kerntune.kernel.files import HostKernel
from tests.hosts import lay_out, plant

SAMSUNG = "by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123"


def test_the_links_of_one_drive_and_not_of_its_partitions(tmp_path: Path) -> None:
    kernel = lay_out("two-sockets", tmp_path)
    assert list(kernel.links("nvme0n1")) == [SAMSUNG, "by-id/nvme-eui.36344830525001230025384500000001"]
    assert list(kernel.links("nvme0n1p1")) == [f"{SAMSUNG}-part1"]


def test_every_folder_of_links_counts(tmp_path: Path) -> None:
    kernel = lay_out("two-sockets", tmp_path)
    assert list(kernel.links("sda")) == ["by-id/ata-ST4000NM000A_WJG0ABCD", "by-path/pci-0000:00:17.0-ata-1"]


def test_no_link_is_none(tmp_path: Path) -> None:
    assert list(lay_out("two-sockets", tmp_path / "a").links("nvme10n1")) == []
    assert list(lay_out("small-vm", tmp_path / "b").links("vda")) == []


def test_only_symbolic_links_count(tmp_path: Path) -> None:
    plant(tmp_path, "dev/disk/by-id/nvme-A\tnvme0n1\ndev/disk/by-id/nvme-B -> nvme0n1")
    assert list(links(tmp_path, "nvme0n1")) == ["by-id/nvme-B"]


def test_udev_is_asked_on_the_host() -> None:
    assert list(HostKernel().links("no-such-device")) == []


def test_udev_is_asked_again_when_it_has_written_and_only_the_last_answer_is_kept() -> None:
    asked: list[str] = []
    written = {"sda": 1}

    def ask(device: str) -> list[str]:
        asked.append(device)
        return [f"by-id/{device}-{len(asked)}"]

    known = Links(ask, lambda device: written.get(device, 0))
    assert [known.of("sda"), known.of("sda")] == [["by-id/sda-1"]] * 2
    for time in range(2, 100):
        written["sda"] = time
        known.of("sda")
    assert known.of("sda") == ["by-id/sda-99"]
    assert (len(asked), len(known)) == (99, 1)


def test_the_links_of_devices_that_have_gone_are_not_kept_for_good() -> None:
    known = Links(lambda _device: [], lambda _device: 1)
    for number in range(3 * MAX_DEVICES):
        known.of(f"dm-{number}")
    assert len(known) <= MAX_DEVICES
