"""What a report says of the host, and what makes figures doubtful."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

import kerntune
from kerntune.bench import host
from tests.hosts import lay_out, write_files

MIB = 1 << 20
BARE = ["processor\t: 0", "model name\t: A Processor @ 3 GHz", "flags\t\t: fpu sse2", "", "processor\t: 1"]
GUEST = ["processor\t: 0", "model name\t: A Processor", "flags\t\t: fpu hypervisor sse2"]


def test_where_it_is_measured(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    files = {
        "proc/sys/kernel/osrelease": ["6.12.1-amd64"],
        "proc/sys/kernel/arch": ["x86_64"],
        "proc/cpuinfo": BARE,
        "sys/devices/system/cpu/online": ["0-63,65"],
        "sys/devices/system/node/node0/cpulist": ["0-31"],
        "sys/devices/system/node/node1/cpulist": ["32-63"],
    }
    write_files(tmp_path, files)
    found = host.environment(tmp_path)
    assert found == {
        "kernel": "6.12.1-amd64",
        "architecture": "x86_64",
        "cpu": "A Processor @ 3 GHz",
        "cpus": 65,
        "numa_nodes": 2,
        "memory_bytes": 263921648 * 1024,
        "virtualisation": "",
        "python": platform.python_version(),
        "kerntune": kerntune.__version__,
        "glibc": platform.libc_ver()[1],
    }


def test_of_a_host_that_says_nothing(tmp_path: Path) -> None:
    found = host.environment(tmp_path)
    assert (found["kernel"], found["cpu"], found["cpus"], found["numa_nodes"], found["memory_bytes"]) == (
        "",
        "",
        0,
        0,
        0,
    )
    assert host.free_page_reporting(tmp_path) is False
    assert (host.throttled(tmp_path), host.cpu_seconds(tmp_path), host.available_memory(tmp_path)) == (0, 0, 0)
    assert host.free_pages(2 * MIB, tmp_path) == 0


def test_this_host() -> None:
    found = host.environment()
    assert found["kernel"] == platform.release()
    assert found["cpus"] == os.cpu_count()
    assert 0 < host.available_memory() <= int(str(found["memory_bytes"]))
    assert host.cpu_seconds() > 0


@pytest.mark.parametrize(
    ("cpuinfo", "maker", "product", "name"),
    [
        (BARE, "Dell Inc.", "PowerEdge R760", ""),
        (BARE, "", "", ""),
        (GUEST, "", "", "unknown"),
        (GUEST, "QEMU", "Standard PC (Q35 + ICH9, 2009)", "QEMU Standard PC (Q35 + ICH9, 2009)"),
        (["processor\t: 0"], "QEMU", "KVM Virtual Machine", "QEMU KVM Virtual Machine"),
        (["processor\t: 0"], "Microsoft Corporation", "Virtual Machine", "Microsoft Corporation Virtual Machine"),
        (["processor\t: 0"], "Microsoft Corporation", "Surface", ""),
    ],
)
def test_virtual_machines(cpuinfo: list[str], maker: str, product: str, name: str, tmp_path: Path) -> None:
    dmi = "sys/class/dmi/id"
    write_files(tmp_path, {"proc/cpuinfo": cpuinfo, f"{dmi}/sys_vendor": [maker], f"{dmi}/product_name": [product]})
    assert host.environment(tmp_path)["virtualisation"] == name


@pytest.mark.parametrize("cpuinfo", [GUEST, ["processor\t: 0"]])
def test_a_virtual_machine_of_xen(cpuinfo: list[str], tmp_path: Path) -> None:
    write_files(tmp_path, {"proc/cpuinfo": cpuinfo, "sys/hypervisor/type": ["xen"]})
    assert host.environment(tmp_path)["virtualisation"] == "xen"


@pytest.mark.parametrize(
    ("devices", "reports"),
    [
        ([], False),
        ([("0x0005", "0110010100000000")], True),
        ([("0x0005", "0110100100000000")], False),
        ([("0x0005", "0110")], False),
        ([("0x0002", "1111111111111111")], False),
        ([("0x0002", "0000000000000000"), ("0x0005", "0000010000000000")], True),
    ],
)
def test_a_host_that_takes_free_memory_away(devices: list[tuple[str, str]], reports: bool, tmp_path: Path) -> None:
    folder = "sys/bus/virtio/devices/virtio"
    for number, (kind, features) in enumerate(devices):
        write_files(tmp_path, {f"{folder}{number}/device": [kind], f"{folder}{number}/features": [features]})
    assert host.free_page_reporting(tmp_path) is reports


def test_how_often_cpus_were_too_hot(tmp_path: Path) -> None:
    for cpu in range(2):
        folder = f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
        counts = {"core_throttle_count": [str(3 + cpu)], "package_throttle_count": ["10"]}
        counts |= {"core_throttle_total_time_ms": ["999"], "core_throttle_max_time_ms": ["999"]}
        write_files(tmp_path, {f"{folder}/{name}": lines for name, lines in counts.items()})
    assert host.throttled(tmp_path) == 3 + 4 + 10 + 10


def test_the_work_of_all_cpus_has_that_of_guests_once(tmp_path: Path) -> None:
    tick = os.sysconf("SC_CLK_TCK")
    columns = [
        1,
        2,
        4,
        1000,
        2000,
        8,
        16,
        32,
        64,
        128,
    ]  # user nice system idle iowait irq softirq steal guest guest_nice
    line = " ".join(str(column * tick) for column in columns)
    write_files(tmp_path, {"proc/stat": [f"cpu  {line}", f"cpu0 {line}", "intr 7"]})
    assert host.cpu_seconds(tmp_path) == 1 + 2 + 4 + 8 + 16
    assert host.stolen_seconds(tmp_path) == 32


def test_memory_and_huge_pages_that_can_still_be_had(tmp_path: Path) -> None:
    lay_out("two-sockets", tmp_path)
    assert host.available_memory(tmp_path) == 214788100 * 1024
    pool = "sys/kernel/mm/hugepages/hugepages-1048576kB"
    write_files(tmp_path, {f"{pool}/free_hugepages": ["5"], f"{pool}/resv_hugepages": ["2"]})
    assert host.free_pages(1 << 30, tmp_path) == 3
