"""What malloc(3) is told for which settings."""

from __future__ import annotations

import pytest

from kerntune.run.allocator import environment

GIB = 1 << 30
NAME = "GLIBC_TUNABLES"


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ([], ""),
        (["cpu-governor=performance", "read-ahead=4096"], ""),
        (["hugepages=640"], "2"),
        (["hugepages=2G"], "2"),
        (["hugepages=+64"], "2"),
        (["hugepages@2M=64"], "2"),
        (["hugepages@2MiB/node0=64"], "2"),
        (["hugepages-overcommit=64"], "2"),
        (["hugepages@1G=4"], str(GIB)),
        (["hugepages@1g/node1=4"], str(GIB)),
        (["hugepages@1G=4", "hugepages@2M=64"], "2"),
        (["hugepages@64K=4", "hugepages@1G=4"], str(64 << 10)),
        (["hugepages=0"], ""),
        (["hugepages=0G"], ""),
        (["hugepages="], ""),
        (["hugepages"], ""),
        (["hugepages@nonsense=4"], "2"),
        (["thp=madvise"], "1"),
        (["thp=always"], "1"),
        (["thp@enabled=madvise"], "1"),
        (["thp@enabled=never"], ""),
        (["thp@defrag=madvise"], ""),
        (["thp@enabled=madvise", "hugepages=64"], "2"),
        (["hugepages=0", "thp@enabled=madvise"], "1"),
        (["hugepages-of-another=64"], ""),
    ],
)
def test_which_settings_tell_malloc_what(settings: list[str], value: str) -> None:
    asked = environment({"PATH": "/bin"}, settings)
    assert asked == {"PATH": "/bin"} | ({NAME: f"glibc.malloc.hugetlb={value}"} if value else {})


def test_the_default_size_is_the_hosts() -> None:
    assert environment({}, ["hugepages@1G=4"], default_page_size=GIB) == {NAME: "glibc.malloc.hugetlb=2"}
    assert environment({}, ["hugepages@2M=4"], default_page_size=GIB) == {NAME: f"glibc.malloc.hugetlb={2 << 20}"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "glibc.malloc.hugetlb=2"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=2"),
        ("glibc.malloc.hugetlb=1", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3:glibc.malloc.hugetlb=0", "glibc.malloc.check=3:glibc.malloc.hugetlb=0"),
        ("glibc.malloc.hugetlb_other=0", "glibc.malloc.hugetlb_other=0:glibc.malloc.hugetlb=2"),
    ],
)
def test_what_the_user_says_is_kept(given: str, said: str) -> None:
    before = {NAME: given}
    assert environment(before, ["hugepages=640"]) == {NAME: said}
    assert before == {NAME: given}
