"""A value that no test may give a file of the kernel: whoever writes it is found out, and it is undone at once."""

from __future__ import annotations

import ctypes
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

IN_MODIFY: Final = 0x2  # inotify(7); the kernel tells of writes below /proc as of others
EVENTS: Final = 1 << 12  # bytes, more than one event has
LONGEST: Final = 32  # characters of a value


@contextmanager
def kept_from(path: Path, forbidden: str) -> Iterator[list[str]]:
    """Watch the file; the list gets each forbidden value that was there, and what was there before is written again.

    Where the file has that value already it is the host's own, and nobody watches.
    """
    seen: list[str] = []
    with ExitStack() as stack:
        file = opened(stack, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        own = os.pread(file, LONGEST, 0)
        if own.decode().strip() == forbidden:
            yield seen
            return
        events = opened(stack, watch(path))
        end = opened(stack, os.eventfd(0, os.EFD_CLOEXEC))

        def undo() -> None:
            if (found := os.pread(file, LONGEST, 0).decode().strip()) == forbidden:
                os.pwrite(file, own, 0)
                seen.append(found)

        watching = threading.Thread(target=wait, args=(events, end, undo), name=f"keeps {path}", daemon=True)
        watching.start()
        try:
            yield seen
        finally:
            os.eventfd_write(end, 1)
            watching.join()


def opened(stack: ExitStack, fd: int) -> int:
    """Return the descriptor, which is closed with the stack."""
    stack.callback(os.close, fd)
    return fd


def watch(path: Path) -> int:
    """Return a descriptor that can be read after each write to the file; the standard library has no inotify."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.inotify_init1(os.O_CLOEXEC))
    if fd < 0 or libc.inotify_add_watch(fd, os.fsencode(path), IN_MODIFY) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return fd


def wait(events: int, end: int, undo: Callable[[], None]) -> None:
    """Look after each write, until the end is told; once more then, for a write that came just before it."""
    ready: list[int] = []
    while end not in ready:
        ready = select.select([events, end], [], [])[0]
        if events in ready:
            os.read(events, EVENTS)
        undo()
