"""Signals as events that say who has sent them: signalfd(2), which Python has not."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

# struct signalfd_siginfo of include/uapi/linux/signalfd.h: number, errno, code, pid, and 112 bytes more.
RECORD: Final = struct.Struct("=IiiI112x")
RECORDS: Final = 64  # that are read at once
SI_KERNEL: Final = 0x80  # the code of a signal that no process has sent (include/uapi/asm-generic/siginfo.h)
SFD_CLOEXEC, SFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
LONG_BITS: Final = 8 * ctypes.sizeof(ctypes.c_ulong)
SigSet = ctypes.c_ulong * (1024 // LONG_BITS)  # glibc's sigset_t


class Signal(NamedTuple):
    """A signal that came, and the process that sent it; the kernel itself has no number here."""

    number: int
    pid: int
    from_kernel: bool


@dataclass(frozen=True, slots=True)
class Signals:
    """Signals that wait to be taken; `fileno` is readable when there is one.

    `before` is the mask without them. `ignores_children` is true if the process was started with SIGCHLD ignored.
    """

    descriptor: int
    before: frozenset[int] = frozenset()
    ignores_children: bool = False

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self.descriptor

    def has_come(self) -> bool:
        """Return True if there is one to take."""
        return bool(select.select([self], (), (), 0)[0])

    def take(self) -> Iterator[Signal]:
        """Yield those that have come. Equal ones that came together are one (signal(7))."""
        try:
            data = os.read(self.descriptor, RECORD.size * RECORDS)
        except BlockingIOError:
            return
        for number, _, code, pid in RECORD.iter_unpack(data):
            yield Signal(number, pid, code == SI_KERNEL)


@contextmanager
def held_back(numbers: Iterable[int]) -> Iterator[Signals]:
    """Keep these signals from ending or stopping the process, and give them as events; inside, the mask blocks them.

    SIGCHLD among them is at its default inside. Where it is ignored, the kernel tells nobody how a child ended, and
    sends no signal (waitpid(2)).
    """
    wanted = SigSet()
    for number in (numbers := frozenset(numbers)):
        wanted[(number - 1) // LONG_BITS] |= 1 << (number - 1) % LONG_BITS
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    ignores_children = signal.SIGCHLD in numbers and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    if ignores_children:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.signalfd(-1, ctypes.byref(wanted), SFD_CLOEXEC | SFD_NONBLOCK)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            yield Signals(descriptor, frozenset(before), ignores_children)
        finally:
            os.close(descriptor)
    finally:
        if ignores_children:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
