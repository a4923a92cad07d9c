"""The host of the guard's tests grants and shows memory as the kernel does."""

from __future__ import annotations

import pytest

from kerntune.kernel.memory import Watermarks, memory_of
from tests.harness.memory_host import ALWAYS, GIB, HEURISTIC, MIB, NEVER, MemoryHost, Program, started

CAPPED = {"mode": NEVER, "ratio": 0, "kbytes": 10 << 20}


def host(**changes: int) -> MemoryHost:
    return MemoryHost(64 * GIB, **changes)


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"ratio": 50}, 32 * GIB),
        ({"ratio": 50, "hugetlb": 32 * GIB}, 16 * GIB),
        ({"kbytes": 1 << 20, "ratio": 0}, GIB),
        ({"kbytes": 1 << 20, "ratio": 0, "disk_swap": 2 * GIB, "zram": 3 * GIB}, 6 * GIB),
    ],
)
def test_the_limit_is_of_ram_less_huge_pages_and_all_swap_is_added(changes: dict[str, int], limit: int) -> None:
    assert host(**changes).limit == limit


def test_kilobytes_and_ratio_set_each_other_to_0() -> None:
    one = host()
    one.write("kbytes", 5)
    assert (one.ratio, one.kbytes) == (0, 5)
    one.write("ratio", 50)
    one.write("memory", 2)
    assert (one.mode, one.ratio, one.kbytes) == (2, 50, 0)


@pytest.mark.parametrize(("mode", "size", "granted"), [(ALWAYS, 1 << 50, True), (HEURISTIC, 64 * GIB, True),
                                                       (HEURISTIC, 64 * GIB + 1, False)])  # fmt: skip
def test_what_is_granted_without_a_limit(mode: int, size: int, granted: bool) -> None:
    assert Program(host(mode=mode)).ask(size) is granted


@pytest.mark.parametrize(
    ("root", "addresses", "least"),
    [(True, 0, 0), (False, 0, 8 * MIB), (True, 320 * MIB, 10 * MIB), (False, 64 * GIB, 136 * MIB)],
)
def test_of_a_limit_each_leaves_what_the_kernel_reserves(root: bool, addresses: int, least: int) -> None:
    one = Program(host(**CAPPED), root, addresses)
    assert not one.ask(10 * GIB - least)
    assert one.ask(10 * GIB - least - 1)


def test_the_error_of_the_count_is_a_256th_of_ram_until_the_mode_is_written() -> None:
    where = host(**CAPPED)
    one = Program(where, root=True, addresses=0)
    assert one.ask(9 * GIB)
    where.error = -1.0
    assert one.room == GIB - 128 * MIB + 256 * MIB - 1
    where.write("memory", NEVER)
    assert one.room == GIB - 128 * MIB - 1
    one.free(MIB)
    assert one.room == GIB - 128 * MIB + 2 * MIB - 1


def test_commits_and_use_are_apart() -> None:
    where = host()
    one = Program(where)
    assert one.ask(GIB)
    assert (where.committed, where.left) == (GIB, 64 * GIB)
    one.touch(300 * MIB)
    assert where.left == 64 * GIB - 300 * MIB
    where.pin(GIB)
    assert (where.committed, where.left) == (GIB, 63 * GIB - 300 * MIB)
    one.exit()
    assert (where.committed, where.left) == (0, 63 * GIB)
    assert where.least_left == 63 * GIB - 300 * MIB


def test_a_program_takes_in_steps_until_it_is_refused() -> None:
    one = Program(host(**CAPPED), addresses=64 * GIB)
    assert one.take(11 * GIB)
    assert one.used == one.committed == (10 * GIB - 136 * MIB - 1) // (16 * MIB) * (16 * MIB)


def test_a_fork_commits_all_once_more_until_it_exits() -> None:
    where = host(**CAPPED)
    parent = started(where, 4 * GIB)
    assert parent
    child = parent.fork()
    assert child
    assert (where.committed, where.used) == (8 * GIB, 4 * GIB)
    assert parent.fork() is None
    child.touch(GIB)
    assert where.used == 5 * GIB
    child.exit()
    assert (where.committed, where.used) == (4 * GIB, 4 * GIB)


def test_dev_shm_is_written_until_the_limit() -> None:
    one = Program(host(**CAPPED), root=True, addresses=0)
    assert one.write_shm(4 * GIB)
    assert not one.write_shm(8 * GIB)
    assert one.used == 10 * GIB - 128 * MIB - 1


def test_a_host_is_lost_when_more_is_used_than_there_is() -> None:
    where = host(disk_swap=GIB)
    assert started(where, 65 * GIB)
    assert not where.is_lost
    assert started(where, 1)
    assert where.is_lost


def test_what_it_shows_is_what_it_has() -> None:
    where = MemoryHost(64 * GIB, hugetlb=4 * GIB, disk_swap=8 * GIB, zram=16 * GIB, arc=20 * GIB, arc_min=GIB)
    where.zram_ratio = 2.0
    assert where.left == 60 * GIB + 8 * GIB + 8 * GIB - GIB
    assert started(where, 64 * GIB)
    files = where.files()
    memory = memory_of(
        files["proc/meminfo"], files["proc/swaps"], mode=1, ratio=95, kbytes=0, watermarks=Watermarks(0, 0)
    )
    assert (memory.total, memory.hugetlb, memory.available) == (64 * GIB, 4 * GIB, 0)
    assert (memory.committed, memory.swap_total) == (64 * GIB, 24 * GIB)
    # 64 GiB and the ARC's least size on 60: 5 GiB are away, by 10 GiB that are stored in 5.
    assert "/dev/zram0 partition 16777216 10485760 -2" in files["proc/swaps"]
    assert "/dev/vdb partition 8388608 0 -2" in files["proc/swaps"]
    assert f"size 4 {GIB}\n" in files["proc/spl/kstat/zfs/arcstats"]
