"""How the service starts: at a cold boot before any workload, and by a call where it does not start at boot."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.harness import CHECKOUT
from tests.harness.documented import examples
from tests.system.host import UNIT, Host, plug
from tests.system.machine import Machine

CONFIG = """
[cpu-governor]
"*" = "powersave"
[sysctl]
"vm.swappiness" = 7
"""
LOOK = """#!/bin/sh
cd /sys/devices/system
cat node/node0/hugepages/hugepages-2048kB/nr_hugepages node/node1/hugepages/hugepages-2048kB/nr_hugepages
cat cpu/cpufreq/policy?/scaling_governor
cat /proc/sys/vm/overcommit_memory /proc/sys/vm/overcommit_ratio /proc/sys/vm/swappiness
awk '/^HugePages_Total/ {print $2}' /proc/meminfo
sed 's/.*\\[//; s/\\].*//' /sys/kernel/mm/transparent_hugepage/enabled
"""
# What was configured and saved; what only a profile sets follows it.
SEEN = ["32", "32", "powersave", "powersave", "1", "90", "7", "64"]
# The configuration and what was saved by hand win over it: it has other values for governor, swappiness and scheduler.
PROFILE = "ai-inference"
SEEN_WITH_PROFILE = [*SEEN, "madvise"]
OTHERS = "cat /sys/kernel/mm/transparent_hugepage/enabled /sys/block/nvme0n1/queue/read_ahead_kb"
OTHERS_WITH_PROFILE = ["always [madvise] never", "2048"]
# What the profile has and this host does not, or a service without capabilities may not write.
NOT_HERE = {("cpu-epp", "*"), ("sysctl", "kernel.numa_balancing")}
# The README's three commands.
SAVED = "kerntune set overcommit=always:90 --persist"
EXERCISE = [line for block in examples(CHECKOUT / "README.md") for line in block.lines if block.lines[0] == SAVED]
# The first has no ordering of its own: the service has it, for the servers it knows. The second orders itself.
WORKLOAD = """[Unit]
{order}
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c '/usr/local/bin/look > /run/{name}.saw'
[Install]
WantedBy=multi-user.target
"""
WORKLOADS = {"ollama": "", "training": "Wants=kerntune.target\nAfter=kerntune.target"}


@pytest.fixture
def untuned(fresh_vm: Machine) -> Host:
    """Give a machine of its own with a drive and two workloads."""
    plug(fresh_vm, "first")
    fresh_vm.write("/usr/local/bin/look", LOOK, mode="755")
    for name, order in WORKLOADS.items():
        fresh_vm.write(f"/etc/systemd/system/{name}.service", WORKLOAD.format(name=name, order=order))
    fresh_vm.check(["systemctl", "enable", *WORKLOADS])
    return Host(fresh_vm)


def tune(host: Host) -> Host:
    """Write a configuration and save claims; one claim is for now only."""
    host.vm.write("/etc/kerntune/kerntune.d/boot.toml", CONFIG)
    host.vm.check("kerntune config check && kerntune reload")
    assert len(EXERCISE) == 3
    for command in EXERCISE:
        host.vm.check(command, user="bob")
    answer = host.set(("io-scheduler", "nvme*", "bfq"), user="bob", persist=True)
    assert not answer.refusal, answer.refusal
    host.set(("cpu-governor", "*", "performance"), user="bob")
    return host


@pytest.mark.every_system
@pytest.mark.parametrize(
    "boots",
    [
        pytest.param(1, marks=pytest.mark.timeout(300)),
        pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(1500)]),
    ],
)
def test_settings_are_in_force_when_the_system_is_up(untuned: Host, boots: int) -> None:
    """The workloads see what was configured and saved, and at every other boot a profile's values."""
    vm = untuned.vm
    own = vm.check(f"look; {OTHERS}")
    seen = [*SEEN, own.split()[len(SEEN)]]
    tuned = tune(untuned)
    for number in range(boots):
        if number % 2 == 0:
            # Done, but for what this host does not have and what was saved.
            assert vm.run(f"kerntune profile set {PROFILE}").status in (0, 6)
            in_order_after_a_boot(tuned, SEEN_WITH_PROFILE, {"config", "persistent", "profile"})
            assert vm.check(OTHERS).splitlines() == OTHERS_WITH_PROFILE
            assert not_in_the_desired_state(tuned) <= NOT_HERE
            said = vm.check("kerntune status")
            assert PROFILE in said
            assert "(config wins over profile)" in said
            vm.check("kerntune profile clear")
        else:
            in_order_after_a_boot(tuned, seen, {"config", "persistent"})
        assert vm.check("look").split() == seen
        assert not_in_the_desired_state(tuned) == set()
        assert tuned.describe()["degraded"] == []
    vm.check("kerntune reset --baseline")
    assert vm.check(f"look; {OTHERS}") == own


def in_order_after_a_boot(tuned: Host, seen: list[str], origins: set[str]) -> None:
    """Reboot; check that the workloads saw these values and that nothing delayed the service."""
    tuned.vm.reboot()
    for name in WORKLOADS:
        assert tuned.vm.read(f"/run/{name}.saw").split() == seen
    tuned.vm.wait_for("grep -q '\\[bfq\\]' /sys/block/nvme0n1/queue/scheduler", 20)
    service, target, up, workload = entered(tuned, UNIT, "kerntune.target", "multi-user.target", "ollama.service")
    assert service <= target <= up
    assert service <= workload
    assert tuned.unit("NRestarts") == "0"
    assert "ordering cycle" not in tuned.vm.check("journalctl --boot --output=cat --identifier=systemd")
    assert {claim["origin"] for claim in tuned.describe()["claims"]} == origins


def not_in_the_desired_state(tuned: Host) -> set[tuple[str, str]]:
    """Return the tunables and instances that `kerntune verify` names."""
    document = json.loads(tuned.vm.run("kerntune verify --json").out)
    assert document["managed"] - document["satisfied"] == len(document["outcomes"])
    return {(row["tunable"], row["instance"]) for row in document["outcomes"]}


def entered(host: Host, *units: str) -> list[int]:
    """Return when each unit became active, in microseconds since the start of the kernel."""
    words = ["systemctl", "show", "--value", "--property=ActiveEnterTimestampMonotonic", *units]
    when = [int(word) for word in host.vm.check(words).split()]
    assert all(when), f"one of {units} is not active"
    assert len(when) == len(units)
    return when


# These use the shared machine, which `fresh_vm` of the test above stops: they come after it.


@pytest.fixture
def disabled(host: Host) -> Iterator[Host]:
    """Give the machine with the service disabled and stopped; it runs again after the test."""
    host.vm.check(f"systemctl disable --now {UNIT}")
    yield host
    host.vm.check(f"systemctl unmask {UNIT}; systemctl enable --now {UNIT}")


def test_a_call_starts_it_and_the_configuration_is_in_force(disabled: Host) -> None:
    disabled.vm.write("/etc/kerntune/kerntune.d/test.toml", '[hugepages]\n"2M" = "64M"\n')
    assert disabled.unit("ActiveState") == "inactive"
    assert disabled.describe(user="alice")["claims"]
    disabled.vm.wait_for(f"systemctl is-active --quiet {UNIT}")
    assert disabled.pages() == 32
    assert disabled.unit("UnitFileState") == "disabled"
    disabled.vm.check("rm /etc/kerntune/kerntune.d/test.toml && kerntune reload")
    assert disabled.pages() == 0


def test_masked_it_stays_off(disabled: Host) -> None:
    disabled.vm.check(f"systemctl mask {UNIT}")
    refused = disabled.set(("hugepages", "2M", "16"))
    assert "masked" in refused.refusal
    assert disabled.vm.run("kerntune status").status == 5
    assert disabled.unit("ActiveState") == "inactive"
    assert disabled.pages() == 0
