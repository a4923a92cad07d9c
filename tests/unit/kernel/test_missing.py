"""Why a file of the kernel is missing: what it was built with, and the one cause why no CPU frequency can be set."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.kernel.cpufreq import why_no_cpufreq
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


# Why CPU frequencies cannot be set: one cause, by what the host says of itself


RELEASE = "proc/sys/kernel/osrelease\t6.1.0"
BUILT = f"{RELEASE}\nboot/config-6.1.0\tCONFIG_CPU_FREQ=y"
UNBUILT = f"{RELEASE}\nboot/config-6.1.0\tCONFIG_BLOCK=y"
METAL = "proc/cpuinfo\tprocessor : 0\nproc/cpuinfo\tflags\t\t: fpu vme hwp"
GUEST = "proc/cpuinfo\tprocessor : 0\nproc/cpuinfo\tflags\t\t: fpu vme hypervisor lahf_lm"


@pytest.mark.parametrize(
    ("listing", "cause", "evidence", "fix"),
    [
        (f"{GUEST}\n{BUILT}", "this is a virtual machine", "/proc/cpuinfo has the flag hypervisor", "on its host"),
        (f"{GUEST}\n{BUILT}\nrun/udev/queue\t", "driver is loaded yet", "/run/udev/queue", "set when the driver comes"),
        (f"{GUEST}\n{UNBUILT}", "this is a virtual machine", "hypervisor", "on its host"),
        (
            f"{METAL}\n{BUILT}\nsys/bus/virtio/devices/virtio0/",
            "this is a virtual machine",
            "/sys/bus/virtio/devices has virtio0",
            "on its host",
        ),
        (f"{METAL}\n{UNBUILT}", "built without frequency scaling", "does not set CONFIG_CPU_FREQ", "CONFIG_CPU_FREQ=y"),
        (
            f"{METAL}\n{BUILT}\nproc/cmdline\tquiet cpufreq.off=1",
            "the kernel command line turns it off",
            "/proc/cmdline has cpufreq.off=1",
            "take cpufreq.off=1 out of GRUB_CMDLINE_LINUX in /etc/default/grub",
        ),
        (
            f"{METAL}\n{BUILT}\nproc/cmdline\tintel_pstate=disable",
            "the kernel command line turns it off",
            "/proc/cmdline has intel_pstate=disable",
            "take intel_pstate=disable out",
        ),
        (
            f"{METAL}\n{BUILT}\nproc/cmdline\tcpufreq.off=0 intel_pstate=passive",
            "no frequency driver is loaded",
            "/boot/config-6.1.0 has CONFIG_CPU_FREQ=y",
            "sudo modprobe acpi_cpufreq; if that fails, the firmware controls power",
        ),
        (METAL, "no frequency driver is loaded", "", "modprobe acpi_cpufreq"),
        ("proc/cpuinfo\tFeatures : fp asimd", "no frequency driver is loaded", "", "modprobe cppc_cpufreq"),
        ("sys/", "no frequency driver is loaded", "", "modprobe acpi_cpufreq"),
    ],
)
def test_the_cause_is_decided(tmp_path: Path, listing: str, cause: str, evidence: str, fix: str) -> None:
    found = why_no_cpufreq(plant(tmp_path, listing))
    assert cause in found.why
    assert evidence in " ".join(found.evidence)
    assert fix in found.fix
