"""Simulated hosts, each by what is particular about it, and verbs for what happens to them.

tests/unit/lab.py has the hosts of most tests of the engine.
"""

from __future__ import annotations

from kerntune.kernel.simulated import NAMELESS, Node, Policy, SimulatedKernel

GIB = 1 << 30
PAGE = 2 << 20
OWN_PREFERENCE = "balance_performance"  # what the policies of `cpu_host` prefer by themselves


# CPUs


def cpu_host(governor: str = "powersave", *, epp: str = OWN_PREFERENCE) -> SimulatedKernel:
    """Return a host with the policies policy0 and policy2, each of two CPUs, with intel_pstate in its mode active."""
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.policies = {f"policy{first}": Policy((first, first + 1), governor, epp=epp) for first in (0, 2)}
    return kernel


def nameless_host() -> SimulatedKernel:
    """Return a host with amd-pstate-epp, whose firmware has set a preference between two of the driver's four."""
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.policies = {"policy0": Policy((0,), "powersave", epp=NAMELESS, driver="amd-pstate-epp")}
    return kernel


def take_offline(kernel: SimulatedKernel, *policies: str) -> None:
    """Take all CPUs of these policies offline, or of every policy."""
    for name in policies or kernel.policies:
        kernel.policies[name].online = False


def bring_online(kernel: SimulatedKernel) -> None:
    """Bring all CPUs online."""
    for policy in kernel.policies.values():
        policy.online = True


def become_passive(kernel: SimulatedKernel) -> None:
    """Change the mode of intel_pstate: every policy is made anew, with the default governor and no preference."""
    for name, policy in kernel.policies.items():
        kernel.policies[name] = Policy(policy.cpus, "schedutil", driver="intel_cpufreq", online=policy.online)


def governors(kernel: SimulatedKernel) -> list[str]:
    """Return the governor of each policy."""
    return [policy.governor for policy in kernel.policies.values()]


def preferences(kernel: SimulatedKernel) -> list[str]:
    """Return the preference of each policy."""
    return [policy.preference for policy in kernel.policies.values()]


# Drives


def multipath_host() -> SimulatedKernel:
    """Return a host where nvme1n1 has two paths. nvme0n1 is an ordinary drive, and nvme0c9n9 only looks like a path."""
    kernel = SimulatedKernel([Node(8 * GIB)])
    kernel.plug("nvme0n1", by_id="nvme-Plain")
    kernel.plug("nvme0c9n9")
    kernel.plug("nvme1n1", offered=(), by_id="nvme-Shared")
    for controller in (1, 2):
        plug_path(kernel, controller)
    return kernel


def plug_path(kernel: SimulatedKernel, controller: int) -> None:
    """Add a path to nvme1n1 of a multipath host."""
    kernel.plug(f"nvme1c{controller}n1", hidden=True)


# Memory


def pool_host(*counts: int, used: tuple[int, ...] = (), foreign: bool = True, memory: int = GIB) -> SimulatedKernel:
    """Return a host with so many pages of 2 MiB on each node, of which programs have `used`.

    With `foreign` a number for one node counts the surplus of the others, as up to Linux 6.13.
    """
    kernel = SimulatedKernel([Node(memory) for _ in counts], sizes=(PAGE,), counts_foreign_surplus=foreign)
    for node, count in zip(kernel.nodes, counts, strict=True):
        node.pools[PAGE].asked = count
    use_pages(kernel, *(*used, *[0] * (len(counts) - len(used))))
    return kernel


def use_pages(kernel: SimulatedKernel, *counts: int) -> None:
    """Let programs have so many pages of each node in use."""
    for node, count in zip(kernel.nodes, counts, strict=True):
        node.pools[PAGE].used = count


def strip(kernel: SimulatedKernel) -> None:
    """Take all that can be tuned from a host, but overcommit."""
    kernel.plain, kernel.policies, kernel.disks, kernel.sizes = {}, {}, {}, ()
