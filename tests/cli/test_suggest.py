"""How errors are told: in two parts, and with what was meant."""

from __future__ import annotations

import pytest

from kerntune.cli import suggest
from kerntune.errors import Failed, UnknownTunable
from kerntune.tunables import REGISTRY

NAMES = sorted(tunable.name for tunable in REGISTRY)


@pytest.mark.parametrize(
    ("said", "what", "hint"),
    [
        ("it broke", "it broke", ""),
        ("in part: x:2: claims is 0. Give more. The rest is in force", "in part: x:2: claims is 0. Give more",
         "The rest is in force"),
        ("no v'1. 5'. `kerntune list` shows more", "no v'1. 5'", "`kerntune list` shows more"),
        ("too many. wait for the replies", "too many", "wait for the replies"),
        ("modprobe acpi_cpufreq. /boot/config has it. It takes another", "modprobe acpi_cpufreq. /boot/config has it",
         "It takes another"),
    ],
)  # fmt: skip
def test_what_the_daemon_sends_as_one_text(said: str, what: str, hint: str) -> None:
    assert suggest.parts(Failed(said)) == (what, hint)


def test_our_own_have_two_parts_already() -> None:
    assert suggest.parts(Failed("it broke. Badly", "Try again")) == ("it broke. Badly", "Try again")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("hugepage", "hugepages"),
        ("io_scheduler", "io-scheduler"),
        ("scheduler", "io-scheduler"),
        ("governor", "cpu-governor"),
        ("scaling_governor", "cpu-governor"),
        ("epp", "cpu-epp"),
        ("readahead", "read-ahead"),
        ("read_ahead_kb", "read-ahead"),
        ("elevator", "io-scheduler"),
        ("transparent_hugepage", "thp"),
        ("defrag", "thp@defrag"),
        ("energy_performance_preference", "cpu-epp"),
        ("nr_overcommit_hugepages", "hugepages-overcommit"),
        ("nr_hugepages", "hugepages"),
        ("vm.nr_hugepages", "hugepages"),
        ("vm.overcommit_memory", "overcommit"),
        ("over-commit", "overcommit"),
        ("vm.swappiness", "sysctl@vm.swappiness"),
        ("vm.swapiness", "sysctl@vm.swappiness"),
        ("swappiness", "sysctl@vm.swappiness"),
        ("kernel.numa_balancing", "sysctl@kernel.numa_balancing"),
        ("zzz", ""),
    ],
)
def test_what_was_meant(word: str, meant: str) -> None:
    assert suggest.tunable(word, NAMES) == meant
    error = UnknownTunable(f"there is no tunable {word!r}. There are {', '.join(NAMES)}")
    what, hint = suggest.parts(error)
    assert what == f"there is no tunable {word!r}"
    assert hint.startswith(f"Did you mean {meant}? There are " if meant else "There are ")


def test_what_things_are_known_as_is_there() -> None:
    tunables = {tunable.name: tunable for tunable in REGISTRY}
    for target in suggest.known_as().values():
        name, _, instance = target.partition("@")
        assert name in tunables
        assert not instance or tunables[name].normal(instance) == instance


def test_only_what_there_is_can_be_meant() -> None:
    assert suggest.tunable("governor", ["hugepages"]) == ""
