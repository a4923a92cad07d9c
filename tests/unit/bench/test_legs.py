"""Which legs a change bears on, what is refused before anything is measured, and what makes runs of no use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kerntune.bench import legs, traps
from kerntune.bench.file import synthetic
from kerntune.bench.model import Round, Sample
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


# What makes runs of no use, told with its figures; and what a change cannot reach


MIB = 1 << 20
CPUS = 4


def run(**figures: float) -> Sample:
    return Sample(1.0, figures)


def rounds(after: Sample, *, count: int = 10, before: Sample | None = None) -> list[Round]:
    return [Round(before or run(), after, before or run()) for _ in range(count)]


def test_huge_pages_that_hold_next_to_nothing_are_not_used() -> None:
    measured = rounds(run(hugetlb_bytes=2 * MIB, loaded_bytes=1024 * MIB))
    why = traps.found(measured, "copy", on_pages="hugetlb_bytes", cpus=CPUS)
    assert why == "huge pages not used: 2 of 1 024 MiB lay on them"


@pytest.mark.parametrize(("used", "is_enough"), [(0, False), (511, False), (512, True), (1028, True)])
def test_half_of_a_load_has_to_lie_on_them(used: int, is_enough: bool) -> None:
    measured = rounds(run(hugetlb_bytes=used * MIB, loaded_bytes=1024 * MIB))
    assert (traps.found(measured, "copy", on_pages="hugetlb_bytes", cpus=CPUS) == "") == is_enough


def test_what_before_has_on_huge_pages_does_not_count() -> None:
    before = run(hugetlb_bytes=1024 * MIB, loaded_bytes=1024 * MIB)
    measured = rounds(run(hugetlb_bytes=0, loaded_bytes=1024 * MIB), before=before)
    assert traps.found(measured, "copy", on_pages="hugetlb_bytes", cpus=CPUS).startswith(
        "huge pages not used: 0 of 1 024"
    )


def of_command(taken: int, **more: float) -> Sample:
    """A run with so many MiB of huge pages, and 1 000 MiB of other memory."""
    return run(pool_taken_bytes=taken * MIB, resident_bytes=1000 * MIB, **more)


@pytest.mark.parametrize(
    ("taken", "why"), [(0, "0 of 1 000"), (2, "2 of 1 002"), (10, "10 of 1 010"), (12, ""), (1000, "")]
)
def test_a_command_has_to_take_more_than_next_to_nothing(taken: int, why: str) -> None:
    found = traps.found(rounds(of_command(taken)), "cmd", on_pages=traps.TAKEN, cpus=CPUS)
    assert found == (why and f"huge pages not used: {why} MiB lay on them")


def test_how_little_of_a_command_lay_on_huge_pages_is_told() -> None:
    assert list(traps.notes(rounds(of_command(100)), "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == [
        "huge pages held 100 of the 1 100 MiB of the command's memory"
    ]
    assert list(traps.notes(rounds(of_command(1000)), "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == []
    assert list(traps.notes(rounds(of_command(100)), "cmd", on_pages="", cpus=CPUS)) == []
    assert list(traps.notes([], "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == []


def test_a_run_that_is_too_short_to_be_seen_ends_nothing() -> None:
    unseen, seen = (Sample(seconds, {"pool_taken_bytes": 0}) for seconds in (0.4, 0.6))
    assert traps.unused_at_once(unseen, traps.TAKEN) == ""
    assert traps.unused_at_once(seen, traps.TAKEN) == "huge pages not used: 0 of 0 MiB lay on them"
    short = Sample(0.1, {"hugetlb_bytes": 0, "loaded_bytes": MIB})
    assert traps.unused_at_once(short, "hugetlb_bytes") == "huge pages not used: 0 of 1 MiB lay on them"


def test_a_pool_that_was_used_up_is_told() -> None:
    measured = rounds(of_command(1000, pool_left_bytes=0), count=7) + rounds(
        of_command(1000, pool_left_bytes=MIB), count=3
    )
    assert list(traps.notes(measured, "cmd", on_pages=traps.TAKEN, cpus=CPUS)) == [
        "the command took the last free huge page in 7 of 10 runs: more may help"
    ]


@pytest.mark.parametrize(("read", "is_told"), [(0, False), (10, False), (11, True), (1024, True)])
def test_a_load_from_memory_that_came_from_the_disk_is_told(read: int, is_told: bool) -> None:
    cold, warm = (run(loaded_bytes=1024 * MIB, read_bytes=part * MIB) for part in (read, 0))
    told = list(
        traps.notes([Round(warm, warm, warm), Round(cold, warm, warm)], "copy", on_pages="hugetlb_bytes", cpus=CPUS)
    )
    assert told == (["1 of 6 runs read from the disk: the file did not stay in memory"] if is_told else [])


def test_pages_count_only_where_they_are_compared() -> None:
    assert traps.found(rounds(run(hugetlb_bytes=0, loaded_bytes=MIB)), "copy", on_pages="", cpus=CPUS) == ""


@pytest.mark.parametrize(("hot", "is_too_many"), [(1, False), (3, False), (4, True)])
def test_a_tenth_of_the_runs_may_be_on_throttled_cpus(hot: int, is_too_many: bool) -> None:
    cold_runs = rounds(run(throttled=0), before=run(throttled=0), count=10 - hot)
    measured = [*cold_runs, *rounds(run(throttled=2), before=run(throttled=0), count=hot)]
    why = traps.found(measured, "copy", on_pages="", cpus=CPUS)
    assert why == (f"clocks throttled: the CPUs were too hot in {hot} of 30 runs" if is_too_many else "")


@pytest.mark.parametrize(("others", "is_busy"), [(0.1, False), (2.0, False), (2.1, True), (4.0, True)])
def test_a_machine_is_busy_when_others_use_half_of_it(others: float, is_busy: bool) -> None:
    measured = rounds(run(others_cpus=others), before=run(others_cpus=others))
    assert bool(traps.found(measured, "copy", on_pages="", cpus=CPUS)) == is_busy


def test_beside_a_command_others_are_only_told() -> None:
    """Children that it does not wait for would make every machine a busy one."""
    measured = rounds(run(others_cpus=3.0), before=run(others_cpus=3.0))
    assert traps.found(measured, "cmd", on_pages="", cpus=CPUS) == ""
    assert list(traps.notes(measured, "cmd", on_pages="", cpus=CPUS)) == [
        "other programs used 3.0 of 4 CPUs in most of the runs, or the command itself with what it does not wait for"
    ]
    assert list(traps.notes(measured, "copy", on_pages="", cpus=CPUS)) == []


def test_a_moment_of_others_makes_no_machine_busy() -> None:
    quiet, loud = (run(others_cpus=count) for count in (0.0, 4.0))
    measured = [*rounds(quiet, count=6, before=quiet), *rounds(loud, count=4, before=loud)]
    assert traps.found(measured, "copy", on_pages="", cpus=CPUS) == ""


def test_a_run_with_trouble_ends_it_at_once() -> None:
    broken = Sample(0.0, trouble="the file has become shorter while it was read")
    assert traps.at_once(Round(run(), run(), run())) == ""
    for each in (Round(broken, run(), run()), Round(run(), broken), Round(run(), run(), broken)):
        assert traps.at_once(each) == broken.trouble


def test_why_a_change_does_not_reach_a_leg() -> None:
    assert "no huge pages of a pool reach it" in traps.out_of_reach("mmap", ["hugepages", "overcommit"])
    assert traps.out_of_reach("mmap", ["hugepages", "cpu-governor"]) == ""
    assert traps.out_of_reach("copy", ["hugepages"]) == ""
    assert traps.out_of_reach("cpu", []) == ""
