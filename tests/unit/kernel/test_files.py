"""HostKernel: what may be read and written below its root, what udev calls a drive, and why a file is missing."""

from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerntune.globs import natural_sort_key
from kerntune.kernel.cpufreq import why_no_cpufreq
from kerntune.kernel.devices import MIN_DEVICES, Links, links
from kerntune.kernel.files import WRITABLE, HostKernel, KernelError, KernelView, is_writable, read_int, read_or_none
from kerntune.kernel.kconfig import configured, kernel_release, missing
from tests.hosts import lay_out, plant

SCHEDULER = "sys/block/sda/queue/scheduler"
TREE = f"""\
{SCHEDULER}\t[none] mq-deadline
sys/block/sda/diskseq\t7
proc/sys/vm/overcommit_memory\t0
proc/sys/vm/swappiness\t60
proc/sys/vm/negative\t-3
sys/block/loop2/diskseq\t2
sys/block/loop10/diskseq\t10
"""
# What no list of ours names, or not in this spelling.
UNLISTED = [
    "proc/sys/vm/dirty_ratio",
    "sys/block/sda/diskseq",
    "/proc/sys/vm/overcommit_memory",
    "proc/sys/vm/overcommit_memory/",
    "proc/sys/vm/../vm/overcommit_memory",
    "sys/block/sda/../sda/queue/scheduler",
    "sys/block/../block/queue/scheduler",
    "sys/block/sda/x/queue/scheduler",
    "sys/block/sda/queue/scheduler/x",
    "proc/sys/vm/new",
    "proc/sysrq-trigger",
    "",
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a tree; beside it lies a secret, and links lead to it."""
    (tmp_path / "secret").write_text("[none] secret\n")
    (tmp_path / "outside/queue").mkdir(parents=True)
    (tmp_path / "outside/queue/scheduler").write_text("[none] secret\n")
    root = tmp_path / "root"
    plant(root, TREE)
    (root / "sys/block/out").symlink_to(tmp_path / "outside")
    (root / "sys/block/up").symlink_to("../../../outside")
    (root / "proc/secret").symlink_to("../../secret")
    return root


@pytest.fixture
def kernel(root: Path) -> HostKernel:
    return HostKernel(root)


def code_of_read(kernel: KernelView, path: str) -> int | None:
    with pytest.raises(KernelError) as caught:
        kernel.read(path)
    assert caught.value.filename == path
    return caught.value.errno


def code_of_write(kernel: HostKernel, path: str, text: str = "1") -> int | None:
    with pytest.raises(KernelError) as caught:
        kernel.write(path, text)
    assert caught.value.filename == path
    return caught.value.errno


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_reads_without_the_white_space_around(kernel: HostKernel) -> None:
    assert kernel.read(SCHEDULER) == "[none] mq-deadline"
    assert kernel.read("/" + SCHEDULER) == "[none] mq-deadline"


@pytest.mark.parametrize(
    "path", ["../secret", "proc/../../secret", "sys/block/../../../secret", "proc/..", "..", "proc/../proc/sys"]
)
def test_dots_do_not_lead_out(kernel: HostKernel, path: str) -> None:
    assert code_of_read(kernel, path) == errno.EPERM


@pytest.mark.parametrize("path", ["proc/secret", "sys/block/out/queue/scheduler", "sys/block/up/queue/scheduler"])
def test_links_do_not_lead_out(kernel: HostKernel, path: str) -> None:
    assert code_of_read(kernel, path) == errno.EPERM


def test_links_inside_are_followed(root: Path, kernel: HostKernel) -> None:
    (root / "sys/block/sdb").symlink_to("../block/sda")
    assert kernel.read("sys/block/sdb/diskseq") == "7"
    kernel.write("sys/block/sdb/queue/scheduler", "mq-deadline")
    assert kernel.read(SCHEDULER) == "mq-deadline"


def test_an_absolute_path_is_below_the_root(root: Path, kernel: HostKernel) -> None:
    assert code_of_read(kernel, str(root.parent / "secret")) == errno.ENOENT
    assert code_of_read(kernel, "/etc/hostname") == errno.ENOENT


@pytest.mark.parametrize("pattern", ["../*", "sys/../../*", "..", "/etc/*", "//etc/*"])
def test_glob_does_not_lead_out(kernel: HostKernel, pattern: str) -> None:
    assert list(kernel.glob(pattern)) == []


@pytest.mark.parametrize("path", ["sys/block/out/queue/scheduler", "sys/block/up/queue/scheduler"])
def test_a_write_does_not_follow_a_link_out(root: Path, kernel: HostKernel, path: str) -> None:
    before = contents(root.parent)
    assert code_of_write(kernel, path) == errno.EPERM
    assert contents(root.parent) == before


@pytest.mark.parametrize("path", UNLISTED)
def test_a_file_that_is_not_listed_is_not_written(root: Path, kernel: HostKernel, path: str) -> None:
    before = contents(root.parent)
    assert code_of_write(kernel, path) == errno.EPERM
    assert contents(root.parent) == before


@pytest.mark.parametrize("path", UNLISTED)
def test_a_file_that_is_not_listed_is_not_kept_for_writing(root: Path, kernel: HostKernel, path: str) -> None:
    before = contents(root.parent)
    with pytest.raises(KernelError) as caught:
        kernel.open(path, writable=True)
    assert (caught.value.errno, caught.value.filename) == (errno.EPERM, path)
    assert contents(root.parent) == before


def test_what_is_kept_for_reading_cannot_be_written(root: Path, kernel: HostKernel) -> None:
    """Every file may be kept so, those that are not listed too: the kernel says that the descriptor is for reading."""
    before = contents(root)
    for path in ("proc/sys/vm/negative", SCHEDULER):
        kept = kernel.open(path)
        try:
            assert kept.read() == before[root / path].decode().strip()
            with pytest.raises(KernelError) as caught:
                kept.write("7")
            assert (caught.value.errno, caught.value.filename) == (errno.EBADF, path)
        finally:
            kept.close()
    assert contents(root) == before


def test_what_is_kept_for_writing_is_written(root: Path, kernel: HostKernel) -> None:
    kept = kernel.open(SCHEDULER, writable=True)
    try:
        kept.write("none")
        assert kept.read() == "none"
    finally:
        kept.close()
    assert (root / SCHEDULER).read_bytes() == b"none\n"


def test_a_write_replaces_the_whole_text(root: Path, kernel: HostKernel) -> None:
    kernel.write(SCHEDULER, "none")
    assert (root / SCHEDULER).read_bytes() == b"none\n"


def test_a_write_that_is_killed_half_way_leaves_nothing_of_a_longer_text(
    root: Path, kernel: HostKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by SIGKILL between the two calls that a file of a tree takes, where a file of the kernel takes one."""

    def killed(_fd: int, _length: int) -> None:
        raise KeyboardInterrupt

    (root / SCHEDULER).write_text("[mq-deadline] none bfq\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", killed)
        with pytest.raises(KeyboardInterrupt):
            kernel.write(SCHEDULER, "none")
    assert kernel.read(SCHEDULER) == "none"


def test_a_write_makes_no_file(root: Path, kernel: HostKernel) -> None:
    before = contents(root)
    assert code_of_write(kernel, "sys/block/sdz/queue/scheduler") == errno.ENOENT
    assert code_of_write(kernel, "proc/sys/vm/overcommit_ratio") == errno.ENOENT
    assert contents(root) == before


def test_the_errno_is_the_kernels(root: Path, kernel: HostKernel) -> None:
    assert code_of_read(kernel, "proc/nothing") == errno.ENOENT
    assert code_of_read(kernel, "proc/sys") == errno.EISDIR
    assert code_of_read(kernel, f"{SCHEDULER}/more") == errno.ENOTDIR
    (root / "proc/sys/vm/overcommit_ratio").mkdir()
    assert code_of_write(kernel, "proc/sys/vm/overcommit_ratio") == errno.EISDIR


def test_only_a_tree_is_simulated(kernel: HostKernel) -> None:
    assert kernel.simulated
    assert not HostKernel(Path("/")).simulated


@pytest.mark.parametrize("path", ["proc/../etc/hostname", "../etc/hostname"])
def test_dots_are_refused_on_the_host_as_well(path: str) -> None:
    assert code_of_read(HostKernel(), path) == errno.EPERM


def test_a_star_stays_between_two_slashes(kernel: HostKernel) -> None:
    assert list(kernel.glob("sys/*/queue/scheduler")) == []
    assert list(kernel.glob("sys/block/*/diskseq")) == [
        "sys/block/loop2/diskseq",
        "sys/block/loop10/diskseq",
        "sys/block/sda/diskseq",
    ]
    assert list(kernel.glob("sys/**/diskseq")) == []


@pytest.mark.parametrize("pattern", WRITABLE)
def test_allowed_is_as_narrow_as_the_list(pattern: str) -> None:
    path = pattern.replace("*", "0")
    assert is_writable(path)
    assert not is_writable(f"/{path}")
    assert not is_writable(f"x/{path}")
    assert not is_writable(f"{path}/x")
    assert not is_writable(f"{path}x")
    if "*" in pattern:
        assert not is_writable(pattern.replace("*", "a/b"))
        assert not is_writable(pattern.replace("*", ".."))


@given(st.text("abc/.*0", max_size=12))
def test_no_name_of_a_device_opens_another_file(name: str) -> None:
    path = f"sys/block/{name}/queue/scheduler"
    if is_writable(path):
        assert "/" not in name
        assert name != ".."


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [("node2", "node10"), ("a/loop9", "a/loop10"), ("cpu", "cpu0"), ("2M/node2", "2M/node10"), ("sda", "sdb")],
)
def test_natural_order(smaller: str, larger: str) -> None:
    assert natural_sort_key(smaller) < natural_sort_key(larger)


@given(st.lists(st.text("a1/²٣", max_size=6)))
def test_any_names_can_be_sorted(names: list[str]) -> None:
    assert sorted(sorted(names, key=natural_sort_key)) == sorted(names)


def test_find_and_number_have_an_answer_for_what_is_not_there(kernel: HostKernel) -> None:
    assert read_or_none(kernel, "proc/nothing") is None
    assert read_or_none(kernel, "sys/block/sda/diskseq") == "7"
    assert read_int(kernel, "proc/nothing") == 0
    assert read_int(kernel, "proc/nothing", 5) == 5
    assert read_int(kernel, SCHEDULER, 5) == 5
    assert read_int(kernel, "sys/block/sda/diskseq") == 7
    assert read_int(kernel, "proc/sys/vm/negative") == -3


def test_what_is_no_text_is_read_all_the_same(root: Path, kernel: HostKernel) -> None:
    (root / "proc/bytes").write_bytes(b"ab\xffcd\n")
    assert kernel.read("proc/bytes") == "ab\ufffdcd"


def test_a_packed_file_is_unpacked(root: Path, kernel: HostKernel) -> None:
    (root / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_X=y\n" * 20_000))
    assert kernel.read("proc/config.gz").splitlines() == ["CONFIG_X=y"] * 20_000


@pytest.mark.parametrize(
    "damage",
    [b"", b"not packed", gzip.compress(b"CONFIG_X=y\n")[:-9], gzip.compress(b"CONFIG_X=y\n")[:10] + b"\xff" * 20],
    ids=["empty", "plain", "cut", "garbage"],
)
def test_a_broken_packed_file_is_a_file_that_cannot_be_read(root: Path, kernel: HostKernel, damage: bytes) -> None:
    (root / "proc/config.gz").write_bytes(damage)
    assert not read_or_none(kernel, "proc/config.gz")


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOMEM])
def test_an_identity_that_cannot_be_known_now_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """What is taken for gone loses the value that it had by itself."""
    kernel = HostKernel(root)
    assert kernel.identity("sys/block/sda/queue") != ""
    assert kernel.identity("sys/block/sdb/queue") == ""

    def fails(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(KernelError):
        kernel.identity("sys/block/sda/queue")


# Other names of block devices, in a tree and on the host


SAMSUNG = "by-id/nvme-SAMSUNG_MZQL23T8_S64HNE0R500123"


def test_the_links_of_one_drive_and_not_of_its_partitions(tmp_path: Path) -> None:
    kernel = lay_out("two-sockets", tmp_path)
    assert list(kernel.links("nvme0n1")) == [SAMSUNG, "by-id/nvme-eui.36344830525001230025384500000001"]
    assert list(kernel.links("nvme0n1p1")) == [f"{SAMSUNG}-part1"]


def test_every_folder_of_links_counts(tmp_path: Path) -> None:
    kernel = lay_out("two-sockets", tmp_path)
    assert list(kernel.links("sda")) == ["by-id/ata-ST4000NM000A_WJG0ABCD", "by-path/pci-0000:00:17.0-ata-1"]


def test_no_link_is_none(tmp_path: Path) -> None:
    assert list(lay_out("two-sockets", tmp_path / "a").links("nvme10n1")) == []
    assert list(lay_out("small-vm", tmp_path / "b").links("vda")) == []


def test_only_symbolic_links_count(tmp_path: Path) -> None:
    plant(tmp_path, "dev/disk/by-id/nvme-A\tnvme0n1\ndev/disk/by-id/nvme-B -> nvme0n1")
    assert list(links(tmp_path, "nvme0n1")) == ["by-id/nvme-B"]


def test_udev_is_asked_on_the_host() -> None:
    assert list(HostKernel().links("no-such-device")) == []


def test_udev_is_asked_again_when_it_has_written_and_only_the_last_answer_is_kept() -> None:
    asked: list[str] = []
    written = {"sda": 1}

    def ask(device: str) -> list[str]:
        asked.append(device)
        return [f"by-id/{device}-{len(asked)}"]

    known = Links(ask, lambda device: written.get(device, 0))
    assert [known.of("sda"), known.of("sda")] == [["by-id/sda-1"]] * 2
    for time in range(2, 100):
        written["sda"] = time
        known.of("sda")
    assert known.of("sda") == ["by-id/sda-99"]
    assert (len(asked), len(known)) == (99, 1)


def test_the_links_of_devices_that_have_gone_are_not_kept_for_good() -> None:
    last = 0
    known = Links(lambda _device: [], lambda device: int(device == f"dm-{last}"))
    for last in range(3 * MIN_DEVICES):
        known.of(f"dm-{last}")
    assert len(known) <= MIN_DEVICES


def test_of_many_devices_that_are_there_each_is_asked_for_once() -> None:
    asked: list[str] = []

    def ask(device: str) -> list[str]:
        asked.append(device)
        return []

    known = Links(ask, lambda _device: 1)
    for _ in range(3):
        for number in range(3 * MIN_DEVICES):
            known.of(f"dm-{number}")
    assert len(asked) == len(known) == 3 * MIN_DEVICES


# Why a file is missing: what the kernel was built with


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
