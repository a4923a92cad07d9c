"""What the memory guard does to its own process, so that it can work when memory is short."""

from __future__ import annotations

import errno
import logging
import os
import resource
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from kerntune.guard import sysctls
from kerntune.kernel.simulated import Node, SimulatedKernel

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


def prepared(monkeypatch: pytest.MonkeyPatch, libc: Libc, memlock: int) -> None:
    """Call it with this C library and this limit of locked memory, whatever the limit is here."""
    ctypes = SimpleNamespace(CDLL=lambda *_, **__: libc, get_errno=lambda: errno.ENOMEM)
    monkeypatch.setattr(sysctls, "ctypes", ctypes)
    limits = {resource.RLIMIT_MEMLOCK: (memlock, memlock)}
    monkeypatch.setattr(resource, "getrlimit", limits.__getitem__)
    sysctls.prepare_for_low_memory()


def test_pages_are_locked_once_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the last flag all that is mapped would be made real at once: stacks of threads, and room never used."""
    libc = Libc()
    prepared(monkeypatch, libc, resource.RLIM_INFINITY)
    assert libc.locked == [NOW | LATER | WHEN_USED]


@pytest.mark.parametrize("memlock", [0, 8 << 20, 1 << 40])
def test_nothing_is_locked_where_locked_memory_is_limited(monkeypatch: pytest.MonkeyPatch, memlock: int) -> None:
    """What is mapped later counts as well: at the limit the daemon would get no memory, however much is free."""
    libc = Libc()
    prepared(monkeypatch, libc, memlock)
    assert libc.locked == []
    assert libc.heap.keys() == {sysctls.M_TOP_PAD, sysctls.M_TRIM_THRESHOLD}


def test_a_host_that_locks_nothing_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    prepared(monkeypatch, Libc(locks=-1), resource.RLIM_INFINITY)
    assert [record.getMessage() for record in caplog.records] == [
        f"the daemon's memory cannot be locked: {os.strerror(errno.ENOMEM)}"
    ]


def test_a_zram_device_that_comes_later_is_seen() -> None:
    kernel = Swapping([Node(16 << 30)], texts={"proc/swaps": "Filename Type Size Used Priority"})
    files = sysctls.Sysctls(kernel)
    assert files.sample(1.0, "").memory.swap_free == 0
    kernel.texts = {
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 40960 0 100",
        "sys/block/zram0/mm_stat": "41943040 0 10485760 0",
        "proc/meminfo": "MemTotal: 16777216 kB\nSwapFree: 40960 kB",
    }
    assert files.sample(2.0, "").memory.swap_free == 30 << 20


@pytest.mark.parametrize("text", ["", "MemTotal: lots"])
def test_figures_that_cannot_be_made_out_are_no_sample(text: str) -> None:
    kernel = Swapping([Node(16 << 30)], texts={"proc/meminfo": text})
    with pytest.raises(ValueError, match="does not say how much memory there is"):
        sysctls.Sysctls(kernel).sample(1.0, "")


def test_what_zfs_gives_back_is_in_a_sample() -> None:
    kernel = Swapping([Node(16 << 30)], texts={"proc/spl/kstat/zfs/arcstats": "c_min 4 1000\nsize 4 8000\n"})
    assert sysctls.Sysctls(kernel).sample(1.0, "").memory.arc == 7000


def test_a_sample_has_the_kernels_reserves_and_the_cpus() -> None:
    sample = sysctls.Sysctls(SimulatedKernel([Node(16 << 30)])).sample(7.0, "why not")
    assert (sample.reserves, sample.cpus, sample.now, sample.unavailable_reason) == (
        136 << 20,
        os.cpu_count(),
        7.0,
        "why not",
    )


@dataclass(slots=True)
class Swapping(SimulatedKernel):
    """With these texts in place of its own."""

    texts: dict[str, str] = field(default_factory=dict)

    def read(self, path: str) -> str:
        return self.texts[path] if path in self.texts else SimulatedKernel.read(self, path)
