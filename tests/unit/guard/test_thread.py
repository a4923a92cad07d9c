"""The guard's thread, the files that it keeps open, the settings that it saves, and what it does to its own process."""

from __future__ import annotations

import errno
import logging
import os
import resource
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from kerntune.guard import sysctls
from kerntune.guard.policy import GuardLimits
from kerntune.guard.saved import CAP_FILE, SavedOriginals, Unreadable, undo_cap
from kerntune.guard.sysctls import MEMINFO, MODE, Sysctls
from kerntune.guard.thread import GuardThread
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import GuardState
from tests.unit.guard.lab import GIB
from tests.unit.lab import Clock

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


# The open files


@dataclass(slots=True)
class Swapping(SimulatedKernel):
    """With these texts in place of its own."""

    texts: dict[str, str] = field(default_factory=dict)

    def read(self, path: str) -> str:
        return self.texts[path] if path in self.texts else SimulatedKernel.read(self, path)


def test_a_zram_device_that_comes_later_is_seen() -> None:
    kernel = Swapping([Node(16 * GIB)], texts={"proc/swaps": "Filename Type Size Used Priority"})
    files = Sysctls(kernel)
    assert files.sample(1.0, "").memory.swap_free == 0
    kernel.texts = {
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 40960 0 100",
        "sys/block/zram0/mm_stat": "41943040 0 10485760 0",
        "proc/meminfo": "MemTotal: 16777216 kB\nSwapFree: 40960 kB",
    }
    assert files.sample(2.0, "").memory.swap_free == 30 << 20


@pytest.mark.parametrize("text", ["", "MemTotal: lots"])
def test_figures_that_cannot_be_made_out_are_no_sample(text: str) -> None:
    kernel = Swapping([Node(16 * GIB)], texts={"proc/meminfo": text})
    with pytest.raises(ValueError, match="does not say how much memory there is"):
        Sysctls(kernel).sample(1.0, "")


def test_what_zfs_gives_back_is_in_a_sample() -> None:
    kernel = Swapping([Node(16 * GIB)], texts={"proc/spl/kstat/zfs/arcstats": "c_min 4 1000\nsize 4 8000\n"})
    assert Sysctls(kernel).sample(1.0, "").memory.arc == 7000


def test_a_sample_has_the_kernels_reserves_and_the_cpus() -> None:
    sample = Sysctls(SimulatedKernel([Node(16 * GIB)])).sample(7.0, "why not")
    assert (sample.reserves, sample.cpus, sample.now, sample.unavailable_reason) == (
        136 << 20,
        os.cpu_count(),
        7.0,
        "why not",
    )


# How often it looks, and at what


def thread_of(kernel: SimulatedKernel, runtime: Path, clock: Clock) -> GuardThread:
    """Return a thread that has not started: a test looks for it."""
    return GuardThread(
        Sysctls(kernel),
        SavedOriginals(runtime),
        GuardLimits(),
        lock=threading.Lock(),
        publish=lambda *_: None,
        clock=clock,
    )


@dataclass
class Reads(SimulatedKernel):
    """What is read is noted."""

    paths: list[str] = field(default_factory=list)

    def read(self, path: str) -> str:
        self.paths.append(path)
        return SimulatedKernel.read(self, path)


def test_while_there_is_enough_a_look_reads_one_file_and_each_second_all(tmp_path: Path) -> None:
    kernel, clock = Reads([Node(64 * GIB)]), Clock()
    kernel.overcommit |= {"memory": 1, "ratio": 95}
    kernel.nodes[0].programs = int(58.7 * GIB)
    thread = thread_of(kernel, tmp_path, clock)
    read = []
    for seconds in (0, 0.02, 0.02, 0.99):
        kernel.paths.clear()
        clock.now += seconds
        assert thread.look() == pytest.approx(0.02)
        read.append(set(kernel.paths))
    assert MODE in read[0]
    assert read[1:] == [{MEMINFO}, {MEMINFO}, read[0]]
    kernel.nodes[0].programs += GIB
    clock.now += 0.02
    thread.look()
    assert thread.verdict.caps
    assert kernel.overcommit["memory"] == 2
    kernel.nodes[0].programs -= 20 * GIB
    capped_with = kernel.overcommit["kbytes"]
    clock.now += 0.02
    thread.look()
    assert kernel.overcommit["kbytes"] > capped_with, "in a cap each look is a whole one"


def test_one_that_can_do_nothing_looks_once_a_second(tmp_path: Path) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    kernel.nodes[0].programs = 62 * GIB
    thread = thread_of(kernel, tmp_path, Clock())
    assert [thread.look(), thread.look()] == [0.02, 1.0]
    assert thread.verdict.state is GuardState.OBSERVING


def test_how_soon_it_looks_again_rests_on_what_is_in_ram_now(tmp_path: Path) -> None:
    """Swap may be switched off in between."""
    kernel, clock = SimulatedKernel([Node(64 * GIB)]), Clock()
    kernel.overcommit |= {"memory": 1, "ratio": 95}
    kernel.nodes[0].programs, kernel.swap = int(58.5 * GIB), 200 * GIB
    thread = thread_of(kernel, tmp_path, clock)
    assert thread.look() > 0.02
    clock.now += 0.01
    assert thread.look() == pytest.approx(0.02)


# What a killed guard has left


@pytest.mark.parametrize("left", [b"", b" " * 256])
def test_nothing_is_put_back_where_nothing_was_capped(tmp_path: Path, left: bytes) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / CAP_FILE).write_bytes(left)
    assert not undo_cap(kernel, tmp_path)
    assert kernel.journal == []


@pytest.mark.parametrize(
    "left",
    [
        b"[1, 95",
        b"[1, 95]",
        b'["a", 1, 2]',
        b"\xff",
        b"[" * 256,
        b"[1, 95, -8192]",
        b"[3, 95, 0]",
    ],
)
def test_nothing_is_put_back_from_what_cannot_be_read(tmp_path: Path, left: bytes) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / CAP_FILE).write_bytes(left)
    with pytest.raises(Unreadable):
        undo_cap(kernel, tmp_path)
    assert kernel.journal == []


def test_nothing_is_put_back_where_somebody_has_set_another_mode_since(tmp_path: Path) -> None:
    kernel = SimulatedKernel([Node(64 * GIB)])
    (tmp_path / CAP_FILE).write_text("[1, 95, 0]")
    assert undo_cap(kernel, tmp_path)
    assert kernel.journal == []
