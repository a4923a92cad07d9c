"""What is said of a file that the kernel does not have."""

from __future__ import annotations

from pathlib import Path

from kerntune.kernel.kconfig import configured, kernel_release, missing
from tests.hosts import lay_out, plant


def test_the_release(tmp_path: Path) -> None:
    assert kernel_release(lay_out("two-sockets", tmp_path / "a")) == "6.1.0-28-amd64"
    assert kernel_release(plant(tmp_path / "b", "sys/")) == "unknown"


def test_a_configuration_below_boot(tmp_path: Path) -> None:
    board = lay_out("no-hugetlb", tmp_path)
    assert configured(board, "BLOCK") == "/boot/config-6.6.31-board has CONFIG_BLOCK=y"
    assert configured(board, "HUGETLBFS") == (
        "/boot/config-6.6.31-board does not set CONFIG_HUGETLBFS: this kernel was built without it"
    )


def test_a_packed_configuration(tmp_path: Path) -> None:
    assert configured(lay_out("small-vm", tmp_path), "HUGETLBFS") == "/proc/config.gz has CONFIG_HUGETLBFS=y"


def test_an_option_is_not_taken_for_a_longer_one(tmp_path: Path) -> None:
    assert "does not set CONFIG_HUGETLB:" in configured(lay_out("small-vm", tmp_path), "HUGETLB")


def test_the_configuration_of_another_kernel_says_nothing(tmp_path: Path) -> None:
    kernel = plant(tmp_path, "proc/sys/kernel/osrelease\t6.2\nboot/config-6.1\tCONFIG_HUGETLBFS=y")
    assert configured(kernel, "HUGETLBFS") == ""
    assert missing(kernel, "sys/kernel/mm/hugepages", "HUGETLBFS") == (
        "/sys/kernel/mm/hugepages is missing; whether the kernel has CONFIG_HUGETLBFS cannot be read here"
    )


def test_why_a_file_is_missing(tmp_path: Path) -> None:
    assert missing(lay_out("no-hugetlb", tmp_path), "sys/kernel/mm/hugepages", "HUGETLBFS") == (
        "/sys/kernel/mm/hugepages is missing; "
        "/boot/config-6.6.31-board does not set CONFIG_HUGETLBFS: this kernel was built without it"
    )
