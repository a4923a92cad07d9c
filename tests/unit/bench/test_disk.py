"""Which drives carry a file, and how it is known that it was read from them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from kerntune.bench.cold import PAGE, in_memory, judge
from kerntune.bench.disk import Disk, disk_at, disk_of, drives_of

MOUNTS = r"""22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme2n1p2 rw
23 22 0:21 / /tmp rw - tmpfs tmpfs rw
24 22 0:50 / /var/lib/docker/merged rw - overlay overlay rw,lowerdir=/a,upperdir=/b
25 22 0:51 / /mnt/nfs rw - nfs4 server:/export rw
26 22 0:52 / /mnt/fuse rw - fuse.sshfs me@host:/ rw
27 22 0:40 /@home /home rw - btrfs /dev/nvme2n1p2 rw,subvol=/@home
28 22 0:41 / /gone rw - btrfs /dev/pulled\040out rw
"""


class Host:
    """A tree in which block devices are made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "sys/dev/block").mkdir(parents=True)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/mountinfo").write_text(MOUNTS)

    def device(self, number: str, path: str, *below: str) -> None:
        """A device at a path below /sys/devices, made of the devices at others."""
        folder = self.root / "sys/devices" / path
        (folder / "slaves").mkdir(parents=True)
        for other in below:
            (folder / "slaves" / Path(other).name).symlink_to(
                os.path.relpath(self.root / "sys/devices" / other, folder / "slaves")
            )
        (self.root / "sys/dev/block" / number).symlink_to(f"../../devices/{path}")

    def partition(self, number: str, path: str) -> None:
        folder = self.root / "sys/devices" / path
        folder.mkdir(parents=True)
        (folder / "partition").write_text("2\n")
        (self.root / "sys/dev/block" / number).symlink_to(f"../../devices/{path}")


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Two drives with a partition each; a RAID of both, encrypted, with a volume on it."""
    made = Host(tmp_path)
    made.device("259:0", "pci/nvme/nvme2/nvme2n1")
    made.partition("259:2", "pci/nvme/nvme2/nvme2n1/nvme2n1p2")
    made.device("259:3", "pci/nvme/nvme10/nvme10n1")
    made.partition("259:4", "pci/nvme/nvme10/nvme10n1/nvme10n1p1")
    raid = ("pci/nvme/nvme10/nvme10n1/nvme10n1p1", "pci/nvme/nvme2/nvme2n1/nvme2n1p2")
    made.device("9:0", "virtual/block/md0", *raid)
    made.device("254:0", "virtual/block/dm-0", "virtual/block/md0")
    made.device("254:1", "virtual/block/dm-1", "virtual/block/dm-0", raid[1])
    made.device("7:0", "virtual/block/loop0")
    return made


@pytest.mark.parametrize(
    ("major", "minor", "drives"),
    [
        (259, 0, ("nvme2n1",)),
        (259, 2, ("nvme2n1",)),
        (9, 0, ("nvme2n1", "nvme10n1")),
        (254, 0, ("nvme2n1", "nvme10n1")),
        (254, 1, ("nvme2n1", "nvme10n1")),
        (7, 0, ("loop0",)),
        (0, 21, ()),
        (8, 1, ()),
    ],
)
def test_the_drives_of_a_device(major: int, minor: int, drives: tuple[str, ...], host: Host) -> None:
    assert drives_of(os.makedev(major, minor), host.root) == drives


def test_devices_that_are_made_of_each_other_end(host: Host) -> None:
    host.device("254:8", "virtual/block/dm-8", "virtual/block/dm-9")
    host.device("254:9", "virtual/block/dm-9", "virtual/block/dm-8")
    assert drives_of(os.makedev(254, 8), host.root) == ()


@pytest.mark.parametrize(
    ("mount", "major", "minor", "disk"),
    [
        ("22", 259, 2, Disk("ext4", ("nvme2n1",))),
        ("23", 0, 21, Disk("tmpfs")),
        ("24", 0, 50, Disk("overlay")),
        ("25", 0, 51, Disk("nfs4")),
        ("26", 0, 52, Disk("fuse.sshfs")),
        ("28", 0, 41, Disk("btrfs")),
        ("2", 259, 2, Disk("", ("nvme2n1",))),
        ("", 0, 99, Disk()),
    ],
)
def test_the_file_system_is_the_one_of_the_mount(mount: str, major: int, minor: int, disk: Disk, host: Host) -> None:
    assert disk_at(os.makedev(major, minor), mount, host.root) == disk


def test_on_this_host() -> None:
    with tempfile.TemporaryFile() as file, open("/proc/self/status", encoding="ascii") as of_proc:
        found = disk_of(file.fileno())
        assert found.file_system
        assert all((Path("/sys/block") / drive).exists() for drive in found.drives)
        assert disk_of(of_proc.fileno()) == Disk("proc")


# How it is known that a file was read from its disk


MIB = 1 << 20
SIZE = 1024 * MIB


@pytest.mark.parametrize(
    ("before", "read", "proof", "trouble"),
    [
        (0, SIZE, "blocks read", ""),
        (None, SIZE, "blocks read", ""),
        (512 * MIB, SIZE, "blocks read", ""),
        (0, SIZE - 10 * MIB, "blocks read", ""),
        (0, SIZE - 11 * MIB, "not in the page cache", ""),
        (0, 0, "not in the page cache", ""),
        (None, 0, "", ""),
        (None, SIZE // 2, "", ""),
        (512 * MIB, 512 * MIB, "", "not cold: 512 of 1 024 MiB were in memory before the read"),
        (PAGE, 0, "", "not cold: 1 of 1 024 MiB were in memory before the read"),
    ],
)
def test_what_is_known(before: int | None, read: int, proof: str, trouble: str) -> None:
    assert judge(SIZE, before, read) == (proof, trouble)


def test_a_file_of_somebody_else_is_read_from_its_disk_or_it_was_in_memory() -> None:
    assert judge(SIZE, None, SIZE, on_disk=True) == ("blocks read", "")
    proof, trouble = judge(SIZE, None, 0, on_disk=True)
    assert proof == ""
    assert trouble.startswith("not cold: 0 of ")


def test_what_was_written_just_now_is_in_memory() -> None:
    # Not on an overlay, whose files have their pages below it.
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.pwrite(file.fileno(), bytes(3 * PAGE + 1), 0)
        # Kernels before 6.5 do not say.
        assert in_memory(file.fileno(), 3 * PAGE + 1) in (3 * PAGE + 1, None)


def test_of_no_file_nothing_is_known() -> None:
    assert in_memory(-1, PAGE) is None
