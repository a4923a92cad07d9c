"""thp and sysctl: files of a list. Which names are on it, where the others are to be had, what only a host has."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.errors import InvalidValue, KernelRejected, NoSuchName, NoSuchTarget
from kerntune.model import Origin, Reason, State, Target
from kerntune.tunables.knobs import SYSCTL, THP
from tests.hosts import plant
from tests.unit.lab import SWAPPINESS, claim, running, small_host, told
from tests.unit.lab import THP as THP_FOLDER

ZONES = "proc/sys/vm/zone_reclaim_mode"
BALANCING = "kernel.numa_balancing"


# Names


@pytest.mark.parametrize("instances", ["", "shmem_enabled", "khugepaged/defrag", "enabled\n", "hugepages-64kB"])
def test_what_names_no_file_of_huge_pages(instances: str) -> None:
    with pytest.raises(NoSuchName, match=r"Give enabled .* or defrag"):
        THP.normal(instances)


def test_both_files_of_huge_pages_at_once_are_not_named() -> None:
    with pytest.raises(InvalidValue, match="two files") as refusal:
        THP.normal("*")
    assert not isinstance(refusal.value, NoSuchName)


def test_a_sysctl_has_dots_or_slashes() -> None:
    assert SYSCTL.normal("vm/swappiness") == SYSCTL.normal("vm.swappiness") == "vm.swappiness"


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
def test_a_sysctl_that_is_not_on_the_list_is_told_where_to_go(name: str, said: str) -> None:
    with pytest.raises(InvalidValue) as raised:  # as every reader of names expects
        SYSCTL.normal(name)
    assert said in (raised.value.hint or "")
    assert (raised.value.dbus_name, raised.value.exit_code) == (NoSuchTarget.dbus_name, NoSuchTarget.exit_code)


def test_only_those_the_kernel_has(tmp_path: Path) -> None:
    assert [target.instance for target in SYSCTL.targets(plant(tmp_path, f"{SWAPPINESS}\t60"))] == ["vm.swappiness"]


# Values of each name


def test_what_a_file_of_words_says(tmp_path: Path) -> None:
    kernel = plant(tmp_path, f"{THP_FOLDER}/defrag\talways defer defer+madvise [madvise] never")
    assert THP.targets(kernel) == [Target("thp", "defrag")]
    reading = THP.read(kernel, Target("thp", "defrag"))
    assert (reading.value, reading.choices) == ("madvise", ("always", "defer", "defer+madvise", "madvise", "never"))


def test_a_word_of_the_other_file_is_none() -> None:
    THP.check("defrag", "defer")
    with pytest.raises(InvalidValue, match="enabled is one of always, madvise, never, not defer"):
        THP.check("enabled", "defer")


async def test_a_configured_word_that_only_later_kernels_have_is_not_written() -> None:
    kernel = small_host()
    kernel.plain[f"{THP_FOLDER}/defrag"].words = ("always", "defer", "madvise", "never")  # Linux 4.10
    async with running(kernel, claims=[claim(Origin.CONFIG, "thp", "defrag", "defer+madvise")]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.observed.outcomes.values()
        assert told(outcome) == ("defrag", "madvise", State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED)
        assert lab.writes() == []


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("vm.swappiness", 0, 200), ("vm.zone_reclaim_mode", 0, 7), ("vm.watermark_scale_factor", 1, 3000),
     (BALANCING, 0, 3)],
)  # fmt: skip
async def test_a_number_out_of_range_is_refused_before_any_write_and_no_claim(name: str, least: int, most: int) -> None:
    SYSCTL.check(name, str(least))
    SYSCTL.check(name, str(most))
    saved = [claim(Origin.PERSISTENT, "sysctl", name, most), claim(Origin.RUNTIME, "sysctl", name, most + 1)]
    async with running(small_host(), claims=saved) as lab:
        assert [str(unsound.value) for unsound in lab.engine.edits.unsound] == [str(most + 1)]
        for beyond in {max(0, least - 1), most + 1} - {least}:
            with pytest.raises(InvalidValue, match=f"{name} is a whole number from {least} to {most}, not {beyond}"):
                await lab.set(("sysctl", name, beyond))
        assert lab.writes() == []


async def test_a_number_that_only_the_host_itself_had_is_put_back() -> None:
    kernel = small_host()
    kernel.plain[ZONES].value = "8"
    async with running(kernel) as lab:
        await lab.set(("sysctl", "vm.zone_reclaim_mode", 0))
        await lab.unset(("sysctl", "vm.zone_reclaim_mode"))
        assert kernel.plain[ZONES].value == "8"


# A sysctl that is only compared


async def test_what_cannot_be_written_is_told_where_it_is_set_and_not_tried() -> None:
    async with running(small_host()) as lab:
        with pytest.raises(KernelRejected, match=r"= 0 in /etc/sysctl\.d sets it at boot"):
            await lab.set(("sysctl", BALANCING, 0))
        assert (lab.writes(), lab.claims) == ([], [])


async def test_what_cannot_be_written_may_be_as_it_is_claimed() -> None:
    kernel = small_host()
    async with running(kernel, claims=[claim(Origin.CONFIG, "sysctl", BALANCING, 0)]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.observed.outcomes.values()
        assert told(outcome) == (BALANCING, "1", State.UNSUPPORTED, Reason.READ_ONLY)
        kernel.plain["proc/sys/kernel/numa_balancing"].value = "0"  # by systemd-sysctl, or by hand
        await lab.engine.reconcile("drift")
        (outcome,) = lab.engine.observed.outcomes.values()
        assert told(outcome) == (BALANCING, "0", State.SATISFIED, Reason.OK)
        assert (await lab.one("sysctl", BALANCING, 0)).state is State.SATISFIED
        await lab.unset(("sysctl", BALANCING))
        assert lab.writes() == []
