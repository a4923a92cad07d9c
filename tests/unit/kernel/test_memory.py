"""The host's memory and the processes with huge pages."""

from __future__ import annotations

from pathlib import Path

from kerntune.kernel.memory import Holder, default_page_size, holders, meminfo, read_memory
from kerntune.model import Memory
from tests.hosts import lay_out, plant

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
