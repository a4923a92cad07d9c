"""What changes beside kerntune: drives and CPUs that come and go, and other hands; values and answers are right."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest

from kerntune.api.names import BUS_NAME, CPU_GOVERNOR, IO_SCHEDULER, MANAGER, MEMORY, ROOT
from tests.system.host import CPUFREQ, Host, fragment, listening
from tests.system.machine import Machine

pytestmark = pytest.mark.own_machine

SCHEDULER = "io-scheduler"
WANTED = "mq-deadline"
DRIVES = 16
STORM = 64
QUIET = 10  # seconds in which nothing happens
LONGEST = 60  # seconds that is watched


def right(device: str, value: str = WANTED) -> str:
    """Return the shell's condition that a device has the scheduler."""
    return f"grep -q '\\[{value}\\]' /sys/block/{device}/queue/scheduler"


def all_right(pattern: str, number: int) -> str:
    return f"[ $(grep -l '\\[{WANTED}\\]' /sys/block/{pattern}/queue/scheduler | wc -l) = {number} ]"


def gone(pattern: str) -> str:
    return f"! ls /sys/block | grep -q '^{pattern}'"


@pytest.fixture
def wishing(host: Host) -> Host:
    """Give a host where a claim gives every NVMe drive a scheduler, and no drive is there yet."""
    answer = host.set((SCHEDULER, "nvme*", WANTED), user="bob")
    assert answer.short == [("nvme*", "unsupported", "no-such-target")]
    return host


@pytest.fixture
def checking(host: Host) -> Iterator[Host]:
    """Give a host whose daemon looks at the values every second."""
    host.vm.write("/etc/kerntune/kerntune.d/drift.toml", "[drift]\ninterval = 1\n")
    host.vm.check("kerntune reload")
    yield host
    host.vm.check("rm /etc/kerntune/kerntune.d/drift.toml; kerntune reload")


def plug_and_pull(vm: Machine, times: int) -> None:
    for _ in range(times):
        vm.nvme_add("plugged")
        vm.wait_for(right("nvme0n1"))
        vm.nvme_del("plugged")
        vm.wait_for(gone("nvme0n1"))


def errors(host: Host) -> str:
    return host.vm.check("journalctl --output=cat --priority=err --unit=kerntuned.service")


def test_at_rest_it_wakes_less_than_once_a_second(wishing: Host) -> None:
    """This test comes first: after events the daemon looks again for some seconds. Its look once a minute counts."""
    vm = wishing.vm
    vm.wait_for("udevadm settle")
    look = f"awk '/^voluntary/ {{n += $2}} END {{print n}}' /proc/{wishing.pid}/task/*/status"
    began, before = time.monotonic(), int(vm.check(look))
    woken, seconds = QUIET, 0.0
    while woken >= seconds and seconds < LONGEST:
        vm.check(f"sleep {QUIET}")
        woken, seconds = int(vm.check(look)) - before, time.monotonic() - began
    sys.stdout.write(f"woken {woken} times in {seconds:.0f} s\n")
    assert woken < seconds


@pytest.mark.every_system
def test_a_drive_is_set_each_time_it_is_plugged(wishing: Host) -> None:
    plug_and_pull(wishing.vm, 5)
    assert errors(wishing) == ""


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_drive_is_set_fifty_times(wishing: Host) -> None:
    plug_and_pull(wishing.vm, 50)
    assert errors(wishing) == ""


def test_a_claim_by_id_follows_the_drive(host: Host) -> None:
    host.set((SCHEDULER, "by-id/nvme-*_wanted*", WANTED), user="bob")
    for name in ("other", "wanted"):
        host.vm.nvme_add(name)
        host.vm.wait_for(f"[ $(ls /dev/disk/by-id | grep -c _{name}) -ge 1 ]")
    host.vm.wait_for(right("nvme1n1"))
    assert host.scheduler("nvme0n1") == "none"
    for name in ("other", "wanted"):
        host.vm.nvme_del(name)
    host.vm.nvme_add("wanted")
    host.vm.wait_for(right("nvme0n1"))
    host.vm.nvme_del("wanted")
    host.vm.wait_for(gone("nvme0n1"))


@pytest.mark.timeout(240)
def test_sixteen_drives_at_once(wishing: Host) -> None:
    names = [f"drive{number}" for number in range(DRIVES)]
    for name in names:
        wishing.vm.nvme_add(name)
    wishing.vm.wait_for(all_right("nvme*n1", DRIVES), 60)
    # Who reads waits a second for a look at the host, and here that may take longer.
    read = f"busctl get-property {BUS_NAME} {ROOT} {IO_SCHEDULER} Devices"
    told = f"""grep -o '"nvme[0-9]*n1" "{WANTED}"'"""
    wishing.vm.wait_for(f"[ $({read} | {told} | wc -l) = {DRIVES} ]", 20)
    devices = wishing.get(IO_SCHEDULER, "Devices")
    assert {name: current for name, (current, _offered) in devices.items() if name.startswith("nvme")} == {
        f"nvme{number}n1": WANTED for number in range(DRIVES)
    }
    for name in names:
        wishing.vm.nvme_del(name)
    wishing.vm.wait_for(gone("nvme"), 60)
    assert errors(wishing) == ""


@pytest.mark.timeout(240)
def test_a_storm_of_devices(wishing: Host) -> None:
    vm = wishing.vm

    def memory() -> int:
        """Return the private dirty KiB of the daemon."""
        return int(vm.check(f"awk '/^Private_Dirty/ {{print $2}}' /proc/{wishing.pid}/smaps_rollup"))

    sizes = []
    for _ in range(3):
        vm.check(f"nvme-storm add {STORM}")
        vm.wait_for(all_right("nvme1*n1", STORM), 60)
        vm.check(f"nvme-storm del {STORM}")
        vm.wait_for(gone("nvme1"), 60)
        vm.wait_for("udevadm settle")
        sizes.append(memory())
    sys.stdout.write(f"private dirty memory after each storm: {sizes} KiB\n")
    assert sizes[-1] - sizes[0] < 768, "memory grows with each storm"
    assert errors(wishing) == ""


@pytest.mark.every_system
def test_multipath(wishing: Host) -> None:
    vm = wishing.vm
    vm.check("nvme-fabric up 1")
    vm.wait_for(right("nvme0c0n1"))
    assert host_targets(wishing) == ["nvme0c0n1"], "the drive itself has nothing to schedule"
    vm.check("nvme-fabric path")
    vm.wait_for(right("nvme0c1n1"), 20)
    assert host_targets(wishing) == ["nvme0c0n1", "nvme0c1n1"]
    answer = wishing.set((SCHEDULER, "nvme0n1", "none"), user="bob")
    assert answer.short == [("nvme0c0n1", "satisfied", "ok"), ("nvme0c1n1", "satisfied", "ok")]
    vm.check("nvme-fabric down")
    vm.wait_for(gone("nvme0"))


def host_targets(host: Host) -> list[str]:
    rows = host.describe()["targets"]
    return sorted(row["instance"] for row in rows if row["tunable"] == SCHEDULER and row["instance"].startswith("nvme"))


def test_somebody_elses_hand(checking: Host) -> None:
    vm = checking.vm
    vm.check("nvme-storm add 1")
    checking.set((SCHEDULER, "nvme100n1", WANTED), user="bob")
    for _ in range(3):
        vm.check("echo none > /sys/block/nvme100n1/queue/scheduler")
        vm.wait_for(right("nvme100n1"), 10)
    vm.check("echo none > /sys/block/nvme100n1/queue/scheduler")
    vm.wait_for("kerntune --json status | grep -q contested", 10)
    for _ in range(6):
        vm.check("echo bfq > /sys/block/nvme100n1/queue/scheduler")
    assert checking.scheduler("nvme100n1") == "bfq", "it has stopped fighting"
    assert "left so until somebody sets it again" in checking.target(SCHEDULER, "nvme100n1")["detail"]
    checking.set((SCHEDULER, "nvme100n1", WANTED), user="bob")
    assert checking.scheduler("nvme100n1") == WANTED
    vm.check("nvme-storm del 1")
    vm.wait_for(gone("nvme100n1"))


def test_a_cpu_that_comes_back_and_a_driver_that_is_loaded_again(checking: Host) -> None:
    vm = checking.vm
    checking.set(("cpu-governor", "*", "performance"), user="bob")
    checking.set_online(1, online=False)
    checking.set_online(1, online=True)
    vm.wait_for(f"[ $(cat {CPUFREQ}/policy1/scaling_governor) = performance ]", 20)
    vm.check("rmmod acpi_cpufreq && modprobe acpi_cpufreq")
    for policy in (0, 1):
        vm.wait_for(f"[ $(cat {CPUFREQ}/policy{policy}/scaling_governor) = performance ]", 20)
    # What it lets go to is the host's own, also where a driver was loaded anew.
    checking.unset(("cpu-governor", "*"), user="bob")
    assert checking.governor(0) == "schedutil"


@pytest.mark.timeout(240)
def test_slow_huge_pages_delay_no_drive(wishing: Host) -> None:
    vm = wishing.vm
    spoiler = fragment(wishing, 1)
    slow = vm.spawn(f"kerntune set hugepages@2M/node1={wishing.pages(1) + 150}")
    vm.check("nvme-storm add 1")
    began = time.monotonic()
    vm.wait_for(right("nvme100n1"), 30)
    waited = time.monotonic() - began
    done = slow.wait(120)
    sys.stdout.write(f"the drive waited {waited:.1f} s, the pages {time.monotonic() - began:.1f} s: {done.err}\n")
    spoiler.kill(9)
    spoiler.wait()
    vm.check("echo 0 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages; nvme-storm del 1")
    assert waited < 5


# Where kerntune manages nothing


PROPERTIES: Final = "org.freedesktop.DBus.Properties"
DRIVE: Final = "vda"
FILES: Final = {
    "io-scheduler@vda": "/sys/block/vda/queue/scheduler",
    "read-ahead@vda": "/sys/block/vda/queue/read_ahead_kb",
    "cpu-governor@policy0": f"{CPUFREQ}/policy0/scaling_governor",
    "sysctl@vm.swappiness": "/proc/sys/vm/swappiness",
    "thp@enabled": "/sys/kernel/mm/transparent_hugepage/enabled",
    "overcommit": "/proc/sys/vm/overcommit_memory",
}
# What is written, and what kerntune calls it.
OTHERS: Final = {
    "io-scheduler@vda": ("mq-deadline", "mq-deadline"),
    "read-ahead@vda": ("512", "512"),
    "cpu-governor@policy0": ("performance", "performance"),
    "sysctl@vm.swappiness": ("7", "7"),
    "thp@enabled": ("never", "never"),
    "overcommit": ("1", "always:50"),
}
SOON: Final = 10.0  # seconds, emulated
WRITE: Final = "; ".join(f"echo {OTHERS[name][0]} > {file}" for name, file in FILES.items())


@pytest.fixture
def unmanaged(host: Host, vm: Machine) -> Iterator[Host]:
    """Give a host of which kerntune manages nothing; put back by hand what the test writes by hand."""
    assert host.claims() == {}
    before = host.snapshot()
    own = {name: before[file.removeprefix("/")] for name, file in FILES.items()}
    yield host
    vm.check("; ".join(f"echo {own[name]} > {file}" for name, file in FILES.items()))
    assert host.snapshot() == before


def drive_has(scheduler: str) -> str:
    """Return the shell's condition that kerntuned tells of this scheduler."""
    get = f"busctl --json=short get-property {BUS_NAME} {ROOT} {IO_SCHEDULER} Devices"
    return f'{get} | grep -Fq \'"{DRIVE}":["{scheduler}"\''


def changed(line: str) -> dict[str, Any]:
    """Return the properties that a PropertiesChanged has named with their values; busctl's signatures are left out."""
    _interface, values, _invalidated = json.loads(line)["payload"]["data"]
    return {name: value["data"] for name, value in values.items()}


def test_the_command_line_answers_what_the_kernel_holds_now(unmanaged: Host, vm: Machine) -> None:
    asks = "; ".join(f"kerntune get {name}" for name in FILES)
    said = vm.check(f"{WRITE}; {asks}").splitlines()
    assert dict(zip(FILES, said, strict=True)) == {name: spelt for name, (_, spelt) in OTHERS.items()}
    rows = json.loads(vm.check("kerntune --json list"))["targets"]
    shown = {f"{row['tunable']}@{row['instance']}".removesuffix("@"): row["value"] for row in rows}
    assert {name: shown[name] for name in FILES} == {name: spelt for name, (_, spelt) in OTHERS.items()}


def test_properties_are_read_again_and_what_changed_is_announced(unmanaged: Host, vm: Machine) -> None:
    # What is told is a difference, so what was there has to be known first. An answer may be a tenth of a second old.
    vm.wait_for(drive_has(unmanaged.scheduler(DRIVE)), SOON)
    ear = listening(vm, PROPERTIES)
    vm.check(WRITE)
    vm.wait_for(drive_has("mq-deadline"), SOON)
    assert unmanaged.get(CPU_GOVERNOR, "Policies")["policy0"][0] == "performance"
    assert unmanaged.get(MEMORY, "OvercommitMode") == "always"
    for name in ("Devices", "Policies", "OvercommitMode"):
        ear.wait_output(f'"{name}":', SOON)
    ear.kill()
    told: dict[str, Any] = {}
    for line in ear.out.splitlines():
        if '"PropertiesChanged"' in line and BUS_NAME in line:
            told |= changed(line)
    assert told["Devices"][DRIVE][0] == "mq-deadline"
    assert told["Policies"]["policy0"][0] == "performance"
    assert told["OvercommitMode"] == "always"
    assert unmanaged.claims() == {}
    assert unmanaged.get(MANAGER, "Degraded") == []
