"""The CPU governor on real policies: modules that load when named, CPUs that go offline, a driver that goes away."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerntune.api.names import BUS_NAME, MANAGER, ROOT
from tests.system.host import CPUFREQ, Host
from tests.system.machine import Machine

GOVERNOR = "cpu-governor"
OWN = "schedutil"
ROUNDS = 5  # one more than what makes a fight of it
VERIFY = f"busctl --json=short call {BUS_NAME} {ROOT} {MANAGER} Verify"
REPAIRS = "kerntune metrics | grep '^kerntune_drift_repairs_total '"


@pytest.fixture
def half(host: Host) -> Iterator[Host]:
    """The machine with CPU 1 offline; it is online again after the test."""
    host.set_online(1, online=False)
    yield host
    host.set_online(1, online=True)


@pytest.fixture
def without_cpufreq(host: Host) -> Iterator[Host]:
    """The machine without its cpufreq driver; it is back after the test."""
    host.vm.check("rmmod acpi_cpufreq")
    yield host
    host.vm.check("modprobe acpi_cpufreq")


def test_a_member_sets_every_cpu_and_lets_go_again(host: Host) -> None:
    answer = host.set((GOVERNOR, "*", "performance"), user="bob")
    assert answer.short == [("policy0", "satisfied", "ok"), ("policy1", "satisfied", "ok")]
    for policy in (0, 1):
        assert host.governor(policy) == "performance"
        host.vm.wait_for(f"[ $(cat {CPUFREQ}/policy{policy}/scaling_cur_freq) = 3000000 ]")
    host.unset((GOVERNOR, "*"), user="bob")
    assert [host.governor(policy) for policy in (0, 1)] == [OWN, OWN]


@pytest.mark.every_system
def test_a_governor_in_a_module_is_loaded_when_it_is_named(host: Host) -> None:
    host.vm.check("modprobe --remove cpufreq_powersave")
    offered = host.vm.read(f"{CPUFREQ}/policy0/scaling_available_governors")
    assert "powersave" not in offered.split(), "this test wants a governor that is not loaded"
    answer = host.set((GOVERNOR, "*", "powersave"), user="bob")
    assert [row.state for row in answer.outcomes] == ["satisfied", "satisfied"]
    assert host.governor(0) == "powersave"
    assert "cpufreq_powersave" in host.vm.check("lsmod")


def test_a_list_of_cpus_moves_those_only(host: Host) -> None:
    host.set((GOVERNOR, "*", "performance"))
    answer = host.set((GOVERNOR, "1", "powersave"), user="bob")
    assert answer.short == [("policy1", "satisfied", "ok")]
    assert [host.governor(policy) for policy in (0, 1)] == ["performance", "powersave"]


@pytest.mark.every_system
def test_an_offline_cpu_is_named_and_its_wish_is_kept(half: Host) -> None:
    answer = half.set((GOVERNOR, "*", "performance"), user="bob")
    assert answer.short == [("policy0", "satisfied", "ok"), ("policy1", "unsupported", "cpu-offline")]
    assert half.claims() == {"runtime:cpu-governor@*": "performance"}
    half.set_online(1, online=True)
    half.vm.check("kerntune reload")
    assert half.governor(1) == "performance", "the next look at the CPUs finds it"


@pytest.mark.every_system
def test_a_cpu_comes_back_as_it_was_desired(host: Host) -> None:
    host.set((GOVERNOR, "1", "performance"))
    host.set_online(1, online=False)
    host.set_online(1, online=True)
    host.vm.wait_for(f"[ $(cat {CPUFREQ}/policy1/scaling_governor) = performance ]", 20)
    host.unset((GOVERNOR, "*"))
    assert host.governor(1) == OWN


def test_a_cpu_that_goes_and_comes_again_and_again_is_no_fight(host: Host, vm: Machine) -> None:
    begin, repaired = host.journal_end(), vm.check(REPAIRS)
    host.set((GOVERNOR, "*", "performance"), user="bob")
    for _ in range(ROUNDS):
        host.set_online(1, online=False)
        vm.wait_for(f'{VERIFY} | grep -q \'"policy1".*"cpu-offline"\'', 20)
        assert host.get(MANAGER, "Degraded") == []
        host.set_online(1, online=True)
        vm.wait_for(f"[ $(cat {CPUFREQ}/policy1/scaling_governor) = performance ]", 20)
        vm.wait_for(f"! {VERIFY} | grep -q policy1", 20)
    assert host.target(GOVERNOR, "policy1")["state"] == "satisfied"
    assert host.get(MANAGER, "Degraded") == []
    assert vm.check(REPAIRS) == repaired
    said = host.journal(begin)
    assert "cpu-governor@policy1 is performance (online cpu1)" in said
    assert "something else" not in said


@pytest.mark.every_system
def test_a_driver_that_comes_is_set_long_before_the_next_look_at_all_values(host: Host, vm: Machine) -> None:
    begin = host.journal_end()
    host.set((GOVERNOR, "*", "performance"))
    vm.check("rmmod acpi_cpufreq && modprobe acpi_cpufreq")
    for policy in (0, 1):
        vm.wait_for(f"[ $(cat {CPUFREQ}/policy{policy}/scaling_governor) = performance ]", 10)
    seen = f"journalctl --unit=kerntuned --after-cursor='{begin}' --grep='performance, was .*acpi_cpufreq' --quiet"
    vm.wait_for(seen, 10)
    host.unset((GOVERNOR, "*"))
    assert [host.governor(policy) for policy in (0, 1)] == [OWN, OWN]


def test_a_name_that_is_no_governor_changes_nothing(host: Host) -> None:
    answer = host.set((GOVERNOR, "*", "turbo"), user="bob")
    assert "turbo" in answer.refusal
    assert [host.governor(policy) for policy in (0, 1)] == [OWN, OWN]
    assert host.claims() == {}


def test_without_cpufreq_it_is_clearly_not_supported(without_cpufreq: Host, vm: Machine) -> None:
    refused = vm.run("kerntune --json set cpu-governor=performance", user="bob")
    assert refused.status == 3
    assert "Error.NotSupported" in refused.out
    assert "no policy" in refused.out
    assert without_cpufreq.claims() == {}
    vm.check("modprobe acpi_cpufreq")
    assert not without_cpufreq.set((GOVERNOR, "*", "performance")).refusal, "the driver is there again"
    without_cpufreq.unset((GOVERNOR, "*"))
    vm.check("rmmod acpi_cpufreq")
