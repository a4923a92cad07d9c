"""Whatever a host may hold can be saved as its own value, and be put back after a restart of the daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.kernel.files import HostKernel, KernelView
from kerntune.kernel.simulated import NAMELESS, Policy, SimulatedKernel
from kerntune.tunables import REGISTRY
from tests.hosts import NAMES, lay_out
from tests.unit.lab import THP, large_host


def values(kernel: KernelView) -> dict[str, bool]:
    """Every value there is, and whether its baseline could be put back."""
    found = {}
    for tunable in REGISTRY:
        for target, reading in tunable.read_all(kernel, tunable.targets(kernel)).items():
            if reading.value is not None:
                found[f"{target}={reading.value}"] = tunable.restorable(reading.restore or reading.value)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_of_captured_hosts(name: str, tmp_path: Path) -> None:
    found = values(lay_out(name, tmp_path))
    assert found
    assert [value for value, restorable in found.items() if not restorable] == []


def odd_host() -> SimulatedKernel:
    """Values that no caller may ask for, and that the kernel takes from others."""
    kernel = large_host()
    kernel.plug("ram0", offered=(), read_ahead=0)
    kernel.plug("sdb", offered=("none",), read_ahead=1 << 22)
    kernel.policies = {
        "policy0": Policy((0,), "userspace", epp="96"),
        "policy1": Policy((1,), "powersave", epp=NAMELESS),
        "policy2": Policy((2,), "performance", epp="power"),
    }
    kernel.overcommit = {"memory": 1, "ratio": 0, "kbytes": 0}
    kernel.plain["proc/sys/vm/zone_reclaim_mode"].value = str((1 << 31) - 1)
    kernel.plain[f"{THP}/defrag"].value = "defer+madvise"
    return kernel


def test_of_a_host_with_odd_values() -> None:
    found = values(odd_host())
    for odd in ("sysctl@vm.zone_reclaim_mode=2147483647", "cpu-epp@policy1=unknown", "overcommit=always:0"):
        assert odd in found
    assert [value for value, restorable in found.items() if not restorable] == []


def test_of_this_host() -> None:
    assert [value for value, restorable in values(HostKernel()).items() if not restorable] == []
