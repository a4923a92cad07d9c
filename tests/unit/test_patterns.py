"""How people name instances: pools, and that what is printed of several in one row can be typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.errors import InvalidValue
from kerntune.model import Target
from kerntune.patterns import PATTERNS, UNSTABLE, Kind, Pool, joined, parse_pool
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


INSTANCES = {
    Kind.CPUS: st.integers(0, 200).map(lambda number: f"policy{number}"),
    Kind.POOLS: st.sampled_from(["2M", "1G", "32M", "64M"])
    | st.builds("{}/node{}".format, st.sampled_from(["2M", "1G"]), st.integers(0, 20)),
    Kind.DRIVES: st.builds("nvme{}n{}".format, st.integers(0, 30), st.integers(1, 2))
    | st.builds("sd{}".format, st.text("abz", min_size=1, max_size=2))
    | st.builds("dm-{}".format, st.integers(0, 30)),
}


@given(st.sampled_from(list(INSTANCES)), st.data())
def test_what_is_printed_for_several_can_be_typed(kind: Kind, data: st.DataObject) -> None:
    names = data.draw(st.sets(INSTANCES[kind]))
    there = [Target("x", name) for name in sorted(names)]
    printed = data.draw(st.lists(st.sampled_from(sorted(names)), unique=True)) if names else []
    found = joined(printed)
    assert sorted(name for _, covered in found for name in covered) == sorted(printed)
    for pattern, covered in found:
        assert PATTERNS[kind].normal(pattern) == pattern
        matches = PATTERNS[kind].matcher(pattern)
        assert sorted(target.instance for target in there if matches(target)) == sorted(covered)


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["policy0", "policy1", "policy2", "policy6"], ["policy0-2,6"]),
        (["2M", "2M/node0", "2M/node1", "1G"], ["2M", "2M/node0-1", "1G"]),
        (["sda", "sdb", "sdc", "nvme0n1"], ["sd[a-c]", "nvme0n1"]),
        ([f"nvme{number}n1" for number in range(12)], ["nvme[0-9]n1", "nvme1[01]n1"]),
        (["vm.swappiness", "vm.zone_reclaim_mode"], ["vm.swappiness", "vm.zone_reclaim_mode"]),
        ([""], [""]),
        ([], []),
    ],
)
def test_instances_that_share_a_row(names: list[str], patterns: list[str]) -> None:
    assert [pattern for pattern, _ in joined(names)] == patterns


@pytest.mark.parametrize(
    ("name", "stable"),
    [("sda", False), ("vda", False), ("xvdb", False), ("nvme0n1", False), ("mmcblk0", False), ("sdab", False),
     ("by-id/nvme-Fast_1", True), ("nvme*", True), ("dm-0", False),
     ("md127", False), ("md_models", True), ("nvme0c0n1", False), ("loop0", True), ("vdaa1x", True)],
)  # fmt: skip
def test_names_that_a_reboot_may_give_to_another_drive(name: str, stable: bool) -> None:
    assert (UNSTABLE.fullmatch(name) is None) is stable
