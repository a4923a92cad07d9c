"""The line of the progress bar: as wide as there is room, and about what is told."""

from __future__ import annotations

import pytest

from kerntune.cli.progress import line


def test_half_of_it() -> None:
    assert line("hugepages", "2M", 50, 100, columns=48) == "hugepages@2M [########........] 50 of 100 pages"


@pytest.mark.parametrize(("done", "full"), [(0, 0), (1, 0), (99, 39), (100, 40), (200, 40)])
def test_how_much_is_full(done: int, full: int) -> None:
    drawn = line("hugepages", "2M", done, 100, columns=200)
    assert (drawn.count("#"), drawn.count("#") + drawn.count(".")) == (full, 40)


@pytest.mark.parametrize("columns", range(1, 90))
def test_it_never_reaches_the_last_column(columns: int) -> None:
    assert len(line("hugepages", "2M/node0", 12345, 99999, columns=columns)) < columns


def test_nothing_wanted_is_no_division() -> None:
    assert "0 of 0 pages" in line("hugepages", "2M", 0, 0, columns=80)


def test_names_move_no_cursor() -> None:
    assert "\x1b" not in line("huge\x1b[2Jpages", "2M", 1, 2, columns=80)


def test_a_later_daemon_may_say_more() -> None:
    assert "1 of 2 pages" in line("hugepages", "2M", 1, 2, "seconds left", columns=80)
