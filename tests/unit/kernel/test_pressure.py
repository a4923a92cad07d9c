"""What the memory guard does to its own process, so that it can work when memory is short."""

from __future__ import annotations

import errno
import logging
import os
import resource
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from kerntune.kernel import pressure

# mman.h of Linux, for most processors: what is mapped now, what will be, and each page only when it is used.
NOW, LATER, WHEN_USED = 1, 2, 4


@dataclass(slots=True)
class Libc:
    """Notes what is asked of the C library; `locks` is what mlockall returns."""

    locks: int = 0
    heap: dict[int, int] = field(default_factory=dict)
    locked: list[int] = field(default_factory=list)

    def mallopt(self, what: int, value: int) -> int:
        self.heap[what] = value
        return 1

    def mlockall(self, flags: int) -> int:
        self.locked.append(flags)
        return self.locks


def stay_able(monkeypatch: pytest.MonkeyPatch, libc: Libc, memlock: int) -> None:
    """Call it with this C library and this limit of locked memory, whatever the limit is here."""
    ctypes = SimpleNamespace(CDLL=lambda *_, **__: libc, get_errno=lambda: errno.ENOMEM)
    monkeypatch.setattr(pressure, "ctypes", ctypes)
    limits = {resource.RLIMIT_MEMLOCK: (memlock, memlock)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    pressure.stay_able()


def test_pages_are_locked_once_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the last flag all that is mapped would be made real at once: stacks of threads, and room never used."""
    libc = Libc()
    stay_able(monkeypatch, libc, resource.RLIM_INFINITY)
    assert libc.locked == [NOW | LATER | WHEN_USED]


@pytest.mark.parametrize("memlock", [0, 8 << 20, 1 << 40])
def test_nothing_is_locked_where_locked_memory_is_limited(monkeypatch: pytest.MonkeyPatch, memlock: int) -> None:
    """What is mapped later counts as well: at the limit the daemon would get no memory, however much is free."""
    libc = Libc()
    stay_able(monkeypatch, libc, memlock)
    assert libc.locked == []
    assert libc.heap.keys() == {pressure.M_TOP_PAD, pressure.M_TRIM_THRESHOLD}


def test_a_host_that_locks_nothing_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stay_able(monkeypatch, Libc(locks=-1), resource.RLIM_INFINITY)
    assert [record.getMessage() for record in caplog.records] == [
        f"the daemon's memory cannot be locked: {os.strerror(errno.ENOMEM)}"
    ]
