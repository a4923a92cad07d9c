"""How sizes and CPU lists are written: tables, and properties over any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.errors import InvalidValue
from kerntune.units import CpuList, in_kib, in_pages, parse_cpus, parse_size, spell_cpus, spell_size

KIB, MIB, GIB, TIB = (1 << bits for bits in (10, 20, 30, 40))
PAGE_SIZES = st.sampled_from([64 * KIB, 2 * MIB, 16 * MIB, 32 * MIB, 512 * MIB, GIB, 16 * GIB])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4K", 4 * KIB),
        ("2M", 2 * MIB),
        ("2m", 2 * MIB),
        ("2MB", 2 * MIB),
        ("2MiB", 2 * MIB),
        ("2mib", 2 * MIB),
        ("64G", 64 * GIB),
        ("1T", TIB),
        ("0G", 0),
        ("007M", 7 * MIB),
    ],
)
def test_a_size(text: str, count: int) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["", "2", "G", "2X", "-2M", "2 M", "1.5G", "2MM", "2iB", "2B", "٢M", "2M\n", "1e3M"])
def test_no_size(text: str) -> None:
    assert parse_size(text) is None
    assert in_kib(text) == in_pages(text, 2 * MIB) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1000, "1000"), (KIB, "1K"), (2 * MIB, "2M"), (1536 * MIB, "1536M"), (4 * TIB, "4T")]
)
def test_a_size_is_spelt_in_the_largest_exact_unit(count: int, text: str) -> None:
    assert spell_size(count) == text


@given(st.integers(0, 1 << 50))
def test_a_spelt_size_reads_back(count: int) -> None:
    text = spell_size(count)
    assert parse_size(text) == (count if not text.isdigit() else None)
    assert not text.isdigit() or int(text) == count


@given(PAGE_SIZES, st.integers(0, 1 << 30))
def test_a_size_is_exact_or_refused_with_its_neighbours(page_size: int, kib: int) -> None:
    pages, rest = divmod(kib * KIB, page_size)
    if not rest:
        assert in_pages(f"{kib}K", page_size) == str(pages)
        return
    with pytest.raises(InvalidValue) as raised:
        in_pages(f"{kib}K", page_size)
    below, above = pages * page_size, (pages + 1) * page_size
    said = f"{pages} ({spell_size(below)}) and {pages + 1} ({spell_size(above)})"
    assert raised.value.hint == f"The nearest numbers of pages are {said}"


@pytest.mark.parametrize(("text", "kib"), [("4M", "4096"), ("512KiB", "512"), ("0M", "0"), ("128", "128")])
def test_a_size_in_kib(text: str, kib: str) -> None:
    assert in_kib(text) == kib


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert CpuList.parse("0-2,5").bits == 0b100111
    assert str(CpuList.parse("8,0-2,1-3,4,8")) == "0-4,8"
    assert parse_cpus("0-2,5\n") == {0, 1, 2, 5}
    assert parse_cpus("\n") == frozenset()
    assert spell_cpus({5, 2, 0, 1}) == "0-2,5"
    assert spell_cpus(()) == ""


@pytest.mark.parametrize("text", ["3-1", "0-", "-1", "0,", "a", "0-1-2", "10000", "٢"])
def test_no_cpu_list(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_cpus(text)
