"""The machine itself, without kerntune: every trick that the other tests rest on, once."""

from __future__ import annotations

import pytest

from tests.system.host import CPUFREQ, ONE_GIB, Host, fragment
from tests.system.machine import Machine

NODE_1 = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
SCHEDULER = "/sys/block/nvme0n1/queue/scheduler"


def test_commands_run_as_the_users_of_the_machine(vm: Machine) -> None:
    assert vm.check("id -un; id -Gn", user="bob").split() == ["bob", "bob", "kerntune"]
    assert vm.check("id -Gn", user="alice") == "alice"
    ended = vm.run("echo said; echo complained >&2; exit 7")
    assert (ended.status, ended.out, ended.err) == (7, "said\n", "complained\n")
    assert vm.run("cat", data="x" * 300_000).out == "x" * 300_000


@pytest.mark.every_system
def test_a_session_is_active_at_the_console(vm: Machine) -> None:
    shown = vm.check(
        "loginctl show-session $XDG_SESSION_ID -p Active -p Remote -p Seat -p Name", user="alice", session=True
    )
    assert set(shown.splitlines()) == {"Active=yes", "Remote=no", "Seat=seat0", "Name=alice"}
    assert vm.run("loginctl show-session $XDG_SESSION_ID", user="alice", session=False).out.count("Active=yes") == 0


def test_a_drive_is_plugged_and_pulled_out(vm: Machine) -> None:
    watching = vm.spawn("exec udevadm monitor --udev --subsystem-match=block")
    watching.wait_output("UDEV - ")
    vm.nvme_add("first")
    vm.wait_for("[ -b /dev/nvme0n1 ]")
    fresh = vm.read(SCHEDULER)
    vm.check(f"echo bfq > {SCHEDULER}")
    assert "[bfq]" in vm.read(SCHEDULER)
    vm.nvme_del("first")
    vm.wait_for("[ ! -e /sys/block/nvme0n1 ]")
    vm.nvme_add("first")
    vm.wait_for("[ -b /dev/nvme0n1 ]")
    assert "[bfq]" not in fresh
    assert "[bfq]" not in vm.read(SCHEDULER), "a new drive has the kernel's default"
    watching.wait_output("remove")
    watching.kill()
    vm.nvme_del("first")


def test_drives_by_the_dozen(vm: Machine) -> None:
    vm.check("nvme-storm add 32")
    vm.wait_for("[ $(ls /sys/block | grep -c '^nvme1..n1') = 32 ]")
    assert "[none]" in vm.read("/sys/block/nvme131n1/queue/scheduler")
    vm.check("nvme-storm del 32")
    assert int(vm.check("nvme-storm churn 4 0.5")) >= 4


@pytest.mark.every_system
def test_a_drive_with_several_paths(vm: Machine) -> None:
    vm.check("nvme-fabric up 1")
    # The node in /dev comes before the drive has its queue.
    vm.wait_for("[ -b /dev/nvme0n1 ] && ls /sys/block/nvme0n1/queue/read_ahead_kb /sys/block/nvme0c0n1")
    # The head schedules nothing; newer kernels, 6.12.118 for one, have no file to say so.
    assert vm.run("cat /sys/block/nvme0n1/queue/scheduler").out.strip() in ("none", "")
    assert "mq-deadline" in vm.read("/sys/block/nvme0c0n1/queue/scheduler")
    assert vm.read("/sys/block/nvme0c0n1/hidden") == "1"
    vm.check("nvme-fabric down")
    vm.wait_for("[ ! -e /sys/block/nvme0n1 ]")


def test_governors_move_the_frequency(vm: Machine, host: Host) -> None:
    assert vm.read(f"{CPUFREQ}/policy0/scaling_driver") == "acpi-cpufreq"
    own = [host.governor(policy) for policy in (0, 1)]
    for governor, khz in (("powersave", 1_000_000), ("performance", 3_000_000)):
        vm.check(f"echo {governor} > {CPUFREQ}/policy0/scaling_governor")
        vm.wait_for(f"[ $(cat {CPUFREQ}/policy0/scaling_cur_freq) = {khz} ]")
    vm.check(f"echo {own[0]} > {CPUFREQ}/policy0/scaling_governor")

    host.set_online(1, online=False)
    busy = vm.run(f"cat {CPUFREQ}/policy1/scaling_governor")
    assert "busy" in busy.err
    host.set_online(1, online=True)
    assert host.governor(1) == own[1]

    vm.check("rmmod acpi_cpufreq")
    assert not vm.run(f"ls {CPUFREQ}").out
    vm.check("modprobe acpi_cpufreq")
    assert [host.governor(policy) for policy in (0, 1)] == own


def test_huge_pages_of_both_sizes_on_both_nodes(vm: Machine, host: Host) -> None:
    assert vm.read("/sys/devices/system/node/online") == "0-1"
    assert [host.pages(node, size=ONE_GIB) for node in (0, 1)] == [1, 1]
    for node, pages in ((0, 32), (1, 64)):
        vm.check(f"echo {pages} > /sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages")
    assert [host.pages(node) for node in (0, 1, None)] == [32, 64, 96]
    vm.check("echo 0 > /proc/sys/vm/nr_hugepages")


def test_memory_is_fragmented_on_purpose(vm: Machine, host: Host) -> None:
    spoiler = fragment(host, 1)
    own = host.pages(1)
    vm.check(f"echo {own + 180} > {NODE_1}")
    assert own < host.pages(1) < own + 120
    spoiler.kill(9)
    spoiler.wait()
    vm.check(f"echo 0 > {NODE_1}; echo 1 > /proc/sys/vm/compact_unevictable_allowed")


def test_memory_comes_under_pressure(vm: Machine) -> None:
    vm.check("mkswap -q /dev/vdb && swapon /dev/vdb")
    vm.run("systemd-run --quiet --pipe --wait -p MemoryMax=100M memory-hog 150 5")
    shown = vm.read("/proc/pressure/memory")
    assert float(shown.split("avg10=")[1].split()[0]) > 0
    vm.check("swapoff /dev/vdb")
