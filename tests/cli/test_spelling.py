"""How settings and sizes are written: tables, and properties over any size and any text."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.cli import spelling
from kerntune.errors import NotSupported, Usage
from kerntune.model import Setting

KIB, MIB, GIB, TIB = (1 << bits for bits in (10, 20, 30, 40))
PAGE_SIZES = st.sampled_from([64 * KIB, 2 * MIB, 16 * MIB, 32 * MIB, 512 * MIB, GIB, 16 * GIB])


def read(text: str, default_page_size: int = 2 * MIB) -> Setting:
    return spelling.setting(spelling.asked(text), default_page_size=default_page_size)


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
    assert spelling.size(text) == count


@pytest.mark.parametrize("text", ["", "2", "G", "2X", "-2M", "2 M", "1.5G", "2MM", "2iB", "2B", "٢M", "2M\n", "1e3M"])
def test_no_size(text: str) -> None:
    assert spelling.size(text) is None


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (1000, "1000"), (KIB, "1K"), (2 * MIB, "2M"), (1536 * MIB, "1536M"), (4 * TIB, "4T")]
)
def test_a_size_is_spelt_in_the_largest_exact_unit(count: int, text: str) -> None:
    assert spelling.spell_size(count) == text


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("hugepages=128", ("hugepages", "2M", "128")),
        ("hugepages=0", ("hugepages", "2M", "0")),
        ("hugepages=0128", ("hugepages", "2M", "128")),
        ("hugepages=64G", ("hugepages", "2M", "32768")),
        ("hugepages@1G=8G", ("hugepages", "1G", "8")),
        ("hugepages@1G=8", ("hugepages", "1G", "8")),
        ("hugepages@1G=1TiB", ("hugepages", "1G", "1024")),
        ("hugepages@2M/node0=512", ("hugepages", "2M/node0", "512")),
        ("hugepages@2M/*=1G", ("hugepages", "2M/*", "512")),
        ("hugepages@2048kB=4", ("hugepages", "2M", "4")),
        ("hugepages@1024MiB/node1=1g", ("hugepages", "1G/node1", "1")),
        ("hugepages@what=4", ("hugepages", "what", "4")),
        ("hugepages-overcommit=1G", ("hugepages-overcommit", "2M", "512")),
        ("hugepages-overcommit@2048K=7", ("hugepages-overcommit", "2M", "7")),
        ("io-scheduler=none", ("io-scheduler", "*", "none")),
        ("io-scheduler@nvme*=none", ("io-scheduler", "nvme*", "none")),
        ("io-scheduler@by-id/nvme-a=b@c=none", ("io-scheduler", "by-id/nvme-a=b@c", "none")),
        ("read-ahead@nvme*=4M", ("read-ahead", "nvme*", "4096")),
        ("read-ahead=512KiB", ("read-ahead", "*", "512")),
        ("read-ahead=0M", ("read-ahead", "*", "0")),
        ("read-ahead=128", ("read-ahead", "*", "128")),
        ("read-ahead=4.5M", ("read-ahead", "*", "4.5M")),
        ("overcommit=always:95", ("overcommit", "", "always:95")),
        ("no-such-thing=5", ("no-such-thing", "*", "5")),
    ],
)
def test_a_setting(text: str, setting: tuple[str, str, str]) -> None:
    assert read(text) == setting


def test_the_default_page_size_is_the_host_s() -> None:
    assert read("hugepages=32M", default_page_size=32 * MIB) == ("hugepages", "32M", "1")


def test_a_host_may_have_no_default_page_size() -> None:
    with pytest.raises(NotSupported, match="no default size"):
        read("hugepages=32M", default_page_size=0)


@pytest.mark.parametrize(
    ("text", "needs"), [("hugepages=1", True), ("hugepages@2M=1", False), ("io-scheduler=none", False)]
)
def test_only_hugepages_without_a_size_needs_the_default(text: str, needs: bool) -> None:
    assert spelling.needs_default_page_size(spelling.asked(text)) is needs


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no value"),
        ("hugepages", "has no value"),
        ("hugepages=", "has no value"),
        ("hugepages@2M", "has no value"),
        ("=5", "names no tunable"),
        ("@2M=5", "names no tunable"),
        ("hugepages@=5", "no instances after the @"),
        ("hugepages=-5", "neither a number of huge pages nor a size"),
        ("hugepages=1.5G", "neither"),
        ("hugepages=many", "neither"),
        ("hugepages=" + "9" * 5000, "neither"),
        ("hugepages@*=64G", "no page size to divide 64G by"),
        ("hugepages@node0=64G", "no page size"),
        ("hugepages@0M=64G", "no page size"),
        ("io-scheduler=no\x1b[2Jne", "cannot be printed"),
        ("io-scheduler@\udcff=none", "cannot be printed"),
    ],
)
def test_a_setting_that_cannot_be_read(text: str, complaint: str) -> None:
    with pytest.raises(Usage, match=complaint):
        read(text)


@pytest.mark.parametrize(
    ("text", "below", "above"),
    [
        ("hugepages@1G=1536M", "1G (hugepages@1G=1)", "2G (hugepages@1G=2)"),
        ("hugepages@2M/node0=3M", "2M (hugepages@2M/node0=1)", "4M (hugepages@2M/node0=2)"),
        ("hugepages=512K", "0 (hugepages@2M=0)", "2M (hugepages@2M=1)"),
    ],
)
def test_a_size_between_pages_names_its_neighbours(text: str, below: str, above: str) -> None:
    with pytest.raises(Usage) as raised:
        read(text)
    assert raised.value.hint == f"The nearest sizes are {below} and {above}"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("hugepages", ("hugepages", None)),
        ("hugepages@2MiB/node0", ("hugepages", "2M/node0")),
        ("io-scheduler@nvme*", ("io-scheduler", "nvme*")),
        ("io-scheduler@by-id/a=b", ("io-scheduler", "by-id/a=b")),
    ],
)
def test_a_name(text: str, what: tuple[str, str | None]) -> None:
    assert spelling.what(text) == what


@pytest.mark.parametrize("text", ["", "@2M", "hugepages@", "hugepages=5"])
def test_no_name(text: str) -> None:
    with pytest.raises(Usage):
        spelling.what(text)


@given(st.integers(0, 1 << 50))
def test_a_spelt_size_reads_back(count: int) -> None:
    text = spelling.spell_size(count)
    assert spelling.size(text) == (count if not text.isdigit() else None)
    assert not text.isdigit() or int(text) == count


@given(PAGE_SIZES, st.integers(1, 1 << 20))
def test_pages_as_a_size_are_as_many_pages(page_size: int, pages: int) -> None:
    pool = spelling.spell_size(page_size)
    assert read(f"hugepages@{pool}={spelling.spell_size(pages * page_size)}") == ("hugepages", pool, str(pages))


@given(PAGE_SIZES, st.integers(0, 1 << 30))
def test_a_size_is_exact_or_refused_with_its_neighbours(page_size: int, kib: int) -> None:
    text = f"hugepages@{spelling.spell_size(page_size)}="
    pages, rest = divmod(kib * KIB, page_size)
    if not rest:
        assert read(f"{text}{kib}K").value == str(pages)
        return
    with pytest.raises(Usage) as raised:
        read(f"{text}{kib}K")
    assert f"({text}{pages}) and " in raised.value.hint
    assert f"({text}{pages + 1})" in raised.value.hint


@given(st.text())
def test_any_text_is_a_setting_or_a_usage_error(text: str) -> None:
    with suppress(Usage):
        assert read(text).value
