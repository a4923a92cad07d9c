#!/usr/bin/python3
"""fragment MIB: spoils so much memory for huge pages.

It keeps one locked page in each 2 MiB and frees the rest: memory is free then, huge pages are not.
Prints `ready` and the number of blocks it spoils, and stays until it is killed. `numactl --membind=N` chooses the node.
Locked pages are not moved while vm.compact_unevictable_allowed is 0, which it sets. Page numbers are shown to root only
(Documentation/admin-guide/mm/pagemap.rst).
"""

from __future__ import annotations

import array
import ctypes
import mmap
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

PAGE = 4096
IN_A_BLOCK = 512
FRAME = (1 << 55) - 1
MADV_NOHUGEPAGE, MADV_POPULATE_WRITE = 15, 23

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mlock.argtypes = libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def done(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def take(pages: int) -> int:
    """The address of so much memory, in pages of the usual size."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = int(libc.mmap(None, pages * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, kind, -1, 0))
    done(libc.madvise(start, pages * PAGE, MADV_NOHUGEPAGE))
    done(libc.madvise(start, pages * PAGE, MADV_POPULATE_WRITE))
    return start


def first_of_each_block(frames: array.array[int]) -> list[int]:
    """The index of one page in each physical block of 2 MiB."""
    seen: set[int] = set()
    found = []
    for index, entry in enumerate(frames):
        block = (entry & FRAME) // IN_A_BLOCK
        if block not in seen:
            seen.add(block)
            found.append(index)
    return found


def main() -> None:
    pages = (int(sys.argv[1]) << 20) // PAGE
    Path("/proc/sys/vm/compact_unevictable_allowed").write_text("0")
    Path("/proc/self/oom_score_adj").write_text("-1000")
    start = take(pages)
    frames = array.array("Q")
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(start // PAGE * frames.itemsize)
        frames.fromfile(pagemap, pages)
    kept = first_of_each_block(frames)
    for page in kept:
        done(libc.mlock(start + page * PAGE, PAGE))
    for before, after in pairwise([-1, *kept, pages]):
        if after - before > 1:
            done(libc.munmap(start + (before + 1) * PAGE, (after - before - 1) * PAGE))
    sys.stdout.write(f"ready {len(kept)}\n")
    sys.stdout.flush()
    signal.pause()


main()
