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
    why = traps.found(measured, on_pages="hugetlb_bytes", cpus=CPUS)
    assert why == "huge pages not used: 2 of 1 024 MiB lay on them"


@pytest.mark.parametrize(("used", "is_enough"), [(0, False), (511, False), (512, True), (1028, True)])
def test_half_of_a_load_has_to_lie_on_them(used: int, is_enough: bool) -> None:
    measured = rounds(run(hugetlb_bytes=used * MIB, loaded_bytes=1024 * MIB))
    assert (traps.found(measured, on_pages="hugetlb_bytes", cpus=CPUS) == "") == is_enough


def test_what_before_has_on_huge_pages_does_not_count() -> None:
    before = run(hugetlb_bytes=1024 * MIB, loaded_bytes=1024 * MIB)
    measured = rounds(run(hugetlb_bytes=0, loaded_bytes=1024 * MIB), before=before)
    assert traps.found(measured, on_pages="hugetlb_bytes", cpus=CPUS).startswith("huge pages not used: 0 of 1 024")


def test_a_command_has_to_take_some() -> None:
    assert traps.found(rounds(run(pages_used=0)), on_pages="pages_used", cpus=CPUS).startswith("huge pages not used")
    assert traps.found(rounds(run(pages_used=3)), on_pages="pages_used", cpus=CPUS) == ""


def test_pages_count_only_where_they_are_compared() -> None:
    assert traps.found(rounds(run(hugetlb_bytes=0, loaded_bytes=MIB)), on_pages="", cpus=CPUS) == ""


@pytest.mark.parametrize(("hot", "is_too_many"), [(1, False), (3, False), (4, True)])
def test_a_tenth_of_the_runs_may_be_on_throttled_cpus(hot: int, is_too_many: bool) -> None:
    cold_runs = rounds(run(throttled=0), before=run(throttled=0), count=10 - hot)
    measured = [*cold_runs, *rounds(run(throttled=2), before=run(throttled=0), count=hot)]
    why = traps.found(measured, on_pages="", cpus=CPUS)
    assert why == (f"clocks throttled: the CPUs were too hot in {hot} of 30 runs" if is_too_many else "")


@pytest.mark.parametrize(("others", "is_busy"), [(0.1, False), (2.0, False), (2.1, True), (4.0, True)])
def test_a_machine_is_busy_when_others_use_half_of_it(others: float, is_busy: bool) -> None:
    measured = rounds(run(others_cpus=others), before=run(others_cpus=others))
    assert bool(traps.found(measured, on_pages="", cpus=CPUS)) == is_busy


def test_a_moment_of_others_makes_no_machine_busy() -> None:
    quiet, loud = (run(others_cpus=count) for count in (0.0, 4.0))
    measured = [*rounds(quiet, count=6, before=quiet), *rounds(loud, count=4, before=loud)]
    assert traps.found(measured, on_pages="", cpus=CPUS) == ""


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
