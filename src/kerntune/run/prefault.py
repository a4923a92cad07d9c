"""The first touch of free huge pages, before a command needs them, and the virtual machines in which that is slow."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kerntune.kernel.files import HostKernel, read_or_none
from kerntune.kernel.huge_pages import read_pool

HOST: Final = Path("/")
BALLOON: Final = "0x0005"  # the id of this virtio device
REPORTING: Final = 5  # the bit of VIRTIO_BALLOON_F_REPORTING (include/uapi/linux/virtio_balloon.h)
PIECE: Final = 256 << 20  # bytes: after each one a bar can move, and a signal can end the work
MAP_HUGETLB: Final = 0x40000  # of mmap(2), with the size's logarithm above this bit (include/uapi/asm-generic)
MAP_HUGE_SHIFT: Final = 26


def free_page_reporting(root: Path = HOST) -> bool:
    """Return True if the host of this virtual machine takes back free memory, so that its next use is slow."""
    kernel = HostKernel(root)
    devices = kernel.glob("sys/bus/virtio/devices/*")
    balloons = (device for device in devices if read_or_none(kernel, f"{device}/device") == BALLOON)
    features = (read_or_none(kernel, f"{device}/features") or "" for device in balloons)
    return any(bits[REPORTING : REPORTING + 1] == "1" for bits in features)


def flags(page_size: int) -> int:
    """Return the flags of mmap(2) for memory of huge pages of a size, which the kernel touches at once."""
    size = (page_size.bit_length() - 1) << MAP_HUGE_SHIFT
    return mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE | MAP_HUGETLB | size


def touched(pages: int, page_size: int, *, piece: int = PIECE) -> Iterator[int]:
    """Touch so many free pages of a pool, a piece (in bytes) at a time, and yield how many are done by then.

    All pieces stay mapped until the end: the kernel would hand out the same pages again. It ends early where the pool
    has no more, because others have taken them; then it borrows none (nr_overcommit_hugepages).
    """
    with_all: list[mmap.mmap] = []
    at_once = max(1, piece // page_size)
    done = 0
    try:
        while (count := min(at_once, pages - done, read_pool(page_size).left)) > 0:
            try:
                with_all.append(mmap.mmap(-1, count * page_size, flags=flags(page_size)))
            except OSError:
                return
            done += count
            yield done
    finally:
        for memory in with_all:
            memory.close()
