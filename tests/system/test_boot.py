"""Cold boots: what was saved and configured is in force before any workload starts."""

from __future__ import annotations

import json

import pytest

from tests.harness.documented import examples
from tests.harness.polkitd import CHECKOUT
from tests.system.host import UNIT, Host
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
"""
SEEN = ["32", "32", "powersave", "powersave", "1", "90", "7", "64"]
# The README's three commands.
EXERCISE = [line for block in examples(CHECKOUT / "README.md") for line in block.lines if "always:90" in block.lines[0]]
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
def tuned(fresh_vm: Machine) -> Host:
    """A machine with a drive, a configuration, saved claims and two workloads."""
    host = Host(fresh_vm)
    fresh_vm.nvme_add("first")
    fresh_vm.write("/usr/local/bin/look", LOOK, mode="755")
    for name, order in WORKLOADS.items():
        fresh_vm.write(f"/etc/systemd/system/{name}.service", WORKLOAD.format(name=name, order=order))
    fresh_vm.check(["systemctl", "enable", *WORKLOADS])
    fresh_vm.write("/etc/kerntune/kerntune.d/boot.toml", CONFIG)
    fresh_vm.check("kerntune config check && kerntune reload")
    assert len(EXERCISE) == 3
    for command in EXERCISE:
        fresh_vm.check(command, user="bob")
    answer = host.set(("io-scheduler", "nvme*", "bfq"), user="bob", persist=True)
    assert not answer.refusal, answer.refusal
    # This one is for now only.
    host.set(("cpu-governor", "*", "performance"), user="bob")
    return host


@pytest.mark.parametrize("boots", [2, pytest.param(10, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
@pytest.mark.timeout(300)
def test_settings_are_in_force_when_the_system_is_up(tuned: Host, boots: int) -> None:
    for _ in range(boots):
        tuned.vm.reboot()
        for name in WORKLOADS:
            assert tuned.vm.read(f"/run/{name}.saw").split() == SEEN
        tuned.vm.wait_for("grep -q '\\[bfq\\]' /sys/block/nvme0n1/queue/scheduler", 20)
        assert entered(tuned, UNIT) <= entered(tuned, "kerntune.target") <= entered(tuned, "multi-user.target")
        assert entered(tuned, UNIT) <= entered(tuned, "ollama.service")
        assert tuned.unit("NRestarts") == "0"
        assert "ordering cycle" not in tuned.vm.check("journalctl --boot --output=cat --identifier=systemd")
        document = tuned.describe()
        assert document["degraded"] == []
        assert {claim["origin"] for claim in document["claims"]} == {"config", "persistent"}
        verified = json.loads(tuned.vm.check("kerntune verify --json"))
        assert (verified["managed"], verified["outcomes"]) == (verified["satisfied"], [])


def entered(host: Host, unit: str) -> int:
    """When the unit became active, in microseconds since the start of the kernel."""
    when = int(host.unit("ActiveEnterTimestampMonotonic", unit))
    assert when, f"{unit} is not active"
    return when
