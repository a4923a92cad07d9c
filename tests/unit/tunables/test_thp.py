"""thp: two files with bracketed words, each with choices of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerntune.daemon.demo import plain_files
from kerntune.errors import InvalidValue, NoSuchName, NotSupported
from kerntune.kernel.simulated import Node, SimulatedKernel
from kerntune.model import Origin, Reading, Reason, State, Target
from kerntune.tunables.knobs import THP
from tests.hosts import plant
from tests.unit.lab import GIB, Lab, claim, running, told

NAME = THP.name
FOLDER = "sys/kernel/mm/transparent_hugepage"
DEFRAG = Target(NAME, "defrag")


def host() -> SimulatedKernel:
    return SimulatedKernel([Node(4 * GIB)], plain=plain_files())


def word(lab: Lab, name: str) -> str:
    return lab.kernel.plain[f"{FOLDER}/{name}"].value


def test_what_a_file_says(tmp_path: Path) -> None:
    kernel = plant(tmp_path, f"{FOLDER}/defrag\talways defer defer+madvise [madvise] never")
    assert THP.targets(kernel) == [DEFRAG]
    reading = THP.read(kernel, DEFRAG)
    assert (reading.value, reading.choices) == ("madvise", ("always", "defer", "defer+madvise", "madvise", "never"))


@pytest.mark.parametrize("value", ["always", "madvise", "never", "defer", "defer+madvise"])
def test_values(value: str) -> None:
    assert THP.normal_value(value) == value


@pytest.mark.parametrize("value", ["Always", "always\n", "always never", "1"])
def test_what_is_no_word(value: str) -> None:
    with pytest.raises(InvalidValue):
        THP.normal_value(value)


@pytest.mark.parametrize("instances", ["", "shmem_enabled", "khugepaged/defrag", "enabled\n", "hugepages-64kB"])
def test_what_names_no_file(instances: str) -> None:
    with pytest.raises(NoSuchName, match=r"Give enabled .* or defrag"):
        THP.normal(instances)


def test_both_files_at_once_are_not_named() -> None:
    with pytest.raises(InvalidValue, match="two files") as refusal:
        THP.normal("*")
    assert not isinstance(refusal.value, NoSuchName)


def test_a_word_of_the_other_file_is_not_offered() -> None:
    with pytest.raises(InvalidValue, match="thp@enabled offers always, madvise, never, not defer"):
        THP.validate(Reading(Target(NAME, "enabled"), "always", choices=("always", "madvise", "never")), "defer")


async def test_a_set_is_read_back_and_leaves_with_unset() -> None:
    async with running(host()) as lab:
        answer = await lab.set((NAME, "enabled", "madvise"), (NAME, "defrag", "defer+madvise"))
        assert [told(o) for o in answer.outcomes] == [
            ("enabled", "madvise", State.SATISFIED, Reason.OK),
            ("defrag", "defer+madvise", State.SATISFIED, Reason.OK),
        ]
        assert (await lab.set((NAME, "enabled", "madvise"))).changed is False
        await lab.unset((NAME, "*"))
        assert [word(lab, name) for name in ("enabled", "defrag")] == ["always", "madvise"]


async def test_a_configured_word_that_only_later_kernels_have_is_not_written() -> None:
    kernel = host()
    kernel.plain[f"{FOLDER}/defrag"].words = ("always", "defer", "madvise", "never")  # Linux 4.10
    async with running(kernel, claims=[claim(Origin.CONFIG, NAME, "defrag", "defer+madvise")]) as lab:
        await lab.engine.reconcile("boot", enforce=True)
        (outcome,) = lab.engine.outcomes.values()
        assert told(outcome) == ("defrag", "madvise", State.UNSUPPORTED, Reason.VALUE_NOT_OFFERED)
        assert lab.writes() == []


@pytest.mark.parametrize(
    ("file", "words"),
    [("enabled", "always madvise never"), ("defrag", "always madvise never defer defer+madvise")],
)
def test_the_words_of_each_file(file: str, words: str) -> None:
    for word in words.split():
        THP.check(file, word)
    with pytest.raises(InvalidValue, match=f"{file} is one of .*, not sometimes"):
        THP.check(file, "sometimes")


def test_a_word_of_the_other_file_is_none() -> None:
    with pytest.raises(InvalidValue, match="enabled is one of always, madvise, never, not defer"):
        THP.check("enabled", "defer")


async def test_a_kernel_without_them_says_why() -> None:
    kernel = host()
    kernel.plain = {}
    async with running(kernel) as lab:
        with pytest.raises(NotSupported, match="CONFIG_TRANSPARENT_HUGEPAGE"):
            await lab.set((NAME, "enabled", "madvise"))
        assert lab.claims == []
