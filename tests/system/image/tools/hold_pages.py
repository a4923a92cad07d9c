#!/usr/bin/python3
"""hold-pages FOLDER: a program that holds huge pages of 2 MiB on the nodes that it is told, until it is killed.

It makes the FIFOs FOLDER/ask and FOLDER/answer, and prints `ready`. Each line of `ask` gets one line in `answer`: how
many pages the program then holds on the node.

take NODE NUMBER    take so many pages of the node's pool, or those that it has
give NODE NUMBER    give so many back, or all
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path

SIZE = 2 << 20
MAP_HUGETLB = 0x40000
KIND = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
MADV_POPULATE_WRITE = 23
SET_MEMPOLICY = 238  # of x86-64; numactl's library is not there to be called
MPOL_DEFAULT, MPOL_BIND = 0, 2
NODES = 64

libc = ctypes.CDLL(None, use_errno=True)


def allow(node: int | None) -> None:
    """Have what is allocated from now on come from one node only (set_mempolicy(2)), or from any."""
    mode = MPOL_DEFAULT if node is None else MPOL_BIND
    mask = None if node is None else ctypes.byref(ctypes.c_ulong(1 << node))
    if libc.syscall(SET_MEMPOLICY, mode, mask, NODES if mask else 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def page() -> mmap.mmap | None:
    """Return one page in use, or None when the pool has no free one for us: touched by hand, that would end us."""
    try:
        memory = mmap.mmap(-1, SIZE, KIND)
    except OSError:
        return None
    try:
        memory.madvise(MADV_POPULATE_WRITE)
    except OSError:
        memory.close()
        return None
    return memory


def take(held: list[mmap.mmap], node: int, number: int) -> None:
    allow(node)
    for _ in range(number):
        if (memory := page()) is None:
            break
        held.append(memory)
    allow(None)


def give(held: list[mmap.mmap], number: int) -> None:
    for _ in range(min(number, len(held))):
        held.pop().close()


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("ask", "answer"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    # Open for both: neither end waits for the other, and neither is closed meanwhile.
    ask = os.fdopen(os.open(folder / "ask", os.O_RDWR), "rb", buffering=0)
    answer = os.open(folder / "answer", os.O_RDWR)
    held: dict[int, list[mmap.mmap]] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in ask:
        word, node, number = line.decode().split()
        mine = held.setdefault(int(node), [])
        if word == "take":
            take(mine, int(node), int(number))
        else:
            give(mine, int(number))
        os.write(answer, b"%d\n" % len(mine))


main()
