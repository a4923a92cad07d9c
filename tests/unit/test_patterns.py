"""How people name instances: pools, and that what is printed of several in one row can be typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.errors import InvalidValue
from kerntune.patterns import Pool, parse_pool
from kerntune.units import spell_size


@pytest.mark.parametrize(
    ("size", "text"),
    [(64 << 10, "64K"), (2 << 20, "2M"), (512 << 20, "512M"), (1 << 30, "1G"), (16 << 30, "16G"), (1 << 40, "1T")],
)
def test_the_largest_exact_unit(size: int, text: str) -> None:
    assert spell_size(size) == text
    assert parse_pool(text) == Pool(size, "")


@pytest.mark.parametrize(
    ("instance", "normal"),
    [
        ("2m", "2M"),
        ("2MB", "2M"),
        ("2MiB", "2M"),
        ("2048K", "2M"),
        ("1024M", "1G"),
        ("2M/node0", "2M/node0"),
        ("2M/NODE12", "2M/node12"),
        ("2048k/*", "2M/*"),
        ("2M/node3,0-1", "2M/node0-1,3"),
    ],
)
def test_normal_form(instance: str, normal: str) -> None:
    assert str(parse_pool(instance)) == normal
    assert str(parse_pool(normal)) == normal


@pytest.mark.parametrize(
    "instance",
    [
        "",
        "*",
        "2M/",
        "2M/node",
        "2M/nodex",
        "2M/node3-1",
        "2M/node0,",
        "2M/node0/x",
        "2M/../x",
        "2M\n",
        " 2M",
        "0M",
        "-2M",
        "1.5G",
        "G",
        "2",
        "2M*",
    ],
)
def test_what_is_no_pool(instance: str) -> None:
    with pytest.raises(InvalidValue):
        parse_pool(instance)


@given(st.integers(10, 49).map(lambda bits: 1 << bits), st.sampled_from(["", "node3", "*"]))
def test_there_and_back(size: int, node: str) -> None:
    assert parse_pool(str(Pool(size, node))) == Pool(size, node)
