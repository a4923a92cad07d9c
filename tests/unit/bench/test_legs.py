"""Which legs a change bears on, and what is refused before anything is measured."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerntune.bench import legs
from kerntune.bench.file import synthetic
from kerntune.errors import NotSupported, OverLimit, Usage
from kerntune.run import allocator

MIB, GIB = 1 << 20, 1 << 30
PAGE = 2 * MIB


@pytest.mark.parametrize(
    ("tunables", "has_shield", "found"),
    [
        (["hugepages"], False, ["copy", "mmap"]),
        (["overcommit", "hugepages"], False, ["copy", "mmap"]),
        (["read-ahead"], False, ["io"]),
        (["io-scheduler", "hugepages"], False, ["copy", "mmap", "io"]),
        (["cpu-governor"], False, ["copy", "cpu"]),
        ([], True, ["cpu"]),
        (["read-ahead"], True, ["io", "cpu"]),
        (["swappiness"], False, ["copy", "mmap", "io"]),
    ],
)
def test_a_change_has_its_legs(tunables: list[str], has_shield: bool, found: list[str]) -> None:
    assert legs.chosen((), tunables, has_shield=has_shield, has_command=False) == found


def test_who_names_legs_gets_these_in_order_and_once() -> None:
    named = ["cpu", "memory", "copy"]
    assert legs.chosen(named, ["read-ahead"], has_shield=False, has_command=False) == ["copy", "mmap", "cpu"]
    assert legs.chosen(["torch"], ["hugepages"], has_shield=False, has_command=False) == ["torch"]


def test_a_command_is_timed_alone() -> None:
    assert legs.chosen((), ["hugepages"], has_shield=True, has_command=True) == ["cmd"]
    with pytest.raises(Usage, match="timed alone"):
        legs.chosen(["io"], ["hugepages"], has_shield=False, has_command=True)


@pytest.mark.parametrize(
    ("leg", "setting", "figure"),
    [
        ("copy", "hugepages=8", "hugetlb_bytes"),
        ("copy", "hugepages-overcommit=8", "hugetlb_bytes"),
        ("torch", "hugepages@1G=1", "hugetlb_bytes"),
        ("cmd", "hugepages=8", "pool_taken_bytes"),
        ("mmap", "hugepages=8", ""),
        ("copy", "hugepages=0", ""),
        ("copy", "thp@enabled=madvise", "anon_huge_bytes"),
        ("copy", "thp@enabled=never", ""),
        ("copy", "thp@defrag=defer", ""),
        ("cmd", "thp@enabled=always", ""),
        ("copy", "read-ahead@*=4096", ""),
    ],
)
def test_which_figure_shows_that_huge_pages_are_used(leg: str, setting: str, figure: str) -> None:
    assert legs.pages_figure(leg, allocator.hugetlb([setting, "overcommit=always:90"], PAGE)) == figure


def test_pages_for_a_load_as_they_were_counted() -> None:
    """Of 32 tensors with 32 MiB each 544 pages were in use, and 42 for what the interpreter had imported."""
    assert legs.pages_for([32 * MIB] * 32, PAGE) == 544 + legs.FOR_THE_INTERPRETER
    assert legs.pages_for([GIB], PAGE) == 513 + legs.FOR_THE_INTERPRETER
    assert legs.pages_for([1000] * 5000, PAGE) == 3 + legs.FOR_THE_INTERPRETER
    assert legs.pages_for([MIB] * 50, PAGE) == legs.FOR_THE_INTERPRETER


def test_a_pool_that_cannot_hold_a_load_is_told_with_one_that_can() -> None:
    with synthetic("/var/tmp", 128 * MIB) as file:
        leg = legs.workload("copy", file, ["hugepages"], malloc=2, command="", cpus="")
        told = legs.foreseen(leg, file, page_size=PAGE, free=8)
        assert told.startswith("copy: 8 pages of 2 MiB hold 16 of 128 MiB"), told
        enough = int(told.rpartition("hugepages=")[2].split()[0])
        assert legs.foreseen(leg, file, page_size=PAGE, free=enough) == ""
        mapped = legs.workload("mmap", file, ["hugepages"], malloc=2, command="", cpus="")
        assert legs.foreseen(mapped, file, page_size=PAGE, free=8) == ""


def test_tensors_below_a_page_are_told_for_no_pool_reaches_them() -> None:
    with synthetic("/var/tmp", 32 * MIB) as file:
        leg = legs.workload("copy", file, ["hugepages"], malloc=2, command="", cpus="")
        told = legs.foreseen(leg, file, page_size=PAGE, free=1000)
        assert told == "copy: 32 of 32 MiB are tensors of less than 2 MiB, for which glibc takes no huge pages"


def test_no_more_than_sixty_percent_of_what_is_available() -> None:
    legs.check_room(["copy"], GIB, pool=GIB, available=5 * GIB)
    with pytest.raises(OverLimit, match=r"take 3 072 MiB; 60 % of the memory that is available are 3 071 MiB"):
        legs.check_room(["copy", "mmap"], GIB, pool=GIB, available=5 * GIB - MIB)
    legs.check_room(["mmap", "io"], GIB, pool=GIB, available=5 * GIB - MIB)
    with pytest.raises(OverLimit):
        legs.check_room(["cmd"], 0, pool=2 * GIB, available=3 * GIB)


def test_what_lies_in_memory_is_not_read_from_a_disk() -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.fail("there is no tmpfs at /dev/shm")
    with synthetic("/dev/shm", MIB) as file:
        legs.check_disk(["copy", "mmap"], file)
        with pytest.raises(NotSupported, match="tmpfs"):
            legs.check_disk(["io"], file)


def test_words_for_a_file(tmp_path: Path) -> None:
    with synthetic(str(tmp_path), 3 * MIB) as file:
        assert legs.described(file) == "3 MiB of random data"
