"""What a caller may type of instances and values, and what becomes of it."""

from __future__ import annotations

import pytest

from kerntune.errors import InvalidValue, KerntuneError, NoSuchTarget, NotSupported
from kerntune.kernel.simulated import Policy
from tests.unit.lab import large_host, running


@pytest.mark.parametrize(
    ("setting", "claim"),
    [
        (("hugepages", "", "3"), "runtime:hugepages@2M=3"),
        (("hugepages", "", "64M"), "runtime:hugepages@2M=32"),
        (("hugepages", "2048kB/node0", "64MiB"), "runtime:hugepages@2M/node0=32"),
        (("hugepages", "2M/node1,0", "64m"), "runtime:hugepages@2M/node0-1=32"),
        (("hugepages", "1024M", "1G"), "runtime:hugepages@1G=1"),
        (("hugepages-overcommit", "", "64M"), "runtime:hugepages-overcommit@2M=32"),
        (("read-ahead", "*", "4M"), "runtime:read-ahead@*=4096"),
        (("overcommit", "", "heuristic"), "runtime:overcommit=heuristic"),
        (("overcommit", "*", "heuristic"), "runtime:overcommit=heuristic"),
        (("cpu-governor", "cpu3", "performance"), "runtime:cpu-governor@3=performance"),
        (("cpu-governor", "policy?", "performance"), "runtime:cpu-governor@policy?=performance"),
        (("cpu-governor", "policy0,2", "performance"), "runtime:cpu-governor@policy0,2=performance"),
        (("sysctl", "vm/swappiness", "10"), "runtime:sysctl@vm.swappiness=10"),
    ],
)
async def test_what_is_typed_is_claimed_in_normal_form(setting: tuple[str, str, str], claim: str) -> None:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0, 1)), "policy2": Policy((2, 3))}
    async with running(kernel) as lab:
        await lab.set(setting)
        assert lab.claims == [claim]
        await lab.unset((setting[0], "*"))
        assert lab.claims == []


@pytest.mark.parametrize(
    ("setting", "error", "said"),
    [
        (("hugepages", "", "3M"), InvalidValue, r"not a whole number of 2M pages.*1 \(2M\) and 2 \(4M\)"),
        (("hugepages", "*", "64M"), InvalidValue, "not a pool of huge pages"),
        (("hugepages", "2M", "lots"), InvalidValue, "not a number of huge pages.*64G"),
        (("read-ahead", "sda", "4X"), InvalidValue, "no read-ahead"),
        # A variable of a script that is not set is not every drive.
        (("io-scheduler", "", "none"), InvalidValue, "cannot name a block device"),
        (("cpu-governor", "", "performance"), InvalidValue, "names no CPUs"),
        (("thp", "*", "always"), InvalidValue, "two files"),
        (("sysctl", "", "10"), InvalidValue, "vm.swappiness"),
        (("cpu-governor", "policy0-9x", "performance"), InvalidValue, "names no CPUs"),
        (("cpu-governor", "0,7-4", "performance"), InvalidValue, "'7-4' runs backwards.*4-7"),
        (("cpu-governor", "policy4-7", "performance"), NoSuchTarget, "policy4-7"),
        (("io-scheduler", "sda*b/", "none"), InvalidValue, "cannot name a block device"),
    ],
)
async def test_what_cannot_be_meant(setting: tuple[str, str, str], error: type[KerntuneError], said: str) -> None:
    kernel = large_host()
    kernel.policies = {"policy0": Policy((0, 1)), "policy2": Policy((2, 3))}
    async with running(kernel) as lab:
        with pytest.raises(error, match=said):
            await lab.set(setting)
        assert (lab.claims, lab.writes()) == ([], [])


async def test_a_host_may_have_no_default_page_size() -> None:
    kernel = large_host()
    kernel.sizes = ()
    async with running(kernel) as lab:
        with pytest.raises(NotSupported, match="no default size of huge pages"):
            await lab.set(("hugepages", "", "64M"))
