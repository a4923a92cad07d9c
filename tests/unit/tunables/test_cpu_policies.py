"""What governor and preference have in common: the driver that a baseline belongs to, and CPUs that are offline."""

from __future__ import annotations

from pathlib import Path

from kerntune.kernel.simulated import Node, Policy, SimulatedKernel
from kerntune.model import Reason, State
from kerntune.tunables.knobs import CPU_GOVERNOR as GOVERNORS
from tests.hosts import plant
from tests.unit.lab import GIB, Lab, running, told

GOVERNOR, EPP = "cpu-governor", "cpu-epp"
CPUS = "sys/devices/system/cpu"


def host() -> SimulatedKernel:
    """Two policies of two CPUs each, with intel_pstate in its mode active."""
    kernel = SimulatedKernel([Node(8 * GIB)])
    for first in (0, 2):
        kernel.policies[f"policy{first}"] = Policy((first, first + 1), "powersave", epp="balance_performance")
    return kernel


def become_passive(lab: Lab) -> None:
    """Change the mode of intel_pstate: every policy is made anew, with the default governor and no preference."""
    for name, policy in lab.kernel.policies.items():
        lab.kernel.policies[name] = Policy(policy.cpus, "schedutil", driver="intel_cpufreq", online=policy.online)


def governors(lab: Lab) -> list[str]:
    return [policy.governor for policy in lab.kernel.policies.values()]


async def test_a_baseline_is_not_written_under_another_driver() -> None:
    """powersave chooses by load in the mode active, and is the lowest frequency in the mode passive."""
    async with running(host()) as lab:
        await lab.set((GOVERNOR, "*", "performance"))
        become_passive(lab)
        await lab.engine.reconcile("change of mode")
        assert governors(lab) == ["performance", "performance"]
        await lab.unset((GOVERNOR, "*"))
        assert governors(lab) == ["schedutil", "schedutil"]
        assert not lab.store.baselines


async def test_an_offline_cpu_keeps_its_baseline() -> None:
    async with running(host()) as lab:
        await lab.set((GOVERNOR, "*", "performance"), (EPP, "*", "power"))
        await lab.unset((EPP, "*"))
        lab.kernel.policies["policy2"].online = False
        await lab.engine.reconcile("cpu2 offline")
        await lab.unset((GOVERNOR, "*"))
        assert [(t.tunable, t.instance) for t in lab.store.baselines] == [(GOVERNOR, "policy2")]
        lab.kernel.policies["policy2"].online = True
        await lab.engine.reconcile("cpu2 online")
        assert governors(lab) == ["powersave", "powersave"]
        assert not lab.store.baselines


async def test_a_baseline_waits_while_no_driver_can_be_read() -> None:
    async with running(host()) as lab:
        await lab.set((GOVERNOR, "*", "performance"))
        for policy in lab.kernel.policies.values():
            policy.online = False
        await lab.engine.reconcile("cpus offline")
        await lab.unset((GOVERNOR, "*"))
        assert [target.instance for target in lab.store.baselines] == ["policy0", "policy2"]
        for policy in lab.kernel.policies.values():
            policy.online = True
        await lab.engine.reconcile("cpus online")
        assert governors(lab) == ["powersave", "powersave"]
        assert not lab.store.baselines


async def test_every_cpu_of_an_offline_policy_names_it() -> None:
    async with running(host()) as lab:
        lab.kernel.policies["policy2"].online = False
        for cpu in ("2", "3"):
            outcome = await lab.one(GOVERNOR, cpu, "performance")
            assert told(outcome) == ("policy2", "", State.UNSUPPORTED, Reason.CPU_OFFLINE)
        lab.kernel.policies["policy2"].online = True
        await lab.engine.reconcile("cpu3 online")
        assert governors(lab) == ["powersave", "performance"]


def test_an_offline_policy_knows_its_cpus_by_their_links(tmp_path: Path) -> None:
    """A read of related_cpus gives EBUSY then; in a tree the file is left out."""
    rows = [f"{CPUS}/cpufreq/policy{first}/scaling_governor\tschedutil" for first in (0, 2, 10)]
    rows += [f"{CPUS}/cpu{cpu}/cpufreq -> ../cpufreq/policy{cpu - cpu % 2}" for cpu in (2, 3)]
    kernel = plant(tmp_path, "\n".join([*rows, f"{CPUS}/cpufreq/policy0/related_cpus\t0 1"]))
    assert {target.instance: target.aliases for target in GOVERNORS.targets(kernel)} == {
        "policy0": ("cpu0", "cpu1"),
        "policy2": ("cpu2", "cpu3"),
        # Without a link the policy's own number is all that is known.
        "policy10": ("cpu10",),
    }
