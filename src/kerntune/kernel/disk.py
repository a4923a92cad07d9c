"""The file system of a file and the drives below it, read from /proc and sysfs below one root."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kerntune.globs import natural_sort_key

ESCAPED: Final = re.compile(r"\\([0-7]{3})")  # escapes for white space in /proc/self/mountinfo
HOST: Final = Path("/")


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system's type as in mount(8), and the names of its drives in /sys/block, if it has any."""

    file_system: str = ""
    drives: tuple[str, ...] = ()


def disk_of(fd: int, root: Path = HOST) -> Disk:
    """Return the file system and the drives of an open file."""
    return disk_at(os.fstat(fd).st_dev, _mount_id(fd), root)


def disk_at(device: int, mount: str, root: Path = HOST) -> Disk:
    """Return the file system and the drives of a device number, reached through the mount with this id."""
    file_system, source = _mounted(mount, root)
    found = drives_of(device, root)
    if not found and source.startswith("/dev/"):
        # Subvolumes of btrfs have numbers that belong to no device.
        try:
            found = drives_of((root / source.lstrip("/")).stat().st_rdev, root)
        except OSError:
            found = ()
    return Disk(file_system, found)


def drives_of(device: int, root: Path = HOST) -> tuple[str, ...]:
    """Return the drives below a block device, through partitions, dm and md; none if it is no block device.

    Documentation/ABI/stable/sysfs-block: a device that is made of others has them in `slaves`.
    """
    folder = root / f"sys/dev/block/{os.major(device)}:{os.minor(device)}"
    return tuple(sorted(_drives(folder, frozenset()), key=natural_sort_key))


def _drives(folder: Path, seen: frozenset[Path]) -> set[str]:
    try:
        folder = folder.resolve(strict=True)
        if (folder / "partition").exists():
            folder = folder.parent
        if folder in seen:
            return set()
        slaves = folder / "slaves"
        below = list(slaves.iterdir()) if slaves.is_dir() else []
    except OSError:
        return set()
    if not below:
        return {folder.name}
    return {name for slave in below for name in _drives(slave, seen | {folder})}


def _mount_id(fd: int) -> str:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        rows = dict(line.split(None, 1) for line in file)
    return rows.get("mnt_id:", "").strip()


def _mounted(mount: str, root: Path) -> tuple[str, str]:
    """Return the type and the source of a mount (proc_pid_mountinfo(5)), "" for both where it is not listed."""
    text = (root / "proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in text.splitlines():
        if line.split(None, 1)[0] == mount:
            file_system, source, *_ = line.partition(" - ")[2].split(" ")
            return file_system, ESCAPED.sub(lambda found: chr(int(found[1], 8)), source)
    return "", ""
