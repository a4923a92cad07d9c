"""The page cache of one file: it drops a file from memory, and finds out if it was there before a read."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import Final

from kerntune.units import mib

CACHESTAT: Final = 451  # cachestat(2), from Linux 6.5; the number is the same everywhere
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
READ: Final = "blocks read"
ABSENT: Final = "not in the page cache"


class Range(ctypes.Structure):
    """The C structure cachestat_range."""

    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class Cached(ctypes.Structure):
    """The C structure cachestat."""

    pages: int
    _fields_ = (
        ("pages", ctypes.c_uint64),
        ("dirty", ctypes.c_uint64),
        ("writeback", ctypes.c_uint64),
        ("evicted", ctypes.c_uint64),
        ("recently_evicted", ctypes.c_uint64),
    )


def drop(fd: int) -> None:
    """Drop the file's pages from the page cache; mapped and dirty pages stay (posix_fadvise(2))."""
    with contextlib.suppress(OSError):  # a read-only file system has nothing to write
        os.fsync(fd)
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def in_memory(fd: int, size: int) -> int | None:
    """Return how many bytes of the file are in memory, None if the kernel does not say: it answers the owner only."""
    which, found = Range(0, size), Cached()
    libc = ctypes.CDLL(None, use_errno=True)
    refused = libc.syscall(
        ctypes.c_long(CACHESTAT), ctypes.c_long(fd), ctypes.byref(which), ctypes.byref(found), ctypes.c_long(0)
    )
    return None if refused else min(size, found.pages * PAGE)


def judge(size: int, before: int | None, read: int, *, on_disk: bool = False) -> tuple[str, str]:
    """Return the proof that a file was not in memory, and what is wrong when it was.

    `before` are the bytes that were in memory before the read, `read` those that came from a block device. `on_disk`
    says that all of the file lies on one.
    """
    if read >= 0.99 * size:
        return READ, ""
    if before is None:
        rest = f"{mib(read, up=True)} of {mib(size, up=True)} MiB were read from the disk, and the rest was in memory"
        return "", f"not cold: {rest}" if on_disk else ""
    there = f"{mib(before, up=True)} of {mib(size, up=True)} MiB were in memory before the read"
    return ("", f"not cold: {there}") if before else (ABSENT, "")
