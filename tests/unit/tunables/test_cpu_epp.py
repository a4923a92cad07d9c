"""cpu-epp: preferences of CPUs, and the governor that decides them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, KernelRejected, NotSupported
from kerntune.kernel.simulated import NAMELESS, Node, Policy, SimulatedKernel
from kerntune.model import Reading, Reason, State, Target
from kerntune.tunables.knobs import CPU_EPP as EPP
from tests.hosts import plant
from tests.unit.lab import GIB, Lab, running, told

NAME = EPP.name
GOVERNOR = "cpu-governor"
FOLDER = "sys/devices/system/cpu/cpufreq"
OWN = "balance_performance"


def host(governor: str = "powersave") -> SimulatedKernel:
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.policies = {f"policy{n}": Policy((n, n + 1), governor, epp=OWN) for n in (0, 2)}
    return kernel


def preferences(lab: Lab) -> list[str]:
    return [policy.preference for policy in lab.kernel.policies.values()]


def path(policy: str) -> str:
    return f"{FOLDER}/{policy}/energy_performance_preference"


@pytest.mark.parametrize("value", ["default", "unknown", "Power", "power\n", "128"])
def test_what_is_no_preference(value: str) -> None:
    with pytest.raises(InvalidValue):
        EPP.normal_value(value)


def test_a_number_that_the_host_had_can_be_put_back() -> None:
    assert EPP.restorable("96")
    assert EPP.restorable("power")
    assert EPP.restorable("default")
    assert not EPP.restorable("unknown")


def test_the_way_back_is_no_choice() -> None:
    kernel = host()
    reading = EPP.read(kernel, EPP.targets(kernel)[0])
    assert reading.choices == ("performance", "balance_performance", "balance_power", "power")
    with pytest.raises(InvalidValue, match=r"offers performance, .*, not balanced"):
        EPP.validate(reading, "balanced")
    EPP.validate(Reading(Target(NAME, "policy0"), None, reason=Reason.CPU_OFFLINE), "balanced")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (f"{FOLDER}/policy0/scaling_driver\tacpi-cpufreq", "the frequency driver acpi-cpufreq has no"),
        (f"{FOLDER}/policy0/related_cpus\t0", "the frequency driver here has no"),
        ("proc/sys/kernel/osrelease\t6.1", "as in most virtual machines"),
    ],
)
def test_a_host_without_says_why(tmp_path: Path, row: str, said: str) -> None:
    assert said in EPP.missing(plant(tmp_path, row))


async def test_it_is_not_supported_without_its_files() -> None:
    kernel = SimulatedKernel([Node(GIB)], policies={"policy0": Policy((0,))})
    async with running(kernel) as lab:
        with pytest.raises(NotSupported, match="acpi-cpufreq and virtual machines have not"):
            await lab.set((NAME, "*", "power"))


async def test_a_set_is_read_back_put_right_and_leaves_with_unset() -> None:
    async with running(host()) as lab:
        outcome = await lab.one(NAME, "3", "power")
        assert told(outcome) == ("policy2", "power", State.SATISFIED, Reason.OK)
        assert outcome.detail == "policy2 also moves CPU 2"
        assert (await lab.set((NAME, "3", "power"))).changed is False
        lab.kernel.policies["policy2"].epp = "balance_power"
        await lab.engine.reconcile("drift")
        assert preferences(lab) == [OWN, "power"]
        await lab.unset((NAME, "3"))
        assert preferences(lab) == [OWN, OWN]


async def test_the_governor_goes_first() -> None:
    async with running(host("performance")) as lab:
        answer = await lab.set((NAME, "*", "power"), (GOVERNOR, "*", "powersave"))
        assert {outcome.state for outcome in answer.outcomes} == {State.SATISFIED}
        assert [written.rpartition("/")[2] for written, _ in lab.writes()] == [
            *["scaling_governor"] * 2,
            *["energy_performance_preference"] * 2,
        ]


async def test_what_the_governor_forbids_stays_wished() -> None:
    async with running(host("performance")) as lab:
        answer = await lab.set((NAME, "*", "power"))
        assert [told(o)[1:] for o in answer.outcomes] == [
            ("performance", State.UNSUPPORTED, Reason.GOVERNOR_DECIDES)
        ] * 2
        assert "the governor is performance" in answer.outcomes[0].detail
        assert lab.writes() == []
        await lab.set((GOVERNOR, "*", "powersave"))
        assert preferences(lab) == ["power", "power"]


async def test_another_governor_now_and_then_is_no_fight() -> None:
    async with running(host()) as lab:
        await lab.set((NAME, "*", "power"))
        for _ in range(5):
            await lab.set((GOVERNOR, "*", "performance"))
            assert preferences(lab) == ["performance"] * 2
            await lab.unset((GOVERNOR, "*"))
            assert preferences(lab) == ["power"] * 2
        assert {outcome.state for outcome in lab.engine.outcomes.values()} == {State.SATISFIED}


async def test_the_hosts_own_waits_for_the_governor_too() -> None:
    async with running(host()) as lab:
        await lab.set((NAME, "*", "power"))
        await lab.set((GOVERNOR, "*", "performance"))
        await lab.unset((NAME, "*"))
        assert {target.tunable for target in lab.store.baselines} == {NAME, GOVERNOR}
        await lab.unset((GOVERNOR, "*"))
        assert preferences(lab) == [OWN, OWN]
        assert not lab.store.baselines


async def test_a_driver_that_chooses_preferences_itself_is_no_offline_cpu() -> None:
    """amd-pstate answers EBUSY while its dynamic_epp is on."""
    async with running(host()) as lab:
        lab.kernel.refuse = {path("policy0"): errno.EBUSY}
        with pytest.raises(KernelRejected, match=r"policy0 keeps balance_performance.*EBUSY.*dynamic_epp"):
            await lab.set((NAME, "0", "power"))
        assert lab.claims == []
        answer = await lab.set((NAME, "*", "power"))
        assert [told(o)[1:] for o in answer.outcomes] == [
            (OWN, State.FAILED, Reason.KERNEL_REJECTED),
            ("power", State.SATISFIED, Reason.OK),
        ]


async def test_an_offline_cpu_is_kept_wished_and_set_when_it_comes() -> None:
    async with running(host()) as lab:
        lab.kernel.policies["policy2"].online = False
        answer = await lab.set((NAME, "*", "power"))
        assert [told(o)[2:] for o in answer.outcomes] == [
            (State.SATISFIED, Reason.OK),
            (State.UNSUPPORTED, Reason.CPU_OFFLINE),
        ]
        lab.kernel.policies["policy2"].online = True
        await lab.engine.reconcile("cpu online")
        assert preferences(lab) == ["power", "power"]


def nameless() -> SimulatedKernel:
    """A host with amd-pstate-epp, whose firmware has set a preference between two of the driver's four."""
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.policies = {"policy0": Policy((0,), "powersave", epp=NAMELESS, driver="amd-pstate-epp")}
    return kernel


async def test_a_preference_without_a_name_is_told_as_unknown_and_may_be_set() -> None:
    async with running(nameless()) as lab:
        (reading,) = (r for r in lab.engine.readings.values() if r.target.tunable == NAME)
        assert (reading.value, reading.reason, reading.choices[0]) == ("unknown", Reason.OK, "performance")
        assert "has no name" in reading.detail
        outcome = await lab.one(NAME, "*", "power")
        assert (outcome.before, *told(outcome)) == ("unknown", "policy0", "power", State.SATISFIED, Reason.OK)
        assert lab.kernel.policies["policy0"].epp == "power"


async def test_a_preference_without_a_name_comes_back_as_the_drivers_default() -> None:
    async with running(nameless()) as lab:
        await lab.set((NAME, "*", "power"))
        assert list(lab.store.baselines.values()) == ["default"]
        assert all(EPP.restorable(value) for value in lab.store.baselines.values())
        (outcome,) = (await lab.unset((NAME, "*"))).outcomes
        assert (outcome.actual, outcome.state, outcome.detail) == ("unknown", State.UNMANAGED, "")
        assert lab.kernel.policies["policy0"].epp == NAMELESS
        assert not lab.store.baselines


async def test_a_kernel_that_cannot_bring_it_back_is_told() -> None:
    async with running(nameless()) as lab:
        await lab.set((NAME, "*", "power"))
        lab.kernel.refuse[path("policy0")] = errno.EINVAL
        (outcome,) = (await lab.unset((NAME, "*"))).outcomes
        assert (outcome.actual, outcome.reason) == ("power", Reason.VALUE_NOT_OFFERED)
        assert "has no name" in outcome.detail
        assert "until the next boot" in outcome.detail
        assert not lab.store.baselines


async def test_a_default_that_has_another_name_is_told() -> None:
    async with running(nameless()) as lab:
        await lab.set((NAME, "*", "power"))
        lab.kernel.policies["policy0"].firmware = "balance_power"
        (outcome,) = (await lab.unset((NAME, "*"))).outcomes
        assert (outcome.actual, outcome.reason) == ("balance_power", Reason.VALUE_NOT_OFFERED)
        assert "balance_power" in outcome.detail
        assert not lab.store.baselines


async def test_a_value_without_a_name_is_no_wish() -> None:
    async with running(nameless()) as lab:
        with pytest.raises(InvalidValue):
            await lab.set((NAME, "*", "unknown"))
        assert lab.writes() == []
