"""cpu-governor and cpu-epp: which CPUs a policy moves, CPUs that are offline, drivers, and who decides a preference."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, KernelRejected, NotSupported
from kerntune.kernel.simulated import NAMELESS, Node, Policy, SimulatedKernel
from kerntune.model import NO_MEMORY, Claim, DesiredState, Limits, Origin, Reading, Reason, State, Target, Write
from kerntune.tunables.knobs import CPU_EPP, CPU_GOVERNOR
from tests.hosts import plant
from tests.hosts.simulated import (
    GIB,
    OWN_PREFERENCE,
    become_passive,
    bring_online,
    cpu_host,
    governors,
    nameless_host,
    preferences,
    take_offline,
)
from tests.unit.lab import running, told

GOVERNOR, EPP = CPU_GOVERNOR.name, CPU_EPP.name
CPUS = "sys/devices/system/cpu"
FOLDER = f"{CPUS}/cpufreq"


def preference_of(policy: str) -> str:
    return f"{FOLDER}/{policy}/energy_performance_preference"


# Policies and their CPUs


def test_policies_are_in_their_order_and_know_their_cpus(tmp_path: Path) -> None:
    for policy, cpus in (("policy10", "10 11"), ("policy2", "2 3"), ("policy0", "0 1")):
        rows = f"{FOLDER}/{policy}/related_cpus\t{cpus}\n{FOLDER}/{policy}/scaling_governor\tschedutil"
        kernel = plant(tmp_path, rows)
    assert [(t.instance, t.aliases) for t in CPU_GOVERNOR.targets(kernel)] == [
        ("policy0", ("cpu0", "cpu1")),
        ("policy2", ("cpu2", "cpu3")),
        ("policy10", ("cpu10", "cpu11")),
    ]


def test_an_offline_policy_knows_its_cpus_by_their_links(tmp_path: Path) -> None:
    """A read of related_cpus gives EBUSY then; in a tree the file is left out."""
    rows = [f"{FOLDER}/policy{first}/scaling_governor\tschedutil" for first in (0, 2, 10)]
    rows += [f"{CPUS}/cpu{cpu}/cpufreq -> ../cpufreq/policy{cpu - cpu % 2}" for cpu in (2, 3)]
    kernel = plant(tmp_path, "\n".join([*rows, f"{FOLDER}/policy0/related_cpus\t0 1"]))
    assert {target.instance: target.aliases for target in CPU_GOVERNOR.targets(kernel)} == {
        "policy0": ("cpu0", "cpu1"),
        "policy2": ("cpu2", "cpu3"),
        # Without a link the policy's own number is all that is known.
        "policy10": ("cpu10",),
    }


def test_what_all_policies_offer_is_read_of_one_that_is_online() -> None:
    kernel = cpu_host("schedutil")
    take_offline(kernel, "policy0")
    readings = CPU_GOVERNOR.read_all(kernel, CPU_GOVERNOR.targets(kernel))
    assert [(r.value, r.choices, r.reason) for r in readings.values()] == [
        (None, (), Reason.CPU_OFFLINE),
        ("schedutil", ("performance", "schedutil"), Reason.OK),
    ]


@pytest.mark.parametrize(("name", "value"), [(GOVERNOR, "performance"), (EPP, "power")])
async def test_a_cpu_list_says_which_other_cpus_it_moves(name: str, value: str) -> None:
    async with running(cpu_host()) as lab:
        outcome = await lab.one(name, "3", value)
        assert (outcome.target.instance, outcome.detail) == ("policy2", "policy2 also moves CPU 2")


# CPUs that are offline, and drivers that come


@pytest.mark.parametrize(("name", "value"), [(GOVERNOR, "schedutil"), (EPP, "power")])
async def test_an_offline_cpu_stays_claimed_and_is_set_when_it_comes(name: str, value: str) -> None:
    async with running(cpu_host()) as lab:
        take_offline(lab.kernel, "policy2")
        answer = await lab.set((name, "*", value))
        assert [told(o) for o in answer.outcomes] == [
            ("policy0", value, State.SATISFIED, Reason.OK),
            ("policy2", "", State.UNSUPPORTED, Reason.CPU_OFFLINE),
        ]
        assert "set when one comes online" in answer.outcomes[1].detail
        bring_online(lab.kernel)
        await lab.engine.reconcile("cpu online")
        assert [text for _, text in lab.writes()] == [value, value]
        assert {told(outcome)[1:3] for outcome in lab.engine.observed.outcomes.values()} == {(value, State.SATISFIED)}


async def test_every_cpu_of_an_offline_policy_names_it() -> None:
    async with running(cpu_host()) as lab:
        take_offline(lab.kernel, "policy2")
        for cpu in ("2", "3"):
            outcome = await lab.one(GOVERNOR, cpu, "performance")
            assert told(outcome) == ("policy2", "", State.UNSUPPORTED, Reason.CPU_OFFLINE)
        bring_online(lab.kernel)
        await lab.engine.reconcile("cpu3 online")
        assert governors(lab.kernel) == ["powersave", "performance"]


async def test_a_cpu_that_goes_offline_while_it_is_written() -> None:
    async with running(cpu_host()) as lab:
        lab.kernel.refuse[f"{FOLDER}/policy2/scaling_governor"] = errno.EBUSY
        answer = await lab.set((GOVERNOR, "*", "performance"))
        assert told(answer.outcomes[1]) == ("policy2", "powersave", State.UNSUPPORTED, Reason.CPU_OFFLINE)


async def test_an_offline_cpu_keeps_its_baseline() -> None:
    async with running(cpu_host()) as lab:
        await lab.set((GOVERNOR, "*", "performance"), (EPP, "*", "power"))
        await lab.unset((EPP, "*"))
        take_offline(lab.kernel, "policy2")
        await lab.engine.reconcile("cpu2 offline")
        await lab.unset((GOVERNOR, "*"))
        assert [(t.tunable, t.instance) for t in lab.store.baselines] == [(GOVERNOR, "policy2")]
        bring_online(lab.kernel)
        await lab.engine.reconcile("cpu2 online")
        assert governors(lab.kernel) == ["powersave", "powersave"]
        assert not lab.store.baselines


async def test_a_baseline_waits_while_no_driver_can_be_read() -> None:
    async with running(cpu_host()) as lab:
        await lab.set((GOVERNOR, "*", "performance"))
        take_offline(lab.kernel)
        await lab.engine.reconcile("cpus offline")
        await lab.unset((GOVERNOR, "*"))
        assert [target.instance for target in lab.store.baselines] == ["policy0", "policy2"]
        bring_online(lab.kernel)
        await lab.engine.reconcile("cpus online")
        assert governors(lab.kernel) == ["powersave", "powersave"]
        assert not lab.store.baselines


async def test_a_baseline_is_not_written_under_another_driver() -> None:
    """powersave chooses by load in the mode active, and is the lowest frequency in the mode passive."""
    async with running(cpu_host()) as lab:
        await lab.set((GOVERNOR, "*", "performance"))
        become_passive(lab.kernel)
        await lab.engine.reconcile("change of mode")
        assert governors(lab.kernel) == ["performance", "performance"]
        await lab.unset((GOVERNOR, "*"))
        assert governors(lab.kernel) == ["schedutil", "schedutil"]
        assert not lab.store.baselines


async def test_a_driver_that_was_missing_and_comes_is_found() -> None:
    async with running(SimulatedKernel([Node(8 * GIB)])) as lab:
        with pytest.raises(NotSupported, match="no policy: no frequency driver is loaded"):
            await lab.set((GOVERNOR, "*", "performance"))
        lab.kernel.policies = {"policy0": Policy((0,))}
        assert (await lab.one(GOVERNOR, "*", "performance")).state is State.SATISFIED
        with pytest.raises(NotSupported, match="acpi-cpufreq and virtual machines have not"):
            await lab.set((EPP, "*", "power"))


# The governor that decides the preference


async def test_the_governor_goes_first() -> None:
    async with running(cpu_host("performance")) as lab:
        answer = await lab.set((EPP, "*", "power"), (GOVERNOR, "*", "powersave"))
        assert {outcome.state for outcome in answer.outcomes} == {State.SATISFIED}
        assert [written.rpartition("/")[2] for written, _ in lab.writes()] == [
            *["scaling_governor"] * 2,
            *["energy_performance_preference"] * 2,
        ]


async def test_what_the_governor_forbids_stays_claimed() -> None:
    async with running(cpu_host("performance")) as lab:
        answer = await lab.set((EPP, "*", "power"))
        assert [told(o)[1:] for o in answer.outcomes] == [
            ("performance", State.UNSUPPORTED, Reason.GOVERNOR_DECIDES)
        ] * 2
        assert "the governor is performance" in answer.outcomes[0].detail
        assert lab.writes() == []
        await lab.set((GOVERNOR, "*", "powersave"))
        assert preferences(lab.kernel) == ["power", "power"]


@pytest.mark.parametrize(("fastest", "active", "is_tried"), [(1, 1, False), (1, 0, True), (0, 1, True)])
def test_the_governor_decides_only_while_the_driver_chooses_frequencies(
    fastest: int, active: int, is_tried: bool
) -> None:
    target = Target(EPP, "policy0")
    before = Reading(target, "performance", figures={"fastest": fastest, "active": active})
    desired = DesiredState(target, "power", Claim(Origin.RUNTIME, EPP, "policy0", "power"))
    (step,) = CPU_EPP.plan({target: before}, {target: desired}, NO_MEMORY, Limits())
    assert step.writes == ((Write(preference_of("policy0"), "power"),) if is_tried else ())
    assert (step.verdict is None) is is_tried


async def test_another_governor_now_and_then_is_no_fight() -> None:
    async with running(cpu_host()) as lab:
        await lab.set((EPP, "*", "power"))
        for _ in range(5):
            await lab.set((GOVERNOR, "*", "performance"))
            assert preferences(lab.kernel) == ["performance"] * 2
            await lab.unset((GOVERNOR, "*"))
            assert preferences(lab.kernel) == ["power"] * 2
        assert {outcome.state for outcome in lab.engine.observed.outcomes.values()} == {State.SATISFIED}


async def test_the_hosts_own_waits_for_the_governor_too() -> None:
    async with running(cpu_host()) as lab:
        await lab.set((EPP, "*", "power"))
        await lab.set((GOVERNOR, "*", "performance"))
        await lab.unset((EPP, "*"))
        assert {target.tunable for target in lab.store.baselines} == {EPP, GOVERNOR}
        await lab.unset((GOVERNOR, "*"))
        assert preferences(lab.kernel) == [OWN_PREFERENCE, OWN_PREFERENCE]
        assert not lab.store.baselines


async def test_a_driver_that_chooses_preferences_itself_is_no_offline_cpu() -> None:
    """amd-pstate answers EBUSY while its dynamic_epp is on."""
    async with running(cpu_host()) as lab:
        lab.kernel.refuse = {preference_of("policy0"): errno.EBUSY}
        with pytest.raises(KernelRejected, match=r"policy0 keeps balance_performance.*EBUSY.*dynamic_epp"):
            await lab.set((EPP, "0", "power"))
        assert lab.claims == []
        answer = await lab.set((EPP, "*", "power"))
        assert [told(o)[1:] for o in answer.outcomes] == [
            (OWN_PREFERENCE, State.FAILED, Reason.KERNEL_REJECTED),
            ("power", State.SATISFIED, Reason.OK),
        ]


# Preferences that the driver has no name for


def test_the_way_back_is_no_choice() -> None:
    kernel = cpu_host()
    reading = CPU_EPP.read(kernel, CPU_EPP.targets(kernel)[0])
    assert reading.choices == ("performance", "balance_performance", "balance_power", "power")


async def test_a_preference_without_a_name_is_told_as_unknown_and_may_be_set() -> None:
    async with running(nameless_host()) as lab:
        (reading,) = (r for r in lab.engine.observed.readings.values() if r.target.tunable == EPP)
        assert (reading.value, reading.reason, reading.choices[0]) == ("unknown", Reason.OK, "performance")
        assert "has no name" in reading.detail
        with pytest.raises(InvalidValue):
            await lab.set((EPP, "*", "unknown"))
        assert lab.writes() == []
        outcome = await lab.one(EPP, "*", "power")
        assert (outcome.before, *told(outcome)) == ("unknown", "policy0", "power", State.SATISFIED, Reason.OK)
        assert lab.kernel.policies["policy0"].epp == "power"


async def test_a_preference_without_a_name_comes_back_as_the_drivers_default() -> None:
    async with running(nameless_host()) as lab:
        await lab.set((EPP, "*", "power"))
        assert list(lab.store.baselines.values()) == ["default"]
        (outcome,) = (await lab.unset((EPP, "*"))).outcomes
        assert (outcome.actual, outcome.state, outcome.detail) == ("unknown", State.UNMANAGED, "")
        assert lab.kernel.policies["policy0"].epp == NAMELESS
        assert not lab.store.baselines


async def test_a_kernel_that_cannot_bring_it_back_is_told() -> None:
    async with running(nameless_host()) as lab:
        await lab.set((EPP, "*", "power"))
        lab.kernel.refuse[preference_of("policy0")] = errno.EINVAL
        (outcome,) = (await lab.unset((EPP, "*"))).outcomes
        assert (outcome.actual, outcome.reason) == ("power", Reason.VALUE_NOT_OFFERED)
        assert "has no name" in outcome.detail
        assert "until the next boot" in outcome.detail
        assert not lab.store.baselines


async def test_a_default_that_has_another_name_is_told() -> None:
    async with running(nameless_host()) as lab:
        await lab.set((EPP, "*", "power"))
        lab.kernel.policies["policy0"].firmware = "balance_power"
        (outcome,) = (await lab.unset((EPP, "*"))).outcomes
        assert (outcome.actual, outcome.reason) == ("balance_power", Reason.VALUE_NOT_OFFERED)
        assert "balance_power" in outcome.detail
        assert not lab.store.baselines
