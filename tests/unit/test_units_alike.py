"""Sizes of one message in one unit."""

from __future__ import annotations

import pytest

from kerntune.units import spell_alike, unit_of

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("counts", "unit", "said"),
    [
        ((100 * GIB, 96 * GIB + 700 * MIB, 0), "", "100 GiB, 96.6 GiB, 0 GiB"),
        ((6 * GIB, 819 * MIB + 1), "", "6144 MiB, 819 MiB"),
        ((1 * GIB, 512 * KIB), "", "1024 MiB, 0.5 MiB"),
        ((512 * KIB, 4 * KIB), "", "512 KiB, 4 KiB"),
        ((), "", ""),
        ((0,), "", "0 GiB"),
        ((100 * GIB, 20 * MIB, 1), "G", "100 GiB, 0.019 GiB, 0 GiB"),
        ((1 << 40, 96 * GIB), "T", "1 TiB, 0.093 TiB"),
        ((102_400 * MIB,), "M", "102400 MiB"),
        ((GIB,), "K", "1048576 KiB"),
    ],
)
def test_alike(counts: tuple[int, ...], unit: str, said: str) -> None:
    assert ", ".join(spell_alike(counts, unit)) == said


@pytest.mark.parametrize(
    ("text", "unit"), [("64G", "G"), ("4mib", "M"), ("1kB", "K"), ("512", ""), (">=4M", ""), ("never:50", "")]
)
def test_unit_of(text: str, unit: str) -> None:
    assert unit_of(text) == unit
