"""sysctl: a short list with ranges, and where the others are to be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.daemon.demo import plain_files
from kerntune.errors import InvalidValue, KernelRejected, NoSuchTarget
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Origin, Reason, State
from kerntune.tunables.knobs import SYSCTL as TUNABLE
from tests.hosts import plant
from tests.unit.lab import GIB, claim, running, told

NAME = TUNABLE.name
SWAPPINESS = "vm.swappiness"
FILE = "proc/sys/vm/swappiness"
ZONES = "proc/sys/vm/zone_reclaim_mode"
BALANCING = "kernel.numa_balancing"


def host() -> SimulatedKernel:
    return SimulatedKernel([Node(4 * GIB)], plain=plain_files())


def test_dots_or_slashes() -> None:
    assert TUNABLE.normal("vm/swappiness") == TUNABLE.normal(SWAPPINESS) == SWAPPINESS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vm.overcommit_memory", "kerntune set overcommit="),
        ("vm/overcommit_ratio", "kerntune set overcommit="),
        ("vm.nr_hugepages", "kerntune set hugepages="),
        ("vm.nr_overcommit_hugepages", "kerntune set hugepages-overcommit="),
        ("vm.dirty_ratio", "There are vm.swappiness, vm.zone_reclaim_mode, "),
        ("vm.min_free_kbytes", "There are"),
        ("kernel.core_pattern", "There are"),
        ("*", "There are"),
        ("vm.*", "There are"),
        ("", "There are"),
        ("../swappiness", "There are"),
    ],
)
def test_what_is_not_on_it_is_told_where_to_go(name: str, said: str) -> None:
    with pytest.raises(InvalidValue) as raised:  # as every reader of names expects
        TUNABLE.normal(name)
    assert said in (raised.value.hint or "")
    assert (raised.value.dbus_name, raised.value.exit_code) == (NoSuchTarget.dbus_name, NoSuchTarget.exit_code)


@pytest.mark.parametrize("value", ["0x1", "ten", "9" * 11])
def test_what_is_no_number(value: str) -> None:
    with pytest.raises(InvalidValue):
        TUNABLE.normal_value(value)


def test_a_number_is_told_without_its_zeros() -> None:
    assert TUNABLE.normal_value("010") == "10"


def test_only_those_the_kernel_has(tmp_path: Path) -> None:
    assert [target.instance for target in TUNABLE.targets(plant(tmp_path, f"{FILE}\t60"))] == [SWAPPINESS]


async def test_out_of_range_is_refused_before_any_write() -> None:
    async with running(host()) as lab:
        with pytest.raises(InvalidValue, match="from 0 to 200, not 201"):
            await lab.set((NAME, SWAPPINESS, 201))
        assert (lab.writes(), lab.claims) == ([], [])


@pytest.mark.parametrize(("name", "most"), [(SWAPPINESS, 200), ("vm.zone_reclaim_mode", 7), (BALANCING, 3)])
async def test_no_claim_has_a_value_out_of_range(name: str, most: int) -> None:
    TUNABLE.check(name, "0")
    TUNABLE.check(name, str(most))
    with pytest.raises(InvalidValue, match=f"{name} is a whole number from 0 to {most}, not {most + 1}"):
        TUNABLE.check(name, str(most + 1))
    saved = [claim(Origin.PERSISTENT, NAME, name, most), claim(Origin.RUNTIME, NAME, name, most + 1)]
    async with running(host(), claims=saved) as lab:
        assert [str(unsound.value) for unsound in lab.engine.unsound] == [str(most + 1)]


async def test_watermarks_have_a_distance() -> None:
    async with running(host()) as lab:
        with pytest.raises(InvalidValue, match="from 1 to 3000, not 0"):
            await lab.set((NAME, "vm.watermark_scale_factor", 0))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_a_value_that_only_the_host_itself_had_is_put_back() -> None:
    kernel = host()
    kernel.plain[ZONES].value = "8"
    async with running(kernel) as lab:
        await lab.set((NAME, "vm.zone_reclaim_mode", 0))
        await lab.unset((NAME, "vm.zone_reclaim_mode"))
        assert kernel.plain[ZONES].value == "8"


async def test_what_cannot_be_written_is_told_where_it_is_set_and_not_tried() -> None:
    async with running(host()) as lab:
        with pytest.raises(KernelRejected, match=r"= 0 in /etc/sysctl\.d sets it at boot"):
            await lab.set((NAME, BALANCING, 0))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_what_cannot_be_written_may_be_as_it_is_claimed() -> None:
    kernel = host()
    async with running(kernel, claims=[claim(Origin.CONFIG, NAME, BALANCING, 0)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.outcomes.values()
        assert told(outcome) == (BALANCING, "1", State.UNSUPPORTED, Reason.READ_ONLY)
        kernel.plain["proc/sys/kernel/numa_balancing"].value = "0"  # by systemd-sysctl, or by hand
        await lab.engine.reconcile("drift")
        (outcome,) = lab.engine.outcomes.values()
        assert told(outcome) == (BALANCING, "0", State.SATISFIED, Reason.OK)
        assert (await lab.one(NAME, BALANCING, 0)).state is State.SATISFIED
        await lab.unset((NAME, BALANCING))
        assert lab.writes() == []


async def test_a_host_without_nodes() -> None:
    kernel = host()
    del kernel.plain[ZONES]
    async with running(kernel) as lab:
        with pytest.raises(NoSuchTarget, match="sysctl has no 'vm"):
            await lab.set((NAME, "vm.zone_reclaim_mode", 0))
