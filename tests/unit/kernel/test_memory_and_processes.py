"""The host's memory, and who has taken it; the simulated kernel's pools of huge pages; what a process is called."""

from __future__ import annotations

import errno
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import psutil
import pytest

from kerntune.kernel import processes
from kerntune.kernel.files import HostKernel
from kerntune.kernel.memory import (
    Holder,
    Watermarks,
    default_page_size,
    free_swap,
    holders,
    meminfo,
    read_memory,
    read_watermarks,
    shortage,
    spare_arc,
    watermarks_of,
    zram_files,
)
from kerntune.kernel.processes import LEAST, MAX_LINE, Consumers, describe, printable, swapped, unit_of, user_name
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Memory
from tests.hosts import lay_out, plant, write_files
from tests.hosts.simulated import pool_host, use_pages
from tests.unit.lab import GIB, PAGE, POOL, node_pool

KIB = 1024


def test_figures_are_in_bytes_and_counts_stay_counts(tmp_path: Path) -> None:
    info = meminfo(lay_out("two-sockets", tmp_path))
    assert info["MemTotal"] == 263921648 * KIB
    assert info["HugePages_Total"] == 522


def test_one_snapshot(tmp_path: Path) -> None:
    assert read_memory(lay_out("two-sockets", tmp_path)) == Memory(
        total=263921648 * KIB,
        available=214788100 * KIB,
        free=211392716 * KIB,
        hugetlb=17846272 * KIB,
        swap_total=8388604 * KIB,
        committed=23814388 * KIB,
        commit_limit=131943044 * KIB,
        overcommit_mode=0,
        overcommit_ratio=50,
        overcommit_kbytes=0,
        swap_free=8388604 * KIB,
    )


ZONES = """\
Node 0, zone      DMA
  per-node stats
      nr_free_pages 7
  pages free     2816
        boost    0
        min      8
        low      11
        high     14
        managed  3840
        protection: (0, 2833, 24031, 24031, 24031)
  pagesets
    cpu: 0
              count: 0
              high:  378
Node 0, zone   Normal
  pages free     100
        min      1000
        low      1250
        high     1500
        managed  5426743
        protection: (0, 0, 0, 0, 0)
"""


def test_what_the_kernel_keeps_free_is_summed_up_over_the_zones() -> None:
    assert watermarks_of(ZONES) == Watermarks(reserve=(3840 + 1500) * 4096, low=(11 + 1250) * 4096)
    assert watermarks_of("") == Watermarks(0, 0)


def test_what_is_available_is_reckoned_as_the_kernel_does() -> None:
    """On this host: its own figure, and ours as if the kernel had not shown it."""
    host = HostKernel()
    info = meminfo(host)
    marks = read_watermarks(host)
    assert marks.reserve >= marks.low > 0
    full = info["MemAvailable"] + marks.reserve
    lacking = shortage({**info, "MemAvailable": 0}, marks._replace(reserve=full + info["MemAvailable"]))
    assert lacking == pytest.approx(info["MemAvailable"], rel=0.05)


def test_available_memory_below_zero_is_taken_from_the_swap(tmp_path: Path) -> None:
    rows = ("MemTotal: 1000000", "MemFree: 3000", "MemAvailable: 0", "Active(file): 2000", "Inactive(file): 1000",
            "KReclaimable: 400", "SwapTotal: 90000", "SwapFree: 80000")  # fmt: skip
    write_files(tmp_path, {"proc/meminfo": [f"{row} kB" for row in rows], "proc/zoneinfo": ZONES.splitlines()})
    memory = read_memory(HostKernel(tmp_path))
    # 3000 are free, and half of 3400 could be; 5340 pages are kept.
    assert memory.short == (5340 * 4 - 3000 - 1700) * KIB
    assert memory.headroom == 80000 * KIB - memory.short


def test_pages_that_were_read_back_can_be_dropped_from_the_swap() -> None:
    info = {"SwapFree": 100 << 20, "SwapCached": 30 << 20}
    disk = "Filename Type Size Used Priority\n/dev/sda2 partition 204800 102400 -2\n"
    assert free_swap(info, disk) == 130 << 20
    zram = f"{disk}/dev/zram0 partition 61440 10240 100\n"
    # Of the 50 MiB that are free in zram nothing counts, as long as it has saved nothing.
    assert free_swap(info, zram) == 50 << 20


@pytest.mark.parametrize(
    ("stat", "expected"),
    [
        ("419430400 0 104857600 0 0 0 0 0 0", 75),  # of 4 bytes 3 are saved
        ("41943040 0 10485760 0", 30),  # and no more than has been
        ("41943040 0 41943040", 0),
        ("41943040 0 83886080", 0),
        ("4096 0 40960", 0),
        ("", 0),
    ],
)
def test_of_zram_counts_what_it_would_save_and_no_more_than_it_has_saved(stat: str, expected: int) -> None:
    info = {"SwapFree": 100 << 20}
    swaps = "Filename Type Size Used Priority\n/dev/zram0 partition 102400 0 100\n"
    assert free_swap(info, swaps, [stat]) >> 20 == expected


def test_zram_is_asked_by_its_device(tmp_path: Path) -> None:
    assert zram_files("Filename\n/dev/zram1 partition 4 0 1\n/dev/sda2 partition 4 0 1\n") == [
        "sys/block/zram1/mm_stat"
    ]
    lines = (
        "proc/meminfo\tMemAvailable: 1024 kB",
        "proc/meminfo\tSwapFree: 102400 kB",
        "proc/swaps\tFilename Type Size Used Priority",
        "proc/swaps\t/dev/zram0 partition 122880 20480 100",
        "sys/block/zram0/mm_stat\t20971520 0 5242880 0",
    )
    assert read_memory(plant(tmp_path, "\n".join(lines))).swap_free == 15 << 20


def test_what_zfs_gives_back_is_headroom(tmp_path: Path) -> None:
    lines = (
        "proc/meminfo\tMemAvailable: 1024 kB",
        "proc/spl/kstat/zfs/arcstats\t13 1 0x01 147 39984 1 2",
        "proc/spl/kstat/zfs/arcstats\tname                            type data",
        "proc/spl/kstat/zfs/arcstats\tc_min                           4    1000000",
        "proc/spl/kstat/zfs/arcstats\tsize                            4    9000000",
    )
    memory = read_memory(plant(tmp_path, "\n".join(lines)))
    assert (memory.available, memory.arc, memory.headroom) == (1 << 20, 8_000_000, (1 << 20) + 8_000_000)
    assert (spare_arc("size 4 5\nc_min 4 6\n"), spare_arc("")) == (0, 0)


def test_a_host_without_anything(tmp_path: Path) -> None:
    bare = plant(tmp_path, "proc/meminfo\tMemTotal: nonsense kB\nproc/meminfo\tno colon")
    assert read_memory(bare) == Memory(0, 0, 0, 0, 0, 0, 0, None, 0, 0)
    assert default_page_size(bare) == 0
    assert list(holders(bare)) == []


def test_the_default_page_size(tmp_path: Path) -> None:
    assert default_page_size(lay_out("small-vm", tmp_path / "a")) == 2 << 20
    assert default_page_size(lay_out("no-hugetlb", tmp_path / "b")) == 0


def test_who_has_huge_pages_the_largest_first(tmp_path: Path) -> None:
    assert list(holders(lay_out("two-sockets", tmp_path))) == [
        Holder(4711, "qemu-system-x86", 8 << 30),
        Holder(902, "postgres", 522 * (2 << 20)),
    ]


def test_a_process_cannot_write_to_a_terminal_by_its_name(tmp_path: Path) -> None:
    lines = ("Name:\ta\x1b[31mb", "HugetlbPages:\t4 kB")
    kernel = plant(tmp_path, "\n".join(f"proc/7/status\t{line}" for line in lines))
    assert [holder.command for holder in holders(kernel)] == ["a?[31mb"]


def test_a_process_that_ends_meanwhile_is_left_out(tmp_path: Path) -> None:
    kernel = plant(
        tmp_path, "proc/7/status/\nproc/8/status\t\nproc/9/status\tName:\tx\nproc/9/status\tHugetlbPages:\t4 kB"
    )
    assert list(holders(kernel)) == [Holder(9, "x", 4 * KIB)]


# The simulated kernel's pools do what set_max_huge_pages of mm/hugetlb.c does, up to Linux 6.13 and since


def pools(kernel: SimulatedKernel) -> list[tuple[int, int, int]]:
    """Pages, surplus and free ones of each node."""
    return [(pool.total, pool.surplus, pool.free) for pool in (node.pools[PAGE] for node in kernel.nodes)]


def test_a_total_goes_round_the_nodes_and_on_where_one_has_no_memory() -> None:
    kernel = pool_host(0, 0, 0)
    kernel.nodes[1].programs = GIB - 2 * PAGE
    kernel.write(POOL, "10")
    assert pools(kernel) == [(4, 0, 4), (2, 0, 2), (4, 0, 4)]
    kernel.write(POOL, "4")
    assert sum(total for total, _, _ in pools(kernel)) == 4


def test_page_cache_makes_room_for_pages() -> None:
    kernel = SimulatedKernel([Node(GIB, cache=GIB - 3 * PAGE)], sizes=(PAGE,))
    assert "MemFree: 6144 kB" in kernel.read("proc/meminfo")
    assert "MemAvailable: 1048576 kB" in kernel.read("proc/meminfo")
    kernel.write(POOL, "100")
    assert (pools(kernel), kernel.nodes[0].free, kernel.nodes[0].cache) == ([(100, 0, 100)], 0, GIB - 100 * PAGE)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_number_for_a_node_counts_the_surplus_of_others_on_old_kernels(foreign: bool) -> None:
    """What Linux 6.1 does with 16 pages in use on each of two nodes when 0 is written to both; newer ones too."""
    kernel = pool_host(32, 32, used=(16, 16), foreign=foreign)
    for number in (0, 1):
        kernel.write(node_pool(number), "0")
    assert pools(kernel) == [(16, 16, 0), (32, 16 if foreign else 32, 16)]
    use_pages(kernel, 0, 0)
    assert [total for total, _, _ in pools(kernel)] == [0, 16]


def test_pages_that_are_in_use_elsewhere_keep_free_ones_which_become_surplus() -> None:
    kernel = pool_host(20, 20, used=(20, 0), foreign=False)
    kernel.write(node_pool(0), "0")
    kernel.write(node_pool(1), "0")
    assert pools(kernel) == [(20, 20, 0), (20, 20, 20)]
    use_pages(kernel, 0, 0)
    assert pools(kernel) == [(0, 0, 0), (20, 20, 20)]
    kernel.write(POOL, "0")
    assert pools(kernel) == [(0, 0, 0), (20, 20, 20)]
    kernel.write(POOL, "20")
    kernel.write(POOL, "0")
    assert pools(kernel) == [(0, 0, 0), (0, 0, 0)]


def test_growth_takes_pages_out_of_surplus_first() -> None:
    kernel = pool_host(10, 10, used=(10, 10))
    kernel.write(POOL, "4")
    assert sum(surplus for _, surplus, _ in pools(kernel)) == 16
    kernel.write(POOL, "20")
    assert pools(kernel) == [(10, 0, 0), (10, 0, 0)]


def test_programs_borrow_beyond_the_pool_and_their_pages_go_when_they_end() -> None:
    kernel = pool_host(2, 0)
    kernel.borrow[PAGE] = 3
    assert kernel.take(0, 4, PAGE) == 4
    assert kernel.take(1, 4, PAGE) == 1
    assert pools(kernel) == [(4, 2, 0), (1, 1, 0)]
    use_pages(kernel, 0, 0)
    assert pools(kernel) == [(2, 0, 2), (0, 0, 0)]


def test_what_is_promised_stays_when_a_pool_shrinks_and_goes_when_it_is_let_go() -> None:
    kernel = pool_host(8, 8)
    assert kernel.reserve(5, PAGE)
    assert kernel.read(POOL.replace("nr_", "resv_")) == "5"
    kernel.write(POOL, "0")
    assert sum(total for total, _, _ in pools(kernel)) == 5
    assert kernel.take(0, 1, PAGE) == 0
    kernel.reserve(-5, PAGE)
    assert pools(kernel) == [(0, 0, 0), (0, 0, 0)]


def test_pages_are_borrowed_for_what_is_promised() -> None:
    kernel = pool_host(1, 1)
    assert not kernel.reserve(6, PAGE)
    kernel.borrow[PAGE] = 4
    assert kernel.reserve(6, PAGE)
    assert sum(surplus for _, surplus, _ in pools(kernel)) == 4
    kernel.reserve(-6, PAGE)
    assert sum(total for total, _, _ in pools(kernel)) == 2


# What a process is called, whatever it calls itself


# Takes a name of bytes (PR_SET_NAME) and says when it has it; ends with its standard input.
NAMED = """
import ctypes, sys
ctypes.CDLL(None).prctl(15, b"a\\xff\\nb\\x1b[31m", 0, 0, 0)
print("named", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def odd_process() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", NAMED], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"named\n"
        yield child.pid
        child.communicate(timeout=10)


def test_the_user_and_the_program() -> None:
    described = describe(os.getpid(), os.getuid())
    assert described.startswith(f"{pwd.getpwuid(os.getuid()).pw_name} (")


def test_a_name_cannot_break_a_log_line_or_a_file(odd_process: int) -> None:
    described = describe(odd_process, os.getuid())
    assert described.endswith(" (a??b?[31m)")
    described.encode()


def test_nor_can_that_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of users may have any bytes."""
    monkeypatch.setattr("psutil.Process.username", lambda _process: "j\udcfcrgen")
    assert describe(os.getpid(), os.getuid()).startswith("j?rgen (")


def test_no_command_line_is_read_for_it(tmp_path: Path) -> None:
    """A process could make its reader wait."""
    long = tmp_path / "a-program-with-a-long-name"
    long.symlink_to("/bin/cat")
    with subprocess.Popen([long], stdin=subprocess.PIPE) as child:
        assert describe(child.pid, 4711).endswith(" (a-program-with-)")
        child.communicate(timeout=10)


def test_a_process_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait(timeout=10)
    assert describe(child.pid, 4711) == "uid 4711"


@pytest.mark.parametrize(("name", "shown"), [("busctl", "busctl"), ("a b", "a b"), ("\udcff", "?"), ("ü", "ü")])
def test_printable(name: str, shown: str) -> None:
    assert printable(name) == shown


# Takes so many MiB more for each line it reads, and says when it has them.
GROWING = """
import sys
held = []
for line in sys.stdin:
    held.append(b"x" * (int(line) << 20))
    print("grown", flush=True)
"""


def test_who_has_grown_is_told_though_looks_follow_each_other_at_once() -> None:
    with subprocess.Popen([sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def grow(stdin: IO[bytes] = child.stdin, stdout: IO[bytes] = child.stdout) -> None:
            stdin.write(b"40\n")
            stdin.flush()
            assert stdout.readline() == b"grown\n"

        grow()
        consumers = Consumers()
        consumers.look(100.0)
        assert consumers.growing(5) == []
        grow()
        for later in (LEAST, LEAST + 0.01):
            consumers.look(100.0 + later)
            grown = {consumer.pid: consumer.size for consumer in consumers.growing(5)}
            assert grown[child.pid] >= 40 << 20
            assert grown[child.pid] < 60 << 20
        child.communicate(timeout=10)
    assert swapped(child.pid) == 0


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, "Cannot allocate memory"), OSError(errno.EMFILE, "Too many")])
def test_what_cannot_be_read_is_left_out(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    consumers = Consumers()
    consumers.look(0.0)
    consumers.look(LEAST)

    def fail(_process: psutil.Process) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(psutil.Process, "name", fail)
        broken.setattr(psutil.Process, "username", fail)
        assert (consumers.largest(5), consumers.growing(5)) == ([], [])
        assert describe(os.getpid(), 4711) == "uid 4711"
        broken.setattr(psutil.Process, "memory_info", fail)
        consumers.look(2 * LEAST)
    assert consumers.largest(5) == []


def test_while_psutil_is_being_replaced_there_is_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert describe(os.getpid(), 4711) == "uid 4711"
    with pytest.raises(ImportError):
        Consumers()


@pytest.mark.parametrize(
    ("cgroups", "unit"),
    [
        ("0::/system.slice/ollama.service", "ollama.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/notebook.service", "notebook.service"),
        ("0::/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("0::/system.slice/ollama.service/inner", "ollama.service"),
        (f"0::/system.slice/docker-0123456789ab{'cd' * 26}.scope", "container 0123456789ab (docker)"),
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/cri-containerd-0123456789ab{'0f' * 26}.scope",
            "container 0123456789ab (cri-containerd)",
        ),
        (f"12:memory:/docker/0123456789ab{'cd' * 26}\n1:name=systemd:/docker/x", "container 0123456789ab"),
        (f"0::/{'a' * 100}.service", f"{'a' * 45}..."),
        ("0::/a\x1b[31m.service", "a?[31m.service"),
        (f"0::/{'a' * 100}-0123456789ab{'cd' * 26}.scope", f"container 0123456789ab ({'a' * 24})"),
        ("0::/", ""),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_the_unit_or_the_container_of_a_process(cgroups: str, unit: str) -> None:
    assert unit_of(cgroups) == unit


def test_the_culprit_is_who_has_grown_most_with_all_that_tells_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-c", GROWING, "long" * 100]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        both = [psutil.Process(), psutil.Process(child.pid)]
        monkeypatch.setattr(psutil, "process_iter", lambda: iter(both))
        consumers = Consumers()
        consumers.look(100.0)
        child.stdin.write(b"200\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"grown\n"
        consumers.look(102.0)
        named = consumers.culprit()
        child.communicate(timeout=10)
    assert len(named) == MAX_LINE
    assert f"(pid {child.pid}, {pwd.getpwuid(os.getuid()).pw_name}), 2" in named
    assert "MiB of it in the last 2 s" in named
    assert f"{sys.executable} -c" in named
    assert "..." in named
    consumers.look(104.0)
    assert f"pid {child.pid}," not in consumers.culprit(), "it is gone"


def test_the_processes_of_a_unit_grow_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "unit_of", lambda _text: "pool.service")
    with ExitStack() as stack:
        words = [sys.executable, "-c", GROWING]
        children = [
            stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(3)
        ]
        pool = [psutil.Process(child.pid) for child in children]
        monkeypatch.setattr(psutil, "process_iter", lambda: iter(pool))
        consumers = Consumers()
        consumers.look(100.0)
        for child, size in zip(children, (30, 31, 30), strict=True):
            child.stdin.write(b"%d\n" % size)  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
            assert child.stdout.readline() == b"grown\n"  # type: ignore[union-attr]
        consumers.look(102.0)
        named = consumers.culprit()
        for child in children:
            child.communicate(timeout=10)
    assert named.startswith("pool.service: ")
    assert re.search(r" MiB, with 2 more of the unit 9\d MiB in the last 2 s$", named)
    assert len(named) <= MAX_LINE


class Twin(psutil.Process):  # type: ignore[misc]  # psutil has no types
    """This process, as another one."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__


@pytest.mark.parametrize("unit", ["", "container 0123456789ab (abcdefghijabcdefghijabcd)", "u" * 48])
@pytest.mark.parametrize("together", [1, 256])
def test_a_line_is_no_longer_than_it_may_be(monkeypatch: pytest.MonkeyPatch, unit: str, together: int) -> None:
    """With the longest names, and figures that no host has."""
    mib = 99_500_000
    every = [Twin() for _ in range(together)]
    monkeypatch.setattr(psutil, "process_iter", lambda: iter(every))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _self: SimpleNamespace(rss=mib << 20, shared=0))
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _self: ["w" * 5000])
    monkeypatch.setattr(processes, "unit_of", lambda _text: unit)
    monkeypatch.setattr(processes, "user_name", lambda _uid: "v" * processes.USER)
    consumers = Consumers()
    consumers.look(100.0)
    assert consumers.culprit().endswith(", 99500000 MiB")
    assert len(consumers.culprit()) <= MAX_LINE
    mib += 390_000
    consumers.look(160.0)
    grown = f"with {together - 1} more of the unit 99840000 MiB" if unit and together > 1 else "390000 MiB of it"
    assert consumers.culprit().endswith(f", 99890000 MiB, {grown} in the last 60 s")
    assert len(consumers.culprit()) <= MAX_LINE


def test_one_that_ends_before_the_line_is_made_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["true"]) as child:
        gone = psutil.Process(child.pid)
        child.wait(timeout=10)
    mib = 1 << 40
    monkeypatch.setattr(psutil, "process_iter", lambda: iter([gone]))
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _self: SimpleNamespace(rss=mib << 20, shared=0))
    consumers = Consumers()
    consumers.look(100.0)
    mib *= 2
    consumers.look(101.0)
    assert consumers.culprit() == ""


def test_memory_that_is_shared_is_counted_once_and_is_nobodys() -> None:
    consumers = Consumers()
    with open("/dev/shm/kerntune-test", "wb") as file:
        os.unlink("/dev/shm/kerntune-test")
        consumers.look(100.0)
        file.write(bytes(80 << 20))
        file.flush()
        consumers.look(101.0)
        named = consumers.culprit()
    assert named.startswith("shared memory and /dev/shm, ")
    assert " MiB of it in the last 1 s" in named


def test_without_growth_the_largest_is_named() -> None:
    consumers = Consumers()
    consumers.look(100.0)
    consumers.look(101.0)
    (largest,) = consumers.largest(1)
    assert f"pid {largest.pid}," in consumers.culprit() or "shared memory" in consumers.culprit()
    assert consumers.culprit().startswith("nobody of late; the largest is ")
    assert "in the last" not in consumers.culprit()


def test_a_user_without_a_name_is_a_number() -> None:
    assert (user_name(0), user_name(4711)) == ("root", "uid 4711")
