"""What makes runs of no use, told with its figures; and what a change cannot reach."""

from __future__ import annotations

import pytest

from kerntune.bench import traps
from kerntune.bench.model import Round, Sample

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
