"""The host's memory and the processes with huge pages."""

from __future__ import annotations

from pathlib import Path

import pytest

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
from kerntune.model import Memory
from tests.hosts import lay_out, plant, write_files

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
