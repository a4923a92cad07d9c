"""How the service starts and comes back: at a cold boot before any workload, by a call, killed under load, hanging."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from typing import Final

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from tests.harness import CHECKOUT
from tests.harness.documented import examples
from tests.system.host import UNIT, Host, plug
from tests.system.machine import Machine

pytestmark = pytest.mark.own_machine

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
            assert PROFILE in vm.check("kerntune status")
            assert "(config wins over profile)" in vm.check("kerntune status sysctl cpu-governor")
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


# The tests from here on use the file's own machine. They come after `fresh_vm`, so that two do not run at once.


@pytest.fixture
def disabled(host: Host) -> Iterator[Host]:
    """Give the machine with the service disabled and stopped; it runs again after the test."""
    before = host.snapshot()
    host.vm.check(f"systemctl disable --now {UNIT}")
    yield host
    host.vm.check(f"systemctl unmask {UNIT}; systemctl enable --now {UNIT}")
    assert host.snapshot() == before


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


# Killed under load: systemd brings it back, and nothing that was answered is lost.


KILLS: Final = 5
KILLS_IN_THE_SOAK: Final = 200
LATEST: Final = 1.0  # seconds from the first call to the kill
LOG: Final = "/run/load.log"
HURRY: Final = "/run/systemd/system/kerntuned.service.d/hurry.conf"
# Every other claim is persistent, too; a line before each call and one after its answer.
LOAD: Final = f"""
number=$1
while :; do
    number=$((number + 1))
    pages=$((8 + number % 40))
    echo "asked $pages" >> {LOG}
    busctl --quiet call {BUS_NAME} {ROOT} {MANAGER} Set 'a(sss)a{{sv}}' 1 hugepages 2M $pages \\
        1 persist b $([ $((number % 2)) = 0 ] && echo true || echo false) && echo "answered $pages" >> {LOG}
done
"""

# What was asked and answered, and the pool, when no call of the load is on its way any more.
LEFT: Final = f"while pgrep -x busctl > /dev/null; do :; done; cat {LOG}; cat /proc/sys/vm/nr_hugepages; : > {LOG}"


def killed_under_load(host: Host, kills: int) -> None:
    """Kill the daemon under load: the pool is what it answered last, or what was asked since without an answer."""
    seed = random.SystemRandom().randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    chance, vm = random.Random(seed), host.vm
    vm.check(f": > {LOG}")
    restarts, former, before = int(host.unit("NRestarts")), host.pid, "0"
    for number in range(kills):
        load = vm.spawn(["bash", "-c", LOAD, "load", str(100 * number)], user="root")
        time.sleep(chance.uniform(0.1, LATEST))  # the moment is what is tried
        vm.check(f"kill -KILL {former}")
        load.kill(signal.SIGKILL)
        load.wait()
        former = host.wait_restarted(former)
        *lines, pages = vm.check(LEFT).splitlines()
        said = [line.split() for line in lines]
        answers = [at for at, (word, _) in enumerate(said) if word == "answered"]
        # Of the round before is what was in force when the first call of this one was not answered. After the kill
        # another may have been begun.
        last, unanswered = (said[answers[-1]][1], said[answers[-1] + 1 :]) if answers else (before, said)
        allowed = {last, *(wanted for _, wanted in unanswered)}
        assert pages in allowed, f"kill {number}: {said[-4:]}, {before} before"
        if answers or before != "0":
            assert host.target("hugepages", "2M")["requested"] == pages
        before = pages
    assert int(host.unit("NRestarts")) - restarts >= kills
    host.release()
    assert host.pages() == 0, "the baseline is still the host's own"


@pytest.mark.timeout(300)
def test_killed_at_random_moments(host: Host) -> None:
    killed_under_load(host, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_killed_very_often(host: Host) -> None:
    killed_under_load(host, KILLS_IN_THE_SOAK)


@pytest.fixture
def impatient(host: Host) -> Iterator[Host]:
    """Give the service a watchdog that waits for 5 seconds instead of 30."""
    host.vm.write(HURRY, "[Service]\nWatchdogSec=5\n")
    host.vm.check("systemctl daemon-reload && systemctl restart kerntuned.service")
    yield host
    host.vm.check(f"rm {HURRY} && systemctl daemon-reload && systemctl restart kerntuned.service")


@pytest.mark.every_system
def test_the_watchdog_ends_a_daemon_that_hangs(impatient: Host, vm: Machine) -> None:
    assert impatient.unit("WatchdogUSec") == "5s"
    assert not impatient.set(("hugepages", "2M", "12"), user="bob").refusal
    former = impatient.pid
    vm.check(f"kill -STOP {former}")
    impatient.wait_restarted(former)
    assert impatient.claims() == {"runtime:hugepages@2M": "12"}
    assert "watchdog" in vm.check("journalctl --output=cat --unit=kerntuned.service").lower()
