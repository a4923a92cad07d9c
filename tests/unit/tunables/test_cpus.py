"""cpu-governor: CPU lists and policies, governors that load on demand, offline CPUs, hosts without cpufreq."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, NoSuchTarget, NotSupported
from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Reading, Reason, State, Target
from kerntune.tunables.knobs import CPU_GOVERNOR as GOVERNORS
from tests.hosts import plant
from tests.unit.lab import GIB, running, told

NAME = GOVERNORS.name
FOLDER = "sys/devices/system/cpu/cpufreq"
SHARED = Target(NAME, "policy4", aliases=("cpu4", "cpu5"))


def host(*, cpus: int = 4) -> SimulatedKernel:
    """Each policy moves two CPUs."""
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.policies = {f"policy{first}": Policy((first, first + 1)) for first in range(0, cpus, 2)}
    return kernel


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("*", "*"),
        ("policy0", "policy0"),
        ("policy127", "policy127"),
        ("0", "0"),
        ("0-3,8", "0-3,8"),
        ("3,2,1,0", "0-3"),
        ("0-3,2-5", "0-5"),
        ("8,0-1", "0-1,8"),
        ("cpu3", "3"),
        ("cpu0-3,8", "0-3,8"),
        ("policy0-7", "policy0-7"),
        ("policy3,0-2", "policy0-3"),
    ],
)
def test_instances_in_normal_form(given: str, normal: str) -> None:
    assert GOVERNORS.normal(given) == normal
    assert GOVERNORS.normal(normal) == normal
    assert GOVERNORS.exact(normal) is (normal != "*")


@pytest.mark.parametrize(
    "given",
    [
        "", "policy", "policyX", "policy7-0", "cpu?", "cpu*", "policy[0-3", "po*", "?",
        "cpu", "cpux", "thecpu*/x", "0-", "-1", "3-1",
        "0,,1", "0 1", "0-3\n", "all", "10000", "1-2-3",
        "policy0/..", "\u0663",
    ],
)  # fmt: skip
def test_what_names_no_cpus(given: str) -> None:
    with pytest.raises(InvalidValue):
        GOVERNORS.normal(given)


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [("*", True), ("policy4", True), ("4", True), ("5", True), ("0-4", True), ("5-9", True), ("0-3,6", False),
     ("policy5", False), ("policy40", False), ("44", False), ("cpu5", True), ("cpu6", False), ("policy?", True),
     ("policy[0-3]", False), ("policy0-7", True), ("policy0-3,5-9", False)],
)  # fmt: skip
def test_a_policy_matches_when_one_of_its_cpus_is_named(pattern: str, matches: bool) -> None:
    assert GOVERNORS.matches(GOVERNORS.normal(pattern), SHARED) is matches


@pytest.mark.parametrize("value", ["performance", "schedutil", "my_governor-2"])
def test_values(value: str) -> None:
    assert GOVERNORS.normal_value(value) == value


@pytest.mark.parametrize("value", ["Performance", "performance\n", "-x"])
def test_what_cannot_be_a_governor(value: str) -> None:
    with pytest.raises(InvalidValue):
        GOVERNORS.normal_value(value)


def test_what_is_not_listed_but_loads_on_demand_is_tried() -> None:
    reading = Reading(SHARED, "schedutil", choices=("performance", "schedutil"))
    for value in ("powersave", "ondemand", "conservative", "userspace"):
        GOVERNORS.validate(reading, value)
    with pytest.raises(InvalidValue, match="policy4 offers performance, schedutil, not interactive"):
        GOVERNORS.validate(reading, "interactive")


def test_an_offline_policy_is_not_judged_by_what_it_offers() -> None:
    GOVERNORS.validate(Reading(SHARED, None, reason=Reason.CPU_OFFLINE), "interactive")


def test_policies_are_in_their_order_and_know_their_cpus(tmp_path: Path) -> None:
    for policy, cpus in (("policy10", "10 11"), ("policy2", "2 3"), ("policy0", "0 1")):
        rows = f"{FOLDER}/{policy}/related_cpus\t{cpus}\n{FOLDER}/{policy}/scaling_governor\tschedutil"
        kernel = plant(tmp_path, rows)
    assert [(t.instance, t.aliases) for t in GOVERNORS.targets(kernel)] == [
        ("policy0", ("cpu0", "cpu1")),
        ("policy2", ("cpu2", "cpu3")),
        ("policy10", ("cpu10", "cpu11")),
    ]


def test_what_all_policies_offer_is_read_of_one_that_is_online() -> None:
    kernel = host()
    kernel.policies["policy0"].online = False
    targets = GOVERNORS.targets(kernel)
    readings = GOVERNORS.read_all(kernel, targets)
    assert [(r.value, r.choices, r.reason) for r in readings.values()] == [
        (None, (), Reason.CPU_OFFLINE),
        ("schedutil", ("performance", "schedutil"), Reason.OK),
    ]


async def test_a_set_reaches_every_policy_and_leaves_with_unset() -> None:
    async with running(host()) as lab:
        answer = await lab.set((NAME, "*", "powersave"))
        assert [told(o) for o in answer.outcomes] == [
            ("policy0", "powersave", State.SATISFIED, Reason.OK),
            ("policy2", "powersave", State.SATISFIED, Reason.OK),
        ]
        assert (await lab.set((NAME, "*", "powersave"))).changed is False
        await lab.unset((NAME, "*"))
        assert [policy.governor for policy in lab.kernel.policies.values()] == ["schedutil"] * 2


async def test_a_cpu_list_says_which_other_cpus_it_moves() -> None:
    async with running(host()) as lab:
        outcome = await lab.one(NAME, "3", "performance")
        assert (outcome.target.instance, outcome.detail) == ("policy2", "policy2 also moves CPU 2")
        assert lab.kernel.policies["policy0"].governor == "schedutil"


async def test_an_offline_cpu_is_kept_wished_and_set_when_it_comes() -> None:
    async with running(host()) as lab:
        lab.kernel.policies["policy2"].online = False
        answer = await lab.set((NAME, "*", "performance"))
        assert [told(o) for o in answer.outcomes] == [
            ("policy0", "performance", State.SATISFIED, Reason.OK),
            ("policy2", "", State.UNSUPPORTED, Reason.CPU_OFFLINE),
        ]
        assert "set when one comes online" in answer.outcomes[1].detail
        lab.kernel.policies["policy2"].online = True
        await lab.engine.reconcile("cpu online")
        assert lab.kernel.policies["policy2"].governor == "performance"
        assert lab.kernel.journal == [
            (f"{FOLDER}/{name}/scaling_governor", "performance") for name in ("policy0", "policy2")
        ]


async def test_a_cpu_that_goes_offline_while_it_is_written() -> None:
    async with running(host()) as lab:
        lab.kernel.refuse[f"{FOLDER}/policy2/scaling_governor"] = errno.EBUSY
        answer = await lab.set((NAME, "*", "performance"))
        assert told(answer.outcomes[1]) == ("policy2", "schedutil", State.UNSUPPORTED, Reason.CPU_OFFLINE)


async def test_a_governor_the_kernel_has_no_module_for() -> None:
    async with running(host()) as lab:
        for policy in lab.kernel.policies:
            lab.kernel.refuse[f"{FOLDER}/{policy}/scaling_governor"] = errno.EINVAL
        with pytest.raises(InvalidValue, match="policy0 offers performance, schedutil, not conservative"):
            await lab.set((NAME, "*", "conservative"))
        assert lab.claims == []


async def test_without_cpufreq_it_says_why() -> None:
    async with running(SimulatedKernel([Node(8 * GIB)])) as lab:
        with pytest.raises(NotSupported, match="no policy: no frequency driver is loaded"):
            await lab.set((NAME, "*", "performance"))
        assert lab.claims == []


async def test_cpufreq_that_was_missing_and_comes_is_found() -> None:
    async with running(SimulatedKernel([Node(8 * GIB)])) as lab:
        with pytest.raises(NotSupported):
            await lab.set((NAME, "*", "performance"))
        lab.kernel.policies = {"policy0": Policy((0,))}
        assert (await lab.one(NAME, "*", "performance")).state is State.SATISFIED


async def test_a_policy_that_is_not_there() -> None:
    async with running(host()) as lab:
        with pytest.raises(NoSuchTarget):
            await lab.set((NAME, "policy9", "performance"))
