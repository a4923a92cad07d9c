"""The kernel's files that the guard reads and writes, kept open: it looks up no path while memory is short."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
from typing import Final, NamedTuple

from kerntune.guard.policy import MODE_NEVER, Sample, counting_error
from kerntune.kernel.files import CHUNK, Kernel, KernelError, OpenFile
from kerntune.kernel.memory import ARC, VM, memory_of, read_watermarks, zram_files

log = logging.getLogger(__name__)
MODE: Final = f"{VM}/overcommit_memory"
RATIO: Final = f"{VM}/overcommit_ratio"
KBYTES: Final = f"{VM}/overcommit_kbytes"
SETTINGS: Final = (MODE, RATIO, KBYTES)
MEMINFO, SWAPS = "proc/meminfo", "proc/swaps"
# The reserves that the kernel keeps for root, and from large programs.
RESERVES: Final = (f"{VM}/admin_reserve_kbytes", f"{VM}/user_reserve_kbytes")
# malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD = -1, -2
SPARE: Final = 2 << 20  # bytes of heap in reserve
# mman.h: lock what is mapped now and later, but only the pages that are used.
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4


class Originals(NamedTuple):
    """The settings before a cap; of kilobytes and ratio one is 0, and the other counts."""

    mode: int
    ratio: int
    kbytes: int


class TakenByOthers(Exception):
    """Another program has written a value since the look."""


class Sysctls:
    """The open files; only one thread at a time may use them."""

    def __init__(self, kernel: Kernel) -> None:
        """Open the files; `unavailable_reason` says why the guard can write nothing here, "" when it can."""
        self.unavailable_reason = ""
        self._kernel = kernel
        self._files: dict[str, OpenFile] = {}
        for path in SETTINGS:
            try:
                self._files[path] = kernel.open(path, writable=True)
            except KernelError as error:
                self.unavailable_reason = (
                    f"/{path} cannot be written here ({error.strerror}); in a container the host must do it"
                )
                self._keep(path)
        for path in (MEMINFO, SWAPS, ARC, *RESERVES):
            self._keep(path)
        self._watermarks = read_watermarks(kernel)
        self._cpus = os.cpu_count() or 1

    def _keep(self, path: str) -> None:
        with contextlib.suppress(KernelError):
            self._files[path] = self._kernel.open(path)

    def available(self) -> int:
        """Return MemAvailable in bytes, 0 where it cannot be read. Raise OSError, or ValueError for nonsense."""
        return int(self._read(MEMINFO).partition("MemAvailable:")[2].partition("kB")[0] or 0) << 10

    def sample(self, now: float, unavailable_reason: str) -> Sample:
        """Return the figures now. Raise OSError, or ValueError when the figures make no sense."""
        mode, swaps = self._read(MODE), self._read(SWAPS)
        memory = memory_of(
            self._read(MEMINFO),
            swaps,
            mode=int(mode) if mode else None,
            ratio=int(self._read(RATIO) or 0),
            kbytes=int(self._read(KBYTES) or 0),
            watermarks=self._watermarks,
            arcstats=self._read(ARC),
            zram=[self._read_new(path) for path in zram_files(swaps)],
        )
        if not memory.total:
            raise ValueError(f"/{MEMINFO} does not say how much memory there is")
        reserves = sum(int(self._read(path) or 0) for path in RESERVES) << 10
        error = counting_error(memory.total, self._cpus, resource.getpagesize())
        return Sample(memory, now, reserves, error, self._cpus, unavailable_reason)

    def originals(self) -> Originals:
        """Return the current settings."""
        return Originals(*(int(self._read(path) or 0) for path in SETTINGS))

    def cap(self, kbytes: int) -> None:
        """Set mode never with this limit in KiB; the mode comes last."""
        self._files[KBYTES].write(str(kbytes))
        self._files[MODE].write(str(MODE_NEVER))

    def move_limit(self, kbytes: int, before: int) -> None:
        """Set another limit, in KiB, unless another program has just set one: the next look finds that."""
        if self._read(KBYTES) != str(before):
            raise TakenByOthers
        self._files[KBYTES].write(str(kbytes))

    def count_again(self) -> None:
        """Write mode never again, unless another program has just set one: the kernel then counts commits exactly."""
        if self._read(MODE) != str(MODE_NEVER):
            raise TakenByOthers
        self._files[MODE].write(str(MODE_NEVER))

    def restore(self, originals: Originals, *, mode: bool = True, limit: bool = True) -> None:
        """Restore the settings before the cap: the mode first, so that no limit is in force that nobody asked for.

        Pass False for the `mode` or `limit` that another program has set since. Kilobytes and ratio set each other to
        0, so this writes only the one that counted.
        """
        if mode:
            self._files[MODE].write(str(originals.mode))
        if limit:
            self._files[KBYTES if originals.kbytes else RATIO].write(str(originals.kbytes or originals.ratio))

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _read_new(self, path: str) -> str:
        """Return the text of a file of a device that may be new."""
        if path not in self._files:
            self._keep(path)
        return self._read(path)

    def _read(self, path: str) -> str:
        return self._files[path].read() if path in self._files else ""


def prepare_for_low_memory() -> None:
    """Reserve room in the heap, and lock the used pages in RAM (mlockall(2)).

    In mode never the kernel may refuse our allocations like those of other programs. Where locked memory is limited
    this locks nothing, because later allocations would fail at the limit.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mallopt(M_TOP_PAD, SPARE)
    libc.mallopt(M_TRIM_THRESHOLD, 2 * SPARE)
    [bytes(CHUNK) for _ in range(SPARE // CHUNK)]  # makes the heap grow, by pieces too small to be mapped
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        log.info("the daemon's memory cannot be locked: %s", os.strerror(ctypes.get_errno()))
