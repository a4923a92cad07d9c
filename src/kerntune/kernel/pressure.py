"""What the memory guard looks at and writes, kept open: no path is looked up and nothing is opened under pressure."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
from typing import Final, NamedTuple

from kerntune.kernel.files import CHUNK, Kept, Kernel, KernelError
from kerntune.kernel.memory import VM, memory_of, read_watermarks
from kerntune.model import Memory

log = logging.getLogger(__name__)
MODE: Final = f"{VM}/overcommit_memory"
RATIO: Final = f"{VM}/overcommit_ratio"
KBYTES: Final = f"{VM}/overcommit_kbytes"
ADMIN_RESERVE: Final = f"{VM}/admin_reserve_kbytes"
USER_RESERVE: Final = f"{VM}/user_reserve_kbytes"
SETTINGS: Final = (MODE, RATIO, KBYTES, ADMIN_RESERVE, USER_RESERVE)
SEEN: Final = ("proc/meminfo", "proc/swaps", "proc/pressure/memory")
# malloc.h
M_TRIM_THRESHOLD, M_TOP_PAD = -1, -2
SPARE: Final = 2 << 20  # bytes of heap in hand
# mman.h: what is mapped now and later, but only the pages that are used.
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4


class Originals(NamedTuple):
    """The settings before a cap, as they were; kilobytes and ratio are 0 where the other one counts."""

    mode: int
    ratio: int
    kbytes: int
    admin_reserve: int
    user_reserve: int


class MemoryFiles:
    """The open files; one thread at a time."""

    def __init__(self, kernel: Kernel) -> None:
        """`hindrance` says why nothing can be written here, "" when it can be."""
        self.hindrance = ""
        self._files: dict[str, Kept] = {}
        for path in SETTINGS:
            try:
                self._files[path] = kernel.keep(path, writable=True)
            except KernelError as error:
                self.hindrance = (
                    f"/{path} cannot be written here ({error.strerror}); in a container the host must do it"
                )
                self._keep(kernel, path)
        for path in SEEN:
            self._keep(kernel, path)
        self._watermarks = read_watermarks(kernel)

    def _keep(self, kernel: Kernel, path: str) -> None:
        with contextlib.suppress(KernelError):
            self._files[path] = kernel.keep(path)

    def sample(self) -> Memory:
        """The figures now."""
        mode = self._read(MODE)
        return memory_of(
            self._read("proc/meminfo"),
            self._read("proc/swaps"),
            mode=int(mode) if mode else None,
            ratio=int(self._read(RATIO) or 0),
            kbytes=int(self._read(KBYTES) or 0),
            watermarks=self._watermarks,
        )

    def stalled(self) -> int:
        """Microseconds since boot in which some task waited for memory (Documentation/accounting/psi.rst), or 0."""
        _, _, total = self._read("proc/pressure/memory").partition("total=")
        return int(total.split()[0]) if total else 0

    def originals(self) -> Originals:
        """The settings as they are."""
        return Originals(*(int(self._read(path) or 0) for path in SETTINGS))

    def cap(self, kbytes: int, admin_reserve: int, user_reserve: int) -> None:
        """Mode never with this limit; the reserves (all in KiB) come first, the mode last."""
        self._files[ADMIN_RESERVE].write(str(admin_reserve))
        self._files[USER_RESERVE].write(str(user_reserve))
        self.move(kbytes)
        self._files[MODE].write("2")

    def move(self, kbytes: int) -> None:
        """Another limit, in KiB."""
        self._files[KBYTES].write(str(kbytes))

    def restore(self, originals: Originals) -> None:
        """The settings as they were: the mode first, so that no limit is in force that nobody asked for.

        Kilobytes and ratio set each other to 0, so only the one that counted is written.
        """
        self._files[MODE].write(str(originals.mode))
        self.give_back(originals, limit=True)

    def give_back(self, originals: Originals, *, limit: bool) -> None:
        """The reserves, where the mode is no longer ours; `limit`: and the limit, which still is."""
        if limit:
            self._files[KBYTES if originals.kbytes else RATIO].write(str(originals.kbytes or originals.ratio))
        self._files[ADMIN_RESERVE].write(str(originals.admin_reserve))
        self._files[USER_RESERVE].write(str(originals.user_reserve))

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _read(self, path: str) -> str:
        return self._files[path].read() if path in self._files else ""


def stay_able() -> None:
    """Be ready for a host without memory: keep room in the heap, and our pages in RAM (mlockall(2)) once they are used.

    In mode never our allocations may be refused like anybody's. Where locked memory is limited nothing is locked, for
    later allocations would fail at the limit.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mallopt(M_TOP_PAD, SPARE)
    libc.mallopt(M_TRIM_THRESHOLD, 2 * SPARE)
    [bytes(CHUNK) for _ in range(SPARE // CHUNK)]  # makes the heap grow, by pieces too small to be mapped
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        log.info("the daemon's memory cannot be locked: %s", os.strerror(ctypes.get_errno()))
